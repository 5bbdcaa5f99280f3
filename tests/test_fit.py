"Training spans crops, augmentation, network, codec and metrics: it learns, stops with a word, and goes on to the same bits."
import json
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from posellm.core.errors import PoseError
from posellm.core.rng import rng
from posellm.models.nets import SkipNet
from posellm.models.spec import ModelSpec
from posellm.models.weights import load_weights
from posellm.pose.codec import make_codec
from posellm.metrics.ap import evaluate
from posellm.pose.poses import Poses
from posellm.train.augment import Augment
from posellm.train.feed import Feed
from posellm.train.fit import Fit, fit
from posellm.train.predict import predict_poses
from posellm.train.recipe import recipe
from posellm.train.state import load_checkpoint

COLOURS = [tuple(int(c) for c in 80 + rng(1, 'colours', k).integers(0, 175, 3)) for k in range(17)]


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def people(n=8, seed=0, hw=(72, 60)):
    "People whose joints are discs of their own colour."
    images, anns = [], []
    for i in range(n):
        g = rng(seed, 'people', i); xy = np.array([(12 + 12*(k % 4), 10 + 13*(k//4)) for k in range(17)]) + g.uniform(-4, 4, (17, 2))
        images.append(dict(id=i, file_name=f'{i}.png', width=hw[1], height=hw[0], discs=xy))
        anns.append(dict(id=i+1, image_id=i, category_id=1, keypoints=np.c_[xy, np.full(17, 2)].ravel().tolist(), num_keypoints=17, bbox=[0, 0, 60, 72], area=2500., iscrowd=0))
    return Poses.from_coco(dict(images=images, annotations=anns, categories=[dict(id=1, name='person')]), skeleton='coco17')


def drawn(record):
    im = np.full((record['height'], record['width'], 3), 30, np.uint8)
    for c, (x, y) in zip(COLOURS, record['discs']): cv2.circle(im, (round(x*16), round(y*16)), 4*16, c, -1, cv2.LINE_AA, 4)
    return im


def net(seed=0, loss='ce'):
    torch.manual_seed(seed); m = SkipNet(17, widths=(16, 24, 32, 32), blocks=(1, 1, 1, 1), head_width=24)
    m.spec = ModelSpec('toy', 'coco17', (64, 48), (16, 12), codec=make_codec('udp', (64, 48), (16, 12), sigma=1.).to_dict(), loss=loss)
    return m


def settings(steps=(4, 8), **over):
    base = dict(batch=8, augment=Augment(), precision='fp32', loggers=(), cache=False, workers=0, ema=.9, val_every=4)
    return recipe('small', steps=steps, **{**base, **over})


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in b) and a.keys() == b.keys()


def test_overfits_eight_people(tmp_path):
    cfg = settings((0, 140), augment=Augment.none(), lr=(1., 5e-3), val_every=70); p = people()
    model = net(); h = fit(model, p, p, cfg, tmp_path, read=drawn)
    assert h.rows[0]['row'] == 'unchanged' and h.rows[0]['ap'] < .2
    assert h.rows[-1]['row'] == 'phase2' and h.rows[-1]['ap'] > .85, h.rows[-1]['stats']
    names = {f.name for f in tmp_path.iterdir()}
    assert {'model.safetensors', 'model.json', 'last.ckpt', 'history.jsonl', 'results_unchanged.json', 'results_phase2.json', 'checkpoint_epoch_140.ckpt'} <= names
    assert [n for n in sorted(names) if n.startswith('checkpoint_epoch_')] == [f'checkpoint_epoch_{e}.ckpt' for e in (120, 125, 130, 135, 140)] # the newest: eight people are passed quickly
    again = net(seed=5); load_weights(again, tmp_path)
    assert equal(again.state_dict(), model.state_dict()) # the model ends with the weights that were kept
    assert np.allclose(predict_poses(again, p, flip=False, read=drawn, precision='fp32').xy, Poses.from_results(tmp_path/'results_phase2.json', p).xy, atol=1e-3)


def test_training_that_harms_hands_on_its_start(tmp_path, caplog):
    "Labels of other joints: whoever chooses the weights finds the start better, keeps it, and says so."
    p = people(); wrong = replace(p, xy=np.roll(p.xy, 5, 1)); model = net(); before = state(model)
    with caplog.at_level('WARNING'): h = fit(model, wrong, p, settings((0, 60), augment=Augment.none(), lr=(1., 5e-3), val_steps=60), tmp_path, read=drawn)
    assert [l['step'] for l in h.history] == [0, 60] and h.history[1]['val_loss'] > h.history[0]['val_loss'] and h.best['step'] == 0
    assert equal(state(model), before) and 'better than the start' in caplog.text and h.rows[-1]['ap'] == h.rows[0]['ap']
    row = Poses.from_results(tmp_path/h.rows[-1]['results'], p); again = predict_poses(model, p, read=drawn, flip=h.rows[-1]['flip']) # nobody was asked twice: the row must still be that of the weights handed on
    assert row.file != str(tmp_path/h.rows[0]['results']) and np.allclose(row.xy, again.xy, atol=1e-3) and abs(evaluate(p, again).stats['AP'] - h.rows[-1]['ap']) < 1e-9


class Killed(Exception): pass


def run_killed_at(kill, folder, cfg, monkeypatch, p):
    "Train, die like a killed process between steps (no saving on the way out), and go on."
    step = Fit.train_step
    def dying(self, hosts):
        if self.step == kill and not resumed: raise Killed
        return step(self, hosts)
    monkeypatch.setattr(Fit, 'train_step', dying)
    resumed = False; model = net()
    with pytest.raises(Killed): fit(model, p, p, cfg, folder, read=drawn)
    resumed = True; model = net(seed=99) # another start: everything has to come from the file
    h = fit(model, p, p, cfg, folder, resume=True, read=drawn)
    monkeypatch.setattr(Fit, 'train_step', step)
    return model, h


@pytest.mark.parametrize('kill, workers, optimizer', [(3, 0, 'adamw'), (6, 1, 'muon'), (11, 2, 'adam')])
def test_resume_is_bit_equal(kill, workers, optimizer, tmp_path, monkeypatch):
    p = people(12); cfg = settings((4, 8), batch=4, accumulate=2, val_steps=2, workers=workers, optimizer=optimizer) # batches straddle passes
    whole = net(); h0 = fit(whole, p, p, replace(cfg, workers=0), tmp_path/'whole', read=drawn)
    model, h = run_killed_at(kill, tmp_path/'killed', cfg, monkeypatch, p)
    assert equal(state(model), state(whole))
    strip = lambda rows: [{k: v for k, v in r.items() if k in ('step', 'loss', 'lr', 'grad_norm', 'ap', 'val_loss')} for r in rows]
    assert strip(h.history) == strip(h0.history) and h.best['step'] == h0.best['step']
    a, b = (load_checkpoint(tmp_path/n/'last.ckpt') for n in ('whole', 'killed'))
    assert equal(a['model'], b['model']) and equal(a['ema']['shadow'], b['ema']['shadow'])
    lines = [json.loads(s) for s in (tmp_path/'killed'/'history.jsonl').read_text().splitlines()]
    assert [r['step'] for r in lines] == [r['step'] for r in h0.history]


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch):
    p, cfg = people(), settings((2, 6), val_every=100.)
    whole = net(); fit(whole, p, None, cfg, read=drawn)
    step = Fit.train_step
    def interrupted(self, hosts):
        if self.step == 3: signal.raise_signal(signal.SIGINT) # in the middle of a step
        return step(self, hosts)
    monkeypatch.setattr(Fit, 'train_step', interrupted)
    with pytest.raises(KeyboardInterrupt, match='step 4'): fit(net(), p, None, cfg, tmp_path, read=drawn)
    monkeypatch.setattr(Fit, 'train_step', step)
    assert load_checkpoint(tmp_path/'last.ckpt')['step'] == 4
    model = net(7); fit(model, p, None, cfg, tmp_path, resume=True, read=drawn)
    assert equal(state(model), state(whole))
    before = (tmp_path/'last.ckpt').stat().st_mtime_ns
    fit(net(8), p, None, cfg, tmp_path, resume=True, read=drawn) # finished: nothing is trained again
    assert (tmp_path/'last.ckpt').stat().st_mtime_ns == before


def test_resume_refuses_what_does_not_belong(tmp_path):
    p, cfg = people(), settings((1, 1)); fit(net(), p, None, cfg, tmp_path, read=drawn)
    with pytest.raises(PoseError) as e: fit(net(), p, None, settings((1, 1), weight_decay=.5), tmp_path, resume=True, read=drawn)
    assert 'weight_decay' in str(e.value) and '0.5' in str(e.value)
    with pytest.raises(PoseError) as e: fit(net(), p, None, settings((1, 1), batch=3), tmp_path, resume=True, read=drawn)
    assert all(w in str(e.value) for w in ('last.ckpt', 'batch', 'found 3', 'allowed', 'do: give the same settings'))
    with pytest.raises(PoseError) as e: fit(net(), people(seed=3), None, cfg, tmp_path, resume=True, read=drawn)
    assert 'training data' in str(e.value)
    assert all(w in str(e.value) for w in ('last.ckpt', 'people in', 'images', 'allowed', 'do:'))
    (tmp_path/'last.ckpt').write_bytes((tmp_path/'last.ckpt').read_bytes()[:999])
    with pytest.raises(PoseError) as e: fit(net(), p, None, cfg, tmp_path, resume=True, read=drawn)
    assert 'last.ckpt' in str(e.value)


def test_resume_needs_a_folder():
    with pytest.raises(PoseError, match='run_dir: without a run folder there is nothing to go on from'): fit(net(), people(2), None, settings((1, 1)), resume=True, read=drawn)


def test_a_nan_is_caught_before_it_reaches_weights_or_average(tmp_path, monkeypatch):
    p = people(); good = {}; batch = Feed.batch
    def poisoned(self, host):
        x, *rest = batch(self, host); job = good.get('job')
        if job is not None and job.step == 2: x = x*float('nan'); good['before'] = state(job.model)
        return x, *rest
    monkeypatch.setattr(Feed, 'batch', poisoned)
    step = Fit.train_step
    def watch(self, hosts): good['job'] = self; return step(self, hosts)
    monkeypatch.setattr(Fit, 'train_step', watch)
    with pytest.raises(PoseError) as e: fit(net(), p, p, settings((1, 5), val_steps=1), tmp_path, read=drawn)
    assert 'not finite' in str(e.value) and 'step 2' in str(e.value) and 'lr' in str(e.value)
    params = dict(good['job'].model.named_parameters())
    assert all(torch.equal(params[k].detach(), good['before'][k]) for k in params)
    assert all(torch.isfinite(v).all() for v in good['job'].ema.shadow.values())
    assert load_checkpoint(tmp_path/'last.ckpt')['step'] == 2 # the last good state is on disk


def test_unlabelled_keypoints_teach_nothing():
    p = people(4); p.vis[:, 5] = 0; p.xy[:, 5] = 0
    model = net(); job = Fit(model, p, None, settings((0, 3), batch=4, augment=Augment.none()), read=drawn)
    x, target, weight, on = job.feed.batch(job.feed.host(0))
    assert (weight[:, 5] == 0).all() and (weight[:, 4] == 1).all()
    out = model(x); out.retain_grad(); job.loss(out, target, weight).backward()
    assert out.grad[:, 5].abs().max() == 0 and out.grad[:, 4].abs().max() > 0


def test_empty_and_hopeless_data():
    with pytest.raises(PoseError) as e: fit(net(), people(2)[[]], None, settings(), read=drawn)
    assert 'split is empty' in str(e.value)
    p = people(4); p.xy += 1000
    with pytest.raises(PoseError) as e: fit(net(), p, None, settings(augment=Augment.none()), read=drawn)
    assert 'all targets are zero' in str(e.value)


@pytest.mark.parametrize('loss', ['ce', 'mse'])
def test_confidences_are_sensible(loss):
    p = people(8); model = net(loss=loss)
    fit(model, p, None, settings((0, 80), augment=Augment.none(), lr=(1., 4e-3), val_every=1000.), read=drawn)
    conf = predict_poses(model, p, read=drawn).conf
    assert (conf >= 0).all() and (conf <= 1).all()
    if loss == 'ce': assert .3 < np.median(conf) <= 1


def test_whole_image_networks_and_unknown_mirrors(tmp_path):
    from posellm.pose.skeleton import make_skeleton
    p = people(4); model = net(); model.spec = replace(model.spec, crop='image', padding=1.)
    cfg = settings((0, 3), batch=4); job = Fit(model, p, p, cfg, read=drawn)
    assert job.cfg.augment.half_body == 0 and np.allclose(job.val.store.center, [30, 36]) # the photograph's middle
    h = fit(model, p, p, cfg, tmp_path, read=drawn); assert h.rows[-1]['flip'] and len(h.rows) == 2
    strange = make_skeleton('strange', [f'point{k}' for k in range(17)], sigmas=[.1]*17); assert strange.flip is None
    q = replace(p, skeleton=strange); model = net(); model.spec = replace(model.spec, skeleton=strange)
    h = fit(model, q, q, cfg, tmp_path/'strange', read=drawn); assert h.rows[-1]['flip'] is False
