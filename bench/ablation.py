"""What every stage gained: all chapters there are, on generated people and on photographs, three seeds; the table goes to bench/results/ablation.md (`make ablation`).

    python bench/ablation.py [--gpu cpu] [--data synth PATH] [--seeds 3] [--chapters 00-06] [--only-table]

Runs are named ablation-DATA-SEED and resumed, so that a stopped series goes on. A difference is paired: both rows predicted the same people, and the same images are drawn for both.
Its interval over seeds holds the spread between trainings and the choice of images: variance of the mean = spread over seeds / n + mean variance over images.
"""
import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from posellm.app.report import processor
from posellm.core.paths import runs_root, shared_data
from posellm.core.run import all_rows
from posellm.metrics.stats import bootstrap, paired_bootstrap, smallest_detectable
from posellm.stages.eval import last_of_chapters, load_row, row_before
from posellm.metrics.ap import evaluate

OUT = Path(__file__).resolve().parent / 'results' / 'ablation.md'


def run_of(data, seed): return f'ablation-{Path(str(data)).name}-{seed}'


def execute(data, seed, gpu, chapters):
    "One run of all chapters; False where a chapter failed (the table then shows what there is)."
    args = [sys.executable, '-m', 'posellm.app.cli', 'run', '--gpu', gpu, '--data', str(data), '--name', run_of(data, seed), '--resume', '-p', 'seed', str(seed)]
    return subprocess.call(args + (['--chapters', chapters] if chapters else [])) == 0


def measured(data, seed):
    "{(stage, row): (Evaluation, row)} of a run's held-out rows, in their order."
    root = runs_root() / run_of(data, seed)
    rows = [r for r in all_rows(root) if r['role'] == 'heldout' and r['split'] == 'val'] if root.is_dir() else []
    return {(r['stage'], r['row']): (evaluate(*load_row(r), boxes=f"{r['boxes']} boxes"), r) for r in rows}


def over_seeds(values, errors):
    "Mean over seeds with the interval described above."
    v = np.array(values); spread = v.var(ddof=1) / len(v) if len(v) > 1 else 0.
    half = 1.96 * np.sqrt(spread + np.mean(np.square(errors)))
    return v.mean(), v.mean() - half, v.mean() + half


def show(t, sign=''): return f'{t[0]:{sign}.3f} ({t[1]:{sign}.3f} to {t[2]:{sign}.3f})'


HEAD = '| stage | row | AP (95 % interval) | {} | verdict | AP50 | AP75 | train s | people/s | peak MiB | parameters |\n|---|---|---|---|---|---|---|---|---|---|---|'


def line(runs, keys, before, resamples):
    "One line of a table: a row of every run (keys: one per run) beside another row of the same runs."
    evs = [r[k][0] for r, k in zip(runs, keys)]; ci = [bootstrap(e, resamples) for e in evs]; ap = over_seeds([c.value for c in ci], [c.se for c in ci]); diff = verdict = ''
    if before:
        d = [paired_bootstrap(r[b][0], r[k][0], resamples) for r, b, k in zip(runs, before, keys)]; t = over_seeds([x.value for x in d], [x.se for x in d])
        diff, verdict = show(t, '+'), 'better' if t[1] > 0 else 'worse' if t[2] < 0 else 'not shown'
    rows = [r[k][1] for r, k in zip(runs, keys)]; mean = lambda key: f"{np.mean([x[key] for x in rows]):,.0f}" if all(x.get(key) is not None for x in rows) else ''
    return f"| {keys[0][0]} | {' or '.join(sorted({k[1] for k in keys}))} | {show(ap)} | {diff} | {verdict} | {np.mean([e.stats['AP50'] for e in evs]):.3f} | {np.mean([e.stats['AP75'] for e in evs]):.3f} | {mean('train_seconds')} | {mean('people_per_s')} | {mean('peak_mib')} | {mean('params')} |"


def rows_of(run): return [row for _, row in run.values()]


def table(data, seeds, resamples):
    "Lines of the tables of one data set."
    runs = [m for m in (measured(data, s) for s in range(seeds)) if m]
    if not runs: return [f'## {Path(str(data)).name}', '', 'Nothing was run yet.', '']
    names = [k for k in runs[0] if all(k in r for r in runs)]; first = runs[0][names[0]]; n, keys = len(runs), [list(r) for r in runs]; passed = [list(p) for p in zip(*([k[i] for i in last_of_chapters(rows_of(r))] for r, k in zip(runs, keys)))]
    common = rows_of({k: runs[0][k] for k in names}); before = {k: None if (j := row_before(common, i)) is None else names[j] for i, k in enumerate(names)}
    out = [f'## {first[1]["data"]}', '', f'{int(first[0].gt_counts[0].sum())} people in {len(first[0].image_ids)} images, held out; {first[1]["boxes"]} boxes; {n} seeds.', '', '### What each chapter hands on', '', HEAD.format('difference to the chapter before')]
    out += [line(runs, k, b, resamples) for k, b in zip(passed, [None, *passed[:-1]])] + [line(runs, passed[-1], passed[0], resamples).replace('| 0', '| **all chapters** against the start: 0', 1), '', '### Every row', '', HEAD.format('difference to the row before')]
    out += [line(runs, [k]*n, [b]*n if b else None, resamples) for k, b in ((k, before[k]) for k in names)]
    last = [paired_bootstrap(r[passed[1][i]][0], r[passed[-1][i]][0], resamples) for i, r in enumerate(runs)]
    return out + ['', f'Smallest difference between stage 1 and the last row that this set shows in four of five repetitions (one seed, 5 % level): {np.mean([smallest_detectable(d) for d in last]):.3f} AP. '
                  'Verdicts are single ones at the 5 % level; a run\'s own table corrects them for their number.', '']


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = shared_data() and shared_data() / 'coco_subset'
    ask.add_argument('--gpu', default='cpu'); ask.add_argument('--data', nargs='+', default=['synth'] + [str(real)] * bool(real)); ask.add_argument('--seeds', type=int, default=3)
    ask.add_argument('--chapters', default=None); ask.add_argument('--resamples', type=int, default=1000); ask.add_argument('--only-table', action='store_true', help='runs are there: make the table again')
    a = ask.parse_args(); done = []
    for data in a.data if not a.only_table else ():
        for seed in range(a.seeds): done.append(execute(data, seed, a.gpu, a.chapters))
    lines = ['# What every stage gained', '', f'{time.strftime("%Y-%m-%d")}, {processor()}, preset `{a.gpu}`, `make ablation`. AP is COCO\'s (OKS .50:.95); differences are paired: the same people, the same drawn images; mean over seeds.', '']
    for data in a.data: lines += table(data, a.seeds, a.resamples)
    lines += ['Why figures of 95 to 98 AP cannot be among these: [What the sources claimed and what we found](../../papers/claims.md).', '']
    OUT.write_text('\n'.join(lines), encoding='utf8'); print('\n'.join(lines)); print(f'written to {OUT}')
    if done and not all(done): sys.exit('a chapter failed: see above; the table holds what there is')


if __name__ == '__main__': main()
