"What the user gives is read, never changed: outputs that would fall on it are refused before anything is written."
import http.server
import json
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from posellm.app.cli import call
from posellm.app.estimator import Estimator
from posellm.app.gallery import save_results
from posellm.core.errors import PoseError
from posellm.core.files import write_json
from posellm.core.http import Drop, Gone
from posellm.explain.client import post_json
from posellm.models.zoo import create_model


@pytest.fixture
def given(tmp_path):
    "A folder of two pictures, and beside it labels and results of theirs."
    gen = np.random.default_rng(0); images, anns, results = [], [], []
    (tmp_path/'ph').mkdir()
    for i in (1, 2):
        cv2.imwrite(str(tmp_path/'ph'/f'{i}.jpg'), gen.integers(0, 255, (120, 90, 3), dtype=np.uint8)); xy = gen.uniform(20, 70, (17, 2)).round(1)
        images.append(dict(id=i, file_name=f'{i}.jpg', width=90, height=120)); keypoints = np.c_[xy, np.full(17, 2)].ravel().tolist()
        anns.append(dict(id=i, image_id=i, category_id=1, keypoints=keypoints, num_keypoints=17, bbox=[10, 10, 70, 100], area=3500., iscrowd=0)); results.append(dict(image_id=i, category_id=1, keypoints=keypoints, bbox=[10, 10, 70, 100], score=.9))
    from posellm.pose.skeleton import get_skeleton
    sk = get_skeleton('coco17'); kind = dict(id=1, name='person', keypoints=list(sk.keypoints), skeleton=[[a + 1, b + 1] for a, b in sk.edges])
    (tmp_path/'labels.json').write_text(json.dumps(dict(images=images, annotations=anns, categories=[kind]))); (tmp_path/'results.json').write_text(json.dumps(results))
    return tmp_path


def contents(folder): return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()}


@pytest.mark.parametrize('args', [
    'explain {0}/results.json --images {0}/ph --truth {0}/labels.json --out {0}', # its results.json
    'explain {0}/labels.json --images {0}/ph --out {0}/ph', # among the pictures
    'predict {0}/ph/1.jpg --boxes whole --no-flip --out {0}/ph',
    'predict {0}/ph --boxes {0}/results.json --no-pictures --out {0}', # the boxes
    'check {0}/labels.json --no-images --html {0}/labels.json',
    'check {0}/labels.json --results {0}/results.json --no-images --html {0}/results.json',
    'eval {0}/labels.json {0}/results.json --html {0}/results.json'])
def test_outputs_never_fall_on_what_is_read(args, given, capsys):
    before = contents(given); code = call(args.format(given).split()); said = capsys.readouterr(); assert code == 2, said
    assert contents(given) == before and 'choose another' in said.err and ('overwrite' in said.err or 'lie in this folder' in said.err), said.err
    assert all(o in said.err for o in ('--html', '--out') if f' {o} ' in f' {args} '), said.err


def test_two_outputs_of_fuse_in_one_file(given, capsys):
    assert call(f'fuse {given}/results.json {given}/results.json --truth {given}/labels.json --out {given}/f.json --save {given}/f.json'.split()) == 2
    assert '--save' in capsys.readouterr().err and not (given/'f.json').exists()
    assert call(f'fuse {given}/results.json {given}/results.json --truth {given}/labels.json --out {given}/f.json --save {given}/labels.json'.split()) == 2 and '--save: this would overwrite' in capsys.readouterr().err


@pytest.fixture
def person(given): # a Result
    return Estimator(create_model('posellm-s', weights=None), boxes='whole', flip=False)(given/'ph'/'1.jpg')


def test_where_nothing_could_be_read_earlier_results_stay(given, person, capsys):
    out = given/'out'; save_results([person], out); before = contents(out); (given/'zero.jpg').write_bytes(b'')
    assert call(f'predict {given}/zero.jpg --boxes whole --no-flip --out {out}'.split()) == 2 and contents(out) == before
    said = capsys.readouterr().err; assert "1 skipped: zero.jpg: " in said and 'do: zero.jpg' not in said, said
    assert call(f'predict {given}/zero.jpg --boxes whole --no-flip --out {given}/new'.split()) == 2 and not (given/'new').exists()


@pytest.mark.parametrize('end', [KeyboardInterrupt, RuntimeError])
def test_what_is_finished_is_kept(given, person, end):
    def broken_off():
        yield person; yield replace(person, file='2.jpg')
        raise end
    with pytest.raises(end): save_results(broken_off(), given/'out')
    there = contents(given/'out'); assert len(json.loads(there['people.json'])) == len(json.loads(there['images.json'])) == 2 and there['gallery.html'].count(b'<article') == 2 and b'alt="1 person: ' in there['gallery.html']
    assert save_results([person], given/'out')['images'] == 1 # the folder is one of ours


@pytest.mark.parametrize('written', [1, 2])
def test_whoever_is_stopped_between_the_files_may_go_on(given, person, written, monkeypatch):
    names = []
    def some(path, *a, **kw):
        if len(names) == written: raise KeyboardInterrupt
        names.append(path.name); write_json(path, *a, **kw)
    with monkeypatch.context() as m: m.setattr('posellm.app.gallery.write_json', some); pytest.raises(KeyboardInterrupt, save_results, [person], given/'out')
    assert len(names) == written and save_results([person], given/'out')['images'] == 1


def test_a_kill_between_the_files_leaves_a_folder_that_is_known(given, person):
    out = given/'out'; save_results([person], out)
    for name in ('images', 'results'): (out/f'{name}.json').unlink(); assert save_results([person], out)['images'] == 1
    for name in ('images', 'results', 'people'): (out/f'{name}.json').write_text('[{"image": "of somebody else"}]')
    with pytest.raises(PoseError, match='not one of ours'): save_results([person], out)


@pytest.mark.parametrize('verb', ['predict {0}/ph/1.jpg --boxes whole --no-flip', 'explain {0}/labels.json --images {0}/ph'])
def test_somebody_elses_file_is_not_written_over(verb, given, capsys):
    (given/'mine').mkdir(); (given/'mine'/'results.json').write_text('{"my": "file"}'); before = contents(given)
    assert call([*verb.format(given).split(), '--out', str(given/'mine')]) == 2 and contents(given) == before
    assert 'results.json: --out: ' in (said := capsys.readouterr().err) and 'choose another folder' in said, said


def test_beside_the_pictures_there_is_room(given, capsys):
    before = contents(given); assert call(f'explain {given}/results.json --images {given}/ph --truth {given}/labels.json --out {given}/words'.split()) == 0, capsys.readouterr()
    after = contents(given); assert all(after[k] == v for k, v in before.items()) and {'words/results.json', 'words/1_pose.jpg', 'words/gallery.html'} <= after.keys()


def test_pictures_of_one_name_keep_apart(given):
    "Names that only differ in their folder, or in case, or look like the number that keeps them apart."
    est = Estimator(create_model('posellm-s', weights=None), boxes='whole', flip=False); one = est(given/'ph'/'1.jpg'); names = ['x_3.jpg', 'x.jpg', 'b/x.jpg', 'X.jpg', 'x.jpg']
    got = save_results((replace(one, file=n) for n in names), given/'out'); poses = [f.name for f in (given/'out').glob('*_pose.jpg')]
    assert got['images'] == len(poses) == len({p.lower() for p in poses}) == 5, poses


@pytest.mark.parametrize('status', [400, 401, 429, 500])
def test_a_key_that_the_server_repeats_is_not_shown(status):
    class Repeats(http.server.BaseHTTPRequestHandler):
        def log_message(self, *a): pass
        def do_POST(self): self.send_response(status); self.end_headers(); self.wfile.write(f'{self.headers["Authorization"]} is over its quota'.encode())
    server = http.server.HTTPServer(('127.0.0.1', 0), Repeats); threading.Thread(target=server.handle_request, daemon=True).start()
    with pytest.raises((Drop, Gone)) as e: post_json(f'http://127.0.0.1:{server.server_port}/v1', {}, 'sk-secret', 10.)
    server.server_close(); assert 'sk-secret' not in str(e.value) and '(key) is over its quota' in str(e.value) and isinstance(e.value, Drop) == (status in (429, 500))
