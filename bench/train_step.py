"""One training step of the demo's network (posellm-s at the size of the preset `cpu`, 32 people): as training makes it on this processor, against plain PyTorch in fp32.

The peer is the same network, loss, learning rate, clipping, AdamW and moving average written as tutorials write them: fp32, default memory layout, default optimizer, an average updated parameter by parameter.
Both begin with the same uint8 crops and keypoints and end with new weights. They take turns on the same batches; processor time is compared (threads of the pool included), wall time stands beside it.
Equal loss: from the same start both make the same steps on the same batches, three times from three starts; the loss on held-out people afterwards is compared, with a t interval over the starts.
The share of waiting for data is that of a real run (one loader thread beside the step), as the progress line shows it.

    python bench/train_step.py [--rounds 12] [--steps 40]
"""
import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from posellm.data.coco import load_data
from posellm.data.synth import V1, write_synth
from posellm.models.zoo import create_model
from posellm.train.augment import normalise
from posellm.train.device import keep_pages, pick_device, pick_precision
from posellm.train.feed import Feed, sources_for
from posellm.train.fit import Fit, fit
from posellm.train.hardware import preset
from posellm.train.loss import get_loss
from posellm.train.recipe import Phase, recipe

HW, BATCH, LR = preset('cpu').input_hw, 32, 1.5e-3


def network(seed):
    torch.manual_seed(seed); return create_model('posellm-s', 'coco17', input_hw=HW, weights=None, loss='ce')


class Plain:
    "The step as tutorials write it."
    def __init__(self, seed, spec, feed):
        self.model, self.spec, self.feed = network(seed), spec, feed
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=.05); self.loss = get_loss('ce')
        self.ema = AveragedModel(self.model, multi_avg_fn=None, avg_fn=lambda old, new, n: torch.lerp(old, new, .01), use_buffers=False)

    def step(self, host):
        self.model.train(); v = host['view']
        x = normalise(torch.from_numpy(host['pixels']).permute(0, 3, 1, 2).float().contiguous(), self.spec.mean, self.spec.std, self.spec.channels)
        target, weight = self.feed.codec.encode(v.xy.astype(np.float32), v.on.astype(np.float32))
        loss = self.loss(self.model(x), target, weight); self.opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.); self.opt.step(); self.ema.update_parameters(self.model)
        return loss.item()


class Ours:
    "The step of `train.fit`, in the precision that it picks here or in another."
    def __init__(self, seed, people, precision):
        self.job = Fit(network(seed), people, None, settings(precision)); self.model = self.job.model
    def step(self, host): return self.job.train_step([host])['loss']


def settings(precision='auto', steps=10_000, **over): return recipe('small', phases=(Phase('phase2', LR, steps=steps, schedule='constant', warmup=0.),), batch=BATCH, layer_decay=1., ema=.99, precision=precision, loggers=(), cache=False, **over)


def in_turns(contestants, hosts, rounds):
    cpu, wall = ({k: [] for k in contestants} for _ in 'ab')
    for r in range(rounds + 2):
        for k, c in contestants.items():
            a, b = time.process_time(), time.perf_counter(); c.step(hosts[r % len(hosts)])
            if r > 1: cpu[k].append(1e3*(time.process_time() - a)); wall[k].append(1e3*(time.perf_counter() - b))
    return cpu, wall


def roof(rounds=6):
    "What the convolutions alone gain: forward and backward of the network's widest and of its finest, fp32 in the default layout against bf16 channels-last."
    taken = {torch.float32: [], torch.bfloat16: []}
    for _ in range(rounds):
        for kind, t in taken.items():
            a = 0.
            for n, c, h, w in ((3, 160, HW[0] // 16, HW[1] // 16), (1, 48, HW[0] // 4, HW[1] // 4)):
                layout = torch.channels_last if kind == torch.bfloat16 else torch.contiguous_format
                x, k = (torch.randn(*s).to(kind).to(memory_format=layout).requires_grad_() for s in ((BATCH, c, h, w), (c, c, 3, 3)))
                b = time.process_time(); y = torch.nn.functional.conv2d(x, k, None, 1, 1); y.backward(y.detach()); a += n*(time.process_time() - b)
            t.append(a)
    return statistics.median(taken[torch.float32][1:])/statistics.median(taken[torch.bfloat16][1:])


@torch.no_grad()
def heldout(model, feed, hosts):
    "Mean loss on held-out people, in fp32."
    model.eval(); total = []
    for h in hosts: x, t, w, _ = feed.batch(h); total.append(float(get_loss('ce')(model(x).float(), t, w)))
    return float(np.mean(total))


def main():
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0]); ask.add_argument('--rounds', type=int, default=12); ask.add_argument('--steps', type=int, default=40); a = ask.parse_args()
    keep_pages(); spec = network(0).spec; precision = pick_precision('auto', pick_device('cpu'))
    with tempfile.TemporaryDirectory() as d:
        write_synth(d, 160, 64, 0, seed=5, config=V1); parts = {s: load_data(d, s) for s in ('train', 'val')}
        learn = {s: p[p.posed] for s, p in parts.items()}
        feed, held = (Feed(sources_for(learn[s], spec, 1.5, 'cpu', cache=False), spec, settings(), 'cpu') for s in ('train', 'val'))
        hosts = [feed.host(BATCH*i) for i in range(a.steps)]
        first = {'plain': Plain(0, spec, feed), 'fp32': Ours(0, learn['train'], 'fp32'), precision: Ours(0, learn['train'], precision)}
        cpu, wall = in_turns(first, hosts, a.rounds); mid = {k: statistics.median(v) for k, v in cpu.items()}
        for k in first: print(f'  {k:6} {mid[k]:6.1f} ms of processor time a step [{min(cpu[k]):.1f}-{max(cpu[k]):.1f}] (wall {statistics.median(wall[k]):.0f})')
        diffs = []
        for seed in (1, 2, 3):
            two = Plain(seed, spec, feed), Ours(seed, learn['train'], precision)
            for h in hosts:
                for c in two: c.step(h)
            tests = [held.host(BATCH*i) for i in range(4)]; l = [heldout(c.model, held, tests) for c in two]; diffs.append(l[1] - l[0]); print(f'  start {seed}: held-out loss after {a.steps} steps: plain {l[0]:.4f}, {precision} {l[1]:.4f}', flush=True)
        half = 4.303*statistics.stdev(diffs)/3**.5  # t of two degrees of freedom
        h = fit(network(4), learn['train'], None, settings(steps=40, val_steps=40)); wait = h.history[-1]['data_wait']
        top = roof(); print(f'  convolutions alone, fp32 / {precision}: {top:.2f} x')
        print(f'  waiting for data: {100*wait:.1f} % of the step, one loader thread')
    note = f'processor time, {torch.get_num_threads()} thread(s), machine shared with other work; medians of {a.rounds} rounds'
    print(json.dumps({'step': dict(ours=round(mid[precision], 1), peer=round(mid['plain'], 1), unit='ms/step', peer_name='plain PyTorch, fp32', times_faster=round(mid['plain']/mid[precision], 2), precision=precision, convolutions_alone=round(top, 2), note=note),
                      'step_fp32': dict(ours=round(mid['fp32'], 1), peer=round(mid['plain'], 1), unit='ms/step', peer_name='plain PyTorch, fp32', times_faster=round(mid['plain']/mid['fp32'], 2)),
                      'heldout_loss': dict(ours=round(statistics.mean(diffs), 4), peer=None, unit=f'{precision} minus plain after {a.steps} equal steps, mean of 3 starts', interval=[round(statistics.mean(diffs) - half, 4), round(statistics.mean(diffs) + half, 4)], by_start=[round(x, 4) for x in diffs]),
                      'data_wait': dict(ours=round(wait, 4), peer=None, unit='share of the step', note='one loader thread beside the step')}))


if __name__ == '__main__': main()
