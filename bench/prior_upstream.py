"""The pose prior on what a network of ours really predicts: generated and real people, all keypoints and the hidden ones, with intervals.

    python bench/prior_upstream.py --weights W --synth FOLDER [--prior FOLDER] [--most 700] --out bench/results/prior_upstream.json

Trust, gate and margin are fitted on calibration people (a part of the generated train split; the real train split), measured on val. Ground-truth boxes.
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
from posellm.metrics.calibration import calibrate_on, labelled_pairs
from posellm.metrics.oks import get_sigmas, keypoint_similarity
from posellm.metrics.stats import draw_images, paired_bootstrap
from posellm.models.weights import load_model
from posellm.refine.corrupt import corrupt, fit_errors
from posellm.refine.fitting import clean_copy
from posellm.refine.judge import tally
from posellm.refine.prior import add_gate, choose_margin, load_prior, refine
from posellm.train.predict import predict_poses


def people(folder, split, most):
    p = load_data(folder, split); p = p.take_images([im['id'] for im in p.images][:most]); return p[(p.num_keypoints > 0) & ~p.iscrowd]


def hidden(truth, before, after, n=1000):
    """Mean similarity of hidden keypoints before and after, and the difference with its interval over images."""
    m, t, _ = labelled_pairs(truth, before); on = truth.vis[t] == 1; ks = lambda p: keypoint_similarity(truth.xy[t], p.xy[m], truth.area[t], get_sigmas(truth.skeleton))
    a, b = ks(before), ks(after); ids, at = np.unique(truth.image_id[t], return_inverse=True); s = lambda v: np.bincount(at, (v*on).sum(1), len(ids)); count = np.bincount(at, on.sum(1), len(ids)); w = draw_images(len(ids), n)
    d = (w @ (s(b) - s(a)))/np.maximum(w @ count, 1); return dict(keypoints=int(on.sum()), before=float(a[on].mean()), after=float(b[on].mean()), delta=float((b - a)[on].mean()), lo=float(np.quantile(d, .025)), hi=float(np.quantile(d, .975)))


def one(name, calib, val, model, prior, resamples):
    pc, pv = predict_poses(model, calib), predict_poses(model, val); m, t, _ = labelled_pairs(calib, pc); truth, pred = calib[t], pc[m]; em = fit_errors(calib, pc); prior = replace(prior, trust=calibrate_on(calib, pc), sides=None)
    half = np.isin(truth.image_id, np.unique(truth.image_id)[::2]); prior = add_gate(prior, truth[half], pred[half]); bad, _ = corrupt(truth[~half], em, 1); prior, table = choose_margin(prior, truth[~half], pred[~half], clean=clean_copy(truth[~half], bad, em))
    out = refine(pv, prior); scored = refine(pv, prior, rescore=True).poses; a, b, c = (evaluate(val, p, boxes='ground-truth boxes') for p in (pv, out.poses, scored)); d, e = paired_bootstrap(a, b, n=resamples), paired_bootstrap(a, c, n=resamples); k = tally(val, pv, out.poses)
    return dict(data=name, people=len(val), calibration_people=len(truth), of=a.describe('AP'), margin=prior.gate.margin if np.isfinite(prior.gate.margin) else 'nothing moves', before=a.stats['AP'], refined=b.stats['AP'], delta=d.value, lo=d.lo, hi=d.hi, rescored=c.stats['AP'], rescored_delta=e.value, rescored_lo=e.lo, rescored_hi=e.hi,
                **{n: int(k[n].sum()) for n in ('labelled', 'moved', 'helped', 'harmed')}, hidden=hidden(val, pv, out.poses), errors=em.counts)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--weights', required=True); p.add_argument('--synth', required=True); p.add_argument('--prior', default=None); p.add_argument('--most', type=int, default=500); p.add_argument('--resamples', type=int, default=1000); p.add_argument('--out', type=Path, default=None)
    a = p.parse_args(); torch.set_num_threads(1); model, prior = load_model(a.weights), load_prior(a.prior); real = shared_data() and shared_data()/'coco_subset'
    rows = [one('synth-v1', people(a.synth, 'train', a.most), people(a.synth, 'val', a.most), model, prior, a.resamples)]
    if real and real.is_dir(): rows.append(one('coco_subset', people(real, 'train', 10**6), people(real, 'val', 10**6), model, prior, a.resamples))
    for r in rows: print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()})
    if a.out: write_json(a.out, dict(schema=1, date=time.strftime('%Y-%m-%d'), prior=prior.card.get('poses'), weights=Path(a.weights).name, rows=rows), indent=1)


if __name__ == '__main__': main()
