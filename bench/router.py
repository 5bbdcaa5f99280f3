"""Fast or slow: how much of System 2's gain the router keeps, and at what cost, on generated people that neither the networks nor the router has seen.

System 1 is the first network on upright crops. System 2 is all networks named, each on the crop and its mirror image, heatmaps averaged; between the two lies the first network with the mirror image. Router, thresholds
and calibration are fitted on the train part of a generated set (the router's target, too, is chosen there, by cross-fitting), everything is reported on its val part.

    python bench/router.py WEIGHTS [WEIGHTS ...] [--people 2000] [--data FOLDER] [--keep FOLDER]
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
from posellm.explain.router import captured, cost_curve, fit_router, mixed, oks_of, routed_first, share_of_gain, signals, steps, worth
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import auroc, calibrate_on, recalibrated
from posellm.models.weights import load_model
from posellm.refine.maps import fuse_maps
from posellm.refine.plausible import plausibility
from posellm.refine.prior import load_prior, read_people
from posellm.train.predict import predict_poses

NAMES = ('upright', 'mirror image too', 'all networks, mirror images too')


def shape_of(heat):
    "What maps look like beyond their peak: entropy, second peak, mass; (N,K,H,W) -> (N,K,3)."
    f = np.maximum(heat.astype(np.float32), 0).reshape(*heat.shape[:2], -1)
    W, top, at = heat.shape[3], f.max(-1), f.argmax(-1)
    y, x = np.divmod(np.arange(f.shape[-1]), W)
    second = np.where((y - at[..., None] // W) ** 2 + (x - at[..., None] % W) ** 2 > 16, f, 0).max(-1)
    q = f / (f.sum(-1, keepdims=True) + 1e-6)
    return np.stack([-(q * np.log(q + 1e-9)).sum(-1), second / (top + 1e-6), np.log(f.sum(-1) + 1e-6)], -1)


def predict_of(people):
    "The people as predictions, without what they are labelled with."
    return replace(people, vis=None, num_keypoints=np.full(len(people), people.K), area=people.bbox[:, 2] * people.bbox[:, 3], area_source='box', extra=[])


def systems(nets, people):
    "Answers of the three systems, the shape of System 1's maps, and what the latter two cost above System 1, seconds a person."
    one, first = predict_poses(nets[0], people, flip=False, return_maps=True)
    t = time.process_time()
    maps = [predict_poses(nets[0], people, flip=True, return_maps=True)[1]]
    mirror = time.process_time() - t
    for net in nets[1:]: maps.append(predict_poses(net, people, flip=True, return_maps=True)[1])
    (xy1, c1), (xy2, c2) = maps[0].decode(), fuse_maps(maps).decode()
    whole = time.process_time() - t
    return (one, replace(one, xy=xy1, conf=c1.clip(0, 1)), replace(one, xy=xy2, conf=c2.clip(0, 1))), shape_of(first.heatmaps), np.array([mirror / 2, whole - mirror / 2]) / len(people)


def kept(folder, name, nets, people, batch=250):
    file = Path(folder) / f'{name}.npz' if folder else None
    if file and file.is_file():
        d = np.load(file)
        return [replace(predict_of(people), xy=d[f'xy{i}'], conf=d[f'conf{i}']) for i in range(3)], d['shape'], d['cost']
    parts = [systems(nets, people[np.arange(i, min(i + batch, len(people)))]) for i in range(0, len(people), batch)]
    join = lambda i, k: np.concatenate([getattr(p[0][i], k) for p in parts])
    got = [replace(predict_of(people), xy=join(i, 'xy'), conf=join(i, 'conf')) for i in range(3)]
    shape, cost = np.concatenate([p[1] for p in parts]), np.mean([p[2] for p in parts], 0)
    if file: file.parent.mkdir(parents=True, exist_ok=True); np.savez(file, cost=cost, shape=shape, **{f'{k}{i}': getattr(p, k) for i, p in enumerate(got) for k in ('xy', 'conf')})
    return got, shape, cost


def known(p, shape, prior, which):
    "Signals: System 1's calibrated answers alone, or with the shape of its maps and what the prior of poses thinks."
    if which == 'answers': return signals(p)
    r = read_people(prior, p, lambda c, z: c)
    d = np.linalg.norm(p.xy - r.xy, axis=-1) / np.sqrt(p.area)[:, None]
    q = np.quantile(shape, [.25, .5, .75], axis=1)
    return signals(p, disagreement=np.minimum(d, 1), plausibility=plausibility(prior, p, lambda c, z: c, r), correct=r.correct.mean(1), **{f'map{i}{j}': q[i, :, j] for i in range(3) for j in range(3)})


TARGETS = dict(worth=lambda k, l, score: worth(k, l, score), steps=lambda k, l, score: steps(l) - steps(k), oks=lambda k, l, score: l - k)


def learn(fit, a, b, shape, prior):
    "The router between two systems: signals and target by what cross-fitted scores keep of AP on the fit part at 30 % of people."
    t, x, y = fit[0], fit[a], fit[b]
    k, l, tried = oks_of(t, x), oks_of(t, y), {}
    for which in ('answers', 'answers, maps, prior'):
        for target, gain in TARGETS.items():
            router, crossed = fit_router(known(x, shape, prior, which), gain(k, l, x.score), x.image_id)
            score = np.where(np.isfinite(crossed), crossed, -np.inf)
            tried[which, target] = share_of_gain(t, x, y, mixed(x, y, routed_first(score, .3)), 20).value, router
    best = max(tried, key=lambda n: tried[n][0])
    return best, tried[best][1], {f'{w}; {n}': round(v, 3) for (w, n), (v, _) in tried.items()}


def judge(fit, held, shapes, cost, prior):
    "System 1 and System 2, all at once."
    (which, target), router, tried = learn(fit, 1, 3, shapes[0], prior)
    t, x, y = held[0], held[1], held[3]
    start = time.process_time(); score = router.score(known(x, shapes[1], prior, which)); own = (time.process_time() - start) / len(x)
    k, l = oks_of(t, x), oks_of(t, y)
    on = np.isfinite(k + l)
    routed = router(known(x, shapes[1], prior, which), .3 - own / cost)                  # the threshold comes from the other part; the router pays for itself
    share = share_of_gain(t, x, y, mixed(x, y, routed))
    curves = cost_curve(t, x, y, score, own=own / cost)
    return dict(ap_fast=evaluate(t, x).stats['AP'], ap_slow=evaluate(t, y).stats['AP'], gain=[share.gain, share.gain_lo, share.gain_hi], improves=float(((l - k)[on] > .05).mean()),
                auroc=dict(router=auroc(score[on], (l - k)[on] > .05), confidence=auroc(-x.conf.mean(1)[on], (l - k)[on] > .05)), signals=which, target=target, kept_in_cross_fitting=tried,
                own_seconds=own, own_share=own / cost, at30=dict(cost=float(routed.mean() + own / cost), kept=[share.value, share.lo, share.hi]),
                curves={n: [[round(u, 4), round(v, 4)] for u, v in c] for n, c in curves.items()}), routed


def mirror_first(fit, held, mirror, whole):
    "The cheapest step first: its mirror image for as many people as 30 % of System 2's cost allow, then nothing else."
    t, x, y = fit[0], fit[1], fit[2]
    router, _ = fit_router(signals(x), oks_of(t, y) - oks_of(t, x), x.image_id)
    t, x, y, z = held
    start = time.process_time(); s = signals(x); router.score(s); own = (time.process_time() - start) / len(x)
    routed = router(s, min((.3 * whole - own) / mirror, 1))
    share = share_of_gain(t, x, z, mixed(x, y, routed))
    every = share_of_gain(t, x, z, y)
    return dict(people=float(routed.mean()), cost=float((routed.mean() * mirror + own) / whole), kept=[share.value, share.lo, share.hi], for_everybody=dict(cost=mirror / whole, kept=[every.value, every.lo, every.hi]))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('weights', nargs='+', help='two or more networks, the fast one first')
    ap.add_argument('--people', type=int, default=2000)
    ap.add_argument('--data')
    ap.add_argument('--keep', help='folder where the answers are kept, and found again')
    ap.add_argument('--out', default=str(Path(__file__).parent / 'results' / 'router.json'))
    a = ap.parse_args()
    torch.set_num_threads(1)
    nets = [load_model(w) for w in a.weights]
    folder = Path(a.data) if a.data else Path(write_synth(tempfile.mkdtemp(), a.people, a.people, 0, seed=991, config=V1))
    parts, shapes, costs, prior = {}, {}, {}, load_prior()
    for name, split in (('calib', 'train'), ('heldout', 'val')):
        truth = load_data(folder, split)
        people = truth[truth.posed][:a.people]
        people = people.take_images(set(people.image_id.tolist()))
        got, shapes[name], costs[name] = kept(a.keep, name, nets, people)
        parts[name] = people, *got
    cal = [calibrate_on(parts['calib'][0], p) for p in parts['calib'][1:]]
    fit, held = ((t, *(recalibrated(p, c) for p, c in zip(got, cal))) for t, *got in (parts['calib'], parts['heldout']))
    mirror, whole = costs['heldout']
    out = dict(date=str(date.today()), cpu=processor(), machine='one thread of 2 cores, shared with other work; processor time', networks=[f'{n.spec.name} {"x".join(map(str, n.spec.input_hw))}' for n in nets], people=len(held[0]), images=len(held[0].images),
               fitted_on=dict(people=len(fit[0]), images=len(fit[0].images)), data='generated (look of synth-v1), seed 991; fitted on its train part, reported on its val part', boxes='ground truth',
               seconds=dict(mirror=float(mirror), system2=float(whole)), ap={n: evaluate(held[0], p).stats['AP'] for n, p in zip(NAMES, held[1:])})
    out['all of system 2 at once'], _ = judge(fit, held, (shapes['calib'], shapes['heldout']), whole, prior)
    out['mirror image first'] = mirror_first(fit, held, mirror, whole)
    share = share_of_gain(held[0], held[2], held[3], held[3])
    out['what more networks add to the mirror image'] = [share.gain, share.gain_lo, share.gain_hi]
    write_json(a.out, out, indent=1)
    for k, v in out.items(): print(k, {x: y for x, y in v.items() if x != 'curves'} if isinstance(v, dict) else v)
    for k, v in out['all of system 2 at once']['curves'].items(): print(f'{k:11}', '  '.join(f'{x:.2f}:{y:.3f}' for x, y in v))


if __name__ == '__main__': main()
