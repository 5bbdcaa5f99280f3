"""Reading images: formats, turns, and everything that must be refused before memory is taken."""
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from posellm.core.errors import PoseError
from posellm.core.paths import shared_data
from posellm.data.images import (IMAGE_SUFFIXES, Header, decode_image, image_kind, image_size, parse_header, read_header, read_image, read_record, turn_image, which_turn)

RGB = np.full((40, 60, 3), 90, np.uint8)
RGB[:, :20] = 200, 30, 10


def encode(suffix, image=RGB):
    ok, data = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)
    assert ok
    return data.tobytes()


def exif(orientation, order="<"):
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHI", 8, 1, 274, 3, 1) + struct.pack(order + "HHI", orientation, 0, 0)


def jpeg_with_exif(orientation, order="<", thumbnail=b""):
    body = b"Exif\0\0" + exif(orientation, order) + thumbnail
    data = encode(".jpg")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def png_chunk(name, body): return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_a_folder_holds_the_same_images_for_everybody(tmp_path):
    "Every suffix in either case is an image to the estimator, to YOLO's reader, to the layout, to `explain` and to the unlabelled part."
    from posellm.app.cli_words import _images_in
    from posellm.app.estimator import sources_of
    from posellm.data.layout import find_images
    from posellm.data.yolo import find_yolo
    from posellm.ssl.unlabelled import images_at
    (folder := tmp_path / "images/train").mkdir(parents=True); (tmp_path / "labels/train").mkdir(parents=True)
    names = {f"{k}{i}{s.upper() if i else s}" for k, s in enumerate(IMAGE_SUFFIXES) for i in (0, 1)}
    for n in names: (folder / n).write_bytes(encode(n[n.rindex("."):].lower())); (tmp_path / f"labels/train/{n[:2]}.txt").write_text("")
    (folder / "notes.doc").write_bytes(b"")
    assert {f.name for f in sources_of(folder)} == {im["file_name"] for im in images_at(folder).images} == set(_images_in(folder)) == {image.name for _, image, _ in find_yolo(tmp_path).splits["train"]} == names
    for s in IMAGE_SUFFIXES:
        (tmp_path / s / "train").mkdir(parents=True); (tmp_path / s / "train" / f"a{s}").write_bytes(b""); assert find_images(tmp_path / s, tmp_path / s / "train.json") == tmp_path / s / "train"


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_format(tmp_path, suffix):
    p = tmp_path / f"wrongly_named{suffix}.dat"  # the name plays no part
    p.write_bytes(encode(suffix))
    assert image_size(p) == (60, 40)
    im = read_image(p)
    assert im.shape == (40, 60, 3) and im.dtype == np.uint8 and im.flags.c_contiguous
    far = 80 if suffix == ".gif" else 25  # OpenCV dithers a GIF to a fixed palette
    assert np.abs(im[20, 5].astype(int) - RGB[20, 5]).max() < far and np.abs(im[20, 50].astype(int) - RGB[20, 50]).max() < far


def test_channels(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    flat = Image.new("RGB", (60, 40), (200, 100, 30))
    alpha = flat.convert("RGBA")
    alpha.putalpha(7)
    palette = flat.convert("P", palette=Image.Palette.ADAPTIVE)
    for name, im, kw in [("cmyk.jpg", flat.convert("CMYK"), {}), ("alpha.png", alpha, {}), ("alpha.webp", alpha, {"lossless": True, "exact": True}),
                         ("palette.png", palette, {}), ("clear.png", palette, {"transparency": 0}), ("palette.gif", palette, {})]:
        im.save(tmp_path / name, **kw)
        got = read_image(tmp_path / name)
        assert got.shape == (40, 60, 3) and np.abs(got.astype(int) - (200, 100, 30)).max() <= 2, name
    for mode, value in [("L", 122), ("LA", 122), ("1", 255)]:
        Image.new(mode, (60, 40), 1 if mode == "1" else (122, 255) if mode == "LA" else 122).save(tmp_path / f"{mode}.png")
        assert (read_image(tmp_path / f"{mode}.png") == value).all(), mode


def test_sixteen_bits():
    for suffix in (".png", ".tif"):
        assert (decode_image(encode(suffix, np.full((9, 9), 51400, np.uint16))) == 200).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turn(tmp_path, orientation, order):
    p = tmp_path / "a.jpg"
    p.write_bytes(jpeg_with_exif(orientation, order))
    stored = read_image(p, exif=False)
    turned = read_image(p)
    assert stored.shape == (40, 60, 3) and image_size(p, exif=False) == (60, 40)
    assert image_size(p) == turned.shape[1::-1] == ((40, 60) if orientation > 4 else (60, 40))
    assert (turned == turn_image(stored, orientation)).all()
    theirs = cv2.cvtColor(cv2.imread(str(p), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # OpenCV follows EXIF in JPEG
    assert (turned == theirs).all()
    assert (read_image(p, size=(40, 60)) == turned).all()
    assert (read_record(dict(path=str(p), width=60, height=40)) == (stored if orientation > 4 else turned)).all() and (read_record(dict(file_name=str(p))) == turned).all()
    if orientation > 4: assert (read_image(p, size=(60, 40)) == stored).all()
    else: assert (read_image(p, size=(60, 40)) == turned).all()  # the size cannot tell: the note is followed


def test_exif_in_png_and_damaged_exif():
    data = encode(".png")
    end = data.index(b"IEND") - 4
    assert parse_header(data[:end] + png_chunk(b"eXIf", exif(6)) + data[end:]).turn == 6
    for bad in (exif(9), exif(6)[:10], b"II*\0\xff\xff\xff\xff", b""):
        assert parse_header(data[:end] + png_chunk(b"eXIf", bad) + data[end:]).turn == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    data = encode(suffix, noise)
    p = tmp_path / f"cut{suffix}"
    p.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(PoseError) as e: read_image(p)
    assert e.value.file == str(p) and e.value.todo and ("truncated" in e.value.what or "damaged" in e.value.what)


def test_end_mark_of_a_thumbnail_does_not_count():
    whole = jpeg_with_exif(1, thumbnail=b"\xff\xd8 tiny \xff\xd9")
    assert parse_header(whole).complete
    assert not parse_header(whole[:-40]).complete


def test_bomb_before_memory(tmp_path):
    row = b"\0" + bytes(3 * 30000)
    z = zlib.compressobj(9)
    body = b"".join(z.compress(row) for _ in range(200)) + z.flush()
    p = tmp_path / "bomb.png"
    p.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b""))
    tracemalloc.start()
    with pytest.raises(PoseError) as e: read_image(p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 and "900 Mpx" in e.value.found and "100 Mpx" in e.value.allowed and "in Python, a larger max_pixels" in e.value.todo
    assert image_size(p) == (30000, 30000)  # the header alone is harmless
    with pytest.raises(PoseError): decode_image(encode(".png"), max_pixels=2399)
    assert decode_image(encode(".png"), max_pixels=2400).shape == (40, 60, 3)


@pytest.mark.parametrize("data, word", [(b"", "0 bytes"), (b"<!DOCTYPE html><p>404", "HTML"), (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
                                        (b"hello\n", "text"), (bytes(2000), "zero bytes"), (b"\0\0\0\x18ftypheic\0\0", "heic"), (b"PK\3\4zip", "archive"), (b"\x01\x02\x03", "unknown")])
def test_disguised(tmp_path, data, word):
    p = tmp_path / "photo.jpg"
    p.write_bytes(data)
    for f in (read_image, read_header, image_size):
        with pytest.raises(PoseError) as e: f(p)
        assert e.value.file == str(p) and word in e.value.found and e.value.todo


def test_missing_folder_and_names(tmp_path):
    for p, word in [(tmp_path / "no.jpg", "missing"), (tmp_path, "folder"), ("bad\0name.jpg", "open"), (tmp_path / ("x" * 300 + ".jpg"), "open")]:
        with pytest.raises(PoseError) as e: read_image(p)
        assert word in e.value.what and e.value.todo


def test_turns_undo():
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    im = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    for turn, back in inverse.items(): assert (turn_image(turn_image(im, turn), back) == im).all()
    assert which_turn(Header("JPEG", 5, 5, 6, True), (5, 5)) == 6


_valid = {s: encode(s) for s in (".jpg", ".png", ".webp", ".bmp", ".gif", ".tif")}


@given(st.sampled_from(sorted(_valid)), st.data())
def test_mutated_bytes(suffix, data):
    raw = bytearray(_valid[suffix])
    for _ in range(data.draw(st.integers(1, 4))): raw[data.draw(st.integers(0, min(200, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    raw = bytes(raw[:data.draw(st.integers(0, len(raw)))])
    try: assert decode_image(raw, max_pixels=10**6).dtype == np.uint8
    except PoseError as e: assert str(e)


def test_real_photographs():
    root = shared_data()
    if root is None: pytest.skip("no shared/data beside the clone")
    files = sorted((root / "coco_subset").rglob("*.jpg"))
    for p in files: assert read_header(p).complete
    for p in files[::20]:
        im = read_image(p)
        theirs = cv2.imread(str(p), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert (im[..., ::-1] == theirs).all() and image_kind(p.read_bytes()) == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff(tmp_path, orientation):
    """OpenCV turns TIFFs whatever it is asked: they must not be turned twice."""
    from PIL import Image, ImageOps
    e = Image.Exif(); e[0x112] = orientation; p = tmp_path / "a.tif"; Image.fromarray(RGB).save(p, exif=e)
    assert (read_image(p) == np.asarray(ImageOps.exif_transpose(Image.open(p)))).all() and (read_image(p, exif=False) == RGB).all()
