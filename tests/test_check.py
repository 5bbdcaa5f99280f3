"""The checker: quiet on clean sets, the right rule for each fault, never a traceback."""
import copy
import json
import shutil

import cv2
import numpy as np
import pytest

from coco_sets import coco, write
from posellm.core.paths import shared_data
from posellm.data.check import RULES, check
from posellm.data.coco import load_data
from posellm.pose.poses import Poses


@pytest.fixture
def dataset(tmp_path):
    for part, first in (("train", 1), ("val", 101)): write(tmp_path / f"annotations/person_keypoints_{part}2017.json", tmp_path / f"{part}2017", coco(first=first))
    return tmp_path


def ids(report, *severities): return {f.id for f in report.findings if not severities or f.severity in severities}


def change(folder, f, part="train"):
    file = folder / f"annotations/person_keypoints_{part}2017.json"
    d = json.loads(file.read_text()); f(d)
    file.write_text(json.dumps(d))


def test_clean(dataset):
    r = check(dataset, decode=True)
    assert r.exit_code == 0 and r.findings == [] and "Fit for training" in r.text()
    assert set(r.splits) == {"train", "val"} and r.splits["train"]["labelled"] == 8
    assert json.loads(json.dumps(r.to_dict()))["exit_code"] == 0
    assert check(load_data(dataset, "train")).findings == []


def test_a_list_of_images_alone(dataset):
    "As COCO gives its unlabelled images, and as our generator writes them."
    d = coco(first=201); write(dataset / "annotations/image_info_unlabeled2017.json", dataset / "unlabeled2017", {k: d[k] for k in d if k not in ("annotations", "categories")})
    r = check(dataset)
    assert r.exit_code == 0 and not ids(r, "error") and r.splits["unlabeled"]["images"] == 4 and "Fit for training" in r.text()


def first(**kw): return lambda d: d["annotations"][0].update(kw)
def every(f): return lambda d: [f(a) for a in d["annotations"]]
def joint(*xyv): return lambda d: d["annotations"][0]["keypoints"].__setitem__(slice(0, 3), xyv)


FAULTS = {  # rule: (what breaks it, exit code)
    "keypoint-count": (first(keypoints=[1]*50), 1), "visibility": (joint(9, 9, 3), 1), "duplicate-ids": (first(id=11), 1), "dangling-image": (first(image_id=999), 1),
    "keypoint-number": (joint("a", 9, 2), 1), "annotation-record": (lambda d: d["annotations"].append(5), 1), "image-record": (lambda d: d["images"].append({"id": 5}), 1),
    "image-id-conflict": (lambda d: d["images"].append({**d["images"][0], "file_name": "z.png"}), 1), "empty-split": (every(lambda a: a.update(keypoints=[0]*51, num_keypoints=0)), 1),
    "box-form": (first(bbox=[1, 2, 3, "4"]), 1), "box-negative": (first(bbox=[30, 30, -9, 9]), 1), "area-form": (first(area="big"), 1), "crowd-mark": (first(iscrowd="no"), 1),
    "normalised": (every(lambda a: a.update(keypoints=(np.array(a["keypoints"]).reshape(-1, 3)/[60, 40, 1]).ravel().tolist())), 1),
    "number-fields": (first(track_id="a"), 1), "names-broken": (lambda d: d["categories"][0]["keypoints"].__setitem__(5, "left_sleeve"), 1),
    "names-order": (lambda d: d["categories"][0]["keypoints"].reverse(), 1),
    "repeated-images": (lambda d: d["images"].append(d["images"][0]), 0), "text-ids": (every(lambda a: a.update(category_id="1")), 0), "keypoints-outside": (joint(99, 9, 2), 0),
    "labelled-at-zero": (joint(0, 0, 2), 0), "num-keypoints": (first(num_keypoints=1), 0), "box-zero": (first(bbox=[5, 5, 0, 9]), 0), "box-missing": (first(bbox=None), 0),
    "box-keypoints": (first(bbox=[200, 200, 4, 4]), 0), "area-missing": (first(area=None), 0), "area-box": (first(area=1e5), 0), "unlabelled-with-place": (joint(9, 9, 0), 0),
    "dangling-category": (first(category_id=4), 0), "names-missing": (lambda d: d["categories"][0].pop("keypoints"), 0), "size-missing": (lambda d: d["images"][0].pop("width"), 0),
    "person-twice": (lambda d: d["annotations"].append({**d["annotations"][0], "id": 555}), 0), "file-twice": (lambda d: d["images"].append({**d["images"][0], "id": 555}), 0),
    "all-equal": (first(keypoints=[9, 9, 2]*17, num_keypoints=17), 0), "no-keypoints-field": (first(keypoints=None), 0), "box-outside": (first(bbox=[-9, -9, 99, 99]), 0),
    "image-size": (lambda d: d["images"][0].update(width=120, height=80), 1)}


@pytest.mark.parametrize("rule", FAULTS)
def test_fault_is_named(dataset, rule):
    f, code = FAULTS[rule]
    change(dataset, f)
    r = check(dataset)
    assert rule in ids(r), r.text()
    if rule not in ("names-missing", "names-order", "names-broken"): assert r.exit_code == code, r.text()  # those make the splits differ as well
    hit = next(x for x in r.findings if x.id == rule)
    assert hit.count >= 1 and hit.examples and hit.why.endswith(".") and hit.todo.endswith(".") and hit.split == "train"
    assert "rule-failed" not in ids(r) and hit.why in r.text()


def test_box_corners(dataset):
    change(dataset, every(lambda a: a.update(bbox=[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])))
    # boxes that nearly fill a small image cannot be told apart; people on the right can
    change(dataset, every(lambda a: a.update(bbox=[35, 20, 58, 38], keypoints=[40, 30, 2]*16 + [57, 37, 2], num_keypoints=17, area=99)))
    assert "box-xyxy" in ids(check(dataset), "error")


def test_images(dataset):
    t = sorted((dataset / "train2017").iterdir())
    t[0].write_bytes(t[0].read_bytes()[:400]); t[1].unlink(); t[2].write_text("<html>")
    big = bytearray(t[3].read_bytes()); big[16:24] = (60000).to_bytes(4, "big")*2; t[3].write_bytes(big)
    shutil.copy(dataset / "val2017/000000000101.png", dataset / "val2017/000000000102.png")
    r = check(dataset)
    assert ids(r) == {"image-broken", "image-missing", "image-bomb", "near-same"} and {f.id: f.count for f in r.findings}["image-broken"] == 2
    assert ids(check(dataset, images=False)) == set() and "not looked at" in check(dataset, images=False).text()


def test_damage_in_the_middle_needs_decoding(dataset):
    p = dataset / "train2017/000000000001.png"; raw = bytearray(p.read_bytes()); raw[len(raw)//2] ^= 255; p.write_bytes(raw)
    assert ids(check(dataset)) == set() and ids(check(dataset, decode=True)) == {"image-broken"}


def test_leaks_and_skeletons(dataset):
    shutil.copy(dataset / "train2017/000000000001.png", dataset / "val2017/000000000102.png")
    r = check(dataset)
    assert ids(r, "error") == {"split-leak"} and "same bytes" in r.findings[0].examples[0]
    change(dataset, lambda d: d["categories"][0]["keypoints"].__setitem__(0, "snout"), "val")
    assert ids(check(dataset, images=False), "error") == {"skeletons-differ"}


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"images": [], "annotations": []}', '{"images": 1, "annotations": 2, "categories": 3}', "<html>", "\xff\xfe"])
def test_unreadable(tmp_path, text):
    (tmp_path / "labels.json").write_bytes(text.encode("latin1"))
    r = check(tmp_path / "labels.json")
    assert r.exit_code == 2 and ids(r) == {"unreadable"} and "Cannot be read" in r.text() and r.findings[0].todo
    assert check(tmp_path / "no such").exit_code == 2


def test_one_unreadable_part_does_not_hide_the_other(dataset):
    (dataset / "annotations/person_keypoints_val2017.json").write_text("{")
    change(dataset, joint(9, 9, 7))
    r = check(dataset)
    assert r.exit_code == 2 and ids(r) - {"limbs"} == {"unreadable", "visibility"}


def test_a_failing_rule_is_reported(dataset, monkeypatch):
    r = RULES["visibility"]
    monkeypatch.setitem(RULES, "visibility", type(r)(r.id, r.severity, r.why, r.todo, lambda case: 1/0))
    assert ids(check(dataset, images=False)) == {"rule-failed"}


def test_poses_in_memory():
    p = Poses.from_coco(coco())
    assert check(p, images=False).findings == []
    q = copy.deepcopy(p); q.xy[0, 0] = 500
    assert ids(check(q, images=False)) >= {"keypoints-outside"}


def shared(*parts):
    root = shared_data()
    if root is None: pytest.skip("no shared/data beside the clone")
    return root.joinpath(*parts)


@pytest.mark.parametrize("path, code, expected", [
    ("coco_subset", 0, {"person-near-twice", "area-is-box"}), ("mmpose_fragments/coco/test_coco.json", 0, set()), ("mmpose_fragments/ochuman/test_ochuman.json", 0, {"area-is-box"}),
    ("coco_val2017_annotations_only", 1, {"repeated-images", "image-missing", "sides-person", "person-near-twice"}),
    ("eval_mvor/annotations/camma_mvor_2018.json", 1, {"text-ids", "area-missing", "image-missing", "box-keypoints", "id-zero", "limbs"}),
    ("mmpose_fragments/aic/test_aic.json", 0, {"area-missing"}), ("mmpose_fragments/rhd/test_rhd.json", 1, {"keypoint-count"}), ("mmpose_fragments/humanart/test_humanart.json", 1, {"keypoint-count"}),
    ("mmpose_fragments/wflw/test_wflw.json", 0, {"names-missing", "box-keypoints", "visibility-flat"}), ("mmpose_fragments/mpii/test_mpii_trb.json", 0, {"box-missing", "area-missing"}),
    ("crowdpose_val_annotations_only/crowdpose_val.json", 1, {"image-missing", "keypoints-outside", "num-keypoints", "area-missing", "edges", "person-near-twice"}),
    ("mmpose_fragments/coco/test_keypoint_partition_metric.json", 1, {"keypoint-count", "visibility"})])
def test_real_sets(path, code, expected):
    r = check(shared(*path.split("/")))
    assert r.exit_code == code and ids(r) == expected, r.text()


@pytest.mark.parametrize("path, word", [("eval_coco_style/example_coco_preds.json", "results"), ("mmpose_fragments/coco/test_coco_det_AP_H_56.json", "boxes")])
def test_real_files_of_other_kinds(path, word):
    r = check(shared(*path.split("/")))
    assert r.exit_code == 2 and word in r.findings[0].examples[0]


@pytest.mark.parametrize("path, code, said", [
    ("aic_native", 1, "visibility 1, 2, 3 of AI Challenger read as 2, 1, 0 (1397)"), ("lspet", 0, "coordinates of joints that are not labelled: left out (733)"),
    ("mmpose_fragments/mpii/test_mpii.json", 0, "read as mpii"), ("coco8_pose", 0, "read as yolo")])
def test_real_sets_of_other_formats(path, code, said):
    r = check(shared(*path.split("/")))
    assert r.exit_code == code and said in r.text(), r.text()
    assert not {"names-order", "sides-set", "sides-doubt", "rule-failed"} & ids(r)


def test_everything_real_without_a_traceback():
    for f in sorted(shared().rglob("*.json")):
        r = check(f, images=False)
        assert "rule-failed" not in ids(r) and r.text() and json.dumps(r.to_dict())


def test_a_turned_photograph(dataset):
    ok, data = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8)); data = data.tobytes()
    import struct
    for n, (turn, size, rule) in enumerate([(6, (60, 40), "exif-stored"), (6, (40, 60), "exif-turned"), (3, (60, 40), "exif-undecided")]):
        body = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, turn, 0, 0)
        (dataset / f"train2017/{n+1:012}.png").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body)+2) + body + data[2:])
        change(dataset, lambda d: d["images"][n].update(width=size[0], height=size[1]))
    got = ids(check(dataset))
    assert {"exif-stored", "exif-turned", "exif-undecided"} <= got and "image-size" not in got
