"""Errors whose kind is known, maps that keep their promise, published figures of other benchmarks to the printed digits."""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pose_problems import K, judge, nasty_problem
from posellm.core.paths import shared_data
from posellm.metrics.ap import evaluate
from posellm.metrics.benchmarks import aic_score, body_parts, box_numbers, crowdpose_numbers, join_whole_body, mvor_pck, take_part, whole_body_numbers
from posellm.metrics.calibration import Calibrator, Regions, box_sizes, calibrate_on, conformal, covered, isotonic, labelled_pairs, reliability
from posellm.metrics.errors import fates, find_errors, gain_by_keypoint, gains, kinds, mend, remedies
from posellm.metrics.oks import get_sigmas, make_people
from posellm.metrics.slices import all_groups, only_people, people_groups, slice_table
from posellm.pose.poses import Poses, concat
from posellm.pose.skeleton import get_skeleton
from posellm.stages.eval import add_differences, handed_on

COCO17 = get_skeleton('coco17')
SIGMAS = get_sigmas(COCO17)


def published(name):
    d = shared_data()
    if d is None or not (d / name).is_dir(): pytest.skip(f'shared/data/{name} is not beside the clone')
    return d / name, json.loads((d / name / 'expected.json').read_text()) if (d / name / 'expected.json').exists() else None


def crowd(n_images=40, seed=0):
    """Everybody labelled everywhere, three people an image far apart from each other, keypoints of a person far apart too."""
    t = make_people(n_images, 3, COCO17, seed=seed)
    grid = np.stack([np.arange(K) % 5, np.arange(K) // 5], 1) * 40. + 10
    xy = np.random.default_rng(seed).permutation(grid)[None] + np.tile([[0., 0], [600, 0], [0, 600]], (n_images, 1))[:, None]
    box = np.concatenate([xy.min(1) - 5, np.ptp(xy, axis=1) + 10], 1)
    return replace(t, xy=xy, bbox=box, area=np.full(len(t), 60.**2), vis=np.full((len(t), K), 2, np.int8), conf=np.ones((len(t), K)), num_keypoints=np.full(len(t), K))


def predicted(t, xy=None, score=None):
    p = make_people(len(t.images), 3, COCO17, predictions=True)
    return replace(p, xy=t.xy.copy() if xy is None else xy, bbox=t.bbox, area=t.area, score=np.linspace(1, .5, len(t)) if score is None else score, images=t.images)


def at_similarity(t, ks):
    """Distance at which a keypoint has this similarity: (N,K)."""
    return np.sqrt(-2 * np.log(ks)) * 2 * SIGMAS * np.sqrt(t.area)[:, None]


# ------------------------------------------------------------------ kinds of error
@pytest.mark.parametrize('kind', kinds)
def test_a_keypoint_error_put_in_is_the_one_found(kind):
    t = crowd(); r = np.random.default_rng(1); xy = t.xy.copy(); N = len(t)
    k = r.integers(1, K, N); rows = np.arange(N)  # the nose has no mirror partner
    if kind == 'good': xy[rows, k, 0] += at_similarity(t, .9)[rows, k]
    if kind == 'jitter': xy[rows, k, 0] += at_similarity(t, .6)[rows, k]
    if kind == 'inversion': xy[rows, k] = t.xy[rows, COCO17.flip[k]]
    if kind == 'swap': xy[rows, k] = t.xy[rows // 3 * 3 + (rows + 1) % 3, k]
    if kind == 'miss': xy[rows, k] += 2e3
    e = find_errors(t, predicted(t, xy))
    assert (e.kind[rows, k] == kinds.index(kind)).all()
    others = np.ones((N, K), bool); others[rows, k] = False
    assert (e.kind[others] == 0).all() and (e.fate == 0).all() and not e.missed.any()
    assert e.by_keypoint()[:, kinds.index(kind)].sum() == (N if kind != 'good' else N * K)
    if kind not in ('good', 'jitter'):  # one keypoint at ks .6 leaves an OKS of .976, above the strictest threshold
        assert evaluate(*mend(e, (kind,))).stats['AP'] == 1.
        assert max((g for g in gains(e)[1:] if g['kind'] in kinds), key=lambda g: g['alone'])['kind'] == kind


def test_a_swap_with_the_other_side_of_somebody_else_is_a_swap():
    t = crowd(); xy = t.xy.copy(); rows, k = np.arange(len(t)), COCO17.index('left_knee')
    xy[:, k] = t.xy[rows // 3 * 3 + (rows + 1) % 3, COCO17.index('right_knee')]
    assert (find_errors(t, predicted(t, xy)).kind[:, k] == kinds.index('swap')).all()


def test_unlabelled_keypoints_have_no_kind():
    t = crowd(); vis = t.vis.copy(); vis[:, 3] = 0; t = replace(t, vis=vis)
    xy = t.xy.copy(); xy[:, 3] += 1e4
    assert (find_errors(t, predicted(t, xy)).kind[:, 3] == -1).all()


def test_people_missed_twice_and_out_of_nothing():
    t = crowd(); p = predicted(t); void = replace(p[:7], xy=p.xy[:7] + 5e3, bbox=p.bbox[:7] + [5e3, 5e3, 0, 0])
    e = find_errors(t, concat([p[20:], replace(p[20:31], score=p.score[20:31] * .5), void])); n = e.count()
    assert (n['matched'], n['duplicate'], n['background'], n['missed']) == (len(t) - 20, 11, 7, 20)
    g = {x['kind']: x for x in gains(e)}
    assert g['background']['alone'] > 0 and g['missed']['alone'] > .1 and g['missed']['cumulative'] == 1.
    assert len(mend(e, ('duplicate', 'background'))[1]) == len(t) - 20


def test_wrong_ranking_is_a_scoring_error():
    t = crowd(); p = predicted(t); void = replace(p[:60], xy=p.xy[:60] + 5e3)
    both = replace(concat([p, void]), score=np.r_[np.full(len(p), .1), np.full(60, .9)])  # the void is surer
    g = {x['kind']: x['alone'] for x in gains(find_errors(t, both))}
    assert g['scoring'] > .3 and g['miss'] == g['jitter'] == 0


def test_crowds_swallow_and_are_no_error():
    t = crowd(); c = t.iscrowd.copy(); c[::3] = True
    n = find_errors(replace(t, iscrowd=c), predicted(t)).count()
    assert n['ignored'] == n['matched'] / 2 == 40 and n['missed'] == n['background'] == 0


def test_price_of_a_keypoint_is_highest_where_it_is_wrong():
    t = crowd(); xy = t.xy.copy(); xy[:, 9] += 2e3
    g = gain_by_keypoint(find_errors(t, predicted(t, xy)))
    assert g.argmax() == 9 and g[9] > 0 and (np.delete(g, 9) == 0).all()


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_every_prediction_and_keypoint_has_one_class(seed):
    truth, results = nasty_problem(seed)
    if not truth['annotations'] or not results: return
    t = Poses.from_coco(truth, 'coco17'); p = Poses.from_results(results, t); e = find_errors(t, p)
    assert ((e.fate >= 0) & (e.fate < len(fates))).all() and ((e.person >= 0) == (e.fate == 0)).all()
    m = e.person >= 0
    assert np.array_equal(e.kind[m] >= 0, t.labelled[e.person[m]]) and (e.kind[~m] == -1).all()
    assert len(set(e.person[m])) == m.sum() and not e.missed[e.person[m]].any()
    every = evaluate(*mend(e, remedies), e.max_dets, strict=False).stats['AP']
    assert every >= evaluate(t, p, strict=False).stats['AP'] - 1e-9 or every == -1


# ------------------------------------------------------------------ slices
def test_a_slice_of_everybody_is_everybody_and_a_bad_group_is_found():
    t, p = make_people(60, 3, COCO17), make_people(60, 3, COCO17, noise=1., predictions=True)
    for groups in people_groups(t).values(): assert np.array_equal(sum(m.astype(int) for m in groups.values()), t.posed.astype(int))
    assert evaluate(*only_people(t, p, np.ones(len(t), bool))).stats == evaluate(t, p).stats
    bad = t.area > 96**2
    rows = slice_table(evaluate(t, replace(p, xy=np.where(bad[:, None, None], t.xy + 2.5 * (p.xy - t.xy), p.xy))), all_groups(t), n=100)
    assert 'large' in rows[0].name and rows[0].verdict == 'worse' and rows[0].lo <= rows[0].ap <= rows[0].hi


def test_searching_many_slices_of_nothing_finds_nothing():
    """The simultaneous intervals keep the chance of any false finding near 5 %, however many slices are searched."""
    found = 0
    for s in range(20):
        t, p = make_people(60, 2, COCO17, seed=s), make_people(60, 2, COCO17, seed=s, noise=1., predictions=True)
        r = np.random.default_rng(s)
        found += any(x.verdict != 'not shown' for x in slice_table(evaluate(t, p, thresholds=[.5, .75]), {str(i): r.random(len(t)) < .4 for i in range(8)}, n=100))
    assert found <= 4  # 1 expected; P(more than 4 of 20 at 5 %) is .3 %


# ------------------------------------------------------------------ calibration
@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1)), min_size=1, max_size=40))
def test_isotonic_is_the_best_monotone_fit(pairs):
    x, y = np.array(pairs).T; kx, ky = isotonic(x, y); fit = np.interp(x, kx, ky)
    assert (np.diff(ky) >= -1e-12).all() and abs(fit.mean() - y.mean()) < 1e-9
    ux = np.unique(x); level = np.array([fit[x == u][0] for u in ux])  # min-max formula of isotonic regression
    w, m = np.array([(x == u).sum() for u in ux]), np.array([y[x == u].mean() for u in ux])
    best = [max(min((m[a:b+1] @ w[a:b+1]) / w[a:b+1].sum() for b in range(i, len(ux))) for a in range(i + 1)) for i in range(len(ux))]
    np.testing.assert_allclose(level, best, atol=1e-9)


def test_bins_of_equal_mass():
    p = np.r_[np.full(500, .2), np.linspace(.3, 1, 500)]; r = reliability(p, p, 10)
    assert r.n.sum() == 1000 and r.n[0] == 500 and r.ece < 1e-12


def test_maps_and_regions_survive_json_and_keep_their_word():
    def set_of(seed):
        t, p = make_people(150, 3, COCO17, seed=seed), make_people(150, 3, COCO17, seed=seed, noise=1., predictions=True)
        return t, replace(p, conf=np.clip(p.conf + .1 * np.random.default_rng(seed).normal(size=p.conf.shape), .01, .99))
    fit, region, held = set_of(1), set_of(2), set_of(3)
    for kind in ('logistic', 'isotonic'):
        cal = Calibrator.from_dict(json.loads(json.dumps(calibrate_on(*fit, kind, 'near').to_dict())))
        m, _, ks = labelled_pairs(*held); near = np.where(np.isnan(ks), np.nan, ks > .5)
        assert reliability(cal(held[1].conf, box_sizes(held[1]))[m], near).ece < min(.05, reliability(held[1].conf[m], near).ece)
        reg = Regions.from_dict(json.loads(json.dumps(conformal(*region, .9, calibrate_on(*fit, kind)).to_dict())))
        assert abs(covered(reg, *held).mean() - .9) < .03


# ------------------------------------------------------------------ other benchmarks
def test_published_crowdpose_numbers():
    d, want = published('eval_coco_style'); want = want['example_crowdpose']['stats']
    t = Poses.from_coco(d / 'example_crowdpose_val.json', 'crowdpose14')
    got = crowdpose_numbers(evaluate(t, Poses.from_results(d / 'example_crowdpose_preds.json', t)))
    assert set(got) == set(want) and t.area_source == 'box*0.53'
    for k, v in want.items(): assert abs(got[k] - v) < (1e-12 if '_' not in k else 5e-5), k


def test_published_aic_score():
    d, want = published('aic_native')
    got = aic_score(*(json.loads((d / f'keypoint_{n}_example.json').read_text()) for n in ('annotations', 'predictions')))
    assert abs(got['score'] - want['score']) < 1e-12 and got['people'] == want['persons'] and got['images'] == want['images']


def mvor(d): return json.loads((d / 'annotations/camma_mvor_2018.json').read_text())['annotations']


@pytest.mark.parametrize('name', ['openpose_kps.json', 'rtpose_kps.json'])
def test_published_mvor_pck(name):
    d, want = published('eval_mvor'); anns = [a for a in mvor(d) if not a['only_bbox']]
    k, image = np.array([a['keypoints'] for a in anns], float).reshape(-1, 10, 3), np.array([a['image_id'] for a in anns])
    on = k[..., 2] > 0; some = on.any(1); res = json.loads((d / 'detections_results' / name).read_text())
    c = np.array([r['coco_keypoints'] for r in res], float).reshape(-1, K, 3)
    got = mvor_pck(k[some][..., :2], on[some], image[some], c[..., :2], (c[..., :2] != 0).any(-1), np.array([r['image_id'] for r in res]), np.array([r['score'] for r in res], float))
    assert [round(v, 1) for v in got.values()] == want['pck_2d'][name]


@pytest.mark.parametrize('name', ['dfcnet_rfcn_bbox.json', 'openpose_bbox.json', 'rtpose_bbox.json'])
def test_published_mvor_boxes(name):
    d, want = published('eval_mvor'); anns, res = mvor(d), json.loads((d / 'detections_results' / name).read_text())
    got = box_numbers([a['image_id'] for a in anns], [a['bbox'] for a in anns], [r['image_id'] for r in res], [r['bbox'] for r in res], [r['score'] for r in res], ids=[a['id'] for a in anns])
    for k, v in want['bbox'][name].items(): assert round(got[k], 3) == v, k


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_boxes_are_pycocotools(seed):
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    r = np.random.default_rng(seed); n, m, im = r.integers(1, 40), r.integers(1, 80), r.integers(1, 5)
    t = np.round(np.c_[r.uniform(0, 200, (n, 2)), r.uniform(10, 150, (n, 2))]); d = np.round(np.r_[t[r.integers(n, size=m)] + r.normal(size=(m, 4)) * 6]); d[:, 2:] = np.abs(d[:, 2:]) + 1
    first, it, i_d, s = int(r.integers(2)), r.integers(im, size=n) + 1, r.integers(im, size=m) + 1, np.round(r.random(m), 1)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(); gt.dataset = dict(images=[dict(id=i + 1) for i in range(im)], categories=[dict(id=1)], annotations=[dict(id=i + first, image_id=int(it[i]), category_id=1, iscrowd=0, bbox=t[i].tolist(), area=float(t[i, 2] * t[i, 3])) for i in range(n)]); gt.createIndex()
        e = COCOeval(gt, gt.loadRes([dict(image_id=int(i_d[i]), category_id=1, bbox=d[i].tolist(), score=float(s[i])) for i in range(m)]), 'bbox'); e.evaluate(); e.accumulate(); e.summarize()
    got = box_numbers(it, t, i_d, d, s, ids=np.arange(n) + first)
    np.testing.assert_allclose(list(got.values()), e.stats[:9], atol=1e-12)


def test_whole_body_parts_are_pycocotools_of_each_part():
    d, _ = published('mmpose_fragments')
    t = join_whole_body(Poses.from_coco(d / 'coco' / 'test_coco_wholebody.json', 'coco17')); r = np.random.default_rng(0)
    assert t.K == 133 and t.labelled.any(0).sum() > 100
    noisy = [dict(image_id=int(t.image_id[i]), category_id=1, score=float(r.random()), keypoints=np.c_[t.xy[i] + r.normal(size=(133, 2)) * 4, np.ones(133)].ravel().tolist()) for i in range(len(t))]
    p = Poses.from_results(noisy, t); got = whole_body_numbers(t, p)
    for part, (a, b) in body_parts.items():
        tp, pp = take_part(t, part), take_part(p, part)
        theirs = judge(replace(tp, extra=[], info={}).to_coco(), pp.to_results(), sigmas=tp.skeleton.sigmas).stats
        assert abs(got[part]['AP'] - theirs[0]) < 1e-12 and abs(got[part]['AR'] - theirs[5]) < 1e-12
    assert evaluate(take_part(t, 'body'), take_part(replace(p, xy=t.xy)[t.posed], 'body')).stats['AP'] == 1.


# ------------------------------------------------------------------ the table of a run
def small_run(tmp_path, roles=('heldout', 'heldout'), used=None):
    """A run folder with two rows on generated people, as chapters leave it."""
    from posellm.core.run import Run
    from posellm.data.guard import record_use
    t = make_people(30, 3, COCO17); Run(tmp_path / 'r', '00_data').dir.mkdir(parents=True); t.save(tmp_path / 'r' / '00_data' / 'val.json')
    run = Run(tmp_path / 'r', '01_stage1'); run.dir.mkdir(); p = make_people(30, 3, COCO17, noise=1., predictions=True)
    p.save(run.dir / 'a.json'); replace(p, xy=t.xy + .8 * (p.xy - t.xy)).save(run.dir / 'b.json')
    run.save_rows([dict(row=n, results=f'{n}.json', truth='../00_data/val.json', data='made up', split='val', role=role, boxes='ground truth', seed=0) for n, role in zip('ab', roles)])
    if used: record_use(run.dir, t.take_images(used), 'calibration')
    return Run(tmp_path / 'r', '06_eval')


def test_table_has_corrected_verdicts_and_a_latex_twin(tmp_path):
    from posellm.stages.eval import run_eval
    run = small_run(tmp_path); run.dir.mkdir(); table, _ = run_eval(run, 200)
    assert table[1]['verdict'] == 'better' and table[1]['p'] < .05 and table[0].get('delta') is None
    tex = (run.root / 'table.tex').read_text()
    assert tex.count(r'\\') == 3 and r'\toprule' in tex and f"{table[1]['ap']:.3f}" in tex


def test_a_row_on_images_used_for_calibration_cannot_be_held_out(tmp_path):
    from posellm.core.errors import PoseError
    from posellm.stages.eval import run_eval
    run = small_run(tmp_path, used=[3, 4]); run.dir.mkdir()
    with pytest.raises(PoseError, match='2 of the 30 images of this row were used for calibration in 01_stage1, so it cannot be heldout'): run_eval(run, 20)
    small_run(tmp_path / 'b', ('calibration', 'calibration'), [3, 4]); run = small_run(tmp_path / 'c', ('calibration',) * 2, [3, 4]); run.dir.mkdir()
    assert {r['role'] for r in run_eval(run, 20)[0]} == {'calibration'}


def test_yolo_labels_of_coco_val_are_the_images_of_the_subset():
    """Fitting a prior on the val labels of one folder forbids held-out rows on the other."""
    import zipfile

    from posellm.core.errors import PoseError
    from posellm.data.guard import check_role, image_name, image_prints
    d, _ = published('coco_yolo_pose_labels')
    names = [n for n in zipfile.ZipFile(d / 'labels.zip').namelist() if n.endswith('.txt')]
    subset = {s: image_prints(Poses.from_coco(d.parent / 'coco_subset' / 'annotations' / f'person_keypoints_{s}2017.json')) for s in ('train', 'val', 'extra')}
    use = lambda split: [dict(purpose='fitting', chapter='04_vae', images={image_name(dict(file_name=n)): None for n in names if f'{split}2017/' in n})]
    check_role('heldout', subset['val'], use('train'), 'val')
    for s in ('val', 'extra'):
        with pytest.raises(PoseError, match='used for fitting'): check_role('heldout', subset[s], use('val'), s)
    with pytest.raises(PoseError, match='used for fitting'): check_role('calibration', subset['train'], use('train'))


def test_page_of_anybodys_results_stands_alone(tmp_path, capsys):
    from posellm.app.cli import call
    t, p = make_people(12, 2, COCO17), make_people(12, 2, COCO17, noise=1., predictions=True)
    t.save(tmp_path / 't.json'); p.save(tmp_path / 'a.json'); replace(p, xy=t.xy + .5 * (p.xy - t.xy)).save(tmp_path / 'b.json')
    assert call(['eval', *(str(tmp_path / f) for f in ('t.json', 'a.json', 'b.json')), '--resamples', '50', '--html', str(tmp_path / 'page.html'), '--json']) == 0
    page, said = (tmp_path / 'page.html').read_text(), json.loads(capsys.readouterr().out)
    assert said['page'].endswith('page.html') and f"{said['results'][1]['AP']:.3f}" in page and 'Errors by group' in page and 'Sapiens-2B' in page
    assert 'src="http' not in page and '<script' not in page and page.count('<img') == 7


def test_each_chapter_is_compared_with_what_the_one_before_handed_on():
    truth = make_people(200, 2, get_skeleton('coco17')); g = np.random.default_rng(0)
    guess = lambda spread: evaluate(truth, replace(truth, xy=truth.xy + g.normal(0, spread, truth.xy.shape), conf=np.ones(truth.conf.shape), score=g.uniform(.5, 1, len(truth)), vis=None))
    plan = [('01', 'unchanged', 9., None), ('01', 'phase2', 6., None), ('02', 'student', 6., None), ('05', 'argmax', 20., 'maps'), ('05', 'dark', 12., 'maps'), ('05', 'finished', 3., None)]
    evs = [guess(s) for _, _, s, _ in plan]; ground = dict(data='d', split='val', role='heldout', boxes='ground truth', n_images=len(truth.images), n_people=200, seed=0)
    table = [dict(ground, stage=a, row=b, series=c, ap=e.stats['AP']) for (a, b, _, c), e in zip(plan, evs)] + [dict(ground, stage='05', row='finished', role='calibration', series=None, ap=1.)]
    got = handed_on(table, evs + evs[-1:], 1000); assert [(r['stage'], r['row'], r.get('whole', False)) for r in got] == [('01', 'unchanged', False), ('01', 'phase2', False), ('02', 'student', False), ('05', 'finished', False), ('05', 'finished', True)]
    assert 'delta' not in got[0] and [r['verdict'] for r in got[1:]] == ['better', 'not shown', 'better', 'better']
    assert got[-1]['delta'] == pytest.approx(evs[-1].stats['AP'] - evs[0].stats['AP'])
    add_differences(table, evs + evs[-1:], 1000); assert 'delta' not in table[3] and table[4]['verdict'] == 'better' and table[5]['delta'] == pytest.approx(evs[5].stats['AP'] - evs[2].stats['AP'])
