"""Does learning from unlabelled images help? Supervised training against the methods of posellm.ssl on people of a domain that the start does not know.

    python bench/ssl_experiment.py --domain negative --phase 400 --labelled 100 50 200 --steps 1500 --jobs supervised multiaugs multiaugs-dual supervised@multiaugs --seeds 0 1 2 --once pseudo-label posecons posedual mean-teacher --curve supervised multiaugs

Generated people (default): the start has seen people of the generator's base look; labelled, unlabelled, hidden and reported people come from synth-v1,
whose look is another, or with --people easy from the first look of bench/finetune_families.py: one grown person in a picture, upright, whole, standing or walking. With --data coco_subset the people are real photographs: labelled = part of train2017, unlabelled = its rest, extra2017 and, where
the folder is beside it, lspet (boxes around the keypoints; the keypoints themselves are not used).
A job is one method, one seed and one number of labelled people. --jobs run with every seed and --once with the first, both with the first number of --labelled; --curve runs with the other
numbers too (first seed). supervised@NAME trains as long as NAME's passes allow (equal compute: a training pass counts three times an inference pass, whatever else the machine does meanwhile).
NAME+WORD is NAME with settings of its own in --over, e.g. {"multiaugs+sure": {"mask": 0.5}}. Every method gets the same batches of labelled people, learning rate, schedule, augmentation and choice of weights.
Killed anywhere, the same command goes on at the last saved step and comes to the same weights; finished jobs are kept. Started twice at a time, it shares the jobs (one process a core; Unix). After each job OUT.md (bench/results/ssl_experiment.md), OUT.json and OUT.png (gain against labelled people and against steps) are
written anew. AP is COCO's with true boxes and the flip test, on people that neither trained nor chose weights; differences are paired over images, and averaged over seeds within each resample.
"""
import argparse
import fcntl
import gc
import json
import os
import shutil
import platform
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from posellm.app.report import processor
from posellm.core.errors import PoseError
from posellm.core.files import read_json, sha256, write_atomic, write_json
from posellm.core.log import setup_log
from posellm.core.paths import data_root
from posellm.data.coco import load_data
from posellm.data.synth import synth_v1, write_synth
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import difference_of, draw_images, resample
from posellm.models.weights import embedded
from posellm.models.zoo import create_model
from posellm.pose.poses import Poses, concat
from posellm.pose.skeleton import get_skeleton
from posellm.ssl.methods import METHODS, passes, settings
from posellm.ssl.semi import fit_semi, load_yardstick
from posellm.ssl.turn import Turn
from posellm.ssl.twin import Twin
from posellm.ssl.unlabelled import hide_labels
from posellm.train.device import now_mib, peak_mib
from posellm.train.recipe import Phase, deciding, recipe
from posellm.viz.canvas import figure, to_png


def thermal(picture, seed):
    "A picture as a simple thermal camera might give it: one channel, bright and dark exchanged, soft, noisy."
    g = np.random.default_rng(seed); grey = 255 - cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32); grey = cv2.GaussianBlur(grey, (0, 0), 1.2)
    return cv2.merge([(grey*.8 + 30 + g.normal(0, 6, grey.shape)).clip(0, 255).astype(np.uint8)]*3)


def negative(picture, seed):
    "A photographic negative."
    return 255 - picture


def turned(picture, seed):
    "A camera that hangs upside down."
    return cv2.rotate(picture, cv2.ROTATE_180)


DOMAINS = dict(thermal=thermal, negative=negative, turned=turned)


def turn_people(p):
    "The people of pictures that are turned by half a circle."
    size = {im['id']: (im['width'], im['height']) for im in p.images}; wh = np.array([size[i] for i in p.image_id.tolist()], float).reshape(-1, 2)
    xy = np.where((p.vis > 0)[..., None] if p.vis is not None else True, wh[:, None] - 1 - p.xy, p.xy); bbox = np.concatenate([wh - p.bbox[:, :2] - p.bbox[:, 2:], p.bbox[:, 2:]], 1)
    return replace(p, xy=xy, bbox=bbox)


def seen_as(people, folder, how):
    "The same people in pictures of another domain, written beside each other in `folder`."
    if not how: return people
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True); out = []
    for im in people.images:
        file = folder/(Path(im['file_name']).stem + '.png')
        if not file.is_file(): write_atomic(file, cv2.imencode('.png', DOMAINS[how](cv2.imread(str(im['path'])), im['id']))[1].tobytes())
        out.append(dict(im, file_name=file.name, path=str(file)))
    return replace(turn_people(people) if how == 'turned' else people, images=out)


def generated(most, n_unlabelled, n_hidden, n_val, folder=None, domain=None, kind='v1'):
    "Function n -> labelled, unlabelled, hidden and reported people (of `folder`, when it has been written already): the labelled ones are the first n of `most`, the others do not depend on n."
    made = Path(folder) if folder else data_root()/'synth'/f'ssl-{"" if kind == "v1" else kind + "-"}{most}-{n_unlabelled}-{n_hidden}-{n_val}'
    if not folder and not (made/'done.json').is_file():
        shutil.rmtree(made, ignore_errors=True); n, cores = most + n_unlabelled + n_hidden, len(os.sched_getaffinity(0))
        if kind == 'v1': synth_v1().write(made, cores, n, n_val, 0)
        else: from finetune_families import FIRST; write_synth(made, n, n_val, 0, seed=80, config=FIRST, workers=cores)
        write_json(made/'done.json', {})
    train, val = (load_data(made, s, images=False) for s in ('train', 'val')); cut, end = cutter(train), most + n_hidden; rest = hide_labels(cut(end, end + n_unlabelled)), cut(most, end), cutter(val)(0, n_val); other = lambda p, k: seen_as(p, made/f'{domain}-{k}', domain)
    rest = [other(p, k) for p, k in zip(rest, ('train', 'train', 'val'))]; return lambda n: (other(cut(0, n), 'train'), *rest)


def cutter(people, order=None):
    "Function (a, b) -> people of the images that hold the a-th to b-th person with keypoints."
    ids = np.array([im['id'] for im in people.images] if order is None else order); n = dict(zip(*np.unique(people[people.posed].image_id, return_counts=True))); count = np.cumsum([n.get(i, 0) for i in ids])
    return lambda a, b: people.take_images(ids[(count > a) & (count <= b)].tolist())


def photographs(folder, most):
    "The same from real photographs; half as many as are labelled, at least 60, are hidden."
    folder = Path(folder); train, val, extra = (load_data(folder, s) for s in ('train', 'val', 'extra')); r = np.random.default_rng(0)
    cut = cutter(train, r.permutation([im['id'] for im in train.images])); h = max(60, most//2)
    rest = concat_hidden([cut(most + h, 10**9), extra] + ([leeds_boxes(folder.parent/'lspet')] if (folder.parent/'lspet').is_dir() else [])), cut(most, most + h), val
    return lambda n: (cut(0, n), *rest)


def leeds_boxes(folder):
    "People of the Leeds Sports Pose pictures with boxes around the keypoints, which are not kept."
    import scipy.io
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


def start_nets(a, cfg, starts):
    nets = [create_model('posellm-s', 'coco17', input_hw=tuple(a.hw), weights=str(w)) for w in starts[:cfg.nets]]
    return nets[0] if cfg.nets == 1 else Twin(*nets)


@contextmanager
def mine(folder, wait=False):
    "True where no other process works in this folder; held until the end of the block, or of the process."
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder/'.lock', 'w') as f:
        try: fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)); got = True
        except BlockingIOError: got = False
        yield got


def first_phase(a, seed, parts, folder):
    "Weights that jobs of this seed begin with: those of --start, or of a supervised phase from there, which is trained once and shared."
    if not a.phase: return a.start
    with mine(folder, wait=True):
        if (folder/'done.json').is_file(): return folder/'model.safetensors'
        cfg = config(a, 'supervised', a.phase, seed); model = start_nets(a, cfg, [a.start]); history, _ = fit_semi(model, parts[0], None, parts[2], cfg, folder, resume=True, reports=dict(val=parts[3]))
        write_json(folder/'done.json', dict(ap=history.rows[-1]['ap'], start_ap=history.rows[0]['ap'], seconds=history.seconds, best_step=history.best['step']))
        return folder/'model.safetensors'


def method_of(name): return name.split('@')[0].split('+')[0]


def config(a, name, steps, seed=0):
    "Settings of a job: what all share, the method's own, and those of --over (for all methods, or under a job's name; `turn` as [degrees, probability, scale])."
    base = recipe('small', phases=(Phase('semi', a.lr, steps=steps, warmup=.05),), batch=a.batch, ema=a.ema, seed=seed, precision='auto', workers=1, loggers=(), val_steps=max(1, steps//a.checks), layer_decay=1., save_seconds=60., save_every=0)
    d = json.loads(a.over); own = d.get(name.split('@')[0], {}); d = {k: v for k, v in d.items() if not isinstance(v, dict)} | own
    return settings(method_of(name), base, **({k: Turn(*v) if k == 'turn' else tuple(v) if isinstance(v, list) else v for k, v in d.items()} if method_of(name) != 'supervised' or own else {}))


def cost(cfg): n, m = passes(cfg); return n + m/3 # of a step, in supervised steps


def steps_of(a, name): return round(a.steps*cost(config(a, name.split('@')[1], 1))) if '@' in name else a.steps


def planned(a):
    "Jobs in the order in which they are most use: (labelled, name, seed)."
    n, *others = a.labelled; first, *seeds = a.seeds; names = [*a.jobs, *a.once]
    for x in names:
        if method_of(x) not in METHODS or ('@' in x and method_of(x.split('@')[1]) not in METHODS): raise SystemExit(f'unknown job {x!r}; allowed: {", ".join(METHODS)}, supervised@NAME, NAME+WORD')
    if 'supervised' not in a.jobs: raise SystemExit('--jobs must begin with supervised: everything is compared with it')
    if others and 'supervised' not in a.curve: raise SystemExit('--curve must begin with supervised')
    return [(n, x, first) for x in names] + [(m, x, first) for m in others for x in a.curve] + [(n, x, s) for s in seeds for x in a.jobs]


def job(a, n, name, seed, parts, folder):
    "Train one network; its record."
    lab, unl, hidden, val = parts; steps = steps_of(a, name); cfg = config(a, name, steps, seed + 1000*bool(a.phase)); supervised = not cfg.paths; starts = [first_phase(a, s, parts, folder.parent/f'phase-{s}') for s in range(seed, seed + cfg.nets)] # the two of a pair begin apart where there is a phase
    yardstick = None if supervised else load_yardstick(folder.parent/f'supervised-{seed}', hidden); clear_peak(); model = start_nets(a, cfg, starts)
    history, _ = fit_semi(model, lab, None if supervised else unl, hidden, cfg, folder, resume=True, yardstick=yardstick, reports=dict(val=val))
    row = history.rows[-1]
    write_json(folder/'record.json', dict(name=name, seed=seed, labelled=n, steps=history.steps, cost=cost(cfg), seconds=history.seconds, best_step=history.best['step'], stopped=history.stopped, peak_mib=peak(), start_ap=history.rows[0]['ap'],
               ap=row['ap'], results=row['results'], settings=about(a, cfg), history=[{k: l.get(k) for k in ('step', 'ap', 'delta', 'delta_lo', 'delta_hi', 'detectable', 'verdict', 'right', 'used', 'peak', 'background', 'sup', 'unsup')} for l in history.history]))
    return record(a, n, name, seed, folder)


def about(a, cfg): return dict(deciding(cfg), hw=list(a.hw), start=a.start, data=Path(a.data).name, domain=a.domain, unlabelled=None, counts=[max(a.labelled), a.unlabelled, a.hidden, a.val], **(dict(phase=a.phase) if a.phase else {}), **(dict(people=a.people) if a.people != 'v1' else {})) # what must agree for a finished job to be kept


def record(a, n, name, seed, folder):
    "A finished job, or None; one of other settings is refused."
    if not (folder/'record.json').is_file(): return None
    r = read_json(folder/'record.json'); want = json.loads(json.dumps(about(a, config(a, name, steps_of(a, name), seed + 1000*bool(a.phase))))); bad = [k for k in want if r['settings'].get(k) != want[k] and k not in ('augment', 'easy')]
    if bad: raise PoseError('this job was finished with other settings', file=folder/'record.json', field=', '.join(bad), found=[r['settings'].get(k) for k in bad], allowed=[want[k] for k in bad], todo='give another --work')
    return dict(r, results=str(folder/r['results']))


def clear_peak(): # the peak of memory counts anew (Linux; elsewhere it is that of all jobs so far)
    gc.collect()
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass


def peak():
    try: return int(next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('VmHWM')).split()[1])/1024
    except OSError: return peak_mib()


def left(a, jobs, records):
    "Time the jobs that are not finished need, from what the finished ones took."
    rate = [r['seconds']/(r['steps']*r['cost']) for r in records if r['steps']]; todo = sum(steps_of(a, x)*cost(config(a, x, 1)) for n, x, s in jobs if not any((r['labelled'], r['name'], r['seed']) == (n, x, s) for r in records))
    return f'{todo:.0f} supervised steps of work' + (f', about {todo*np.median(rate)*1.1/3600:.1f} h' if rate else '; hours are known after the first job') # a tenth for checks


class Comparison:
    "AP of all finished jobs on the same resampled images."
    def __init__(self, records, val):
        self.by, self.samples, self.values = {}, {}, {}; self.draws = draw_images(len(evaluate(val, val_pred(records[0], val)).image_ids), 1000, 0)
        for r in records:
            k = r['labelled'], r['name'], r['seed']; e = evaluate(val, val_pred(r, val)); self.by.setdefault(k[:2], {})[r['seed']] = r; self.samples[k], self.values[k] = resample(e, self.draws, ('AP',))[:, 0], e.stats['AP']

    def level(self, n, name): # AP x 100 with its interval over images, mean of the seeds
        x = np.mean([v for k, v in self.samples.items() if k[:2] == (n, name)], 0); lo, hi = np.percentile(x, [2.5, 97.5]); return f'{100*np.mean([v for k, v in self.values.items() if k[:2] == (n, name)]):.1f} ({100*lo:.1f} to {100*hi:.1f})'

    def versus(self, n, name, base): # difference over the seeds that both have, or None
        both = [s for s in self.by[n, name] if s in self.by.get((n, base), {})]; mean = lambda d, x: np.mean([d[n, x, s] for s in both], 0)
        return None if not both or name == base else difference_of('AP', mean(self.values, base), mean(self.values, name), mean(self.samples, name) - mean(self.samples, base), self.draws.shape[1])


def starts_of(a, records): # (labelled, AP before the first step, of each seed)
    one = {(r['labelled'], r['seed']): r['start_ap'] for r in records if r['name'] == 'supervised'}; ns = list(dict.fromkeys(n for n, _ in one))
    return [(n, [v for (m, _), v in one.items() if m == n]) for n in (ns if a.phase else ns[:1])]


def table(a, records, compared, counts):
    "Markdown: every method beside the supervised yardstick at equal steps and at equal compute."
    def show(n, name, base): # and of how many seeds, where fewer than the row's
        d = compared.versus(n, name, base); both = set(compared.by[n, name]) & set(compared.by.get((n, base), {})); few = f', {len(both)} seed{"s"*(len(both) > 1)}' if d and len(both) < len(compared.by[n, name]) else ''
        return '-' if d is None else f'{100*d.value:+.1f} ({100*d.lo:+.1f} to {100*d.hi:+.1f}{few})'
    out = [f'# Unlabelled images: {"easy "*(a.people == "easy") + "generated people" + (f", {a.domain} pictures" if a.domain else "") if a.data == "synth" else Path(a.data).name}', '', f'{time.strftime("%Y-%m-%d")}, {processor()}, machine shared with other work, {torch.get_num_threads()} thread{"s"*(torch.get_num_threads() > 1)}, Python {platform.python_version()}.',
           f'`{command(a)}`', '', f'{counts[0]} unlabelled, {counts[1]} hidden (choose the weights, feed the brake; they count as labels used), {counts[2]} reported people. Network posellm-s at {a.hw[0]}x{a.hw[1]}, batch {a.batch} + {a.batch}, learning rate {a.lr}, start: {a.start_note}, {a.mark}{f", then {a.phase} supervised steps on the labelled people" if a.phase else ""}.', '',
           f'AP x 100 (OKS .50:.95, true boxes, flip test); mean over seeds; differences paired over images (95 %, 1,000 resamples), averaged over seeds. {sum(r["seconds"] for r in records)/3600:.1f} hours of training in all, one thread each. Equal compute: against supervised training of as many passes (a training pass counts three inference passes). Best: step of the kept weights.', '',
           '| labelled | method | seeds | steps | seconds | AP (95 %) | each seed | best | minus supervised, equal steps | minus supervised, equal compute | peak MiB |', '|---|---|---|---|---|---|---|---|---|---|---|',
           *[f'| {n if a.phase else ""} | start | {len(s)} | 0 | 0 | {100*np.mean(s):.1f} | {", ".join(f"{100*v:.1f}" for v in s) if a.phase else ""} | | | | |' for n, s in starts_of(a, records)]]
    for (n, name), seeds in compared.by.items():
        rs = list(seeds.values()); m = lambda k: np.mean([r[k] for r in rs])
        out.append(f'| {n} | {name} | {len(rs)} | {m("steps"):.0f} | {m("seconds"):.0f} | {compared.level(n, name)} | {", ".join(f"""{100*r["ap"]:.1f}""" for r in rs)} | {", ".join(str(r["best_step"]) for r in rs)} | {show(n, name, "supervised")} | {show(n, name, f"supervised@{name}")} | {m("peak_mib"):.0f} |')
    stopped = [f'{r["labelled"]} labelled, {r["name"]}, seed {r["seed"]}: {r["stopped"]}.' for r in records if r['stopped']]
    return '\n'.join(out + ['']*bool(stopped) + stopped) + '\n'


def curves(a, records, compared):
    "Where the gain begins: against the number of labelled people (reported people, last weights kept) and against steps (hidden people, during training)."
    fig = figure(11, 3.4); left_, right_ = fig.subplots(1, 2); names = list(dict.fromkeys(x for _, x in compared.by if method_of(x) != 'supervised'))
    for i, x in enumerate(names):
        at = sorted((n, d) for n, y in compared.by if y == x and (d := compared.versus(n, x, 'supervised')) is not None); ns = [n*1.03**i for n, _ in at]
        if at: left_.errorbar(ns, [100*d.value for _, d in at], [[100*(d.value - d.lo) for _, d in at], [100*(d.hi - d.value) for _, d in at]], fmt='o-', ms=4, lw=1.2, capsize=2, color=f'C{i}', label=x)
        seeds = [[l for l in r['history'] if l.get('delta') is not None] for r in compared.by.get((a.labelled[0], x), {}).values()]; seeds = [h for h in seeds if h]
        if not seeds: continue
        short = min(map(len, seeds)); col = lambda k: 100*np.mean([[l[k] for l in h[:short]] for h in seeds], 0); steps = [l['step'] for l in seeds[0][:short]]
        right_.plot(steps, col('delta'), 'o-', ms=3, lw=1.2, color=f'C{i}', label=f'{x} ({len(seeds)})')
        if len(seeds) == 1 and len(names) == 1: right_.fill_between(steps, col('delta_lo'), col('delta_hi'), alpha=.2, lw=0)
    left_.set(xlabel='labelled people', title=f'reported people, {a.steps} steps'); right_.set(xlabel='step', title=f'hidden people, {a.labelled[0]} labelled (seeds)')
    for ax in (left_, right_):
        ax.axhline(0, color='#888888', lw=1); ax.set_ylabel('AP x 100, minus supervised'); ax.grid(alpha=.25); ax.title.set_fontsize(9)
    if right_.get_legend_handles_labels()[0]: right_.legend(fontsize=7, loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0)
    ns = sorted({n for n, x in compared.by if method_of(x) != 'supervised'}) or a.labelled; left_.set_xscale('log'); left_.minorticks_off(); left_.set_xticks(ns, [str(n) for n in ns]); left_.set_xlim(.8*ns[0], 1.4*ns[-1]); return to_png(fig)


def val_pred(r, val): return Poses.from_results(r['results'], val)
def command(a): return f'python bench/ssl_experiment.py --data {Path(a.data).name}{" --people " + a.people if a.people != "v1" else ""}{" --domain " + a.domain if a.domain else ""} --labelled {" ".join(map(str, a.labelled))} --unlabelled {a.unlabelled} --steps {a.steps}{f" --phase {a.phase}" if a.phase else ""} --checks {a.checks} --batch {a.batch} --lr {a.lr} --hw {a.hw[0]} {a.hw[1]} --jobs {" ".join(a.jobs)} --seeds {" ".join(map(str, a.seeds))}' + (f' --once {" ".join(a.once)}' if a.once else '') + (f' --curve {" ".join(a.curve)}' if len(a.labelled) > 1 else '') + f' --start {Path(a.start).name}' + (f" --over '{a.over}'" if a.over != '{}' else '')


def write(a, records, val, counts):
    "Table, numbers and picture of what is there."
    out = Path(a.out); compared = Comparison(records, val); write_atomic(out.with_suffix('.md'), table(a, records, compared, counts)); write_atomic(out.with_suffix('.png'), curves(a, records, compared))
    write_json(out.with_suffix('.json'), dict(command=command(a), counts=counts, records=[{k: v for k, v in r.items() if k not in ('results', 'settings')} for r in records]), indent=1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='synth'); p.add_argument('--domain', choices=list(DOMAINS), help='pictures of the generated people as another camera gives them, which the start never saw'); p.add_argument('--people', choices=['v1', 'easy'], default='v1', help='which generated people'); p.add_argument('--folder', help='these people as they were written before'); p.add_argument('--start', default='posellm-synth-s'); p.add_argument('--start-note', default='the weights in the package (posellm-synth-s), trained on generated people of the base look'); p.add_argument('--out', default='bench/results/ssl_experiment'); p.add_argument('--work', default='/tmp/posellm-ssl')
    p.add_argument('--labelled', type=int, nargs='+', default=[100]); p.add_argument('--unlabelled', type=int, default=2000); p.add_argument('--hidden', type=int, default=300); p.add_argument('--val', type=int, default=1000)
    p.add_argument('--steps', type=int, default=1500); p.add_argument('--phase', type=int, default=0, metavar='STEPS', help='a supervised phase of so many steps on the labelled people comes first; every job, the supervised one too, goes on from its weights'); p.add_argument('--batch', type=int, default=16); p.add_argument('--lr', type=float, default=1e-3); p.add_argument('--ema', type=float, default=.995); p.add_argument('--checks', type=int, default=10)
    p.add_argument('--hw', type=int, nargs=2, default=(128, 96)); p.add_argument('--jobs', nargs='+', default=['supervised', 'multiaugs', 'supervised@multiaugs']); p.add_argument('--once', nargs='*', default=[]); p.add_argument('--curve', nargs='*', default=['supervised', 'multiaugs']); p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--over', default='{"patience": 0}', help='JSON: fields of SemiConfig, for all or by job: {"patience": 0, "mean-teacher": {"mask": 0.5}}'); p.add_argument('--table', action='store_true', help='only write table and picture from the jobs that are finished')
    a = p.parse_args(); setup_log(); jobs = planned(a); file = embedded(a.start) or Path(a.start); a.mark = sha256(file)[:8]
    where = lambda n, x, s: Path(a.work)/a.mark/f'{n}-labelled'/f'{x}-{s}' # other weights, other folders
    parts = generated(max(a.labelled), a.unlabelled, a.hidden, a.val, a.folder, a.domain, a.people) if a.data == 'synth' else photographs(a.data, max(a.labelled))
    records = [r for j in jobs if (r := record(a, *j, where(*j)))]; some = parts(a.labelled[0]); counts = [len(some[1]), int(some[2].posed.sum()), int(some[3].posed.sum())]; print(f'people: {int(some[0].posed.sum())} labelled, {counts[0]} unlabelled, {counts[1]} hidden, {counts[2]} reported', flush=True)
    while not a.table:
        records = [r for j in jobs if (r := record(a, *j, where(*j)))]; done = {(r['labelled'], r['name'], r['seed']) for r in records}; todo = [j for j in jobs if j not in done]; did = False
        if not todo: break
        for n, name, seed in todo:
            if name != 'supervised' and (n, 'supervised', seed) not in done: continue # its yardstick is being trained by another process
            with mine(where(n, name, seed)) as free:
                if not free or record(a, n, name, seed, where(n, name, seed)): continue
                print(f'{len(jobs) - len(todo)} of {len(jobs)} jobs done; {name}, seed {seed}, {n} labelled; left: {left(a, jobs, records)}', flush=True)
                r = job(a, n, name, seed, parts(n), where(n, name, seed)); did = True
            print(f"{name}, seed {seed}, {n} labelled: AP {r['ap']:.3f} after {r['steps']} steps, {r['seconds']:.0f} s, best at {r['best_step']}{'; ' + r['stopped'] if r['stopped'] else ''}; {now_mib():.0f} MiB now", flush=True)
            write(a, [r for j in jobs if (r := record(a, *j, where(*j)))], some[3], counts); break
        if not did: time.sleep(10)
    if records: write(a, records, some[3], counts); print(Path(a.out).with_suffix('.md').read_text())


if __name__ == '__main__': main()
