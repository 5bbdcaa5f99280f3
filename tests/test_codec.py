"""Codecs against a float64 implementation of the published methods, round trips, and what must be refused."""
import json
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
import reference_codec as ref
from posellm.core.errors import PoseError
from posellm.pose.codec import KINDS, Codec, make_codec
from posellm.pose.geometry import stride
from posellm.pose.heatmap import NARROW, dark_offset, expected_peaks, expected_similarity, peaks

INPUTS = [(256, 192), (384, 288), (256, 256)]


def noisy(codec, seed, n=6, noise=.05, border=0.):
    """Maps as a network might give them: hills of random height at random places, and noise."""
    gen = np.random.default_rng(seed)
    hw = np.array(codec.input_hw[::-1])
    xy = gen.uniform(-border, hw - 1 + border, (n, 17, 2))
    maps, _ = codec.encode(xy)
    maps = maps.numpy() * gen.uniform(.1, 1.2, (n, 17, 1, 1)) + noise * gen.standard_normal((n, 17, *codec.map_shape))
    return xy, torch.tensor(maps, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["udp", "msra"])
@pytest.mark.parametrize("hw", INPUTS)
def test_targets_equal_published(kind, hw):
    codec, gen = make_codec(kind, hw), np.random.default_rng(1)
    xy = gen.uniform(-.25, 1.25, (8, 17, 2)) * hw[::-1]
    labelled = gen.random((8, 17)) > .2
    target, weight = codec.encode(xy, labelled)
    for b in range(8):
        want, w = ref.encode_gaussian(xy[b] / stride(hw, codec.heatmap_hw, codec.family), labelled[b], codec.heatmap_hw, int(codec.sigma), kind == "msra")
        np.testing.assert_allclose(target[b], want, atol=3e-5)  # float32 coordinates: up to 1.5e-5 px at 256
        np.testing.assert_array_equal(weight[b], w)
    assert weight.min() == 0 and (target.flatten(2).amax(-1)[weight == 0] == 0).all()


def test_simcc_equals_published():
    codec, gen = make_codec("simcc", (256, 192)), np.random.default_rng(2)
    xy, labelled = gen.uniform(-.2, 1.2, (4, 17, 2)) * [192, 256], gen.random((4, 17)) > .2
    target, weight = codec.encode(xy, labelled)
    for b in range(4):
        tx, ty, w = ref.encode_simcc(xy[b], labelled[b], (256, 192), codec.sigma)
        np.testing.assert_allclose(target[b], np.concatenate([tx, ty], 1), atol=1e-5)
        np.testing.assert_array_equal(weight[b], w)
    pair = target[..., :384], target[..., 384:]
    assert torch.equal(codec.decode(pair)[0], codec.decode(target)[0])
    shown = torch.as_tensor((xy > 0).all(-1) & (xy < [191, 255]).all(-1)) & (weight > 0)
    assert (codec.decode(target)[0] - torch.as_tensor(xy)).abs()[shown].max() < .26


@pytest.mark.parametrize("variant", ["vitpose", "mmpose"])
@pytest.mark.parametrize("hw,kernel", [(INPUTS[0], 11), (INPUTS[1], 11), (INPUTS[1], 17), (INPUTS[2], 11), ((64, 48), 11)])
def test_dark_equals_published(variant, hw, kernel):
    """Within 1e-4 input pixels of float64, on noisy hills in and around the map, also on maps no larger than the window."""
    codec = make_codec("udp", hw, sigma=1. if hw == (64, 48) else None, blur_kernel=kernel, variant=variant)
    step = stride(hw, codec.heatmap_hw, "udp")
    for border in (0, 6):
        _, maps = noisy(codec, 3, border=border, noise=.01 if hw == (64, 48) else .05)
        xy, conf = codec.decode(maps)
        for b in range(len(maps)):
            want, height = ref.decode_dark(maps[b].numpy().astype(np.float64), kernel, variant)
            np.testing.assert_allclose(xy[b], want * step, rtol=1e-6, atol=1e-4)  # also the wild steps of nearly flat maps
            np.testing.assert_allclose(conf[b], height, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 80.])
@pytest.mark.parametrize("variant", ["vitpose", "mmpose"])
def test_dark_where_the_clip_bites(scale, variant):
    """Peaks below 1e-3 and above 50: here the rescaling of MMPose changes the result, and must."""
    codec = make_codec("udp", (256, 192), variant=variant)
    xy, maps = noisy(codec, 5, noise=0)
    maps = maps * scale
    got = codec.decode(maps)[0].numpy()
    for b in range(len(maps)):
        want = ref.decode_dark(maps[b].numpy().astype(np.float64), 11, variant)[0] * stride((256, 192), (64, 48), "udp")
        np.testing.assert_allclose(got[b], want, atol=1e-4)


def test_dark_at_every_cell():
    """A hill on each cell of the map, all borders and corners among them."""
    for variant in ("vitpose", "mmpose"):
        codec = make_codec("udp", (96, 80), variant=variant, sigma=2.)
        yy, xx = np.mgrid[:24, :20]
        hm = np.stack([xx, yy], -1).reshape(1, -1, 2) + .3
        maps, _ = codec.encode(hm * stride((96, 80), (24, 20), "udp"))
        want = ref.decode_dark(maps[0].numpy().astype(np.float64), 11, variant)[0]
        np.testing.assert_allclose(codec.decode(maps)[0][0] / stride((96, 80), (24, 20), "udp"), want, atol=2e-5)


def test_quarter_equals_published():
    codec = make_codec("msra", (256, 192))
    _, maps = noisy(codec, 7, border=8)
    xy, conf = codec.decode(maps)
    for b in range(len(maps)):
        want, height = ref.decode_quarter(maps[b].numpy())
        np.testing.assert_allclose(xy[b], want * 4, atol=1e-5)
        np.testing.assert_allclose(conf[b], height)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(INPUTS), st.integers(0, 10**6), st.floats(.1, 1))
def test_round_trip(hw, seed, height):
    codec = make_codec("udp", hw)
    gen, margin = np.random.default_rng(seed), codec.sigma * 4 * 4
    xy = gen.uniform(margin, np.array(hw[::-1]) - margin, (2, 17, 2))
    back, conf = codec.decode(codec.encode(xy)[0] * height)
    assert np.abs(back.numpy() - xy).max() < .1  # measured: below 0.001


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(32, 24), (24, 32), (5, 40)]), st.integers(0, 10**6))
def test_the_highest_expected_similarity(hw, seed):
    """Against the sum over all cells, written out; the answer between cells is hardly worse than the best cell (a parabola is laid through three)."""
    gen, (H, W) = np.random.default_rng(seed), hw
    cells, falloff = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1).reshape(-1, 2), (.025, .062, .107)
    hills = gen.random((2, 3, 6, 1, 2)) * [W, H], gen.uniform(1, 3, (2, 3, 6, 1)), gen.random((2, 3, 6, 1))
    maps = (hills[2] * np.exp(-((cells - hills[0]) ** 2).sum(-1) / (2 * hills[1] ** 2))).sum(2).reshape(2, 3, H, W).astype(np.float32)
    def expected(b, k, at): return (maps[b, k].ravel() * np.exp(-((cells - at) ** 2).sum(-1) / (2 * H * W * (NARROW * falloff[k]) ** 2))).sum()
    got, e = expected_peaks(torch.from_numpy(maps), falloff).numpy(), expected_similarity(torch.from_numpy(maps), falloff).numpy()
    for b in range(2):
        for k in range(3):
            each = np.array([expected(b, k, c) for c in cells])
            np.testing.assert_allclose(e[b, k].ravel(), each, rtol=1e-4, atol=1e-12)
            assert np.abs(got[b, k] - cells[each.argmax()]).max() <= 1 and (NARROW * falloff[k] * (H * W) ** .5 < 1 or expected(b, k, got[b, k]) > .98 * each.max())  # under a kernel narrower than a cell the sum sinks between cells


def test_out_of_sight():
    for kind in KINDS:
        codec = make_codec(kind, (256, 192))
        xy = torch.tensor([[[-500., 50], [50, 9999], [float("nan"), 3], [float("inf"), 3], [50, 50], [50, 50]]])
        target, weight = codec.encode(xy, torch.tensor([[1., 1, 1, 1, 0, .25]]))
        assert weight.tolist() == [[0, 0, 0, 0, 0, .25]]
        assert torch.isfinite(target).all() and (target[0, :5] == 0).all() and target[0, 5].max() > .9
        xy, conf = codec.decode(torch.zeros(1, 6, *codec.map_shape))
        assert torch.isfinite(xy).all() and (conf == 0).all()


def test_buffer_is_overwritten():
    for kind in KINDS:
        codec = make_codec(kind, (256, 192))
        xy = torch.rand(3, 17, 2) * 190
        buffer = torch.full((3, 17, *codec.map_shape), 7.)
        target, _ = codec.encode(xy, out=buffer)
        assert target.data_ptr() == buffer.data_ptr() and torch.equal(target, codec.encode(xy)[0])


def test_same_on_every_path():
    """numpy's argmax on the CPU and torch's elsewhere agree, ties included; half precision and strided maps decode as their float32 copies."""
    codec = make_codec("udp", (256, 192))
    _, maps = noisy(codec, 11)
    maps = (maps * 16).round() / 16
    flat = maps.flatten(-2)
    x, y, height = peaks(maps)
    assert torch.equal(y * 48 + x, flat.argmax(-1)) and torch.equal(height, flat.amax(-1))
    assert torch.equal(codec.decode(maps.to(memory_format=torch.channels_last))[0], codec.decode(maps)[0])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(codec.decode(maps.to(dtype))[0], codec.decode(maps.to(dtype).float())[0])
    assert not codec.decode(maps.requires_grad_())[0].requires_grad
    assert codec.decode(maps[:0])[0].shape == (0, 17, 2) and codec.encode(torch.zeros(0, 17, 2))[0].shape == (0, 17, 64, 48)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_gpu():
    for kind in KINDS:
        codec = make_codec(kind, (256, 192))
        xy = torch.rand(8, 17, 2) * 190
        here, there = codec.encode(xy)[0], codec.encode(xy.cuda())[0]
        torch.testing.assert_close(there.cpu(), here, atol=1e-6, rtol=0)
        torch.testing.assert_close(codec.decode(there)[0].cpu(), codec.decode(here)[0], atol=1e-4, rtol=0)


def test_flip_test():
    perm = np.array([0, 2, 1])
    gen = np.random.default_rng(0)
    for kind, px in (("udp", 1e-3), ("simcc", .76)):
        codec = make_codec(kind, (256, 192))
        xy = gen.uniform(40, 150, (4, 3, 2))
        mirror = xy[:, perm] * [-1, 1] + [191, 0]
        merged = codec.merge_flip(codec.encode(xy)[0], codec.encode(mirror)[0], perm)
        assert np.abs(codec.decode(merged)[0].numpy() - xy).max() < px
    # classic: as the published code writes it, column by column
    codec = make_codec("msra", (256, 192))
    a, b = torch.rand(2, 3, 64, 48), torch.rand(2, 3, 64, 48)
    back = b.numpy()[..., ::-1][:, perm].copy()
    back[..., 1:] = back[..., :-1].copy()
    np.testing.assert_allclose(codec.merge_flip(a, b, perm), (a.numpy() + back) / 2, atol=1e-7)
    np.testing.assert_allclose(codec.merge_flip(a, b, perm, shift=0), (a.numpy() + b.numpy()[..., ::-1][:, perm]) / 2, atol=1e-7)
    kept = b.clone(); codec.merge_flip(a, b, perm); assert torch.equal(b, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_json(kind):
    for decode in KINDS[kind]:
        codec = make_codec(kind, (384, 288), decode=decode, variant="mmpose")
        assert Codec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec and hash(codec) == hash(Codec.from_dict(codec.to_dict()))


@pytest.mark.parametrize("kw,words", [
    (dict(kind="heatmap"), "found 'heatmap'; allowed udp, msra, simcc"),
    (dict(heatmap_hw=(64, 47)), "heatmap_hw must divide input_hw"),
    (dict(heatmap_hw=(64, 96)), "same number in both directions"),
    (dict(input_hw=(256, 190)), "heatmap_hw must divide"),
    (dict(input_hw=256), "input_hw: not a size"),
    (dict(decode="darc"), "found 'darc'; allowed ('dark', 'quarter', 'argmax', 'expected')"),
    (dict(sigma=0), "sigma: not a spread; found 0"),
    (dict(blur_kernel=12), "blur_kernel: the blur needs a middle cell; found 12"),
    (dict(variant="hf"), "allowed vitpose, mmpose"),
    (dict(kind="simcc", heatmap_hw=(300, 384)), "whole multiple of input_hw"),
])
def test_refused(kw, words):
    with pytest.raises(PoseError) as e: make_codec(**{**dict(kind="udp", input_hw=(256, 192)), **kw})
    assert words in str(e.value), str(e.value)


def test_refused_calls():
    codec = make_codec("udp", (256, 192))
    for call in (lambda: codec.decode(torch.zeros(1, 17, 48, 64)), lambda: codec.encode(torch.zeros(1, 17, 2), torch.ones(1, 16)), lambda: codec.encode(torch.zeros(1, 17, 3)),
                 lambda: codec.encode(torch.zeros(1, 17, 2), out=torch.zeros(2, 17, 64, 48)), lambda: Codec.from_dict({"kind": "udp"}),
                 lambda: dark_offset(torch.zeros(1, 1, 20, 20), *peaks(torch.zeros(1, 1, 20, 20)), kernel=4)):
        with pytest.raises(PoseError): call()
