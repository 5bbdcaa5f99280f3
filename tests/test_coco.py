"""COCO data sets: layouts, repairs, parts, round trips; on the real sets where they are."""
import json
import logging
import os
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from coco_sets import coco, write
from posellm.app.convert import convert_set
from posellm.app.measure import people_to_find
from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.coco import (fingerprint, limit_people, load_data, read_coco, same_images, segmentation_area, split_poses, tidy, write_coco)
from posellm.data.layout import find_layout, split_name
from posellm.data.scan import scan_images
from posellm.data.writers import write_set
from posellm.pose.poses import Poses
from posellm.train.fit import _learnable


@pytest.fixture(autouse=True)
def quiet(): logging.getLogger("posellm.data").setLevel(logging.ERROR)


@pytest.fixture
def official(tmp_path):
    for part, first in (("train", 1), ("val", 101)): write(tmp_path / f"annotations/person_keypoints_{part}2017.json", tmp_path / f"{part}2017", coco(first=first))
    return tmp_path


@pytest.mark.parametrize("files, images", [
    ("annotations/person_keypoints_{s}2017.json", "{s}2017"), ("annotations/person_keypoints_{s}2017.json", "images/{s}2017"), ("annotations/person_keypoints_{s}2014.json", "{s}2014"),
    ("annotations/{s}_keypoints.json", "raw"), ("annotations/{s}_keypoints.json", "images"), ("raw/person_keypoints_{s}2017.json", "{l}/data"), ("{l}/labels.json", "{l}/data"),
    ("person_keypoints_{s}2017.json", "{s}2017"), ("annotations/{s}.json", "images/{s}")])
def test_layouts(tmp_path, files, images):
    for s, l, first in (("train", "train", 1), ("val", "validation", 101)): write(tmp_path / files.format(s=s, l=l), tmp_path / images.format(s=s, l=l), coco(first=first))
    layout = find_layout(tmp_path)
    assert set(layout) == {"train", "val"}
    for s, first in (("train", 1), ("val", 101)):
        p = load_data(tmp_path, s)
        assert len(p) == 8 and [im["id"] for im in p.images] == list(range(first, first + 4))
        assert all(os.path.isabs(im["path"]) and os.path.isfile(im["path"]) for im in p.images)
    alone = load_data(tmp_path / files.format(s="val", l="validation"), "val")  # the json itself
    assert fingerprint(alone) == fingerprint(load_data(tmp_path, "val"))


def test_plain_folder_and_fixed_division(tmp_path):
    write(tmp_path / "people.json", tmp_path / "pictures/deep", coco(n=10))
    train, val = load_data(tmp_path, "train"), load_data(tmp_path, "val")
    assert (len(train.images), len(val.images)) == (8, 2) and not same_images(train, val)
    assert [im["id"] for im in load_data(tmp_path, "val", seed=7).images] == [im["id"] for im in val.images]  # the division ignores the run's seed
    assert len(load_data(tmp_path, "all").images) == 10


def test_newest_year_and_ambiguity(tmp_path):
    for year in (2014, 2017): write(tmp_path / f"annotations/person_keypoints_train{year}.json", tmp_path / f"train{year}")
    assert find_layout(tmp_path)["train"][0].name.endswith("2017.json")
    other = tmp_path / "other"
    for name in ("a.json", "b.json"): write(other / name, other)
    with pytest.raises(PoseError, match="several"): find_layout(other)
    (other / "b.json").write_text("[]")  # a results file beside it is not meant
    assert find_layout(other)["train"][0].name == "a.json"


def test_split_names():
    assert split_name("x/val_keypoints.json")[0] == split_name("validation/labels.json")[0] == split_name("instances_val2017.json")[0] == "val"
    assert split_name("x/trainer.json")[0] == "train" and split_name("image_info_unlabeled2017.json")[0] == "unlabeled"


def test_unlabelled_part(tmp_path):
    d = coco(); del d["annotations"]
    write(tmp_path / "annotations/image_info_unlabeled2017.json", tmp_path / "unlabeled2017", d)
    p = load_data(tmp_path, "unlabeled")
    assert len(p) == 0 and len(p.images) == 4


def test_limit_counts_people_and_keeps_images_whole(official):
    whole = load_data(official, "train")
    for limit in (1, 2, 3, 5, 8, 99):
        p = load_data(official, "train", limit=limit) if limit > 1 else limit_people(whole, limit)
        assert len(p) <= limit
        for im in p.images: assert (p.image_id == im["id"]).sum() == (whole.image_id == im["id"]).sum()
    assert fingerprint(load_data(official, "train", limit=4)) == fingerprint(load_data(official, "train", limit=4))
    assert len({tuple(im["id"] for im in limit_people(whole, 4, s).images) for s in range(8)}) > 1
    with pytest.raises(PoseError, match="raise limit"): load_data(official, "train", limit=1)
    for bad in (0, -1, 2.5, True):
        with pytest.raises(PoseError, match="limit"): load_data(official, limit=bad)


def test_division_is_by_image_and_independent_of_order():
    d = coco(n=30); d["annotations"] = [a for a in d["annotations"] if a["image_id"] % 3]  # ten images without people
    p = Poses.from_coco(d)
    a, b = split_poses(p, seed=3)
    assert len(a.images) == 24 and len(b.images) == 6 and set(a.image_id) & set(b.image_id) == set()
    d["images"].reverse(); d["annotations"].reverse()
    assert {im["id"] for im in split_poses(Poses.from_coco(d), seed=3)[1].images} == {im["id"] for im in b.images}
    one = split_poses(p.take_images([1, 2]))
    assert all((q.labelled.any(1)).any() for q in one)


def test_who_counts_and_who_can_be_learned_from():
    "A file may say num_keypoints 0 in spite of its keypoints: COCO's evaluation ignores such a person, training need not."
    d = coco(n=6); d["annotations"][0]["num_keypoints"] = 0; d["annotations"][1]["iscrowd"] = 1; d["annotations"][2].update(keypoints=[0]*51, num_keypoints=3); p = Poses.from_coco(d); n = len(p)
    assert p.posed.tolist() == [False, False, True] + [True]*(n - 3) and p.learnable.tolist() == [True, False, False] + [True]*(n - 3)
    assert people_to_find(p, "truth")[0].ann_id.tolist() == p.ann_id[p.posed].tolist() and len(_learnable(p)) == n - 2
    assert len(limit_people(p, n - 2).images) == len(p.images) and sum(p.learnable) == sum(sum(q.learnable) for q in split_poses(p))


def test_limit_passes_over_broken_images(official):
    for f in sorted((official / "train2017").iterdir())[:2]: f.write_bytes(b"<html>")
    p = load_data(official, "train", limit=4)
    assert len(p) == 4 and all(cv2.imread(im["path"]) is not None for im in p.images)
    for f in (official / "train2017").iterdir(): f.unlink()
    with pytest.raises(PoseError, match="none of 4 images") as e: load_data(official, "train")
    assert "images=False" in e.value.todo and len(load_data(official, "train", images=False)) == 8


def test_repairs(tmp_path):
    d = coco()
    d["images"] = [{**im, "id": str(im["id"])} for im in d["images"]] + [{**im, "id": str(im["id"])} for im in d["images"][:2]]
    d["categories"] = [{**d["categories"][0], "id": "1"}, dict(id="3", name="car")]
    for a in d["annotations"]: a["image_id"], a["category_id"] = str(a["image_id"]), "1"
    d["annotations"].append({**d["annotations"][0], "id": 999, "category_id": "3"})
    del d["annotations"][0]["area"], d["annotations"][1]["area"]
    d["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 30, 20, 30, 30, 20, 30]]
    before = json.dumps(d)
    poses, done = read_coco(write_file(tmp_path, d))
    assert json.dumps(d) == before and len(poses.images) == 4 and len(poses) == 8 and poses.category_id.tolist() == [1]*8
    assert poses.area[0] == 200 and np.isclose(poses.area[1], .53*poses.bbox[1, 2]*poses.bbox[1, 3])
    assert "segmentation" in poses.area_source and "0.53" in poses.area_source
    assert sorted(done.values()) == sorted([6, 9, 2, 2, 1, 1])


def write_file(folder, d):
    (folder / "t.json").write_text(json.dumps(d))
    return folder / "t.json"


def test_no_names_but_51_numbers(tmp_path):
    d = coco(); d["categories"] = [dict(id=1, name="person")]
    poses, done = read_coco(write_file(tmp_path, d))
    assert poses.skeleton.name == "coco17" and any("assumed" in k for k in done)
    for a in d["annotations"]: del a["keypoints"]
    with pytest.raises(PoseError, match="no keypoints") as e: read_coco(write_file(tmp_path, d))
    assert "raw" in e.value.todo


def test_area_of_segmentations():
    assert segmentation_area([[0, 0, 4, 0, 4, 3]]) == 6
    assert segmentation_area({"counts": [1, 2, 3, 4], "size": [5, 2]}) == 6
    for bad in (None, "x", 5, [], [[]], [[1, 2, 3]], {"counts": "ab"}, {}, [["a", "b"]], [[float("nan")]*6]): assert segmentation_area(bad) is None
    assert tidy([1]) == ([1], {}) and tidy({"images": 3})[1] == {}


def test_sizes_and_turns(official):
    file = official / "annotations/person_keypoints_train2017.json"; d = json.loads(file.read_text())
    d["images"][0].update(width=30, height=20); d["images"][1].pop("width")
    for n, size in ((2, (40, 60)), (3, (60, 40))):  # turned by EXIF: once labelled upright, once as stored
        ok, data = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8)); data = data.tobytes()
        body = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
        (official / "train2017" / d["images"][n]["file_name"]).write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body)+2) + body + data[2:])
        d["images"][n].update(width=size[0], height=size[1])
    file.write_text(json.dumps(d))
    p = load_data(official, "train"); s = scan_images(p, decode=True)
    assert s.differs == {1: ((30, 20), (60, 40))} and s.turned == [3] and s.stored == [4] and not s.bad
    assert p.images[1]["width"] == 60


def test_leaks_and_fingerprint(official):
    train, val = load_data(official, "train"), load_data(official, "val")
    assert same_images(train, val) == []
    shutil.copy(train.images[1]["path"], val.images[2]["path"])
    assert [(a["id"], b["id"]) for a, b, _ in same_images(train, val)] == [(2, 103)]
    f = fingerprint(train)
    assert f == fingerprint(train[::-1]) and f["people"] == 8 and f["images"] == 4 and f["files_hashed"] == 4
    moved = train[:]; moved.xy = moved.xy + .001
    assert {k for k in f if f[k] != fingerprint(moved)[k]} == {"labels"}
    assert fingerprint(train, files=2)["files_hashed"] == 2


@pytest.mark.parametrize("how", ["copy", "link", "none"])
def test_round_trip(official, tmp_path, how):
    d = coco(first=1); d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6]], note={"a": [1, None]}); d["annotations"][1]["iscrowd"] = 1; d["images"][0]["license"] = 3
    write(official / "annotations/person_keypoints_train2017.json", None, d)
    out = tmp_path / "out"
    write_coco(load_data(official, "train"), out, "train", how)
    assert json.loads((out / "annotations/person_keypoints_train2017.json").read_text()) == d
    if how != "none":
        again = load_data(out, "all")
        assert fingerprint(again) == fingerprint(load_data(official, "train")) and str(out) in again.images[0]["path"]
    write_coco(load_data(official, "train"), official, "train", "copy")  # onto itself: nothing is lost
    assert len(load_data(official, "train")) == 8


def test_writing_stays_inside_the_folder(tmp_path):
    d = coco(); src = tmp_path / "a/b"
    write(src / "labels.json", src, d)
    for n, name in enumerate(("../b/" + d["images"][0]["file_name"], str(src / d["images"][1]["file_name"]), "x/../" + d["images"][2]["file_name"])): d["images"][n]["file_name"] = name
    (src / "x").mkdir(); (src / "labels.json").write_text(json.dumps(d))
    out = tmp_path / "out"
    write_coco(load_data(src, "all"), out)
    assert len(list((out / "train2017").iterdir())) == 4 and len(load_data(out, "all").images) == 4


def test_names_never_collide(tmp_path):
    "A name that was made up may be another image's own; every image keeps its pixels, the json names them, and without some of them it says the same."
    d = coco(n=4); names = ["a.jpg", "3_a.jpg", "/x/a.jpg", "b/A.jpg"]
    for n, (im, name) in enumerate(zip(d["images"], names)):
        im.update(file_name=name, path=str(tmp_path / f"{n}.png")); cv2.imwrite(im["path"], np.full((40, 60, 3), 50 * n, np.uint8))
    for gone in (False, True):
        out = tmp_path / f"out{gone}"; write_set(dict(train=Poses.from_coco(d)), "coco", out)
        got = {im["id"]: im["file_name"] for im in json.loads((out / "annotations/person_keypoints_train2017.json").read_text())["images"]}
        assert got == {1: "a.jpg", 2: "3_a.jpg", 3: "3__a.jpg", 4: "b/A.jpg"}
        for n in range(gone, 4): assert (out / "train2017" / got[n + 1]).read_bytes() == (tmp_path / f"{n}.png").read_bytes()
        (tmp_path / "0.png").unlink(missing_ok=True)


def test_images_in_folders_some_of_them_missing(tmp_path):
    "One name in two folders, a third image missing: files lie where the json says."
    d = coco(n=3)
    for im, name in zip(d["images"], ("a/1.png", "b/1.png", "gone.png")): im["file_name"] = name
    write(tmp_path / "in/labels.json", tmp_path / "in", d); (tmp_path / "in/gone.png").unlink()
    got = convert_set(tmp_path / "in", "coco", tmp_path / "out"); again = load_data(tmp_path / "out", "all")
    assert got["splits"]["train"]["images_there"] == 2 and got["lost"] == {"images that are not there: only their records are written": 1}
    assert [Path(im["path"]).relative_to(tmp_path / "out").as_posix() for im in again.images] == ["train2017/a/1.png", "train2017/b/1.png"]
    assert all(Path(im["path"]).read_bytes() == (tmp_path / "in" / im["file_name"]).read_bytes() for im in again.images)


def shared(*parts):
    root = shared_data()
    if root is None: pytest.skip("no shared/data beside the clone")
    return root.joinpath(*parts)


def test_real_coco_subset():
    root = shared("coco_subset")
    parts = {s: load_data(root, s) for s in ("train", "val", "extra")}
    assert {s: len(p.images) for s, p in parts.items()} == dict(train=93, val=94, extra=52)
    assert {s: int(p.labelled.any(1).sum()) for s, p in parts.items()} == dict(train=250, val=218, extra=178)
    assert not same_images(parts["train"], parts["val"]) and not scan_images(parts["val"], decode=True).bad
    with open(root / "annotations/person_keypoints_val2017.json") as f: d = json.load(f)
    back = parts["val"].to_coco()
    assert back["annotations"] == d["annotations"] and back["images"] == d["images"]
    small = load_data(root, "train", limit=50)
    assert 40 < small.labelled.any(1).sum() <= 50


def test_real_oddities():
    p, done = read_coco(shared("coco_val2017_annotations_only", "person_keypoints_val2017.json"))
    assert len(p.images) == 520 and len(p) == 2099 and done["repeated image records merged"] == 1579
    p, done = read_coco(shared("eval_mvor", "annotations", "camma_mvor_2018.json"))
    assert len(p) == 4699 and p.K == 10 and p.area_source == "box*0.53" and any("quotes" in k for k in done)
    assert len(load_data(shared("mmpose_fragments", "posetrack18", "annotations", "val", "012834_mpii_test.json"), "all").images) == 1  # file names relative to a folder above
    assert len(load_data(shared("mmpose_fragments", "h36m", "h36m_coco.json"), "all").images) == 4  # bare names, files in deep folders
