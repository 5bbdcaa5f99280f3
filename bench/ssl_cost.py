"""What a step with unlabelled people costs, beside what it must cost: one supervised step, n training passes and one inference pass of the same network.

    python bench/ssl_cost.py [--hw 128 96] [--batch 32] [--paths 2 4] [--rounds 7]

All contestants are timed in turn in one process, one thread, in processor time (so that other jobs on the machine disturb little), on a card in wall time; medians. (The
file is not called ssl.py: the other scripts of this folder would then import it in place of Python's own ssl.) Also the share of a step that goes into hard views and targets, and what a thread
needs to prepare the two batches. Prints lines, and as the last one a JSON object for `bench/run.py`.
"""
import argparse
import json
import time

import numpy as np
import torch

import posellm.ssl.semi as module
from posellm.models.zoo import create_model
from posellm.metrics.oks import make_people
from posellm.pose.skeleton import get_skeleton
from posellm.ssl.methods import settings
from posellm.ssl.multi_augs import FOUR_PATHS, TWO_PATHS
from posellm.ssl.semi import Semi
from posellm.ssl.unlabelled import hide_labels
from posellm.train.recipe import recipe


def noise(record): return np.random.default_rng(record['id']).integers(0, 255, (record['height'], record['width'], 3), np.uint8)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); p.add_argument('--hw', type=int, nargs=2, default=(128, 96)); p.add_argument('--batch', type=int, default=32)
    p.add_argument('--paths', type=int, nargs='+', default=[2, 4]); p.add_argument('--rounds', type=int, default=7); p.add_argument('--device', default='cpu'); a = p.parse_args(); torch.set_num_threads(1)
    people = make_people(2*a.batch, 1, get_skeleton('coco17')); base = recipe('small', steps=(0, 1000), batch=a.batch, precision='fp32', workers=0, cache=False, loggers=(), device=a.device, layer_decay=1.); rows = []
    for n in a.paths:
        net = create_model('posellm-s', 'coco17', input_hw=tuple(a.hw), weights=None, loss='ce'); job = Semi(net, people, hide_labels(people), None, settings('multiaugs', base, paths=(*TWO_PATHS, *FOUR_PATHS[2:])[:n]), read=noise)
        host = job.feed.host(0); alone = dict(host, easy=None); x = job.feed.easy.pixels(host['easy']); spent = {}
        target, weight = job.feed.labelled.batch(host['labelled'][0])[1:3]; target = target.clone()
        def watched(name, fn):
            def call(*args, **kw): t = clock(); out = fn(*args, **kw); spent[name] = spent.get(name, 0.) + clock() - t; return out
            return call
        def clock():
            if a.device == 'cpu': return time.process_time()
            torch.cuda.synchronize(); return time.perf_counter()
        def training_pass(): loss = job.loss(job.net(x), target, weight); job.fabric.backward(loss); job.model.zero_grad(set_to_none=True)
        def inference():
            with torch.no_grad(): job.model.spec.heatmaps(job.net(x))
        real = {k: getattr(module, k) for k in ('harden', 'turned_target', 'joints_of', 'draw_turn')}
        def semi():
            for k, f in real.items(): setattr(module, k, watched(k, f))
            job.train_step([host])
            for k, f in real.items(): setattr(module, k, f)
        runs = dict(supervised=lambda: job.train_step([alone]), training=training_pass, inference=inference, semi=semi, host=lambda: job.feed.host(0)); times = {k: [] for k in runs}; parts = []
        job.enter_phase(); job.model.train()
        for r in range(a.rounds + 1):
            for k, f in runs.items():
                spent.clear(); t = clock(); f(); dt = clock() - t
                if r: times[k].append(dt); parts.append(sum(spent.values())/dt) if k == 'semi' else None
        ratio = [s/(sup + n*tr + inf) for s, sup, tr, inf in zip(times['semi'], times['supervised'], times['training'], times['inference'])]
        rows.append(dict(paths=n, **{k: float(np.median(v)) for k, v in times.items()}, ratio=float(np.median(ratio)), ratio_range=[float(np.min(ratio)), float(np.max(ratio))], augmentation=float(np.median(parts))))
        r = rows[-1]; print(f"{n} paths: {r['semi']:.3f} s a step = {r['ratio']:.3f} x (supervised {r['supervised']:.3f} + {n} x {r['training']:.3f} + inference {r['inference']:.3f}); hard views and targets {r['augmentation']:.1%} of the step; a thread prepares both batches in {r['host']:.3f} s", flush=True)
    out = {}
    for r in rows:
        out[f"step, {r['paths']} paths"] = dict(ours=r['semi'], peer=r['semi']/r['ratio'], unit='s of processor time', peer_name=f"one supervised step + {r['paths']} training passes + one inference pass")
        out[f"hard views and targets, {r['paths']} paths"] = dict(ours=r['augmentation'], peer=.1, unit='share of the step', peer_name='limit')
    print(json.dumps(out))


if __name__ == '__main__': main()
