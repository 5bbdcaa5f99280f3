"""Real photographs: can the chapters learn them, and do generated people help?

    python bench/real_photographs.py --data PATH/coco_subset --pretrained runs/demo

1. overfit: 20 photographs, no augmentation; AP on those 20 (a row on training data).
2. scratch against fine-tuned: the real train part, once from random weights and once from weights trained on generated people,
   equal steps, three seeds; AP on the real val part (ground-truth boxes), paired bootstrap over images.
Prints a Markdown report and writes it to --out.
"""
import argparse
import platform
import time
from pathlib import Path

import numpy as np

from posellm.app.report import processor
from posellm.core.log import setup_log
from posellm.data.coco import load_data
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import bootstrap, paired_bootstrap, smallest_detectable
from posellm.stages.stage1 import start_model
from posellm.train.augment import Augment
from posellm.train.fit import fit
from posellm.train.predict import predict_poses
from posellm.train.recipe import Phase, recipe


def photographs(people, n):
    "The people of the first n images that have people with keypoints."
    ids = [im['id'] for im in people.images if ((people.image_id == im['id']) & (people.num_keypoints > 0)).any()][:n]
    return people.take_images(ids)


def train(people, val, start, steps, lr, seed, augment=True, batch=32, hw=(128, 96)):
    "Weights after `steps` steps (the last ones: nothing is selected on the val part)."
    model = start_model('posellm-s', start, people.skeleton, hw, seed)
    cfg = recipe('small', phases=(Phase('phase2', lr, steps=steps),), batch=batch, seed=seed, ema=.99, loggers=(), augment=Augment() if augment else Augment.none(), cache=False)
    t = time.perf_counter(); fit(model, people, None, cfg); return model, time.perf_counter() - t


def score(model, people, flip=True):
    "Evaluation on people with their true boxes. A network that never saw a mirrored person is not asked about one."
    who = (people.num_keypoints > 0) & ~people.iscrowd
    return evaluate(people, predict_poses(model, people[who], flip=flip), boxes='ground-truth boxes')


def show(ci): return f'{ci.value:.3f} ({ci.lo:.3f} to {ci.hi:.3f})'


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', required=True); ap.add_argument('--pretrained'); ap.add_argument('--steps', type=int, default=400)
    ap.add_argument('--overfit-steps', type=int, default=600); ap.add_argument('--seeds', type=int, default=3); ap.add_argument('--out', default='bench/results/real_photographs.md')
    a = ap.parse_args(); setup_log()
    parts = {s: load_data(a.data, s) for s in ('train', 'val')}; name = Path(a.data).name
    out = [f'# Real photographs ({name})', '', f'{time.strftime("%Y-%m-%d")}, {processor()}, Python {platform.python_version()}. `python bench/real_photographs.py --data {name} --pretrained {a.pretrained} --steps {a.steps} --overfit-steps {a.overfit_steps}`', '',
           'AP is COCO\'s (OKS .50:.95), ground-truth boxes, mask area, flip test (but where said), network `posellm-s` at 128x96. Intervals: 95 %, bootstrap over images, 1,000 resamples.', '']
    twenty = photographs(parts['train'], 20)
    model, sec = train(twenty, None, None, a.overfit_steps, 2e-3, 0, augment=False)
    ev = score(model, twenty, flip=False)
    out += ['## Can it learn photographs at all?', '', f'20 photographs ({int((twenty.num_keypoints > 0).sum())} people), {a.overfit_steps} steps of 32 without augmentation and flip test, {sec:.0f} s: AP on those same people (role: train) **{ev.stats["AP"]:.3f}**.', '']
    print('\n'.join(out))
    rows = {}
    for seed in range(a.seeds):
        for kind, start, lr in (('scratch', None, 2e-3), *([('fine-tuned', a.pretrained, 5e-4)] if a.pretrained else [])):
            model, sec = train(parts['train'], None, start, a.steps, lr, seed)
            ev = rows[kind, seed] = score(model, parts['val']); ev.seconds = sec
            print(kind, seed, ev, f'{sec:.0f} s', flush=True)
    if a.pretrained: rows['unchanged', 0] = score(start_model('posellm-s', a.pretrained, parts['train'].skeleton, (128, 96)), parts['val'])
    out += ['## Do generated people help?', '', f'Training on the real train part ({int((parts["train"].num_keypoints > 0).sum())} people), {a.steps} steps of 32; AP on the real val part ({int((parts["val"].num_keypoints > 0).sum())} people, {len(parts["val"].images)} images), last weights, nothing selected on val.', '',
            '| start | seed | AP | AP50 | seconds |', '|---|---|---|---|---|']
    for (kind, seed), ev in rows.items(): out.append(f'| {kind} | {seed} | {show(bootstrap(ev))} | {ev.stats["AP50"]:.3f} | {getattr(ev, "seconds", 0):.0f} |')
    if a.pretrained:
        diffs = [paired_bootstrap(rows['scratch', s], rows['fine-tuned', s]) for s in range(a.seeds)]
        both = np.mean([d.samples for d in diffs], 0); value = np.mean([d.value for d in diffs]); lo, hi = np.quantile(both, (.025, .975))
        out += ['', f'Fine-tuned minus scratch, mean of {a.seeds} seeds on the same resampled images: **{value:+.3f}** ({lo:+.3f} to {hi:+.3f}); by seed {", ".join(f"{d.value:+.3f}" for d in diffs)} (spread of the seeds {np.std([d.value for d in diffs], ddof=1) if a.seeds > 1 else float("nan"):.3f}).',
                '', f'Smallest difference this val part shows in four of five repetitions (paired, 5 % level): {smallest_detectable(diffs[0]):.3f} AP.']
    Path(a.out).parent.mkdir(parents=True, exist_ok=True); Path(a.out).write_text('\n'.join(out) + '\n'); print('\n'.join(out))


if __name__ == '__main__': main()
