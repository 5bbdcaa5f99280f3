"""Whatever a stranger gives the estimator: a result, or a PoseError that says what to do."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from posellm.app.estimator import Estimator
from posellm.core.errors import PoseError
from posellm.models.zoo import create_model

PICTURE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def est(): return Estimator(create_model('posellm-s', weights=None, input_hw=(64, 48)), boxes='whole', flip=False)


def turned():
    e = Image.Exif(); e[274] = 6
    return e


FILES = {  # name: (what writes it, height and width as seen)
    'grey.jpg': (lambda p: Image.fromarray(PICTURE[..., 0]).save(p), (60, 80)), 'sixteen.png': (lambda p: cv2.imwrite(str(p), PICTURE[..., 0].astype(np.uint16) * 257), (60, 80)),
    'sixteen colours.png': (lambda p: cv2.imwrite(str(p), PICTURE.astype(np.uint16) * 257), (60, 80)), 'rgba.png': (lambda p: Image.fromarray(PICTURE).convert('RGBA').save(p), (60, 80)),
    'grey alpha.png': (lambda p: Image.fromarray(PICTURE).convert('LA').save(p), (60, 80)), 'palette.png': (lambda p: Image.fromarray(PICTURE).convert('P').save(p), (60, 80)), 'bits.png': (lambda p: Image.fromarray(PICTURE).convert('1').save(p), (60, 80)),
    'cmyk.jpg': (lambda p: Image.fromarray(PICTURE).convert('CMYK').save(p), (60, 80)), 'turned.jpg': (lambda p: Image.fromarray(PICTURE).save(p, exif=turned()), (80, 60)), 'one.png': (lambda p: Image.fromarray(PICTURE[:1, :1]).save(p), (1, 1)),
    'line.png': (lambda p: Image.fromarray(PICTURE[:, :1]).save(p), (60, 1)), 'really a png.jpg': (lambda p: Image.fromarray(PICTURE).save(p, format='PNG'), (60, 80)), 'it\'s "quoted"\nnew <b>.png': (lambda p: Image.fromarray(PICTURE).save(p), (60, 80))}
BROKEN = {'empty.jpg': b'', 'text.jpg': b'hello', 'half.jpg': cv2.imencode('.jpg', PICTURE)[1].tobytes()[:900]}


@pytest.mark.parametrize('name', FILES)
def test_files_of_every_kind(est, tmp_path, name):
    write, hw = FILES[name]; write(tmp_path / name); r = est(tmp_path / name)
    assert r.image.shape == (*hw, 3) and r.image.dtype == np.uint8 and len(r) == 1 and np.isfinite(r.xy).all() and r.text


def test_a_folder_with_broken_images(est, tmp_path):
    for name, data in BROKEN.items(): (tmp_path / name).write_bytes(data)
    (tmp_path / 'folder.jpg').mkdir(); os.symlink('/nowhere/x.jpg', tmp_path / 'dead.jpg'); FILES['grey.jpg'][0](tmp_path / 'grey.jpg')
    assert [r.file for r in est(tmp_path)] == ['grey.jpg'] and sorted(Path(e.file).name for e in est.skipped) == sorted([*BROKEN, 'folder.jpg', 'dead.jpg'])
    for name in BROKEN:
        with pytest.raises(PoseError): est(tmp_path / name)
    (tmp_path / 'none').mkdir()
    with pytest.raises(PoseError, match='no images'): est(tmp_path / 'none')


ARRAYS = {'uint8': PICTURE, 'float': PICTURE / 255, 'float32': (PICTURE / 255).astype(np.float32), 'rgba': np.dstack([PICTURE, PICTURE[..., :1]]), 'not writeable': np.broadcast_to(PICTURE, PICTURE.shape), 'reversed': PICTURE[:, ::-1][:, ::-1]}


@pytest.mark.parametrize('name', ARRAYS)
def test_arrays(est, name): assert (est(ARRAYS[name]).image == PICTURE).all()


REFUSED = {  # what: word of the message
    'floats up to 255': (PICTURE * 1., 'between 0 and 1'), 'nan': (PICTURE * np.nan, 'nan'), 'uint16': (PICTURE.astype(np.uint16) * 257, '// 257'), 'bool': (PICTURE > 9, r'\* 255'), 'int64': (PICTURE.astype(int), 'uint8'), 'channels first': (PICTURE.transpose(2, 0, 1), 'channels last'),
    'many at once': (PICTURE[None], 'a list'), 'nothing': (PICTURE[:0], 'shape'), 'five channels': (np.zeros((9, 9, 5), np.uint8), 'shape'), 'words': (np.array([['a']]), 'dtype'), 'objects': (np.array([None]), 'shape'),
    'PIL': (Image.fromarray(PICTURE), 'convert'), 'tensor': (torch.zeros(3, 9, 9), 'permute'), 'None': (None, 'NoneType'), 'number': (5, 'int'), 'bytes': (b'\xff\xd8', 'bytes'), 'dict': ({}, 'dict'), 'set': ({'a.jpg'}, 'list'), 'list with None': ([PICTURE, None], 'NoneType'),
    'empty path': ('', 'empty path'), 'long path': ('x' * 5000, 'no such image'), 'zero byte': ('a\0b', 'no such image'), 'address': ('http://127.0.0.1:9/x.jpg', 'unasked'), 'no such user': ('~nobody-here/x.jpg', 'no such image')}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(est, name):
    source, word = REFUSED[name]
    with pytest.raises(PoseError, match=word) as e: est(source)
    assert e.value.todo or e.value.allowed
