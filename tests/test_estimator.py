"The one line that users write: embedded weights on photographs, files of every kind in one call, addresses."
import json
import re
import tempfile

import cv2
import numpy as np
import pytest
from misbehaving import Answer, Server

from posellm.app.cli import call
from posellm.app.estimator import Estimator, is_video, sources_of
from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.coco import load_data
from posellm.data.images import read_image
from posellm.models.zoo import create_model
from posellm.pose.skeleton import get_skeleton


def photo(n=0): return np.random.default_rng(n).integers(0, 255, (120, 90, 3), dtype=np.uint8)


def film(path, frames=6, kind='MJPG'):
    "A short video; skips where this OpenCV writes none."
    v = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), 10, (90, 120))
    if not v.isOpened(): pytest.skip(f'this OpenCV cannot write {kind}')
    for k in range(frames): v.write(np.roll(photo(), k, 1))
    v.release()
    return path


@pytest.fixture
def est(): return Estimator(create_model('posellm-s', weights=None), boxes='whole', flip=False, urls=True)


# ---- what is meant by a source

def test_a_folder_gives_images_and_videos(tmp_path, est):
    cv2.imwrite(str(tmp_path/'b.jpg'), photo()); film(tmp_path/'a.avi', 3); (tmp_path/'notes.txt').write_text('x')
    assert [p.name for p in sources_of(tmp_path)] == ['a.avi', 'b.jpg'] == [p.name for p in sources_of([tmp_path])]
    got = est(tmp_path); assert not isinstance(got, list) # bounded memory
    assert [(r.file, r.frame) for r in got] == [('a.avi', 0), ('a.avi', 1), ('a.avi', 2), ('b.jpg', None)] and not est.skipped
    (tmp_path/'none').mkdir()
    with pytest.raises(PoseError, match='no images and no videos'): sources_of(tmp_path/'none')
    with pytest.raises(PoseError, match='no such image or video'): est(tmp_path/'c.mp4') # at once, not at the first frame


# ---- addresses

@pytest.fixture
def bare(monkeypatch, tmp_path):
    "No proxy, not offline, and a folder of temporary files that can be looked into."
    for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY', 'POSELLM_OFFLINE', 'HF_HUB_OFFLINE'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'temp')); (tmp_path/'temp').mkdir()
    return lambda: [p.name for p in (tmp_path/'temp').glob('posellm-url-*')]


def test_addresses_of_images_and_videos(tmp_path, est, bare):
    clip = film(tmp_path/'a.avi', 4).read_bytes(); jpg = cv2.imencode('.jpg', photo())[1].tobytes()
    with Server({'/a.jpg': Answer(jpg), '/a.avi': Answer(clip), '/a.avi?sig=1/2.jpg': Answer(clip), '/bad.mp4': Answer(b'<html>'), '/page.jpg': Answer(b'<html>')}) as s:
        assert is_video(s.url('/a.avi?sig=1/2.jpg')) and not is_video(s.url('/a.jpg?of=a.avi'))
        assert est(s.url('/a.jpg')).file == 'a.jpg' and bare() == []
        for path in ('/a.avi', '/a.avi?sig=1/2.jpg'):
            frames = est(s.url(path)); assert next(frames).frame == 0 and len(bare()) == 1 # the file is needed until the last frame
            assert [r.frame for r in frames] == [1, 2, 3] and bare() == []
        given_up = est(s.url('/a.avi')); next(given_up); given_up.close(); assert bare() == []
        got = list(est([s.url('/a.jpg'), s.url('/bad.mp4'), s.url('/page.jpg'), s.url('/none.jpg'), s.url('/a.avi')]))
        assert [r.file for r in got] == ['a.jpg'] + ['a.avi']*4 and bare() == []
        assert len(est.skipped) == 3 and all(s.url(u) in str(e) and 'posellm-url-' not in str(e) for u, e in zip(('/bad.mp4', '/page.jpg', '/none.jpg'), est.skipped)), est.skipped


def test_the_command_line_fetches_a_video(tmp_path, bare, capsys):
    clip = film(tmp_path/'a.avi', 3).read_bytes()
    with Server({'/a.avi': Answer(clip)}) as s:
        assert call(['predict', s.url('/a.avi'), '--out', str(tmp_path/'out'), '--boxes', 'whole', '--json']) == 2 and 'unasked' in capsys.readouterr().out
        assert call(['predict', '--url', s.url('/a.avi'), '--out', str(tmp_path/'out'), '--boxes', 'whole', '--json', '--no-flip', '--no-pictures']) == 0
    d = json.loads(capsys.readouterr().out); assert d['images'] == 3 and not d['skipped'] and bare() == []
    assert [x['frame'] for x in json.loads((tmp_path/'out'/'images.json').read_text())] == [0, 1, 2]


# ---- everything in one call

def test_good_and_broken_and_moving_pictures_in_one_call(tmp_path, capsys, caplog):
    cv2.imwrite(str(tmp_path/'good.jpg'), photo()); (tmp_path/'broken.jpg').write_bytes(cv2.imencode('.jpg', photo())[1].tobytes()[:200]); film(tmp_path/'clip.avi', 5); out = tmp_path/'out'
    assert call(['predict', *(str(tmp_path/n) for n in ('good.jpg', 'broken.jpg', 'clip.avi')), '--out', str(out), '--boxes', 'whole', '--every', '2', '--no-flip']) == 0
    said = capsys.readouterr(); assert 'skipped: 1' in said.out and 'broken.jpg' in said.err + caplog.text and '4 people in 4 images' in said.out and 'trained on generated people only' in said.out
    assert call(['predict', str(tmp_path/'clip.avi'), '--out', str(tmp_path/'one'), '--boxes', 'whole', '--every', '9', '--no-flip', '--no-pictures']) == 0
    said = capsys.readouterr().out; assert said.count('trained on generated people only') == said.count('boxes: whole image') == 1, said
    coco, images, people = (json.loads((out/n).read_text()) for n in ('results.json', 'images.json', 'people.json'))
    assert [(x['file_name'], x.get('frame')) for x in images] == [('good.jpg', None), ('clip.avi', 0), ('clip.avi', 2), ('clip.avi', 4)]
    assert [x['image_id'] for x in coco] == [x['id'] for x in images] and all(len(x['keypoints']) == 51 for x in coco) and len(people) == 4
    assert sorted(p.name for p in out.glob('*_pose.jpg')) == ['clip_000000_pose.jpg', 'clip_000002_pose.jpg', 'clip_000004_pose.jpg', 'good_pose.jpg']
    page = (out/'gallery.html').read_text(); assert page.count('<article') == 4 and 'broken.jpg' in page and 'frame 2' in page


def test_files_of_one_name_are_told_apart_and_found_again(tmp_path, capsys):
    for d, side in (('x', 90), ('y', 70)): (tmp_path/'two'/d).mkdir(parents=True); cv2.imwrite(str(tmp_path/'two'/d/'same.jpg'), photo()[:, :side])
    cv2.imwrite(str(tmp_path/'two'/'y'/'other.jpg'), photo()); out, two = tmp_path/'out', tmp_path/'two'; quick = ['--boxes', 'whole', '--no-flip', '--no-pictures']
    assert call(['predict', str(two/'x'), str(two/'y'), '--out', str(out), *quick]) == 0
    assert [im['file_name'] for im in json.loads((out/'images.json').read_text())] == ['x/same.jpg', 'y/other.jpg', 'y/same.jpg']
    capsys.readouterr(); assert call(['explain', str(out/'results.json'), '--images', str(two), '--json']) == 0; got = json.loads(capsys.readouterr().out); assert [(r['image'], r['width']) for r in got['explanations']] == [('x/same.jpg', 90), ('y/other.jpg', 90), ('y/same.jpg', 70)]
    images = [{**im, 'file_name': im['file_name'].split('/')[1]} for im in json.loads((out/'images.json').read_text())]; (out/'images.json').write_text(json.dumps(images)) # as somebody else writes them
    assert call(['explain', str(out/'results.json'), '--images', str(two/'x'), '--json']) == 0; got = json.loads(capsys.readouterr().out); assert len(got['explanations']) == 1 and any('another size' in s and '70 x 120' in s for s in got['skipped']), got['skipped']


def test_an_image_that_the_box_file_does_not_list_is_skipped(tmp_path, capsys):
    for n in ('a.jpg', 'plain.jpg'): cv2.imwrite(str(tmp_path/n), photo())
    boxes = dict(images=[dict(id=1, file_name='a.jpg'), dict(id=2, file_name='nobody.jpg')], annotations=[dict(id=1, image_id=1, category_id=1, bbox=[5, 5, 70, 100])], categories=[dict(id=1, name='person')]); (tmp_path/'A.json').write_text(json.dumps(boxes))
    more = ['--boxes', str(tmp_path/'A.json'), '--no-flip', '--no-pictures', '--out', str(tmp_path/'out')]
    assert call(['predict', str(tmp_path/'plain.jpg'), *more]) == 2 and 'does not list this image' in capsys.readouterr().err
    assert call(['predict', str(tmp_path/'plain.jpg'), str(tmp_path/'a.jpg'), *more, '--json']) == 0; got = json.loads(capsys.readouterr().out); assert got['images'] == 1 and 'A.json' in got['skipped'][0]


def test_mistakes_in_the_one_line():
    for make, words in ((lambda: Estimator(3), 'found .int.; allowed a run folder'), (lambda: Estimator(boxes=[1, 2, 3]), 'a box is four numbers'), (lambda: Estimator(stage='02_ssl'), 'stage: .*no run is given'), (lambda: Estimator(budget='x'), 'not a share')):
        with pytest.raises(PoseError, match=words): make()


# ---- the embedded weights on a photograph

@pytest.fixture(scope='module')
def three():
    "A photograph with three labelled people: image, their boxes."
    if not shared_data() or not (shared_data()/'coco_subset').is_dir(): pytest.skip('the photographs of coco_subset are not on this machine')
    p = load_data(shared_data()/'coco_subset', 'val'); p = p[~p.iscrowd & (p.num_keypoints > 5)]
    im = next(im for im in p.images if (p.image_id == im['id']).sum() == 3); return im['path'], p.bbox[p.image_id == im['id']]


def test_embedded_weights_on_three_people(three, monkeypatch):
    monkeypatch.setenv('POSELLM_OFFLINE', '1'); path, boxes = three
    r = Estimator(boxes=boxes)(path); h, w = read_image(path).shape[:2]
    assert len(r) == 3 and sorted(map(tuple, r.boxes)) == sorted(map(tuple, boxes)) and r.boxes_from == 'given boxes'
    assert r.xy.shape == (3, 17, 2) and (r.xy >= 0).all() and (r.xy <= [w - 1, h - 1]).all() and r.vis.shape == (3, 17) and len(r.facts) == 3
    text = str(r); assert 'Person 3 of 3' in text and re.search(r'trained on generated people only: .*photographs.* AP 0\.\d\d', text) and 'one person assumed' not in text
    assert all(p['text'] for p in r.to_json()['people'])


def test_without_a_detector_one_person_is_assumed_and_said(three, monkeypatch, tmp_path):
    monkeypatch.setenv('POSELLM_OFFLINE', '1'); monkeypatch.setattr('posellm.models.detector.find_detector', lambda name=None: None)
    r = Estimator()(three[0]); h, w = r.image.shape[:2]
    assert len(r) == 1 and r.boxes.tolist() == [[0, 0, w, h]] and r.boxes_from == 'whole image'
    assert 'one person assumed; pass --boxes' in str(r) and re.search(r'AP 0\.\d\d', str(r))


def test_a_device_that_is_not_there_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(PoseError, match='device: this device is not there; found .cuda.'): Estimator('no/such/run', device='cuda')
    with pytest.raises(PoseError, match='unknown device'): Estimator(device='gpu')


def test_one_thin_picture_stops_nothing(tmp_path, est, caplog):
    """Pictures one pixel wide or high are looked at like others, and what comes after them too."""
    from posellm.app.gallery import save_results
    for n, size in (('a', (3000, 1)), ('b', (1, 3000)), ('c', (120, 90))): cv2.imwrite(str(tmp_path/f'{n}.png'), np.full((*size, 3), 99, np.uint8))
    (tmp_path/'d.heic').write_bytes(b'x'); got = save_results(est.stream(tmp_path), tmp_path/'out'); assert got['images'] == 3 and len(list((tmp_path/'out').glob('*_pose.jpg'))) == 3 and '.heic' in caplog.text


def test_what_is_hidden_or_not_there_is_not_drawn(est):
    r = est(photo()); assert np.array_equal(r.plot(min_conf=1.1), r.image) and not np.array_equal(r.plot(), r.image)
    r.poses.xy[:], r.poses.conf[:] = 0, 0; assert np.array_equal(r.plot(), r.image) # as results files write who is not there


def test_joints_written_as_zeros_are_not_there(tmp_path, capsys, caplog):
    """A results file with 0, 0, 0 for what is not there: the box does not reach to the corner, somebody without any joint is nobody, and what cannot be read is said."""
    from posellm.pose.poses import Poses
    k = np.zeros((17, 3)); k[:5] = np.c_[np.linspace(50, 70, 5), np.linspace(40, 90, 5), np.full(5, .9)]; row = lambda image, k: dict(image_id=image, category_id=1, keypoints=k.ravel().tolist(), score=.9)
    p = Poses.from_results([row(1, k), row(1, 0*k)]); assert p.bbox[0].tolist() == [50, 40, 20, 50] and p.area[0] == 70*90 # the area stays pycocotools'
    for n in (1, 2, 3): cv2.imwrite(str(tmp_path/f'{n}.jpg'), photo())
    (tmp_path/'2.jpg').write_bytes(b'no picture'); (tmp_path/'r.json').write_text(json.dumps([row(1, k), row(1, 0*k), row(2, k), row(3, 0*k)]))
    assert call(['explain', str(tmp_path/'r.json'), '--images', str(tmp_path)]) == 0; said = capsys.readouterr(); assert '1 person in 1 image explained' in said.out and 'skipped' in said.err + caplog.text and '2.jpg' in said.err + caplog.text


def test_confidences_that_are_none_are_remarked(caplog):
    from posellm.pose.poses import Poses
    row = lambda c: [dict(image_id=1, category_id=1, keypoints=[5., 5., c]*17, score=.9)]
    Poses.from_results(row(1.02)); assert not caplog.text
    Poses.from_results(row(2.)); assert 'confidences up to 2' in caplog.text


def test_a_member_that_found_nobody_is_named(tmp_path, capsys):
    from posellm.metrics.oks import make_people
    t, p = (make_people(20, 2, get_skeleton('coco17'), seed=3, predictions=x) for x in (False, True)); t.save(tmp_path/'t.json'); p.save(tmp_path/'a.json'); (tmp_path/'none.json').write_text('[]')
    assert call(['fuse', str(tmp_path/'a.json'), str(tmp_path/'none.json'), '--out', str(tmp_path/'o.json'), '--truth', str(tmp_path/'t.json')]) == 2
    err = capsys.readouterr().err; assert 'none.json' in err and 'nobody of the truth' in err
