"Training leaves nothing behind: memory does not grow with the epochs, and threads, processes and notebook kernels end with it, however it ends."
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
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
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to Ctrl-C
    before = mine(); yield
    gc.collect(); threads, children = mine()
    assert threads <= before[0], [t.name for t in threads - before[0]]
    assert children <= before[1], children - before[1]
    try: assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally: signal.signal(signal.SIGINT, deaf)


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


class Chapter:
    "papermill on chapter 1 at `tiny`, as a reader types it; whatever it starts inherits a mark in its environment."
    def __init__(self, home):
        self.mark, self.tmp, self.runtime, self.runs = f'{home}:{os.getpid()}', home/'tmp', home/'runtime', home/'runs'; self.out = home/'out.ipynb'
        for d in (self.tmp, self.runtime): d.mkdir()
        env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'POSELLM_SANDBOX')}
        env.update(LEFTOVERS=self.mark, TMPDIR=str(self.tmp), JUPYTER_RUNTIME_DIR=str(self.runtime), POSELLM_RUNS=str(self.runs), POSELLM_DATA=str(home/'data'), PATH=os.pathsep.join([str(Path(sys.executable).parent), env['PATH']]),
                   PYTHONPATH=os.pathsep.join([str(HERE.parent), env.get('PYTHONPATH', '')]), PYDEVD_DISABLE_FILE_VALIDATION='1')
        self.p = subprocess.Popen([sys.executable, '-m', 'papermill', str(HERE.parent/'nbs'/'01_stage1.ipynb'), str(self.out), '-p', 'gpu', 'tiny', '-p', 'run', 'short', '--no-progress-bar', '--cwd', str(home)],
                                  env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                  preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # a shell's background job is born deaf to Ctrl-C

    def processes(self):
        "Command lines of the living processes that bear the mark, whoever is their parent now."
        out = {}
        for p in psutil.process_iter():
            try:
                if p.environ().get('LEFTOVERS') == self.mark and p.status() != psutil.STATUS_ZOMBIE: out[p.pid] = ' '.join(p.cmdline())
            except psutil.Error: pass
        return out

    def wait_for(self, reached, what, seconds=240):
        end = time.time() + seconds
        while not reached():
            assert self.p.poll() is None, f'it ended before {what}: {self.p.stderr.read()[-2000:]}'
            assert time.time() < end, f'no {what} after {seconds} s'
            time.sleep(.05)

    def nothing_left(self):
        end = time.time() + 20  # a kernel that was asked to go may take its time
        while self.processes() and time.time() < end: time.sleep(.1)
        left = self.processes()
        for pid in left: os.kill(pid, signal.SIGKILL)
        assert not left, left
        assert not list(self.tmp.iterdir()), list(self.tmp.iterdir())
        assert not list(self.runtime.glob('kernel-*')), list(self.runtime.iterdir())


@pytest.fixture
def papermill(tmp_path):
    c = Chapter(tmp_path); yield c
    if c.p.poll() is None: c.p.kill()
    c.p.stderr.close()


def drawing(c): return any('spawn_main' in line for line in c.processes().values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_papermill_interrupted_in_training_leaves_no_kernel_worker_or_folder(papermill):
    seen = []
    papermill.wait_for(lambda: seen.append(drawing(papermill)) or (papermill.runs/'short'/'01_stage1'/'last.ckpt').exists(), 'training')
    assert any(seen)  # pictures were drawn by processes of their own, so there was something to leave behind
    papermill.p.send_signal(signal.SIGINT); papermill.p.wait(60)
    assert papermill.p.returncode != 0; papermill.nothing_left()


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_papermill_interrupted_while_pictures_are_drawn_leaves_nothing(papermill):
    papermill.wait_for(lambda: drawing(papermill), 'workers'); time.sleep(.5)
    papermill.p.send_signal(signal.SIGINT); papermill.p.wait(60)
    assert papermill.p.returncode != 0; papermill.nothing_left()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_papermill_that_comes_to_its_end_leaves_nothing(papermill):
    error = papermill.p.communicate(timeout=600)[1]
    assert papermill.p.returncode == 0, error[-2000:]
    papermill.nothing_left(); assert papermill.out.is_file() and (papermill.runs/'short'/'01_stage1'/'model.safetensors').is_file()
