"""Fusion of real networks on generated people: every rule beside the best single member, a bad member, test-time augmentation, refiners.

    python bench/fusion.py WEIGHTS WEIGHTS... --calib FOLDER --val FOLDER [--out bench/results/fusion.md]      networks that are there
    python bench/fusion.py --train FOLDER|easy [--steps 4000] [--hw 128 96] [--run fusion] ...                  trains ResNet-18, ViT-tiny and MobileNet by stage 1 first
    python bench/fusion.py --small [--out ...]                                                                  small ones of these three, as bench/finetune_families.py left them, on its easy people

Everything is learnt on the calib people and reported on the val people (ground-truth boxes, paired bootstrap over images, Holm over the rules).
The bad member is the first network with its maps moved by a tenth of the crop and its joints exchanged left for right: wrong, and as sure of itself as before. Page: bench/results/fusion.md
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from posellm.core.files import write_atomic
from posellm.core.log import setup_log
from posellm.core.paths import cache_root
from posellm.core.run import Run
from posellm.data.coco import load_data
from posellm.data.synth import write_synth
from posellm.metrics.ap import evaluate
from posellm.metrics.stats import paired_bootstrap
from posellm.models.weights import load_model, load_weights
from posellm.refine.compare import best_member, compare_rules, counted, coverage_table, sign_table
from posellm.refine.learn import correlation, learn_members
from posellm.refine.members import stack_people
from posellm.refine.se import try_refiners, verdicts
from posellm.refine.views import predict_views, views_as_member
from posellm.stages.ensemble import look
from posellm.stages.stage1 import run_stage1
from posellm.train.hardware import preset

THREE = dict(resnet18=('simplebaseline18', 2e-3, 1, 'bf16'), vit_tiny=('vit_tiny-simple', 1e-3, 2, 'bf16'), mobilenet=('mobilenetv4', 2e-3, 1.5, 'fp32'))  # network, rate, share of --steps, precision: a ViT learns slowest, depthwise convolutions are slow in bf16
SMALL = dict(resnet18='simplebaseline', vit='vitpose-simple', mobilenet='mobilenetv4')  # member -> family


def easy_people():
    "3,000 people to train on, 400 to calibrate on, 600 to report: those of the first look of bench/finetune_families.py (single, grown, upright, whole, standing or walking, most face the camera)."
    from finetune_families import FIRST
    folder = cache_root() / 'fusion-easy'
    if not (folder / 'annotations' / 'person_keypoints_calib2017.json').is_file(): write_synth(folder, 3000, 600, 0, seed=77, config=FIRST, n_calib=400)
    return folder


def train_three(folder, steps, run, hw):
    """Stage 1 for each of the three networks; what is trained already is kept."""
    nets = {}
    for name, (net, lr, share, precision) in THREE.items():
        r = Run.open(f'{run}-{name}', '01_stage1', resume=True); cfg = preset('cpu', model=net, input_hw=tuple(hw), steps=(0, round(share*steps)), lr=(1e-3, lr), precision=precision, val_every=20.)
        nets[name] = run_stage1(cfg, r, folder, 0, weights='none')[0]
    return nets


def small_three():
    "The three small networks that were trained on one look and fine-tuned on another, and the folder of the second look's people."
    from finetune_families import FAMILIES, kept, second_folder
    if missing := [f for f in SMALL.values() if not kept(f).is_file()]: raise SystemExit(f'first: python bench/finetune_families.py --again --families {" ".join(missing)}')
    return {n: load_weights(FAMILIES[f][1](), kept(f)).eval() for n, f in SMALL.items()}, second_folder()


def wrong(pred):
    """A member that is sure and wrong."""
    b = pred.bbox; return replace(pred, xy=pred.xy[:, pred.skeleton.flip] + .1*np.maximum(b[:, 2], b[:, 3])[:, None, None])


def table(c):
    lines = ['| what | AP | minus the best member (paired) | verdict |', '|---|---|---|---|']
    for r in c.rows: lines.append(f"| {r['name']}{' (chosen on calib)' if r['name'] == c.chosen else ''} | {r['ap']:.3f} ({r['lo']:.3f} to {r['hi']:.3f}) | " + ('' if r['delta'] is None else f"{r['delta']:+.4f} ({r['delta_lo']:+.4f} to {r['delta_hi']:+.4f})") + f" | {r['verdict']} |")
    return lines


def rules_and_bad(S, T, got, part):
    """Every rule, with and without a bad member; what the errors and regions are like."""
    c = compare_rules(S['calib'], T['calib'], S['val'], T['val']); part('The members, and every rule', table(c))
    know = learn_members(S['calib'], T['calib'], keypoint=False); part('How errors go together', [f"Correlation of the members' errors, mean of the keypoints: {correlation(know.fixed).mean(0).round(2).tolist()}; usual spread in sigma x box size: {know.spread.mean(1).round(2).tolist()}; the confidences are followed by {know.temper:g}."])
    f = c.fusers[c.chosen]; held = coverage_table(f, S['val'], T['val']); signs = sign_table(f, S['val'], T['val'], list(S['val'].names).index(c.best))
    part('Regions', [f'Stated {q:.0%}: held {v:.3f} ({lo:.3f} to {hi:.3f}).' for q, (v, lo, hi) in held.items()]); part('Signs of an error (AUROC for similarity below one half)', [f'{k}: {v:.3f}' for k, v in signs.items()])
    best, fused = c.fusers[f'best member ({c.best})'](S['val'].only([c.best])), f(S['val']); where = [paired_bootstrap(c.evaluations[f'best member ({c.best})'], evaluate(T['val'], counted(T['val'], replace(a, score=b.score)))) for a, b in ((fused, best), (best, fused))]
    part('Where the difference lies', [f'{what}: {d.value:+.4f} ({d.lo:+.4f} to {d.hi:+.4f})' for what, d in zip(("places of the fused, scores of the best member", "places of the best member, scores of the fused"), where)])
    B = {s: stack_people({**got[s][0], 'bad': wrong(next(iter(got[s][0].values())))}) for s in S}; b = compare_rules(B['calib'], T['calib'], B['val'], T['val']); part('With a member that is sure and wrong', table(b))
    d = paired_bootstrap(c.evaluations[c.chosen], b.evaluations[b.chosen]); part('What the bad member cost', [f'uniform: {b.row("uniform")["ap"] - c.row("uniform")["ap"]:+.4f} AP; ours ({c.chosen}, then {b.chosen}): {d.value:+.4f} ({d.lo:+.4f} to {d.hi:+.4f})'])


def views(nets, S, T, got, part):
    """Crops of three sizes by the best network: alone, as one more member, and as members of their own."""
    best = list(nets)[best_member(S['calib'], T['calib'])]; V = {s: predict_views(nets[best], T[s], flip=True) for s in T}; one = {s: views_as_member(V[s]) for s in V}; plain, tta = evaluate(T['val'], counted(T['val'], got['val'][0][best])), evaluate(T['val'], counted(T['val'], one['val'][0])); d = paired_bootstrap(plain, tta)
    lines = [f'{best}: three crops fused as maps {tta.stats["AP"]:.3f}, one crop {plain.stats["AP"]:.3f}: {d.value:+.4f} ({d.lo:+.4f} to {d.hi:+.4f}), {d.verdict} (scores as they are).']
    W = {s: stack_people({**got[s][0], f'{best} views': one[s][0]}, maps=[*got[s][1].values(), one[s][1]]) for s in S}; v = compare_rules(W['calib'], T['calib'], W['val'], T['val']); part('Test-time augmentation, alone and as a member', [*lines, '', *table(v)])
    signs = sign_table(v.fusers['precision'], W['val'], T['val'], list(W['val'].names).index(best)); part('Signs of an error with the views (AUROC)', [f'{k}: {x:.3f}' for k, x in signs.items()])
    u = compare_rules(V['calib'], T['calib'], V['val'], T['val'], ('median', 'maps')); held = coverage_table(u.fusers['median'], V['val'], T['val'], (.9,))[.9]; part('One network, its views as members', [*table(u), '', f'Stated 90 %: held {held[0]:.3f} ({held[1]:.3f} to {held[2]:.3f}).'])


def sizes(nets, S, T, part, scales=(.85, .75)):
    """Every network at three crop sizes, each crop a member: does disagreement tell more where there are more members?"""
    V = {s: {n: predict_views(net, T[s], scales, flip=True) for n, net in nets.items()} for s in T}; W = {}
    for s in T: W[s] = stack_people({f'{n} {k}': v for n in nets for k, v in [('x1', poses_of(S[s], n)), *((x, poses_of(V[s][n], x)) for x in V[s][n].names)]})
    v = compare_rules(W['calib'], T['calib'], W['val'], T['val']); part(f'All networks at three crop sizes, {len(W["val"].names)} members', table(v)); f = v.fusers[v.chosen]
    signs, held = sign_table(f, W['val'], T['val'], list(W['val'].names).index(v.best)), coverage_table(f, W['val'], T['val'], (.9,))[.9]
    part('Signs of an error with these members (AUROC)', [f'{k}: {x:.3f}' for k, x in signs.items()] + [f'Stated 90 %: held {held[0]:.3f} ({held[1]:.3f} to {held[2]:.3f}).'])


def poses_of(stack, name):
    """One member of a stack as people."""
    i = list(stack.names).index(name); return replace(stack.people, xy=stack.xy[i], conf=stack.conf[i], score=stack.score[i], vis=None, num_keypoints=np.full(len(stack), stack.people.K))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); ap.add_argument('weights', nargs='*'); ap.add_argument('--train'); ap.add_argument('--small', action='store_true'); ap.add_argument('--hw', type=int, nargs=2, default=(128, 96)); ap.add_argument('--steps', type=int, default=4000); ap.add_argument('--run', default='fusion')
    ap.add_argument('--calib'); ap.add_argument('--val'); ap.add_argument('--limit', type=int, default=0); ap.add_argument('--parts', default='rules,bad,views,sizes,refiners'); ap.add_argument('--refiner-steps', type=int, default=150); ap.add_argument('--out'); o = ap.parse_args(); setup_log()
    if o.train == 'easy': o.train = easy_people()
    if o.small: nets, folder = small_three()
    else: nets, folder = train_three(o.train, o.steps, o.run, o.hw) if o.train else {Path(w).name: load_model(w) for w in o.weights}, o.train
    o.calib, o.val = o.calib or folder, o.val or folder
    if not (nets and o.calib and o.val): ap.error('weights with --calib and --val, or --train FOLDER, or --small')
    people = {s: (p := load_data(f, s, limit=o.limit or None))[p.posed] for s, f in (('calib', o.calib), ('val', o.val))}; got = {s: look(nets, p) for s, p in people.items()}
    S = {s: stack_people(g[0], maps=list(g[1].values())) for s, g in got.items()}; T = people; out = [f"Members: {', '.join(f'{n} ({net.spec.name}, {net.spec.input_hw[0]}x{net.spec.input_hw[1]})' for n, net in nets.items())}. {len(T['calib'])} people to learn from, {len(T['val'])} reported, ground-truth boxes, flip test.", '']
    def part(title, lines): out.extend([f'## {title}', '', *lines, '']); print('\n'.join(out[-len(lines) - 3:]), flush=True)
    if 'rules' in o.parts or 'bad' in o.parts: rules_and_bad(S, T, got, part)
    if 'views' in o.parts: views(nets, S, T, got, part)
    if 'sizes' in o.parts: sizes(nets, S, T, part)
    if 'refiners' in o.parts:
        tried = verdicts(try_refiners(S['calib'], T['calib'], steps=o.refiner_steps)); part('Refiners on the maps (cross-validated on calib; mean share of OKS thresholds reached)', ['| way | value | minus mean maps | kept |', '|---|---|---|---|', *[f"| {r['way']} | {r['value']:.4f} | {r['delta']:+.4f} +- {r['se']:.4f} | {'yes' if r['keep'] else 'no'} |" for r in tried]])
    if o.out: write_atomic(o.out, '\n'.join(out) + '\n')


if __name__ == '__main__': main()
