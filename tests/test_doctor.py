"""The doctor from end to end: corrected copies, why AP is low, pages, large files, and files mutated at random."""
import copy
import json
import os
import re
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from coco_sets import coco, write
from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.check import RULES, check
from posellm.data.corrupt import CORRUPTIONS, all_findings, corrupt
from posellm.data.mend import mend, mended_lines
from posellm.data.page import write_page
from posellm.data.remedies import REMEDIES, apply_remedies
from posellm.data.stream import check_stream
from posellm.data.why import explain_results
from posellm.metrics.oks import make_people
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton

FUZZ = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"


def shared(*parts):
    root = shared_data()
    if root is None: pytest.skip("no shared/data beside the clone")
    return root.joinpath(*parts)


# ---- remedies

@pytest.mark.parametrize("name", [n for n, c in CORRUPTIONS.items() if c.rule in REMEDIES and n not in ("visibility+scores", "names-order", "keypoint-count", "area-is-box", "file-name")])
def test_what_a_remedy_mends_is_quiet_afterwards(name):
    d = coco(n=30, seed=4)
    before = all_findings(d)
    bad, _ = corrupt(d, name, 1)
    rule = CORRUPTIONS[name].rule
    if rule not in all_findings(bad): pytest.skip("this draw shows nothing: too few people at the rim")
    done = apply_remedies(bad)
    assert rule in done and sum(map(len, done.values()))
    left = all_findings(bad)
    assert not [r for r in left if RULES[r].severity == "error" and r not in before], left
    assert rule not in left or left[rule].count < 3
    assert apply_remedies(copy.deepcopy(bad)) == {} or rule not in apply_remedies(bad)
    Poses.from_coco(bad, None if bad["categories"][0].get("keypoints") else "coco17")  # and the strict reader is content


@pytest.mark.parametrize("name", ["sides-set", "axes-exchanged+boxes", "box-xyxy", "box-centre", "normalised", "text-ids", "repeated-images", "visibility"])
def test_remedies_bring_back_what_was(name):
    d = coco(n=9, seed=5)
    bad, _ = corrupt(d, name, 2)
    assert bad != d
    apply_remedies(bad)
    for a, b in zip(d["annotations"], bad["annotations"]):
        assert np.allclose(a["keypoints"], b["keypoints"], atol=.05) and np.allclose(a["bbox"], b["bbox"], atol=.1) and a["image_id"] == b["image_id"]


def test_a_copy_never_touches_the_original(tmp_path):
    src = tmp_path / "set"
    for part, first in (("train", 1), ("val", 101)): write(src / f"annotations/person_keypoints_{part}2017.json", src / f"{part}2017", coco(n=6, first=first))
    f = src / "annotations/person_keypoints_train2017.json"
    bad, _ = corrupt(json.loads(f.read_text()), "box-xyxy", 0); f.write_text(json.dumps(bad))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in src.rglob("*") if p.is_file()}
    m = mend(src, tmp_path / "out")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in src.rglob("*") if p.is_file()} == before
    assert m["exit_code"] == 0 and m["splits"]["train"]["changes"][0]["rule"] == "box-xyxy"
    entry = m["splits"]["train"]["changes"][0]["entries"][0]
    assert entry["field"] == "bbox" and entry["before"] == bad["annotations"][0]["bbox"]
    assert check(tmp_path / "out", decode=True).exit_code == 0
    for where in (src, tmp_path, src / "deeper", f.parent):
        with pytest.raises(PoseError): mend(src, where)
    (tmp_path / "full").mkdir(); (tmp_path / "full/x").write_text("mine")
    with pytest.raises(PoseError, match="not empty"): mend(src, tmp_path / "full")
    with pytest.raises(PoseError, match="nothing could be read"): mend(tmp_path / "nowhere", tmp_path / "o2")


def test_a_real_set_made_whole(tmp_path):
    m = mend(shared("eval_mvor/annotations/camma_mvor_2018.json"), tmp_path / "mvor", images="none")
    assert {c["rule"] for s in m["splits"].values() for c in s["changes"]} == {"text-ids", "id-zero", "area-missing"}
    m = mend(shared("coco_val2017_annotations_only"), tmp_path / "val", images="none")
    assert "images were neither looked at nor copied" in "\n".join(mended_lines(m, tmp_path / "val"))
    assert {c["rule"]: c["count"] for s in m["splits"].values() for c in s["changes"]} == {"repeated-images": 1579}
    m = mend(shared("mmpose_fragments/rhd/test_rhd.json"), tmp_path / "rhd", images="none")
    assert "keypoint-count" in {c["rule"] for s in m["splits"].values() for c in s["changes"]} and m["exit_code"] == 0


# ---- results

def test_published_numbers_come_back_from_spoilt_results():
    truth, preds = (json.loads(shared("eval_coco_style", f"example_coco_{k}.json").read_text()) for k in ("val", "preds"))
    right = json.loads(shared("eval_coco_style/expected.json").read_text())
    base = explain_results(truth, preds)
    assert abs(base["ap"] - .86089) < 1e-4 and base["steps"] == [], right
    size = {im["id"]: (im["width"], im["height"]) for im in truth["images"]}
    def spoil(f): return [{**copy.deepcopy(r), **f(r)} for r in preds]
    def k(r, g): x = np.array(r["keypoints"], float).reshape(-1, 3); x[:, :2] = g(x[:, :2], size[r["image_id"]]); return dict(keypoints=x.ravel().tolist())
    for id, bad in {"image-id-text": spoil(lambda r: dict(image_id=f"{r['image_id']:012}.jpg")), "category": spoil(lambda r: dict(category_id=0)), "axes": spoil(lambda r: k(r, lambda v, s: v[:, ::-1])),
                    "scale": spoil(lambda r: k(r, lambda v, s: v / 4)), "normalised": spoil(lambda r: k(r, lambda v, s: v / s)), "scores": spoil(lambda r: dict(score=-r["score"]))}.items():
        why = explain_results(truth, bad)
        assert why["steps"] and why["steps"][0]["id"] == id and why["ap_corrected"] > .8, (id, why)
    why = explain_results({**truth, "annotations": [{**a, "iscrowd": 1} for a in truth["annotations"]]}, preds)
    assert why["ap"] == -1 and why["steps"][0]["field"] == "truth: iscrowd" and why["ap_corrected"] > .8
    why = explain_results(json.loads(shared("eval_coco_style/example_crowdpose_val.json").read_text()), json.loads(shared("eval_coco_style/example_crowdpose_preds.json").read_text()))
    assert why["ap"] is None and why["steps"][0]["field"] == "truth: area" and abs(why["ap_corrected"] - .78772) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_two_faults_at_once(seed):
    sk = get_skeleton("coco17"); truth = make_people(30, 2, sk, seed=seed).to_coco(); res = make_people(30, 2, sk, seed=seed, noise=1., predictions=True).to_results()
    good = explain_results(truth, res)["ap"]
    bad = [{**r, "category_id": 3, "keypoints": (np.array(r["keypoints"]).reshape(-1, 3) * [.5, .5, 1])[sk.flip].ravel().tolist()} for r in res]
    for r in bad: r.pop("box")
    why = explain_results(truth, bad)
    assert [s["id"] for s in why["steps"]][:1] == ["category"] and {"scale", "order"} <= {s["id"] for s in why["steps"]} and why["ap_corrected"] > good - .05, why


@pytest.mark.parametrize("results", [[], {}, {"results": []}, [1, 2], [{}], [{"image_id": 1}], "x", [{"image_id": 1, "category_id": 1, "keypoints": [[1, 2]], "score": 1}], [{"image_id": None, "keypoints": [0] * 51, "score": float("nan")}]])
def test_odd_results_get_a_sentence(results):
    truth = make_people(3, 2, get_skeleton("coco17")).to_coco()
    try: why = explain_results(truth, results if results != "x" else [{"image_id": "x", "keypoints": "x", "score": "x"}])
    except PoseError as e: assert e.todo
    else: assert why["left"] or why["steps"]


@pytest.mark.parametrize("key, value", [(k, v) for k in ("image_id", "category_id") for v in (float("nan"), float("inf"), 1e300, [1], {"id": 1}, None, True)])
def test_what_is_no_id_is_unknown(key, value):
    "In the results and in the truth: the rest is measured as if the row were for an image or a category that nobody knows."
    truth, res = make_people(3, 2, get_skeleton("coco17")).to_coco(), make_people(3, 2, get_skeleton("coco17"), noise=1., predictions=True).to_results()
    good = explain_results(truth, res)["ap"]; bad = copy.deepcopy(res); bad[0][key] = value
    assert 0 < explain_results(truth, bad)["ap_corrected"] <= good + 1e-9
    truth["annotations" if key == "category_id" else "images"][0]["category_id" if key == "category_id" else "id"] = value
    try: explain_results(truth, res)
    except PoseError as e: assert e.what


# ---- page

def test_the_page_is_one_file_without_a_network(tmp_path):
    src = tmp_path / "<i>set"
    d = coco(n=5); d["images"][0]["file_name"] = "<script>alert(1)</script>.png"; d["annotations"][1]["bbox"] = [5, 5, -3, 4]
    write(src / "labels.json", src / "images", {**d, "images": d["images"][1:]}); (src / "labels.json").write_text(json.dumps(d))
    page = write_page(check(src), tmp_path / "r.html", 3).read_text()
    assert "<script" not in page and "<i>set" not in page and "box-negative" in page and page.count("data:image/jpeg;base64") >= 3
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'\s>]""", page)


# ---- large files

def test_piece_by_piece_says_the_same(tmp_path):
    for name in ("visibility", "box-negative", "text-ids", "duplicate-ids", "repeated-images", "sides-set", "dangling-image"):
        bad, _ = corrupt(coco(n=40, seed=3), name, 1); f = tmp_path / "train.json"; f.write_text(json.dumps(bad))
        _, found, _, _ = check_stream(f, chunk=7)
        assert {x.id for x in found if x.severity == "error"} == {r for r in all_findings(bad) if RULES[r].severity == "error"}, name


@pytest.mark.slow
def test_a_million_annotations_in_constant_memory(tmp_path):
    a = coco(n=1)["annotations"][0]; text = json.dumps({**a, "id": 0, "image_id": 0}); peaks = {}
    for n in (100_000, 1_000_000):
        f = tmp_path / f"{n}.json"
        with open(f, "w") as o:
            o.write('{"categories": ' + json.dumps(coco()["categories"]) + ', "images": [' + ", ".join(f'{{"id": {i}, "file_name": "{i}.jpg", "width": 60, "height": 40}}' for i in range(n // 5)) + '], "annotations": [')
            for i in range(n): o.write((", " if i else "") + text.replace('"id": 0, "image_id": 0', f'"id": {i + 1}, "image_id": {i // 5}').replace('"image_id": 0', f'"image_id": {i // 5}', 1).replace('"id": 0', f'"id": {i + 1}', 1))
            o.write("]}")
        tracemalloc.start(); check(f, images=False, large=1000); peaks[n] = tracemalloc.get_traced_memory()[1]; tracemalloc.stop(); f.unlink()
    assert (peaks[1_000_000] - peaks[100_000]) / 900_000 <= 64, peaks


@pytest.mark.slow
def test_speed_of_labels_alone(tmp_path):
    p = Poses.from_coco(shared("coco_subset/annotations/person_keypoints_val2017.json")).to_coco(); d = copy.deepcopy(p); n = 0
    while sum(a["num_keypoints"] > 0 for a in d["annotations"]) < 6145:
        n += 1; d["images"] += [{**im, "id": im["id"] + n * 10**7, "file_name": f"{n}_{im['file_name']}"} for im in p["images"]]; d["annotations"] += [{**a, "id": a["id"] + n * 10**7, "image_id": a["image_id"] + n * 10**7} for a in p["annotations"]]
    (tmp_path / "a.json").write_text(json.dumps(d)); t = time.process_time(); check(tmp_path / "a.json", images=False)
    assert time.process_time() - t < 3


# ---- fuzz

def _mutate(raw: bytes, data) -> bytes:
    """Some bytes changed, cut, doubled or exchanged for others that occur in such files."""
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(0, max(len(raw) - 1, 0))); n = data.draw(st.integers(1, 60)); kind = data.draw(st.integers(0, 5))
        piece = data.draw(st.sampled_from([b"null", b"-1", b"1e400", b"[]", b"{}", b'"x"', b"true", b"NaN", b"0", b",", b"]", b"}", b"99999999999999999999", b"\xff", b'"', b"1.5", b"[[1,2,2]]", b"\\u0000"]))
        if kind == 0: raw[i:i+1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == 1: del raw[i:i+n]
        elif kind == 2: raw[i:i] = raw[i:i+n]
        elif kind == 3: raw[i:i+n] = piece
        elif kind == 4: raw[i:] = b""
        else:  # a whole value
            m = list(re.finditer(rb"(?<=[:,\[ ])-?\d+(\.\d+)?(?=[,\]} ])", bytes(raw)))
            if m: v = m[data.draw(st.integers(0, len(m) - 1))]; raw[v.start():v.end()] = piece
    return bytes(raw)


BASE = json.dumps(coco(n=3)).encode()


@settings(max_examples=10_000 if FUZZ else 500)
@given(st.data())
def test_mutated_files_never_a_traceback_never_a_silent_wrong_success(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz"; folder.mkdir(exist_ok=True); f = folder / "labels.json"; f.write_bytes(_mutate(BASE, data))
    r = check(f, images=False)
    assert "rule-failed" not in {x.id for x in r.findings}, r.text()
    assert r.text() and json.dumps(r.to_dict()) and r.exit_code in (0, 1, 2)
    try: p = Poses.from_coco(f)
    except PoseError: assert r.exit_code, f"the strict reader refuses what the check calls fit: {f.read_bytes()}"
    else:
        assert np.isfinite(p.xy).all() and len(p.ann_id) == len(set(p.ann_id.tolist()))
        if r.exit_code == 0: assert len(p) == next(iter(r.splits.values()))["annotations"]
    if data.draw(st.integers(0, 9)) == 0 and r.exit_code < 2:
        try: d = json.loads(f.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError: return
        apply_remedies(d)


@settings(max_examples=2_000 if FUZZ else 60)
@given(st.data())
def test_mutated_results_get_a_sentence(data):
    truth = make_people(3, 2, get_skeleton("coco17")).to_coco(); raw = _mutate(json.dumps(make_people(3, 2, get_skeleton("coco17"), noise=1., predictions=True).to_results()).encode(), data)
    try: res = json.loads(raw)
    except (ValueError, RecursionError): return
    if not isinstance(res, (list, dict)): return
    try: why = explain_results(truth, res)
    except PoseError as e: assert e.what
    else: assert json.dumps(why, default=str) and (why["ap_corrected"] is None or -1 <= why["ap_corrected"] <= 1)


# ---- ids that are no whole numbers, numbers that are none

def one_set(folder, f=lambda d: None):
    for part, first in (("train", 1), ("val", 101)):
        file = folder / f"annotations/person_keypoints_{part}2017.json"; d = coco(first=first); write(file, folder / f"{part}2017", d); f(d); file.write_text(json.dumps(d))
    return folder


@pytest.mark.parametrize("kind", ["36.0", "img_36"])
def test_ids_that_are_no_whole_numbers_lose_nobody(tmp_path, kind):
    """pandas writes 36.0, some exports write names: the corrected copy has everybody, on the same photograph."""
    new = (lambda i: float(i)) if kind == "36.0" else (lambda i: f"img_{i}")
    def f(d):
        for im in d["images"]: im["id"] = new(im["id"])
        for a in d["annotations"]: a["image_id"] = new(a["image_id"])
    good, bad = one_set(tmp_path / "good"), one_set(tmp_path / "bad", f)
    m = mend(bad, tmp_path / "out"); assert m["exit_code"] == 0, m["left"]
    where = lambda p: sorted((next(im["file_name"] for im in p.images if im["id"] == i), *map(float, xy.ravel())) for i, xy in zip(p.image_id, p.xy))
    from posellm.data.coco import load_data
    for split in ("train", "val"): assert [w[1:] for w in where(load_data(tmp_path / "out", split))] == [w[1:] for w in where(load_data(good, split))]


def test_people_without_their_images_are_not_all_thrown_away(tmp_path):
    """When nobody's image is listed the fault lies elsewhere: it is left for people, and said."""
    bad = one_set(tmp_path / "bad", lambda d: [a.update(image_id=a["image_id"] + 10**6) for a in d["annotations"]])
    m = mend(bad, tmp_path / "out", images="none"); assert any(x["rule"] == "dangling-image" for x in m["left"])
    assert len(json.loads((tmp_path / "out" / m["splits"]["train"]["written"]).read_text())["annotations"]) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_numbers_that_are_none_do_not_stop_the_mending(tmp_path, bad):
    m = mend(one_set(tmp_path / "bad", lambda d: d["annotations"][0]["keypoints"].__setitem__(0, bad)), tmp_path / "out", images="none")
    text = (tmp_path / "out" / "manifest.json").read_text() + (tmp_path / "out" / m["splits"]["train"]["written"]).read_text()
    assert "NaN" not in text and "Infinity" not in text and m["left"], m["left"]


@pytest.mark.parametrize("K, severity", [(14, "error"), (15, "error"), (16, "warning")])
def test_unnamed_keypoints_are_an_error_where_nothing_can_be_read(tmp_path, K, severity):
    def f(d):
        d["categories"][0].pop("keypoints"); d["categories"][0].pop("skeleton", None)
        for a in d["annotations"]: a["keypoints"] = (a["keypoints"]*2)[:3*K]; a["num_keypoints"] = sum(v > 0 for v in a["keypoints"][2::3])
    r = check(one_set(tmp_path, f)); hit = next(x for x in r.findings if x.id == "names-missing"); assert hit.severity == severity and r.exit_code == (severity == "error")
    assert (severity == "warning") != any("posellm convert SOURCE --to coco --names" in e for e in hit.examples)
