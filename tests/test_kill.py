"SIGKILL at random steps, another number of workers afterwards: the same bits come out."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def killed(folder, kills, seed, *more):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    r = subprocess.run([sys.executable, str(HERE/'killed.py'), str(folder), '--kills', str(kills), '--seed', str(seed), *more], capture_output=True, text=True, timeout=3600, env=env)
    assert r.returncode == 0, r.stderr[-3000:]
    return json.loads(r.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='SIGKILL and fork are of Unix')
def test_two_kills_change_nothing(tmp_path):
    d = killed(tmp_path, 2, 0)
    assert d['kills'] == 2 and d['differ'] == [], d


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='SIGKILL and fork are of Unix')
def test_two_kills_change_nothing_where_unlabelled_people_teach(tmp_path):
    d = killed(tmp_path, 2, 0, '--method', 'mean-teacher')
    assert d['kills'] == 2 and d['differ'] == [], d


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='SIGKILL and fork are of Unix')
@pytest.mark.parametrize('method', ['multiaugs-dual', 'mean-teacher', 'pseudo-label', 'supervised'])
def test_twenty_kills_change_nothing_where_unlabelled_people_teach(tmp_path, method):
    d = killed(tmp_path, 20, 2, '--method', method)
    assert d['kills'] == 20 and d['differ'] == [], d


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='SIGKILL and fork are of Unix')
def test_fifty_kills_change_nothing(tmp_path):
    d = killed(tmp_path, 50, 1)
    assert d['kills'] == 50 and d['differ'] == [], d
    assert d['torn'] > 0 and d['runs'] > 3, d # some kills fell into the writing of a checkpoint
