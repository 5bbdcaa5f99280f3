"""Codecs straight from their definitions: numpy and OpenCV, one person and one keypoint at a time. Tests compare against it in float64, `bench/codec.py` times it in float32."""
import cv2
import numpy as np


def encode_gaussian(xy_hm, labelled, hw, sigma, rounded, dtype=np.float64):
    """Hills of one person: `xy_hm` (K,2) cells. Patch of three sigma about the rounded cell; weight 0 if it misses the map."""
    H, W = hw
    maps, weight = np.zeros((len(xy_hm), H, W), dtype), np.array(labelled, dtype)
    radius = 3 * sigma
    for k, (x, y) in enumerate(xy_hm):
        if not labelled[k]: continue
        cx, cy = int(np.floor(x + .5)), int(np.floor(y + .5))
        x1, x2, y1, y2 = (int(v) for v in (max(0, cx - radius), min(W, cx + radius + 1), max(0, cy - radius), min(H, cy + radius + 1)))
        if x1 >= x2 or y1 >= y2:
            weight[k] = 0
            continue
        mx, my = (cx, cy) if rounded else (x, y)
        xs, ys = np.arange(x1, x2, dtype=dtype), np.arange(y1, y2, dtype=dtype)[:, None]
        patch = np.exp(-((xs - mx) ** 2 + (ys - my) ** 2) / (2 * sigma**2))
        np.maximum(maps[k, y1:y2, x1:x2], patch, out=maps[k, y1:y2, x1:x2])
    return maps, weight


def encode_simcc(xy_crop, labelled, input_hw, sigma, split=2.):
    """Two rows of bins for each keypoint of one person, float64."""
    H, W = (int(n * split) for n in input_hw)
    tx, ty, weight = np.zeros((len(xy_crop), W)), np.zeros((len(xy_crop), H)), np.array(labelled, float)
    for k, (x, y) in enumerate(xy_crop):
        if not labelled[k]: continue
        bx, by = np.around(x * split), np.around(y * split)
        if bx - 3 * sigma[0] >= W or by - 3 * sigma[1] >= H or bx + 3 * sigma[0] + 1 < 0 or by + 3 * sigma[1] + 1 < 0:
            weight[k] = 0
            continue
        tx[k], ty[k] = np.exp(-(np.arange(W) - bx) ** 2 / (2 * sigma[0] ** 2)), np.exp(-(np.arange(H) - by) ** 2 / (2 * sigma[1] ** 2))
    return tx, ty, weight


def highest(maps):
    """Cell (K,2) and height (K,) of the highest cells of one person's maps (K,H,W)."""
    K, H, W = maps.shape
    at = maps.reshape(K, -1).argmax(1)
    return np.stack([at % W, at // W], 1), maps.reshape(K, -1).max(1)


def blur_maps(maps, kernel, variant):
    """`vitpose`: OpenCV's blur with its own border. `mmpose`: on a map padded with zeros, then back to the old maximum."""
    out, r = np.empty_like(maps), kernel // 2
    for k, m in enumerate(maps):
        if variant == "vitpose":
            out[k] = cv2.GaussianBlur(m, (kernel, kernel), 0)
            continue
        top, wide = m.max(), np.zeros((m.shape[0] + 2 * r, m.shape[1] + 2 * r), m.dtype)
        wide[r:-r, r:-r] = m
        out[k] = cv2.GaussianBlur(wide, (kernel, kernel), 0)[r:-r, r:-r]
        out[k] *= top / out[k].max()
    return out


def decode_dark(maps, kernel=11, variant="vitpose"):
    """Cells (K,2) and heights (K,) of one person: whole maps blurred, clipped, logged, padded, then a Newton step."""
    cell, height = highest(maps)
    log = np.log(np.clip(blur_maps(maps, kernel, variant), 1e-3, 50))
    log = np.pad(log, ((0, 0), (1, 1), (1, 1)), mode="edge")
    k, x, y = np.arange(len(maps)), cell[:, 0] + 1, cell[:, 1] + 1
    def at(dx, dy): return log[k, y + dy, x + dx]
    gradient = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], 1) / 2
    hessian = np.empty((len(maps), 2, 2), maps.dtype)
    hessian[:, 0, 0] = at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    hessian[:, 1, 1] = at(0, 1) - 2 * at(0, 0) + at(0, -1)
    hessian[:, 0, 1] = hessian[:, 1, 0] = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    inverse = np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2))
    return cell - np.einsum("kij,kj->ki", inverse, gradient), height


def decode_quarter(maps):
    """SimpleBaseline's quarter of a cell."""
    cell, height = highest(maps)
    out, (H, W) = cell.astype(float), maps.shape[1:]
    for k, (x, y) in enumerate(cell):
        if 1 < x < W - 1 and 1 < y < H - 1:
            out[k] += .25 * np.sign([maps[k, y, x + 1] - maps[k, y, x - 1], maps[k, y + 1, x] - maps[k, y - 1, x]])
    return out, height
