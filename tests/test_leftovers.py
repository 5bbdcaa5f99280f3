"Training leaves nothing behind: memory does not grow with the epochs, and threads, processes and notebook kernels end with it, however it ends."
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from test_fit import drawn, net, people, settings

from posellm.train import callbacks
from posellm.train.fit import Fit, fit

HERE = Path(__file__).parent


def mine():
    "Threads of Python and child processes of this process."
    return {t for t in threading.enumerate() if t.is_alive()}, {p.pid for p in psutil.Process().children(recursive=True)}


@pytest.fixture
def nothing_left():
    before = mine(); yield
    gc.collect(); threads, children = mine()
    assert threads <= before[0], [t.name for t in threads - before[0]]
    assert children <= before[1], children - before[1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


GROWTH = '''
import gc, json, os, sys, torch
torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])
from test_fit import drawn, net, people, settings
from posellm.train.device import now_mib
from posellm.train.fit import Fit, fit
seen, check = [], Fit.check_in
def note(self, journal, numbers): check(self, journal, numbers); gc.collect(); seen.append(now_mib())
Fit.check_in = note
people_, held = people(48), people(8, seed=3)
fit(net(), people_, held, settings((0, 120), workers=2, val_every=1., save_seconds=0.), sys.argv[2], read=drawn)
print(json.dumps(seen))
'''


def test_memory_does_not_grow_over_twenty_epochs(tmp_path):
    "A process of its own, so that nothing but training is measured; every epoch validates, every step saves."
    r = subprocess.run([sys.executable, '-c', GROWTH, str(HERE), str(tmp_path)], capture_output=True, text=True, timeout=900, env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])))
    assert r.returncode == 0, r.stderr[-2000:]
    mib = json.loads(r.stdout.strip().splitlines()[-1]); assert len(mib) == 20
    assert mib[19] - mib[4] < 16, mib # a batch of this toy is a third of a MiB: kept batches or graphs of 90 steps would show


def test_threads_end_with_training(nothing_left, tmp_path):
    fit(net(), people(12), people(4, seed=2), settings((0, 4), batch=4, workers=3), tmp_path, read=drawn)


def test_threads_end_after_an_error(nothing_left, monkeypatch):
    step = Fit.train_step
    def broken(self, hosts):
        if self.step == 2: raise RuntimeError('broken')
        return step(self, hosts)
    monkeypatch.setattr(Fit, 'train_step', broken)
    with pytest.raises(RuntimeError, match='broken'): fit(net(), people(12), None, settings((0, 4), batch=4, workers=3), read=drawn)


def test_threads_end_after_an_unreadable_batch(nothing_left, monkeypatch):
    from posellm.train.feed import Feed
    host = Feed.host
    def broken(self, place):
        if place >= 8: raise OSError('the disk is gone')
        return host(self, place)
    monkeypatch.setattr(Feed, 'host', broken)
    with pytest.raises(OSError, match='disk'): fit(net(), people(12), None, settings((0, 4), batch=4, workers=3), read=drawn)


def test_threads_end_after_ctrl_c(nothing_left, tmp_path, monkeypatch):
    step = Fit.train_step
    def interrupted(self, hosts):
        if self.step == 2: signal.raise_signal(signal.SIGINT)
        return step(self, hosts)
    monkeypatch.setattr(Fit, 'train_step', interrupted)
    with pytest.raises(KeyboardInterrupt): fit(net(), people(12), None, settings((0, 6), batch=4, workers=3), tmp_path, read=drawn)


def test_a_second_ctrl_c_ends_at_once(nothing_left):
    with pytest.raises(KeyboardInterrupt), callbacks.asked_to_stop() as stop:
        signal.raise_signal(signal.SIGINT); assert stop()
        signal.raise_signal(signal.SIGINT)
