"""Learn posture, facing and gait from generated bodies and write posellm/assets/states.npz.

    python tools/fit_states.py --make N FILE [--seed 9001]          pose N people (no picture is drawn: about 1,500 a second of one core)
    python tools/fit_states.py FILE... [--epochs 14] [--start OLD]  learn from these people, or go on from OLD (.npz); --out NEW writes elsewhere than into the package
    python tools/fit_states.py --least SYNTH_FOLDER [--out NEW]     fix anew from which probability a state is said, on the train part of a synth-v1 set

The weights in the package: `--make 60000` with the seeds 9001 to 9006 (4 minutes of one core), 14 epochs on the first three files (4 minutes), 9 more on all six with `--start` and `--rate 1.5e-3` (5 minutes), then `--least`
on 7,500 people of synth-v1's train part, which the network had not seen. Learning fixes the probabilities too, on one person in twenty (by scene) that it held out; those of a set are the better ones, its people being posed as those of the reports.
"""
import argparse
import time
import zipfile
from pathlib import Path

import numpy as np

import posellm.data.scene as scene
import posellm.explain.states as S
from posellm.core.errors import PoseError
from posellm.core.paths import assets
from posellm.core.rng import rng
from posellm.data.coco import load_data
from posellm.data.scene import SynthConfig, sample_people
from posellm.data.synth import V1, _FACE_NORMAL, _TURN
from posellm.explain.facts import STATES, find_facts, lowest_threshold
from posellm.explain.judge import activity_of, as_known, facing_of, holds, known_people, posture_of
from posellm.explain.schema import CATEGORIES

ANGLES = 'root_pitch root_spin root_roll spine_flex spine_side spine_twist neck_flex neck_side neck_twist'.split()  # then 15 of the left side, 15 of the right
HIP, KNEE = 11, 13  # of a side
KEYS = ('keypoints', 'exact', 'world', 'camera', 'activity', 'angles', 'bbox', 'scene')


def make(n, file, seed=9001):
    "People of generated scenes as labelled: no picture, no depth layers, no clothes."
    scene.person_rows = scene.sample_outfit = lambda *a: None
    rows, i, t0 = [], 0, time.time()
    while len(rows) < n: rows += scene_people(seed, i, SynthConfig() if i % 3 == 0 else V1); i += 1
    d = {k: np.array(v) for k, v in zip(KEYS, zip(*rows))}
    np.savez(file, **{k: v.astype(np.float32) if v.dtype == float else v for k, v in d.items()}); print(f'{len(rows)} people, {time.time() - t0:.0f} s')


def scene_people(seed, i, config):
    "What is known of the people of one scene, before anything is drawn."
    g = rng(seed, 'states', i); people, view, _ = sample_people(g, lambda k: rng(seed, 'states', i, k), config, 0.)
    out, (h, w) = [], config.image_hw
    for who in people:
        W = who.joints; X = W @ view.R.T + view.t
        if X[:, 2].min() < .12: continue
        xy, _ = view.project(W); inside = ((xy >= -.5) & (xy < [w - .5, h - .5])).all(1)
        if inside.sum() < 4: continue
        v = np.where(inside, np.where(g.random(17) < .8, 2, 1), 0); v[:5][away(who, view)] = 0
        if g.random() < .3: v = behind_things(xy, v, g)
        lo, hi = np.maximum(xy.min(0), 0), np.minimum(xy.max(0), [w, h])
        out.append((np.concatenate([xy, v[:, None]], 1), xy, W, X, who.posture.activity, np.concatenate([who.posture.trunk, who.posture.side.ravel()]), [*lo, *np.maximum(hi - lo, 4)], i))
    return out


def away(who, view):
    "Points of the face on the far side of the head."
    ray = who.joints[:5] - view.centre; return ((_FACE_NORMAL @ who.F[4].T) * ray).sum(1) > _TURN * np.linalg.norm(ray, axis=1)


def behind_things(xy, v, g):
    "Everything below a line, or on one side of one, is hidden; annotators leave it out."
    a = g.choice((np.pi / 2, g.uniform(0, 2 * np.pi))); s = xy @ [np.cos(a), np.sin(a)]; return np.where(s > np.quantile(s, g.uniform(.4, 1)), 0, v)


def states(d):
    "Class numbers (n,3) of people."
    side = d['angles'][:, len(ANGLES):].reshape(-1, 2, 15)
    bend = np.concatenate([side[:, :, HIP], side[:, :, KNEE]], 1)
    names = [(posture_of(str(act), w, b), facing_of(x), activity_of(str(act))) for act, w, b, x in zip(d['activity'], d['world'], bend, d['camera'])]
    return np.array([[S.HEADS[h].index(n) for h, n in zip(S.HEADS, row)] for row in names])


def labels_of(d, g):
    "Labelled joints: those of `keypoints`, less some that other limbs hide; (n,17) bool."
    v = d['keypoints'][..., 2] > 0
    return v & ~((g.random((len(v), 1)) < .3) & (g.random(v.shape) < .12))


def in_picture(d, side=256): return ((d['exact'] >= -.5) & (d['exact'] < side - .5)).all(-1)


def seen(d, g):
    "Inputs as they will come: people as labelled, people of whom every joint in the picture is known, and people as a network sees them, some joints displaced, with trust that knows of it in part."
    v, exact, size = d['keypoints'][..., 2], np.where(np.isfinite(d['exact']), d['exact'], 0), np.sqrt(np.maximum(d['bbox'][:, 2:].prod(1), 64)); n, mode = len(v), g.random((len(v), 1))
    base = np.where(v == 2, 2.8, np.where(v == 1, 1.0, -.6)) + g.normal(0, .8, (n, 1)) + g.normal(0, .9, v.shape)
    p = 1 / (1 + np.exp(-base)); near = g.random(v.shape) < p
    places = exact + g.normal(0, 1, exact.shape) * (np.where(near, .012 + .05 * (1 - p), .22) * size[:, None])[..., None]
    swap = g.random((n, 1)) < .04; places = np.where((swap & (np.arange(17) >= 11))[..., None], places[:, S._flip], places)
    known = np.where(mode < .35, labels_of(d, g), in_picture(d)); sure = mode < .6
    return S.inputs(np.where(sure[..., None], np.where(known[..., None], exact, 0), places), np.where(sure, known * 1., p)).astype(np.float32)


def said(q):
    "Probabilities (n,C) of the states that have words, from those of all classes; and which words: head -> names."
    names = {h: [CATEGORIES[i].name for i in cols] for h, cols in STATES.items()}; gait = q['activity'][:, :2]
    return dict(posture=q['posture'][:, :len(names['posture'])], facing=q['facing'][:, :len(names['facing'])], activity=gait, striding=gait.sum(1, keepdims=True)), {**names, 'activity': names['activity'][:2], 'striding': ['striding']}


def thresholds(ways, precision=.975, few=40):
    "From which probability on a state is right in `precision` of the cases (the promise of .97, and half a point of room), however the joints became known; 2: never. `ways`: per way, ({head: (n,C) probabilities}, {head: (n,C) what holds}). Left and right share theirs."
    out = {h: np.max([[lowest_threshold(q[h][:, c], y[h][:, c], precision, .5, few) for c in range(q[h].shape[1])] for q, y in ways], 0) for h in ways[0][0]}
    l, r = (S.HEADS['facing'].index(f'image {s}') for s in ('left', 'right')); both = lambda v: np.r_[v[:, l], v[:, r]]
    out['facing'][[l, r]] = max(lowest_threshold(both(q['facing']), both(y['facing']), precision, .5, few) for q, y in ways)
    return out


def ways_of(net, d, y, g):
    "Held-out people as labelled, and with every joint in the picture known."
    true = {h: y[:, [i]] == np.arange(len(names)) for i, (h, names) in enumerate(S.HEADS.items())}; true = said(true)[0]
    return [(said(S.judge(np.where(on[..., None], np.where(np.isfinite(d['exact']), d['exact'], 0), 0), on * 1., net))[0], true) for on in (labels_of(d, g), in_picture(d))]


def ways_in(folder):
    "The same of the train part of a set of generated people."
    p = load_data(folder, 'train'); p = p[p.posed]
    if not len(p.extra) or 'joints3d' not in p.extra[0]: raise PoseError('not a set of generated people: its labels do not know the bodies', file=folder, todo='make one with chapter 00 (data synth)')
    if len(p) < 2000: raise PoseError('too few people to fix probabilities on', file=folder, found=len(p), allowed='2000 or more', todo='make a larger set, for example with posellm run --data synth -p n_train 7500')
    exact, states, _ = known_people(p); true = holds(exact, states) == 1
    def of(a): return {'posture': a[:, STATES['posture']], 'facing': a[:, STATES['facing']], 'activity': a[:, STATES['activity'][:2]], 'striding': a[:, STATES['activity'][2:]]}
    return [(of(find_facts(q, noise=0.).value), of(true)) for q in (as_known(p), p)]


def network(width, n_out, start=None):
    "Three hidden layers."
    import torch.nn as nn, torch
    net = nn.Sequential(nn.Linear(51, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))
    if start:
        w = arrays(start, ['w1', 'w2', 'w3', 'w4', 'b1', 'b2', 'b3', 'b4'])
        if w['w1'].shape != (51, width) or w['w4'].shape != (width, n_out): raise PoseError('weights of another network', file=start, found=f"{w['w1'].shape}, {w['w4'].shape}", allowed=f'(51, {width}), ({width}, {n_out})')
        for i, m in enumerate((m for m in net if isinstance(m, nn.Linear)), 1): m.weight.data, m.bias.data = torch.tensor(w[f'w{i}'].astype(np.float32).T.copy()), torch.tensor(w[f'b{i}'].astype(np.float32))
    return net


def learn(net, d, y, epochs, rate):
    "Cross-entropy of the three heads; half of the people are mirrored in each round."
    import torch
    import torch.nn.functional as F
    opt, g, n_out, yt, B, at = torch.optim.AdamW(net.parameters(), rate, weight_decay=.01), rng(0, 'states'), [len(c) for c in S.HEADS.values()], torch.tensor(y), 512, 0
    steps, flips, t0 = epochs * (len(y) // B + 1), torch.tensor([0, 1, 3, 2, 4]), time.time()
    for e in range(epochs):
        x, m, total = seen(d, g), g.random(len(y)) < .5, 0.
        x[m] = S.mirrored_inputs(x[m]); x, mt, yy = torch.from_numpy(x), torch.tensor(m), yt.clone(); yy[mt, 1] = flips[yt[mt, 1]]
        for b in torch.tensor(g.permutation(len(x))).split(B):
            for q in opt.param_groups: q['lr'] = rate * min(1, at / 200) * (.5 + .5 * np.cos(np.pi * at / steps))
            loss = sum(F.cross_entropy(z, yy[b, i]) for i, z in enumerate(net(x[b]).split(n_out, 1)))
            opt.zero_grad(); loss.backward(); opt.step(); at += 1; total += float(loss.detach()) * len(b)
        print(f'round {e + 1}: loss {total / len(x):.4f}, {time.time() - t0:.0f} s', flush=True)


def arrays(file, needed):
    "The arrays of an .npz file, or what is wrong with it."
    try:
        with np.load(file, allow_pickle=False) as z: d = {k: z[k] for k in z.files}
    except FileNotFoundError as e: raise PoseError('no such file', file=file, todo='pose people first: --make 60000 FILE') from e
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as e: raise PoseError('not an .npz file', file=file) from e
    if missing := [k for k in needed if k not in d]: raise PoseError('arrays are missing', file=file, field=', '.join(missing), found=', '.join(sorted(d)) or 'none', todo='give a file that this tool has written')
    return d


def people_in(files):
    "The people of several files that have joints to see, and their states."
    parts = [arrays(f, KEYS) for f in files]; d = {k: np.concatenate([q[k] for q in parts]) for k in KEYS}
    d['scene'] = np.concatenate([q['scene'] + 10**6 * i for i, q in enumerate(parts)]); on = (d['keypoints'][..., 2] > 0).sum(1) > 3; d = {k: v[on] for k, v in d.items()}
    return d, states(d)


def write(out, weights, least):
    "Weights and probabilities in one file."
    np.savez_compressed(out or assets() / 'states.npz', **weights, **{f'least_{k}': np.asarray(v) for k, v in least.items()})
    names = said({h: np.zeros((1, len(c))) for h, c in S.HEADS.items()})[1]
    for h, v in least.items(): print(h, {n: 'never' if x > 1 else round(float(x), 3) for n, x in zip(names[h], v)})


def fix_least(folder, out=None):
    "New probabilities for the weights in the package."
    weights = {k: v for k, v in arrays(assets() / 'states.npz', ['w1', 'b1']).items() if not k.startswith('least_')}
    write(out, weights, thresholds(ways_in(folder)))


def main(files, epochs=14, start=None, rate=3e-3, width=256, out=None):
    import torch
    from torch import nn
    torch.manual_seed(0); torch.set_num_threads(1); d, y = people_in(files); held = d['scene'] % 20 == 19; part = lambda m: ({k: v[m] for k, v in d.items()}, y[m])
    if min(held.sum(), (~held).sum()) < 100: raise PoseError('too few people to learn from and to hold out one in twenty', found=len(y), allowed='about 3000 or more', todo='pose more: --make 60000 FILE')
    if len(y) < 50_000 and not out: raise PoseError('so few people would make a worse file than the one in the package', found=len(y), allowed='50000 or more', todo='name another place with --out, or pose more people')
    net = network(width, sum(map(len, S.HEADS.values())), start); learn(net, *part(~held), epochs, rate) if epochs else None
    w = {f'{a}{i}': (m.weight.T if a == 'w' else m.bias).detach().numpy().astype(np.float16) for i, m in enumerate((m for m in net if isinstance(m, nn.Linear)), 1) for a in 'wb'}
    write(out, w, thresholds(ways_of({k: v.astype(np.float32) for k, v in w.items()}, *part(held), rng(1, 'states'))))


def arguments(argv=None):
    "The command line, or a clear stop."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', metavar='FILE'); p.add_argument('--make', type=int, metavar='N'); p.add_argument('--seed', type=int, default=9001); p.add_argument('--epochs', type=int, default=14)
    p.add_argument('--start', metavar='OLD'); p.add_argument('--rate', type=float, default=3e-3); p.add_argument('--least', metavar='SYNTH_FOLDER'); p.add_argument('--out', metavar='NEW'); a = p.parse_args(argv)
    if a.make is not None and a.least: p.error('--make and --least are two different jobs')
    if a.make is not None and (a.make < 1 or len(a.files) != 1 or not a.files[0].endswith('.npz')): p.error('--make needs a number of 1 or more and one FILE that ends in .npz')
    if a.make is None and bool(a.files) == bool(a.least): p.error('give the FILEs to learn from, or --make N FILE, or --least SYNTH_FOLDER')
    if a.epochs < 0 or not 0 < a.rate < 1: p.error('--epochs is 0 or more, --rate between 0 and 1')
    if a.epochs == 0 and a.files and not a.make and not a.start: p.error('--epochs 0 learns nothing: name weights with --start')
    for f in (a.out, a.files[0] if a.make else None):
        if f and (not f.endswith('.npz') or not Path(f).absolute().parent.is_dir()): p.error(f'{f}: must end in .npz and lie in a folder that exists')
    return a


if __name__ == '__main__':
    a = arguments()
    try:
        if a.make: make(a.make, a.files[0], a.seed)
        elif a.least: fix_least(a.least, a.out)
        else: main(a.files, a.epochs, a.start, a.rate, out=a.out)
    except PoseError as e: raise SystemExit(f'error: {e}')
