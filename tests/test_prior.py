"""The prior at its edges: missing keypoints, odd boxes, other skeletons, covariances, damaged files; and that what is not moved stays bit for bit."""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from posellm.app.cli import call
from posellm.core.errors import PoseError
from posellm.core.paths import assets
from posellm.data.bare import bare_poses
from posellm.metrics.oks import get_sigmas, make_people
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.refine.corrupt import corrupt, fit_errors, published_errors, published_rates
from posellm.refine.frame import frame_boxes, missing, network_input, person_frames
from posellm.refine.gate import Gate, cov_from_expected, expected_from_cov
from posellm.refine.prior import load_prior, refine, save_prior
from posellm.refine.scale import own_trust
from posellm.refine.sides import SideNet, Sides, exchange, fix_thresholds, limb_groups, side_pairs
from posellm.refine.vae import PoseVAE


@pytest.fixture(scope='module')
def prior(): return load_prior()


@pytest.fixture(scope='module')
def people(): return corrupt(bare_poses(120, seed=41), published_errors(get_skeleton('coco17')), seed=2)[0]


def test_embedded_prior_is_small_and_has_a_card(prior):
    files = list((assets()/'prior').iterdir())
    assert sum(f.stat().st_size for f in files) < 900_000
    for key in ('poses', 'errors', 'heldout', 'licence', 'limits', 'made_by'): assert prior.card[key]
    assert prior.card['heldout']['after'] > prior.card['heldout']['before']


def test_what_is_not_moved_is_the_same_bits(prior, people):
    out = refine(people, prior); same = ~out.moved & ~out.exchanged
    assert out.moved.any() and same.mean() > .5
    np.testing.assert_array_equal(out.poses.xy[same], people.xy[same]); np.testing.assert_array_equal(out.poses.conf[same], people.conf[same]); np.testing.assert_array_equal(out.poses.score, people.score)


def test_order_and_company_do_not_matter(prior, people):
    i = np.random.default_rng(0).permutation(len(people)); a, b = refine(people, prior), refine(people[i], prior)
    np.testing.assert_allclose(a.poses.xy[i], b.poses.xy, atol=1e-3)


@given(st.floats(.05, 40), st.floats(-1e4, 1e4))
@settings(max_examples=15, deadline=None)
def test_place_and_size_do_not_matter(scale, shift):
    p = load_prior(); a = corrupt(bare_poses(20, seed=43), published_errors(p.skeleton), seed=1)[0]
    b = replace(a, xy=a.xy*scale + shift, bbox=a.bbox*scale + [shift, shift, 0, 0], area=a.area*scale**2)
    if (b.bbox[:, 2:] <= 1).any(): return # below a pixel there is no box
    x, y = (network_input(q, q.conf) for q in (a, b)); np.testing.assert_allclose(x, y, atol=1e-4)


@given(st.integers(0, 2**17 - 1), st.sampled_from(['nan', 'conf']))
@settings(max_examples=25, deadline=None)
def test_missing_keypoints(bits, how):
    p = load_prior(); a = corrupt(bare_poses(6, seed=44), published_errors(p.skeleton), seed=1)[0]; gone = ((bits >> np.arange(17)) & 1).astype(bool)
    a = replace(a, xy=np.where(gone[:, None], np.nan if how == 'nan' else 0., a.xy), conf=np.where(gone, 0., a.conf)); out = refine(a, p)
    assert missing(a)[:, gone].all() and np.isfinite(out.poses.xy[out.moved]).all() and np.isfinite(out.e_o).all() and np.isfinite(out.e_p).all()
    if gone.all(): assert not out.moved[:, :].any() or (out.e_p[out.moved] >= p.gate.fill).all()


def test_a_wild_keypoint_does_not_make_a_person_big(people):
    x = people.xy.copy(); x[:, 9] += 5000; span = np.concatenate([x.min(1), np.ptp(x, axis=1)], 1); conf = np.where(np.arange(17) == 9, .05, .9)*np.ones(people.conf.shape)
    wild = replace(people, xy=x, bbox=span, conf=conf); assert (person_frames(wild).scale < 400).all() and np.isfinite(frame_boxes(wild)).all()


def test_a_covariance_takes_the_place_of_the_confidence(prior, people):
    unit = get_sigmas(people.skeleton)*person_frames(people).scale[:, None]
    sure = refine(replace(people, cov=cov_from_expected(np.full(unit.shape, .97), unit)), prior); doubted = refine(replace(people, cov=cov_from_expected(np.full(unit.shape, .3), unit)), prior)
    assert sure.moved.mean() < doubted.moved.mean()
    e = np.random.default_rng(0).uniform(.05, .99, unit.shape); np.testing.assert_allclose(expected_from_cov(cov_from_expected(e, unit), unit), e, atol=1e-9)


def test_another_skeleton_is_refused(prior):
    crowd = make_people(3, 2, get_skeleton('crowdpose14'), predictions=True)
    with pytest.raises(PoseError, match='other keypoints'): refine(crowd, prior)


@pytest.mark.parametrize('name', ['coco17', 'crowdpose14', 'mpii16', 'aic14', 'mvor10', 'hand21', 'face68'])
def test_rates_and_network_follow_the_skeleton(name):
    sk = get_skeleton(name); r = published_rates(sk); assert r.shape == (3, sk.K, 5) and np.allclose(r.sum(-1), 1) and (r >= 0).all()
    import torch
    assert PoseVAE(sk.K)(torch.zeros(2, sk.K, 3))[0].shape == (2, sk.K, 2)
    if sk.flip is not None and sk.sigmas is not None and len(side_pairs(sk)): assert all(g.any() for g in limb_groups(sk).values())


def test_impossible_errors_are_not_made():
    sk = get_skeleton('coco17'); alone = make_people(400, 1, sk, seed=3); bad, kind = corrupt(alone, published_errors(sk), seed=1)
    assert not (kind == 3).any() # nobody else in the image: no swap
    assert not (kind[:, 0] == 2).any() # a nose has no partner
    partner = alone.labelled[:, sk.flip]; assert not ((kind == 2) & ~partner).any()


def test_fitted_rates_find_what_was_put_in():
    sk = get_skeleton('coco17'); truth = make_people(1500, 2, sk, seed=5); bad, kind = corrupt(truth, published_errors(sk), seed=1); em = fit_errors(truth, bad)
    put = np.array([(kind[truth.labelled] == j).mean() for j in range(5)]); got = np.array(list(em.counts.values()))/sum(em.counts.values())
    assert abs(put[[0, 1]] - got[[0, 1]]).max() < .03 and abs(put[4] - got[4]) < .05


@given(st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_exchanging_twice_changes_nothing(bits):
    p = make_people(2, 1, get_skeleton('coco17'), predictions=True); pairs = np.tile(((bits >> np.arange(8)) & 1).astype(bool), (2, 1)); once, k = exchange(p, pairs); twice, _ = exchange(once, pairs)
    np.testing.assert_array_equal(twice.xy, p.xy); assert k.sum() == 2*pairs.sum()


@given(st.integers(0, 10**6), st.floats(0, .4))
@settings(max_examples=40, deadline=None)
def test_nobody_stakes_more_than_may_be_lost(seed, stake):
    r = np.random.default_rng(seed); e_o, e_p, far, gone = r.random((9, 17)), r.random((9, 17)), 6*r.random((9, 17)), r.random((9, 17)) < .3
    gate = Gate((np.array([0., 1]), np.array([0., 1])), np.zeros((17, 7)), margin=.0, stake=stake); free = Gate(gate.honest, gate.weights, margin=.0, stake=9.)
    a, b = gate.opens(e_o, e_p, gone, far), free.opens(e_o, e_p, gone, far); assert not (a & ~b).any() and (a & gone == b & gone).all()
    assert (np.where(a & ~gone, 1 - np.exp(-far**2/8), 0).sum(1) <= stake*np.maximum((~gone).sum(1), 1) + 1e-9).all()


def test_sides_that_know_nothing_exchange_nothing(people):
    sk = people.skeleton; sides = Sides(SideNet(17, len(limb_groups(sk)), 16), sk); e = np.full(people.conf.shape, .8)
    fixed = fix_thresholds(sides, bare_poses(60, seed=45), published_errors(sk), lambda conf, size: conf, repeats=2); assert fixed.thresholds == {}
    out, k = fixed.repair(people, e); assert not k.any() and out is people
    bold = Sides(sides.net, sk, {'arms': -99.}); pairs, _, _ = bold.decide(people, e); p = side_pairs(sk); assert not (pairs & missing(people)[:, p].any(-1)).any() # of a pair of which one is missing nothing is known


def test_damaged_prior_files(prior, tmp_path):
    f = save_prior(prior, tmp_path/'prior'); f.with_suffix('.safetensors').write_bytes(b'nonsense')
    with pytest.raises(PoseError, match='cannot be read'): load_prior(tmp_path)
    f.write_text('[]')
    with pytest.raises(PoseError, match='schema'): load_prior(tmp_path)
    f.write_text('{"schema": 1')
    with pytest.raises(PoseError, match='JSON'): load_prior(tmp_path)


def test_scores_of_zero_and_one(prior, people):
    binary = replace(people, conf=(people.conf > .3)*1.); assert own_trust(prior, binary) is not None; out = refine(binary, prior, own_trust(prior, binary)); assert np.isfinite(out.poses.xy).all()


def test_verb(tmp_path, capsys, people):
    truth = bare_poses(120, seed=41); truth.save(tmp_path/'t.json'); people.save(tmp_path/'r.json'); before = (tmp_path/'r.json').read_bytes()
    assert call(['refine', str(tmp_path/'r.json'), '--out', str(tmp_path/'o.json'), '--truth', str(tmp_path/'t.json'), '--json']) == 0
    d = json.loads(capsys.readouterr().out); assert sum(d['why'].values()) == d['keypoints'] and 'ap' in d and (tmp_path/'r.json').read_bytes() == before
    assert len(Poses.from_results(tmp_path/'o.json', truth=truth)) == len(people)
    for given in ('r.json', 't.json'): # neither the results nor the truth are written over
        kept = (tmp_path/given).read_bytes(); assert call(['refine', str(tmp_path/'r.json'), '--out', str(tmp_path/given), '--truth', str(tmp_path/'t.json')]) == 2 and 'overwrite' in capsys.readouterr().err and (tmp_path/given).read_bytes() == kept
    assert call(['refine', str(tmp_path/'r.json'), '--out', str(tmp_path)]) == 2 and 'a folder' in capsys.readouterr().err
    assert call(['refine', str(tmp_path/'no.json'), '--out', str(tmp_path/'o.json')]) == 2 and 'no such file' in capsys.readouterr().err # though o.json is there
    (tmp_path/'empty.json').write_text('[]'); assert call(['refine', str(tmp_path/'empty.json'), '--out', str(tmp_path/'e.json')]) == 0 and json.loads((tmp_path/'e.json').read_text()) == []
    assert call(['refine', str(tmp_path/'r.json'), '--out', str(tmp_path/'o.json'), '--prior', str(tmp_path/'no')]) == 2
