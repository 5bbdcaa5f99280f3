"""What `make demo` runs: all chapters on generated people, then what came of it in a few lines. Extra arguments go to `posellm run`."""
import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = 'demo'


def number(text): return float(text) if text not in ('', None) else float('nan')


def last_rows(table):
    """Of every stage, its last row on held-out people."""
    with open(table, newline='', encoding='utf8') as f: rows = [r for r in csv.DictReader(f) if r['role'] == 'heldout']
    return list({r['stage']: r for r in rows}.values())


def cpu_name():
    try: return next(line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration):
        import platform
        return platform.processor() or platform.machine()


def summary(folder):
    """The lines a newcomer should see: AP with its interval for each stage, and the machine."""
    out = []
    for r in last_rows(folder / 'table.csv'):
        out.append(f"{r['stage']:22} {r['row']:18} AP {number(r['ap']):.3f} [{number(r['ap_lo']):.3f}, {number(r['ap_hi']):.3f}] on {r['n_people']} held-out people "
                   f"in {r['n_images']} images of {r['data']} (OKS .50:.95, {r['boxes']} boxes)")
    return out + [f'processor: {cpu_name()}']


def main():
    code = subprocess.call([sys.executable, '-m', 'posellm.app.cli', 'run', '--gpu', 'cpu', '--data', 'synth', '--name', NAME, '--resume', *sys.argv[1:]], cwd=ROOT)
    if code: return code
    folder = ROOT / 'runs' / NAME
    print()
    if (folder / 'table.csv').exists(): print('\n'.join(summary(folder)))
    else: print(f'no {folder / "table.csv"} was written')
    scripts = Path(sys.executable).parent
    activate = f'source {scripts / "activate"}' if sys.platform != 'win32' else str(scripts / 'activate')
    print(f'report, to open in a browser:  {folder / "report.html"}')
    gallery = folder / '05_postprocess_llm' / 'gallery' / 'gallery.html'
    if gallery.exists(): print(f'gallery of people in words:    {gallery}')
    print(f'to work in this environment:   {activate}')
    return 0


if __name__ == '__main__': sys.exit(main())
