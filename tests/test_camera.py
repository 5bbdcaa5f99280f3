"""The camera against OpenCV, and its ways back."""
import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from posellm.core.errors import PoseError
from posellm.pose.camera import Camera, distort, homography, look_at, turned_camera, undistort
from posellm.pose.geometry import apply_affine, crop_matrix

lens = st.tuples(st.floats(-.3, .3), st.floats(-.05, .05), st.floats(-.01, .01), st.floats(-.01, .01), st.floats(-.01, .01))


def some_camera(seed, d=(0.,) * 5):
    gen = np.random.default_rng(seed)
    return look_at(gen.uniform([-4, -8, .5], [4, -3, 3]), gen.uniform(-.5, .5, 3) + [0, 0, 1], (480, 640), fov=gen.uniform(30, 80), distortion=d)


@given(st.integers(0, 999), lens)
def test_projects_like_opencv(seed, d):
    cam = some_camera(seed, d)
    X = np.random.default_rng(seed).uniform(-1, 1, (20, 3)) + [0, 0, 1]
    want, _ = cv2.projectPoints(X, cv2.Rodrigues(cam.R)[0], cam.t, cam.K, np.array(d))
    np.testing.assert_allclose(cam.project(X), want[:, 0], atol=1e-7)


@given(st.integers(0, 999), lens)
def test_there_and_back(seed, d):
    gen = np.random.default_rng(seed)
    uv = gen.uniform(-.5, .5, (30, 2))
    np.testing.assert_allclose(undistort(distort(uv, d), d), uv, atol=1e-9)
    cam = some_camera(seed, d)
    X = cam.to_world(np.concatenate([uv, np.ones((30, 1))], 1) * gen.uniform(1, 9, (30, 1)))
    np.testing.assert_allclose(cam.unproject(cam.project(X), cam.to_camera(X)[:, 2]), X, atol=1e-8)
    np.testing.assert_allclose(cam.to_world(cam.to_camera(X)), X, atol=1e-12)


@given(st.integers(0, 999), lens, st.floats(-180, 180), st.booleans(), st.sampled_from(["udp", "classic"]))
def test_crop_is_a_camera(seed, d, rot, flip, family):
    cam = some_camera(seed, d)
    X = np.random.default_rng(seed).uniform(-.5, .5, (20, 3)) + [0, 0, 1]
    M = crop_matrix([[300, 200]], [[150, 200]], (256, 192), rot, flip, family)[0]
    np.testing.assert_allclose(cam.crop(M).project(X), apply_affine(M, cam.project(X)), atol=1e-8)


@given(st.integers(0, 999), st.floats(0, 639), st.floats(0, 479))
def test_turned_camera(seed, u, v):
    cam = some_camera(seed)
    view = turned_camera(cam, (u, v), (150, 200), (256, 192))
    np.testing.assert_allclose(view.position, cam.position, atol=1e-9)
    X = cam.unproject(np.array([[u, v], [u + 20, v - 30]]), [3., 5.])
    p = view.project(X)
    np.testing.assert_allclose(p[0], [95.5, 127.5], atol=1e-7)
    q = np.array([u + 20, v - 30, 1]) @ homography(cam, view).T
    np.testing.assert_allclose(p[1], q[:2] / q[2], atol=1e-7)


def test_refused_and_nowhere():
    cam = some_camera(0)
    assert np.isnan(cam.project(2 * cam.position - [0, 0, 1])).all()
    for bad in (dict(K=np.eye(2)), dict(K=np.eye(3), t=[0, 0, np.nan]), dict(K=np.eye(3), R=-2 * np.eye(3)), dict(K=np.eye(3), distortion=(.1,))):
        with pytest.raises(PoseError): Camera(**bad)
    with pytest.raises(PoseError): cam.crop(np.eye(3))
