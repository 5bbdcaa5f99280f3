"""Speed of fusion: points of three members, and heatmaps beside a loop over people.

    python bench/refine.py [--people 20000] [--maps 128] [--repeat 3]

Prints lines for people and one JSON object last (see bench/run.py). Contestants take turns in one process; figures are medians.
The peer of map fusion is the plain way to write it: for every person, every member and every keypoint one warp onto the common grid and one blur (OpenCV), a weighted mean, and DARK decoding of that person.
"""
import argparse
import json
import statistics
import time

import cv2
import numpy as np
import torch

from posellm.core.rng import rng
from posellm.metrics.oks import make_people
from posellm.pose.codec import make_codec
from posellm.pose.geometry import box_to_crop, compose, crop_matrix, invert_affine, stride, to_crop, to_image
from posellm.pose.skeleton import get_skeleton
from posellm.refine.fuse import fuse_points
from posellm.refine.fuser import fit_fuser
from posellm.refine.learn import learn_members
from posellm.refine.maps import common_sigma, cell_size, fuse_maps
from posellm.refine.members import stack_people
from posellm.train.predict import Maps

COCO = get_skeleton('coco17')


def timed(*contestants, repeat=5):
    """Median seconds of each, taking turns."""
    t = [[] for _ in contestants]
    for f in contestants: f()
    for _ in range(repeat):
        for i, f in enumerate(contestants): s = time.perf_counter(); f(); t[i].append(time.perf_counter() - s)
    return [statistics.median(v) for v in t]


def members_maps(n):
    """Three networks' maps: two grids, two paddings, two widths."""
    people = make_people(n, 1, COCO, seed=1); out = []
    for i, (hw, sigma, padding) in enumerate((((256, 192), 2., 1.25), ((256, 192), 2.5, 1.1), ((192, 144), 2., 1.25))):
        c = make_codec('udp', hw, sigma=sigma); M = crop_matrix(*box_to_crop(people.bbox, hw, padding), hw); h, _ = c.encode(to_crop(M, people.xy + rng(1, i).normal(size=people.xy.shape)*2)); out.append(Maps(h.half().numpy(), M, c))
    return out


def loop_over_people(members, weights):
    """Warp, blur, add and decode one person after the other."""
    to = members[0]; (H, W), K = to.codec.heatmap_hw, to.heatmaps.shape[1]; wide = common_sigma(members); xy = np.empty((len(to), K, 2)); st = stride(to.codec.input_hw, to.codec.heatmap_hw, 'udp')
    back = [compose(m.M, invert_affine(to.M)) for m in members]; blur = [np.sqrt(np.maximum((wide/cell_size(m))**2 - np.asarray(m.codec.sigma)**2, 0)) for m in members]
    for n in range(len(to)):
        total = np.zeros((K, H, W), np.float32)
        for m, w in enumerate(weights):
            so = stride(members[m].codec.input_hw, members[m].codec.heatmap_hw, 'udp'); T = back[m][n].copy(); T[:, :2] *= st; T /= so[:, None]
            for k in range(K):
                h = members[m].heatmaps[n, k].astype(np.float32)
                if blur[m][n].max() > .2: h = cv2.GaussianBlur(h, (0, 0), float(blur[m][n, 0]), sigmaY=float(blur[m][n, 1]))
                total[k] += w*cv2.warpAffine(h, T, (W, H), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        xy[n] = to_image(to.M[n:n+1], to.codec.decode(torch.from_numpy(total[None]))[0].double().numpy())[0]
    return xy


def main():
    ap = argparse.ArgumentParser(description=__doc__); ap.add_argument('--people', type=int, default=20000); ap.add_argument('--maps', type=int, default=128); ap.add_argument('--repeat', type=int, default=3); o = ap.parse_args()
    truth = make_people(o.people, 1, COCO, seed=1); members = [make_people(o.people, 1, COCO, seed=1, noise=n, predictions=True) for n in (1., 1.2, 1.5)]
    stack = stack_people(members); some = np.arange(min(1000, o.people)); know = learn_members(stack[some], truth[some]); fuser = fit_fuser(stack[some], truth[some], 'precision'); rules = ('uniform', 'median', 'confidence', 'keypoint', 'covariance', 'precision'); out = {}
    secs = timed(*[lambda r=r: fuse_points(stack, r, know) for r in rules], lambda: fuser(stack), lambda: stack_people(members), repeat=o.repeat)
    for name, s in zip((*rules, 'precision with confidence and covariance', 'bringing three members into step'), secs):
        print(f'{name:<44}{o.people/s:>12,.0f} people/s'); out[name] = dict(ours=round(o.people/s), peer=None, unit='people/s', peer_name=None)
    maps = members_maps(o.maps); w = (.5, .3, .2); ours = lambda: fuse_maps(maps, w, grid=0).decode()[0]; loop = lambda: loop_over_people(maps, w)
    d = np.linalg.norm(ours() - loop(), axis=-1)/cell_size(maps[0]).max(1)[:, None]; a, b = timed(ours, loop, repeat=2*o.repeat + 1)
    print(f'maps 64x48, three members: {o.maps/a:,.0f} people/s, loop {o.maps/b:,.0f} people/s: {b/a:.1f} times; points differ by {np.median(d):.3f} cells (median)')
    same = [maps[0], Maps(maps[1].heatmaps, maps[0].M, maps[0].codec), Maps(maps[0].heatmaps, maps[0].M, maps[0].codec)]; c, e = timed(lambda: fuse_maps(same, w, grid=0).decode()[0], lambda: loop_over_people(same, w), repeat=2*o.repeat + 1)
    print(f'maps 64x48, one grid:      {o.maps/c:,.0f} people/s, loop {o.maps/e:,.0f} people/s: {e/c:.1f} times')
    out['maps 64x48, three grids'] = dict(ours=round(o.maps/a, 1), peer=round(o.maps/b, 1), unit='people/s', peer_name='loop over people, OpenCV'); out['maps 64x48, one grid'] = dict(ours=round(o.maps/c, 1), peer=round(o.maps/e, 1), unit='people/s', peer_name='loop over people, OpenCV')
    print(json.dumps(out))


if __name__ == '__main__': main()
