"""People refined a second by the embedded pose prior in batches, beside the same prior called person by person, in turns in one process.

Processor time of one thread is what is compared, so that other jobs on the machine disturb little; wall time with two threads stands beside it.

    python bench/refine_prior.py [--people 20000] [--rounds 5]
"""
import argparse
import json
import time

import numpy as np
import torch

from posellm.data.bare import bare_poses
from posellm.pose.poses import concat
from posellm.refine.corrupt import corrupt, published_errors
from posellm.refine.prior import load_prior, read_people, refine


def taken(f, clock):
    t = clock(); f(); return clock() - t


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); p.add_argument('--people', type=int, default=20_000); p.add_argument('--rounds', type=int, default=5); a = p.parse_args()
    truth = bare_poses(1000, seed=1); some, _ = corrupt(truth, published_errors(truth.skeleton), 0); people = concat([some]*max(1, a.people//len(some))); n, prior, one = len(people), load_prior(), [some[i:i+1] for i in range(40)]
    calls = {'network alone': (lambda: read_people(prior, people), n), 'refine': (lambda: refine(people, prior, sides=False), n), 'refine, sides decided': (lambda: refine(people, prior), n), 'person by person': (lambda: [refine(x, prior, sides=False) for x in one], len(one))}
    rate, wall = {k: [] for k in calls}, {k: [] for k in calls}
    for f, _ in calls.values(): f()
    for _ in range(a.rounds):
        for k, (f, m) in calls.items():
            torch.set_num_threads(1); rate[k].append(m/taken(f, time.thread_time))
            torch.set_num_threads(2); wall[k].append(m/taken(f, time.perf_counter))
    rate, wall = ({k: float(np.median(v)) for k, v in d.items()} for d in (rate, wall)); peer = rate['person by person']
    for k in calls: print(f'{k:<24}{rate[k]:>10,.0f} people a second of one core {rate[k]/peer:>8.1f} x person by person   wall, 2 threads, machine as it is {wall[k]:>10,.0f}')
    print(json.dumps({f'{k}, one core': dict(ours=round(rate[k]), peer=round(peer), unit='people/s of processor time', peer_name='the same prior, person by person', wall_2_threads=round(wall[k])) for k in calls if k != 'person by person'}))


if __name__ == '__main__': main()
