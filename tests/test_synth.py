"""Generated people: equal bits whatever the workers, labels that agree with masks and pictures, composition of the benchmark."""
import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posellm.core.errors import PoseError
from posellm.data.scene import SynthConfig
from posellm.data.synth import (PARTS, SynthDataset, checksum, composition, label_doc, make_scene, make_sequence, mean_pose, rle, synth_v1, unrle, write_synth)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(21, i, SynthConfig(people=(1, 4)), colour=False) for i in range(60)]


@pytest.fixture(scope="module")
def bench_doc():
    b = synth_v1()
    return label_doc(b.seed, 400, b.config)


def test_same_bits_in_any_order():
    cfg = SynthConfig(image_hw=(160, 128))
    one = [make_scene(5, i, cfg) for i in (0, 1, 2)]
    for i in (2, 0, 1):
        again = make_scene(5, i, cfg)
        np.testing.assert_array_equal(again.image, one[i].image)
        for a, b in zip(again.people, one[i].people):
            np.testing.assert_array_equal(a["keypoints"], b["keypoints"])
            assert a["segmentation"] == b["segmentation"] and a["bbox"] == b["bbox"]


def test_workers_change_nothing(tmp_path):
    cfg = SynthConfig(image_hw=(96, 96), people=(1, 2))
    for n in (1, 2):
        write_synth(tmp_path / str(n), 6, 0, 2, seed=3, config=cfg, workers=n)
    files = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "2") for p in (tmp_path / "2").rglob("*") if p.is_file())
    for f in files:
        assert (tmp_path / "1" / f).read_bytes() == (tmp_path / "2" / f).read_bytes(), f


def test_labels_without_colour_are_the_labels():
    a, b = make_scene(4, 7), make_scene(4, 7, colour=False)
    assert b.image is None and a.image.shape == (256, 256, 3) and a.image.dtype == np.uint8
    for p, q in zip(a.people, b.people):
        np.testing.assert_array_equal(p["keypoints"], q["keypoints"])


def test_labels_inside_and_masks_agree(scenes):
    seen = 0
    for s in scenes:
        taken = np.zeros((256, 256), int)
        for p in s.people:
            k, (x, y, w, h), mask = p["keypoints"], p["bbox"], unrle(p["segmentation"])
            labelled = k[k[:, 2] > 0]
            assert set(np.unique(k[:, 2])) <= {0., 1., 2.}
            assert (labelled[:, :2] >= -.5).all() and (labelled[:, :2] < 255.5).all() and (k[k[:, 2] == 0, :2] == 0).all()
            assert p["num_keypoints"] == len(labelled) and p["area"] == mask.sum() > 0
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) == (x, y, w, h)
            for a, b, v in k[k[:, 2] == 2]:        # what is visible is on the person or at its rim
                c, r = int(np.floor(a + .5)), int(np.floor(b + .5))
                assert mask[max(0, r - 2):r + 3, max(0, c - 2):c + 3].any()
                seen += 1
            taken += mask
        assert taken.max() <= 1                    # one pixel, one person
    assert seen > 300


def test_projection_and_depth(scenes):
    for s in scenes:
        K = s.camera["K"]
        np.testing.assert_allclose(s.camera["R"] @ s.camera["R"].T, np.eye(3), atol=1e-12)
        for p in s.people:
            X, k = p["joints3d"], p["keypoints"]
            on = k[:, 2] > 0
            assert X.dtype == np.float64 and k.dtype == np.float64 and (X[on, 2] > 0).all()
            q = X[on] @ K.T
            np.testing.assert_allclose(q[:, :2] / q[:, 2:], k[on, :2], atol=1e-6)


def test_faces_are_seen_from_the_front_only(scenes):
    back = [p for s in scenes for p in s.people if p["activity"] in ("walk", "run") and abs(p["yaw_deg"]) > 165]
    front = [p for s in scenes for p in s.people if p["activity"] in ("stand", "walk") and abs(p["yaw_deg"]) < 20 and p["overlapped"] + p["occluded"] + p["truncated"] < .05]
    assert sum(p["keypoints"][0, 2] == 0 for p in back) >= .75 * len(back)
    assert np.mean([p["keypoints"][0, 2] == 2 for p in front] or [1]) > .6


def test_hidden_by_a_person_in_front():
    cfg = SynthConfig(people=(3, 3), close=1., occlude=0., truncate=0.)
    people = [p for i in range(40) for p in make_scene(2, i, cfg, colour=False).people]
    partly, mostly = [p for p in people if .15 < p["overlapped"] < .5 and p["num_keypoints"]], [p for p in people if p["overlapped"] > .6]
    assert partly and np.mean([(p["keypoints"][5:, 2] != 2).mean() for p in partly]) > .2
    assert any((p["keypoints"][5:, 2] == 1).any() for p in partly)          # a gap in a visible limb is guessed
    assert mostly and all(p["num_keypoints"] == 0 for p in mostly)          # of whom hardly anything is seen, nothing is guessed


def test_left_is_left():
    cfg = SynthConfig(people=(1, 1), truncate=0., occlude=0., mix=(("stand", 1.),), uniform_yaw=0.)
    for i in range(10):
        p = make_scene(1, i, cfg, colour=False).people[0]
        if abs(p["yaw_deg"]) < 50:                 # facing the camera: the left shoulder is to the right of the picture
            assert p["joints3d"][5, 0] > p["joints3d"][6, 0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_run_lengths(rows):
    m = np.array(rows)
    np.testing.assert_array_equal(unrle(rle(m)), m)


def test_masks_as_pycocotools_reads_them(scenes):
    from pycocotools import mask as M
    for p in scenes[0].people + scenes[1].people:
        r = p["segmentation"]
        np.testing.assert_array_equal(M.decode(M.frPyObjects(r, *r["size"])), unrle(r))


def test_sequences_keep_their_people():
    film = make_sequence(1, 5, 3, config=SynthConfig(mix=(("walk", 1.),), truncate=0.), colour=False)
    ids = [{p["track_id"]: p for p in f.people} for f in film]
    assert ids[0] and set(ids[0]) & set(ids[2])
    moved = [np.linalg.norm(ids[0][t]["joints3d"][11] - ids[2][t]["joints3d"][11]) for t in set(ids[0]) & set(ids[2])]
    assert max(moved) > .05 and max(moved) < 1.
    np.testing.assert_array_equal(film[0].camera["K"], film[2].camera["K"])


def test_parts_never_share_a_scene():
    assert PARTS["val"] - PARTS["train"] >= 10_000_000 and PARTS["unlabeled"] - PARTS["val"] >= 10_000_000


def test_endless_data_set_is_shared_out():
    stream = SynthDataset(3, SynthConfig(image_hw=(64, 64)), transform=lambda s: s.index)
    it = iter(stream)
    assert [next(it) for _ in range(4)] == [0, 1, 2, 3]


def test_composition(bench_doc):
    c = composition(bench_doc)
    assert c["people"] >= 400
    assert c["truncated"] >= .25 and c["overlapped"] >= .30 and c["occluded"] >= .25, c
    assert max(c["activity"].values()) <= .20 + .02 and c["activity"]["lie"] >= .05 and c["activity"]["noise"] >= .05, c["activity"]
    assert min(c["yaw"]) >= .02                    # twelve sectors; uniform half alone gives .042


def test_published_composition():
    from posellm.core.files import read_json
    from posellm.core.paths import assets
    d = read_json(assets() / "synth_v1.json")
    c = d["composition"]
    assert c["people"] >= d["n_val"] == 1000 and c["truncated"] >= .25 and c["overlapped"] >= .30 and c["occluded"] >= .25
    assert max(c["activity"].values()) <= .20 and min(c["activity"]["lie"], c["activity"]["noise"]) >= .05
    assert min(c["yaw"]) * 12 >= .5                # at least half uniform


def test_checksum_of_the_benchmark():
    b = synth_v1()
    assert checksum(label_doc(b.seed, b.n_val, b.config)) == b.checksum, "labels of synth-v1 have changed: it is frozen, so undo what changed it or define a version 2"


def test_mean_pose_scores_nothing(bench_doc):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(bench_doc))
        truth.createIndex()
        e = COCOeval(truth, truth.loadRes(mean_pose(bench_doc)), "keypoints")
        e.evaluate(), e.accumulate(), e.summarize()
    assert e.stats[0] < .10


@pytest.mark.parametrize("bad", [dict(style="cubist"), dict(people=(0, 1)), dict(image_hw=(8, 8)), dict(mix=(("fly", 1.),))])
def test_bad_settings(bad):
    with pytest.raises(PoseError, match=next(iter(bad))):
        SynthConfig(**bad)
