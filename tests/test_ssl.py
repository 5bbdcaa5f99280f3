"""Learning from unlabelled people: geometry of hard views, what gradients reach, poisoned data, planted wrong answers, stopping and going on."""
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

import posellm.ssl.semi as semi_module
from posellm.core.errors import PoseError
from posellm.data.coco import load_data
from posellm.data.images import read_image
from posellm.data.synth import synth_v1
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import paired_bootstrap
from posellm.models.zoo import create_model
from posellm.pose.codec import make_codec
from posellm.pose.geometry import apply_affine
from posellm.ssl.brake import why_stop
from posellm.ssl.collapse import consistency_run
from posellm.ssl.methods import METHODS, passes, settings
from posellm.ssl.occlude import OCCLUSIONS, draw_occlusion, occlude
from posellm.ssl.paths import harden, joints_of, turned_target
from posellm.ssl.semi import Semi, fit_semi
from posellm.ssl.toy import dot_config, dot_net, dot_people, draw_dots
from posellm.ssl.turn import Turn, draw_turn, in_cells, warp_batch
from posellm.ssl.twin import Twin
from posellm.ssl.unlabelled import hide_labels
from posellm.stages.ssl import order_of
from posellm.train.augment import Augment
from posellm.train.fit import History, fit
from posellm.train.loss import heatmap_ce, heatmap_mse
from posellm.train.recipe import Phase, recipe


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(n)


@pytest.fixture(scope='module')
def start():
    "A network that knows the home domain."
    net = dot_net(); fit(net, dot_people(24), None, dot_config(150), read=draw_dots); return net.state_dict()


def net_from(state, n=1):
    nets = [dot_net() for _ in range(n)]
    for m in nets: m.load_state_dict(state)
    return nets[0] if n == 1 else Twin(*nets)


# ---- geometry -------------------------------------------------------------------------------------------------

@hyp(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(['udp', 'msra']), rotate=st.floats(0, 90), scale=st.floats(0, .4), normalised=st.booleans())
def test_a_turned_map_stands_where_the_turned_joint_would_be_drawn(seed, kind, rotate, scale, normalised):
    codec = make_codec(kind, (128, 96), sigma=2.); stride = codec._stride(torch.zeros(1)).numpy(); rs = np.random.default_rng(seed)
    M = draw_turn(Turn(rotate, 1., scale, normalised), 12, (128, 96), seed); xy = np.round(rs.uniform((24, 32), (72, 96), (12, 1, 2))/stride)*stride # on cell centres, so that msra's rounding plays no part
    want = apply_affine(M, xy)/stride; inside = ((want > 6) & (want < [17, 25])).all((1, 2)) # a map cut off at the rim has its centre elsewhere
    warped = warp_batch(codec.encode(xy)[0], in_cells(M, stride))
    gy, gx = torch.meshgrid(torch.arange(32.), torch.arange(24.), indexing='ij'); w = warped[:, 0].clamp_min(0); at = torch.stack([(w*gx).sum((1, 2)), (w*gy).sum((1, 2))], -1)/w.sum((1, 2))[:, None]
    off = np.linalg.norm(at.numpy() - want[:, 0], axis=-1)[inside]
    # the centre of mass moves with the map; interpolation and the square edges of the Gaussian cost a little
    assert len(off) == 0 or off.max() < .3


def test_the_released_rotation_shears_upright_crops_and_ours_does_not():
    for normalised, shears in ((False, False), (True, True)):
        A = draw_turn(Turn(45., 1., 0., normalised), 50, (128, 96), 0)[..., :2]
        assert (np.abs(A @ A.swapaxes(1, 2) - np.eye(2)).max() > .05) == shears


@pytest.mark.parametrize('kind', OCCLUSIONS)
@pytest.mark.parametrize('exchange', [False, True])
def test_occlusions_change_nothing_outside_their_reach_and_survive_every_shape(kind, exchange):
    rs = np.random.default_rng(0)
    for hw, n in (((128, 96), 5), ((64, 96), 1), ((33, 47), 2)):
        x = torch.rand(n, 3, *hw); held = x.clone(); xy = torch.tensor(rs.uniform(-20, 200, (n, 4, 2)), dtype=torch.float32) # joints may lie outside
        y = occlude(x, xy, kind, draw_occlusion(kind, n, 4, hw, 0, 1), exchange)
        assert y.shape == x.shape and torch.equal(x, held) and torch.isfinite(y).all()
        if kind != 'MU': assert (y == x).flatten(1).float().mean() > .3


# ---- gradients and sums ---------------------------------------------------------------------------------------

def job_of(state, paths, nets=1, train=8, **over):
    j = Semi(net_from(state, nets), dot_people(train), dot_people(8, 1), None, dot_config(20, paths=paths, nets=nets, teacher=over.pop('teacher', 'other' if nets == 2 else 'own'), **over), read=draw_dots)
    j.enter_phase(); j.set_lr(); j.model.train(); return j


def grads(j, place=0):
    told = j.unlabelled_pass(j.feed.host(place), 1.); return told, {n: p.grad.clone() for n, p in j.model.named_parameters() if p.grad is not None}


def test_every_path_counts_and_equal_paths_add_up(start):
    one, g1 = grads(job_of(start, ('A',))); three, g3 = grads(job_of(start, ('A',)*3)); two, g2 = grads(job_of(start, ('A', 'JC')))
    assert three['unsup'] == pytest.approx(3*one['unsup'], rel=1e-3) and two['unsup'] > one['unsup']
    for n in g1: assert torch.allclose(g3[n], 3*g1[n], rtol=1e-2, atol=1e-4*float(g1[n].abs().max()) + 1e-6), n
    assert any((g2[n] - g1[n]).abs().max() > 1e-4 for n in g1)


def test_no_gradient_reaches_the_easy_branch(start, monkeypatch):
    teach, got = semi_module.teach, []
    def watch(job, x): maps = teach(job, x.requires_grad_()); got.append((x, maps)); return maps
    monkeypatch.setattr(semi_module, 'teach', watch); monkeypatch.setattr(semi_module, 'harden', lambda x, *a, **k: harden(x.detach(), *a, **k))
    for teacher in ('own', 'average', 'start', 'other'): got.clear(); j = job_of(start, ('JC',), 2 if teacher == 'other' else 1, teacher=teacher); grads(j); assert all(not m.requires_grad for m in got[0][1]) and got[0][0].grad is None


def test_a_background_network_has_the_higher_loss_under_a_good_teacher():
    codec = make_codec('udp', (64, 48), (16, 12), sigma=1.); xy = torch.rand(16, 17, 2)*torch.tensor([30., 40.]) + 8; maps, _ = codec.encode(xy); M = draw_turn(Turn(), 16, (64, 48), 0)
    for loss, nothing, right in ((heatmap_mse, torch.zeros_like, lambda t: t), (heatmap_ce, torch.zeros_like, lambda t: t.clamp_min(1e-6).log())):
        t, w = turned_target(maps, M, codec, inside=loss is heatmap_ce); assert loss(right(t), t, w) < .1*loss(nothing(t), t, w)


def test_gradients_through_both_views_collapse_and_the_watch_sees_it():
    "The naive loss falls further while the maps lose their peaks; easy teaches hard keeps them."
    (naive, faded, _), (fair, kept, _) = consistency_run(True), consistency_run(False)
    assert naive[-1] < fair[-1] and faded[-1]/faded[0] < .75*kept[-1]/kept[0], (faded, kept)
    watched = lambda peaks: why_stop([dict(step=i, peak=p, background=.95 if p < .2 else .1) for i, p in enumerate(peaks)], 3)
    assert 'background' in watched([.6, .1, .05, .04]) and watched([.6, .1, .05]) == '' and watched([.6, .5, .5, .5]) == ''


# ---- the interface --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs_stops_anywhere_and_goes_on(method, start, tmp_path):
    few, many, shard = dot_people(12), dot_people(16, 1, .5), dot_people(16, 2, .5)
    cfg = settings(method, dot_config(6, val_steps=3, ema=.9)); nets = cfg.nets
    def run(folder, resume=False): m = net_from(start, nets); h, j = fit_semi(m, few, many if cfg.paths else None, shard, cfg, folder, resume, draw_dots); return m, h, j
    whole, h, j = run(tmp_path/'a'); step = semi_module.Fit.train_step
    def cut(self, hosts):
        if self.step == 4: raise KeyboardInterrupt
        return step(self, hosts)
    semi_module.Fit.train_step = cut
    try:
        with pytest.raises(KeyboardInterrupt): run(tmp_path/'b')
    finally: semi_module.Fit.train_step = step
    again, h2, j2 = run(tmp_path/'b', True)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)
    assert [(l['ap'], l.get('delta')) for l in h.history] == [(l['ap'], l.get('delta')) for l in h2.history] and (tmp_path/'b'/'model.safetensors').is_file()
    if method == 'supervised': assert list(j.checks) == list(j2.checks) == [0, 3, 6] # a yardstick has all its checks, interrupted or not
    assert passes(cfg)[0] == nets*(1 + len(cfg.paths))


@pytest.mark.parametrize('method', ['pseudo-label', 'mean-teacher', 'multiaugs-dual'])
def test_bf16_teaches_as_fp32_does(method, start, monkeypatch):
    monkeypatch.setattr('posellm.train.device.has_bf16', lambda device='cpu': True) # emulated where the processor has none
    few, many = dot_people(16), dot_people(32, 1, .5); ends = {}
    for precision in ('fp32', 'bf16'): cfg = settings(method, dot_config(12, 1e-3, val_steps=4, precision=precision)); m = net_from(start, cfg.nets); h, j = fit_semi(m, few, many, None, cfg, read=draw_dots); ends[precision] = h.history, m.state_dict(), j.precision
    (a, w, _), (b, v, used) = ends['fp32'], ends['bf16']; assert used == 'bf16' and len(a) == len(b) > 2 and all(t.dtype == torch.float32 for t in v.values() if t.is_floating_point())
    assert any(not torch.equal(w[k], v[k]) for k in w) # the halves were used
    for x, y in zip(a, b):
        for k in ('sup', 'unsup', 'peak', 'background'): assert y[k] == pytest.approx(x[k], rel=.05, abs=.02), (k, x, y)


def test_labelled_people_are_drawn_whoever_is_unlabelled(start):
    "Yardstick and student see the same labelled people in the same views; unlabelled ones follow a stream of their own."
    rows = lambda job: [[(v['rows'].tolist(), v['view'].M.tolist()) for v in job.feed.host(place)['labelled']] for place in range(3)]
    few = dot_people(16); jobs = [Semi(net_from(start), few, u, None, dot_config(2, paths=p), read=draw_dots) for u, p in ((hide_labels(dot_people(16, 1)), ('JC',)), (hide_labels(dot_people(9, 5)), ('JC',)), (None, ()))]
    assert rows(jobs[0]) == rows(jobs[1]) == rows(jobs[2]) and jobs[0].feed.host(0)['easy']['rows'].tolist() != jobs[0].feed.host(0)['labelled'][0]['rows'].tolist()


def test_accumulation_runs_and_other_unlabelled_people_are_refused_on_resumption(start, tmp_path):
    few, many = dot_people(16), dot_people(16, 1)
    cfg = dot_config(2, paths=('JC',), accumulate=2, batch=4); fit_semi(net_from(start), few, many, None, cfg, tmp_path, read=draw_dots)
    with pytest.raises(PoseError, match='unlabelled'): fit_semi(net_from(start), few, dot_people(16, 9), None, cfg, tmp_path, True, draw_dots)


def test_of_equals_the_yardstick_is_handed_on():
    h = lambda ap, step=0: History([], [], dict(ap=ap, step=step), 0., 10, 0.)
    assert [order_of(dict(supervised=h(.3), multiaugs=h(x)))[-1][0] for x in (.29, .3, .31)] == ['supervised', 'supervised', 'multiaugs']


# ---- poison ---------------------------------------------------------------------------------------------------

def no_people(record): return np.full((72, 60, 3), 30, np.uint8) if record.get('poison') == 'nobody' else draw_dots(record)[:, ::-1].copy() if record.get('poison') == 'mirrored' else draw_dots(record)

def poisoned(kind):
    p = hide_labels(dot_people(32, 5, {'domain': 2.}.get(kind, 0.)))
    if kind == 'boxes': return replace(p, bbox=p.bbox*[0, 0, .25, .25] + [45, 50, 0, 0])
    return replace(p, images=[{**im, 'poison': kind} for im in p.images])

@pytest.mark.parametrize('kind', ['nobody', 'boxes', 'domain', 'mirrored'])
def test_poison_never_leaves_it_significantly_below_the_start(kind, start):
    few, shard, val = dot_people(16), dot_people(60, 2, .3), dot_people(100, 3, .3)
    cfg = dot_config(24, method='multiaugs', paths=('JO+CO', 'JC+CM'), val_steps=3, lr=6e-3, patience=2)
    h, j = fit_semi(net_from(start), few, poisoned(kind), shard, cfg, read=no_people, reports=dict(val=val))
    a, b = (r['stats']['AP'] for r in h.rows); first, last = j.row_poses[0], j.row_poses[-1] # the same where the start was kept, which is asked once
    d = paired_bootstrap(evaluate(val, first), evaluate(val, last), n=300); print(kind, d, h.stopped or 'ran to its end')
    assert d.verdict != 'worse', d


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    "Labelled, hidden and reported people of synth-v1, and boxes of others."
    d = tmp_path_factory.mktemp('poison')/'set'; synth_v1().write(d, 1, 300, 300, 0); train, val = load_data(d, 'train'), load_data(d, 'val')
    ids = [im['id'] for im in train.images]; n = len(ids)//4
    return train.take_images(ids[:n]), train.take_images(ids[n:3*n]), val, train.take_images(ids[3*n:])


def spoilt(kind, people):
    "Unlabelled people as they should not be, and how their pictures are read."
    p = hide_labels(people)
    if kind == 'nobody': p = replace(p, images=[{**im, 'empty': True} for im in p.images])
    if kind == 'boxes': p = replace(p, bbox=p.bbox*[1, 1, .3, .3])
    if kind == 'mirrored': p = replace(p, images=[{**im, 'mirror': True} for im in p.images])
    if kind == 'domain': p = replace(p, images=[{**im, 'negative': True} for im in p.images])
    def read(im):
        x = read_image(im['path'])
        if im.get('empty'): x = cv2.GaussianBlur(x, (0, 0), 25)
        if im.get('mirror'): x = x[:, ::-1].copy()
        return 255 - x if im.get('negative') else x
    return p, read


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['nobody', 'boxes', 'domain', 'mirrored'])
def test_poison_in_generated_pictures_never_leaves_the_embedded_network_significantly_worse(kind, generated):
    few, shard, val, rest = generated; people, read = spoilt(kind, rest)
    base = recipe('small', phases=(Phase('semi', 1e-3, steps=60),), batch=16, ema=.98, workers=0, loggers=(), val_steps=15, layer_decay=1., cache=False)
    h, j = fit_semi(create_model('posellm-synth-s'), few, people, shard, settings('multiaugs', base, paths=('JO+CO', 'JC+CM'), patience=2), read=read, reports=dict(val=val))
    first, last = j.row_poses[0], j.row_poses[-1]; d = paired_bootstrap(evaluate(val, first), evaluate(val, last), n=300); print(kind, d, h.stopped or 'ran to its end', h.best['step'])
    assert d.verdict != 'worse', d


def test_the_brake_stops_a_run_that_does_harm_and_keeps_the_start(start, tmp_path):
    few, shard = dot_people(16), dot_people(60, 2)
    cfg = dot_config(60, method='harm', paths=('A',), target='map', weight=50., lr=3e-2, val_steps=3, patience=3, clip=0.)
    h, j = fit_semi(net_from(start), few, poisoned('nobody'), shard, cfg, tmp_path, read=no_people)
    assert h.steps < 60 and 'hidden labelled people' in h.stopped and h.best['step'] < h.steps, (h.steps, h.stopped)
    again, _ = fit_semi(net_from(start), few, poisoned('nobody'), shard, cfg, tmp_path, True, no_people); assert again.stopped == h.stopped and again.steps == h.steps # it stays stopped


def test_the_audit_finds_planted_wrong_answers(start, monkeypatch):
    "A teacher that takes the left wrist for the right ankle is found out, keypoint by keypoint."
    shard = dot_people(60, 2); sk = shard.skeleton; L, R = sk.keypoints.index('left_wrist'), sk.keypoints.index('right_ankle')
    j = Semi(net_from(start), dot_people(16), hide_labels(dot_people(16, 1)), shard, dot_config(6, paths=('JC',), easy=Augment.none()), read=draw_dots); clean = j.audit() # the start has never seen a turned picture
    assert not clean.suspects() and clean.share_right > .7, clean
    teach = semi_module.teach
    def wrong(job, x): return [m[:, [R if k == L else L if k == R else k for k in range(m.shape[1])]] for m in teach(job, x)]
    monkeypatch.setattr(semi_module, 'teach', wrong); found = j.audit(); assert set(found.suspects()) == {'left_wrist', 'right_ankle'}, found
    assert (found.right[[k for k in range(17) if k not in (L, R)]] == clean.right[[k for k in range(17) if k not in (L, R)]]).all()


def test_every_check_tells_each_keypoint_and_the_smallest_drop_is_said(start, caplog):
    with caplog.at_level('INFO', logger='posellm'): h, _ = fit_semi(net_from(start), dot_people(16), hide_labels(dot_people(16, 1)), dot_people(30, 2), dot_config(4, paths=('JC',), val_steps=2), read=draw_dots)
    line = h.history[-1]; assert all(len(line[k]) == 17 for k in ('used_by_keypoint', 'right_by_keypoint', 'right_low', 'right_high'))
    assert all(lo <= r <= hi for lo, r, hi in zip(line['right_low'], line['right_by_keypoint'], line['right_high']) if r is not None)
    said = [r.getMessage() for r in caplog.records if 'smallest drop' in r.getMessage()]; assert len(said) == 1 and '30 hidden people' in said[0], said


def test_being_audited_leaves_no_trace(start):
    j = Semi(net_from(start), dot_people(16), hide_labels(dot_people(16, 1)), dot_people(20, 2), dot_config(6, paths=('JC',)), read=draw_dots); j.model.train()
    held = {k: v.clone() for k, v in j.model.state_dict().items()}; j.audit(); assert j.model.training and all(torch.equal(v, held[k]) for k, v in j.model.state_dict().items())


def test_the_switches_of_the_chapter_reach_the_method():
    from posellm.stages.ssl import ssl_settings
    from posellm.train.hardware import preset
    cfg = preset('tiny'); s = ssl_settings(cfg, 20, method='multiaugs', ssl_weight=.25, mask=.4, ramp=.2, exchange=True); plain = ssl_settings(cfg, 20, method='mean-teacher')
    assert (s.weight, s.mask, s.ramp, s.exchange) == (.25, .4, .2, True) and (plain.weight, plain.mask, plain.ramp, plain.exchange) == (.5, 0., .3, False)
    with pytest.raises(PoseError, match='mask'): ssl_settings(cfg, 20, mask=1.5)


def test_bad_settings_are_named():
    with pytest.raises(PoseError, match='multiaugs'): settings('multi', dot_config(2))
    with pytest.raises(PoseError, match='JO'): dot_config(2, paths=('JX',))
    with pytest.raises(PoseError, match='SimCC'): Semi(simcc_net(), dot_people(8), dot_people(8), None, dot_config(2, paths=('A',)), read=draw_dots)


def simcc_net():
    net = dot_net(); net.spec = replace(net.spec, loss='simcc', family='classic', codec=make_codec('simcc', (64, 48), (128, 96)).to_dict(), heatmap_hw=(128, 96)); return net


def test_the_start_is_asked_once(start, tmp_path):
    """Row and first check of the same weights on the same people, of yardstick and student, are one question; the answers are what each would have got."""
    few, many, shard = dot_people(12), dot_people(16, 1, .5), dot_people(16, 2, .5); yard, c = (dot_config(2, paths=p) for p in ((), ('JC',))); reports = dict(val=dot_people(6, 3, .5), calib=shard)
    def run(like, name):
        net, seen = net_from(start), []; net.register_forward_hook(lambda *a: seen.append(len(a[1][0])) if not net.training else None)
        _, j = fit_semi(net, few, many, shard, c, tmp_path / name, read=draw_dots, like=like, reports=reports); return j, sum(seen)
    _, j0 = fit_semi(net_from(start), few, None, shard, yard, tmp_path / 'y', read=draw_dots, reports=reports); (a, once), (b, again) = run(j0, 'a'), run(None, 'b')
    assert once < again and len(j0.asked) == len(reports)
    same = lambda j: [(r['row'], r['split'], r['ap'], r['val_loss']) for r in j.rows]; assert same(a) == same(b)
    for f in ('results_unchanged.json', 'results_unchanged_calib.json'): assert (tmp_path / 'a' / f).read_text() == (tmp_path / 'b' / f).read_text()
