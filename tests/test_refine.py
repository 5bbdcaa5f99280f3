"""Fusion at its edges: gaps, strangers, one member, broken input, files that lie."""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posellm.app.cli_fuse import fuse_files, read_members
from posellm.core.errors import PoseError
from posellm.core.rng import rng
from posellm.metrics.oks import make_people
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.refine.fuse import RULES, fuse_points, inverse_weights, inverses, weighted_median
from posellm.refine.fuser import Fuser, cross_fused, fit_fuser, fold_of, load_fuser
from posellm.refine.learn import known, learn_members
from posellm.refine.members import pair_up, stack_people, truth_rows
from posellm.refine.spread import distance2, shaped

COCO = get_skeleton('coco17')
FREE = ('first', 'uniform', 'confidence', 'median')
LEARNT = ('best', 'keypoint', 'covariance', 'precision')


def world(n=40, seed=0, members=3, lost=0.):
    """People and members with known errors; a share of the joints is missing."""
    t = make_people(n, 2, COCO, seed=seed); sd = np.sqrt(t.area)[:, None]*COCO.sigmas; out = []
    for m in range(members):
        g = rng(seed, 'member', m); p = make_people(n, 2, COCO, seed=seed, predictions=True); gone = g.random(p.conf.shape) < lost
        xy = t.xy + (1 + .3*m)*g.normal(size=t.xy.shape)*sd[..., None]
        out.append(replace(p, xy=np.where(gone[..., None], 0, xy), conf=np.where(gone, 0, g.uniform(.2, .95, p.conf.shape)), bbox=t.bbox))
    return t, out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, .8))
def test_every_rule_stays_among_its_members(seed, members, lost):
    """Each fused coordinate lies between the smallest and the largest of the members that have the joint; weights sum to 1 where there is one."""
    t, ps = world(8, seed, members, lost); s = stack_people(ps); k = learn_members(s, t)
    for rule in (*FREE, *LEARNT):
        f = fuse_points(s, rule, k); there = s.on.any(0)
        assert np.array_equal(np.isfinite(f.xy[..., 0]), there) and np.allclose(f.weights.sum(0)[there], 1) and (f.weights >= 0).all()
        lo, hi = (g(np.where(s.on[..., None], s.xy, v), 0) for g, v in ((np.min, np.inf), (np.max, -np.inf)))
        assert (f.xy[there] >= lo[there] - 1e-6).all() and (f.xy[there] <= hi[there] + 1e-6).all()
        assert (f.weights[~s.on] == 0).all() and np.isfinite(f.scatter).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_weighted_median_against_the_definition(seed, n):
    """The plain definition: sort, add up, take the first beyond one half, or the middle where the half is met."""
    g = rng(seed); x, w = g.integers(0, 5, (n, 40)).astype(float), g.integers(0, 4, (n, 40)).astype(float); got = weighted_median(x, w)
    for j in range(40):
        on = w[:, j] > 0
        if not on.any(): assert np.isnan(got[j]); continue
        o = np.argsort(x[on, j]); v, run = x[on, j][o], np.cumsum(w[on, j][o]); half = run[-1]/2; i = int(np.flatnonzero(run >= half)[0])
        assert got[j] == (v[i] if run[i] > half else (v[i] + v[i + 1])/2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_inverse_weights_are_the_best_that_are_not_negative(seed, M):
    """No other weights that are 0 or more and sum to 1 have a smaller variance (tried at random and at every corner)."""
    g = rng(seed); A = g.normal(size=(1, M, M + 2)) + .8; C = A @ A.transpose(0, 2, 1) + .05*np.eye(M); w = inverse_weights(inverses(C), np.ones((M, 1, 1)), np.ones((M, 1, 1), bool))[:, 0, 0]; w /= w.sum()
    var = lambda v: v @ C[0] @ v; others = np.concatenate([np.eye(M), g.dirichlet(np.ones(M), 300)])
    assert (w >= 0).all() and min(map(var, others)) > var(w)*(1 - (0.05 if M > 2 else 1e-6)) # striking out is exact for two members, and nearly so for more


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, .9))
def test_matching_does_not_depend_on_the_order_of_people(seed, missing):
    """Shuffled members give the same groups, and nobody is in two."""
    t, ps = world(6, seed, 3); g = rng(seed, 'order'); keep = [np.flatnonzero(g.random(len(p)) >= missing*(i > 0)) for i, p in enumerate(ps)]; ps = [p[k] for p, k in zip(ps, keep)]
    a = stack_people(ps, matched=False); b = stack_people([p[g.permutation(len(p))] for p in ps], matched=False); rows = lambda s: {tuple(np.round(np.nan_to_num(s.xy[:, i], nan=-1), 6).ravel()) for i in range(len(s))}
    assert rows(a) == rows(b) and [s.sum() for s in a.on] == [p.conf.size for p in ps]


def test_pairs_are_best_first():
    g = rng(3); i, j = np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20); v = g.random(400); q = pair_up(i, j, v); left = np.ones(400, bool); want = []
    for c in np.argsort(-v):
        if left[c]: want.append(c); left[(i == i[c]) | (j == j[c])] = False
    assert sorted(want) == q.tolist()


def test_nan_and_infinity_are_missing():
    t, ps = world(10); ps[0].xy[0, 0] = np.nan; ps[1].xy[0, 0, 1] = np.inf; ps[2].conf[1, 1] = np.nan; s = stack_people(ps)
    assert not s.on[0, 0, 0] and not s.on[1, 0, 0] and s.on[2, 0, 0] and s.conf[2, 1, 1] == 0
    for r in FREE: p = Fuser(r)(s); assert np.isfinite(p.xy).all() and np.isfinite(p.conf).all() and np.isfinite(p.score).all()
    f = fit_fuser(s, t, 'precision', folds=2)(s); assert np.isfinite(f.cov).all()


def test_one_member_and_nobody():
    t, ps = world(30); s = stack_people(ps[:1]); f = fit_fuser(s, t); p = f(s)
    assert f.rule == 'best' and np.allclose(p.xy, ps[0].xy) and np.isfinite(p.cov).all() # variance of one
    empty = stack_people([p[:0] for p in ps]); assert len(empty) == 0 and len(Fuser('median')(empty)) == 0 and len(f(empty.only([0]).__class__(('member 1',), empty.xy[:1], empty.conf[:1], empty.score[:1], empty.people))) == 0


def test_a_joint_that_nobody_has_is_doubtful_and_near_its_person():
    t, ps = world(5); [p.xy.__setitem__((0, 3), 0) or p.conf.__setitem__((0, 3), 0) for p in ps]; p = Fuser('uniform')(stack_people(ps))
    assert p.conf[0, 3] == 0 and (np.abs(p.xy[0, 3] - p.xy[0].mean(0)) < np.ptp(p.xy[0], axis=0)).all()


def test_people_of_boxes_are_known_however_wrong_they_are():
    t, ps = world(20); far = replace(ps[0], xy=ps[0].xy + 1e4); s = stack_people([far]); assert np.array_equal(truth_rows(s, t)[t.num_keypoints > 0], np.flatnonzero(t.num_keypoints > 0))


def test_learning_keeps_folds_apart():
    t, ps = world(30); s = stack_people(ps); p, fusers = cross_fused(s, t, 'keypoint', folds=3); at = fold_of(s.people.image_id, 3)
    for i, f in enumerate(fusers): assert not set(f.fitted_on['image_ids']) & set(s.people.image_id[at == i].tolist())
    groups = {i: i % 5 for i in range(1, 31)}; at = fold_of(s.people.image_id, 3, groups=groups); assert all(len(set(at[s.people.image_id % 5 == g])) == 1 for g in range(5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_covariances_are_covariances(seed):
    g = rng(seed); A = g.normal(size=(50, 1, 2, 3))*np.exp(g.normal(0, 4, (50, 1, 1, 1))); C = shaped(A @ A.transpose(0, 1, 3, 2), np.exp(g.normal(0, 2, (50, 1)))); v = np.linalg.eigvalsh(C)
    assert (v > 0).all() and (v[..., 0]/v[..., 1] > .09).all() and (distance2(C, g.normal(size=(50, 1, 2))) >= 0).all()


# files

def saved(tmp_path, n=12, seed=1):
    t, ps = world(n, seed, 2); t.save(tmp_path/'t.json'); files = [tmp_path/f'{x}.json' for x in 'ab']; [p.save(f) for p, f in zip(ps, files)]; return t, [str(f) for f in files]


def test_results_of_another_skeleton(tmp_path):
    t, files = saved(tmp_path); lsp = get_skeleton('lsp14'); lower = [k.lower() for k in COCO.keypoints]; p = Poses.from_results(files[1], truth=t); at = [lower.index(k.lower()) if k.lower() in lower else 0 for k in lsp.keypoints]
    replace(p, xy=p.xy[:, at], conf=p.conf[:, at], skeleton=lsp).save(tmp_path/'lsp.json'); got = fuse_files([files[0], tmp_path/'lsp.json'], tmp_path/'out.json', skeleton='coco17,lsp14')
    assert got['keypoints'] == 12 and any('share 12' in n for n in got['notes'])
    with pytest.raises(PoseError, match='one for each file'): read_members(files, skeleton='coco17,lsp14,mpii16')


@pytest.mark.parametrize('content,word', [('[', 'json'), ('{}', 'not a COCO results'), ('[{"image_id": 1}]', 'lacks a field'), ('[{"image_id": 1, "keypoints": [1, 2], "score": 1}]', 'wrong number'), ('[{"image_id": 1, "keypoints": [' + '1e999,'*50 + '1], "score": 1}]', 'finite|number')])
def test_broken_files_are_named(tmp_path, content, word):
    t, files = saved(tmp_path); (tmp_path/'bad.json').write_text(content)
    with pytest.raises(PoseError, match=f'(?i){word}') as e: fuse_files([files[0], tmp_path/'bad.json'], tmp_path/'out.json')
    assert 'bad.json' in str(e.value) and not (tmp_path/'out.json').exists()


def test_inputs_stay_as_they_are(tmp_path):
    t, files = saved(tmp_path); before = [open(f, 'rb').read() for f in files]; fuse_files(files, tmp_path/'o.json', tmp_path/'t.json', folds=2); assert before == [open(f, 'rb').read() for f in files]
    for out in (files[0], tmp_path/'t.json'):
        with pytest.raises(PoseError, match='overwrite'): fuse_files(files, out, tmp_path/'t.json')


def test_truth_of_other_images(tmp_path):
    t, files = saved(tmp_path); other = make_people(3, 1, COCO, seed=9); other.save(tmp_path/'other.json')
    with pytest.raises(PoseError, match='does not have'): fuse_files(files, tmp_path/'o.json', tmp_path/'other.json')


@pytest.mark.parametrize('change', [dict(kind='other'), dict(schema=7), dict(rule='magic'), dict(know={})])
def test_a_fuser_that_is_none(tmp_path, change):
    t, files = saved(tmp_path); fuse_files(files, tmp_path/'o.json', tmp_path/'t.json', 'precision', save=tmp_path/'f.json', folds=2); d = json.loads((tmp_path/'f.json').read_text()); (tmp_path/'f.json').write_text(json.dumps({**d, **change}))
    with pytest.raises(PoseError): load_fuser(tmp_path/'f.json')


def test_rules_are_listed_once():
    assert set(RULES) == {*FREE, *LEARNT, 'maps'}
