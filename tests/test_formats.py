"""Formats: known sets in each are read exactly; damaged ones give a clear word or the same people; there and back; the command line."""
import copy
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from format_sets import MAKERS, H, W, dump
from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.coco import load_data
from posellm.data.formats import FORMATS, open_source, read_parts
from posellm.data.writers import WRITERS, write_set, write_yolo
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton


@pytest.fixture(autouse=True)
def quiet(): logging.getLogger('posellm.data').setLevel(logging.CRITICAL)


@lru_cache(None)
def _make(name, seed): return MAKERS[name](seed)


def make(name, seed=0):
    try: return copy.copy(_make(name, seed))
    except ModuleNotFoundError as e: pytest.skip(f'{e.name} is not installed')


def lay(folder, made, changed=None):
    """Write the files and return what is opened."""
    for f, data in made.files.items():
        p = Path(folder) / f
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(changed if changed is not None and f == made.main else data)
    return Path(folder) / made.open


def read(path):
    """The only split of a set."""
    source, parts, done = read_parts(path)
    assert len(parts) == 1
    return next(iter(parts.values()))


def sound(p):
    """What every `Poses` must be, whatever was in the file."""
    n, K = len(p), p.skeleton.K
    assert p.xy.shape == (n, K, 2) and p.vis.shape == (n, K) and np.isfinite(p.xy).all() and np.isin(p.vis, (0, 1, 2)).all()
    assert p.bbox.shape == (n, 4) and np.isfinite(p.bbox).all() and np.isfinite(p.area).all() and len(np.unique(p.ann_id)) == n
    assert set(p.image_id.tolist()) <= {im['id'] for im in p.images} and len({im['id'] for im in p.images}) == len(p.images) and all(isinstance(im['file_name'], str) and im['file_name'] for im in p.images)
    Poses.from_coco(json.loads(json.dumps(p.to_coco())), p.skeleton)
    return p


def same(p, made, tol=1e-9):
    if not (len(p) == len(made.xy) and p.skeleton == get_skeleton(made.skeleton)): return False
    return bool(np.abs(p.xy - made.xy).max() <= tol and (p.vis == made.vis).all() and (made.bbox is None or np.abs(p.bbox - made.bbox).max() <= 1e-6))


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('seed', range(3))
def test_known_sets_are_read_exactly(tmp_path, name, seed):
    made = make(name, seed)
    p = sound(read(lay(tmp_path, made)))
    assert same(p, made), (np.abs(p.xy - made.xy).max(), p)
    assert read(tmp_path / made.main).skeleton == p.skeleton if made.main.endswith(('.mat', '.npz', '.xml', '.zip', '.yaml', 'val.json')) else True  # the file itself


def test_every_format_has_a_set(): assert {m.split('_')[0] for m in MAKERS} >= {f.split('-')[0] for f in FORMATS}


# Damage: about 1,000 files in the quick profile, 18,000 with HYPOTHESIS_PROFILE=fuzz

many = settings(max_examples=600 if os.environ.get('HYPOTHESIS_PROFILE') == 'fuzz' else 30)

CHANGES = ('flip', 'cut', 'insert', 'drop', 'double', 'zeros', 'text')


def damage(data, kind, where, what):
    i = min(int(where * len(data)), len(data) - 1)
    if kind == 'flip': return data[:i] + bytes([data[i] ^ (1 << what % 8)]) + data[i + 1:]
    if kind == 'cut': return data[:i]
    if kind == 'insert': return data[:i] + bytes([what % 256]) + data[i:]
    if kind == 'drop': return data[:i] + data[i + 1 + what % 40:]
    if kind == 'double': return data[:i + what % 60] + data[i:]
    if kind == 'zeros': return data[:i] + b'\0' * (1 + what % 20) + data[i + 1 + what % 20:]
    return data[:i] + [b'nan', b'NaN', b'1e999', b'-', b'null', b'\xff', b'"', b'[', b'<', b'99999999999999999999', b'1_0', b'\xd9\xa3'][what % 12] + data[i + 1:]


@pytest.mark.parametrize('name', MAKERS)
@many
@given(kind=st.sampled_from(CHANGES), where=st.floats(0, 1), what=st.integers(0, 2**16), twice=st.booleans())
def test_damaged_bytes(name, kind, where, what, twice):
    made = make(name)
    data = damage(made.files[made.main], kind, where, what)
    if twice and data: data = damage(data, CHANGES[what % len(CHANGES)], (where * 7) % 1, what // 3)
    with tempfile.TemporaryDirectory() as tmp:
        try: p = read(lay(tmp, made, data))
        except PoseError as e: assert e.what and str(e); return
        sound(p)
        if kind == 'cut' and not twice and made.main.endswith(('.json', '.xml', '.mat', '.npz', '.h5', '.zip')): assert same(p, made), 'a file cut short was read as if it were whole'
        if kind == 'cut' and not twice and made.main.endswith('.txt'):  # lines may be lost, numbers not
            assert all(min(np.abs(k - j).max() for j in made.xy) < 1e-3 for k in p.xy)


# Wrong values in their right places

WRONG = (None, 'x', '3', True, math.nan, math.inf, 1e300, [], {}, [[1]], 10**40, -1)
NUMBERS = ('keypoints', 'joints', 'joints_vis', 'points', 'bbox', 'human_annotations', 'keypoint_annotations', 'foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts')


def places(d, path=()):
    """Paths of all nodes of parsed json."""
    yield path
    for k, v in d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else (): yield from places(v, (*path, k))


@lru_cache(None)
def nodes(name, coordinates=False):
    """(parsed file, paths that may be changed). Of long lists of numbers every seventh is enough."""
    d = json.loads(make(name).files[make(name).main])
    every = [p for p in places(d) if p]
    short = [p for p in every if not isinstance(p[-1], int) or p[-1] < 51 or p[-1] % 7 == 0]
    return (d, [p for p in short if coordinate(name, d, p)] if coordinates else short)


def coordinate(name, d, p):
    keys = ('joints', 'points') if name in ('mpii_json', 'labelme') else ('keypoints', 'keypoint_annotations')
    if not isinstance(p[-1], int) or not any(k in keys for k in p) or type(at(d, p)) not in (int, float): return False
    return p[-1] % 3 < 2 if keys[0] == 'keypoints' else 'joints_vis' not in p


def at(d, path):
    for k in path: d = d[k]
    return d


JSONS = [n for n in MAKERS if n in ('coco', 'crowdpose', 'halpe', 'wholebody', 'posetrack18', 'labelme', 'mpii_json', 'aic')]


@pytest.mark.parametrize('name', JSONS)
@many
@given(data=st.data())
def test_wrong_values(name, data):
    made = make(name)
    d, paths = nodes(name)
    path = data.draw(st.sampled_from(paths))
    how = data.draw(st.sampled_from(('replace', 'remove', 'repeat')))
    new, parent, old = json.loads(made.files[made.main]), path[:-1], at(d, path)
    wrong = data.draw(st.sampled_from(WRONG))
    if how == 'replace': at(new, parent)[path[-1]] = wrong
    elif how == 'remove': del at(new, parent)[path[-1]]
    elif isinstance(at(new, parent), list): at(new, parent).insert(path[-1], copy.deepcopy(old))
    with tempfile.TemporaryDirectory() as tmp:
        try: p = read(lay(tmp, made, dump(new)))
        except PoseError as e: assert e.what and str(e); return
    sound(p)
    number = type(old) in (int, float) and any(k in NUMBERS for k in path)
    if number and how == 'replace' and not (type(wrong) in (int, float) and math.isfinite(wrong) and abs(wrong) < 1e15 and type(wrong) is not bool): raise AssertionError(f'{path} = {wrong!r} was taken for a number')
    if number and how in ('remove', 'repeat'): raise AssertionError(f'{path}: {how} of a number was not seen')
    inside = any(k in NUMBERS for k in path) or len(path) <= 2 or 'shapes' in path or any(isinstance(k, str) and k.startswith('human') for k in path) or 'id' in path or 'is_labeled' in path or str(path[-1]).endswith('_valid')
    if not inside and p.xy.shape == made.xy.shape: assert np.array_equal(np.sort(p.xy, axis=0), np.sort(made.xy, axis=0)), f'{path}: keypoints changed'


@pytest.mark.parametrize('name', JSONS)
@many
@given(data=st.data(), value=st.floats(-1e4, 1e4))
def test_another_number_is_that_number(name, data, value):
    """A coordinate that is changed comes out changed, and nothing else does."""
    made = make(name)
    path = data.draw(st.sampled_from(nodes(name, True)[1]))
    d = json.loads(made.files[made.main])
    if name == 'labelme' and at(d, path[:-3])['shape_type'] != 'point': return
    at(d, path[:-1])[path[-1]] = value
    with tempfile.TemporaryDirectory() as tmp: p = sound(read(lay(tmp, made, dump(d))))
    changed = np.argwhere(np.abs(p.xy - made.xy) > 1e-9)
    assert len(changed) <= 1 and (p.vis == made.vis).all()
    if len(changed): assert abs(p.xy[tuple(changed[0])] - (value - (name == 'mpii_json'))) < 1e-9


def test_harmless_differences(tmp_path):
    """A byte order mark, other line ends and spaces change nothing."""
    for name, change in (('coco', lambda b: b'\xef\xbb\xbf' + b), ('labelme', lambda b: b'\n ' + b + b'\r\n'), ('yolo', lambda b: b.replace(b'\n', b'\r\n\r\n')), ('yolo', lambda b: b.replace(b' ', b'\t ')), ('cvat', lambda b: b'\xef\xbb\xbf' + b)):
        made = make(name)
        home = tmp_path / f'{name}{len(list(tmp_path.iterdir()))}'
        assert same(read(lay(home, made, change(made.files[made.main]))), made)


# Layouts and choices

def test_two_formats_in_one_place(tmp_path):
    lay(tmp_path, make('coco')); lay(tmp_path, make('cvat'))
    with pytest.raises(PoseError, match='several formats') as e: open_source(tmp_path)
    assert '--from' in e.value.todo and 'labels.json' in e.value.found and 'annotations.xml' in e.value.found
    assert open_source(tmp_path, 'cvat').format == 'cvat' and open_source(tmp_path / 'labels.json').format == 'coco'


def test_nothing_there_says_what_was_looked_for(tmp_path):
    (tmp_path / 'notes.txt').write_text('hello')
    for p in (tmp_path, tmp_path / 'notes.txt'):
        with pytest.raises(PoseError, match='no pose data') as e: open_source(p)
        assert all(f.needs in e.value.allowed for f in FORMATS.values())
    with pytest.raises(PoseError, match='nothing of the format'): open_source(tmp_path, 'yolo')
    with pytest.raises(PoseError, match='unknown format'): open_source(tmp_path, 'coko')


def test_cvat_coco_export(tmp_path):
    """CVAT's COCO Keypoints 1.0: labels of points are categories too, images lie in images/default."""
    import cv2
    made = make('coco')
    d = json.loads(made.files['labels.json'])
    d['categories'] += [dict(id=2 + i, name=n, supercategory='person') for i, n in enumerate(d['categories'][0]['keypoints'])]
    for a in d['annotations']: a['attributes'] = dict(occluded=False)
    (tmp_path / 'annotations').mkdir(); (tmp_path / 'images/default').mkdir(parents=True)
    (tmp_path / 'annotations/person_keypoints_default.json').write_bytes(dump(d))
    for im in d['images']: cv2.imwrite(str(tmp_path / 'images/default' / im['file_name']), np.zeros((H, W, 3), np.uint8))
    p = load_data(tmp_path, 'train')
    assert same(read(tmp_path), made) and p.images and all(Path(im['path']).is_file() for im in p.images)


def test_roboflow_layout_and_lists(tmp_path):
    import cv2
    made = make('yolo')
    text = {Path(f).stem: b for f, b in made.files.items() if f.startswith('labels/')}
    for split in ('train', 'valid'):
        for stem, b in text.items():
            for sub, name, data in (('labels', f'{stem}.txt', b),):
                (tmp_path / split / sub).mkdir(parents=True, exist_ok=True); (tmp_path / split / sub / name).write_bytes(data)
            (tmp_path / split / 'images').mkdir(exist_ok=True); cv2.imwrite(str(tmp_path / split / 'images' / f'{stem}.png'), np.zeros((H, W, 3), np.uint8))
    assert set(open_source(tmp_path).parts) == {'train', 'val'}
    assert len(load_data(tmp_path, 'val')) == 4
    (tmp_path / 'data.yaml').write_text('train: ../train/images\nval: ../valid/images\nkpt_shape: [17, 3]\nnc: 1\nnames: [person]\n')
    assert set(open_source(tmp_path).parts) == {'train', 'val'} and len(load_data(tmp_path, 'train').images) == 2


def test_hostile_files(tmp_path):
    with zipfile.ZipFile(tmp_path / 'labels.zip', 'w') as z: z.writestr('labels/../../out.txt', '0')
    with pytest.raises(PoseError, match='climbs|no pose data'): read_parts(tmp_path / 'labels.zip')
    (tmp_path / 'a.xml').write_text('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><annotations><image name="&a;"/></annotations>')
    with pytest.raises(PoseError, match='entity'): read_parts(tmp_path / 'a.xml')
    (tmp_path / 'd.yaml').write_text('kpt_shape: !!python/object/apply:os.system ["touch gone"]')
    with pytest.raises(PoseError, match='YAML'): read_parts(tmp_path / 'd.yaml')
    np.savez(tmp_path / 'e.npz', part=np.array([{}], object), imgname=np.array(['a']))
    with pytest.raises(PoseError, match='npz'): read_parts(tmp_path / 'e.npz')
    assert not Path('gone').exists() and not (tmp_path.parent / 'out.txt').exists()


# There and back

@pytest.mark.parametrize('to', WRITERS)
@given(seed=st.integers(0, 10**6), K=st.sampled_from(('coco17', 'mpii16', 'aic14', 'halpe136')), n=st.integers(1, 5))
def test_there_and_back(to, seed, K, n):
    s, g = get_skeleton(K), np.random.default_rng(seed)
    xy, vis = g.uniform(0, (W, H), (n, s.K, 2)).round(int(g.integers(0, 6))), g.integers(0, 3, (n, s.K)).astype(np.int8)
    vis[:, 0] = 2; xy[vis == 0] = 0; xy = np.minimum(xy, [W, H])
    lo = np.array([k[v > 0].min(0) for k, v in zip(xy, vis)]); hi = np.array([k[v > 0].max(0) for k, v in zip(xy, vis)])
    p = Poses(xy=xy, conf=(vis > 0) * 1., vis=vis, bbox=np.c_[lo, hi - lo], area=np.ones(n), score=np.ones(n), ann_id=np.arange(n) + 1, image_id=np.sort(g.integers(1, 4, n)), category_id=np.ones(n, np.int64), iscrowd=np.zeros(n, bool),
              num_keypoints=(vis > 0).sum(1), images=[dict(id=i, file_name=f'{i:06}.png', width=W, height=H) for i in (1, 2, 3)], skeleton=s, extra=[{} for _ in range(n)])
    with tempfile.TemporaryDirectory() as tmp:
        write_set(dict(val=p), to, f'{tmp}/out', 'none')
        q = sound(read_parts(f'{tmp}/out')[1]['val'])
    assert q.skeleton == s and (q.vis == p.vis).all() and (q.image_id == p.image_id).all() and [im['id'] for im in q.images] == [1, 2, 3]
    tol = dict(coco=0, yolo=.5e-6 * W * 2 + 1e-9, cvat=.5e-6 + 1e-9)[to]
    assert np.abs(q.xy - p.xy).max() <= tol and np.abs(q.bbox - p.bbox).max() <= 3 * tol


def test_what_yolo_tools_ask_of_a_file(tmp_path):
    """Nothing below 0 or above 1, kpt_shape and flip_idx of the skeleton, labels beside images under the same name."""
    if shared_data() is None: pytest.skip('shared/data is not here')
    p = load_data(shared_data() / 'lspet', 'train', limit=40)  # keypoints outside the image among them
    got = write_set(dict(train=p), 'yolo', tmp_path / 'y', 'link')
    d = yaml.safe_load((tmp_path / 'y/data.yaml').read_text())
    assert d['kpt_shape'] == [14, 3] and d['flip_idx'] == get_skeleton('lsp14').flip.tolist() and d['kpt_names'][0] == list(get_skeleton('lsp14').keypoints)
    for t in (tmp_path / 'y/labels/train').glob('*.txt'):
        a = np.loadtxt(t, ndmin=2)
        assert (tmp_path / 'y/images/train' / f'{t.stem}.jpg').is_file() and a.shape[1] == 5 + 42 and a.min() >= 0 and np.delete(a, np.arange(7, 47, 3), 1)[:, 1:].max() <= 1
    q = read(tmp_path / 'y')
    assert q.skeleton == p.skeleton and len(q) == len(p) and ('keypoints outside the image: written as not labelled' in got['lost']) == bool(((q.vis > 0).sum() < (p.vis > 0).sum()))


def test_a_table_of_sizes_holds_any_name(tmp_path):
    names = ['a,b.jpg', 'say "x".jpg', 'plain.jpg']
    p = read(lay(tmp_path / 'in', make('coco'))); p = p.take_images([im['id'] for im in p.images[:3]])
    for im, name in zip(p.images, names): im.update(file_name=name, width=W, height=H)
    write_set(dict(train=p), 'yolo', tmp_path / 'out', 'none')
    assert {im['file_name'] for im in read(tmp_path / 'out').images} == {f'train/{n}' for n in names[:len(p.images)]}


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    made = make('coco')
    p = read(lay(tmp_path / 'in', made))
    import posellm.data.writers as w
    monkeypatch.setattr(w, 'label_set', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError): write_set(dict(train=p), 'cvat', tmp_path / 'out', 'none')
    assert [x.name for x in tmp_path.iterdir()] == ['in']


# The command

def convert(*args):
    return subprocess.run([sys.executable, '-c', 'import sys; from posellm.app.cli import call; sys.exit(call(sys.argv[1:]))', 'convert', *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_the_command(tmp_path, capsys):
    from posellm.app.cli import call
    made = make('mpii_json')
    lay(tmp_path / 'in', made)
    before = {f: (tmp_path / 'in' / f).read_bytes() for f in made.files}
    r = convert(tmp_path / 'in', '--to', 'coco', '--skeleton', 'coco17', '--out', tmp_path / 'out', '--json')
    got = json.loads(r.stdout)
    assert r.returncode == 0 and got['format'] == 'mpii' and got['mapping']['dropped'] == ['pelvis', 'thorax', 'upper_neck', 'head_top'] and got['mapping']['missing'][:2] == ['nose', 'left_eye'] and got['splits']['train']['people'] == 4, r.stderr
    q = read(tmp_path / 'out')
    assert q.skeleton.name == 'coco17' and np.array_equal(q.xy[:, 5], made.xy[:, 13]) and before == {f: (tmp_path / 'in' / f).read_bytes() for f in made.files}
    for args, word in (((tmp_path / 'in', '--to', 'coco', '--out', tmp_path / 'out'), 'nothing is overwritten'), ((tmp_path / 'in', '--to', 'voc', '--out', tmp_path / 'x'), 'unknown format'), ((tmp_path / 'gone', '--to', 'coco', '--out', tmp_path / 'x'), 'not found'),
                       ((tmp_path / 'in', '--to', 'yolo', '--out', tmp_path / 'x'), 'size of every image'), ((tmp_path / 'in', '--to', 'coco'), '--out'), ((tmp_path / 'in', '--from', 'lsp', '--to', 'coco', '--out', tmp_path / 'x'), 'joints.mat')):
        code = call(['convert', *map(str, args)])
        said = capsys.readouterr().err
        assert code == 2 and word in said and 'Traceback' not in said and not (tmp_path / 'x').exists(), (args, said)
    assert call(['convert', '--formats']) == 0
    assert all(re.search(rf'^{f}\b', said, re.M) for said in [capsys.readouterr().out] for f in FORMATS)


@pytest.mark.parametrize('name', ('yolo', 'mpii_json', 'lspet', 'aic'))
def test_check_of_other_formats(tmp_path, capsys, name):
    """check, with results and with a corrected copy, works on what is no COCO file."""
    from posellm.app.cli import call
    made = make(name)
    lay(tmp_path / 'in', made)
    p = read(tmp_path / 'in')
    rows = [dict(image_id=int(i), category_id=1, keypoints=np.c_[k, np.ones(len(k))].ravel().tolist(), score=.9) for i, k in zip(p.image_id, p.xy)]
    (tmp_path / 'r.json').write_text(json.dumps(rows))
    assert call(['check', str(tmp_path / 'in'), '--no-images', '--json', '--results', str(tmp_path / 'r.json'), '--fix', str(tmp_path / 'fixed'), '--fix-images', 'none']) in (0, 1)
    got = json.loads(capsys.readouterr().out)
    assert sum(s['labelled'] for s in got['splits'].values()) == 4 and got['notes'] and got['results']['people'] == 4
    q = read(tmp_path / 'fixed')
    assert np.array_equal(q.xy, made.xy) and (q.vis == made.vis).all()
    if q.skeleton.sigmas is not None:
        assert call(['eval', str(tmp_path / 'in'), str(tmp_path / 'r.json'), '--split', 'all', '--resamples', '20', '--json']) == 0
        assert json.loads(capsys.readouterr().out)['results'][0]['AP'] == pytest.approx(1)


def test_an_archive_is_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / 'task.zip', 'w') as z: z.writestr('annotations.xml', '<annotations/>')
    with pytest.raises(PoseError) as e: open_source(tmp_path / 'task.zip')
    assert 'unpack' in e.value.todo


def test_boxes_without_a_size_do_not_reach_yolo(tmp_path):
    """Beside the image or flat: such people are left out, and that is said."""
    p = load_data(_laid(tmp_path), 'train'); b = p.bbox.copy(); b[0] = [-50, 5, 20, 20]; b[1, 2] = 0
    said = write_yolo(dict(train=p.moved(p.xy, bbox=b)), tmp_path / 'y'); lines = [line.split() for f in (tmp_path / 'y' / 'labels' / 'train').iterdir() for line in f.read_text().splitlines()]
    assert len(lines) == len(p) - 2 and all(float(x[3]) > 0 and float(x[4]) > 0 for x in lines) and said['lost']['people left out: their box has no size inside the image'] == 2 and said['people']['train'] == len(lines)


def _laid(folder):
    from coco_sets import coco, write
    write(folder / 'annotations/person_keypoints_train2017.json', folder / 'train2017', coco(first=1)); return folder
