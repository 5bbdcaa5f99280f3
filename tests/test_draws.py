"""Draws from maps: what must hold for any maps, and what they are worth to facts."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from posellm.data.coco import load_data
from posellm.data.synth import write_synth
from posellm.explain.facts import Meaning, drawn_share, exchanged, find_facts, fit_facts, in_range, mirror_poses
from posellm.explain.measure import measure, points_of
from posellm.explain.router import mixed
from posellm.metrics.oks import make_people
from posellm.models.zoo import create_model
from posellm.pose.draws import draw_places, draw_table
from posellm.pose.poses import concat
from posellm.pose.skeleton import get_skeleton
from posellm.train.predict import predict_poses

COCO17 = get_skeleton('coco17')


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 20), st.integers(2, 20), st.sampled_from([2, 8, 32]))
def test_draws_of_the_mirror_image_are_the_mirror_images_of_the_draws(seed, K, H, W, n):
    g = np.random.default_rng(seed); flip = np.arange(K); pairs = g.permutation(K)[:K // 2 * 2].reshape(-1, 2)
    for a, b in pairs[:g.integers(0, len(pairs) + 1)]: flip[[a, b]] = b, a
    maps = torch.from_numpy(g.random((2, K, H, W)).astype(np.float32) + .05)
    a, b = draw_places(maps, flip, n), draw_places(maps.flip(-1)[:, flip.tolist()], flip, n)[:, flip.tolist()]
    b[..., 0] = W - 1 - b[..., 0]; assert torch.allclose(a, torch.cat([b[:, :, n // 2:], b[:, :, :n // 2]], 2), atol=1e-2)
    assert (a >= -.5).all() and (a[..., 0] <= W - .5).all() and (a[..., 1] <= H - .5).all() and a.shape == (2, K, n, 2)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_many_draws_have_the_mean_and_the_spread_of_the_map(seed):
    g = np.random.default_rng(seed); m = torch.from_numpy((g.random((1, 3, 12, 9))**6).astype(np.float32)); d = draw_places(m, n=2048)[0]
    p = (m / m.sum((2, 3), keepdim=True))[0]; y, x = torch.meshgrid(torch.arange(12.), torch.arange(9.), indexing='ij')
    for axis, at in enumerate((x, y)):
        mean = (p * at).sum((1, 2)); sd = ((p * (at - mean[:, None, None])**2).sum((1, 2)) + 1 / 12).sqrt()
        assert torch.allclose(d[..., axis].mean(-1), mean, atol=.2) and torch.allclose(d[..., axis].std(-1), sd, atol=.25)


def test_maps_without_mass_and_values_below_zero():
    for m in (torch.zeros(2, 3, 8, 6), -torch.ones(1, 1, 8, 6)): assert torch.isfinite(draw_places(m)).all()
    one = torch.full((1, 1, 8, 6), -5.); one[0, 0, 3, 2] = 1.
    assert ((draw_places(one)[0, 0] - torch.tensor([2., 3.])).abs() <= .5).all()
    a = draw_table((0, 2, 1), 32); assert a.shape == (3, 32, 2) and (0 <= a).all() and (a <= 1).all() and np.allclose(np.sort(np.floor(a[0, :16, 0] * 16)), np.arange(16))


def doubtful(n, seed):
    "People each of whose joints lies at one of two places; how sure the choice is, the draws know and the confidence does not."
    truth = make_people(n // 2, 2, COCO17, seed=seed); g = np.random.default_rng(seed); size = np.sqrt(truth.bbox[:, 2:].prod(1))[:, None, None]
    sure = g.choice([.55, .995], (n, 17)); right = g.random((n, 17)) < sure; off = g.normal(0, .25, (n, 17, 2)) * size
    first = np.where(right[..., None], truth.xy, truth.xy + off); other = np.where(right[..., None], truth.xy + off, truth.xy)
    which = g.random((n, 17, 32)) < sure[..., None]; draws = np.where(which[..., None], first[:, :, None], other[:, :, None]) + g.normal(0, .01, (n, 17, 32, 2)) * size[..., None]
    pred = replace(truth, xy=first + g.normal(0, .01, first.shape) * size, conf=np.full((n, 17), .8), vis=None, draws=draws.astype(np.float32), extra=[])
    own = find_facts(truth, noise=0.); true = np.where(np.isfinite(own.value), (own.margin > 0) * 1, -1); return truth, pred, true


@pytest.fixture(scope='module')
def learned():
    truth, pred, true = doubtful(1600, 1); return fit_facts(truth, pred, true=true)


def test_draws_tell_what_confidences_do_not(learned):
    _, pred, true = doubtful(300, 2); both = []
    for p in (pred, replace(pred, draws=None)):
        said = find_facts(p, learned).stated & (true >= 0); both.append((int(said.sum()), float((true[said] == 1).mean()) if said.any() else 1.))
    (n, right), (n0, right0) = both
    assert n > 1.5 * n0 and n > 1000 and min(right, right0) > .95


def test_a_mirror_exchanges_left_and_right_with_draws(learned):
    _, pred, _ = doubtful(60, 3); m = mirror_poses(pred); assert exchanged(find_facts(pred, learned), find_facts(m, learned)) > .999
    assert np.allclose(mirror_poses(m).draws, pred.draws, atol=1e-3) and m.draws.dtype == np.float32


def test_written_down_with_and_without_draws(learned):
    again = Meaning.from_dict(json.loads(json.dumps(learned.to_dict()))); _, pred, _ = doubtful(60, 4)
    assert (find_facts(pred, again).stated == find_facts(pred, learned).stated).mean() > .9999
    old = learned.to_dict(); del old['drawn']; plain = Meaning.from_dict(old) # of an earlier version, or of maps that are no distributions
    assert plain.drawn is None and (find_facts(pred, plain).stated == find_facts(replace(pred, draws=None), learned).stated).all()


def test_shares_of_draws_are_those_of_each_draw_looked_at_alone():
    _, pred, _ = doubtful(40, 5); each = np.zeros((40, drawn_share(pred[:1]).shape[1]))
    for j in range(32): each += np.nan_to_num(in_range(measure(points_of(replace(pred, xy=pred.draws[:, :, j].astype(float)), np.ones((40, 17)), np.zeros((40, 17, 2, 2)))))[1] > 0)
    assert abs(drawn_share(pred, block=7) - each / 32).max() <= 1 / 32 + 1e-9 and np.isclose(drawn_share(pred), each / 32, atol=1e-6).mean() > .999


def test_people_are_taken_and_joined_with_their_draws():
    _, pred, _ = doubtful(10, 6); some = pred[[3, 1]]
    assert np.array_equal(some.draws, pred.draws[[3, 1]]) and concat([some, pred]).draws.shape == (12, 17, 32, 2) and concat([some, replace(pred, draws=None)]).draws is None
    routed = np.arange(10) == 4; two = replace(pred, draws=None); m = mixed(pred, two, routed)
    assert np.isnan(m.draws[4]).all() and np.array_equal(m.draws[~routed], pred.draws[~routed]) and np.array_equal(mixed(pred, pred, routed).draws, pred.draws)
    assert 'draws' not in json.dumps(pred.to_results())
    gone = replace(pred, cov=np.ones((10, 17, 2, 2))).moved(pred.xy + 1, conf=pred.conf/2); assert gone.draws is None and gone.cov is None and (gone.conf == pred.conf/2).all() and pred.draws is not None


def test_the_embedded_network_gives_draws_around_its_answers(tmp_path):
    people = load_data(write_synth(tmp_path, 0, 8, 0, seed=5), 'val'); people = people[people.posed]; net = create_model('posellm-synth-s')
    p = predict_poses(net, people, draws=True); assert p.draws.shape == (len(people), 17, 32, 2) and p.draws.dtype == np.float32
    d = np.linalg.norm(p.draws - p.xy[:, :, None], axis=-1) / np.sqrt(people.bbox[:, 2:].prod(1))[:, None, None]; sure = p.conf > np.quantile(p.conf, .7)
    assert np.median(d[sure]) < .6 * np.median(d[~sure]) # sharp maps, near draws
    assert predict_poses(net, people).draws is None
