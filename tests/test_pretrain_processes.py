"""Pre-training by two processes: they share every batch, stay equal, stop together and go on from where they were."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from posellm.train.pretrain import Pretrain, main, side_by_side
from posellm.train.state import load_checkpoint

SMALL = dict(steps=6, warmup=2, batch=4, pictures=4, shard_steps=2, window=3, first=2, input_hw=(64, 48), precision='fp32')


@pytest.mark.slow
def test_two_processes_repeat_each_other(tmp_path):
    """Two runs by two processes end with the same weights, bit for bit, and what they did is described."""
    a, b = tmp_path / 'a', tmp_path / 'b'
    for f in (a, b): side_by_side(2, Pretrain(**SMALL), f, workers=1, shard_folder=tmp_path / f's{f.name}')
    A, B = (load_checkpoint(f / 'last.ckpt') for f in (a, b))
    assert A['step'] == 6
    for k, v in A['model'].items(): assert torch.equal(v, B['model'][k]), k
    assert json.loads((a / 'model.json').read_text())['meta']['samples'] == 24


@pytest.mark.slow
def test_interrupted_together_and_resumed(tmp_path):
    """SIGINT ends both processes with a checkpoint; the same command goes on and leaves nobody behind."""
    code = ("import sys; from posellm.train.pretrain import *\n"
            f"if __name__ == '__main__': side_by_side(2, Pretrain(**{dict(SMALL, steps=int(1e6))!r} | dict(steps=int(sys.argv[1]))), {str(tmp_path / 'r')!r}, workers=1, shard_folder={str(tmp_path / 's')!r})\n")
    file = tmp_path / 'run.py'; file.write_text(code)
    p = subprocess.Popen([sys.executable, file, '1000000'], start_new_session=True, stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    until = time.time() + 120
    while time.time() < until and 'step' not in (line := p.stderr.readline()): pass
    assert 'step' in line
    time.sleep(1); p.send_signal(signal.SIGINT); rest = p.communicate(timeout=60)[1]
    assert p.returncode != 0 and 'goes on from there' in rest
    left = subprocess.run(['ps', '-s', str(p.pid), '-o', 'stat=,args='], capture_output=True, text=True).stdout.splitlines()
    assert not [x for x in left if not x.startswith('Z')], left # the dead whom nobody has buried yet do not count
    step = load_checkpoint(tmp_path / 'r' / 'last.ckpt')['step']; assert step > 0
    q = subprocess.run([sys.executable, file, str(step + 2)], capture_output=True, text=True, timeout=120)
    assert q.returncode == 0, q.stderr[-2000:]
    assert load_checkpoint(tmp_path / 'r' / 'last.ckpt')['step'] == step + 2


def test_wrong_input_is_one_line_and_no_trail(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr('posellm.train.pretrain.runs_root', lambda: tmp_path)
    for wrong, said in ((['--size', '100', '7'], 'input size does not fit'), (['--steps', '0'], 'not a count'), (['--start', 'no-such-weights', '--steps', '1'], 'no-such-weights'),
                        (['--lr', 'nan'], 'lr'), (['--ema', '2'], 'ema'), (['--processes', '0'], '--processes 0'), (['--every', '0'], '--every 0'), (['--name', '../x'], 'not a usable run name')):
        with pytest.raises(SystemExit) as e: main(['--workers', '0', '--name', 'wrong', *wrong])
        err = capsys.readouterr().err; assert e.value.code == 2 and said in err and 'Traceback' not in err


def test_nobody_learns_from_another_runs_shards(tmp_path):
    """Other seeds and sizes in the same folder make shards of their own, and a run that has ended leaves none."""
    from posellm.train.pretrain import Shards, pretrain
    cfg = Pretrain(**SMALL); first = Shards(cfg, tmp_path / 's', 0).at(0)
    for other in (dict(seed=2), dict(input_hw=(96, 64))):
        mine = Shards(Pretrain(**SMALL | other), tmp_path / 's', 0).at(0); alone = Shards(Pretrain(**SMALL | other), tmp_path / 'alone', 0).at(0)
        assert (mine[0]['pixels'] == alone[0]['pixels']).all()
        assert mine[0]['pixels'].shape != first[0]['pixels'].shape or mine[0]['bbox'].tobytes() != first[0]['bbox'].tobytes()
    pretrain(Pretrain(**SMALL), tmp_path / 'r', workers=0); assert (tmp_path / 'r' / 'model.safetensors').exists() and not list((tmp_path / 'r' / 'shards').iterdir())


def test_another_optimizer_is_said(tmp_path):
    """The state of one optimizer means nothing to another; the weights alone do."""
    from posellm.core.errors import PoseError
    from posellm.train.pretrain import Pretraining
    a = Pretraining(Pretrain(**SMALL), tmp_path / 'a', workers=0); (tmp_path / 'a').mkdir(); a.save()
    b = Pretraining(Pretrain(**SMALL | dict(optimizer='adamw')), tmp_path / 'b', workers=0)
    with pytest.raises(PoseError, match='another optimizer'): b.load(tmp_path / 'a' / 'last.ckpt')
    b.load(tmp_path / 'a'); assert b.step == 0
