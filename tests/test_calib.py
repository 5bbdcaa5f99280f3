"People that weights are chosen on: set aside, neither trained on nor reported."
from dataclasses import replace

import pytest

from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.core.run import Run
from posellm.data.coco import load_data, write_coco
from posellm.data.guard import check_role, image_prints, record_use, uses_of_run
from posellm.data.synth import write_synth
from posellm.metrics.oks import make_people
from posellm.pose.skeleton import get_skeleton
from posellm.stages.data import carve, open_data, run_data
from posellm.train.hardware import preset

COCO17 = get_skeleton('coco17')


def ids(p): return {im['id'] for im in p.images}


def test_a_tenth_of_train_is_set_aside_by_image():
    p = make_people(400, 3, COCO17); rest, part = carve(p, 1)
    assert not ids(rest) & ids(part) and ids(rest) | ids(part) == ids(p) and len(part) in range(117, 121)
    assert ids(carve(p, 1)[1]) == ids(part) != ids(carve(p, 2)[1])
    assert len(carve(make_people(33, 3, COCO17))) == 1 # 99 people: none to spare
    assert len(carve(make_people(6000, 2, COCO17))[1]) == 1000


def test_a_photograph_under_two_numbers_stays_in_train(tmp_path):
    p = make_people(100, 2, COCO17)
    for im in p.images: (tmp_path/f"{im['id']}.bin").write_bytes(b'%d' % (im['id']//2)); im.update(path=str(tmp_path/f"{im['id']}.bin"), file_name=f"{im['id']}.bin")
    rest, part = carve(p)
    assert not {i//2 for i in ids(rest)} & {i//2 for i in ids(part)}


def test_generated_people_and_third_parts(tmp_path, caplog):
    folder = write_synth(tmp_path/'made', 6, 4, 0, seed=3, n_calib=5)
    parts, _ = open_data(str(folder), None)
    assert list(parts) == ['train', 'val', 'calib'] and len({tuple(p.bbox[0]) for p in parts.values()}) == 3 and (parts['calib'].num_keypoints > 0).sum() >= 5
    (folder/'annotations'/'person_keypoints_calib2017.json').rename(folder/'annotations'/'person_keypoints_test2017.json'); (folder/'calib2017').rename(folder/'test2017')
    assert list(open_data(str(folder), None)[0]) == ['train', 'val'] # six people cannot spare any
    named = open_data(str(folder), None, calib='test')[0]['calib']
    assert (named.bbox == parts['calib'].bbox).all()
    with pytest.raises(PoseError, match='no such split'): open_data(str(folder), None, calib='spare')
    with pytest.raises(PoseError, match='trained on or reported'): open_data(str(folder), None, calib='val')
    with caplog.at_level('WARNING'): open_data(str(folder), None)
    assert 'train has 6 people with keypoints, too few' in caplog.text
    (folder/'annotations'/'person_keypoints_train2017.json').unlink()
    with pytest.raises(PoseError, match="data: this data set has no part to learn from; found '.*val.*'"): open_data(str(folder), None)


def test_calib_may_calibrate_and_nothing_else(tmp_path):
    if not shared_data(): pytest.skip('the photographs of coco_subset are not on this machine')
    subset = shared_data()/'coco_subset'
    run = Run(tmp_path/'r', '00_data'); run.dir.mkdir(parents=True)
    parts = run_data(preset('tiny'), run, str(subset)); prints = image_prints(parts['calib'])
    assert set(run.config()['chapters']['00_data']['fingerprint']) == {'train', 'val', 'calib'} and (parts['calib'].num_keypoints > 0).sum() >= 20
    assert sum(len(parts[s].images) for s in ('train', 'calib')) == len(load_data(subset, 'train').images)
    record_use(tmp_path/'r'/'01_stage1', parts['calib'], 'calibration'); record_use(tmp_path/'r'/'01_stage1', parts['train'], 'fitting'); uses = uses_of_run(tmp_path/'r')
    check_role('calibration', prints, uses); check_role('heldout', image_prints(parts['val']), uses)
    with pytest.raises(PoseError, match='used for calibration'): check_role('heldout', prints, uses)


def test_stage1_chooses_on_calib_and_reports_val(tmp_path):
    from posellm.stages.eval import run_eval
    from posellm.stages.stage1 import run_stage1
    cfg = replace(preset('tiny'), steps=(0, 2), n_train=8, n_val=6, n_calib=5)
    run = Run.open('r', '01_stage1', root=tmp_path); folder = write_synth(tmp_path/'d', 8, 6, 0, seed=5, n_calib=5)
    _, h = run_stage1(cfg, run, str(folder))
    rows = {(r['row'], r['split']): r for r in run.rows()}
    assert {k: r['role'] for k, r in rows.items()} == {(n, s): r for n in ('unchanged', 'phase2') for s, r in (('val', 'heldout'), ('calib', 'calibration'))}
    assert h.best['step'] == 2 and all((run.dir/r['results']).is_file() for r in rows.values())
    later = Run(tmp_path/'r', '06_eval'); later.dir.mkdir()
    assert later.upstream('val')['results'] == 'results_phase2.json' and later.upstream('calib')['role'] == 'calibration' and later.upstream('other') is None
    table, _ = run_eval(later, 20)
    assert [t['role'] for t in table] == ['heldout']*2 + ['calibration']*2 and table[3].get('delta') is None is not table[1].get('delta')
    # a row that calls these people held out is refused
    run.save_rows([{k: v for k, v in r.items() if k != 'folder'} | dict(role='heldout') for r in run.rows()])
    with pytest.raises(PoseError, match='used for calibration in 01_stage1'): run_eval(later, 20)
