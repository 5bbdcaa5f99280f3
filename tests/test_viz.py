"""Pictures: what must hold for any input, and one look at real photographs."""
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.pose.skeleton import get_skeleton, list_skeletons
from posellm.viz import canvas, draw, plots

GREY = np.full((48, 40, 3), 120, np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=34, max_size=34), st.sampled_from(["none", "vis", "conf"]), st.integers(0, 99))
def test_any_coordinates_can_be_drawn(values, kind, seed):
    """NaN, infinities and absurd coordinates neither crash nor change the input."""
    r = np.random.default_rng(seed)
    state = {"none": None, "vis": r.integers(0, 3, 17), "conf": r.normal(.5, 1, 17)}[kind]
    before = GREY.copy()
    out = draw.draw_pose(GREY, np.array(values).reshape(17, 2), state)
    assert out.shape == GREY.shape and out.dtype == np.uint8 and (GREY == before).all()


@pytest.mark.parametrize("name", list_skeletons())
def test_every_skeleton_can_be_drawn(name):
    sk = get_skeleton(name)
    xy = np.random.default_rng(0).uniform(5, 35, (2, sk.K, 2))
    assert (draw.draw_pose(GREY, xy, skeleton=sk) != GREY).any()
    fig = canvas.figure(2, 2)
    draw.show_pose(fig.subplots(), xy, skeleton=sk)
    assert len(canvas.to_png(fig)) > 500


def test_left_and_right_differ_in_lightness():
    left, right = (canvas.lightness(canvas.side_colours[s]) for s in ("left", "right"))
    assert left - right > .35


def test_doubtful_keypoint_stays_where_it_is():
    """Low confidence makes a keypoint fainter, at the same place; it never moves to (0,0)."""
    xy = np.full((17, 2), np.nan)
    xy[0] = 30, 20
    change = [np.abs(draw.draw_pose(GREY, xy, np.full(17, c)).astype(int) - GREY).sum(-1) for c in (1., .1)]
    assert change[0].max() > change[1].max() > 0
    for c in change:
        y, x = np.nonzero(c)
        assert abs(y.mean() - 20) < 1 and abs(x.mean() - 30) < 1


def test_far_people_get_thin_lines():
    assert draw._pen(20)[0] < draw._pen(400)[0] <= draw._pen(1e6)[0] < 10


@pytest.mark.parametrize("family", ["udp", "classic"])
def test_overlay_is_where_the_heatmap_is(family):
    """A single hot cell lights the crop at the place its warp family assigns to it."""
    hw, map_hw, cell = (96, 72), (24, 18), (13, 7)
    maps = np.zeros((1, *map_hw))
    maps[0, cell[0], cell[1]] = 1
    shade = draw.tint_heatmaps(np.zeros((*hw, 3), np.uint8), maps, family).astype(float).sum(-1)
    shade -= shade.min()
    y, x = (shade.sum(1) @ np.arange(hw[0]) / shade.sum(), shade.sum(0) @ np.arange(hw[1]) / shade.sum())
    stride = [(a - 1) / (b - 1) if family == "udp" else a / b for a, b in zip(hw, map_hw)]
    assert abs(y - cell[0] * stride[0]) < .2 and abs(x - cell[1] * stride[1]) < .2


def test_heatmaps_as_tensor():
    torch = pytest.importorskip("torch")
    maps = torch.rand(17, 12, 10, dtype=torch.float16, requires_grad=True)
    assert draw.tint_heatmaps(GREY, maps).shape == GREY.shape
    assert isinstance(draw.show_targets(GREY, maps, skeleton="coco17"), canvas.Picture)


@pytest.mark.parametrize("call, word", [
    (lambda: draw.draw_pose(GREY / 255, np.zeros((17, 2))), "uint8"),
    (lambda: draw.draw_pose(GREY, np.zeros((16, 2))), "(17,2)"),
    (lambda: draw.draw_pose(GREY, np.zeros((17, 2)), np.zeros(3)), "conf_or_vis"),
    (lambda: draw.compare(GREY, np.zeros((17, 2)), np.zeros((2, 17, 2))), "pred_xy"),
    (lambda: draw.tint_heatmaps(GREY, np.zeros((17, 4, 4)), "dark"), "classic"),
    (lambda: plots.plot_history([{"train_loss": 1.}]), "epoch"),
    (lambda: plots.plot_pr(np.zeros((2, 101)), [.5]), "precision"),
    (lambda: plots.plot_keypoint_bars(np.zeros(3)), "(17,)"),
])
def test_bad_input_is_named(call, word):
    with pytest.raises(PoseError) as e: call()
    assert word in str(e.value)


def test_names_with_dollar_signs_are_not_mathematics():
    fig = plots.plot_stages([dict(stage="a$b", row=r"\frac$", ap=.5)], title="$x_1$ and $")
    assert canvas.to_png(fig)


def test_nothing_to_show_is_said():
    for fig in (canvas.grid([]), plots.plot_history([]), plots.plot_stages([])):
        assert len(fig.texts) == 1 and canvas.to_png(fig)


def test_no_figure_is_left_in_pyplot():
    canvas.to_png(plots.plot_history([dict(epoch=0, loss=1.), dict(epoch=1, loss=.5)]))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_png_of_an_image_is_the_image():
    cv2 = pytest.importorskip("cv2")
    img = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    back = cv2.imdecode(np.frombuffer(canvas.to_png(img), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (back == img).all()


def test_real_photographs(tmp_path):
    """Labelled people of real photographs, grey ones included, drawn and put on a sheet."""
    shared = shared_data()
    if shared is None or not (shared / "coco_subset").exists(): pytest.skip("no shared data beside the clone: real photographs are not drawn")
    import cv2
    from posellm.pose.poses import Poses
    folder = shared / "coco_subset"
    truth = Poses.from_coco(folder / "annotations" / "person_keypoints_val2017.json")
    table, sheet = truth.image_table(), []
    for image_id in sorted(set(truth.image_id[truth.num_keypoints > 5].tolist()))[:6]:
        people = truth[truth.image_id == image_id]
        img = cv2.imread(str(folder / "val2017" / table[image_id]["file_name"]), cv2.IMREAD_COLOR)[..., ::-1]
        drawn = draw.draw_boxes(draw.draw_pose(img, people.xy, people.vis, people.skeleton), people.bbox)
        assert (drawn != img).any()
        sheet.append(drawn)
    png = canvas.to_png(canvas.grid(sheet, cols=3, width=9))
    (tmp_path / "sheet.png").write_bytes(png)
    assert io.BytesIO(png).read(4) == b"\x89PNG"
