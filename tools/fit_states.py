"Learn posture, facing and gait from generated bodies and write posellm/assets/states.npz: python tools/fit_states.py PEOPLE.npz..., or --make N FILE to pose N people first."
import sys
import time
from pathlib import Path

import numpy as np

import posellm.explain.states as S
from posellm.core.rng import rng
from posellm.data.scene import SynthConfig, sample_people
from posellm.data.synth import V1, _FACE_NORMAL, _TURN
from posellm.explain.judge import activity_of, facing_of, posture_of

ANGLES = 'root_pitch root_spin root_roll spine_flex spine_side spine_twist neck_flex neck_side neck_twist'.split()  # then 15 of the left side, 15 of the right
HIP, KNEE = 11, 13  # of a side


def make(n, file, seed):
    "People of generated scenes as labelled: no picture, no depth layers, so hundreds a second."
    rows, i, t0 = [], 0, time.time()
    while len(rows) < n:
        rows += scene_people(seed, i, SynthConfig() if i % 2 else V1); i += 1
        if i % 5000 == 0: print(f'{len(rows)} people, {time.time() - t0:.0f} s', flush=True)
    np.savez_compressed(file, **{k: np.array(v) for k, v in zip(('keypoints', 'exact', 'world', 'camera', 'activity', 'angles', 'bbox', 'scene'), zip(*rows))})


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
    a, side = d['angles'], d['angles'][:, len(ANGLES):].reshape(-1, 2, 15)
    bend = np.concatenate([side[:, :, HIP], side[:, :, KNEE]], 1)
    names = [(posture_of(str(act), w, b), facing_of(x), activity_of(str(act))) for act, w, b, x in zip(d['activity'], d['world'], bend, d['camera'])]
    return np.array([[S.HEADS[h].index(n) for h, n in zip(S.HEADS, row)] for row in names])


def seen(d, g, flip=.5):
    "Inputs as an estimator would leave them: some joints missing, some displaced, trust that knows about it in part."
    k, n = d['keypoints'], len(d['keypoints']); v = k[..., 2]; exact = np.where(np.isfinite(d['exact']), d['exact'], 0); size = np.sqrt(np.maximum(d['bbox'][:, 2:].prod(1), 64))
    label = g.random(n) < .4                                                        # people as labelled
    base = np.where(v == 2, 2.8, np.where(v == 1, 1.0, -.6)) + g.normal(0, .8, (n, 1)) + g.normal(0, .9, v.shape)
    p = 1 / (1 + np.exp(-base)); near = g.random(v.shape) < p
    sd = np.where(near, .012 + .05 * (1 - p), .22) * size[:, None]
    places = exact + g.normal(0, 1, exact.shape) * sd[..., None]
    swap = g.random((n, 1)) < .04; places = np.where((swap & (np.arange(17) >= 11))[..., None], places[:, S._flip], places)
    x = S.inputs(np.where(label[:, None, None], np.where(v[..., None] > 0, exact, 0), places), np.where(label[:, None], v > 0, p))
    return x


def main(files, epochs=30, width=160):
    import torch
    import torch.nn as nn
    torch.manual_seed(0); torch.set_num_threads(1)
    parts = [np.load(f) for f in files]; d = {k: np.concatenate([q[k] for q in parts]) for k in ('keypoints', 'exact', 'world', 'camera', 'activity', 'angles', 'bbox', 'scene')}
    on = (d['keypoints'][..., 2] > 0).sum(1) > 3; d = {k: v[on] for k, v in d.items()}
    y = states(d); held = d['scene'] % 20 == 19; n_out = [len(c) for c in S.HEADS.values()]
    net = nn.Sequential(nn.Linear(51, width), nn.ReLU(), nn.Dropout(.05), nn.Linear(width, width), nn.ReLU(), nn.Dropout(.05), nn.Linear(width, sum(n_out)))
    opt = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=.01); g = rng(0, 'states')
    tr = {k: v[~held] for k, v in d.items()}; yt = torch.tensor(y[~held]); B = 512; steps = epochs * (len(yt) // B + 1); at = 0
    flips = torch.tensor([0, 1, 3, 2, 4])
    for e in range(epochs):
        x = seen(tr, g); m = g.random(len(x)) < .5; x[m] = S.mirrored_inputs(x[m]); x = torch.tensor(x, dtype=torch.float32); yy = yt.clone(); mt = torch.tensor(m); yy[mt, 1] = flips[yt[mt, 1]]
        for b in torch.tensor(g.permutation(len(x))).split(B):
            for q in opt.param_groups: q['lr'] = 3e-3 * min(1, at / 200) * (.5 + .5 * np.cos(np.pi * at / steps))
            loss = sum(nn.functional.cross_entropy(z, yy[b, i], label_smoothing=.01) for i, z in enumerate(net(x[b]).split(n_out, 1)))
            opt.zero_grad(); loss.backward(); opt.step(); at += 1
        if e % 10 == 9: print(e + 1, round(float(loss.detach()), 3), flush=True)
    lin = [m for m in net if isinstance(m, nn.Linear)]
    w = {f'{a}{i}': (m.weight.T if a == 'w' else m.bias).detach().numpy().astype(np.float16) for i, m in enumerate(lin, 1) for a in 'wb'}
    np.savez_compressed(Path(S.__file__).parents[1] / 'assets' / 'states.npz', **w); S._network.cache_clear()
    te = {k: v[held] for k, v in d.items()}; v = te['keypoints'][..., 2]; got = S.judge(np.where(v[..., None] > 0, te['keypoints'][..., :2], 0), (v > 0) * 1.)
    for i, h in enumerate(S.HEADS):
        q = got[h]; top = q.argmax(1); sure = q.max(1) > .9
        print(h, 'accuracy', round((top == y[held, i]).mean(), 3), 'of the sure', round((top == y[held, i])[sure].mean(), 3), 'share sure', round(sure.mean(), 3))
        for c, name in enumerate(S.HEADS[h]):
            say = q[:, c] > .9; t = y[held, i] == c; print(f'   {name:12} {t.sum():5} precision {t[say].sum() / max(say.sum(), 1):.3f} recall {(say & t).sum() / max(t.sum(), 1):.3f}')


if __name__ == '__main__':
    if sys.argv[1] == '--make': make(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 4242)
    else: main(sys.argv[1:])
