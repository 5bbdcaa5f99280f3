"""What the embedded weights' confidences mean, learned anew for new weights by one command:

    python tools/fit_meaning.py WEIGHTS SYNTH_FOLDER [PHOTOS]

WEIGHTS is a file or a name, SYNTH_FOLDER a synth-v1 set whose train part the weights never saw (4,000 of its people are learned from, the first 1,000 of its val part are reported), PHOTOS a COCO set whose val part is reported
too. Writes posellm/assets/facts.json and finish.json, bench/results/facts.json, and from that bench/results/facts.md and the row on facts in README.md. About 13,000 passes of the network and a minute of arithmetic:
3 to 4 minutes on a shared core. `python tools/fit_meaning.py --tables` writes the tables again from facts.json.
"""
import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from posellm.app.report import processor
from posellm.core.files import read_json, write_atomic, write_json
from posellm.core.paths import assets, root
from posellm.data.coco import load_data
from posellm.data.images import read_record
from posellm.explain.facts import GROUPS, exchanged, find_facts, fit_facts, mirror_poses
from posellm.explain.judge import JUDGED, as_known, count, holds, in_frame, known_people
from posellm.explain.schema import CATEGORIES
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import labelled_pairs, recalibrated, reliability
from posellm.metrics.stats import bootstrap, draw_images
from posellm.models.weights import load_model
from posellm.models.zoo import create_model
from posellm.refine.postprocess import fit_finish, one_by_one, versions_of, visibility_score
from posellm.stages.postprocess import map_versions
from posellm.train.predict import predict_poses

RESULTS = root() / 'bench' / 'results'


def people_of(folder, split, n):
    p = load_data(folder, split); p = p[p.posed][:n]; return p.take_images(set(p.image_id.tolist()))


def with_everybody(folder, split, people): # those without keypoints too: COCO's AP ignores who is predicted for them
    return load_data(folder, split).take_images(set(people.image_id.tolist()))


def mirrored_images(model, people, finishing, meaning):
    "Shares of facts that mirror images exchange: of predictions, of labels, of mirrored predictions. Both ways read the whole picture: a JPEG decoded at half its size has other pixels than its mirror image."
    pred = predict_poses(model, people, flip=True, draws=True, read=read_record)
    turned = predict_poses(model, mirror_poses(people), flip=True, draws=True, read=lambda rec: np.ascontiguousarray(read_record(rec)[:, ::-1]))
    done, said = recalibrated(pred, finishing.calibrator), lambda p: find_facts(p, meaning)
    return dict(people=len(people), images=exchanged(said(done), said(recalibrated(turned, finishing.calibrator))), labels=exchanged(find_facts(people, noise=0.), find_facts(mirror_poses(people), noise=0.)), poses=exchanged(said(done), said(mirror_poses(done))))


def limits(facts, true, inside):
    "How much can be said at all: all that the predictions suggest, and what one threshold, chosen on these very people, would give at some precisions."
    say = (facts.margin > 0) & (facts.probability > 0) & np.isin(np.arange(len(CATEGORIES)), JUDGED); all_ = count(say, true, inside).table()[0]
    i, c = np.nonzero(say & (true >= 0)); o = np.argsort(-facts.probability[i, c], kind='stable'); right, there = (true[i, c] == 1)[o], (inside[i, c] & (true[i, c] == 1))[o]
    share, total = np.cumsum(right) / np.arange(1, len(o) + 1), ((true == 1) & inside)[:, list(JUDGED)].sum(); at = lambda p: float(np.cumsum(there)[np.flatnonzero(share >= p)[-1]] / total) if (share >= p).any() else 0.
    return dict(everything=dict(precision=all_['precision'], recall=all_['recall']), oracle={str(p): at(p) for p in (.99, .97, .95, .9, .8)})


def over_images(stated, true, inside, image_id, n=1000):
    "95 % intervals of precision and recall of all judged facts, over images."
    ids, at = np.unique(image_id, return_inverse=True); j = list(JUDGED); known, yes, there = (x[:, j] for x in (stated & (true >= 0), stated & (true == 1), (true == 1) & inside))
    per = np.stack([np.bincount(at, x.sum(1), len(ids)) for x in (known, yes, there, there & stated[:, j])], 1); s = draw_images(len(ids), n) @ per
    return {k: [float(v) for v in np.quantile(q, (.025, .975))] for k, q in dict(precision=s[:, 1] / s[:, 0], recall=s[:, 3] / s[:, 2]).items()}


def shrunk(calib, q, all_, p, true_calib, true, inside, exact_calib, exact, factors=(1, .6, .4, .25, .15)):
    "The same predictions with their errors made smaller, confidences kept and draws with them: a simulation, not a network."
    def pull(pred, e, f):
        near = lambda x, e: np.where(np.isfinite(e), e + f * (x - e), x)
        return replace(pred, xy=near(pred.xy, e), draws=None if pred.draws is None else near(pred.draws, e[:, :, None]).astype(np.float32))
    out = []
    for f in factors:
        a, b = pull(q, exact_calib, f), pull(p, exact, f); fin = fit_finish(calib, a); m = fit_facts(calib, recalibrated(a, fin.calibrator), true=true_calib)
        row = count(find_facts(recalibrated(b, fin.calibrator), m).stated, true, inside).table()[0]; out.append(dict(errors=f, ap=evaluate(all_, b).stats['AP'], precision=row['precision'], recall=row['recall']))
    return out


def main(weights, folder, photos=None, n=4000, held=1000):
    torch.set_num_threads(1); out = dict(date=str(date.today()), cpu=processor())
    model = load_model(weights) if Path(weights).exists() else create_model(weights); calib, val = people_of(folder, 'train', n), people_of(folder, 'val', held)
    q, maps = predict_poses(model, calib, draws=True), map_versions(model, val); p = maps[f"stage 1 maps, {model.spec.codec['decode_mode']}"]; exact_calib, states, _ = known_people(calib); f = fit_finish(calib, q, exact=exact_calib); true_calib = holds(exact_calib, states)
    meaning = fit_facts(calib, recalibrated(q, f.calibrator), true=true_calib, name='posellm-synth-s')
    for part in (f.calibrator, f.visibility, meaning.trust.near, meaning.sure, meaning.drawn):
        if part is not None: part.fitted_on = dict(people=len(calib), data='synth-v1 train')
    all_ = with_everybody(folder, 'val', val); ev = evaluate(all_, p); ci = bootstrap(ev, n=500); out['ap'] = dict(data='synth-v1 val, boxes of the truth, flip', people=len(val), learned_on=len(calib), ap=ev.stats['AP'], lo=ci.lo, hi=ci.hi)
    done = recalibrated(p, f.calibrator); exact, states, wh = known_people(val); true, inside = holds(exact, states), in_frame(exact, wh); facts = find_facts(done, meaning)
    out['exact'] = count(find_facts(as_known(val), noise=0.).stated, true, inside).table(); out['labels'] = count(find_facts(val, noise=0.).stated, true, inside).table(); out['predictions'] = count(facts.stated, true, inside).table(); out['interval'] = over_images(facts.stated, true, inside, val.image_id)
    out['unlabelled'] = float(((as_known(val).vis > 0) & (val.vis == 0))[:, 5:].any(1).mean()); out['limits'] = limits(facts, true, inside); out['shrunk'] = shrunk(calib, q, all_, p, true_calib, true, inside, exact_calib, exact)
    m, _, ks = labelled_pairs(val, done); r = reliability(meaning.trust(done)[0][m], np.where(np.isfinite(ks), (ks > .5) * 1., np.nan)); out['trust'] = repr(r)
    out['visibility'] = visibility_score(f.visibility, val, done, exact); out['mirror'] = mirrored_images(model, val[:300], f, meaning); out['steps'] = one_by_one(all_, maps, 500) + one_by_one(all_, versions_of(p, f), 500)
    words = photographs(model, photos, out) if photos else {}
    write_json(assets() / 'facts.json', meaning.to_dict()); write_json(assets() / 'finish.json', f.to_dict() | words)
    write_json(RESULTS / 'facts.json', json.loads(json.dumps(out, default=float).replace('NaN', 'null')), indent=1); tables()


def photographs(model, photos, out) -> dict:
    "How far the weights come on photographs, as a sentence for the user."
    real = people_of(photos, 'val', 10**6); ev = evaluate(with_everybody(photos, 'val', real), predict_poses(model, real)); ci = bootstrap(ev, n=500); out['photographs'] = dict(ap=ev.stats['AP'], lo=ci.lo, hi=ci.hi, people=len(real))
    return dict(photographs=f'on {len(real)} people in photographs of COCO they reached AP {ev.stats["AP"]:.2f} ({max(ci.lo, 0):.2f} to {ci.hi:.2f}; boxes of the truth), where good networks reach .7; expect many mistakes')


def num(v): return '' if v is None else f'{v:.3f}'
def span(v): return f'{v[0]:.3f} to {v[1]:.3f}'


def kinds(rows): # a table of precision and recall
    return ['| kind | precision | recall | stated | there |', '|---|---|---|---|---|'] + [f"| {r['facts']} | {num(r['precision'])} | {num(r['recall'])} | {r['stated']:,} | {r['there']:,} |" for r in rows]


def step_rows(steps): # a table of finishing
    return ['| step | AP | difference to the row above | verdict |', '|---|---|---|---|'] + [f"| {s['step']} | {s['ap']:.4f} | {'' if s['delta'] is None else '{:+.4f} ({:+.4f} to {:+.4f})'.format(s['delta'], s['lo'], s['hi'])} | {s['verdict']} |" for s in steps]


def page(d) -> str:
    "bench/results/facts.md, from the figures."
    ap, lim, vis, mir, sp = d['ap'], d['limits'], d['visibility'], d['mirror'], read_json(RESULTS / 'facts_speed.json')[0]['measures']['facts of people']
    seen = ' / '.join(f"{k} {v[0]:.2f} / {v[1]:.2f}" if v[0] is not None else f'{k} none' for k, v in vis.items())
    lines = ['# What is said of people, and how much of it is true', '', f"{d['date']}, {d['cpu']}, machine shared with other work. Written by `python tools/fit_meaning.py WEIGHTS SYNTH PHOTOS` from `facts.json`; speed: `python bench/run.py facts_speed`.",
             "Facts are held against the generator's exact joints (image plane) and bodies in space (posture, facing, gait) by `explain.judge`, which shares no code with the measuring. Recall counts every instance whose joints are in the frame, withheld ones included.", '',
             f"## True poses: {ap['people']:,} people of `synth-v1` val", '', 'Every joint in the picture known, hidden ones too:', '', *kinds(d['exact']), '', f"As labelled ({d['unlabelled']:.0%} of the people lack a joint of the body that is in the picture and was not labelled; what rests on it is withheld):", '', *kinds(d['labels']), '',
             f"## Predictions: the same people, boxes of the truth, flip averaging", '', f"Weights `posellm-synth-s` (AP {ap['ap']:.3f}, {ap['lo']:.3f} to {ap['hi']:.3f}, 500 resamples); what their confidences mean was learned on {ap['learned_on']:,} people of the train part, which they never saw.", '', *kinds(d['predictions']), '', f"Of all, over images: precision {span(d['interval']['precision'])}, recall {span(d['interval']['recall'])} (95 %, 1,000 resamples).", '',
             f"Wanted were a precision of 0.97 and a recall of 0.4. A fact is judged by its joints' confidences and by draws from the network's maps (`pose.draws`). Said without any threshold, what these predictions suggest is right in {lim['everything']['precision']:.0%} of cases and holds {lim['everything']['recall']:.0%} of what is there: no way of choosing can say more. One threshold chosen on these very people would give", '',
             '| precision | ' + ' | '.join(lim['oracle']) + ' |', '|---' * (len(lim['oracle']) + 1) + '|', '| recall | ' + ' | '.join(f'{v:.3f}' for v in lim['oracle'].values()) + ' |', '', 'Where the rest lies: the same predictions with their errors shrunk (a simulation, not a network), all learned again:', '',
             '| errors times | AP | precision | recall |', '|---|---|---|---|', *[f"| {r['errors']} | {r['ap']:.3f} | {num(r['precision'])} | {num(r['recall'])} |" for r in d['shrunk']], '', 'What is missing is not said wrongly; it is withheld.', '', '| also | |', '|---|---|',
             f"| probability that a joint is near | {d['trust']} |", f"| states of visibility, precision / recall | {seen} |", f"| mirrored people (labels / predictions) | {mir['labels']:.1%} / {mir['poses']:.1%} of the facts exchange left and right, and nothing else changes |", f"| mirrored images, flip averaging, {mir['people']} people | {mir['images']:.1%} |",
             f"| speed, all facts of predictions | {sp['per_cpu_second']:,} people a second of processor time ({sp['without_draws']:,} without draws); by the clock {sp['two_processes']:,} in two processes; {sp['one_by_one']:,} person by person |", '', '## Finishing, step by step', '', f"The same network and people, learned on the same {ap['learned_on']:,}, paired bootstrap over images (500 resamples). Every chapter 05 writes this table for its own network. Clipping can gain a little: no label lies outside its picture, so what was predicted outside comes nearer to it at the edge. Calibration alone cannot show: AP looks at people's scores only.", '', *step_rows(d['steps'])]
    if d.get('photographs'): lines += ['', f"On {d['photographs']['people']} people in photographs (COCO subset val) the weights reach AP {d['photographs']['ap']:.3f} ({max(d['photographs']['lo'], 0):.3f} to {d['photographs']['hi']:.3f}, 500 resamples). What is said there, read by a person: [reading.md](reading.md)."]
    return '\n'.join(lines) + '\n'


def readme_row(d) -> str:
    "The row on facts in README's table."
    of = lambda part, kind: next(r for r in d[part] if r['facts'] == kind); three = ' / '.join(f"{of('labels', k)['recall']:.2f}" for k in ('posture', 'facing', 'activity')); a, b, c = (of(p, 'all') for p in ('exact', 'labels', 'predictions'))
    return f"| facts | precision / recall from exact joints {a['precision']:.3f} / {a['recall']:.2f}, from labels {b['precision']:.3f} / {b['recall']:.2f} (posture, facing, gait {three}), from predictions of the embedded weights {c['precision']:.3f} ({span(d['interval']['precision'])}) / {c['recall']:.3f} ({span(d['interval']['recall'])}; 0.97 / 0.4 were wanted) | `facts.md` |"


def tables():
    "The page and README's row, from bench/results/facts.json."
    d = read_json(RESULTS / 'facts.json'); write_atomic(RESULTS / 'facts.md', page(d)); readme = root() / 'README.md'
    write_atomic(readme, '\n'.join(readme_row(d) if line.startswith('| facts |') else line for line in readme.read_text(encoding='utf8').split('\n')))


if __name__ == '__main__': tables() if sys.argv[1:] == ['--tables'] else main(*sys.argv[1:4])
