"""Evaluation against pycocotools and against published figures; the bootstrap against scoring from the beginning."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pose_problems import K, judge, nasty_problem, person
from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.metrics.ap import evaluate, matches
from posellm.metrics.oks import get_sigmas, make_people, oks_matrix, oks_nms, rescore
from posellm.metrics.pck import head_size, pckh
from posellm.metrics.stats import bootstrap, compare, draw_images, drawn, on_images, paired_bootstrap, resample
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton

COCO17 = get_skeleton('coco17')


def both(truth, results, **options):
    """Our evaluation and pycocotools' of the same problem."""
    t = Poses.from_coco(truth, 'coco17')
    return evaluate(t, Poses.from_results(results, t), strict=False, **options), judge(truth, results)


def same(ours, theirs):
    np.testing.assert_allclose(list(ours.stats.values()), theirs.stats, rtol=0, atol=1e-12)
    # a category that nobody has gives only -1 there, and does not exist here
    np.testing.assert_allclose(ours.precision.transpose(1, 2, 3, 0), theirs.eval['precision'][..., 0][:, :, ours.categories - 1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall.transpose(1, 2, 0), theirs.eval['recall'][..., 0][:, ours.categories - 1], rtol=0, atol=1e-12)


def same_matches(ours, theirs):
    """Every prediction is matched with the same person at every threshold and in every range."""
    where = {int(d): m for m, d in enumerate(ours.det)}
    ann, areas = np.append(ours.truth.ann_id, 0), [list(map(float, a)) for a in ours.areas.values()]
    for e in filter(None, theirs.evalImgs):
        if e['category_id'] not in ours.categories: continue
        a = areas.index(list(map(float, e['aRng'])))
        for j, i in enumerate(e['dtIds']):
            m = where[i - 1]
            assert np.array_equal(ann[ours.match[a, :, m]], e['dtMatches'][:, j])
            assert np.array_equal(~ours.counted[a, :, m], e['dtIgnore'][:, j].astype(bool))


# ------------------------------------------------------------------ the ten numbers
@settings(max_examples=80)
@given(st.integers(0, 10**6))
def test_ten_numbers_are_pycocotools(seed):
    truth, results = nasty_problem(seed)
    if truth['annotations'] and results:
        ours, theirs = both(truth, results)
        same(ours, theirs); same_matches(ours, theirs)


@pytest.mark.fuzz
@settings(max_examples=20000)
@given(st.integers(0, 2**60))
def test_ten_numbers_are_pycocotools_long(seed):
    truth, results = nasty_problem(seed)
    if truth['annotations'] and results: same(*both(truth, results))


def small_problem():
    """Three people in the first image, one in the second, nobody in the third."""
    r = np.random.default_rng(0); xy = np.round(r.uniform(0, 100, (4, K, 2)) + np.array([0, 200, 400, 0])[:, None, None])
    anns = [dict(id=i + 1, image_id=[1, 1, 1, 2][i], category_id=1, iscrowd=0, area=[5000., 900., 20000., 5000.][i], bbox=[*map(float, xy[i].min(0)), *map(float, np.ptp(xy[i], axis=0))],
                 num_keypoints=K, keypoints=person(xy[i], 2)) for i in range(4)]
    return dict(images=[dict(id=i, file_name=f'{i}.jpg') for i in (1, 2, 3)], annotations=anns, categories=[dict(id=1, name='person')]), xy


def result(xy, score, image=1): return dict(image_id=image, category_id=1, score=score, keypoints=person(xy, 1))


def test_more_than_twenty_predictions_in_an_image():
    truth, xy = small_problem()
    results = [result(xy[1] + i, .5) for i in range(25)] + [result(xy[0], .4)]  # the right one is number 26
    ours, theirs = both(truth, results); same(ours, theirs)
    assert len(ours.det) == 20 and ours.stats['AR50'] == .25 and '6 predictions beyond the best 20' in ours.notes[0]
    assert both(truth, results, max_dets=30)[0].stats['AR50'] == .5


def test_equal_scores_go_by_image_and_file():
    truth, xy = small_problem()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        all_results = [result(xy[0], .5), result(xy[0] + 500, .5), result(xy[3], .5, 2), result(xy[3] + 500, .5, 2)]
        same(*both(truth, [all_results[i] for i in order]))


def test_crowd_swallows_many_and_person_without_keypoints_one():
    truth, xy = small_problem()
    for crowd, n_ignored in ((1, 3), (0, 1)):
        a = truth['annotations'][2]; a.update(iscrowd=crowd, num_keypoints=0, keypoints=[0] * 51)
        ours, theirs = both(truth, [result(xy[0], .9), *(result(xy[2] + i, .8 - i / 10) for i in range(3))])
        same(ours, theirs); assert (~ours.counted[0, 0]).sum() == n_ignored


def test_one_person_twice_in_the_results_is_one_hit_and_one_mistake():
    truth, xy = small_problem()
    ours, theirs = both(truth, [result(xy[0], .9), result(xy[0], .9)])
    same(ours, theirs); assert ours.hit[0, 0].tolist() == [True, False] and ours.counted[0, 0].all()


def test_images_without_predictions_and_images_without_people():
    truth, xy = small_problem()
    same(*both(truth, [result(xy[3], .9, 2), result(xy[3], .3, 3)]))
    same(*both(truth, [result(xy[3], .3, 3)]))


def test_area_ranges_ignore_small_predictions_that_hit_nobody():
    truth, xy = small_problem()
    ours, theirs = both(truth, [result(xy[0], .5), result(xy[0] * .01 + 700, .9), result(xy[0] * 5 + 700, .8)])
    same(ours, theirs)
    assert ours.counted[:, 0].tolist() == [[True, True, True], [False, False, True], [False, True, False]]  # the order is: small, large, the hit of 5000 px^2


def test_perfect_predictions_and_closed_form():
    t = make_people(10, 3, COCO17)
    shifted = replace(make_people(10, 3, COCO17, predictions=True), xy=t.xy + [3., 4.])
    want = [np.exp(-25 / (2 * t.area[i] * (2 * COCO17.sigmas[t.labelled[i]])**2)).mean() for i in range(3)]
    np.testing.assert_allclose(np.diag(oks_matrix(t[:3], shifted[:3])), want, rtol=1e-9)
    assert set(evaluate(t, make_people(10, 3, COCO17, predictions=True)).stats.values()) == {1.}


def test_order_of_people_and_of_images_does_not_matter():
    t, p = make_people(30, 4, COCO17), make_people(30, 4, COCO17, noise=1., predictions=True)
    a, i = evaluate(t, p).stats, np.random.default_rng(0).permutation(len(t))
    assert evaluate(t[i], p[i[::-1]]).stats == a
    assert evaluate(replace(t, images=t.images[::-1]), p).stats == a


def test_sigmas_have_the_bits_of_the_published_evaluators():
    from pycocotools.cocoeval import Params
    assert np.array_equal(get_sigmas(COCO17), Params('keypoints').kpt_oks_sigmas)


@pytest.mark.parametrize('change, word', [
    (lambda t, p: (t, replace(p, image_id=p.image_id + 100)), 'images that the truth does not have'),
    (lambda t, p: (replace(t, area=t.area * np.nan), p), 'no area'),
    (lambda t, p: (replace(t, ann_id=np.ones_like(t.ann_id)), p), 'listed twice'),
    (lambda t, p: (t, replace(p, skeleton=get_skeleton('crowdpose14'), xy=p.xy[:, :14])), 'different skeletons'),
    (lambda t, p: (replace(t, num_keypoints=0 * t.num_keypoints), p), 'nothing to score'),
    (lambda t, p: (t[:0], p), 'nothing to score'),
    (lambda t, p: (t, replace(p, score=p.score * np.inf)), 'not finite'),
    (lambda t, p: (replace(t, skeleton=(s := get_skeleton('mvor10')), xy=t.xy[:, :10], vis=t.vis[:, :10]), replace(p, skeleton=s, xy=p.xy[:, :10])), 'sigmas'),
])
def test_what_cannot_be_compared_is_said(change, word):
    t, p = make_people(3, 2, COCO17), make_people(3, 2, COCO17, noise=1., predictions=True)
    with pytest.raises(PoseError, match=word): evaluate(*change(t, p))


def test_no_predictions_is_zero_with_a_reason():
    t = make_people(3, 2, COCO17)
    e = evaluate(t, make_people(3, 2, COCO17, predictions=True)[:0])
    assert set(e.stats.values()) == {0.} and 'no predictions' in e.table() and bootstrap(e, 10).hi == 0


def test_hundreds_of_people_in_one_image():
    t, p = make_people(1, 150, COCO17), make_people(1, 150, COCO17, noise=1.5, predictions=True)
    assert evaluate(t, p, max_dets=200).stats['AR50'] > .5 > evaluate(t, p).stats['AR50']
    np.testing.assert_allclose(list(evaluate(t, p).stats.values()), judge(t.to_coco(), p.to_results()).stats, atol=1e-12)


# ------------------------------------------------------------------ NMS and scores
def test_nms_keeps_one_of_each_and_touches_other_images_not():
    p = make_people(5, 4, COCO17, noise=.5, predictions=True)
    other = replace(p, image_id=p.image_id + 5, images=[dict(id=i, file_name=str(i)) for i in range(1, 11)])
    assert len(oks_nms(p)) == len(p) and len(oks_nms(other)) == len(p) and len(oks_nms(p[:0])) == 0
    twice = p[np.repeat(np.arange(len(p)), 2)]
    assert len(oks_nms(twice)) == len(p)
    assert len(oks_nms(twice, soft=True, most=3)) == 15


def test_rescore_of_nothing_sure_is_zero():
    p = make_people(1, 2, COCO17, predictions=True)
    assert (rescore(replace(p, conf=np.full((2, K), .2))).score == 0).all()


# ------------------------------------------------------------------ bootstrap
@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_resampled_numbers_are_those_of_the_drawn_images(seed):
    truth, results = nasty_problem(seed)
    if not truth['annotations'] or not results: return
    t = Poses.from_coco(truth, 'coco17'); p = Poses.from_results(results, t); ev = evaluate(t, p, strict=False)
    counts = draw_images(len(ev.image_ids), 3, seed)
    fast = resample(ev, counts, tuple(ev.stats))
    for b, count in enumerate(counts):
        td, pd = drawn(t, count, ev.image_ids), drawn(p, count, ev.image_ids)
        if not len(td): assert np.isnan(fast[b]).all(); continue
        if not len(pd): assert set(np.nan_to_num(fast[b])) == {0.}; continue
        theirs = judge(replace(td, ann_id=np.arange(1, len(td) + 1), info={'categories': truth['categories']}).to_coco(), pd.to_results()).stats
        np.testing.assert_allclose(np.where(np.isnan(fast[b]), -1, fast[b]), theirs, rtol=0, atol=1e-12)


def test_twenty_resamples_equal_full_evaluation():
    t = make_people(120, 4, COCO17)
    p = make_people(120, 4, COCO17, noise=1.2, predictions=True); p = replace(p, score=p.score.round(2))
    ev = evaluate(t, p); counts = draw_images(120, 20, 7); fast = resample(ev, counts)
    full = [evaluate(drawn(t, c, ev.image_ids), drawn(p, c, ev.image_ids)).stats['AP'] for c in counts]
    np.testing.assert_allclose(fast[:, 0], full, rtol=0, atol=1e-12)
    assert np.isclose(on_images(ev, ev.image_ids)['AP'], ev.stats['AP'], rtol=0, atol=1e-12)


def test_pairing_sees_what_single_intervals_do_not():
    t = make_people(100, 3, COCO17)
    p = make_people(100, 3, COCO17, noise=1., predictions=True)
    a, b = evaluate(t, p), evaluate(t, replace(p, xy=t.xy + .97 * (p.xy - t.xy)))
    ia, ib, d = bootstrap(a, 300), bootstrap(b, 300), paired_bootstrap(a, b, 300)
    assert ia.hi > ib.lo and d.verdict == 'better' and d.se < ia.se / 3
    assert paired_bootstrap(a, b, 300, method='bca').verdict == 'better' and paired_bootstrap(a, a, 100).p == 1
    assert [r['verdict'] for r in compare(dict(one=a, two=b, three=b), 300)] == ['', 'better', 'not shown']


def test_matches_are_within_images():
    e = evaluate(make_people(9, 5, COCO17), make_people(9, 5, COCO17, noise=2., predictions=True))
    m = matches(e, .75)
    assert len(m) and np.array_equal(e.pred.image_id[m[:, 0]], e.truth.image_id[m[:, 1]]) and len(set(m[:, 1])) == len(m)


@pytest.mark.slow
def test_equals_are_called_different_about_as_often_as_promised():
    out = subprocess.run([sys.executable, 'bench/aa_simulation.py'], capture_output=True, text=True, check=True).stdout
    share = json.loads(out.splitlines()[-1])['called different']['ours']
    assert .03 <= share <= .07, out


# ------------------------------------------------------------------ published figures
def published(name):
    d = shared_data()
    if d is None or not (d / name).is_dir(): pytest.skip(f'shared/data/{name} is not beside the clone')
    return d / name, json.loads((d / name / 'expected.json').read_text())


def read(d, name, skeleton):
    t = Poses.from_coco(d / f'example_{name}_val.json', skeleton)
    return t, Poses.from_results(d / f'example_{name}_preds.json', t)


def test_published_coco_example():
    d, want = published('eval_coco_style')
    e = evaluate(*read(d, 'coco', 'coco17'))
    np.testing.assert_allclose(list(e.stats.values()), list(want['example_coco']['stats'].values()), rtol=0, atol=1e-12)


def test_published_crowdpose_example():
    d, want = published('eval_coco_style'); want = want['example_crowdpose']['stats']
    t, p = read(d, 'crowdpose', 'crowdpose14'); e = evaluate(t, p)
    for k in ('AP', 'AP50', 'AP75', 'AR', 'AR50', 'AR75'): assert abs(e.stats[k] - want[k]) < 1e-12
    index, ids = (np.array([im[k] for im in t.images]) for k in ('crowdIndex', 'id'))
    for name, lo, hi in (('easy', 0, .2), ('medium', .2, .8), ('hard', .8, 1)):
        assert abs(on_images(e, ids[(index >= lo) & (index <= hi)], ['AP'])['AP'] - want[f'AP_{name}']) < 1e-4


def test_published_mpii_pckh():
    io = pytest.importorskip('scipy.io')
    d, want = published('eval_mpii_pckh')
    m = io.loadmat(d / 'detections_our_format.mat')
    gt, pred, corners = m['pos_gt_src'].transpose(2, 0, 1), m['pos_pred_src'].transpose(2, 0, 1), m['headboxes_src']
    for thr in (.5, .1):
        got, w = pckh(gt, pred, m['jnt_missing'].T == 0, head_size(np.concatenate([corners[0].T, corners[1].T], 1)), get_skeleton('mpii16'), thr), want['pos_pred_src'][f'PCKh@{thr}']
        assert abs(got['Mean'] - w['Mean_weighted_by_count_14']) < 1e-4 and abs(got['Mean_unweighted'] - w['Mean_unweighted_14']) < 1e-4
        for group in ('Head', 'Shoulder', 'Elbow', 'Wrist', 'Hip', 'Knee', 'Ankle'): assert abs(got[group] - w[group]) < 1e-4


def test_metrics_do_not_load_torch():
    code = 'import sys, posellm.metrics.oks, posellm.metrics.ap, posellm.metrics.pck, posellm.metrics.stats, posellm.metrics.slices, posellm.metrics.errors, posellm.metrics.calibration, posellm.metrics.benchmarks; print([m for m in ("torch", "matplotlib", "cv2", "pycocotools") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
