"""Trains a toy in children of this process, kills them with SIGKILL at random moments, lets the next one resume with another number of workers, and compares what comes out with a run that nobody disturbed.

    python tests/killed.py FOLDER --kills 50 [--seed 0] [--method multiaugs]        with a method it learns from unlabelled people too; prints one line of JSON
"""
import os

for _name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'): os.environ[_name] = '1'
import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from test_fit import drawn, net, people, settings  # noqa: E402

from posellm.ssl.methods import METHODS, settings as semi_settings  # noqa: E402
from posellm.ssl.semi import fit_semi  # noqa: E402
from posellm.ssl.toy import dot_config, dot_net, dot_people, draw_dots  # noqa: E402
from posellm.ssl.twin import Twin  # noqa: E402
from posellm.train import resume as resume_module  # noqa: E402
from posellm.train.fit import Fit, fit  # noqa: E402
from posellm.train.recipe import FitConfig  # noqa: E402
from posellm.train.state import load_checkpoint  # noqa: E402

TIMES = {'seconds', 'wait', 'time', 'train_seconds', 'people_per_s', 's_step', 'data_wait', 'mib'}  # of the clock, not of the computation


def noisy(m):
    "A toy network with dropout, whose random numbers must not depend on the past."
    forward = m.forward
    m.forward = lambda x: forward(torch.nn.functional.dropout(x, .1, m.training))
    return m


def train(folder, cfg, tell, seed=0):
    "One attempt, as a chapter makes it; leaves final.pt when it comes to its end."
    step, write = Fit.train_step, resume_module.save_checkpoint
    def told(self, hosts): tell(b'.'); return step(self, hosts)
    def writing(*a): tell(b'w'); return write(*a)
    Fit.train_step, resume_module.save_checkpoint = told, writing
    model, h = (supervised if type(cfg) is FitConfig else semi)(folder, cfg, seed)
    torch.save(dict(model=model.state_dict(), last=load_checkpoint(folder/'last.ckpt'), history=h.history, rows=h.rows, best=h.best), folder/'final.pt')


def supervised(folder, cfg, seed):
    p = people(12); model = noisy(net(seed))
    return model, fit(model, p, people(5, seed=4), cfg, folder, resume=True, read=drawn, reports=dict(val=people(6, seed=3), calib=people(5, seed=4)))


def semi(folder, cfg, seed):
    torch.manual_seed(seed); nets = [noisy(dot_net(seed + i)) for i in range(cfg.nets)]; model = nets[0] if cfg.nets == 1 else Twin(*nets); shard = dot_people(16, 2, .5)
    return model, fit_semi(model, dot_people(12), dot_people(16, 1, .5), shard, cfg, folder, True, draw_dots, reports=dict(val=dot_people(6, 3, .5), calib=shard))[0]


def child(folder, cfg, seed=0):
    "(pid, pipe of events) of a forked attempt."
    read, write = os.pipe(); pid = os.fork()
    if pid: os.close(write); return pid, read
    code = 1
    try: os.close(read); train(folder, cfg, lambda b: os.write(write, b), seed); code = 0
    except BaseException as e: print(f'{type(e).__name__}: {e}', file=sys.stderr)
    finally: os._exit(code)


def wait(pid, pipe):
    while os.read(pipe, 4096): pass
    os.close(pipe); return os.waitpid(pid, 0)[1]


def kill_at(pid, pipe, event, n, delay):
    "SIGKILL `delay` seconds after the n-th event of this kind; True when the child was still there."
    seen = 0
    while seen < n:
        b = os.read(pipe, 1)
        if not b: break
        seen += b == event
    time.sleep(delay); os.kill(pid, signal.SIGKILL)
    status = wait(pid, pipe)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status): raise SystemExit(f'an attempt failed with code {os.WEXITSTATUS(status)}')
    return os.WIFSIGNALED(status)


def differences(a, b, path=''):
    "Where two nested results differ, but for the clock."
    if isinstance(a, dict) and isinstance(b, dict): return [d for k in sorted(a.keys() | b.keys(), key=str) if k not in TIMES for d in differences(a.get(k), b.get(k), f'{path}/{k}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b): return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f'{path}/{i}')]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b) else [path]


def main():
    ap = argparse.ArgumentParser(); ap.add_argument('folder', type=Path); ap.add_argument('--kills', type=int, default=2); ap.add_argument('--seed', type=int, default=0); ap.add_argument('--method', choices=list(METHODS)); a = ap.parse_args()
    torch.set_num_threads(1); gen = random.Random(a.seed)
    same = dict(batch=4, accumulate=2, val_steps=3, save_seconds=1e9); cfg = semi_settings(a.method, dot_config(12, **same)) if a.method else settings((4, 8), **same)
    if wait(*child(a.folder/'whole', cfg)): raise SystemExit('the undisturbed run failed')
    kills, torn, runs, wrong = 0, 0, 0, []  # nothing is computed here before the last fork: a child of a process with threads may hang
    while kills < a.kills:
        folder = a.folder/f'killed{runs}'; runs += 1; finished = False
        while not finished:
            one = replace(cfg, workers=gen.randrange(4), save_seconds=gen.choice((0., 1e9)))
            pid, pipe = child(folder, one, seed=gen.randrange(10**6) if (folder/'last.ckpt').exists() else 0)
            if kills < a.kills and kill_at(pid, pipe, *gen.choice(((b'.', gen.randint(1, 5)), (b'w', gen.randint(1, 3)))), gen.random()*gen.choice((.004, .1))): kills += 1; torn += any(folder.glob('.*.tmp~')); continue
            if kills >= a.kills and not (folder/'final.pt').exists() and wait(pid, pipe): raise SystemExit('an attempt failed')
            finished = True
    whole = torch.load(a.folder/'whole'/'final.pt')
    for folder in sorted(a.folder.glob('killed*')):
        wrong += differences(whole, torch.load(folder/'final.pt'), folder.name)
        wrong += [f.name for f in folder.glob('results_*.json') if f.read_bytes() != (a.folder/'whole'/f.name).read_bytes()] + [f.name for f in folder.glob('.*.tmp~')]
    print(json.dumps(dict(kills=kills, runs=runs, torn=torn, steps=whole['last']['step'], differ=wrong)))


if __name__ == '__main__': main()
