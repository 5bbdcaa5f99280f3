"""Does learning from unlabelled images help? Supervised training against the methods of posellm.ssl on people of a domain that the start does not know.

    python bench/ssl_experiment.py --start WEIGHTS --out bench/results/ssl_experiment --jobs supervised multiaugs --seeds 0 1 2

Generated people (default): the start has seen people of the generator's base look; labelled, unlabelled, hidden and reported people come from synth-v1,
whose look is another. With --data coco_subset the people are real photographs: labelled = part of train2017, unlabelled = its rest, extra2017 and, where
the folder is beside it, lspet (boxes around the keypoints; the keypoints themselves are not used).
Each job is one method and one seed, at the optimizer steps of --steps ("steps") or, for supervised, at as many seconds as MultiAugs took ("compute").
Finished jobs are kept and skipped, begun ones go on where they stopped; the table (bench/results/ssl_experiment.md) is rewritten after each job. AP is COCO's with true boxes and the flip
test, on people that neither trained nor chose weights; differences are paired over images, and averaged over seeds within each resample.
"""
import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from posellm.app.report import processor
from posellm.core.files import read_json, write_atomic, write_json
from posellm.core.log import setup_log
from posellm.core.paths import data_root
from posellm.data.coco import load_data
from posellm.data.synth import synth_v1
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import difference_of, draw_images, resample
from posellm.models.zoo import create_model
from posellm.pose.poses import Poses, concat
from posellm.pose.skeleton import get_skeleton
from posellm.ssl.config import semi
from posellm.ssl.methods import METHODS, settings
from posellm.ssl.semi import fit_semi, load_yardstick, save_yardstick
from posellm.ssl.turn import Turn
from posellm.ssl.twin import Twin
from posellm.ssl.unlabelled import hide_labels
from posellm.train.device import peak_mib
from posellm.train.recipe import Phase, recipe


def posed(p): return p[(p.num_keypoints > 0) & ~p.iscrowd]


def generated(n_labelled, n_unlabelled, n_hidden, n_val, folder=None):
    "Labelled, unlabelled, hidden and reported people of synth-v1 (of `folder`, when it has been written already)."
    folder = Path(folder) if folder else data_root()/'synth'/f'ssl-{n_labelled}-{n_unlabelled}-{n_hidden}-{n_val}'
    if not folder.exists(): synth_v1().write(folder, len(os.sched_getaffinity(0)), n_labelled + n_unlabelled + n_hidden, n_val, 0)
    train, val = (load_data(folder, s, images=False) for s in ('train', 'val')); cut = cutter(train); a, b = n_labelled, n_labelled + n_hidden
    return cut(0, a), hide_labels(cut(b, b + n_unlabelled)), cut(a, b), cutter(val)(0, n_val)


def cutter(people, order=None):
    "Function (a, b) -> people of the images that hold the a-th to b-th person with keypoints."
    ids = np.array([im['id'] for im in people.images] if order is None else order); n = dict(zip(*np.unique(posed(people).image_id, return_counts=True))); count = np.cumsum([n.get(i, 0) for i in ids])
    return lambda a, b: people.take_images(ids[(count > a) & (count <= b)].tolist())


def photographs(folder, n_labelled):
    "The same from real photographs; a fifth of the labelled ones is hidden."
    folder = Path(folder); train, val, extra = (load_data(folder, s) for s in ('train', 'val', 'extra')); r = np.random.default_rng(0)
    cut = cutter(train, r.permutation([im['id'] for im in train.images])); n = n_labelled; h = max(60, n//2)
    rest = [cut(n + h, 10**9), extra] + ([leeds_boxes(folder.parent/'lspet')] if (folder.parent/'lspet').is_dir() else [])
    return cut(0, n), concat_hidden(rest), cut(n, n + h), val


def leeds_boxes(folder):
    "People of the Leeds Sports Pose pictures with boxes around the keypoints, which are not kept."
    import cv2, scipy.io
    joints = scipy.io.loadmat(folder/'joints.mat')['joints'].transpose(2, 0, 1); images, boxes = [], [] # (N,14,3): x, y from 1, labelled
    for i, j in enumerate(joints):
        f = folder/'images'/f'im{i + 1:05d}.jpg'; h, w = cv2.imread(str(f)).shape[:2]; xy = j[j[:, 2] > 0, :2] - 1
        lo, hi = xy.min(0), xy.max(0); pad = .12*(hi - lo).max(); lo, hi = np.clip(lo - pad, 0, [w, h]), np.clip(hi + pad, 0, [w, h])
        images.append(dict(id=i + 1, file_name=f.name, path=str(f), width=w, height=h)); boxes.append([*lo, *(hi - lo)])
    n, b = len(boxes), np.array(boxes)
    return Poses(xy=np.zeros((n, 17, 2)), conf=np.zeros((n, 17)), vis=np.zeros((n, 17), np.int8), bbox=b, area=b[:, 2]*b[:, 3], area_source='box', score=np.ones(n), ann_id=np.arange(1, n + 1), image_id=np.arange(1, n + 1), category_id=np.ones(n, np.int64),
                 iscrowd=np.zeros(n, bool), num_keypoints=np.zeros(n, np.int64), images=images, skeleton=get_skeleton('coco17'))


def concat_hidden(parts):
    "Unlabelled people of several sets as one, with their own image and person numbers."
    out = []
    for k, p in enumerate(hide_labels(p) for p in parts):
        move = 10**13*k; out.append(replace(p, image_id=p.image_id + move, ann_id=np.arange(len(p)) + 1 + move, images=[{**im, 'id': im['id'] + move} for im in p.images]))
    return concat(out)


def start_nets(a, cfg):
    nets = [create_model('posellm-s', 'coco17', input_hw=tuple(a.hw), weights=a.start) for _ in range(cfg.nets)]
    return nets[0] if cfg.nets == 1 else Twin(*nets)


def overrides(a, method):
    "Fields of SemiConfig from --over, for all methods or, under a method's name, for that one; `turn` as [degrees, probability, scale]."
    d = json.loads(a.over); d = {k: v for k, v in d.items() if k not in METHODS} | d.get(method, {})
    return {k: Turn(*v) if k == 'turn' else tuple(v) if isinstance(v, list) else v for k, v in d.items()}


def job(a, name, steps, seed, parts, yardstick=None):
    "Train one network; its record."
    lab, unl, hidden, val = parts; method = name.split('@')[0]
    base = recipe('small', phases=(Phase('semi', a.lr, steps=steps, warmup=.05),), batch=a.batch, ema=a.ema, seed=seed, precision='auto', workers=1, loggers=(), val_steps=max(1, steps//a.checks), layer_decay=1.)
    cfg = settings(method, base, **(overrides(a, method) if method != 'supervised' else {})); folder = Path(a.work)/f'{name}-{seed}'
    model = start_nets(a, cfg); t0 = time.process_time()
    history, done = fit_semi(model, lab, unl if cfg.paths else None, hidden, cfg, folder, resume=True, yardstick=yardstick, reports=dict(val=val))
    row = history.rows[-1]
    write_json(folder/'record.json', dict(name=name, seed=seed, steps=history.steps, seconds=history.seconds, cpu=time.process_time() - t0, best_step=history.best['step'], stopped=history.stopped, peak_mib=peak_mib(), start_ap=history.rows[0]['ap'],
               ap=row['ap'], results=str(folder/row['results']), history=[{k: l.get(k) for k in ('step', 'ap', 'delta', 'delta_lo', 'delta_hi', 'verdict', 'right', 'used', 'peak', 'background', 'sup', 'unsup')} for l in history.history]))
    return read_json(folder/'record.json'), done.checks


def table(a, records, val, counts):
    "Markdown: every method beside the supervised yardstick at equal steps and at equal compute."
    by = {}
    for r in records: by.setdefault(r['name'], {})[r['seed']] = r
    draws = draw_images(len(evaluate(val, val_pred(records[0], val)).image_ids), 1000, 0); samples, values = {}, {}
    for n, seeds in by.items():
        for s, r in seeds.items(): e = evaluate(val, val_pred(r, val)); samples[n, s], values[n, s] = resample(e, draws, ('AP',))[:, 0], e.stats['AP']
    def versus(n, base):
        both = [s for s in by[n] if s in by.get(base, {})]
        if not both or n == base: return '-'
        d = difference_of('AP', np.mean([values[base, s] for s in both]), np.mean([values[n, s] for s in both]), np.mean([samples[n, s] - samples[base, s] for s in both], 0), draws.shape[1])
        return f'{100*d.value:+.1f} ({100*d.lo:+.1f} to {100*d.hi:+.1f})'
    out = [f'# Unlabelled images: {"generated people" if a.data == "synth" else Path(a.data).name}', '', f'{time.strftime("%Y-%m-%d")}, 2 cores of an {processor()}, machine shared with other work, one thread, Python {platform.python_version()}.',
           f'`{command(a)}`', '', f'{counts[0]} labelled, {counts[1]} unlabelled, {counts[2]} hidden (choose the weights, feed the brake; they count as labels used), {counts[3]} reported people. Network posellm-s at {a.hw[0]}x{a.hw[1]}, batch {a.batch} + {a.batch}, learning rate {a.lr}, start: {a.start_note}.', '',
           'AP x 100 (OKS .50:.95, true boxes, flip test); mean over seeds; differences paired over images (95 %, 1,000 resamples), averaged over seeds.', '',
           '| method | seeds | steps | seconds | AP | each seed | minus supervised, equal steps | minus supervised, equal compute | peak MiB |', '|---|---|---|---|---|---|---|---|---|',
           f'| start | | 0 | 0 | {100*np.mean([r["start_ap"] for r in records]):.1f} | | | | |']
    for n, seeds in by.items():
        rs = list(seeds.values()); m = lambda k: np.mean([r[k] for r in rs])
        out.append(f'| {n} | {len(rs)} | {m("steps"):.0f} | {m("seconds"):.0f} | {100*m("ap"):.1f} | {", ".join(f"""{100*r["ap"]:.1f}""" for r in rs)} | {versus(n, "supervised")} | {versus(n, "supervised@compute")} | {m("peak_mib"):.0f} |')
    return '\n'.join(out) + '\n'


def val_pred(r, val): return Poses.from_results(r['results'], val)
def command(a): return f'python bench/ssl_experiment.py --data {Path(a.data).name} --labelled {a.labelled} --unlabelled {a.unlabelled} --steps {a.steps} --batch {a.batch} --lr {a.lr} --hw {a.hw[0]} {a.hw[1]} --jobs {" ".join(a.jobs)} --seeds {" ".join(map(str, a.seeds))} --start WEIGHTS' + (f" --over '{a.over}'" if a.over != '{}' else '')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='synth'); p.add_argument('--folder', help='synth-v1 as it was written before'); p.add_argument('--start', required=True); p.add_argument('--start-note', default='weights trained on generated people of the base look'); p.add_argument('--out', default='bench/results/ssl_experiment'); p.add_argument('--work', default='/tmp/posellm-ssl')
    p.add_argument('--labelled', type=int, default=100); p.add_argument('--unlabelled', type=int, default=2000); p.add_argument('--hidden', type=int, default=300); p.add_argument('--val', type=int, default=1000)
    p.add_argument('--steps', type=int, default=600); p.add_argument('--batch', type=int, default=16); p.add_argument('--lr', type=float, default=1e-3); p.add_argument('--ema', type=float, default=.995); p.add_argument('--checks', type=int, default=6)
    p.add_argument('--hw', type=int, nargs=2, default=(128, 96)); p.add_argument('--jobs', nargs='+', default=['supervised', 'multiaugs', 'supervised@compute']); p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2]); p.add_argument('--over', default='{}', help='JSON: fields of SemiConfig, for all or by method: {"patience": 0, "mean-teacher": {"mask": 0.5}}')
    a = p.parse_args(); setup_log()
    parts = generated(a.labelled, a.unlabelled, a.hidden, a.val, a.folder) if a.data == 'synth' else photographs(a.data, a.labelled)
    counts = [len(posed(parts[0])), len(parts[1]), len(posed(parts[2])), len(posed(parts[3]))]; print('people:', counts, flush=True); records = []
    for seed in a.seeds:
        for name in a.jobs:
            done = Path(a.work)/f'{name}-{seed}'/'record.json'
            if done.exists(): records.append(read_json(done)); print(name, seed, 'is there'); continue
            steps = a.steps
            if name == 'supervised@compute':
                both = {r['name']: r for r in records if r['seed'] == seed}; slow, fast = both.get('multiaugs') or next(r for n, r in both.items() if n != 'supervised'), both['supervised']
                steps = round(a.steps*slow['seconds']/fast['seconds'])
            yard = Path(a.work)/f'supervised-{seed}'; checks = load_yardstick(yard, parts[2]) if not name.startswith('supervised') else None
            r, seen = job(a, name, steps, seed, parts, checks)
            if name == 'supervised': save_yardstick(yard, seen)
            records.append(r); write_atomic(Path(a.out).with_suffix('.md'), table(a, records, parts[3], counts)); write_json(Path(a.out).with_suffix('.json'), dict(command=command(a), counts=counts, records=[{k: v for k, v in r.items() if k != 'results'} for r in records]), indent=1)
            print(f"{name}, seed {seed}: AP {r['ap']:.3f} after {r['steps']} steps, {r['seconds']:.0f} s, best at {r['best_step']}{'; ' + r['stopped'] if r['stopped'] else ''}", flush=True)
    print(table(a, records, parts[3], counts))


if __name__ == '__main__': main()
