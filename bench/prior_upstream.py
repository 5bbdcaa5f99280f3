"""The pose prior on what networks of ours really predict: generated and real people, all keypoints and the hidden ones, with intervals.

    python bench/prior_upstream.py --weights posellm-synth-s --synth FOLDER [--prior FOLDER ...] [--most 900] --out bench/results/prior_upstream.json

Trust, gate and margin are fitted on calibration people (`calib` of the generated set; the train part of coco_subset, on which the weights were not trained), everything is measured on val. Ground-truth boxes, flip test.
Each prior given is measured, the embedded one first. Exchanges of sides: those the network really made, and what the body (a prior that decides sides) and the maps (the second peak where the other side's keypoint was put) say of them.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from posellm.core.files import write_json
from posellm.core.paths import shared_data
from posellm.data.coco import load_data
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import calibrate_on, labelled_pairs, logistic_fit
from posellm.metrics.oks import get_sigmas, keypoint_similarity
from posellm.metrics.stats import draw_images, paired_bootstrap
from posellm.models.weights import load_model
from posellm.models.zoo import TRAINED, create_model
from posellm.pose.geometry import to_crop
from posellm.refine.corrupt import corrupt, fit_errors, spread_of
from posellm.refine.fitting import clean_copy, halves
from posellm.refine.gate import observation_trust
from posellm.refine.judge import tally
from posellm.refine.plausible import roc
from posellm.refine.prior import add_gate, choose_margin, load_prior, refine
from posellm.refine.sides import masks_of, side_pairs
from posellm.train.predict import predict_poses


def people(folder, split, most):
    p = load_data(folder, split); p = p.take_images([im['id'] for im in p.images][:most]); return p[p.posed]


def hidden(truth, before, after, n=1000):
    """Mean similarity of hidden keypoints before and after, and the difference with its interval over images."""
    m, t, _ = labelled_pairs(truth, before); on = truth.vis[t] == 1; ks = lambda p: keypoint_similarity(truth.xy[t], p.xy[m], truth.area[t], get_sigmas(truth.skeleton))
    a, b = ks(before), ks(after); ids, at = np.unique(truth.image_id[t], return_inverse=True); s = lambda v: np.bincount(at, (v*on).sum(1), len(ids)); count = np.bincount(at, on.sum(1), len(ids)); w = draw_images(len(ids), n)
    d = (w @ (s(b) - s(a)))/np.maximum(w @ count, 1); return dict(keypoints=int(on.sum()), before=float(a[on].mean()), after=float(b[on].mean()), delta=float((b - a)[on].mean()), lo=float(np.quantile(d, .025)), hi=float(np.quantile(d, .975)))


def exchanges(val, pv, maps, sides, trust, folds=2):
    """Pairs the network really exchanged, and how well body, maps and both tell them from all others and from those that are right (AUROC; recall at a precision of 0.95; `both` is fitted on the other half of the images)."""
    m, t, _ = labelled_pairs(val, pv); q, p, sig, P, flip = val[t], pv[m], get_sigmas(val.skeleton), side_pairs(val.skeleton), val.skeleton.flip
    own, other = (keypoint_similarity(x, p.xy, q.area, sig)[:, P] for x in (q.xy, q.xy[:, flip])); apart = np.linalg.norm(q.xy[:, P[:, 0]] - q.xy[:, P[:, 1]], axis=-1) > spread_of(.5)*sig[P[:, 0]]*np.sqrt(q.area)[:, None]
    matters = q.labelled[:, P].all(-1) & apart; wrong = matters & (other > .5).all(-1) & (own < .5).all(-1); out = dict(pairs=int(matters.sum()), exchanged=int(wrong.sum()), people=float((wrong.any(1)).mean()))
    signs = dict(maps=second_peaks(maps, m, p, P))
    if sides is not None:
        e = observation_trust(p, trust); ratio = sides.ratios(p, e); signs['body'] = np.stack([np.where(masks_of(sides.skeleton)[:, k], ratio, -np.inf).max(1) for k in range(len(P))], 1)
        done = sides.decide(p, e)[0] & matters; out |= dict(repaired=int(done.sum()), rightly=int((done & wrong).sum()))
    y, right = wrong[matters], (own > .5).all(-1)[matters]; x = np.stack([np.clip(v[matters], -30, 30) for v in signs.values()], 1)
    if len(signs) > 1:
        fold = np.unique(q.image_id, return_inverse=True)[1] % folds; fold = np.broadcast_to(fold[:, None], matters.shape)[matters]; both = np.zeros(len(y))
        for i in range(folds): w = logistic_fit(x[fold != i], y[fold != i]*1., ridge=1.); both[fold == i] = x[fold == i] @ w[:-1] + w[-1]
        signs['both'] = both; x = np.c_[x, both]
    return out | {n: dict(auroc=roc(x[:, i], y)[2], auroc_against_right=roc(x[y | right, i], y[y | right])[2], recall_at_95=cut(x[:, i], y)) for i, n in enumerate(signs)}


def cut(score, event, least=.95):
    o = np.argsort(-score, kind='stable'); c = np.cumsum(event[o]); ok = np.flatnonzero((c/np.arange(1, len(c) + 1) >= least) & (c > 0)); return float(c[ok[-1]]/event.sum()) if len(ok) else 0.


def second_peaks(maps, m, p, P):
    """Of each pair the lower of two shares: a keypoint's map where its partner was put, against its own peak."""
    h = maps.heatmaps[m].astype(np.float32); top = h.max((2, 3)); at = maps.codec
    cells = to_crop(maps.M[m], p.xy)*(np.array(at.heatmap_hw[::-1])/np.array(at.input_hw[::-1])); i = np.clip(np.round(cells).astype(int), 0, np.array(h.shape[:1:-1]) - 1); n = np.arange(len(h))[:, None]
    share = lambda a, b: h[n, P[:, a], i[:, P[:, b], 1], i[:, P[:, b], 0]]/np.maximum(top[:, P[:, a]], 1e-6)
    return np.log(np.maximum(np.minimum(share(0, 1), share(1, 0)), 1e-3))


def one(name, calib, val, model, priors, resamples):
    pc = predict_poses(model, calib); pv, maps = predict_poses(model, val, return_maps=True); m, t, _ = labelled_pairs(calib, pc); truth, pred = calib[t], pc[m]; em, trust = fit_errors(calib, pc), calibrate_on(calib, pc); before = evaluate(val, pv, boxes='ground-truth boxes'); out = []
    for label, prior in priors.items():
        sides = prior.sides; prior = replace(prior, trust=trust, sides=None); a, b = halves(truth); prior = add_gate(prior, truth[a], pred[a]); clean = [clean_copy(truth[b], corrupt(truth[b], em, i)[0], em, i) for i in (1, 2)]
        prior, _ = choose_margin(prior, truth[b], pred[b], clean=clean); got = refine(pv, prior); scored = refine(pv, prior, rescore=True).poses; after, ranked = (evaluate(val, p, boxes='ground-truth boxes') for p in (got.poses, scored))
        d, e = paired_bootstrap(before, after, n=resamples), paired_bootstrap(before, ranked, n=resamples); k = tally(val, pv, got.poses)
        out.append(dict(data=name, prior=label, people=len(val), calibration_people=len(truth), margin=prior.gate.margin if np.isfinite(prior.gate.margin) else 'nothing moves', before=before.stats['AP'], refined=after.stats['AP'], delta=d.value, lo=d.lo, hi=d.hi, rescored=ranked.stats['AP'], rescored_delta=e.value, rescored_lo=e.lo, rescored_hi=e.hi,
                        **{n: int(k[n].sum()) for n in ('labelled', 'moved', 'helped', 'harmed')}, hidden=hidden(val, pv, got.poses), sides=exchanges(val, pv, maps, sides, trust), errors=em.counts))
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in out[-1].items()}, flush=True)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); p.add_argument('--weights', required=True); p.add_argument('--synth', required=True); p.add_argument('--prior', action='append', default=[])
    p.add_argument('--most', type=int, default=900); p.add_argument('--resamples', type=int, default=1000); p.add_argument('--out', type=Path, default=None)
    a = p.parse_args(); torch.set_num_threads(1); model = create_model(a.weights) if a.weights in TRAINED else load_model(a.weights); priors = {'embedded': load_prior(), **{Path(f).name: load_prior(f) for f in a.prior}}; real = shared_data() and shared_data()/'coco_subset'
    rows = one('synth-v1', people(a.synth, 'calib', a.most), people(a.synth, 'val', a.most), model, priors, a.resamples)
    if real and real.is_dir(): rows += one('coco_subset', people(real, 'train', 10**6), people(real, 'val', 10**6), model, priors, a.resamples)
    if a.out: write_json(a.out, dict(schema=1, date=time.strftime('%Y-%m-%d'), priors={n: q.card.get('poses') for n, q in priors.items()}, weights=Path(a.weights).name, rows=rows), indent=1)


if __name__ == '__main__': main()
