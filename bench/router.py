"""Fast or slow: how much of System 2's gain the router keeps, and at what cost, on generated people that neither the networks nor the router has seen.

System 1 is the first network on upright crops. System 2 is all networks named, each mirrored and at two box sizes, heatmaps averaged; between them lie all networks on upright crops. Router, thresholds and
calibration are fitted on the train part of a generated set, everything is reported on its val part.

    python bench/router.py WEIGHTS [WEIGHTS ...] [--people 3000] [--data FOLDER]
"""
import argparse
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from posellm.app.report import processor
from posellm.core.files import write_json
from posellm.data.coco import load_data
from posellm.data.synth import V1, write_synth
from posellm.explain.router import cost_curve, fit_router, mixed, oks_of, share_of_gain, signals, worth
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import auroc, calibrate_on, recalibrated
from posellm.models.weights import load_model
from posellm.refine.maps import fuse_maps
from posellm.train.predict import predict_poses

SIZES = (1., 1.15)


def resized(people, f):
    c = people.bbox[:, :2] + people.bbox[:, 2:] / 2
    return replace(people, bbox=np.concatenate([c - f * people.bbox[:, 2:] / 2, f * people.bbox[:, 2:]], 1))


def predict_of(people):
    "The people as predictions, without what they are labelled with."
    return replace(people, vis=None, num_keypoints=np.full(len(people), people.K), area=people.bbox[:, 2] * people.bbox[:, 3], area_source='box', extra=[])


def systems(nets, people):
    "Answers of System 1 (first network, upright), of all networks upright, and of System 2; what the latter two cost above System 1, seconds a person."
    t = time.perf_counter()
    upright = [predict_poses(net, people, flip=False, return_maps=True) for net in nets]
    xy, conf = fuse_maps([m for _, m in upright]).decode()
    step = (time.perf_counter() - t) * (len(nets) - 1) / len(nets)
    one, t, maps = upright[0][0], time.perf_counter(), []
    for net in nets:
        for f in SIZES: maps.append(predict_poses(net, resized(people, f), flip=True, return_maps=True)[1])
    xy2, conf2 = fuse_maps(maps).decode()
    whole = time.perf_counter() - t
    return (one, replace(one, xy=xy, conf=conf.clip(0, 1)), replace(one, xy=xy2, conf=conf2.clip(0, 1))), np.array([step, whole]) / len(people)


def kept(folder, name, nets, people):
    file = Path(folder) / f'{name}.npz' if folder else None
    if file and file.is_file():
        d = np.load(file)
        return [replace(predict_of(people), xy=d[f'xy{i}'], conf=d[f'conf{i}']) for i in range(3)], d['cost']
    got, cost = systems(nets, people)
    if file: file.parent.mkdir(parents=True, exist_ok=True); np.savez(file, cost=cost, **{f'{k}{i}': getattr(p, k) for i, p in enumerate(got) for k in ('xy', 'conf')})
    return got, cost


def judge(fit, held, a, b, cost):
    "A router between answers `a` and `b` of the tuples, fitted on one part and judged on the other; `cost` of b above a, seconds a person."
    t, x, y = fit[0], fit[a], fit[b]
    s, k, l = signals(x), oks_of(t, x), oks_of(t, y)
    router, _ = fit_router(s, worth(k, l, x.score), x.image_id)
    event, _ = fit_router(s, np.where(np.isnan(k + l), np.nan, l - k > .05), x.image_id)
    t, x, y = held[0], held[a], held[b]
    start = time.perf_counter()
    for _ in range(5): score = router.score(signals(x))
    own = (time.perf_counter() - start) / 5 / len(x)
    k, l = oks_of(t, x), oks_of(t, y)
    on = np.isfinite(k + l)
    better = (l - k)[on] > .05
    routed = router(signals(x), .3 - own / cost)                     # the threshold comes from the other part; the router pays for itself
    share = share_of_gain(t, x, y, mixed(x, y, routed))
    return dict(ap_fast=evaluate(t, x).stats['AP'], ap_slow=evaluate(t, y).stats['AP'], gain=[share.gain, share.gain_lo, share.gain_hi], improves=float(better.mean()),
                auroc=dict(router=auroc(event.score(signals(x))[on], better), weighing_ap=auroc(score[on], better), confidence=auroc(-x.conf.mean(1)[on], better)),
                own_seconds=own, own_share=own / cost, at30=dict(cost=float(routed.mean() + own / cost), kept=[share.value, share.lo, share.hi]), ridge=router.fitted_on['ridge'], routed=routed,
                curves={n: [[round(u, 4), round(v, 4)] for u, v in c] for n, c in cost_curve(t, x, y, score, own=own / cost).items()})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('weights', nargs='+', help='two or more networks, the fast one first')
    ap.add_argument('--people', type=int, default=3000)
    ap.add_argument('--data')
    ap.add_argument('--keep', help='folder where the answers are kept, and found again')
    ap.add_argument('--out', default=str(Path(__file__).parent / 'results' / 'router.json'))
    a = ap.parse_args()
    torch.set_num_threads(1)
    nets = [load_model(w) for w in a.weights]
    folder = Path(a.data) if a.data else Path(write_synth(tempfile.mkdtemp(), a.people, a.people, 0, seed=991, config=V1))
    parts, costs = {}, {}
    for name, split in (('calib', 'train'), ('heldout', 'val')):
        truth = load_data(folder, split)
        people = truth[(truth.num_keypoints > 0) & ~truth.iscrowd]
        got, costs[name] = kept(a.keep, name, nets, people)
        parts[name] = replace(people, images=truth.images), *got
    cal = [calibrate_on(parts['calib'][0], p) for p in parts['calib'][1:]]
    fit, held = ((t, *(recalibrated(p, c) for p, c in zip(got, cal))) for t, *got in (parts['calib'], parts['heldout']))
    step, whole = costs['heldout']
    out = dict(date=str(date.today()), cpu=processor(), machine='one thread of 2 cores, shared with other work', networks=[f'{n.spec.name} {"x".join(map(str, n.spec.input_hw))}' for n in nets], people=len(held[0]), images=len(held[0].images),
               fitted_on=dict(people=len(fit[0]), images=len(fit[0].images)), data='generated (look of synth-v1), seed 991; fitted on its train part, reported on its val part', boxes='ground truth',
               seconds=dict(more_networks=float(step), system2=float(whole)))
    r = out['all of system 2 at once'] = judge(fit, held, 1, 3, whole)
    q = out['more networks only'] = judge(fit, held, 1, 2, step)
    ladder = mixed(held[1], held[2], q.pop('routed'))
    share = share_of_gain(held[0], held[1], held[3], ladder)
    out['networks first'] = dict(cost=q['at30']['cost'] * step / whole, kept=[share.value, share.lo, share.hi])
    share = share_of_gain(held[0], held[1], held[3], held[2])
    out['networks first, for everybody'] = dict(cost=float(step / whole), kept=[share.value, share.lo, share.hi])
    r.pop('routed')
    write_json(a.out, out, indent=1)
    for k, v in out.items(): print(k, {x: y for x, y in v.items() if x != 'curves'} if isinstance(v, dict) else v)
    for n in ('all of system 2 at once', 'more networks only'):
        for k, v in out[n]['curves'].items(): print(n, f'{k:11}', '  '.join(f'{x:.2f}:{y:.3f}' for x, y in v))


if __name__ == '__main__': main()
