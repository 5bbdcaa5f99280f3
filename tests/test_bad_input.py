"""Bad input: each mistake is a PoseError with file, field, found, allowed and what to do; nothing else ever escapes."""
import copy
import errno
import json
import logging
import math
import os
import shutil

import pytest
from hypothesis import example, given, strategies as st

from coco_sets import coco, write
from posellm.core import files
from posellm.core.errors import PoseError
from posellm.data.check import check
from posellm.data.coco import load_data, write_coco
from posellm.data.images import read_image
from posellm.pose.poses import Poses


@pytest.fixture(autouse=True)
def quiet(): logging.getLogger("posellm.data").setLevel(logging.ERROR)


@pytest.fixture
def labels(tmp_path):
    write(tmp_path / "labels.json", tmp_path)
    return tmp_path / "labels.json"


def complete(e, *attributes):
    """The error says what, and each of the attributes asked for; its text and its plain data carry them."""
    assert e.what and not e.what.endswith(".")
    for name in attributes: assert getattr(e, name) not in (None, ""), f"{name} is missing in: {e}"
    text = str(e)
    assert e.what in text and (e.todo is None or e.todo in text) and json.dumps(e.to_dict())
    assert "Traceback" not in text and "Error(" not in text


def first(**kw): return lambda d: d["annotations"][0].update(kw)


LABELS = {  # name: (change, word in field, word in found, word in allowed)
    "50 numbers": (first(keypoints=[1]*50), "keypoints", "50", "51"),
    "visibility 3": (lambda d: d["annotations"][0]["keypoints"].__setitem__(2, 3), "annotation 10", "3", "0 not labelled"),
    "duplicate ids": (first(id=11), "id", "11", "once"),
    "dangling image id": (first(image_id=999), "image_id", "999", "images"),
    "text as coordinate": (lambda d: d["annotations"][0]["keypoints"].__setitem__(0, "left"), "keypoints", "left", "numbers"),
    "box of three": (first(bbox=[1, 2, 3]), "bbox", "[1, 2, 3]", "width"),
    "area in words": (first(area="large"), "area", "large", "number"),
    "no id": (first(id=None), "id", "nothing", "whole number"),
    "image without name": (lambda d: d["images"][0].pop("file_name"), "file_name", "nothing", "text"),
    "an id for two files": (lambda d: d["images"].append({**d["images"][0], "file_name": "other.png"}), "file_name", "other.png", "once")}


@pytest.mark.parametrize("name", LABELS)
def test_labels(labels, name):
    change, field, found, allowed = LABELS[name]
    d = json.loads(labels.read_text()); change(d); labels.write_text(json.dumps(d))
    for read in (lambda: load_data(labels, "all"), lambda: Poses.from_coco(labels)):
        with pytest.raises(PoseError) as e: read()
        complete(e.value, "file", "field", "found", "allowed")
        assert e.value.file == str(labels) and field in e.value.field and found in str(e.value.found) and allowed in str(e.value.allowed)
        assert "found" in str(e.value)
    assert check(labels).exit_code == 1


NOT_COCO = {"nothing": "", "half a json": '{"images": [', "a list": '[{"image_id": 1, "score": 0.5, "keypoints": []}]', "a number": "5", "another object": '{"a": 1}', "no categories": '{"images": [], "annotations": []}',
            "lists that are none": '{"images": {}, "annotations": 1, "categories": null}', "a web page": "<!DOCTYPE html><p>404", "deep": "["*100000, "binary": "\xff\xfe\x00"}


@pytest.mark.parametrize("name", NOT_COCO)
def test_json_that_is_not_coco(tmp_path, name):
    f = tmp_path / "labels.json"
    f.write_bytes(NOT_COCO[name].encode("latin1"))
    with pytest.raises(PoseError) as e: load_data(f, "all")
    complete(e.value, "file", "allowed")
    assert e.value.file == str(f) and check(f).exit_code == 2


def test_images_missing_truncated_and_bombs(labels, tmp_path):
    pictures = sorted(tmp_path.glob("*.png"))
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:500])
    bomb = bytearray(pictures[2].read_bytes()); bomb[16:24] = (50000).to_bytes(4, "big")*2; pictures[2].write_bytes(bomb)
    for p, word in zip(pictures, ("missing", "truncated", "too large")):
        with pytest.raises(PoseError, match=word) as e: read_image(p)
        complete(e.value, "file", "found", "todo")
        assert e.value.file == str(p)
    assert e.value.field and "Mpx" in e.value.allowed
    left = load_data(labels, "all")  # reported, skipped, counted
    assert len(left.images) == 1 and len(left) == 2
    pictures[3].unlink()
    with pytest.raises(PoseError, match="none of 4 images") as e: load_data(labels, "all")
    complete(e.value, "file", "found", "allowed", "todo")


def test_empty_split(tmp_path):
    d = coco()
    for a in d["annotations"]: a.update(keypoints=[0]*51, num_keypoints=0)
    write(tmp_path / "labels.json", tmp_path, d)
    for images in (True, False):
        with pytest.raises(PoseError, match="empty split") as e: load_data(tmp_path, "train", images=images)
        complete(e.value, "file", "field", "found", "allowed", "todo")
    write(tmp_path / "labels.json", tmp_path, {**d, "annotations": []})
    with pytest.raises(PoseError, match="empty split"): load_data(tmp_path, "all")
    write(tmp_path / "labels.json", tmp_path, {**d, "annotations": [], "images": []})
    with pytest.raises(PoseError, match="empty split"): load_data(tmp_path, "all")


@pytest.mark.parametrize("what", ["nowhere", "", "empty", "pictures", "bad\0name"])
def test_unknown_path(tmp_path, what):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "x/labels.json", tmp_path / "pictures")
    path = f"{tmp_path}/{what}" if what else tmp_path / "labels.json"
    with pytest.raises(PoseError) as e: load_data(path)
    complete(e.value, "file", "found", "allowed", "todo")
    assert check(path).exit_code == 2


def test_unknown_split_and_parameter_values(labels):
    with pytest.raises(PoseError, match="no such split") as e: load_data(labels, "tset")
    complete(e.value, "file", "field", "found", "allowed", "todo")
    assert e.value.found == "tset" and "train" in e.value.allowed
    for kw in (dict(limit=0), dict(limit="ten"), dict(skeleton="coco71")):
        with pytest.raises(PoseError) as e: load_data(labels, "all", **kw)
        complete(e.value, "field", "found", "allowed")
    with pytest.raises(PoseError) as e: write_coco(load_data(labels, "all"), labels.parent / "out", images="move")
    complete(e.value, "field", "found", "allowed")


def test_unknown_preset_and_field():
    hardware = pytest.importorskip("posellm.train.hardware")
    with pytest.raises(PoseError) as e: hardware.preset("gtx1660")
    complete(e.value, "field", "found", "allowed", "todo")
    assert e.value.found == "gtx1660" and "gtx1650" in e.value.allowed
    with pytest.raises(PoseError) as e: hardware.preset("tiny", batchsize=3)
    complete(e.value, "found", "allowed", "todo")


def test_unknown_chapter_parameter_and_config_key(tmp_path):
    from posellm.app import chapters, config
    nb = tmp_path / "01_x.ipynb"
    nb.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=["epochs: int = 3 # how many"], metadata=dict(tags=["parameters"]))])))
    for values, word in ((dict(epoch=3), "epoch"), (dict(epochs="many"), "epochs")):
        with pytest.raises(PoseError) as e: chapters.assign_params({"01_x": nb}, values, file="run.yaml")
        complete(e.value, "file", "field", "found", "allowed", "todo")
        assert word in f"{e.value.field} {e.value.found}"
    (tmp_path / "c.yaml").write_text("gpu: [tiny\n")
    for f in (tmp_path / "c.yaml", tmp_path / "no.yaml"):
        with pytest.raises(PoseError) as e: config.read_config(f)
        complete(e.value, "file", "field", "todo")


def test_no_space_left(labels, monkeypatch):
    data, out = load_data(labels, "all"), labels.parent / "out"
    full = shutil._ntuple_diskusage(10**9, 10**9, 100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda p: full)
    with pytest.raises(PoseError, match="no space left") as e: write_coco(data, out)  # known before the first byte
    complete(e.value, "file", "found", "allowed", "todo")
    assert not out.exists()
    def no_room(fd): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(files.os, "fsync", no_room)
    labels.write_text("old")
    with pytest.raises(PoseError, match="no space left") as e: files.write_json(labels, {"a": 1})  # while writing
    complete(e.value, "file", "found", "todo")
    assert labels.read_text() == "old" and not [f for f in os.listdir(labels.parent) if "tmp" in f]


# ---- any damage at all ----

ODD = [None, True, -1, 0, 3, 1.5, math.nan, math.inf, 1e300, 10**30, 10**400, -2**70, 2**53 + 1, "1", "x", "", "\0", "../..", [], [1], [[1, 2, 3]], {}, {"a": 1}, [None]*51, [[1, 2, 2]]*17, ["1"]*51, [True]*51, [1]*50]
BASE = coco(n=2)


def places(x, path=()):
    if path: yield path
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else (): yield from places(v, (*path, k))


PLACES = sorted(places(BASE), key=lambda p: (len(p), repr(p)))
SHALLOW = [p for p in PLACES if len(p) < 4]  # single coordinates would otherwise crowd out everything else


def damage(d, path, how, value):
    for k in path[:-1]:
        try: d = d[k]
        except (KeyError, IndexError, TypeError): return
    try:
        if how == "drop": del d[path[-1]]
        elif how == "repeat" and isinstance(d, list): d.append(copy.deepcopy(d[path[-1]]))
        else: d[path[-1]] = copy.deepcopy(value)
    except (KeyError, IndexError, TypeError): return


@given(st.lists(st.tuples(st.one_of(st.sampled_from(SHALLOW), st.sampled_from(PLACES)), st.sampled_from(["set", "set", "drop", "repeat"]), st.sampled_from(ODD)), min_size=1, max_size=3))
@example([(("categories", 0, "keypoints"), "set", 5)])
@example([(("annotations", 0, "id"), "set", math.inf)])
@example([(("annotations",), "set", []), (("categories", 0, "keypoints"), "set", None)])
@example([(("annotations", 0, "category_id"), "set", 1e300)])
@example([(("annotations", 0, "bbox", 1), "set", 10**400)])
@example([(("categories", 0, "skeleton"), "set", [1, [2], ["a", "b"]])])
def test_damaged_files_give_poses_or_a_clear_error(tmp_path_factory, steps):
    d = copy.deepcopy(BASE)
    for path, how, value in steps: damage(d, path, how, value)
    f = tmp_path_factory.mktemp("d") / "labels.json"
    f.write_text(json.dumps(d))
    report = check(f, images=False)
    assert report.exit_code in (0, 1, 2) and report.text() and json.dumps(report.to_dict()) and "rule-failed" not in {x.id for x in report.findings}
    for read in (lambda: load_data(f, "all", images=False), lambda: Poses.from_coco(f)):
        try: assert isinstance(read(), Poses)
        except PoseError as e: complete(e)
    try: load_data(f, "all", images=False)
    except PoseError: assert report.exit_code > 0, "the reader refuses what the checker finds fit"


@given(st.data())
def test_damaged_bytes_give_poses_or_a_clear_error(tmp_path_factory, data):
    raw = bytearray(json.dumps(BASE).encode())
    for _ in range(data.draw(st.integers(1, 3))): raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[:data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    f = tmp_path_factory.mktemp("d") / "labels.json"
    f.write_bytes(raw)
    assert check(f, images=False).exit_code in (0, 1, 2)
    try: load_data(f, "all", images=False)
    except PoseError as e: complete(e)
