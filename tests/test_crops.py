"Crops and views: pixels land where coordinates say, on every road; batches do not depend on who makes them; a damaged cache is never used."
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from posellm.core.errors import PoseError
from posellm.core.rng import rng
from posellm.data import crops
from posellm.data.crops import CropStore, prefetch, store_hw, stream
from posellm.pose.geometry import apply_affine, compose, crop_matrix, invert_affine
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.train.augment import Augment, by_albumentations, draw_views, render_cpu, render_torch

COCO, HW = get_skeleton('coco17'), (128, 96)


def people(n=6, size=(240, 200), on_disk=None):
    g = rng(0, 'crop tests'); images, anns = [], []
    for i in range(n):
        im = dict(id=i, file_name=f'{i}.png', width=size[1], height=size[0])
        if on_disk is not None:
            im['path'] = str(on_disk/im['file_name']); pic = cv2.resize(g.integers(0, 255, (12, 10, 3)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(im['path'], pic)
        xy = g.uniform([60, 60], [140, 180], (17, 2)); images.append(im)
        anns.append(dict(id=i+1, image_id=i, category_id=1, keypoints=np.c_[xy, np.full(17, 2)].ravel().tolist(), num_keypoints=17, bbox=[50, 50, 100, 140], area=7000., iscrowd=0))
    return Poses.from_coco(dict(images=images, annotations=anns, categories=[dict(id=1, name='person')]), skeleton='coco17')


def views(aug, store, rows, family='udp', seed=0):
    rows = np.asarray(rows); p = store.people
    return draw_views(aug, store.center[rows], store.scale[rows], p.xy[rows], p.labelled[rows], rows, 0*rows, seed, COCO, store.input_hw, family)


@pytest.mark.parametrize('family', ['udp', 'classic'])
def test_pixels_land_where_coordinates_say(family):
    "A blob drawn at each keypoint is found at the view's coordinates, on the CPU's road and on the device's."
    p, K = people(4), 17
    spot = lambda rec, k: cv2.GaussianBlur(cv2.circle(np.zeros((rec['height'], rec['width'], 3), np.uint8), tuple(np.round(p.xy[rec['id'], k]*16).astype(int).tolist()), 5*16, (255,)*3, -1, cv2.LINE_AA, 4), (0, 0), 2)
    grey = Augment(brightness=0, contrast=0, saturation=0, hue=0, blur_p=0, cutout_p=0, half_body=0, rotate_p=1., shift_p=1.)
    worst = {}
    for k in (0, 9, 16):
        store = CropStore.make(p, HW, family=family, read=lambda rec: spot(rec, k)); rows = np.arange(4); v = views(grey, store, rows, family)
        cpu = render_cpu(store.pixels, store.to_store, v, HW)[..., 0].astype(float)
        dev = render_torch(torch.as_tensor(np.array(store.pixels)), store.to_store, v, HW)[:, 0].double().numpy()
        for i in rows:
            want = v.xy[i, COCO.flip[k] if v.flip[i] else k]
            if not ((want > 14).all() and (want < np.array(HW[::-1]) - 15).all()): continue
            for name, im in (('cpu', cpu[i]), ('device', dev[i])):
                y, x = np.indices(im.shape); at = np.array([(im*x).sum(), (im*y).sum()])/im.sum()
                worst[name] = max(worst.get(name, 0), np.abs(at - want).max())
    assert worst['cpu'] < .2 and worst['device'] < .2, worst


def test_views_agree_with_albumentations():
    hw, g = (129, 129), rng(3, 'against albumentations'); c, s = np.full((1, 2), 64.), np.full((1, 2), 128.)
    im = np.zeros((*hw, 3), np.uint8)
    for _ in range(12):
        flip, rot, zoom, xy = bool(g.random() < .5), g.uniform(-90, 90), g.uniform(.7, 1.4), g.uniform(20, 110, (17, 2))
        ours = apply_affine(crop_matrix(c, s/zoom, hw, rot, flip), xy)[0]
        theirs = by_albumentations(im, xy, flip, rot, zoom, COCO.flip)[1]
        assert np.abs((ours[COCO.flip] if flip else ours) - theirs).max() < .01


def test_batches_do_not_depend_on_who_makes_them():
    store = CropStore.make(people(), HW, read=lambda r: np.full((r['height'], r['width'], 3), 30 + 20*r['id'], np.uint8)); aug = Augment()
    whole = views(aug, store, range(6)); one = [views(aug, store, [i]) for i in range(6)]
    for name in ('M', 'xy', 'on', 'flip', 'colour', 'blur', 'boxes', 'fill'):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(v, name) for v in one])), name
    make = lambda i: views(aug, store, [i % 6], seed=i).xy
    plain = list(prefetch(make, range(20), 0))
    for workers in (1, 2, 3): assert all(np.array_equal(a, b) for a, b in zip(plain, prefetch(make, range(20), workers)))
    assert not np.array_equal(whole.M, views(aug, store, range(6), seed=1).M)


def test_threads_end_with_the_generator():
    import threading
    before = threading.active_count(); batches = prefetch(lambda i: i, range(100), 2); next(batches)
    assert threading.active_count() > before
    batches.close(); assert threading.active_count() == before


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 100), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_stream_is_a_shuffle_without_gaps(n, seed, start, count):
    rows, turn = stream(n, seed, start, count)
    cut = count//2
    assert np.array_equal(rows, np.concatenate([stream(n, seed, start, cut)[0], stream(n, seed, start + cut, count - cut)[0]]))
    whole, turns = stream(n, seed, 0, 3*n)
    assert all(sorted(whole[turns == t]) == list(range(n)) for t in range(3)) and (turn == np.arange(start, start + count)//n).all()


@given(st.integers(8, 100), st.integers(8, 100), st.floats(1, 2))
@settings(max_examples=60, deadline=None)
def test_the_margin_is_whole_pixels_on_both_sides(h, w, margin):
    H, W = store_hw((h, w), margin)
    assert H >= h and W >= w and (H - h) % 2 == 0 and (W - w) % 2 == 0


def test_half_body_moves_the_crop_and_only_then():
    p = people(); store = CropStore.make(p, HW, read=lambda r: np.zeros((r['height'], r['width'], 3), np.uint8))
    always = replace(Augment.none(), half_body=1.); plain = views(Augment.none(), store, range(6)).M
    assert not np.allclose(views(always, store, range(6)).M, plain)
    store.people.vis[:, 5:] = 0 # five labelled keypoints are too few for half a body
    assert np.allclose(views(always, store, range(6)).M, plain)


def test_cache_follows_the_pixels_and_is_never_used_damaged(tmp_path):
    p = people(on_disk=tmp_path); cache = tmp_path/'cache'; first = np.array(CropStore.make(p, HW, cache=cache).pixels)
    file, = cache.glob('*.npy'); about = file.with_suffix('.json'); text = about.read_text()
    def again(): return np.array(CropStore.make(p, HW, cache=cache).pixels)
    def files(): return sorted(f.name for f in cache.iterdir())
    for damage in ('', '{', json.dumps({**json.loads(text), 'good': [False]*6}), json.dumps({**json.loads(text), 'sums': []})):
        about.write_text(damage); assert np.array_equal(again(), first)
    assert files() == sorted([file.name, about.name]) # nothing temporary is left
    pic = cv2.imread(p.images[2]['path']); cv2.imwrite(p.images[2]['path'], 255 - pic)
    assert not np.array_equal(again()[2], first[2]) and len(files()) == 4 # other pixels, another file
    moved = replace(p, bbox=p.bbox + [3, 0, 0, 0]); assert not np.array_equal(np.array(CropStore.make(moved, HW, cache=cache).pixels), first)


def test_unreadable_images_are_counted_and_none_left_is_an_error(tmp_path):
    p = people(on_disk=tmp_path); open(p.images[3]['path'], 'wb').close()
    s = CropStore.make(p, HW, cache=tmp_path/'cache'); assert len(s) == 5 and s.rows.tolist() == [0, 1, 2, 4, 5] and len(s.errors) == 1
    s2 = CropStore.make(p, HW, cache=tmp_path/'cache'); assert len(s2) == 5 and s2.people.ann_id.tolist() == [1, 2, 3, 5, 6] # from the cache: the same
    for im in p.images: open(im['path'], 'wb').close()
    with pytest.raises(PoseError) as e: CropStore.make(p, HW, cache=tmp_path/'cache2')
    assert 'could be read' in str(e.value) and not list((tmp_path/'cache2').glob('*'))


def test_store_to_view_is_the_image_to_view_map():
    p = people(3); store = CropStore.make(p, HW, read=lambda r: np.zeros((r['height'], r['width'], 3), np.uint8)); v = views(Augment(), store, range(3))
    via = apply_affine(compose(v.M, invert_affine(store.to_store)), apply_affine(store.to_store, p.xy))
    for i in range(3): assert np.allclose(via[i][COCO.flip] if v.flip[i] else via[i], v.xy[i], atol=1e-9)


def test_four_channels_and_three_give_the_same_bytes():
    g = np.random.default_rng(0); im = g.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for i in range(8):
        M = np.array([[np.cos(i), -np.sin(i), 40*g.random()], [np.sin(i), np.cos(i), 40*g.random()]])*g.uniform(.4, 1.6)
        plain = cv2.warpAffine(im, M, (48, 64), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        out = np.empty((64, 48, 3), np.uint8); assert np.array_equal(crops.warp(im, M, (64, 48)), plain) and crops.warp(im, M, (64, 48), out) is out and np.array_equal(out, plain)


@pytest.mark.parametrize('k', [1, 2, 4, 8])
def test_large_photographs_are_decoded_smaller_and_nothing_moves(k, tmp_path):
    """A grid of blobs, 12 megapixels and odd sizes: the crop from the reduced image shows them where the crop of the whole shows them."""
    from posellm.data.images import read_image, read_reduced
    h, w = 3001, 4003; y, x = np.mgrid[:h, :w].astype(np.float32); pic = np.uint8(127 + 60*np.cos(x/90)[..., None]*np.cos(y/90)[..., None] + np.zeros(3, np.float32))
    path = tmp_path/'big.jpg'; cv2.imwrite(str(path), pic, [cv2.IMWRITE_JPEG_QUALITY, 95])
    M = np.array([[[1/(k*1.3), 0, -100/k], [0, 1/(k*1.3), -80/k]]]); assert crops.reduction(M) == k
    small, n = read_reduced(path, k); assert n == k and small.shape == (-(-h//k), -(-w//k), 3)
    a = crops.warp(read_image(path), M[0], (256, 192)).astype(int); b = crops.warp(small, crops.from_reduced(M, k)[0], (256, 192)).astype(int)
    assert np.abs(a - b).mean() < 1.5 and np.abs(a - b).max() < 12


def test_pictures_that_are_turned_or_no_jpeg_are_read_whole(tmp_path):
    from posellm.data.images import read_reduced
    im = np.full((40, 60, 3), 90, np.uint8); cv2.imwrite(str(tmp_path/'a.png'), im)
    assert read_reduced(tmp_path/'a.png', 4)[1] == 1 and read_reduced(tmp_path/'a.png', 4)[0].shape == (40, 60, 3)


@pytest.mark.parametrize('name, turn', [('large.jpg', False), ('large.png', False), ('turned.jpg', True)])
def test_pieces_of_large_and_small_people_show_what_coordinates_say(name, turn, tmp_path):
    "One photograph, a person of its whole height and one a tenth as tall: both lie where they should in pieces, whatever was halved on the way."
    from posellm.data.pieces import PieceStore
    w, h = 1603, 1201; boxes = [[100, 40, 700, 1120], [1200, 500, 60, 110]]; at = [np.array([[x + f*bw, y + g*bh] for f, g in ((.3, .3), (.5, .6), (.7, .8))]) for x, y, bw, bh in boxes]
    image = np.zeros((h, w, 3), np.uint8)
    for (x, y, bw, bh), points in zip(boxes, at):
        for p in points: cv2.circle(image, tuple(np.round(p*16).astype(int).tolist()), int(bh*16/28), (255,)*3, -1, cv2.LINE_AA, 4)
    path = tmp_path/name; cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if turn:
        from PIL import Image
        im = Image.fromarray(np.ascontiguousarray(np.rot90(image))); exif = im.getexif(); exif[274] = 6; im.save(path, exif=exif, quality=95)
    anns = [dict(id=i + 1, image_id=1, category_id=1, keypoints=np.c_[np.tile(p, (6, 1))[:17], np.full(17, 2)].ravel().tolist(), num_keypoints=17, bbox=b, area=100., iscrowd=0) for i, (b, p) in enumerate(zip(boxes, at))]
    p = Poses.from_coco(dict(images=[dict(id=1, file_name=name, path=str(path), width=w, height=h)], annotations=anns, categories=[dict(id=1, name='person')]), skeleton='coco17')
    store = PieceStore.make(p, HW, cache=tmp_path/'cache'); big, small = (s.shape for s in store.pixels)
    assert big[0] < 2*store_hw(HW)[0] + 8 and small[0] < 260 # large people are halved, small ones are not enlarged
    v = views(Augment.none(), store, range(2)); shown = render_cpu([store.pixels[i] for i in range(2)], store.to_store, v, HW)[..., 0].astype(float)
    for i in range(2):
        for k in range(3):
            x, y = np.round(v.xy[i, k]).astype(int); part = shown[i, y - 6:y + 7, x - 6:x + 7]; b, a = np.indices(part.shape)
            assert np.hypot((part*a).sum()/part.sum() - 6 + x - v.xy[i, k, 0], (part*b).sum()/part.sum() - 6 + y - v.xy[i, k, 1]) < .25
