"""How many people a second get all their facts (trust, geometry, states, probabilities): by the clock in one process and two, and by the processor time of one, which other work on the machine does not change. The peer is the same work done person by person, by processor time too."""
import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np

from posellm.explain.facts import find_facts
from posellm.metrics.oks import make_people
from posellm.pose.skeleton import get_skeleton


def people(n=4000):  # with draws, as predictions of our own networks are
    p = make_people(n // 2, 2, get_skeleton('coco17'), noise=1., predictions=True)
    return replace(p, draws=(p.xy[:, :, None] + np.random.default_rng(0).normal(0, 3, (n, p.K, 32, 2))).astype(np.float32))


def work(part):  # seconds of one part of the people
    p = people()[part[0]:part[1]]; t = time.perf_counter(); find_facts(p); return time.perf_counter() - t


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    p = people(); plain = replace(p, draws=None); find_facts(p[:200]); runs = []
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(work, [(0, 100), (100, 200)]))
        for _ in range(5):
            t, c = time.perf_counter(), time.process_time(); find_facts(p); one, cpu = time.perf_counter() - t, time.process_time() - c
            c = time.process_time(); [find_facts(p[i:i + 1]) for i in range(60)]; single = (time.process_time() - c) / 60
            c = time.process_time(); find_facts(plain); bare = time.process_time() - c
            both = max(pool.map(work, [(0, len(p) // 2), (len(p) // 2, len(p))]))
            runs.append((len(p) / one, 1 / single, len(p) / both, len(p) / cpu, len(p) / bare))
    one, single, both, cpu, bare = np.median(runs, 0); single = 1 / single
    out = dict(what='people per second for all facts of predictions', people=len(p), per_cpu_second=round(cpu), without_draws=round(bare), one_process=round(one), two_processes=round(both), one_by_one=round(1 / single), ratio_to_one_by_one=round(cpu * single, 1), runs=5, best_one=round(max(r[0] for r in runs)), best_two=round(max(r[2] for r in runs)))
    print(json.dumps({'facts of people': {'ours': out['per_cpu_second'], 'peer': out['one_by_one'], 'unit': 'people/s', 'peer_name': 'person by person', **out}}))


if __name__ == '__main__': main()
