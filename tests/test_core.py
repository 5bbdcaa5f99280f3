"""Edges of core: what a full disk, a second writer or a broken file does."""
import json
import multiprocessing as mp
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from posellm.core.errors import PoseError
from posellm.core.files import atomic_path, read_json, write_atomic, write_json
from posellm.core.rng import rng
from posellm.core.run import Run


def test_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    "A real file system of 64 KiB, where it may be mounted."
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)], capture_output=True).returncode:
        pytest.skip('no permission to mount a small file system')
    try:
        write_atomic(tmp_path/'a.bin', b'old')
        with pytest.raises(PoseError, match='no space left'): write_atomic(tmp_path/'a.bin', bytes(200_000))
        assert (tmp_path/'a.bin').read_bytes() == b'old'
        assert [f.name for f in tmp_path.iterdir()] == ['a.bin']
    finally: subprocess.run(['umount', str(tmp_path)], check=True)


def test_error_survives_a_worker_process():
    e = pickle.loads(pickle.dumps(PoseError('broken', file='a.jpg', field='pixels', found=3, allowed='more', todo='fetch it')))
    assert str(e) == 'a.jpg: pixels: broken; found 3; allowed more; do: fetch it'


def _write(args): write_atomic(*args)

def test_many_writers_never_mix(tmp_path):
    f = tmp_path/'x.txt'
    with mp.get_context('fork').Pool(4) as pool: pool.map(_write, [(f, c*100_000) for c in 'abcdefgh'])
    text = f.read_text()
    assert len(text) == 100_000 and len(set(text)) == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_a_clear_error(tmp_path_factory, data):
    f = tmp_path_factory.mktemp('j')/'x.json'; f.write_bytes(data)
    try: got = read_json(f)
    except PoseError as e: assert str(f) in str(e)
    else: assert json.dumps(got) is not None


def test_nan_is_not_written(tmp_path):
    write_json(tmp_path/'a.json', [1])
    with pytest.raises(ValueError): write_json(tmp_path/'a.json', [float('nan')])
    assert read_json(tmp_path/'a.json') == [1]


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), max_size=3))
def test_streams_are_their_own(seed, counters):
    a, b = rng(seed, *counters), rng(seed, *counters, 0)
    assert (rng(seed, *counters).integers(0, 2**62, 4) == a.integers(0, 2**62, 4)).all()
    assert not (b.integers(0, 2**62, 4) == a.integers(0, 2**62, 4)).all()


@pytest.mark.parametrize('name', ['', '.hidden', 'a/b', '../x', 'a b'])
def test_run_names(name, tmp_path):
    with pytest.raises(PoseError, match='run name'): Run.open(name, '01_stage1', root=tmp_path)


def test_resume_only_while_inputs_match(tmp_path):
    f = tmp_path/'truth.json'; f.write_text('{}')
    r = Run.open('a', '06_eval', root=tmp_path); r.finish(dict(truth=f, seed=0))
    r = Run.open('a', '06_eval', root=tmp_path, resume=True)
    assert r.finished(dict(truth=f, seed=0)) and not r.finished(dict(truth=f, seed=1))
    f.write_text('{"changed": 1}')
    assert not r.finished(dict(truth=f, seed=0))
