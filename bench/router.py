"""Fast or slow: how much of System 2's gain the router keeps, and at what cost, on generated people that neither the networks nor the router has seen.

System 1 is the first network on upright crops. System 2 is all networks named, each mirrored and at two box sizes, heatmaps averaged. Router, thresholds and calibration are fitted on the train part of a
generated set, everything is reported on its val part.

    python bench/router.py WEIGHTS [WEIGHTS ...] [--people 3000] [--data FOLDER]
"""
import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from posellm.data.coco import load_data
from posellm.data.synth import V1, write_synth
from posellm.explain.router import auroc, cost_curve, fit_router, mixed, oks_of, share_of_gain, signals, steps
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import calibrate_on, recalibrated
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
    "Answers of both systems, and their seconds a person (rendering and reading of pictures counted once, with System 1)."
    t = time.perf_counter()
    one = predict_poses(nets[0], people, flip=False)
    first = time.perf_counter() - t
    maps, t = [], time.perf_counter()
    for net in nets:
        for f in SIZES: maps.append(predict_poses(net, resized(people, f), flip=True, return_maps=True)[1])
    xy, conf = fuse_maps(maps).decode()
    second = time.perf_counter() - t
    two = replace(one, xy=xy, conf=conf.clip(0, 1))
    return one, two, first / len(people), second / len(people)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('weights', nargs='+')
    ap.add_argument('--people', type=int, default=3000)
    ap.add_argument('--data')
    ap.add_argument('--keep', help='folder where the answers are kept, and found again')
    ap.add_argument('--out', default=str(Path(__file__).parent / 'results' / 'router.json'))
    a = ap.parse_args()
    torch.set_num_threads(1)
    nets = [load_model(w) for w in a.weights]
    folder = Path(a.data) if a.data else Path(write_synth(tempfile.mkdtemp(), a.people, a.people, 0, seed=991, config=V1))
    out, parts = {}, {}
    for name, split in (('calib', 'train'), ('heldout', 'val')):
        truth = load_data(folder, split)
        people = truth[(truth.num_keypoints > 0) & ~truth.iscrowd]
        kept = Path(a.keep) / f'{name}.npz' if a.keep else None
        if kept and kept.is_file():
            d = np.load(kept)
            one, two = (replace(predict_of(people), xy=d[f'xy{i}'], conf=d[f'conf{i}'], score=d[f'score{i}']) for i in (1, 2))
            c1, c2 = d['cost']
        else:
            one, two, c1, c2 = systems(nets, people)
            if kept: kept.parent.mkdir(parents=True, exist_ok=True); np.savez(kept, cost=[c1, c2], **{f'{k}{i}': getattr(p, k) for i, p in ((1, one), (2, two)) for k in ('xy', 'conf', 'score')})
        parts[name] = replace(people, images=truth.images), one, two
        out[f'seconds_{name}'] = dict(system1=round(c1, 5), system2=round(c2, 5))
    truth, one, two = parts['calib']
    cal = [calibrate_on(truth, p) for p in (one, two)]
    parts = {k: (t, *(recalibrated(p, c) for p, c in zip((o, w), cal))) for k, (t, o, w) in parts.items()}
    truth, one, two = parts['calib']
    router, _ = fit_router(signals(one), steps(oks_of(truth, two)) - steps(oks_of(truth, one)), one.image_id, fitted_on=dict(data='generated, seed 991, train part'))
    event = oks_of(truth, two) - oks_of(truth, one)
    event_router, _ = fit_router(signals(one), np.where(np.isnan(event), np.nan, event > .05), one.image_id)

    truth, one, two = parts['heldout']
    t = time.perf_counter()
    for _ in range(5): score = router.score(signals(one))
    own = (time.perf_counter() - t) / 5 / len(one)
    c2 = out['seconds_heldout']['system2']
    gain = oks_of(truth, two) - oks_of(truth, one)
    on = np.isfinite(gain)
    curves = cost_curve(truth, one, two, score, own=own / c2)
    asked = max(0., .3 - own / c2)                                   # the router pays for itself
    routed = router.score(signals(one)) >= np.interp(asked, sorted(router.thresholds), [router.thresholds[k] for k in sorted(router.thresholds)])
    kept = share_of_gain(truth, one, two, mixed(one, two, routed))
    out |= dict(date=str(date.today()), cpu=platform.processor() or platform.machine(), machine='2 cores, one thread, shared with other work', networks=[f'{n.spec.name}, {"x".join(map(str, n.spec.input_hw))}' for n in nets], people=len(one), images=len(truth.images),
                boxes='ground truth', own_seconds=own, own_share=own / c2, ap1=evaluate(truth, one).stats['AP'], ap2=evaluate(truth, two).stats['AP'], improves=float((gain[on] > .05).mean()),
                auroc=dict(router=auroc(score[on], gain[on] > .05), router_fitted_on_the_event=auroc(event_router.score(signals(one))[on], gain[on] > .05), confidence=auroc(-one.conf.mean(1)[on], gain[on] > .05)),
                curves={k: [[round(x, 4), round(y, 4)] for x, y in v] for k, v in curves.items()},
                at30=dict(routed=float(routed.mean()), cost=float(routed.mean() + own / c2), share=kept.value, lo=kept.lo, hi=kept.hi, gain=kept.gain, gain_lo=kept.gain_lo, gain_hi=kept.gain_hi),
                signals=list(router.names), fitted=router.fitted_on)
    Path(a.out).write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps({k: v for k, v in out.items() if k != 'curves'}, indent=1))
    for k, v in out['curves'].items(): print(f'{k:11}', '  '.join(f'{x:.2f}:{y:.3f}' for x, y in v))


if __name__ == '__main__': main()
