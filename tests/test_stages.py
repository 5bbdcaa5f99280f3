"Chapters as functions: what decides their outcome, what they keep when nothing has changed, whose data they take."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from posellm.app.pipeline import make_plan
from posellm.core.errors import PoseError
from posellm.core.run import Run
from posellm.metrics.oks import make_people
from posellm.pose.skeleton import get_skeleton
from posellm.refine.compare import compare_rules
from posellm.refine.corrupt import corrupt, published_errors
from posellm.refine.members import stack_people
from posellm.refine.postprocess import fit_finish
from posellm.stages import ensemble, postprocess
from posellm.stages.data import check_source, data_of_run, source_of
from posellm.stages.ensemble import ensemble_inputs, kept_ensemble
from posellm.stages.eval import eval_inputs
from posellm.stages.postprocess import kept_looks, kept_postprocess, learn_looks, postprocess_inputs
from posellm.train.hardware import preset

ROOT, COCO17 = Path(__file__).resolve().parents[1], get_skeleton('coco17')


def people(seed=0, n=30): return make_people(n, 2, COCO17, seed=seed)
def seen(truth, seed=0): return corrupt(truth, published_errors(COCO17), seed)[0]


def chapter(root, name, rows=(), **kw):
    r = Run(root, name, **kw); r.dir.mkdir(parents=True, exist_ok=True)
    if rows: r.save_rows(list(rows))
    return r


def run_with_data(root, source='synth'):
    parts = dict(calib=people(1), val=people(2)); folder = chapter(root, '00_data').dir
    for s, p in parts.items(): p.save(folder/f'{s}.json')
    (folder/'data.json').write_text(json.dumps(dict(schema=1, name=Path(source).name, source=source, splits={s: dict(truth=f'{s}.json', paths={str(im['id']): 'none.jpg' for im in p.images}) for s, p in parts.items()})))
    return parts


def rows_of(root, name, parts, row, seed, **settings): # a chapter with results of both parts
    r = chapter(root, name); pred = {s: seen(p, seed) for s, p in parts.items()}
    for s, p in pred.items(): p.save(r.dir/f'{s}.json')
    r.save_rows([dict(row=row, results=f'{s}.json', truth=f'../00_data/{s}.json', split=s, role=role, boxes='ground truth', people_per_s=50., settings=settings) for s, role in (('calib', 'calibration'), ('val', 'heldout'))])
    return pred


def test_every_chapter_asks_whether_it_is_finished():
    for nb in sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb')):
        code = ''.join(''.join(c['source']) + '\n' for c in json.loads(nb.read_text(encoding='utf8'))['cells'] if c['cell_type'] == 'code')
        assert re.search(r'^(if|same =) r\.finished\(', code, re.M), nb.name


def test_each_setting_and_each_file_that_decides_counts(tmp_path):
    run_with_data(tmp_path); cfg, other = preset('tiny'), preset('cpu'); (tmp_path/'a.onnx').write_bytes(b'1'); (tmp_path/'01_stage1').mkdir(); (tmp_path/'04_vae').mkdir()
    def differ(name, inputs, base, *changes):
        r = Run(tmp_path, name, resume=True); r.dir.mkdir(exist_ok=True); r.finish(inputs(r, *base)); assert r.finished(inputs(r, *base))
        for i, v in changes: assert not r.finished(inputs(r, *[v if j == i else x for j, x in enumerate(base)])), (name, i)
        return lambda: r.finished(inputs(r, *base))
    same = differ('03_ensemble', ensemble_inputs, (cfg, 0, str(tmp_path/'a.onnx'), 'auto', True, True), (0, other), (1, 1), (2, ''), (3, 'median'), (4, False), (5, False))
    (tmp_path/'a.onnx').write_bytes(b'2'); assert not same() # another network under the same name
    same = differ('03_ensemble', ensemble_inputs, (cfg, 0, '', 'auto', True, True)); (tmp_path/'01_stage1'/'model.safetensors').write_bytes(b'1'); assert not same()
    same = differ('05_postprocess_llm', postprocess_inputs, (cfg, 0, True, 24), (0, other), (1, 1), (2, False), (3, 0))
    (tmp_path/'01_stage1'/'model.safetensors').write_bytes(b'2'); assert not same()
    for c, name in (('04_vae', 'prior.json'), ('03_ensemble', 'rows.json')): # the router asks the one and takes its cost from the other
        same = differ('05_postprocess_llm', postprocess_inputs, (cfg, 0, True, 24)); (tmp_path/c/name).write_text(json.dumps(dict(schema=1, rows=[]))); assert not same()
    same = differ('06_eval', eval_inputs, (200, 0), (0, 100), (1, 1)); (tmp_path/'04_vae'/'used.json').write_text('{}'); assert not same()


@pytest.mark.parametrize('rules', [('uniform', 'covariance'), ('median',)])
def test_a_kept_ensemble_is_the_one_that_was_made(tmp_path, rules):
    parts = run_with_data(tmp_path); run = chapter(tmp_path, '03_ensemble'); stacks = {s: stack_people({m: seen(t, i) for i, m in enumerate(('a', 'b'))}) for s, t in parts.items()}
    c = compare_rules(stacks['calib'], parts['calib'], stacks['val'], parts['val'], rules, n=20); ensemble._leave(run, c, stacks, 'x', 0, {c.best: 10.}, {})
    again, back, truth = kept_ensemble(run, data_of_run(run, None)[0])
    assert str(again) == str(c) and (again.best, again.chosen) == (c.best, c.chosen)
    for s in parts: np.testing.assert_allclose(back[s].xy, stacks[s].xy, atol=1e-6); np.testing.assert_allclose(back[s].conf, stacks[s].conf, atol=1e-6)
    for r, f in again.fusers.items(): p, q = f(back['val']), c.fusers[r](stacks['val']); np.testing.assert_allclose(p.xy, q.xy, atol=1e-5); np.testing.assert_allclose(p.cov, q.cov, rtol=1e-3)


def two_answers(root, members):
    parts = run_with_data(root); rows_of(root, '01_stage1', parts, 'phase2', 1); pred = rows_of(root, '03_ensemble', parts, 'fused', 2, members=members)
    run = chapter(root, '05_postprocess_llm'); got = {s: (parts[s], pred[s], run.upstream(s)) for s in parts}
    return run, got, fit_finish(parts['calib'], pred['calib'])


def test_one_fused_member_costs_nothing_more_and_gets_no_router(tmp_path, caplog):
    run, got, f = two_answers(tmp_path, ['stage1'])
    with caplog.at_level('INFO'): looks = learn_looks(run, got, f, n=20)
    assert looks.router is None and looks.measured is None and list(looks.answers) == ['stage 1 alone, finished'] and 'one member was fused' in caplog.text


def test_what_chapter_05_left_is_read_again(tmp_path):
    run, got, _ = two_answers(tmp_path, ['stage1', 'other']); f, meaning, versions = postprocess.finish_and_mean(got, 'x'); looks = learn_looks(run, got, f, n=20)
    steps = [dict(step='as they came', ap=.5, delta=None)]; judged = dict(predictions=[dict(facts='all', precision=np.nan)])
    postprocess.leave(run, preset('tiny'), got, f, meaning, versions, {}, steps, judged, 0, looks); (g, m, v, s, j), again = kept_postprocess(run, got), kept_looks(run)
    assert g.to_dict() == f.to_dict() and m.to_dict() == meaning.to_dict() and s == steps and np.isnan(j['predictions'][0]['precision']) and list(v) == list(versions)
    assert again.fast_dict() == looks.fast_dict() and list(again.answers) == list(looks.answers)
    if looks.router is not None: assert again.router_dict() == json.loads(json.dumps(looks.router_dict()))
    postprocess.leave(run, preset('tiny'), got, f, meaning, versions, {}, steps, judged, 0, None); assert kept_looks(run) is None and not (run.dir/'router.json').exists()


def test_a_run_keeps_its_data_unless_others_are_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv('POSELLM_ROOT', str(ROOT)); monkeypatch.setenv('POSELLM_RUNS', str(tmp_path)); (tmp_path/'mine').mkdir(); monkeypatch.chdir(tmp_path)
    for name, source in (('a', 'synth'), ('b', str(tmp_path/'mine')), ('c', 'mine')): run_with_data(tmp_path/name, source); assert len(data_of_run(Run(tmp_path/name, '01_stage1'), None)[0]) == 2 # the default fits every run
    for name, data in (('a', 'synth'), ('b', str(tmp_path/'mine')), ('b', 'mine'), ('b', str(tmp_path/'x'/'..'/'mine')), ('c', str(tmp_path/'mine')), ('c', 'mine')): data_of_run(Run(tmp_path/name, '01_stage1'), None, data)
    for name, data in (('a', '/my/own/set'), ('b', '/my/own/set'), ('b', '/elsewhere/mine'), ('c', 'yours')):
        with pytest.raises(PoseError, match='this run holds other data') as e: data_of_run(Run(tmp_path/name, '01_stage1'), None, data)
        assert (e.value.field, e.value.found) == ('data', data) and e.value.allowed and 'chapter 00' in e.value.todo
    assert [source_of(Run(tmp_path/n, '02_ssl'), d) for n, d in (('a', 'synth'), ('b', 'synth'), ('b', 'mine'))] == ['synth', str(tmp_path/'mine'), 'mine'] # its unlabelled part, not generated pictures
    check_source(tmp_path/'none', '/my/own/set') # no data yet
    with pytest.raises(PoseError, match='this run holds other data'): make_plan(name='a', data=str(tmp_path/'mine'), chapters='04', resume=True) # before it is recorded
    assert make_plan(name='a', data=str(tmp_path/'mine'), chapters='00,04', resume=True).steps[1][2]['data'] == str(tmp_path/'mine')
    assert make_plan(name='b', chapters='04', resume=True)


@pytest.mark.parametrize('form', ['coco', 'yolo'])
def test_corrected_labels_are_read_when_a_run_goes_on(tmp_path, form):
    """Who mends labels after `posellm check` and resumes wants the mended ones; nothing changed is nothing to do."""
    from coco_sets import coco, write
    from posellm.data.coco import load_data
    from posellm.data.writers import write_yolo
    from posellm.stages.data import inputs, run_data
    cfg, folder = preset('tiny'), tmp_path / 'set'
    for part, first in (('train', 1), ('val', 101)): write(folder / f'annotations/person_keypoints_{part}2017.json', folder / f'{part}2017', coco(first=first))
    if form == 'yolo': write_yolo({s: load_data(folder, s) for s in ('train', 'val')}, tmp_path / 'y'); folder = tmp_path / 'y'
    run_data(cfg, Run(tmp_path / 'run', '00_data'), str(folder)); again = lambda: Run(tmp_path / 'run', '00_data', True).finished(inputs(cfg, str(folder), 0, 0))
    assert again()
    file = next((folder / 'labels' / 'train').iterdir()) if form == 'yolo' else folder / 'annotations/person_keypoints_train2017.json'
    text = file.read_text(); file.write_text(text.replace('2', '1', 1) + ('\n' if form == 'yolo' else '')); assert not again()


def test_one_network_under_two_names_is_one_member(tmp_path):
    """A chapter that found nothing better hands on what it began with: that must not count twice."""
    import copy
    from posellm.models.zoo import create_model
    a = create_model('posellm-s', input_hw=(64, 48), weights=None); b, c = copy.deepcopy(a), copy.deepcopy(a)
    with torch.no_grad(): next(c.parameters()).add_(1e-3)
    assert ensemble.same_weights(dict(stage1=a, stage2=b, other=c)) == dict(stage2='stage1') and ensemble.same_weights(dict(x=a, y=c)) == {}


def test_chapter_05_can_be_called(tmp_path):
    """The function leaves what the chapter leaves: rows, what was learned, and how every step and every kind of fact did."""
    run, got, _ = two_answers(tmp_path, ['stage1']); f, meaning, steps, judged = postprocess.run_postprocess(preset('tiny'), run, n=20)
    assert [r['row'] for r in run.rows() if r['split'] == 'val'][-1] == 'post-processed' and steps and judged and (run.dir/'finish.json').is_file() and kept_postprocess(run, got)[0].to_dict() == f.to_dict()
