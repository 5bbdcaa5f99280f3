"""Seconds of COCO keypoint evaluation of a problem of the size of val2017 (5,000 images, 11,004 people, 10 or 20 predictions an image), one thread, and of 1,000 bootstrap resamples.

Peers in the same run and in turns: pycocotools, and faster-coco-eval where it is installed; both from parsed dicts, through index, loadRes, evaluate, accumulate, summarize.
Ours from the same parsed dicts (reading them into arrays included), and from arrays, as a chapter that has just predicted holds them.

    python bench/coco_eval.py [--rounds 5] [--per-image 10] [--images 5000]
"""
import os
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ[name] = '1'
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from pose_problems import fresh, judge, val_problem  # noqa: E402
from posellm.metrics.ap import evaluate  # noqa: E402
from posellm.metrics.stats import bootstrap, paired_bootstrap  # noqa: E402
from posellm.pose.poses import Poses  # noqa: E402


def contestants(truth, t, p):
    "Each takes its own copy of the results, made outside the clock."
    def from_dicts(res):
        a = Poses.from_coco(truth, 'coco17')
        return list(evaluate(a, Poses.from_results(res, a)).stats.values())
    out = {'ours from dicts': from_dicts, 'ours from arrays': lambda res: list(evaluate(t, p).stats.values()), 'pycocotools': lambda res: judge(truth, res, copy=False).stats}
    try:
        from faster_coco_eval import COCO, COCOeval_faster
        out['faster-coco-eval'] = lambda res: judge(truth, res, coco=COCO, evaluator=COCOeval_faster, copy=False).stats[:10]
    except ImportError: print('faster-coco-eval is not installed: compared with pycocotools only')
    return out


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument('--rounds', type=int, default=5); ask.add_argument('--per-image', type=int, default=10); ask.add_argument('--images', type=int, default=5000)
    a = ask.parse_args()
    truth, results = val_problem(a.images, a.per_image)
    t = Poses.from_coco(truth, 'coco17'); p = Poses.from_results(results, t)
    who = contestants(truth, t, p); taken, stats = {n: [] for n in who}, {}
    for _ in range(a.rounds):
        for name, call in who.items():
            res = fresh(results)
            start = time.perf_counter(); stats[name] = np.asarray(call(res), float); taken[name].append(time.perf_counter() - start)
    middle = {n: statistics.median(s) for n, s in taken.items()}
    for n, s in taken.items():
        print(f'{n:18} {middle[n]:7.3f} s [{min(s):.3f}-{max(s):.3f}]  pycocotools / this = {middle["pycocotools"] / middle[n]:5.1f}  largest difference of the ten numbers {abs(stats[n] - stats["pycocotools"]).max():.1e}')
    measures = {}
    for ours in ('ours from dicts', 'ours from arrays'):
        for peer in ('pycocotools', 'faster-coco-eval'):
            if peer in middle: measures[f'{len(results)} predictions, {ours}, {peer}'] = dict(ours=round(middle[ours], 4), peer=round(middle[peer], 4), unit='s', peer_name=peer, range=[round(min(taken[ours]), 4), round(max(taken[ours]), 4)],
                                                                                             times_faster=round(middle[peer] / middle[ours], 2), largest_difference=float(abs(stats[ours] - stats[peer]).max()))
    ev = evaluate(t, p)
    for name, call in (('1000 bootstrap resamples of AP', lambda: bootstrap(ev)), ('1000 paired resamples of the difference', lambda: paired_bootstrap(ev, ev))):
        start = time.perf_counter(); call(); s = time.perf_counter() - start
        print(f'{name}: {s:.2f} s'); measures[name] = dict(ours=round(s, 3), peer=None, peer_name=None, unit='s')
    print(json.dumps(measures))


if __name__ == '__main__': main()
