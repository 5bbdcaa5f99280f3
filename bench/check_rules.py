"""Precision and recall of every rule of the doctor, on spoilt sets of generated and of real people, none of which the rules were tuned on.

    python bench/check_rules.py [--sets 20] [--images 25] [--seed 1] [--out bench/results/check_rules.json]; the page is bench/results/check_rules.md

Generated: labels of the endless data set, exact. Real: COCO val2017 labels of shared/data, which have true mistakes of their own; what a rule says before a corruption is not counted
again after it, and is reported as `clean`. Tuned on: COCO train2017 labels (the weights for left and right) and hand-made examples.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from posellm.core.files import write_json
from posellm.core.paths import shared_data
from posellm.data.corrupt import CORRUPTIONS, all_findings, draw_set, measure_rules
from posellm.data.anatomy import side_evidence
from posellm.data.case import build_case
from posellm.data.check import RULES
from posellm.data.remedies import apply_remedies
from posellm.pose.skeleton import get_skeleton


def generated(seed, n=700):
    from posellm.data.synth import label_doc, synth_v1
    d = label_doc(4711 + seed, n, synth_v1().config)
    keep = ('id', 'image_id', 'category_id', 'iscrowd', 'bbox', 'area', 'num_keypoints', 'keypoints')
    return json.loads(json.dumps({**d, 'annotations': [{k: a[k] for k in keep} for a in d['annotations']]}))


def real():
    root = shared_data()
    if root is None: return None
    d = json.loads((root / 'coco_val2017_annotations_only/person_keypoints_val2017.json').read_text())
    apply_remedies(d, only={'repeated-images'})
    d['annotations'] = [{k: v for k, v in a.items() if k != 'segmentation'} for a in d['annotations'] if a['num_keypoints'] > 0 or a['iscrowd']]
    ids = {a['image_id'] for a in d['annotations']}
    return {**d, 'images': [im for im in d['images'] if im['id'] in ids]}


def sides(d, seeds=20, share=.05):
    """Single people exchanged whole: all people, and those of whom eight keypoints and the facing are known."""
    case = build_case(d); k = case.kpts[case.on.sum(1) >= 1]; names = case.names; flip = get_skeleton('coco17').flip
    on, v = k[..., 2] > 0, k[..., 2]
    known = (on.sum(1) >= 8) & (v[:, 0] == 2) & ((v[:, 1] == 2) | (v[:, 2] == 2))
    out = {}
    for name, use in (('everybody', np.ones(len(k), bool)), ('facing determinable', known)):
        tp = fp = n = 0
        for s in range(seeds):
            gen = np.random.default_rng([s, 5]); who = np.flatnonzero(use); bad = gen.random(len(who)) < share; x = k[who].copy(); x[bad] = x[bad][:, flip]
            said = side_evidence(x, names)[0] < -3; tp += int((said & bad).sum()); fp += int((said & ~bad).sum()); n += int(bad.sum())
        out[name] = dict(people=int(use.sum()), exchanged=n, precision=round(tp / max(tp + fp, 1), 3), recall=round(tp / max(n, 1), 3))
    return out


def photographs(n=400):
    """The perceptual hash on real photographs: pairs of different ones that pass for the same, copies that are found."""
    import cv2
    from posellm.data.alike import Prints, find_alike, perceptual_hash, print_images
    root = shared_data()
    if root is None: return None
    files = (sorted(root.glob('coco_subset/*2017/*.jpg')) + sorted(root.glob('lspet/images/*.jpg')))[:n]
    own = print_images(files); false = [p for p in find_alike(own)]; n = len(own)
    cut = lambda x, s: x[int(s * x.shape[0]):, int(s * x.shape[1]):]
    ways = {'JPEG quality 30': lambda x: cv2.imdecode(cv2.imencode('.jpg', x, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1), 'half the size': lambda x: cv2.resize(x, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA), 'brighter': lambda x: np.clip(x * 1.2 + 15, 0, 255).astype(np.uint8),
            'blurred': lambda x: cv2.GaussianBlur(x, (0, 0), 2), 'grey': lambda x: cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), 'mirrored': lambda x: x[:, ::-1].copy(), '2 % cut off': lambda x: cut(x, .02), '5 % cut off': lambda x: cut(x, .05)}
    found = {}
    for name, f in ways.items():
        b, m, t = zip(*(perceptual_hash(cv2.cvtColor(f(cv2.imread(str(p))), cv2.COLOR_BGR2RGB)) for p in own.index)); copies = Prints(np.array(b, np.uint64), np.array(m, np.uint64), np.array(t, np.float32), own.index)
        found[name] = round(sum(i == j for i, j, _, _ in find_alike(own, copies)) / n, 3)
    return dict(images=n, pairs=n * (n - 1) // 2, false=len(false), false_pairs=[f'{own.index[i].name} {own.index[j].name}' for i, j, _, _ in false[:5]], found=found)


def table(scores, clean, n):
    rows = {}
    for r in dict.fromkeys([CORRUPTIONS[c].rule for c in CORRUPTIONS]):
        s = scores.get(r)
        if s is None or not s.sets: continue
        rows[r] = dict(severity=RULES[r].severity, sets=s.sets, precision=round(s.precision, 3), recall=round(s.recall, 3), clean=clean.get(r, 0), clean_sets=n,
                       people=s.people, people_precision=None if s.people_precision is None else round(s.people_precision, 3), people_recall=None if s.people_recall is None else round(s.people_recall, 3))
    return rows


def markdown(result):
    lines = [f"# Precision and recall of the doctor's rules\n\n{result['date']}, {result['cpu']}. Each rule on at least {result['sets']} corrupted sets of {result['images']} images; sets: did the rule speak where it should, and only there "
             '(speaking on sets with other faults counts against it, unless the fault rightly brings it along; what it says on uncorrupted sets has its own column). People: were those named whom the corruption touched.\n']
    for source, r in result['sources'].items():
        lines.append(f"\n## {source}: {r['people']} people in {r['images']} images\n\nErrors on uncorrupted sets: {r['errors_on_clean']} of {r['clean_sets']}.\n\n| rule | severity | sets | precision | recall | spoke on uncorrupted sets | people | precision | recall |\n|---|---|---|---|---|---|---|---|---|")
        p = lambda v: '' if v is None else f'{v:.3f}'
        lines += [f"| {k} | {v['severity']} | {v['sets']} | {v['precision']:.3f} | {v['recall']:.3f} | {v['clean']} of {v['clean_sets']} | {v['people'] or ''} | {p(v['people_precision'])} | {p(v['people_recall'])} |" for k, v in r['rules'].items()]
        lines.append('\nSingle people with exchanged sides, 5 % of all, 20 draws: ' + '; '.join(f"{k} ({v['people']} people, {v['exchanged']} exchanged): precision {v['precision']:.3f}, recall {v['recall']:.3f}" for k, v in r['sides'].items()) + '.')
    if ph := result.get('photographs'): lines.append(f"\n## Photographs that look alike\n\nOf {ph['pairs']} pairs of {ph['images']} different photographs {ph['false']} pass for the same. Copies found: " + ', '.join(f'{k} {v:.3f}' for k, v in ph['found'].items()) + '.')
    return '\n'.join(lines) + '\n'


def main():
    p = argparse.ArgumentParser(); p.add_argument('--sets', type=int, default=20); p.add_argument('--images', type=int, default=25); p.add_argument('--seed', type=int, default=1); p.add_argument('--out', default=str(Path(__file__).parent / 'results/check_rules.json'))
    a = p.parse_args(); t = time.time()
    result = dict(schema=1, date=time.strftime('%Y-%m-%d'), cpu='2 cores of an AMD EPYC, machine shared with other work' if 'x86' in platform.machine() else platform.processor(), sets=a.sets, images=a.images, seed=a.seed, sources={})
    for name, d in (('generated people', generated(a.seed)), ('COCO val2017', real())):
        if d is None: print('no shared/data: real people left out'); continue
        scores, clean = measure_rules(d, a.sets, a.images, a.seed)
        errors = sum(any(RULES[r].severity == 'error' for r in all_findings(draw_set(d, a.images, 10**6 + 1000*a.seed + i))) for i in range(50))
        result['sources'][name] = dict(people=len(d['annotations']), images=len(d['images']), rules=table(scores, clean, a.sets), sides=sides(d), errors_on_clean=errors, clean_sets=50)
        for k, v in result['sources'][name]['rules'].items(): print(f"{name[:9]} {k:22} sets {v['sets']:3} P {v['precision']:.2f} R {v['recall']:.2f} clean {v['clean']:2}  people {v['people']:4} P {v['people_precision']} R {v['people_recall']} {sorted(set(scores[k].false_on))}")
        print(result['sources'][name]['sides'], 'errors on clean', errors, f'{time.time() - t:.0f} s')
    result['photographs'] = photographs(); print(result['photographs'])
    write_json(a.out, result, indent=1)
    Path(a.out).with_suffix('.md').write_text(markdown(result), encoding='utf8')


if __name__ == '__main__': main()
