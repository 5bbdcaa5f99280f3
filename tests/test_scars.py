"What went wrong, unnoticed, in other people's training loops, and must not here. (An ensemble of one, and points that a member lacks: test_refine.)"
import gc
import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_fit import drawn, equal, net, people, settings, state

from posellm.core.errors import PoseError
from posellm.core.rng import rng
from posellm.data.crops import CropStore
from posellm.train.augment import Augment, draw_views
from posellm.train.feed import Feed
from posellm.train.fit import Fit, fit
from posellm.train.hardware import Machine, has_bf16, resolve
from posellm.train.loss import NotFinite
from posellm.train.resume import RETRIES
from posellm.train.state import check_weights, load_checkpoint

SHORT = dict(batch=4, val_steps=2, augment=Augment.none())


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def poison(monkeypatch):
    "poison(when, what): from then on the batch of a job for which `when(job)` holds is spoilt by `what(x, target, weight)`."
    seen = {}
    def start(when, what=lambda x, t, w: (x*float('nan'), t, w)):
        step, batch = Fit.train_step, Feed.batch
        def watch(self, hosts): seen['job'] = self; return step(self, hosts)
        def spoilt(self, host):
            x, t, w, on = batch(self, host)
            return (*what(x, t.clone(), w), on) if seen.get('job') and when(seen['job']) else (x, t, w, on)
        monkeypatch.setattr(Fit, 'train_step', watch); monkeypatch.setattr(Feed, 'batch', spoilt)
    return start


def finite(d): return all(torch.isfinite(v).all() for v in d.values() if v.is_floating_point())


def test_a_bad_step_goes_back_says_so_and_takes_smaller_steps(tmp_path, poison, caplog):
    full = fit(net(), people(), None, settings((0, 8), **SHORT), read=drawn).history
    poison(lambda job: job.step == 5 and job.slower > .3) # as a loss that only too large a rate blows up
    with caplog.at_level(logging.WARNING): h = fit(net(), people(), people(4, seed=2), settings((0, 8), **SHORT), tmp_path, read=drawn)
    said = [r.message for r in caplog.records if 'last good state' in r.message]
    assert len(said) == 2 and 'step 5' in said[0] and 'back to step 4' in said[0] and '0.5 of the learning rate' in said[0] and '0.25' in said[1]
    d = load_checkpoint(tmp_path/'last.ckpt')
    assert d['step'] == h.steps == 8 and d['slower'] == .25 and d['trips'] == 0 and finite(d['model']) and finite(d['ema']['shadow'])
    assert [r['step'] for r in h.history] == [0, 2, 4, 6, 8] and h.history[-1]['lr'] == full[-1]['lr']/4
    # without a folder the last good state is kept in memory
    assert fit(net(), people(), people(4, seed=2), settings((0, 8), **SHORT), read=drawn).steps == 8


def test_what_never_gets_better_stops_with_what_it_knows(tmp_path, poison):
    poison(lambda job: job.step == 5)
    model = net()
    with pytest.raises(NotFinite) as e: fit(model, people(), people(4, seed=2), settings((0, 8), **SHORT), tmp_path, read=drawn)
    for word in ('step 5', 'lr', 'people [', f'{RETRIES} returns to step 4', 'best weights so far', 'AP', 'lower learning rate'): assert word in str(e.value), word
    d = load_checkpoint(tmp_path/'last.ckpt')
    assert d['step'] == 4 and d['trips'] == RETRIES and finite(d['model']) and finite(d['ema']['shadow']) and finite(state(model)) and (tmp_path/'model.safetensors').is_file()


@pytest.mark.parametrize('what', ['gradient', 'target', 'weight', 'statistic'])
def test_the_right_variable_is_looked_at(what, poison, monkeypatch):
    "Loss finite and gradient not; a target or a weight that is not; statistics that are not while every parameter is."
    nan = float('nan'); job = Fit(net(), people(), None, settings((0, 4), **SHORT), read=drawn); before = state(job.model)
    if what == 'gradient':
        loss = job.loss; job.loss = lambda out, t, w: loss(out, t, w) + (out*0).square().sum().sqrt() # d sqrt(0) = inf, times 0
    elif what == 'statistic': next(v for k, v in job.model.state_dict().items() if 'running_mean' in k)[0] = nan
    else: poison(lambda job: True, (lambda x, t, w: (x, t*nan, w)) if what == 'target' else (lambda x, t, w: (x, t, w*nan)))
    with pytest.raises(NotFinite): job.train_step([job.feed.host(0)])
    params = dict(job.model.named_parameters())
    if what != 'statistic': assert all(torch.equal(before[k], v.detach()) for k, v in params.items()) # stopped before the weights were touched
    assert finite({k: v for k, v in job.ema.shadow.items() if k in params})


def test_after_a_return_the_same_batches_come_and_every_step_counts(poison, monkeypatch):
    "A stale cursor after a return feeds later batches, or never completes an accumulation."
    fed, moved, batch, step = [], [], Feed.batch, Fit.train_step
    poison(lambda job: job.step == 5 and job.slower == 1); spoilt = Feed.batch
    def note(self, host): fed.append((places['job'].step, host['rows'].tolist())); return spoilt(self, host)
    places, inner = {}, Fit.train_step
    def watch(self, hosts):
        places['job'] = self; w = next(self.model.parameters()).detach().clone(); out = inner(self, hosts)
        moved.append(not torch.equal(w, next(self.model.parameters()).detach())); return out
    monkeypatch.setattr(Feed, 'batch', note); monkeypatch.setattr(Fit, 'train_step', watch)
    fit(net(), people(12), None, settings((0, 8), accumulate=2, workers=2, **SHORT), read=drawn)
    steps = [s for s, _ in fed]; again = steps.index(4, steps.index(5))
    assert steps[:again] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and steps[again:] == [4, 4, 5, 5, 6, 6, 7, 7]
    assert fed[8:11] == fed[again:again+3] and all(moved)


def test_a_return_keeps_nothing_alive(poison):
    poison(lambda job: job.step == 3 and job.slower > .2)
    count = lambda: (gc.collect(), sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects()))[1]
    job = Fit(net(), people(), None, settings((0, 6), **SHORT), read=drawn); seen = []; back = Fit.roll_back
    def note(self, why): back(self, why); seen.append(count())
    job.roll_back = lambda why: note(job, why)
    from posellm.train.callbacks import Journal
    job.loop(Journal(None), lambda: False)
    assert len(seen) == 3 and seen[2] <= seen[0] + 2, seen


def test_half_precision_is_left_without_the_step_that_made_it_leave(poison):
    "The scaler would have skipped that step; the optimizer of fp32 must not make it."
    poison(lambda job: job.step == 0, lambda x, t, w: (x, t, w)); job = Fit(net(), people(), None, settings((0, 4), **SHORT), read=drawn)
    loss = job.loss; job.loss = lambda out, t, w: loss(out, t, w) + (out*0).square().sum().sqrt()
    job.precision, job.watch.patience = 'fp16', 1; before = state(job.model)
    job.train_step([job.feed.host(0)])
    assert job.precision == 'fp32' and job.step == 1 and all(torch.equal(before[k], v.detach()) for k, v in job.model.named_parameters())
    d = job.state(); other = Fit(net(3), people(), None, settings((0, 4), **SHORT), read=drawn); other.precision = 'fp16'
    other.restore(d); assert other.precision == 'fp32' and equal(state(other.model), state(job.model)) # a resumed run does not try again


def test_no_empty_target_passes_silently():
    p = people(4); p.xy += 1000
    with pytest.raises(PoseError, match='all targets are zero'): fit(net(), p, None, settings((0, 3), batch=4, accumulate=2, augment=Augment.none()), read=drawn)
    q = people(1); q.vis[:, 3:] = 0; q.xy[:] += 1000 # one person with three keypoints may be moved out of the picture
    fit(net(), q, None, settings((0, 1), batch=1, augment=Augment.none()), read=drawn)


def test_a_scan_that_found_nothing_is_not_remembered(tmp_path):
    p = people(4)
    for im in p.images: im['path'] = str(tmp_path/'images'/im['file_name'])
    make = lambda: CropStore.make(p, (64, 48), cache=tmp_path/'cache')
    with pytest.raises(PoseError, match='no image of these people could be read'): make()
    assert not list((tmp_path/'cache').glob('*'))
    (tmp_path/'images').mkdir()
    for im in p.images[:3]: cv2.imwrite(im['path'], drawn(im))
    (tmp_path/'images'/'3.png').write_bytes(b'not a picture')
    assert len(make()) == 3
    cv2.imwrite(p.images[3]['path'], drawn(p.images[3])); assert len(make()) == 4 # mended: cut again
    assert all(s.any() for s in make().pixels)


def test_mirrored_people_keep_their_hidden_joints_in_place():
    "Joints that are not labelled must not shift the others when left and right are exchanged."
    p = people(6); g = rng(0, 'hide'); off = g.random(p.xy.shape[:2]) < .4; p.vis[off] = 0; xy = np.where(off[..., None], 0., p.xy)
    aug = replace(Augment.none(), flip=1.); perm = p.skeleton.flip
    s = CropStore.make(p, (64, 48), read=drawn); n = np.arange(6)
    v = draw_views(aug, s.center, s.scale, xy, ~off, n, 0*n, 0, p.skeleton, (64, 48)); u = draw_views(Augment.none(), s.center, s.scale, p.xy, ~off, n, 0*n, 0, p.skeleton, (64, 48))
    assert v.flip.all() and np.array_equal(v.on, ~off[:, perm])
    there = v.on; mirrored = np.stack([47 - u.xy[..., 0], u.xy[..., 1]], -1)[:, perm]
    assert np.allclose(v.xy[there], mirrored[there])


def test_average_never_takes_in_what_is_not_finite():
    job = Fit(net(), people(), None, settings((0, 4), **SHORT), read=drawn); kept = {k: v.clone() for k, v in job.ema.shadow.items()}
    with torch.no_grad(): next(job.model.parameters())[0] = float('inf')
    for _ in range(3):
        with pytest.raises(NotFinite, match='kept out of the average'): job.ema.update()
    assert equal(job.ema.shadow, kept)
    with pytest.raises(NotFinite): check_weights(job.model)


def test_a_killed_writer_leaves_nothing_behind(tmp_path):
    (tmp_path/'.last.ckpt.0123abcd.tmp~').write_bytes(b'half'); (tmp_path/'mine.txt').write_text('kept')
    fit(net(), people(), None, settings((0, 1), **SHORT), tmp_path, read=drawn)
    assert not list(tmp_path.glob('.*tmp~')) and (tmp_path/'mine.txt').is_file()
    assert load_checkpoint(tmp_path/'last.ckpt')['step'] == 1


def test_a_full_memory_is_said_under_all_its_names_and_nothing_is_tried_with_another_batch(tmp_path, monkeypatch):
    "cuDNN's internal error is often a full memory in disguise; a batch that was chosen is not replaced by a default."
    sizes, batch = [], Feed.batch
    def full(self, host):
        sizes.append(len(host['rows']))
        if len(sizes) == 3: raise RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR')
        return batch(self, host)
    monkeypatch.setattr(Feed, 'batch', full)
    with pytest.raises(PoseError) as e: fit(net(), people(), None, settings((0, 4), **SHORT), tmp_path, read=drawn)
    for word in ('memory is full', '4 people', 'CUDNN_STATUS_INTERNAL_ERROR', 'halve batch'): assert word in str(e.value), word
    assert sizes == [4, 4, 4] and load_checkpoint(tmp_path/'last.ckpt')['step'] <= 2


def test_emulated_bf16_does_not_count(monkeypatch):
    "A T4 answers yes when it is asked whether it supports bf16, and computes in it slowly."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    assert not has_bf16('cuda')
    p, notes = resolve('rtx4060', Machine('cuda', 'Tesla T4', 15., has_bf16('cuda'), 4))
    assert p.precision == 'fp16' and any('emulation' in n for n in notes)
