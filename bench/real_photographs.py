"""Starting from weights against starting from nothing, at equal steps: on real photographs, or on synth-v1.

    python bench/real_photographs.py --data PATH/coco_subset      -> bench/results/real_photographs.md
    python bench/real_photographs.py --data synth                 -> bench/results/synth_scratch.md

1. can it learn at all: 20 images, no augmentation; AP on those people (a row on training data).
2. the weights as they are (zero-shot), fine-tuned on the train part, and a network from random weights for the same number of steps, with several seeds; AP on the val part (ground-truth boxes),
   paired bootstrap over images. Nothing is chosen on the val part: the last (averaged) weights are judged.
Every result is kept in runs/from_scratch as soon as it is there, and the same command goes on with what is missing. `--data synth` is the demo's set (800 labelled people) and as many steps as the demo makes; the set is made where it is not there.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from posellm.app.report import processor
from posellm.core.files import sha256, write_json
from posellm.core.log import setup_log
from posellm.core.paths import runs_root
from posellm.data.coco import load_data
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import bootstrap, paired_bootstrap, smallest_detectable
from posellm.models.weights import embedded, find_weights, stored_spec
from posellm.models.zoo import entry
from posellm.pose.poses import Poses
from posellm.stages.data import synth_folder
from posellm.stages.stage1 import start_model
from posellm.train.augment import Augment
from posellm.train.fit import fit
from posellm.train.hardware import preset
from posellm.train.predict import predict_poses
from posellm.train.recipe import SHORT, Phase, recipe

BATCH, RATE = 32, dict(scratch=2e-3, tuned=5e-4)


def first_images(people, n):
    "The people of the first n images that have people with keypoints."
    ids = [im['id'] for im in people.images if ((people.image_id == im['id']) & (people.num_keypoints > 0)).any()][:n]
    return people.take_images(ids)


def train(hw, people, start, steps, lr, seed, augment, optimizer='adamw'):
    "Weights after `steps` steps on crops of `hw` pixels."
    model = start_model('posellm-s', start, people.skeleton, hw, seed)
    if steps: fit(model, people, None, recipe('small', phases=(Phase('phase2', lr, steps=steps),), batch=BATCH, seed=seed, ema=.99, loggers=(), augment=augment, cache=False, optimizer=optimizer))
    return model


def judged(kept, key, truth, flip, make):
    "Evaluation of predictions on people with their true boxes, and the seconds of training; from the file of an earlier call where there is one. A network that never saw a mirrored person is not asked about one."
    file = kept / f'{key}.json'; about = kept / f'{key}.seconds'
    if not (file.is_file() and about.is_file()):
        t = time.perf_counter(); model = make(); seconds = time.perf_counter() - t
        predict_poses(model, truth[truth.posed], flip=flip).save(file); write_json(about, seconds)
    ev = evaluate(truth, Poses.from_results(file, truth), boxes='ground-truth boxes'); ev.seconds = json.loads(about.read_text())
    print(f'{key:24} AP {ev.stats["AP"]:.3f}, {ev.seconds:.0f} s', flush=True); return ev


def show(ci): return f'{ci.value:.3f} ({ci.lo:.3f} to {ci.hi:.3f})'


def table(rows, seeds):
    out = ['| start | seed | AP | AP50 | seconds |', '|---|---|---|---|---|']
    for (kind, seed), ev in rows.items(): out.append(f'| {kind} | {seed} | {show(bootstrap(ev))} | {ev.stats["AP50"]:.3f} | {ev.seconds:.0f} |')
    for a, b in (('scratch', 'fine-tuned'), ('zero-shot', 'fine-tuned')):
        diffs = [paired_bootstrap(rows[a, s if a == 'scratch' else '-'], rows[b, s]) for s in range(seeds)]
        value, (lo, hi) = np.mean([d.value for d in diffs]), np.quantile(np.mean([d.samples for d in diffs], 0), (.025, .975))
        each = f'mean of {seeds} seeds on the same resampled images' if seeds > 1 else 'one seed, on the same resampled images'; spread = f'; by seed {", ".join(f"{d.value:+.3f}" for d in diffs)} (spread of the seeds {np.std([d.value for d in diffs], ddof=1):.3f})' if seeds > 1 else ''
        out += ['', f'{b} minus {a}, {each}: **{value:+.3f}** ({lo:+.3f} to {hi:+.3f}){spread}.']
    return out + ['', f'Smallest difference this val part shows in four of five repetitions (paired, 5 % level): {smallest_detectable(diffs[0]):.3f} AP.']


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', required=True); ap.add_argument('--pretrained', default='posellm-synth-s'); ap.add_argument('--steps', type=int, help='optimizer steps; default 400, of synth as many as the preset makes'); ap.add_argument('--preset', default='cpu', help='sizes of synth')
    ap.add_argument('--overfit-steps', type=int, default=500); ap.add_argument('--seeds', type=int, default=3); ap.add_argument('--strong', action='store_true', help="the full augmentation instead of the short run's"); ap.add_argument('--optimizer', choices=('adamw', 'muon'), default='adamw'); ap.add_argument('--out')
    a = ap.parse_args(); setup_log(); p = preset(a.preset); a.steps = a.steps or (sum(p.steps) if a.data == 'synth' else 400); hw = tuple(stored_spec(find_weights(a.pretrained)).input_hw); size = f'{hw[0]}x{hw[1]}'
    folder = synth_folder(p.n_train, p.n_val, p.n_unlabeled, p.n_calib) if a.data == 'synth' else Path(a.data)
    parts, name = {s: load_data(folder, s) for s in ('train', 'val')}, a.data if a.data == 'synth' else folder.name
    weights = embedded(a.pretrained); mark = sha256(weights)[:8] if weights else ''.join(c if c.isalnum() else '-' for c in a.pretrained)[-40:]
    kept = runs_root() / 'from_scratch' / folder.name; # its name says what generated people it holds
    kept.mkdir(parents=True, exist_ok=True); aug = Augment() if a.strong else SHORT; how = f'{a.steps}{"s" if a.strong else ""}{"" if a.optimizer == "adamw" else f"-{a.optimizer}"}'
    reading = entry('posellm-s').codec['decode_mode']; twenty = first_images(parts['train'], 20) # maps that are read in another way are other results
    over = judged(kept, f'overfit-{size}-{a.overfit_steps}-{reading}', twenty, False, lambda: train(hw, twenty, None, a.overfit_steps, RATE['scratch'], 0, Augment.none()))
    rows = {('zero-shot', '-'): judged(kept, f'zero-{mark}', parts['val'], True, lambda: train(hw, parts['train'], a.pretrained, 0, 0, 0, aug))}
    for seed in range(a.seeds):
        rows['fine-tuned', seed] = judged(kept, f'tuned-{mark}-{how}-{seed}', parts['val'], True, lambda: train(hw, parts['train'], a.pretrained, a.steps, RATE['tuned'], seed, aug, a.optimizer))
        rows['scratch', seed] = judged(kept, f'scratch-{size}-{how}-{reading}-{seed}', parts['val'], True, lambda: train(hw, parts['train'], None, a.steps, RATE['scratch'], seed, aug, a.optimizer))
    n = {s: int((q.num_keypoints > 0).sum()) for s, q in parts.items()}
    sizes = '' if a.preset == 'cpu' else f' --preset {a.preset}'
    out = [f'# With and without pre-trained weights ({"synth-v1" if name == "synth" else name})', '',
           f'{time.strftime("%Y-%m-%d")}, {processor()}, {torch.get_num_threads()} threads, machine shared with other work, Python {platform.python_version()}. `python bench/real_photographs.py --data {name}{sizes} --pretrained {a.pretrained} --steps {a.steps} --overfit-steps {a.overfit_steps}{f" --seeds {a.seeds}" if a.seeds != 3 else ""}{f" --optimizer {a.optimizer}" if a.optimizer != "adamw" else ""}`{f" (weights {mark})" if weights else ""}', '',
           f'AP is COCO\'s (OKS .50:.95), ground-truth boxes, flip test (but where said), network `posellm-s` at {size}, maps read by `{reading}`. Intervals: 95 %, bootstrap over images, 1,000 resamples.', '',
           '## Can it learn at all?', '', f'20 images ({int((twenty.num_keypoints > 0).sum())} people), {a.overfit_steps} steps of {BATCH} without augmentation and flip test, {over.seconds:.0f} s: AP on those same people (role: train) **{over.stats["AP"]:.3f}**.', '',
           '## What the weights are worth', '', f'Train part {n["train"]} people, {a.steps} steps of {BATCH}, {dict(adamw="AdamW", muon="Muon")[a.optimizer]}, learning rate {RATE["tuned"]:g} from the weights and {RATE["scratch"]:g} from nothing, {"full" if a.strong else "short-run"} augmentation; val part {n["val"]} people in {len(parts["val"].images)} images; last weights, nothing chosen on val.', '', *table(rows, a.seeds)]
    file = Path(a.out or f'bench/results/{"synth_scratch" if name == "synth" else "real_photographs"}.md'); file.parent.mkdir(parents=True, exist_ok=True); file.write_text('\n'.join(out) + '\n'); print('\n'.join(out))


if __name__ == '__main__': main()
