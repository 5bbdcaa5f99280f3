"Configuration files: ours, those of the source projects, and the record of a run."
import json
from pathlib import Path

import pytest
import yaml

from coco_sets import coco
from posellm.app import config
from posellm.app.chapters import chapter_params, find_chapters
from posellm.app.pipeline import make_plan, record
from posellm.core.errors import PoseError
from posellm.stages.stage1 import stage1_settings
from posellm.train.hardware import preset, resolve

ROOT = Path(__file__).resolve().parents[1]
NESTED = '''
model: {name: sapiens_2b, backbone: vit_2b, pretrained: true, pretrained_path: facebook/sapiens-pretrain-1b-torchscript, num_keypoints: 17, input_size: [384, 288], heatmap_size: [96, 72]}
dataset: {image_dir: data/coco/images, train_annotations: data/coco/annotations/a_train.json, val_annotations: data/coco/annotations/a_val.json, num_workers: 2, unlabeled: {image_dir: data/external, num_samples: 5000}}
training: {mixed_precision: true, phase1: {epochs: 10, learning_rate: 5.0e-4, freeze_backbone: true, batch_size: 2, gradient_accumulation_steps: 16}, phase2: {epochs: 100, learning_rate: 5.0e-4, freeze_backbone: false, batch_size: 2, gradient_accumulation_steps: 16}}
ssl: {ssl_weight: 0.5, multi_path: {num_hard_augmentations: 3}}
logging: {use_wandb: true}
'''
CONSTANTS = 'ROOT_DIR: ROOT\nUSE_RAW: true\nBATCH_SIZE: 8\nNUM_EPOCHS: 25\nLEARNING_RATE: 1.0e-3\nIMG_SIZE: 256\nHEATMAP_SIZE: 64\nNUM_KEYPOINTS: 17\nNUM_WORKERS: 1\nLR_SCHEDULER_STEP_SIZE: 10\nLR_SCHEDULER_GAMMA: 0.5\nCHECKPOINT_DIR: checkpoints\nMODEL_SAVE_NAME: best.pth\nMAX_SAMPLES: 500\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    labels = tmp_path/'data'/'coco'/'annotations'; labels.mkdir(parents=True); (tmp_path/'data'/'external').mkdir()
    for part in ('train', 'val'): (labels/f'a_{part}.json').write_text(json.dumps(coco()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('POSELLM_ROOT', str(ROOT)); monkeypatch.setenv('POSELLM_RUNS', str(tmp_path/'runs'))
    return tmp_path


def written(home, text, name='c.yaml'): (home/name).write_text(text); return home/name


def test_every_key_of_the_sources_is_understood_and_does_what_it_says(home):
    assert set(config.flatten(yaml.safe_load(NESTED))) | set(yaml.safe_load(CONSTANTS)) == set(config.source_keys())
    plan = make_plan(config=written(home, NESTED), name='a', chapters='00,01'); ps = plan.steps[1][2]
    assert ps['model'] == 'sapiens-2b' and ps['weights'] == 'hub:facebook/sapiens-pretrain-1b-torchscript' and ps['wandb'] is True and ps['data'] == str(home/'data'/'coco')
    cfg = preset('gtx1650', **ps['over']); name, start, f = stage1_settings(cfg, model=ps['model'], weights=ps['weights'], phases=ps['phases'], wandb=ps['wandb'])
    assert (cfg.input_hw, cfg.batch, cfg.accumulate, cfg.workers) == ((384, 288), 2, 16, 2) and f.loggers == ('tensorboard', 'wandb')
    assert [(p.epochs, p.lr, p.frozen, p.steps) for p in f.phases] == [(10, 5e-4, True, 0), (100, 5e-4, False, 0)]
    flat = yaml.safe_dump(config.flatten(yaml.safe_load(NESTED))) # the same keys with dots instead of blocks
    assert make_plan(config=written(home, flat), name='a', chapters='00,01').steps[1][2] == ps


def test_constants_of_the_resnet_framework(home):
    ps = make_plan(config=written(home, CONSTANTS.replace('ROOT\n', f'{home}/data/coco\n')), name='a', chapters='00,01', params=dict(seed=1)).steps[1][2]
    cfg = resolve('cpu', **ps['over'])[0]; name, start, f = stage1_settings(cfg, model=ps['model'], lr=ps['lr'], phases=ps['phases'])
    assert name == 'resnet_seed' and [(p.epochs, p.lr, p.every, p.gamma, p.schedule) for p in f.phases] == [(25, 1e-3, 10, .5, 'step')]
    assert (f.batch, f.best, f.optimizer, cfg.workers) == (8, 'loss', 'adam', 1) and cfg.input_hw == (256, 256)
    assert make_plan(config=home/'c.yaml', name='a', chapters='00').steps[0][2]['limit'] == 500


@pytest.mark.parametrize('text, words', [
    ('model: {nam: x}', ["'model.nam'", "did you mean 'model.name'"]),
    ('training: {phase3: {epochs: 3}}', ['training.phase3.epochs', 'did you mean']),
    ('BATCHSIZE: 8', ["did you mean 'BATCH_SIZE'"]),
    ('model: {name: sapiens_3b}', ['unknown model', 'sapiens']),
    ('model: {input_size: [384, 288], heatmap_size: [64, 48]}', ['quarter']),
    ('model: {input_size: big}', ['not a size']),
    ('training: {phase1: {batch_size: 2}, phase2: {batch_size: 4}}', ['one batch']),
    ('dataset: {train_annotations: a/annotations/t.json, val_annotations: b/annotations/v.json}', ['different data sets']),
    ('ssl: {multi_path: {num_hard_augmentations: 9}}', ['1 to 4']),
    ('over: 3', ['over']),
    ('[1, 2]', ['key: value']),
])
def test_anything_else_is_refused(home, text, words):
    with pytest.raises(PoseError) as e: make_plan(config=written(home, text), name='a', chapters='00,01')
    assert all(w in str(e.value) for w in (*words, 'c.yaml')), str(e.value)


@pytest.mark.parametrize('over, phases, word', [(dict(bathc=2), {}, 'batch'), ({}, dict(phase9={}), 'phase2'), ({}, dict(phase1=dict(epoch=3)), 'epochs')])
def test_blocks_of_ours_are_checked(over, phases, word):
    with pytest.raises(PoseError, match=f"did you mean '{word}'"): stage1_settings(preset('tiny', **over), phases=phases)


def test_what_has_no_effect_is_said(home, caplog):
    with caplog.at_level('INFO'): make_plan(config=written(home, NESTED), name='a', chapters='00,01')
    said = '\n'.join(r.getMessage() for r in caplog.records)
    assert 'model.backbone has no effect: model.name decides it' in said and 'of no use to the chosen chapters' in said and 'unlabeled' in said


def test_a_run_can_be_repeated_from_its_record(home):
    first = make_plan(gpu='tiny', data='synth', name='a', chapters='00,01', params=dict(seed=3, lr='1e-2', over={'batch': 4})); record(first)
    d = json.loads((home/'runs'/'a'/'config.json').read_text()); assert d['parameters']['01_stage1']['lr'] == .01
    again = make_plan(config=home/'runs'/'a'/'config.json', name='b')
    assert [s for s, _, _ in again.steps] == ['00_data', '01_stage1']
    strip = lambda plan: [{k: v for k, v in ps.items() if k != 'run'} for _, _, ps in plan.steps]
    assert strip(again) == strip(first)
    (home/'runs'/'a'/'00_data').mkdir(); (home/'runs'/'a'/'00_data'/'data.json').write_text('{}')
    with pytest.raises(PoseError, match='already under that name'): make_plan(config=home/'runs'/'a'/'config.json') # never over the first by itself
    assert make_plan(config=home/'runs'/'a'/'config.json', force=True).name == 'a'
    del d['parameters']; (home/'old.json').write_text(json.dumps(d))
    with pytest.raises(PoseError, match='not made by posellm run'): make_plan(config=home/'old.json', name='b')


def test_the_preset_that_was_used_is_repeated(home):
    run = make_plan(gpu='auto', name='a', chapters='01'); record(run)
    f = home/'runs'/'a'/'config.json'; d = json.loads(f.read_text()); d['chapters'] = {'01_stage1': dict(preset=preset('t4').to_dict())}; f.write_text(json.dumps(d))
    assert make_plan(config=f, name='b').steps[0][2]['gpu'] == 't4'


def test_example_files_serve_papermill_too():
    chapters = find_chapters(ROOT/'nbs'); known = {n for p in chapters.values() for n in chapter_params(p)} | {'chapters'}
    for f in (ROOT/'configs').glob('*.yaml'):
        d = yaml.safe_load(f.read_text()); assert set(d) <= known, f.name
        from papermill.parameterize import parameterize_path # papermill's own reading of -f is a plain YAML mapping
        assert parameterize_path(str(f), {}) == str(f) and not any(isinstance(v, dict) for k, v in d.items() if k not in config.own_blocks)


@pytest.mark.parametrize('text, words', [
    ('training: {phase1: {epochs: ten}}', ['training.phase1.epochs', "'ten'", 'a number']),
    ('training: {phase1: {freeze_backbone: maybe}}', ['training.phase1.freeze_backbone', 'true or false']),
    ('training: {mixed_precision: sometimes}', ['training.mixed_precision', "'sometimes'"]),
    ('dataset: {num_workers: two}', ['dataset.num_workers', 'whole number']),
    ('dataset: {unlabeled: {num_samples: many}}', ['dataset.unlabeled.num_samples', 'whole number']),
    ('IMG_SIZE: 25x6', ['IMG_SIZE', '25x6', '[height, width]']),
    ('LEARNING_RATE: fast', ['LEARNING_RATE', 'a number']),
    ('model: {pretrained_path: weights/none.pth}', ['model.pretrained_path', 'weights/none.pth', 'OWNER/NAME']),
    ('over: {workers: two}', ['workers', 'whole number']),
    ('over: {bathc: 2}', ['bathc', "did you mean 'batch'"]),
    ('over: 3', ['over', 'not a block']),
    ('phases: {phase1: {lr: fast}}', ['phase1: lr', 'not a number']),
    ('phases: {phase1: {epoch: 3}}', ["did you mean 'epochs'"]),
    ('phases: [1]', ['phases', 'not a block']),
])
def test_wrong_values_are_refused_with_file_and_key_before_a_chapter_starts(home, text, words):
    with pytest.raises(PoseError) as e: make_plan(config=written(home, text), name='a', chapters='00,01,02')
    assert all(w in str(e.value) for w in (*words, 'c.yaml', 'allowed', 'do:')), str(e.value)


def test_numbers_that_yaml_takes_for_words_are_numbers(home):
    ps = make_plan(config=written(home, 'training: {phase1: {learning_rate: 5e-4}}\ndataset: {num_workers:}\n'), name='a', chapters='00,01').steps[1][2]
    assert ps['phases'] == dict(phase1=dict(lr=5e-4)) and 'over' not in ps
    ps = make_plan(config=written(home, 'phases: {phase1: {lr: 5e-4}}\nlr: 2e-3\n'), name='a', chapters='00,01').steps[1][2]; assert (ps['phases'], ps['lr']) == (dict(phase1=dict(lr=5e-4)), 2e-3)


def test_the_folder_of_a_run_stands_for_its_record(home):
    record(make_plan(gpu='tiny', data='synth', name='a', chapters='00,01', params=dict(seed=3))); again = make_plan(config=home/'runs'/'a', name='b')
    assert again.steps[1][2]['seed'] == 3
    with pytest.raises(PoseError, match='config.json of a run'): make_plan(config=home/'runs', name='b')


def test_chapters_that_were_run_one_by_one_are_repeated_with_their_own_values(home):
    record(make_plan(gpu='tiny', name='a', chapters='01', params=dict(steps=100, seed=3))); record(make_plan(gpu='cpu', name='a', chapters='02', params=dict(steps=500, seed=3))); record(make_plan(name='a', chapters='04', params=dict(seed=3)))
    again = {s: ps for s, _, ps in make_plan(config=home/'runs'/'a', name='b').steps}
    assert [(again[c].get('steps'), again[c].get('gpu'), again[c]['run'], again[c]['seed']) for c in ('01_stage1', '02_ssl', '04_vae')] == [(100, 'tiny', 'b', 3), (500, 'cpu', 'b', 3), (None, None, 'b', 3)]
    asked = {s: ps for s, _, ps in make_plan(config=home/'runs'/'a', name='b', gpu='tiny', chapters='00,02,04', params=dict(steps=7)).steps}
    assert [(asked[c].get('steps'), asked[c]['gpu'], asked[c]['seed']) for c in asked] == [(None, 'tiny', 3), (7, 'tiny', 3), (7, 'tiny', 3)] # what is said now wins; a chapter without a record has what all agree on
    d = json.loads((home/'runs'/'a'/'config.json').read_text()); d['parameters']['01_stage1']['stepz'] = 1; (home/'odd.json').write_text(json.dumps(d))
    with pytest.raises(PoseError, match="did you mean 'steps'"): make_plan(config=home/'odd.json', name='b')


def test_what_yaml_cannot_convert_is_refused_and_dates_are_words(home):
    assert make_plan(config=written(home, 'name: 2024-13-45\nchapters: "00"\n')).name == '2024-13-45'
    assert make_plan(config=written(home, 'name: 2024-11-30\nchapters: "00"\n')).name == '2024-11-30'
    with pytest.raises(PoseError, match='not valid YAML.*ten'): make_plan(config=written(home, 'seed: !!int ten\n'), name='a')
    with pytest.raises(PoseError, match="model.pretrained_path: there are no such weights; found '123'"): make_plan(config=written(home, 'model: {pretrained_path: 123}\n'), name='a', chapters='01')


def test_named_annotation_files_are_those_that_are_read(home, caplog):
    "A source project names files; here a folder is read. Where the two disagree, somebody would train on other people."
    named = lambda train, val='data/coco/annotations/a_val.json', more='': written(home, f'dataset: {{train_annotations: {train}, val_annotations: {val}{more}}}')
    with pytest.raises(PoseError, match='dataset.val_annotations: there is no such file'): make_plan(config=named('data/coco/annotations/a_train.json', 'data/coco/annotations/b_val.json'), name='a', chapters='00')
    with caplog.at_level('INFO'): make_plan(config=named('data/coco/annotations/a_train.json', more=', image_dir: data/coco/train'), name='a', chapters='00')
    assert 'dataset.image_dir has no effect' in caplog.text
    (home/'data'/'coco'/'annotations'/'person_keypoints_train2017.json').write_text(json.dumps(coco()))
    with pytest.raises(PoseError, match="dataset.train_annotations: the folder's train part is another file"): make_plan(config=named('data/coco/annotations/a_train.json'), name='a', chapters='00')


def test_a_folder_of_loose_pictures_gets_its_boxes_from_a_detector(home):
    boxes = lambda folder: make_plan(config=written(home, f'dataset: {{unlabeled: {{image_dir: {folder}}}}}'), name='a', chapters='00,02').steps[1][2]
    assert (boxes('data/external')['boxes'], boxes('data/external')['unlabeled']) == ('auto', str(home/'data'/'external')) and boxes('data/coco').get('boxes') == 'truth'
    with pytest.raises(PoseError, match='unlabeled: there is no such file or folder'): boxes('data/nowhere')


@pytest.mark.parametrize('params, words', [
    (dict(method='multiaug'), ["unknown method", "'multiaugs'"]), (dict(model='resnet51'), ['unknown model', 'resnet']), (dict(weights='no/file.pth'), ['weights', 'no such file']), (dict(weights='nofile.pth'), ['weights', 'no such file']),
    (dict(over="{'bach': 4}"), ["did you mean 'batch'"]), (dict(phases='{phase3: {lr: 1}}'), ['unknown phase', 'phase1']), (dict(limit='-3'), ['limit', 'negative']), (dict(lr='-1'), ['lr', 'negative']), (dict(unlabeled='rel/none'), ['unlabeled', 'no such']),
    (dict(seed='-1'), ['seed', 'negative']), (dict(calib='val'), ['calib', 'trained on or reported']), (dict(train_recipe='huge'), ['unknown recipe'])])
def test_what_would_stop_a_chapter_later_stops_the_plan(home, params, words):
    with pytest.raises(PoseError) as e: make_plan(gpu='tiny', name='a', chapters='00,01,02', params=params)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_words_and_paths_are_understood_as_typed(home):
    off = make_plan(config=written(home, 'force: "no"\nresume: off\n'), name='a', chapters='00').steps[0][2]; assert not off['force'] and not off['resume']
    with pytest.raises(PoseError, match='resume.*yess'): make_plan(config=written(home, 'resume: yess\n'), name='a', chapters='00')
    assert make_plan(name='a', chapters='01', params=dict(over='{batch: 4}')).steps[0][2]['over'] == dict(batch=4)
    assert make_plan(name='a', chapters='02', params=dict(unlabeled='data/external')).steps[0][2]['unlabeled'] == str(home/'data'/'external') # chapters run in the project's folder
    for data in ('', 'nowhere'):
        with pytest.raises(PoseError, match='data: '): make_plan(data=data, name='a', chapters='00')


def test_the_name_of_a_run_is_never_a_number(home):
    for name in ('007', '010', '1_000', '0x1F', '1.10', 'yes'): assert make_plan(config=written(home, f'name: {name}\nchapters: "00"\n')).name == name
    assert make_plan(name='a', chapters='04', params=dict(generated='-1')).steps[0][2]['generated'] == -1 # as its help says
