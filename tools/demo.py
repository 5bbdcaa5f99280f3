"""What `make demo` runs: chapters 00, 01 and 06 on generated people, then what came of it in a few lines. Extra arguments go to `posellm run`."""
import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = 'demo'


def number(text): return float(text) if text not in ('', None) else float('nan')


def stage1_rows(table):
    with open(table, newline='', encoding='utf8') as f: return [r for r in csv.DictReader(f) if 'stage1' in r['stage'] or r['stage'] in ('1', '01')]


def cpu_name():
    try: return next(line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration):
        import platform
        return platform.processor() or platform.machine()


def summary(folder):
    """The lines a newcomer should see: AP with its interval for each held-out row of stage 1, and where the report is."""
    out = []
    for r in stage1_rows(folder / 'table.csv'):
        if r['role'] != 'heldout': continue
        out.append(f"stage 1, {r['row']}: AP {number(r['ap']):.3f} [{number(r['ap_lo']):.3f}, {number(r['ap_hi']):.3f}] on {r['n_people']} held-out people "
                   f"in {r['n_images']} images of {r['data']} (OKS .50:.95, {r['boxes']} boxes)")
    return out + [f'processor: {cpu_name()}']


def main():
    code = subprocess.call([sys.executable, '-m', 'posellm.app.cli', 'run', '--gpu', 'cpu', '--data', 'synth', '--name', NAME,
                            '--chapters', '00,01,06', '--resume', *sys.argv[1:]], cwd=ROOT)
    if code: return code
    folder = ROOT / 'runs' / NAME
    print()
    if (folder / 'table.csv').exists(): print('\n'.join(summary(folder)))
    else: print(f'no {folder / "table.csv"} was written')
    scripts = Path(sys.executable).parent
    activate = f'source {scripts / "activate"}' if sys.platform != 'win32' else str(scripts / 'activate')
    print(f'report, to open in a browser: {folder / "report.html"}')
    print(f'to work in this environment:  {activate}')
    return 0


if __name__ == '__main__': sys.exit(main())
