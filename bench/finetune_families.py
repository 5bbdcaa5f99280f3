"""Does fine-tuning from a checkpoint move every family of networks? Small members of each, generated people; the table goes to bench/results/families.md.

    python bench/finetune_families.py [--families NAME ...] [--pre 500] [--fine 200]

For each family: a small network learns from people of one look for --pre steps; its weights are written in the form of the family's official files and read again by the family's own loader into a fresh network; that network
is fine-tuned for --fine steps on people of another look, beside one that starts from random weights. AP is on held-out people of the second look (easy ones, so that minutes show something; ground-truth boxes, flip test, last weights, one seed).
The published weights themselves cannot be had here: what is shown is that loader, network, codec, layer-wise rates and training fit together, not what the published weights are worth.
"""
import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from posellm.app.evidence import best_of_person
from posellm.app.report import processor
from posellm.core.log import setup_log
from posellm.core.paths import cache_root
from posellm.core.rng import seed_all
from posellm.data.coco import load_data
from posellm.data.scene import SynthConfig
from posellm.data.synth import V1, write_synth
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import bootstrap, paired_bootstrap
from posellm.models.hrnet import HRNet
from posellm.models.sapiens import Sapiens
from posellm.models.sapiens2 import Sapiens2
from posellm.models.vitpose import ViTPose
from posellm.models.weights import load_weights
from posellm.models.zoo import create_model, entry, make_spec
from posellm.train.fit import fit
from posellm.train.predict import predict_poses
from posellm.train.recipe import SHORT, Phase, recipe

HW, BATCH = (96, 96), 16
OUT = Path(__file__).resolve().parent / 'results' / 'families.md'
VIT = (192, 6, 3)  # width, layers, heads


def described(net, name):
    net.spec = make_spec(entry(name), 'coco17', HW, getattr(net, 'heatmap_hw', None), 'ce'); return net


FAMILIES = {  # name -> (what, builder, kind of file, peak rate)
    'sapiens': ('Sapiens, 192 wide, 6 layers', lambda: described(Sapiens(VIT, 17, HW, 2, ((96, 96), (96, 96))), 'sapiens-0.3b'), 'pth', 2e-3),
    'sapiens2': ('Sapiens2, 192 wide, 6 layers', lambda: described(Sapiens2(VIT, 17, HW, ((96, 96), (96, 96, 64)), 2), 'sapiens2-0.1b'), 'safetensors', 2e-3),
    'vitpose': ('ViTPose, 192 wide, 6 layers, classic head', lambda: described(ViTPose((*VIT, 0.), 17, HW), 'vitpose-s'), 'pth', 2e-3),
    'vitpose-simple': ('ViTPose, 192 wide, 6 layers, simple head', lambda: described(ViTPose((*VIT, 0.), 17, HW, 'simple'), 'vitpose-s-simple'), 'pth', 2e-3),
    'hrnet': ('HRNet, 16 wide', lambda: described(HRNet(16, 17, (1, 2, 1), 2), 'hrnet-w32'), 'pth', 3e-3),
    'simplebaseline': ('SimpleBaseline, ResNet-18', lambda: create_model('simplebaseline18', 'coco17', HW, None, loss='ce'), 'pth', 3e-3),
    'mobilenetv2': ('MobileNetV2, classic head', lambda: create_model('mobilenetv2', 'coco17', HW, None, loss='ce'), 'safetensors', 3e-3),
    'mobilenetv4': ('MobileNetV4 small, classic head', lambda: create_model('mobilenetv4', 'coco17', HW, None, loss='ce'), 'safetensors', 3e-3),
    'posellm-s': ('our own small network with skips', lambda: create_model('posellm-s', 'coco17', HW, None), 'safetensors', 4e-3),
}


def people():
    "Train people of the first look; train and val people of the second."
    made = []
    easy = dict(people=(1, 2), close=.2, truncate=.05, occlude=.1, uniform_yaw=.2, child=0., mix=tuple(dict(stand=.4, walk=.3, arms_up=.15, reach=.15).items()))
    for name, config, n_train, n_val in (('first', replace(SynthConfig(), **easy), 1500, 1), ('second', replace(V1, **easy), 400, 300)):
        folder = cache_root() / f'families-easy-{name}'
        if not (folder / 'annotations' / 'person_keypoints_val2017.json').is_file(): write_synth(folder, n_train, n_val, 0, seed=77, config=config)
        made += [load_data(folder, 'train')] + [load_data(folder, 'val')] * (name == 'second')
    return made


def train(net, who, steps, lr):
    t = time.perf_counter(); fit(net, who, None, recipe('small', phases=(Phase('phase2', lr, steps=steps),), batch=BATCH, ema=.99, loggers=(), augment=SHORT, layer_decay=1.)); return time.perf_counter() - t


def judged(net, val):
    pred = predict_poses(net, val[(val.num_keypoints > 0) & ~val.iscrowd]); return evaluate(val, pred, boxes='ground-truth boxes')


def one(family, first, second, val, pre, fine):
    what, build, kind, lr = FAMILIES[family]; seed_all(0); net = build(); seconds = train(net, first, pre, lr)
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp) / f'checkpoint.{kind}'
        if kind == 'pth': torch.save(dict(state_dict=net.state_dict(), meta={}), file)
        else: save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(file))
        seed_all(1); tuned = load_weights(build(), file)
    seed_all(1); fresh = build(); before = judged(tuned, val)
    ft = train(tuned, second, fine, lr / 2); train(fresh, second, fine, lr); after, scratch = judged(tuned, val), judged(fresh, val)
    moved, start = paired_bootstrap(before, after), paired_bootstrap(scratch, after)
    row = dict(family=family, what=what, params=sum(p.numel() for p in net.parameters()), pre_seconds=round(seconds), fine_seconds=round(ft), **{k: [c.value, c.lo, c.hi] for k, c in (('before', bootstrap(before)), ('after', bootstrap(after)), ('scratch', bootstrap(scratch)))},
               oks=[float(best_of_person(e)[0][e.gt_counts[0]].mean()) for e in (before, after, scratch)], moved=[moved.value, moved.lo, moved.hi, moved.verdict], start=[start.value, start.lo, start.hi, start.verdict])
    print(json.dumps(row), flush=True); return row


def page(rows, n, pre, fine):
    ci = lambda t, s='': f'{t[0]:{s}.3f} ({t[1]:{s}.3f} to {t[2]:{s}.3f})'
    out = ['# Fine-tuning moves every family', '', f'{time.strftime("%Y-%m-%d")}, {processor()}, machine shared with other work, one thread. `python bench/finetune_families.py`: {pre} steps of {BATCH} on 1,500 people of one look, then {fine} steps on 400 people of another (easy ones: upright, mostly whole, so that a few minutes show something), input {HW[0]}x{HW[1]}.', '',
           f'AP (OKS .50:.95) on {n} held-out people of the second look, ground-truth boxes, flip test, last weights, one seed; 95 % bootstrap intervals over images, differences paired. Small members, since the published weights cannot be had here.', '',
           '| family | parameters | checkpoint as it is | fine-tuned | difference | from random weights, equal steps | fine-tuned minus random | mean OKS: checkpoint, fine-tuned, random | seconds (first, fine) |', '|---|---|---|---|---|---|---|---|---|']
    for r in rows: out.append(f"| {r['what']} | {r['params']/1e6:.1f} M | {ci(r['before'])} | {ci(r['after'])} | {ci(r['moved'], '+')} {r['moved'][3]} | {ci(r['scratch'])} | {ci(r['start'], '+')} {r['start'][3]} | {', '.join(f'{x:.2f}' for x in r['oks'])} | {r['pre_seconds']}, {r['fine_seconds']} |")
    OUT.write_text('\n'.join(out) + '\n', encoding='utf8'); print('\n'.join(out))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--families', nargs='+', default=list(FAMILIES), choices=list(FAMILIES)); ask.add_argument('--pre', type=int, default=500); ask.add_argument('--fine', type=int, default=200)
    a = ask.parse_args(); setup_log(); first, second, val = people()
    page([one(f, first, second, val, a.pre, a.fine) for f in a.families], int((val.num_keypoints > 0).sum()), a.pre, a.fine)


if __name__ == '__main__': main()
