"""Write constraints.txt: the versions installed in this environment of everything settings.ini asks for, with all that those need.

Run it with .venv's Python after `make test` has passed on a new set of versions.
"""
import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# The exact set that was tested (Linux x86-64, Python 3.11), written by tools/write_constraints.py. A constraint asks for nothing by itself.\n"


def key(name): return re.sub(r'[-_.]+', '-', name).lower()


def closure(wanted):
    """{name: version} of the requirements and, over all extras they name, of what they require in turn."""
    found, todo = {}, [Requirement(w) for w in wanted]
    seen = set()
    while todo:
        r = todo.pop()
        mark = (key(r.name), tuple(sorted(r.extras)))
        if mark in seen: continue
        seen.add(mark)
        try: d = distribution(r.name)
        except PackageNotFoundError:
            print(f'not installed here, left out: {r}')
            continue
        found[key(r.name)] = d.version.split('+')[0]
        for text in d.requires or []:
            sub = Requirement(text)
            if sub.marker is None or any(sub.marker.evaluate({'extra': e}) for e in ('', *r.extras)): todo.append(sub)
    return found


def main():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT / 'settings.ini', encoding='utf8')
    names = [n for k in ('requirements', 'dev_requirements', 'docs_requirements', 'models_requirements', 'formats_requirements') for n in cfg['DEFAULT'][k].split()]
    found = closure(names)
    (ROOT / 'constraints.txt').write_text(HEAD + ''.join(f'{n}=={v}\n' for n, v in sorted(found.items())), encoding='utf8')
    print(f'constraints.txt: {len(found)} packages')


if __name__ == '__main__': main()
