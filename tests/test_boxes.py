"Boxes of unlabelled people in real photographs: from a detector's results file, and from a detector that runs on the spot."
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.coco import load_data
from posellm.models.detector import PersonBoxes, detectors
from posellm.ssl.unlabelled import box_people, images_at
from posellm.stages.ssl import unlabelled_part

pytestmark = pytest.mark.skipif(not shared_data() or not (shared_data()/'coco_subset').is_dir(), reason='the photographs of coco_subset are not on this machine')


@pytest.fixture(scope='module')
def people():
    p = load_data(shared_data()/'coco_subset', 'val'); return p[~p.iscrowd & (p.bbox[:, 2:] >= 8).all(1)]


def detections(people, move=lambda b: b, score=.9):
    "What a detector of all of COCO's classes writes: the people of the truth, a chair in every image, somebody doubtful in every image."
    one = lambda i, b, c, s: dict(image_id=int(i), category_id=c, bbox=[float(v) for v in move(b)], score=s)
    return [one(i, b, 1, score) for i, b in zip(people.image_id, people.bbox)] + [one(im['id'], [5, 5, 20, 20], c, s) for im in people.images for c, s in ((62, .99), (1, .1))]


def written(tmp_path, d, name='boxes.json'): (tmp_path/name).write_text(json.dumps(d)); return tmp_path/name


def test_a_results_file_gives_its_people_and_nothing_else(people, tmp_path):
    got = box_people(people.images, written(tmp_path, detections(people)), people.skeleton)
    order = lambda p: np.lexsort((*p.bbox.T, p.image_id))
    np.testing.assert_allclose(got.bbox[order(got)], people.bbox[order(people)]); assert (got.image_id[order(got)] == people.image_id[order(people)]).all()
    assert set(got.score) == {.9} and not got.labelled.any() and not got.xy.any() and len(got.images) == len(np.unique(people.image_id))


@pytest.mark.parametrize('spoil, words', [
    (lambda p: detections(load_data(shared_data()/'coco_subset', 'extra')), ['belongs to other images', 'image_id', 'those of the images']),
    (lambda p: detections(p, lambda b: 4*np.array(b)), ['outside its image', 'pixels', 'at this size']),
    (lambda p: detections(p, lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]), ['outside its image', '[x1, y1, x2, y2]']),
    (lambda p: detections(p, score=.2), ['no box has a score that is high enough', 'the highest 0.2', 'at least 0.3']),
    (lambda p: [dict(a, category_id=a['category_id'] + 2) for a in detections(p)], ['no boxes of people', 'category_id', '3, 64']),
    (lambda p: [dict(image_id=a['image_id'], score=.9, keypoints=[0]*51) for a in detections(p)], ['not a file of boxes', 'bbox']),
    (lambda p: [dict(a, bbox=[1, 2, 3, 4]) for a in detections(p)], ['nobody was found', '8 pixels']),
])
def test_wrong_files_are_named(people, tmp_path, spoil, words):
    f = written(tmp_path, spoil(people))
    with pytest.raises(PoseError) as e: box_people(people.images, f, people.skeleton)
    assert all(w in str(e.value) for w in (*words, 'boxes.json')), str(e.value)


def test_the_chapter_takes_a_folder_of_photographs_and_a_results_file(people, tmp_path):
    folder = shared_data()/'coco_subset'/'extra2017'; ids = {im['file_name']: im['id'] for im in images_at(folder).images}
    extra = load_data(shared_data()/'coco_subset', 'extra'); known = [(ids[im['file_name']], b) for im in extra.images for b in extra.bbox[extra.image_id == im['id']] if (b[2:] >= 8).all()]
    f = written(tmp_path, dict(images=[dict(id=i, file_name=n) for n, i in ids.items()], annotations=[dict(id=k, image_id=i, category_id=1, bbox=b.tolist(), iscrowd=0) for k, (i, b) in enumerate(known)], categories=[dict(id=1, name='person')]))
    got, words = unlabelled_part(SimpleNamespace(n_unlabeled=0), str(folder), people, people, 9999, unlabeled=str(folder), boxes=str(f))
    assert len(got) == len(known) > 50 and 'boxes.json' in words and str(folder) in words
    with pytest.raises(PoseError, match='have no boxes'): unlabelled_part(SimpleNamespace(n_unlabeled=0), str(folder), people, people, 9999, unlabeled=str(folder))


def test_a_detector_runs_on_the_spot(people, tmp_path, monkeypatch):
    "The published structure with random weights that call everything a person (the published weights are not on every machine): found on the disk, run on photographs, its boxes cut to people."
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
    monkeypatch.setenv('POSELLM_DATA', str(tmp_path)); e = detectors['fasterrcnn_mobilenet_v3_large_320_fpn']; (tmp_path/'pretrained'/'detector').mkdir(parents=True)
    torch.manual_seed(0); state = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).state_dict()
    state['roi_heads.box_predictor.cls_score.bias'][1] += 5 # whatever it proposes, it calls a person
    torch.save(state, tmp_path/'pretrained'/'detector'/e.file)
    two = people.take_images([im['id'] for im in people.images][:2]).images; got = box_people(two, PersonBoxes(e.name, min_score=0.), people.skeleton)
    assert got.info['boxes_from'] == f'detector {e.name}' and len(got) and {im['id'] for im in got.images} <= {im['id'] for im in two}
    size = {im['id']: (im['width'], im['height']) for im in two}
    for i, b in zip(got.image_id, got.bbox): assert (b[:2] >= 0).all() and (b[:2] + b[2:] <= np.array(size[i]) + .01).all() and (b[2:] >= 8).all()
    with pytest.raises(PoseError, match='nobody was found'): box_people(two, PersonBoxes(e.name, min_score=1.), people.skeleton)
    monkeypatch.setenv('POSELLM_OFFLINE', '1'); os.remove(tmp_path/'pretrained'/'detector'/e.file); monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert len(box_people(two, 'auto', people.skeleton)) == 2 # nothing at hand: the whole image, and it is said
