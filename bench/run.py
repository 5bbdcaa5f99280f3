"""Run the measurements: `python bench/run.py [NAME...]` runs every script of bench (or those whose name contains NAME).

Each script measures something of ours and a peer in the same process, prints lines for people and, as its last line, one JSON object
{measure: {"ours": number, "peer": number or null, "unit": str, "peer_name": str or null, ...}}. The runner adds the ratio, the date and the machine,
and keeps all of it in bench/results/<script>.json, newest first. A script whose docstring names a page of its own (bench/results/NAME.md) takes hours or needs data, and is called by hand.
"""
import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEEP = 20


def cpu_name():
    try: return next(line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def gpu_name():
    try: return subprocess.run(['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'], capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired): return None


def versions(names=('posellm', 'torch', 'torchvision', 'numpy', 'opencv-python-headless')):
    out = {'python': platform.python_version()}
    for n in names:
        try: out[n] = version(n)
        except PackageNotFoundError: out[n] = None
    return out


def machine(): return dict(cpu=cpu_name(), cores=os.cpu_count(), gpu=gpu_name(), system=platform.platform(terse=True), versions=versions())


def with_ratios(measures):
    """Adds ours/peer to each measure that has both."""
    return {k: {**m, 'ratio': round(m['ours'] / m['peer'], 4)} if isinstance(m, dict) and m.get('peer') and m.get('ours') is not None else m for k, m in measures.items()}


def keep(script, measures, seconds):
    """Puts the newest measurement in front of the earlier ones in results/<script>.json."""
    file = HERE / 'results' / f'{script.stem}.json'
    file.parent.mkdir(exist_ok=True)
    old = json.loads(file.read_text(encoding='utf8')) if file.exists() else []
    entry = dict(date=time.strftime('%Y-%m-%d'), seconds=round(seconds, 1), machine=machine(), measures=measures)
    tmp = file.with_suffix('.tmp~')
    tmp.write_text(json.dumps([entry, *old][:KEEP], indent=1) + '\n', encoding='utf8')
    tmp.replace(file)
    return file


def run(script):
    print(f'== {script.stem}', flush=True)
    t = time.time()
    p = subprocess.Popen([sys.executable, str(script)], cwd=HERE.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in p.stdout:
        lines.append(line.rstrip('\n'))
        if not line.startswith('{'): print(line, end='', flush=True)
    if p.wait(): return print(f'   FAILED, exit code {p.returncode}') or False
    try: measures = with_ratios(json.loads(lines[-1]))
    except (IndexError, ValueError): return print('   FAILED: its last line is not a JSON object') or False
    for name, m in measures.items():
        if isinstance(m, dict) and 'ratio' in m: print(f"   {name}: {m['ours']:.4g} {m.get('unit', '')}, {m.get('peer_name') or 'peer'} {m['peer']:.4g}, ratio {m['ratio']:.3g}")
    print(f'   kept in {keep(script, measures, time.time() - t).relative_to(HERE.parent)}')
    return True


def own_page(script): return 'bench/results/' in (ast.get_docstring(ast.parse(script.read_text(encoding='utf8'))) or '')


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); ask.add_argument('names', nargs='*', metavar='NAME')
    names = ask.parse_args().names
    scripts = [s for s in sorted(HERE.glob('*.py')) if s.name != 'run.py' and not own_page(s) and not s.name.startswith('_') and (not names or any(a in s.stem for a in names))]
    if not scripts: sys.exit(f'no measurement in bench {"matches " + " ".join(names) if names else "is here yet"}')
    failed = [s.stem for s in scripts if not run(s)]
    if failed: sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__': main()
