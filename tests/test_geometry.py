"""Crop geometry against independent statements of the published definitions, and round trips over all settings."""
import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from posellm.core.errors import PoseError
from posellm.pose.geometry import (FAMILIES, apply_affine, box_of_keypoints, box_to_crop, clip_box, compose, crop_matrix, crop_to_heatmap, flip_xy,
                                   heatmap_to_crop, invert_affine, iou, stride, to_crop, to_image, xywh_to_xyxy, xyxy_to_xywh)

sizes = st.sampled_from([(256, 192), (384, 288), (128, 96), (256, 256), (1024, 768)])
boxes = st.tuples(st.floats(-500, 5000), st.floats(-500, 5000), st.floats(1, 3000), st.floats(1, 3000))
angles = st.floats(-180, 180)


def three_point(center, scale, rot, hw):
    """SimpleBaseline's way: centre, a point half a width away from it, and a third at a right angle, given to OpenCV's solver."""
    def third(a, b): return b + np.array([b[1] - a[1], a[0] - b[0]])
    t = np.deg2rad(rot)
    arm = np.array([np.sin(t), -np.cos(t)]) * scale[0] / 2  # (0, -w/2) turned by rot
    src, dst = [center, center + arm], [np.array([hw[1] / 2, hw[0] / 2]), np.array([hw[1] / 2, hw[0] / 2 - hw[1] / 2])]
    src.append(third(*src)); dst.append(third(*dst))
    return cv2.getAffineTransform(np.float32(src), np.float32(dst))


def udp_formula(center, scale, rot, hw):
    """The UDP paper's matrix, entry by entry."""
    t, (H, W) = np.deg2rad(rot), hw
    sx, sy = (W - 1) / scale[0], (H - 1) / scale[1]
    return np.array([[np.cos(t) * sx, -np.sin(t) * sx, sx * (-center[0] * np.cos(t) + center[1] * np.sin(t) + scale[0] / 2)],
                     [np.sin(t) * sy, np.cos(t) * sy, sy * (-center[0] * np.sin(t) - center[1] * np.cos(t) + scale[1] / 2)]])


@settings(max_examples=60, deadline=None)
@given(boxes, sizes, angles)
def test_published_definitions(box, hw, rot):
    c, s = box_to_crop([box], hw)
    pts = c[0] + np.array([[0, 0], [-.5, -.5], [.5, .5], [.3, -.2]]) * s[0]
    ours = apply_affine(crop_matrix(c, s, hw, rot, family="udp")[0], pts)
    np.testing.assert_allclose(ours, apply_affine(udp_formula(c[0], s[0], rot, hw), pts), atol=1e-8)
    ours = apply_affine(crop_matrix(c, s, hw, rot, family="classic")[0], pts)
    if s[0, 0] > 20:  # the three-point solver takes float32 points, so tiny boxes far away are noise
        theirs = apply_affine(three_point(c[0], s[0], -rot, hw), pts)  # the opposite sense of rotation
        np.testing.assert_allclose(ours, theirs, atol=2e-2 * max(1, 100 / s[0, 0]))


@settings(max_examples=80, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4), sizes, angles, st.booleans(), st.sampled_from(FAMILIES), st.integers(0, 99))
def test_round_trip(bbox, hw, rot, flip, family, seed):
    c, s = box_to_crop(bbox, hw)
    M = crop_matrix(c, s, hw, rot, flip, family)
    gen = np.random.default_rng(seed)
    xy = c[:, None] + s[:, None] * gen.uniform(-1, 1, (len(c), 17, 2))
    np.testing.assert_allclose(to_image(M, to_crop(M, xy)), xy, rtol=0, atol=1e-9)
    hm = (hw[0] // 4, hw[1] // 4)
    crop = gen.uniform(0, 1000, (3, 17, 2))
    np.testing.assert_allclose(heatmap_to_crop(crop_to_heatmap(crop, hw, hm, family), hw, hm, family), crop, rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(boxes, sizes, angles, st.sampled_from(FAMILIES))
def test_flip_is_a_mirrored_photograph(box, hw, rot, family):
    width = 640.
    c, s = box_to_crop([box], hw)
    xy = c[:, None] + s[:, None] * np.array([[[.1, .2], [-.4, .3]]])
    mirrored_c = np.array([[width - 1 - c[0, 0], c[0, 1]]])
    then_crop = to_crop(crop_matrix(mirrored_c, s, hw, rot, False, family), flip_xy(xy, width))
    np.testing.assert_allclose(to_crop(crop_matrix(c, s, hw, rot, True, family), xy), then_crop, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_heatmap_to_image_formula(family):
    """The shortcut of the published decoders (no rotation): x * scale / W_hm + c - scale/2, with one less for UDP."""
    hw, hm, less = (256, 192), (64, 48), 1 if family == "udp" else 0
    c, s = box_to_crop([[37, 12, 81, 230]], hw)
    xy_hm = np.array([[[0., 0], [10.3, 50.7], [47, 63]]])
    long_way = to_image(crop_matrix(c, s, hw, family=family), heatmap_to_crop(xy_hm, hw, hm, family))
    np.testing.assert_allclose(long_way, xy_hm * s[:, None] / (np.array([48, 64]) - less) + c[:, None] - s[:, None] / 2, atol=1e-9)
    np.testing.assert_allclose(stride(hw, hm, family), (np.array([192, 256]) - less) / (np.array([48, 64]) - less))


@settings(max_examples=50, deadline=None)
@given(boxes, sizes, st.floats(1, 2))
def test_crop_holds_box(box, hw, padding):
    c, s = box_to_crop([box], hw, padding)
    assert np.isclose(s[0, 0] / s[0, 1], hw[1] / hw[0])
    assert (s[0] >= np.array(box[2:]) * padding * (1 - 1e-12)).all() and np.isclose((s[0] / np.array(box[2:])).min(), padding)
    np.testing.assert_allclose(c[0], [box[0] + box[2] / 2, box[1] + box[3] / 2])


def test_compose_and_stack():
    gen = np.random.default_rng(0)
    A, B, xy = gen.normal(size=(5, 2, 3)), gen.normal(size=(5, 2, 3)), gen.normal(size=(5, 7, 2))
    np.testing.assert_allclose(apply_affine(compose(A, B), xy), apply_affine(A, apply_affine(B, xy)))
    np.testing.assert_allclose(compose(A[0], B[0]), compose(A, B)[0])
    np.testing.assert_allclose(compose(invert_affine(A), A), np.broadcast_to(np.eye(2, 3), (5, 2, 3)), atol=1e-9)


def test_boxes():
    b = np.array([[3., 4, 10, 20], [-5, 90, 30, 30]])
    np.testing.assert_array_equal(xyxy_to_xywh(xywh_to_xyxy(b)), b)
    np.testing.assert_array_equal(clip_box(b, (100, 100))[1], [0, 90, 25, 10])
    x1, y1 = 3., 4.  # HRNet: x2 = min(W-1, x1 + max(0, w-1))
    np.testing.assert_array_equal(clip_box(b, (100, 100), inclusive=True)[0], [x1, y1, min(99, x1 + 9) - x1, min(99, y1 + 19) - y1])
    m = iou(b, b)
    np.testing.assert_allclose(np.diag(m), 1); assert m[0, 1] == 0
    assert box_of_keypoints(np.zeros((2, 17, 2)), np.zeros((2, 17), bool)).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [0, 0, -1, 5], [0, np.nan, 5, 5], [0, 0, np.inf, 5]])
def test_bad_box(box):
    with pytest.raises(PoseError, match="box 1 has no size"): box_to_crop([[0, 0, 5, 5], box], (256, 192))


def test_no_people():
    c, s = box_to_crop(np.zeros((0, 4)), (256, 192))
    assert c.shape == s.shape == (0, 2) and crop_matrix(c, s, (256, 192)).shape == (0, 2, 3)
