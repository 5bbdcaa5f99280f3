"""How much a pose prior helps and harms on real poses: corrupted, clean and exchanged people of COCO val labels, against four baselines.

    python bench/prior_accuracy.py train --out FOLDER      # learns a prior from real poses (COCO train labels) and generated ones
    python bench/prior_accuracy.py measure --prior FOLDER --out bench/results/prior.json
    python bench/prior_accuracy.py sides --prior FOLDER --out bench/results/prior.json    # exchanged sides alone, with the curves; the rest of the file stays

Needs coco_yolo_pose_labels (labels without images) and eval_mvor of the shared data; says so and stops where they are absent.
"""
import argparse
import csv
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from posellm.core.errors import PoseError
from posellm.core.files import read_json, write_json
from posellm.core.paths import shared_data
from posellm.core.rng import rng
from posellm.data.bare import bare_poses
from posellm.data.scene import SynthConfig
from posellm.metrics.ap import evaluate
from posellm.metrics.oks import get_sigmas, keypoint_similarity
from posellm.metrics.stats import paired_bootstrap
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.refine.baselines import fit_baselines
from posellm.refine.corrupt import corrupt, published_errors
from posellm.refine.fitting import clean_copy, fit_prior
from posellm.refine.plausible import plausibility, roc, true_places
from posellm.refine.prior import confident_right, load_prior, observation_trust, refine, save_prior, shift_in_sigmas
from posellm.refine.scale import own_trust
from posellm.refine.sides import exchanged_people, limb_groups, precision_recall, repairs, without
from posellm.refine.teach import LearnConfig

SEED = 2026 # frozen: everything that is reported is drawn from it
LEVELS = ('good and jitter only', (2, 3, 4)), ('all published errors but inversions', (2,))


def labels(split):
    """People of the label files, areas 0.53 w h; sizes that are a guess are left out."""
    root = shared_data() and shared_data()/'coco_yolo_pose_labels'
    if not root or not root.is_dir(): raise SystemExit('coco_yolo_pose_labels is not there; nothing measured')
    size = {r['file']: (int(r['width']), int(r['height'])) for r in csv.DictReader(open(root/'image_sizes.csv')) if r['status'] != 'guess'}
    rows, ids, images = [], [], []
    with zipfile.ZipFile(root/'labels.zip') as z:
        for name in sorted(n for n in z.namelist() if n.startswith(f'labels/{split}/') and n in size):
            a = np.array([[float(v) for v in line.split()] for line in z.read(name).decode().splitlines() if line.strip()])
            if not len(a): continue
            w, h = size[name]; i = int(Path(name).stem); k = a[:, 5:].reshape(-1, 17, 3); k[..., :2] *= [w, h]; k[k[..., 2] == 0] = 0
            b = a[:, 1:5]*[w, h, w, h]; b[:, :2] -= b[:, 2:]/2
            images.append(dict(id=i, file_name=f'{i:012d}.jpg', width=w, height=h)); rows.append(np.concatenate([k.reshape(len(k), -1), b], 1)); ids += [i]*len(a)
    x = np.concatenate(rows); k, b, n = x[:, :51].reshape(-1, 17, 3), x[:, 51:], len(x)
    return Poses(xy=k[..., :2], conf=(k[..., 2] > 0)*1., vis=k[..., 2].astype(np.int8), bbox=b, area=.53*b[:, 2]*b[:, 3], area_source='box*0.53', score=np.ones(n), ann_id=np.arange(1, n + 1), image_id=np.array(ids),
                 category_id=np.ones(n, np.int64), iscrowd=np.zeros(n, bool), num_keypoints=(k[..., 2] > 0).sum(1), images=images, skeleton=get_skeleton('coco17'))


def three_parts():
    """(learn, hold, report): train labels without images of any reported set, a fifth of them held for gates and thresholds; val labels."""
    train, val = labels('train2017'), labels('val2017'); reported = {im['id'] for im in val.images}
    for f in (shared_data()/'coco_subset/annotations').glob('*.json'):
        if 'train' not in f.name: reported |= {im['id'] for im in json.loads(f.read_text())['images']}
    ids = [im['id'] for im in train.images if im['id'] not in reported]; held = {i for i in ids if i % 10 in (3, 7)}
    return train.take_images([i for i in ids if i not in held]), train.take_images(held), val


def learn(a):
    train, held, _ = three_parts(); em = published_errors(train.skeleton)
    prior = fit_prior([train, bare_poses(6000, seed=100)], held, em, LearnConfig(steps=a.steps, hidden=a.hidden, seed=a.seed), sides_steps=a.sides_steps)
    prior.card.update(poses=f'{len(train):,} real people (COCO train labels without images) and 6,000 generated ones', gate=f'{len(held):,} other people of train: gate weights from one half, margin and threshold of plausibility from the other, thresholds of the sides from both')
    a.out.mkdir(parents=True, exist_ok=True); save_prior(prior, a.out/'prior'); print(prior, prior.gate.margin, prior.sides and prior.sides.thresholds, prior.card['training']['history'])


def ap(truth, pred): return evaluate(truth, pred, boxes='ground-truth boxes')


def measured(truth, bad, clean, after, after_clean, must, resamples):
    """The three numbers of one method."""
    base, ev = ap(truth, bad), ap(truth, after); d = paired_bootstrap(base, ev, n=resamples, seed=0); ks = lambda p: keypoint_similarity(truth.xy, p.xy, truth.area, get_sigmas(truth.skeleton))
    change = (ks(after) - ks(bad))[truth.labelled]; moved = np.abs(after.xy - bad.xy).max(-1)[truth.labelled] > 1e-9
    return dict(ap=ev.stats['AP'], gain=d.value, lo=d.lo, hi=d.hi, clean=ap(truth, after_clean).stats['AP'], clean_change=ap(truth, after_clean).stats['AP'] - ap(truth, clean).stats['AP'], confident_right_moved=float((shift_in_sigmas(bad, after, truth.area)[must] > .3).mean()),
                moved=float(moved.mean()), helped=float((change > .05).mean()), harmed=float((change < -.05).mean()))


def recall_at(ratio, right, wrong, there, least=.95):
    """The most that is found at a precision of at least `least`, whatever the threshold."""
    _, p, r = precision_recall(ratio, right, wrong, there); ok = np.flatnonzero((p >= least) & (r > 0)); return float(r[ok[-1]]) if len(ok) else 0.


RECALLS = .05, .1, .2, .3, .4, .5, .6, .7, .8


def curve_of(ratio, right, wrong, there):
    """The best precision at which a recall of `RECALLS` is reached, whatever the threshold."""
    _, p, r = precision_recall(ratio, right, wrong, there); best, at = np.maximum.accumulate(p[::-1])[::-1], np.searchsorted(r, RECALLS); return {str(x): float(best[i]) if i < len(best) else 0. for x, i in zip(RECALLS, at)}


def between(ratio, right, wrong, there, n=200):
    """95 % interval of `recall_at`: people drawn with replacement."""
    g = rng(SEED, 'sides', 'bootstrap'); draws = (g.integers(0, len(ratio), len(ratio)) for _ in range(n)); return np.quantile([recall_at(*(v[i] for v in (ratio, right, wrong, there))) for i in draws], (.025, .975)).tolist()


def looks_back(truth):
    """People whose nose and an eye are labelled: from the front or half so, and one can tell."""
    at = [truth.skeleton.keypoints.index(n) for n in ('nose', 'left_eye', 'right_eye')]; on = truth.labelled[:, at]; return on[:, 0] & on[:, 1:].any(1)


def sides_table(sides, truth, em, trust, prevalence=.05, repeats=4):
    """At the thresholds of the prior with groups by lot; and each group alone, what any threshold could find at a precision of 0.95, for everybody and for those whose face is labelled."""
    if sides is None: return []
    out, cat = [], lambda parts: [np.concatenate(v) for v in zip(*parts)]; face = looks_back(truth)
    for name, gone in LEVELS:
        drawn = [corrupt(truth, without(em, *gone), SEED + 5 + i)[0] for i in range(repeats)]; lot, right, wrong, there, people = [], 0, 0, 0, 0
        for i, d in enumerate(drawn):
            bad, pairs, matters = exchanged_people(truth, d, prevalence, SEED + i); t = trust(bad.conf, np.full(len(bad), 100.)); done = sides.decide(bad, t)[0]; right += (done & pairs & matters).sum(); wrong += (done & ~pairs & matters).sum(); there += (pairs & matters).sum(); people += (pairs & matters).any(1).sum()
            lot.append(repairs(sides, bad, t, pairs, matters)[1:])
        row = dict(errors=name, people=len(truth), exchanged_people=int(people), pairs=int(there), repaired=int(right + wrong), precision=float(right/max(right + wrong, 1)), recall=float(right/max(there, 1)), reachable=recall_at(*cat(lot)), reachable_95=between(*cat(lot)), curve=curve_of(*cat(lot)), alone={}, alone_face={})
        for group in limb_groups(truth.skeleton):
            got = []
            for i, d in enumerate(drawn): bad, pairs, matters = exchanged_people(truth, d, prevalence, SEED + i, group); got.append((*repairs(sides, bad, trust(bad.conf, np.full(len(bad), 100.)), pairs, matters, group)[1:], face))
            *got, seen = cat(got); row['alone'][group] = recall_at(*got); row['alone_face'][group] = recall_at(*(v[seen] for v in got))
        out.append(row); print(name, {k: v for k, v in row.items() if k != 'errors'}, flush=True)
    return out


def sides_lines(sides):
    """The two tables of exchanged sides."""
    name = dict(real='COCO val', generated='generated', generated_by_embedded='generated'); rows = [(name[w], r) for w, rows in sides.items() for r in rows]
    if not rows: return []
    out = ['| people | other errors | exchanged people | repaired pairs | precision | recall | most that is found at precision 0.95 (95 %, people drawn with replacement) |', '|---|---|---|---|---|---|---|']
    out += [f"| {w} | {r['errors']} | {r['exchanged_people']} | {r['repaired']} | {r['precision']:.3f} | {r['recall']:.3f} | {r['reachable']:.3f} ({r['reachable_95'][0]:.3f} to {r['reachable_95'][1]:.3f}) |" for w, r in rows]
    out += ['', 'The curve behind the last column, groups by lot: the best precision that any threshold of this network has at each recall, chosen with hindsight. Wanted is 0.95 at 0.6.', '', '| people | other errors | ' + ' | '.join(f'recall {x}' for x in RECALLS) + ' |', '|---'*(len(RECALLS) + 2) + '|']
    out += [f"| {w} | {r['errors']} | " + ' | '.join(f'{v:.2f}' for v in r['curve'].values()) + ' |' for w, r in rows]
    out += ['', 'Each group alone, 5 % of the people exchanged in this way: the most that any threshold finds at a precision of 0.95 (recall of pairs); in brackets only people whose nose and an eye are labelled.', '', '| group | ' + ' | '.join(f"{w}, {r['errors']}" for w, r in rows) + ' |', '|---'*(len(rows) + 1) + '|']
    return out + [f'| {g} | ' + ' | '.join(f"{r['alone'][g]:.2f} ({r['alone_face'][g]:.2f})" for _, r in rows) + ' |' for g in rows[0][1]['alone']]


def page(d):
    """The measurement as a page."""
    lines = ['# The pose prior on real poses', '', f"{d['date']}, {cpu()}, 2 cores, machine shared with other work. `python bench/prior_accuracy.py train`, then `measure`; everything reported is drawn at seed {d['seed']}.", '',
             f"{d['people']} people in {d['images']} images of COCO val (labels without images, image sizes that are a guess left out), area {d['area']}, boxes: {d['boxes']}. Errors: {d['confidences']}; keypoints nobody labelled are missing. Seen: " + ', '.join(f'{k} {v:.3f}' for k, v in d['rates'].items()) + '.',
             'Gates, margins and thresholds of all methods were fixed on a fifth of COCO train labels, which nothing was trained on (weights on one half of these people, margins on the other), under the same promises (at most 0.7 % of the confident right keypoints moved, at most 0.24 AP points lost on the clean copy). The prior has learned from the same error model that spoils the people here: this is what it can do at best.', '',
             '| method | AP | gain | 95 % | clean: change | confident right moved > 0.3 sigma | moved | helped | harmed |', '|---|---|---|---|---|---|---|---|---|']
    lines += [f"| {n} | {r['ap']:.4f} | {r['gain']:+.4f} | {r['lo']:+.4f} to {r['hi']:+.4f} | {r['clean_change']:+.4f} | {100*r['confident_right_moved']:.2f} % | {100*r['moved']:.1f} % | {100*r['helped']:.1f} % | {100*r['harmed']:.1f} % |" for n, r in d['methods'].items()]
    lines += ['', f"AP is COCO's (OKS .50:.95); intervals: bootstrap over images, {d['resamples']} resamples, paired. {d['confident_right']} keypoints are right (similarity 0.85 or more) and confident (their confidence alone promises 0.8 or more). Shares are of labelled keypoints; helped and harmed: similarity changed by more than 0.05.",
              "The clean copy has AP 1 exactly, where COCO's AP is unforgiving: one person below an OKS threshold costs that threshold its last recall point, 0.001 of AP, whether 6 or 6,000 people are measured.", '',
              f"People ranked by expected similarity instead of mean confidence, no keypoint moved: AP {d['rescored']['identity']:.4f}; refined and ranked by the prior's: {d['rescored']['refined']:.4f}.", '',
              f"Plausibility of true places against spoiled ones with the same confidences: area under the ROC {d['plausibility']['area']:.3f}; at the threshold fixed on train people {100*d['plausibility']['threshold_keeps']:.1f} % of the true and {100*d['plausibility']['spoiled_above']:.1f} % of the spoiled poses pass.", '',
              '## Exchanged sides', '', f"A group of limbs, by lot one of {', '.join(limb_groups(get_skeleton('coco17')))}, of 5 % of the people is exchanged (4 draws); an exchange counts where both keypoints are labelled and farther apart than a similarity of 0.5. The groups that act, with thresholds fixed on held people of train among all errors: {', '.join(d['cards']['acting']) or 'none'}.", '', *sides_lines(d['sides'])]
    return '\n'.join(lines) + '\n'


def cpu():
    try: return next(line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): return 'unknown processor'


def measure(a):
    train, held, val = three_parts(); em = published_errors(val.skeleton); bad, kind = corrupt(val, em, SEED); clean = clean_copy(val, bad, em, SEED); start = time.time()
    real, own = load_prior(a.prior), load_prior(); trust = real.trust; t = trust(bad.conf, np.full(len(bad), 100.)); must = confident_right(val, bad, t); rows = {}
    methods = {'identity': lambda p: p, **fit_baselines(train, held, em, trust)}
    methods |= {'denoising VAE, real poses': lambda p: refine(p, real, sides=False).poses, 'the same, sides decided first': lambda p: refine(p, real).poses, 'embedded prior (generated poses), map of its own': lambda p: refine(p, own, sides=False).poses, 'embedded prior, map learned from the file': lambda p: refine(p, own, own_trust(own, p), sides=False).poses}
    for name, f in methods.items(): rows[name] = measured(val, bad, clean, f(bad), f(clean), must, a.resamples); print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
    scored = refine(bad, real, rescore=True, sides=False).poses; plain = replace(bad, score=t.mean(1)); rescored = dict(refined=ap(val, scored).stats['AP'], identity=ap(val, plain).stats['AP'])
    p, q = plausibility(real, true_places(val, bad)), plausibility(real, bad); fpr, tpr, area = roc(np.r_[p, q], np.r_[np.ones(len(p)), np.zeros(len(q))]); least = real.plausible['threshold']
    gen = bare_poses(3000, seed=900)
    out = dict(schema=1, date=time.strftime('%Y-%m-%d'), seed=SEED, people=len(val), images=len(val.images), area='0.53 w h', boxes='ground truth', confidences=em.source, confident_right=int(must.sum()), rates={n: float((kind[val.labelled] == j).mean()) for j, n in enumerate(('good', 'jitter', 'inversion', 'swap', 'miss'))},
               methods=rows, rescored=rescored, plausibility=dict(area=area, threshold_keeps=float((p >= least).mean()), spoiled_above=float((q >= least).mean())), sides=dict(real=sides_table(real.sides, val, em, trust), generated=sides_table(real.sides, gen, em, trust)), resamples=a.resamples, seconds=time.time() - start, cards=dict(real=real.card, embedded=own.card, gate=dict(margin=real.gate.margin, few=real.gate.few, stake=real.gate.stake), acting=list(real.sides.thresholds) if real.sides else []))
    leave(a.out, out); print({k: out[k] for k in ('rescored', 'plausibility', 'sides')})


def leave(file, out):
    """The file and its page; what was written by hand below the tables stays."""
    md = file.with_suffix('.md'); _, mark, hand = (md.read_text(encoding='utf8') if md.exists() else '').partition('\n## Reading it\n')
    write_json(file, out, indent=1); md.write_text(page(out) + mark + hand, encoding='utf8')


def measure_sides(a):
    _, _, val = three_parts(); em = published_errors(val.skeleton); real = load_prior(a.prior); out = read_json(a.out); sets = dict(real=val, generated=bare_poses(3000, seed=900))
    leave(a.out, {**out, 'sides': {k: sides_table(real.sides, p, em, real.trust) for k, p in sets.items()}})


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); s = p.add_subparsers(required=True)
    q = s.add_parser('train'); q.add_argument('--steps', type=int, default=9000); q.add_argument('--hidden', type=int, default=384); q.add_argument('--sides-steps', type=int, default=5000); q.add_argument('--seed', type=int, default=0); q.add_argument('--out', type=Path, required=True); q.set_defaults(do=learn)
    q = s.add_parser('measure'); q.add_argument('--prior', required=True); q.add_argument('--resamples', type=int, default=1000); q.add_argument('--out', type=Path, default=Path('bench/results/prior.json')); q.set_defaults(do=measure)
    q = s.add_parser('sides'); q.add_argument('--prior', required=True); q.add_argument('--out', type=Path, default=Path('bench/results/prior.json')); q.set_defaults(do=measure_sides)
    torch.set_num_threads(1); a = p.parse_args(); a.do(a)
