"""Two pose estimators on MVOR, fused: against the better one alone, and against merely filling its gaps.

    python bench/fusion_mvor.py [--data shared/data/eval_mvor] [--folds 5] [--out bench/results/fusion_mvor.md]

PCK by MVOR's own rule (Srivastav et al. 2018): 10 joints, all annotated people, a missing joint is wrong. Everything that is learnt is cross-validated over
moments: the three cameras of one moment are in one fold, so nothing is fused by what was learnt from the same people. Intervals: paired bootstrap over moments.
"""
import argparse
import json
from pathlib import Path

import numpy as np

from posellm.core.files import write_atomic
from posellm.core.paths import shared_data
from posellm.core.rng import rng
from posellm.metrics.benchmarks import coco_to_mvor
from posellm.metrics.pck import joint_box, pairs_by_cover
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.refine.fuse import RULES, fuse_points
from posellm.refine.fuser import cross_fused
from posellm.refine.members import Stack, stack_people
from posellm.refine.spread import inside

PARTS = ('Head', 'Shou', 'Hip', 'Elbo', 'Wris')
# MVOR publishes no sigmas. COCO's for shoulders, hips, elbows and wrists, the ear's for the head, the shoulder's for the neck: they set gates and scales, no result
SIGMAS = np.array([.035, .079, .079, .079, .107, .107, .072, .072, .062, .062])


def people(xy, conf, on, image_id, score, skeleton, vis=None):
    box = np.nan_to_num(joint_box(xy, on)); box[:, 2:] -= box[:, :2]; n = len(xy); ids = np.unique(image_id)
    return Poses(xy=np.where(on[..., None], xy, 0.), conf=np.where(on, conf, 0.), bbox=box, area=.53*np.maximum(box[:, 2:], 1).prod(1), score=np.asarray(score, float), ann_id=np.arange(1, n + 1), image_id=np.asarray(image_id),
                 category_id=np.ones(n, np.int64), iscrowd=np.zeros(n, bool), num_keypoints=on.sum(1), images=[dict(id=int(i), file_name=str(i)) for i in ids], skeleton=skeleton, vis=vis, area_source='box*0.53')


def read(folder):
    """Truth with 10 joints; both members with COCO's 17."""
    d = json.loads((folder/'annotations/camma_mvor_2018.json').read_text()); anns = [a for a in d['annotations'] if not a['only_bbox']]
    k = np.array([a['keypoints'] for a in anns], float).reshape(-1, 10, 3); on = k[..., 2] > 0; some = on.any(1)
    truth = people(k[some][..., :2], on[some]*1., on[some], np.array([a['image_id'] for a in anns])[some], np.ones(some.sum()), get_skeleton('mvor10'), (2*on[some]).astype(np.int8))
    members = {}
    for name in ('rtpose', 'openpose'):
        r = json.loads((folder/f'detections_results/{name}_kps.json').read_text()); c = np.array([x['coco_keypoints'] for x in r], float).reshape(-1, 17, 3)
        members[name] = people(c[..., :2], c[..., 2], (c[..., :2] != 0).any(-1), [x['image_id'] for x in r], [x['score'] for x in r], get_skeleton('coco17'))
    moments = {i: at for at, m in enumerate(d['multiview_images']) for i in ([x['id'] for x in m['images']] if isinstance(m, dict) and 'images' in m else [])}
    return truth, members, moments or {int(i): int(i) % 10**6 + 10**7*(int(i)//10**10) for i in truth.image_id.tolist() + [j for m in members.values() for j in m.image_id.tolist()]}


def ten_joints(s):
    """The stack in MVOR's joints; the box a person is found by stays that of its COCO joints, the first member's where there is one."""
    xy, conf = [], []
    for m in range(len(s.names)):
        p, have = coco_to_mvor(np.nan_to_num(s.xy[m]), s.on[m]); c, _ = coco_to_mvor(np.repeat(s.conf[m][..., None], 2, -1), s.on[m])
        xy.append(np.where(have[..., None], p, np.nan)); conf.append(np.where(have, c[..., 0], 0))
    xy, conf = np.stack(xy), np.stack(conf); first = s.on.any(2).argmax(0)
    return Stack(s.names, xy, conf, s.score, people(np.nan_to_num(xy[0]), conf[0], np.isfinite(xy[0, ..., 0]), s.people.image_id, s.score.max(0), get_skeleton('mvor10')), list(s.notes)), np.nan_to_num(joint_box(np.nan_to_num(s.xy[first, np.arange(len(s))]), s.on[first, np.arange(len(s))]))


def hits(truth, xy, have, image_id, box, rank):
    """(N,10) right by MVOR's rule, and whose prediction each person has."""
    tbox, whole = joint_box(truth.xy, truth.labelled), [0, 0, 1, 1]
    who = pairs_by_cover(tbox + whole, truth.image_id, box + whole, image_id, rank)
    near = np.linalg.norm(xy[who] - truth.xy, axis=-1) <= .2*((tbox[:, 2:] - tbox[:, :2]).max(1) + 1)[:, None]
    return near & truth.labelled & have[who] & (who >= 0)[:, None], who


def pck(h): return 100*h.mean(0).reshape(5, 2).mean(1)


def difference(a, b, moment, n=2000, seed=0):
    """Mean PCK of b minus a with its paired 95 % interval over moments."""
    ids, at = np.unique(moment, return_inverse=True); d = np.zeros((len(ids), 10)); np.add.at(d, at, b*1. - a*1.); size = np.bincount(at)
    r = rng(seed, 'mvor'); draws = [(lambda i: 100*d[i].sum(0).mean()/size[i].sum())(r.integers(0, len(ids), len(ids))) for _ in range(n)]
    return 100*(b*1. - a*1.).mean(), *np.quantile(draws, [.025, .975])


def regions(truth, parts, who, moment, levels=(.5, .68, .9, .95), n=2000, seed=0):
    """Share of annotated joints, of people who are found, that lie in the stated regions, with its 95 % interval over moments."""
    on = truth.labelled & (who >= 0)[:, None] & (parts.conf[who] > 0); ids, at = np.unique(moment, return_inverse=True); total = np.bincount(at, on.sum(1), len(ids)); r = rng(seed, 'mvor regions'); out = {}
    draws = [np.bincount(r.integers(0, len(ids), len(ids)), minlength=len(ids)) for _ in range(n)]
    for q in levels:
        held = np.bincount(at, (inside(parts.cov[who], parts.xy[who], truth.xy, q) & on).sum(1), len(ids)); out[q] = (held.sum()/total.sum(), *np.quantile([(w*held).sum()/(w*total).sum() for w in draws], [.025, .975]))
    return out, int(on.sum())


def main():
    ap = argparse.ArgumentParser(description=__doc__); ap.add_argument('--data', default=None); ap.add_argument('--folds', type=int, default=5); ap.add_argument('--out', default=None); o = ap.parse_args()
    folder = Path(o.data) if o.data else shared_data()/'eval_mvor'; truth, members, moments = read(folder)
    s17 = stack_people(members); s, box = ten_joints(s17); image = s.people.image_id; moment = np.array([moments[int(i)] for i in truth.image_id])
    rt, op = (s.on[m].any(1) | s17.on[m].any(1) for m in (0, 1))
    rank_rt = np.where(rt, 1e6 + s.score[0], s.score[1]) # who has an rtpose person is found by it; people of openpose alone come behind
    take = lambda f, sel: hits(truth, np.nan_to_num(f.xy)[sel], np.isfinite(f.xy[..., 0])[sel], image[sel], box[sel], rank_rt[sel])[0]
    everybody, both = np.ones(len(s), bool), rt
    H = {}
    alone = fuse_points(s.only(['rtpose']), 'first'); H['rtpose alone'] = take(alone, rt)
    o17 = joint_box(np.nan_to_num(s17.xy[1]), s17.on[1]); f = fuse_points(s.only(['openpose']), 'first')
    H['openpose alone'] = hits(truth, np.nan_to_num(f.xy)[op], np.isfinite(f.xy[..., 0])[op], image[op], np.nan_to_num(o17)[op], s.score[1][op])[0]
    fill = fuse_points(s, 'first'); H["rtpose, missing joints filled"] = take(fill, both); H["rtpose, missing joints and people filled"] = take(fill, everybody)
    groups = {int(i): moments[int(i)] for i in image}; chosen = {}
    for rule in (*[r for r in RULES if r not in ('first', 'maps')], 'auto'):
        parts, fusers = cross_fused(s, truth, rule, o.folds, 0, SIGMAS, groups=groups); fx = np.where((parts.conf > 0)[..., None], parts.xy, np.nan)
        h, who = hits(truth, np.nan_to_num(fx), np.isfinite(fx[..., 0]), image, box, rank_rt); H[f'fused: {rule}'] = h
        if rule == 'auto': held, joints = regions(truth, parts, who, moment); chosen = {f.rule: sum(g.rule == f.rule for g in fusers) for f in fusers}
    one = [hits(truth, np.nan_to_num(s.xy[m]), s.on[m], image, box, rank_rt)[0] for m in (0, 1)]; H['oracle: either member right'] = one[0] | one[1]
    lines = [f'| what | {" | ".join(PARTS)} | mean | minus rtpose alone | minus filled joints and people |', '|---|' + '---|'*8]
    for name, h in H.items():
        d = [difference(H[b], h, moment) for b in ('rtpose alone', 'rtpose, missing joints and people filled')]
        lines.append(f'| {name} | {" | ".join(f"{v:.1f}" for v in pck(h))} | **{pck(h).mean():.1f}** | ' + ' | '.join('' if abs(x[0]) < 1e-12 and h is H[b] else f'{x[0]:+.2f} ({x[1]:+.2f} to {x[2]:+.2f})' for x, b in zip(d, ('rtpose alone', 'rtpose, missing joints and people filled'))) + ' |')
    e = [np.linalg.norm(s.xy[m] - 0, axis=-1) for m in (0, 1)]; notes = f'{len(truth)} annotated people in {len(np.unique(truth.image_id))} images, {len(np.unique(moment))} moments; {"; ".join(s.notes)}. `auto` chose {chosen} in the folds.'
    stated = f'Stated regions of `auto`, out of fold, {joints:,} annotated joints of people who are found: ' + ', '.join(f'{q:.0%} hold **{v:.3f}** ({a:.3f} to {b:.3f})' for q, (v, a, b) in held.items()) + '.'
    text = '\n'.join([notes, '', *lines, '', stated]); print(text)
    if o.out: write_atomic(o.out, text + '\n')


if __name__ == '__main__': main()
