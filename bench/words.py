"""The verifier against held-out sentences, by kind; how fast it reads; and how much of the writer's own text it understands, as it is and with left and right exchanged.

    python bench/words.py [--people 300]
"""
import argparse
import json
import re
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

from posellm.app.report import processor
from posellm.core.files import write_atomic
from posellm.data.coco import load_data
from posellm.data.synth import V1, write_synth
from posellm.explain.facts import find_facts
from posellm.explain.grammar import readings
from posellm.explain.meaning import index
from posellm.explain.schema import category, make_fact
from posellm.explain.verify import VERDICTS, verify_sentence
from posellm.explain.writer import write

HERE = Path(__file__).resolve().parent
KINDS = ('free', 'true', 'swapped', 'joint', 'negated', 'wrong', 'mixed', 'number', 'object', 'depth')


def wilson(k, n, z=1.96):
    p, d = k / n, 1 + z * z / n
    m, h = (p + z * z / (2 * n)) / d, z * ((p * (1 - p) + z * z / (4 * n)) / n) ** .5 / d
    return max(0., m - h), min(1., m + h)


def share(k, n): return f'{k/n:.3f} ({wilson(k, n)[0]:.3f} to {wilson(k, n)[1]:.3f})' if n else ''


def held_out():
    d = json.loads((HERE.parent / 'tests' / 'words' / 'heldout.json').read_text())
    by = {p: index([make_fact(category(k), v, m, q) for k, (v, m, q) in x['facts'].items()]) for p, x in d['people'].items()}
    readings.cache_clear()
    t = time.perf_counter()
    got = [(s['kind'], s['label'] == 'supported', verify_sentence(s['text'], by[s['person']]).kept) for s in d['sentences']]
    rate = len(got) / (time.perf_counter() - t)
    lines = ['| sentences | n | true | kept | precision of kept (95 % Wilson) | recall of true (95 % Wilson) |', '|---|---|---|---|---|---|']
    for k in ('all', *KINDS):
        some = [(l, v) for kind, l, v in got if k in ('all', kind)]
        true, kept, both = sum(l for l, _ in some), sum(v for _, v in some), sum(l and v for l, v in some)
        lines.append(f'| {k} | {len(some)} | {true} | {kept} | {share(both, kept)} | {share(both, true)} |')
    return lines, rate


def own_words(people):
    swap = lambda s: re.sub(r'\b(left|right)\b', lambda m: {'left': 'right', 'right': 'left'}[m[1]], s)
    facts, plain, other = find_facts(people, noise=0.), Counter(), Counter()
    for i in range(len(people)):
        f = facts.of(i)
        by = index(f)
        for s in write(f).sentences:
            plain[verify_sentence(s.text, by).verdict] += 1
            if swap(s.text) != s.text: other[verify_sentence(swap(s.text), by).verdict] += 1
    row = lambda n, c: f'| {n} | {sum(c.values())} | ' + ' | '.join(str(c[v]) for v in VERDICTS) + ' |'
    return ['| text of the writer | sentences | ' + ' | '.join(VERDICTS) + ' |', '|---' * (len(VERDICTS) + 2) + '|', row('as it is', plain), row('left and right exchanged', other)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--people', type=int, default=300)
    ap.add_argument('--data', help='a data set of generated people')
    ap.add_argument('--out', default=str(HERE / 'results' / 'words.md'))
    a = ap.parse_args()
    table, rate = held_out()
    folder = a.data or write_synth(tempfile.mkdtemp(), 0, a.people, 0, seed=77, config=V1)
    val = load_data(folder, 'val')
    own = own_words(val[(val.num_keypoints > 3) & ~val.iscrowd][:a.people])
    text = [f'# Words, checked\n\n{date.today()}, {processor()}, one thread, machine shared with other work. `python bench/words.py`.\n',
            'Held-out sentences (`tests/words/heldout.json`) were written before the parser existed, by the same hand that wrote the parser afterwards, and never edited; nothing was tuned on them. *free*: written as a person would, from facts and pictures '
            '(28 people of COCO val2017, 16 generated); the rest by templates from true facts and from falsified ones (exchanged sides, wrong joints, negations, wrong categories, two statements of which one is false, angles in numbers, invented objects, depth).\n',
            *table, f'\n{rate:,.0f} sentences a second.\n', 'The exchanged sentences that are kept are true in both versions ("The right ankle and the left ankle are hidden from view").\n', *own, '']
    old = Path(a.out).read_text() if Path(a.out).is_file() else ''
    tail = old[old.index('## Servers'):] if '## Servers' in old else ''                # kept: written by hand
    write_atomic(a.out, '\n'.join(text) + tail)
    print('\n'.join(text))


if __name__ == '__main__': main()
