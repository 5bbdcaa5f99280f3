"""A small valid data set in each format, written apart from the readers: what they must give is known from here."""
import io
import json
import zipfile
from dataclasses import dataclass, field

import numpy as np

from posellm.pose.skeleton import get_skeleton

W, H = 120, 90


@dataclass
class Made:
    """Files of a data set and the people in it."""
    files: dict  # relative path -> bytes
    skeleton: str
    xy: np.ndarray  # (N,K,2) as the reader must give them
    vis: np.ndarray  # (N,K)
    bbox: np.ndarray | None  # (N,4), None: made by the reader
    main: str  # the file that is mutated
    open: str = ''  # what is opened, relative to the folder
    needs: list = field(default_factory=list)  # packages


def people(seed, K, n=4, levels=(0, 1, 2)):
    g = np.random.default_rng([seed, K])
    xy = g.integers(2, (W - 2, H - 2), (n, K, 2)).astype(float)
    vis = g.choice(levels, (n, K))
    vis[:, :3] = 2
    xy[vis == 0] = 0
    lo = np.array([k[v > 0].min(0) for k, v in zip(xy, vis)])
    hi = np.array([k[v > 0].max(0) for k, v in zip(xy, vis)])
    return xy, vis, np.c_[lo - 1, hi - lo + 2]


def dump(d): return json.dumps(d).encode()


def triples(xy, vis): return [float(v) if i < 2 else int(v) for k in np.c_[xy, vis] for i, v in enumerate(k)]


def coco_dict(xy, vis, bbox, names, **more):
    anns = [dict(id=10 + i, image_id=1 + i // 2, category_id=1, keypoints=triples(xy[i], vis[i]), num_keypoints=int((vis[i] > 0).sum()), bbox=bbox[i].tolist(), area=float(bbox[i, 2] * bbox[i, 3] / 2), iscrowd=0, **{k: v[i] for k, v in more.items()}) for i in range(len(xy))]
    return dict(images=[dict(id=1 + i, file_name=f'{i + 1:012}.jpg', width=W, height=H) for i in range(2)], annotations=anns, categories=[dict(id=1, name='person', keypoints=list(names), skeleton=[])])


def coco(seed):
    xy, vis, b = people(seed, 17)
    return Made({'labels.json': dump(coco_dict(xy, vis, b, get_skeleton('coco17').keypoints))}, 'coco17', xy, vis, b, 'labels.json')


def crowdpose(seed):
    xy, vis, b = people(seed, 14)
    d = coco_dict(xy, vis, b, ['head' if n == 'top_head' else n for n in get_skeleton('crowdpose14').keypoints])
    return Made({'crowdpose_val.json': dump(d)}, 'crowdpose14', xy, vis, b, 'crowdpose_val.json')


def halpe(seed):
    xy, vis, b = people(seed, 136)
    return Made({'halpe_val.json': dump(coco_dict(xy, vis, b, []))}, 'halpe136', xy, vis, b, 'halpe_val.json')


def wholebody(seed):
    xy, vis, b = people(seed, 133, levels=(0, 2))
    cut = dict(foot_kpts=(17, 23), face_kpts=(23, 91), lefthand_kpts=(91, 112), righthand_kpts=(112, 133))
    parts = {k: [triples(xy[i, lo:hi], vis[i, lo:hi] > 0) for i in range(len(xy))] for k, (lo, hi) in cut.items()}
    valid = {k.replace('kpts', 'valid'): [True] * len(xy) for k in cut}
    d = coco_dict(xy[:, :17], vis[:, :17], b, get_skeleton('coco17').keypoints, **parts, **valid)
    return Made({'wholebody_val.json': dump(d)}, 'wholebody133', xy, vis, b, 'wholebody_val.json')


def posetrack(seed):
    xy, vis, b = people(seed, 17, levels=(0, 2))
    files = {}
    for n, part in enumerate(('a', 'b')):
        i = slice(2 * n, 2 * n + 2)
        d = coco_dict(xy[i], vis[i] > 0, b[i], get_skeleton('posetrack17').keypoints, track_id=[0, 1])
        d['images'] = [dict(id=100 + n, vid_id=part, is_labeled=True, file_name=f'images/val/{part}/000000.jpg', width=W, height=H)]
        for j, a in enumerate(d['annotations']): a.update(id=1000 * (n + 1) + j, image_id=100 + n)
        files[f'annotations/val/{part}.json'] = dump(d)
    return Made(files, 'posetrack17', xy, vis, b, 'annotations/val/b.json')


def yolo_lines(xy, vis, b):
    size = np.array([W, H])
    out = []
    for k, v, (x, y, w, h) in zip(xy, vis, b):
        out.append(f'0 {(x + w / 2) / W:.6f} {(y + h / 2) / H:.6f} {w / W:.6f} {h / H:.6f} ' + ' '.join(f'{p[0]:.6f} {p[1]:.6f} {int(u)}' for p, u in zip(k / size, v)))
    return '\n'.join(out) + '\n'


def yolo(seed):
    xy, vis, b = people(seed, 17)
    files = {f'labels/train/{n + 1:012}.txt': yolo_lines(xy[2 * n:2 * n + 2], vis[2 * n:2 * n + 2], b[2 * n:2 * n + 2]).encode() for n in range(2)}
    files['image_sizes.csv'] = ('file,width,height\n' + ''.join(f'{f},{W},{H}\n' for f in files)).encode()
    files['data.yaml'] = b'path: .\ntrain: images/train\nkpt_shape: [17, 3]\nnames: {0: person}\n'
    return Made(files, 'coco17', xy, vis, b, 'labels/train/000000000002.txt')


def yolo_yaml(seed):
    m = yolo(seed)
    m.main = 'data.yaml'
    return m


def yolo_zip(seed):
    m = yolo(seed)
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, 'w', zipfile.ZIP_DEFLATED) as z:
        for f in [f for f in m.files if f.startswith('labels/')]: z.writestr(f, m.files.pop(f))
    m.files.pop('data.yaml')
    m.files['labels.zip'], m.main, m.open = raw.getvalue(), 'labels.zip', 'labels.zip'
    return m


def cvat(seed):
    xy, vis, b = people(seed, 17)
    names, body = get_skeleton('coco17').keypoints, ''
    for n in range(2):
        body += f'<image id="{n}" name="{n + 1:012}.jpg" width="{W}" height="{H}">\n'
        for i in (2 * n, 2 * n + 1):
            dots = ''.join(f'<points label="{k}" outside="{int(v == 0)}" occluded="{int(v == 1)}" points="{p[0]:.2f},{p[1]:.2f}"/>' for k, p, v in zip(names, xy[i], vis[i]))
            x, y, w, h = b[i]
            body += f'<skeleton label="person" source="manual" group_id="{i + 1}">{dots}</skeleton>\n<box label="person" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0" group_id="{i + 1}"/>\n'
        body += '</image>\n'
    return Made({'annotations.xml': f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n{body}</annotations>\n'.encode()}, 'coco17', xy, vis, b, 'annotations.xml')


def labelme(seed):
    xy, vis, b = people(seed, 17)
    names, files = get_skeleton('coco17').keypoints, {}
    for n in range(2):
        shapes = []
        for i in (2 * n, 2 * n + 1):
            x, y, w, h = b[i]
            shapes += [dict(label=k, points=[p.tolist()], group_id=i, shape_type='point', flags=dict(occluded=bool(v == 1))) for k, p, v in zip(names, xy[i], vis[i]) if v]
            shapes.append(dict(label='person', points=[[x, y], [x + w, y + h]], group_id=i, shape_type='rectangle', flags={}))
        files[f'{n + 1:012}.json'] = dump(dict(version='5.5.0', flags={}, shapes=shapes, imagePath=f'{n + 1:012}.jpg', imageData=None, imageHeight=H, imageWidth=W))
    return Made(files, 'coco17', xy, vis, b, '000000000002.json')


def _mpii(seed, levels):
    xy, vis, _ = people(seed, 16, levels=levels)
    g = np.random.default_rng([seed, 5])
    center, scale = g.integers(40, 60, (4, 2)).astype(float), g.uniform(.2, .5, 4).round(4)
    return xy, vis, center, scale, np.c_[center - 1 - 100 * scale[:, None], 200 * scale, 200 * scale]


def mpii_json(seed):
    xy, vis, c, s, b = _mpii(seed, (0, 2))
    d = [dict(image=f'{i // 2 + 1:09}.jpg', joints=np.where(vis[i, :, None] > 0, xy[i] + 1, -1).tolist(), joints_vis=(vis[i] > 0).astype(int).tolist(), center=c[i].tolist(), scale=float(s[i])) for i in range(4)]
    return Made({'train.json': dump(d)}, 'mpii16', xy, vis, b, 'train.json')


def _savemat(d):
    from scipy.io import savemat
    raw = io.BytesIO()
    savemat(raw, d, do_compression=True)
    return raw.getvalue()


def structs(rows):
    """A MATLAB struct array."""
    a = np.empty((1, len(rows)), [(k, object) for k in rows[0]])
    for i, r in enumerate(rows): a[0, i] = tuple(r.values())
    return a


def mpii_mat(seed):
    xy, vis, c, s, b = _mpii(seed, (0, 1, 2))
    rows = []
    for n in range(2):
        rects = []
        for i in (2 * n, 2 * n + 1):
            pts = [dict(x=xy[i, j, 0] + 1, y=xy[i, j, 1] + 1, id=float(j), is_visible=float(vis[i, j] - 1)) for j in range(16) if vis[i, j]]
            rects.append(dict(x1=1., y1=2., x2=11., y2=12., scale=s[i], objpos=dict(x=c[i, 0], y=c[i, 1]), annopoints=dict(point=structs(pts))))
        rows.append(dict(image=dict(name=f'{n + 1:09}.jpg'), annorect=structs(rects)))
    return Made({'mpii_train.mat': _savemat(dict(RELEASE=dict(annolist=structs(rows), img_train=np.ones((1, 2)))))}, 'mpii16', xy, vis, b, 'mpii_train.mat')


def mpii_h5(seed):
    import h5py
    xy, vis, c, s, b = _mpii(seed, (0, 1, 2))
    raw = io.BytesIO()
    with h5py.File(raw, 'w') as f:
        f['part'], f['visible'] = np.where(vis[..., None] > 0, xy + 1, 0), (vis == 2).astype(float)
        f['center'], f['scale'] = c + np.c_[np.zeros(4), 15 * s], 1.25 * s
        f['imgname'] = np.array([f'{i // 2 + 1:09}.jpg' for i in range(4)], 'S13')
    return Made({'train.h5': raw.getvalue()}, 'mpii16', xy, vis, b, 'train.h5', needs=['h5py'])


def lsp(seed):
    xy, vis, _ = people(seed, 14, levels=(1, 2))
    return Made({'joints.mat': _savemat(dict(joints=np.stack([xy[..., 0].T + 1, xy[..., 1].T + 1, (vis == 1).T.astype(float)])))}, 'lsp14', xy, vis, None, 'joints.mat')


def lspet(seed):
    xy, vis, _ = people(seed, 14, levels=(0, 2))
    raw = np.where(vis[..., None] > 0, xy + 1, -77)
    return Made({'joints.mat': _savemat(dict(joints=np.concatenate([raw, (vis > 0)[..., None]], 2).transpose(1, 2, 0)))}, 'lsp14', xy, vis, None, 'joints.mat')


def aic(seed):
    xy, vis, b = people(seed, 14)
    d = []
    for n in range(2):
        who = {f'human{i}': i for i in (2 * n, 2 * n + 1)}
        d.append(dict(image_id=f'img{n}', url='http://x', keypoint_annotations={k: triples(xy[i], np.array([3, 2, 1])[vis[i]]) for k, i in who.items()},
                      human_annotations={k: [*b[i, :2].tolist(), *(b[i, :2] + b[i, 2:]).tolist()] for k, i in who.items()}))
    return Made({'keypoint_train.json': dump(d)}, 'aic14', xy, vis, b, 'keypoint_train.json')


def h36m_npz(seed):
    xy, vis, _ = people(seed, 17, levels=(0, 2))
    raw = io.BytesIO()
    c, s = np.full((4, 2), 50.), np.full(4, .3)
    np.savez(raw, part=np.concatenate([xy, (vis > 0)[..., None]], 2), imgname=np.array([f'S1_{i}.jpg' for i in range(4)]), center=c, scale=s)
    return Made({'test_h36m.npz': raw.getvalue()}, 'h36m17', xy, vis, np.c_[c - 100 * s[:, None], 200 * s, 200 * s], 'test_h36m.npz')


MAKERS = dict(coco=coco, crowdpose=crowdpose, halpe=halpe, wholebody=wholebody, posetrack18=posetrack, yolo=yolo, yolo_yaml=yolo_yaml, yolo_zip=yolo_zip, cvat=cvat, labelme=labelme, mpii_json=mpii_json, mpii_mat=mpii_mat, mpii_h5=mpii_h5, lsp=lsp,
              lspet=lspet, aic=aic, h36m_npz=h36m_npz)
