"What the embedded weights' confidences mean: python tools/fit_meaning.py WEIGHTS SYNTH_FOLDER [PHOTOS] writes posellm/assets/facts.json and finish.json from people of synth-v1's train part (which the weights never saw), measures on its val part, and says how they do on photographs."
import json
import sys
from pathlib import Path

import numpy as np
import torch

from posellm.core.files import write_json
from posellm.core.paths import assets, root
from posellm.data.coco import load_data
from posellm.data.images import read_record
from posellm.explain.facts import exchanged, find_facts, fit_facts, mirror_poses
from posellm.explain.judge import count, holds, in_frame, known_people
from posellm.metrics.ap import evaluate
from posellm.metrics.calibration import recalibrated, reliability, labelled_pairs
from posellm.metrics.stats import bootstrap
from posellm.models.weights import load_model
from posellm.models.zoo import create_model
from posellm.refine.postprocess import finish, fit_finish, visibility_score
from posellm.train.predict import predict_poses


def people_of(folder, split, n):
    p = load_data(folder, split); p = p[(p.num_keypoints > 0) & ~p.iscrowd][:n]; return p.take_images(set(p.image_id.tolist()))


def mirrored_images(model, people, pred, finishing, meaning):
    "Share of facts that the mirror images' predictions exchange."
    turned = predict_poses(model, mirror_poses(people), flip=True, read=lambda rec: np.ascontiguousarray(read_record(rec)[:, ::-1]))
    said = lambda p: find_facts(recalibrated(p, finishing.calibrator), meaning)
    return exchanged(said(pred), said(turned)), exchanged(find_facts(people, noise=0.), find_facts(mirror_poses(people), noise=0.)), exchanged(said(pred), find_facts(mirror_poses(recalibrated(pred, finishing.calibrator)), meaning))


def main(weights, folder, photos=None, n=2000, held=1000):
    torch.set_num_threads(1); out = {}
    model = load_model(weights) if Path(weights).exists() else create_model(weights); calib, val = people_of(folder, 'train', n), people_of(folder, 'val', held)
    q, p = predict_poses(model, calib), predict_poses(model, val); f = fit_finish(calib, q); exact, states, _ = known_people(calib)
    meaning = fit_facts(calib, recalibrated(q, f.calibrator), true=holds(exact, states), name='posellm-synth-s')
    for part in (f.calibrator, meaning.trust.near): part.fitted_on = dict(people=len(calib), data='synth-v1 train')
    f.visibility.fitted_on = meaning.sure.fitted_on = dict(people=len(calib), data='synth-v1 train')
    ev = evaluate(val, p); ci = bootstrap(ev, n=500); out['ap'] = dict(data='synth-v1 val, boxes of the truth, flip', people=len(val), ap=ev.stats['AP'], lo=ci.lo, hi=ci.hi)
    done = recalibrated(p, f.calibrator); exact, states, wh = known_people(val); true, inside = holds(exact, states), in_frame(exact, wh)
    out['labels'] = count(find_facts(val, noise=0.).stated, true, inside).table(); out['predictions'] = count(find_facts(done, meaning).stated, true, inside).table()
    m, _, ks = labelled_pairs(val, done); out['trust'] = repr(reliability(meaning.trust(done)[0][m], np.where(np.isfinite(ks), (ks > .5) * 1., np.nan)))
    out['visibility'] = visibility_score(f.visibility, val, done, exact)
    out['mirror'] = dict(zip(('images', 'labels', 'poses'), mirrored_images(model, val[:300], p[:300], f, meaning)))
    words = {}
    if photos:
        real = people_of(photos, 'val', 10**6); ev = evaluate(real, predict_poses(model, real)); ci = bootstrap(ev, n=500)
        words['photographs'] = f'on {len(real)} people in photographs of COCO they reached AP {ev.stats["AP"]:.2f} ({max(ci.lo, 0):.2f} to {ci.hi:.2f}; boxes of the truth), where good networks reach .7; expect many mistakes'
        out['photographs'] = dict(ap=ev.stats['AP'], lo=ci.lo, hi=ci.hi, people=len(real))
    write_json(assets() / 'facts.json', meaning.to_dict()); write_json(assets() / 'finish.json', f.to_dict() | words)
    write_json(root() / 'bench' / 'results' / 'facts.json', json.loads(json.dumps(out).replace('NaN', 'null')), indent=1)
    for k, v in out.items(): print(k, v if not isinstance(v, list) else ''); [print('  ', r) for r in v if isinstance(v, list)]


if __name__ == '__main__': main(*sys.argv[1:4])
