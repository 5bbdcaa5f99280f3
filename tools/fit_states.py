"""Learn posture, facing and gait from generated bodies and write posellm/assets/states.npz.

    python tools/fit_states.py --make N FILE [SEED]                 pose N people (no picture is drawn: about 1,500 a second of one core)
    python tools/fit_states.py FILE... [--epochs 14] [--start OLD]  learn from these people, or go on from OLD (.npz)

The weights in the package: `--make 60000` with the seeds 9001 to 9006 (4 minutes of one core), 14 epochs on the first three files (4 minutes), 9 more on all six with `--start` and `--rate 1.5e-3` (5 minutes).
One person in twenty (by scene) is held out: the probabilities from which a state is said of people with exact or labelled joints are fixed on these.
"""
import argparse
import time
from pathlib import Path

import numpy as np

import posellm.data.scene as scene
import posellm.explain.states as S
from posellm.core.rng import rng
from posellm.data.scene import SynthConfig, sample_people
from posellm.data.synth import V1, _FACE_NORMAL, _TURN
from posellm.explain.judge import activity_of, facing_of, posture_of

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


def lower_bound(k, n, z=1.645):
    "Wilson's bound: with 95 % confidence the share is at least this."
    n = np.maximum(n, 1); p, d = k / n, 1 + z * z / n
    return (p + z * z / (2 * n) - z * np.sqrt((p * (1 - p) + z * z / (4 * n)) / n)) / d


def thresholds(net, d, y, g, precision=.97):
    "Per head, the probabilities (one a class; of facing, left and right share theirs) from which on the bound of the precision stays above `precision`; 2: never."
    half = np.arange(len(y)) % 2 == 0; on = np.where(half[:, None], labels_of(d, g), in_picture(d)); q = S.judge(np.where(on[..., None], np.where(np.isfinite(d['exact']), d['exact'], 0), 0), on * 1., net); out = {}
    def least(p, true):
        o = np.argsort(-p); n = np.arange(1, len(o) + 1); ok = np.flatnonzero((lower_bound(np.cumsum(true[o]), n) >= precision) & (p[o] >= .5))
        return float(p[o[ok[-1]]]) if len(ok) else 2.
    for i, (h, names) in enumerate(S.HEADS.items()): out[h] = [least(q[h][:, c], y[:, i] == c) for c in range(len(names))]
    left, right = (S.HEADS['facing'].index(f'image {s}') for s in ('left', 'right')); out['facing'][left] = out['facing'][right] = least(np.r_[q['facing'][:, left], q['facing'][:, right]], np.r_[y[:, 1] == left, y[:, 1] == right])
    w, r = (S.HEADS['activity'].index(n) for n in ('walking', 'running')); out['striding'] = [least(q['activity'][:, w] + q['activity'][:, r], np.isin(y[:, 2], (w, r)))]
    return {k: np.array(v) for k, v in out.items()}


def network(width, n_out, start=None):
    "Three hidden layers."
    import torch.nn as nn, torch
    net = nn.Sequential(nn.Linear(51, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))
    if start:
        w = np.load(start)
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


def people_in(files):
    "The people of several files that have joints to see, and their states."
    parts = [np.load(f) for f in files]; d = {k: np.concatenate([q[k] for q in parts]) for k in KEYS}
    d['scene'] = np.concatenate([q['scene'] + 10**6 * i for i, q in enumerate(parts)]); on = (d['keypoints'][..., 2] > 0).sum(1) > 3; d = {k: v[on] for k, v in d.items()}
    return d, states(d)


def main(files, epochs=14, start=None, rate=3e-3, width=256, out=None):
    import torch
    from torch import nn
    torch.manual_seed(0); torch.set_num_threads(1); d, y = people_in(files); held = d['scene'] % 20 == 19; part = lambda m: ({k: v[m] for k, v in d.items()}, y[m])
    net = network(width, sum(map(len, S.HEADS.values())), start); learn(net, *part(~held), epochs, rate) if epochs else None
    w = {f'{a}{i}': (m.weight.T if a == 'w' else m.bias).detach().numpy().astype(np.float16) for i, m in enumerate((m for m in net if isinstance(m, nn.Linear)), 1) for a in 'wb'}
    least = thresholds({k: v.astype(np.float32) for k, v in w.items()}, *part(held), rng(1, 'states'))
    np.savez_compressed(out or Path(S.__file__).parents[1] / 'assets' / 'states.npz', **w, **{f'least_{k}': v for k, v in least.items()})
    for h, v in least.items(): print(h, dict(zip(S.HEADS.get(h, ['striding']), v.round(3))))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); p.add_argument('files', nargs='+'); p.add_argument('--make', type=int); p.add_argument('--epochs', type=int, default=14); p.add_argument('--start'); p.add_argument('--rate', type=float, default=3e-3); p.add_argument('--out')
    a = p.parse_args()
    if a.make: make(a.make, a.files[0], *map(int, a.files[1:2]))
    else: main(a.files, a.epochs, a.start, a.rate, out=a.out)
