"""Put the weights of a pre-training run into the package, with a card that says how they were made and what they reach.

    python tools/embed_weights.py runs/pretrain [--real PATH/coco_subset] [--mix posellm-synth-s 0.7]

Writes posellm/assets/weights/posellm-synth-s.safetensors (16 bits), .json (the description) and .md (the card). What the card says is measured with the very file that is shipped.
"""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

from posellm.app.report import processor
from posellm.core.files import write_atomic
from posellm.core.log import setup_log
from posellm.core.paths import assets
from posellm.data.coco import load_data
from posellm.data.synth import synth_v1
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import bootstrap
from posellm.models.weights import find_weights, load_model, read_info, save_model
from posellm.models.zoo import entry, make_spec
from posellm.stages.data import synth_folder
from posellm.train.predict import predict_poses

NAME = 'posellm-synth-s'
BEFORE = dict(optimizer='adamw')  # of runs whose description does not say it
OPTIMIZERS = dict(adamw='AdamW', muon='Muon (AdamW for the first and last layer, biases and normalisation)')


def mixed(net, other, share):
    "The mean of two networks' weights, `share` of the first, one trained from the other: meant for pictures of another kind than those of the training (Wortsman et al. 2022, arXiv:2109.01903)."
    a, b = net.state_dict(), other.state_dict()
    net.load_state_dict({k: v*share + b[k]*(1 - share) if v.is_floating_point() else v for k, v in a.items()}); return net


def measured(model, data, split='val'):
    "AP with its interval on people with their true boxes, and how many they are."
    people = load_data(data, split); who = people.posed
    return bootstrap(evaluate(people, predict_poses(model, people[who]), boxes='ground-truth boxes')), int(who.sum()), len(people.images)


def row(name, ci, people, images): return f'| {name} | {people} people, {images} images | **{ci.value:.3f}** ({ci.lo:.3f} to {ci.hi:.3f}) |'


def begun(m):
    "What was different in the parts of the training that other runs did."
    flat = lambda d: {f'{k} {i}'.strip(): x for k, v in (BEFORE | d).items() if k != 'calm' or v for i, x in (v.items() if isinstance(v, dict) else [('', v)])}
    tell = lambda b: ', '.join(f'{k} {v}' for k, v in flat(b['training']).items() if k != 'steps' and k in flat(m['training']) and v != flat(m['training'])[k])
    return ''.join(f' An earlier part, up to step {b["step"]:,} of its run, had other settings ({what}).' for b in m.get('begun', []) if (what := tell(b)))


def card(info, rows, note=''):
    m = info['meta']; t = m['training']; s = info['spec']
    return '\n'.join([f'# {NAME}', '', f'{info["params"]:,} parameters (`{s["name"]}`), input {s["input_hw"][0]}x{s["input_hw"][1]} (rows x columns), 17 COCO keypoints, 16-bit safetensors. A start for fine-tuning, not an end: it never saw a photograph.', '',
                      '## How it was made', '', f'`make pretrain`: {m["samples"]:,} views of generated people, {t["batch"]} a step, {m["seconds"]/3600:.1f} hours on {processor()}.{begun(m)}{" " + note if note else ""} '
                      f'A new shard of {t["pictures"]} pictures every {t["shard_steps"]} steps, the newest {t["window"]} learned from; looks, cameras and rooms are not those of `synth-v1`. {OPTIMIZERS[t["optimizer"]]}, peak rate {t["lr"]}, constant and then falling over the last {t["cooldown"]:.0%}; cross-entropy over the map; averaged weights. '
                      'All settings are in the description beside the file and in `nbs/train/09_pretrain.ipynb`.', '', '## What it reaches', '', 'AP is COCO\'s (OKS .50:.95), ground-truth boxes, flip test, no fine-tuning, measured with this very file; 95 % bootstrap over images.', '',
                      '| data | of | AP |', '|---|---|---|', *rows, '', '## Licence and limits', '', 'MIT, like the code: no photograph and nobody else\'s weights went in. It does not know whether a box holds a person, guesses hidden joints, and its confidences are heights of maps, not probabilities, unless they were calibrated.', ''])


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('run'); ask.add_argument('--note', default='', help='a sentence more for the card'); ask.add_argument('--mix', nargs=2, metavar=('WEIGHTS', 'SHARE'), help='the mean of the weights with others they were trained from, SHARE of the new ones'); ask.add_argument('--padding', type=float, help='of the box in use, where it differs from training: chosen on people who are not reported'); ask.add_argument('--real', help='COCO data set with a val part of photographs')
    a = ask.parse_args(); setup_log(); folder = assets() / 'weights'
    info, net = read_info(a.run), load_model(a.run); net = mixed(net, load_model(find_weights(a.mix[0])), float(a.mix[1])) if a.mix else net; info['meta'] |= dict(mixed=dict(weights=Path(a.mix[0]).stem, share=float(a.mix[1]))) if a.mix else {}; net.spec = replace(net.spec, padding=a.padding or net.spec.padding, codec=make_spec(entry(net.spec.name), net.spec.skeleton, net.spec.input_hw).codec); save_model(net, folder, info['meta'], NAME, half=True)
    model = load_model(folder / f'{NAME}.safetensors'); v1 = synth_v1(); rows = [row(f'{v1.name} val, generated people of another look', *measured(model, synth_folder(800, v1.n_val, 200)))]
    if a.real: rows.append(row(f'photographs ({Path(a.real).name} val)', *measured(model, a.real)))
    write_atomic(folder / f'{NAME}.md', card(read_info(folder / f'{NAME}.safetensors'), rows, a.note)); print('\n'.join(rows))


if __name__ == '__main__': sys.exit(main())
