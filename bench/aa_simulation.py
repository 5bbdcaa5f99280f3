"""Does a verdict keep its word? 500 comparisons of two systems that are equally good, and 200 each of one that is better by a known amount, each on a fresh set of 60 images.

"Called different" among equals should be near 5 % (3 to 7 % is what 500 comparisons can tell). For the better system the share found is set beside the power
predicted from the paired standard error of one pilot set.

    python bench/aa_simulation.py [--sets 500] [--images 60] [--resamples 500]
"""
import os
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ[name] = '1'
import argparse
import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from posellm.core.rng import rng
from posellm.metrics.ap import evaluate
from posellm.metrics.oks import make_people
from posellm.metrics.stats import aa_share, paired_bootstrap
from posellm.pose.skeleton import get_skeleton

coco = get_skeleton('coco17')


def system(truth, seed, which, gain=0.):
    """Predictions whose errors are half their own and half those of the picture (which every system sees), smaller by `gain`; scores know a little of the error."""
    def noise(*key): return rng(seed, *key).normal(size=truth.xy.shape)
    size = np.exp(rng(seed, 'hard').normal(0, .5, len(truth)))  # some people are hard for all
    e = (noise('shared') + noise('own', which)) / np.sqrt(2) * size[:, None, None] * (1 - gain)
    return replace(truth, vis=None, xy=truth.xy + e * coco.sigmas[:, None] * np.sqrt(truth.area)[:, None, None], score=np.exp(-size + rng(seed, 'score', which).normal(0, .3, len(truth))))


def pair(seed, images, gain=0.):
    per = 1 + seed % 4
    t = make_people(images, per, coco, seed=seed)
    return evaluate(t, system(t, seed, 0)), evaluate(t, system(t, seed, 1, gain))


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument('--sets', type=int, default=500); ask.add_argument('--images', type=int, default=60); ask.add_argument('--resamples', type=int, default=500)
    a = ask.parse_args()
    share = aa_share(lambda i: pair(i, a.images), a.sets, a.resamples)
    print(f'called different among equals: {share:.1%} of {a.sets} (at the 5 % level)')
    measures = {'called different': dict(ours=round(share, 4), peer=.05, peer_name='the level', unit='share', sets=a.sets, images=a.images)}
    z = NormalDist()
    for gain in (.05, .1):
        found, values, errors = [], [], []
        for i in range(a.sets * 2 // 5):
            d = paired_bootstrap(*pair(10_000 + i, a.images, gain), a.resamples, i)
            found.append(d.verdict == 'better'); values.append(d.value); errors.append(d.se)
        power = float(np.mean([z.cdf(np.mean(values) / s - z.inv_cdf(.975)) for s in errors]))
        print(f'errors {gain:.0%} smaller (AP {np.mean(values):+.3f}): found in {np.mean(found):.0%}, predicted {power:.0%}')
        measures[f'found, errors {gain:.0%} smaller'] = dict(ours=round(float(np.mean(found)), 3), peer=round(power, 3), peer_name='predicted', unit='share', gain_ap=round(float(np.mean(values)), 4))
    print(json.dumps(measures))


if __name__ == '__main__': main()
