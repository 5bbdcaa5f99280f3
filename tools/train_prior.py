"""Make the embedded pose prior again, from generated people only: `make prior` (about twenty minutes on one core).

It writes posellm/assets/prior/prior.safetensors prior.json and prior.md; the card says what it was made from and what it
does on generated people who were neither trained on nor used for the gate.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from posellm.core.files import write_atomic
from posellm.core.log import setup_log
from posellm.core.paths import assets
from posellm.core.run import versions
from posellm.data.bare import bare_poses
from posellm.data.scene import SynthConfig
from posellm.data.synth import V1
from posellm.metrics.ap import evaluate
from posellm.refine.corrupt import corrupt, published_errors
from posellm.refine.fitting import fit_prior
from posellm.refine.teach import LearnConfig
from posellm.refine.prior import refine, save_prior


def card_text(c:dict) -> str:
    "The card as a page."
    t = c['training']; h = t['history']
    return '\n'.join(['# The embedded pose prior', '', f'A denoising VAE of 17 COCO keypoints (latent {t["latent"]}, hidden {t["hidden"]}) with the gate that keeps it silent: what `posellm refine` uses when no `--prior` is named.', '',
                      '## How it was made', '', f'`{c["made_by"]}`, {c["date"]}: {t["steps"]:,} steps of {t["batch"]} on {c["poses"]}; {h["seconds"]/60:.0f} minutes on one core. Errors as networks make them: {c["errors"]}. Gate: {c["gate"]}.', '',
                      '## What it reaches', '', f'{c["heldout"]["people"]:,} {c["heldout"]["what"]}: **{c["heldout"]["before"]:.3f}** and **{c["heldout"]["after"]:.3f}**. On real labels, on real predictions and against four baselines: `bench/results/prior.md`.', '',
                      '## Licence and limits', '', f'{c["licence"]}. It {c["limits"]}.', ''])


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--people', type=int, default=16_000)
    a.add_argument('--steps', type=int, default=7000)
    a.add_argument('--sides-steps', type=int, default=0) # among all errors hardly any exchange of generated bodies can be seen, see bench/results/prior.md
    a.add_argument('--hidden', type=int, default=LearnConfig.hidden)
    a.add_argument('--seed', type=int, default=0)
    a.add_argument('--out', type=Path, default=assets()/'prior'/'prior')
    a = a.parse_args()
    setup_log()
    torch.set_num_threads(1)
    start, looks = time.time(), (SynthConfig(), V1)
    train = [bare_poses(a.people//2, seed=100 + i, config=c) for i, c in enumerate(looks)]
    gate, held = (bare_poses(n, seed=s) for n, s in ((4000, 200), (3000, 300)))
    em = published_errors(train[0].skeleton)
    prior = fit_prior(train, gate, em, LearnConfig(steps=a.steps, hidden=a.hidden, seed=a.seed), sides_steps=a.sides_steps)
    # strangers' bodies and scores differ from those it knows: it speaks later than its own people would ask
    prior = replace(prior, gate=replace(prior.gate, margin=max(prior.gate.margin, .1), least=1.5))
    bad, kind = corrupt(held, em, seed=1)
    before, after = evaluate(held, bad).stats['AP'], evaluate(held, refine(bad, prior).poses).stats['AP']
    prior.card = dict(poses=f'{sum(map(len, train))} generated people (base and synth-v1 look, seeds 100 and 101), no photograph and nobody real', errors=em.source, gate=f'{len(gate):,} other generated people (seed 200): weights from one half, margin from the other and at least 0.1 (strangers differ from its own people)',
                      heldout=dict(people=len(held), what='generated people (seed 300) corrupted by the same errors, AP before and after', before=round(before, 4), after=round(after, 4)), training=prior.card.get('training'),
                      versions=versions(), licence='MIT', date=time.strftime('%Y-%m-%d'), made_by='make prior', limits='knows generated bodies; on people in unusual attitudes or cut-off pictures it should stay silent; adds no accuracy to keypoints that are right')
    save_prior(prior, a.out); write_atomic(a.out.with_suffix('.md'), card_text(prior.card))
    print(f'{a.out}: AP on held-out generated people {before:.3f} -> {after:.3f}, margin {prior.gate.margin}, {time.time() - start:.0f} s')


if __name__ == '__main__': main()
