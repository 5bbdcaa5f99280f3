"""Make .venv and install the tested set into it: `python tools/setup_env.py` (what `make install` calls).

Only the standard library is used, and the syntax is kept so old that any Python gets as far as the one line which says what is missing.
TORCH=auto|cpu|cuda chooses the torch/torchvision pair, TORCH_INDEX another wheel index, VENV another folder than .venv.
"""
from __future__ import print_function
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

NEED = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, os.environ.get('VENV') or '.venv')
WINDOWS, MAC = os.name == 'nt', sys.platform == 'darwin'
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
WINDOWS_CUDA_INDEX = 'https://download.pytorch.org/whl/cu132'   # the CUDA of the pinned version's wheels on PyPI
INPUTS = ('settings.ini', 'constraints.txt', 'setup.py', 'pyproject.toml', 'tools/setup_env.py')
# measured with pip for the pinned pair and all it needs, Linux x86-64, in GB: (fetched, on disk); the small ones are approximate
SIZES = {'cpu': (0.3, 1.2), 'cuda': (2.6, 5.3), 'pypi': (2.6, 5.3), 'pypi-small': (0.3, 1.2)}
REST = (0.4, 1.3)


def say(text):
    print(text)
    sys.stdout.flush()


def stop(text):
    sys.stderr.write('posellm: ' + text + '\n')
    sys.exit(2)


def clean_env():
    """The environment for pip: nothing that would send packages elsewhere than into .venv."""
    drop = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_PREFIX', '__PYVENV_LAUNCHER__')
    return dict((k, v) for k, v in os.environ.items() if k not in drop)


def run(args, quiet=False, env=None):
    pipe = subprocess.PIPE if quiet else None
    try:
        return subprocess.Popen(args, cwd=ROOT, env=env or clean_env(), stdin=subprocess.DEVNULL, stdout=pipe,
                                stderr=subprocess.STDOUT if quiet else None, universal_newlines=True)
    except OSError as e:
        stop('cannot start %s: %s' % (args[0], e))


def call(args, quiet=False, env=None):
    p = run(args, quiet, env)
    out = p.communicate()[0] or ''
    return p.returncode, out


def venv_python():
    return os.path.join(VENV, 'Scripts' if WINDOWS else 'bin', 'python.exe' if WINDOWS else 'python')


def make_venv():
    """`python -m venv`; where the system has split that module off, virtualenv fetched by pip into a temporary folder."""
    if os.path.exists(venv_python()):
        code, out = call([venv_python(), '-c', 'import sys, pip; print("%d.%d" % sys.version_info[:2])'], quiet=True)
        if code: stop('%s is there but does not start (or has no pip): remove that folder and call again' % VENV)
        version = tuple(int(v) for v in out.split()[-1].split('.'))
        if version < NEED: stop('%s holds Python %s, %s or newer is needed: remove that folder and call again' % (VENV, out.split()[-1], '%d.%d' % NEED))
        return
    say('making %s with %s (Python %s)' % (os.path.relpath(VENV, ROOT), sys.executable, sys.version.split()[0]))
    code, out = call([sys.executable, '-m', 'venv', VENV], quiet=True)
    if code == 0: return
    folder = tempfile.mkdtemp(prefix='posellm-virtualenv-')
    say('this Python has no working venv module; trying virtualenv by pip')
    code, out2 = call([sys.executable, '-m', 'pip', 'install', '-q', '--target', folder, 'virtualenv'], quiet=True)
    if code == 0:
        code, out2 = call([sys.executable, '-m', 'virtualenv', '-q', '--clear', VENV], quiet=True, env=dict(clean_env(), PYTHONPATH=folder))
        if code == 0: return
    shutil.rmtree(VENV, ignore_errors=True)                   # a half-made one would only confuse the next call
    stop('%s can make no environment; install its venv module (Debian, Ubuntu: sudo apt install python%d.%d-venv) or name another '
         'Python: make PYTHON=/path/to/python3.11' % ((sys.executable,) + tuple(sys.version_info[:2])))


def has_nvidia_driver():
    if os.path.exists('/proc/driver/nvidia/version'): return True
    if WINDOWS: return os.path.exists(os.path.join(os.environ.get('SystemRoot', r'C:\Windows'), 'System32', 'nvcuda.dll'))
    try: return subprocess.call(['nvidia-smi', '-L'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError: return False


def pinned(name):
    text = open(os.path.join(ROOT, 'constraints.txt')).read()
    return re.search(r'^%s==(\S+)' % re.escape(name), text, re.M | re.I).group(1)


def index_offers(index, name, version, seconds=5):
    """Does this wheel index answer within a few seconds and list that version? Returns (yes, why not)."""
    from urllib.request import Request, urlopen
    try:
        with urlopen(Request('%s/%s/' % (index, name), headers={'User-Agent': 'posellm-setup'}), timeout=seconds) as r:
            page = r.read().decode('utf8', 'replace')
    except Exception as e: return False, 'cannot be reached (%s)' % (getattr(e, 'reason', None) or e)
    return ('%s-%s' % (name, version)) in page.replace('%2B', '+'), 'does not list %s %s' % (name, version)


def choose_torch(choice):
    """What TORCH=auto|cpu|cuda means on this machine: (kind, wheel index or None for PyPI, notes)."""
    driver, notes = has_nvidia_driver(), []
    if choice == 'auto':
        kind = 'cuda' if driver else 'cpu'
        notes.append('TORCH=auto: %s' % ('an NVIDIA driver is here, taking the CUDA pair' if driver else 'no NVIDIA driver, taking the CPU pair'))
    else: kind = choice
    if MAC: return 'pypi-small', None, notes + ['on macOS the pair from PyPI is the one with CPU and MPS']
    index = os.environ.get('TORCH_INDEX') or (CPU_INDEX if kind == 'cpu' else WINDOWS_CUDA_INDEX if WINDOWS else None)
    if index is None: return kind, None, notes
    ok, why = index_offers(index, 'torch', pinned('torch'))
    if ok: return kind, index, notes
    small = WINDOWS                                           # PyPI's wheel for Windows is the CPU one, for Linux it carries CUDA
    notes.append('%s %s: the default pair from PyPI is taken%s' % (index, why, '' if small else ' (larger, it carries CUDA, and it runs on the CPU too)'))
    return 'pypi-small' if small else 'pypi', None, notes


def installed(names):
    code = 'import json, importlib.metadata as m\ndef v(n):\n    try: return m.version(n)\n    except m.PackageNotFoundError: return None\nprint(json.dumps({n: v(n) for n in %r}))' % (list(names),)
    rc, out = call([venv_python(), '-c', code], quiet=True)
    return json.loads(out.strip().split('\n')[-1]) if rc == 0 else {}


def torch_is_there(choice):
    """An installed pair of the pinned versions is kept, unless TORCH asks for the other kind by name."""
    have, want = installed(['torch', 'torchvision']), {n: pinned(n) for n in ('torch', 'torchvision')}
    if any((have.get(n) or '').split('+')[0] != want[n] for n in want): return False
    if choice == 'cuda': return MAC or '+cpu' not in have['torch']
    if choice == 'cpu' and not (MAC or WINDOWS) and '+cpu' not in have['torch']: return 'larger'
    return True


def pip(*args):
    """pip install; its progress is shown on a terminal, elsewhere only what it says when it fails."""
    quiet = not sys.stdout.isatty()
    code, out = call([venv_python(), '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input'] + list(args), quiet=quiet)
    if code and quiet: sys.stderr.write('\n'.join(out.strip().split('\n')[-30:]) + '\n')
    return code == 0


def need_disk(gb):
    free = shutil.disk_usage(os.path.dirname(VENV)).free / 1e9
    if free < gb: stop('%.1f GB are free where %s goes and about %.1f GB are needed: make room, or set VENV to a folder on another disk' % (free, VENV, gb))


def install_torch(choice):
    there = torch_is_there(choice)
    if there is True: return
    kind, index, notes = choose_torch(choice)
    for n in notes: say(n)
    if there == 'larger' and index is None: return            # the same pair is in place already
    fetch, disk = SIZES[kind]
    pair = ['%s==%s' % (n, pinned(n)) for n in ('torch', 'torchvision')]
    say('to be downloaded (less what pip has in its cache): %s, about %.1f GB (%.1f GB on disk), from %s' % (' '.join(pair), fetch, disk, index or 'PyPI'))
    need_disk(disk + REST[1])
    if index:
        tag = '+' + index.rstrip('/').split('/')[-1]
        if pip('-c', 'constraints.txt', '--extra-index-url', index, *[p + tag for p in pair]): return
        say('that did not work; trying the default pair from PyPI')
    if not pip('-c', 'constraints.txt', *pair):
        stop('torch could not be installed (see pip above); behind a proxy or offline, set PIP_INDEX_URL or PIP_FIND_LINKS, then call again')


def stamp(choice):
    h = hashlib.sha256(('%s %s' % (choice, sys.version_info[:2])).encode())
    for name in INPUTS:
        with open(os.path.join(ROOT, name), 'rb') as f: h.update(f.read().replace(b'\r\n', b'\n'))
    return h.hexdigest()


def main():
    if sys.version_info < NEED:
        stop('Python %d.%d is too old, %d.%d or newer is needed: install one (python.org, pyenv, uv, conda) and call: make PYTHON=/path/to/python3.11'
             % (tuple(sys.version_info[:2]) + NEED))
    choice, mark = (os.environ.get('TORCH') or 'auto').lower(), os.path.join(VENV, 'posellm-installed')
    if choice not in ('auto', 'cpu', 'cuda'): stop('TORCH=%s is not known; it may be auto, cpu or cuda' % choice)
    key = stamp(choice)
    if os.path.exists(mark) and os.path.exists(venv_python()) and open(mark).read().strip() == key: return
    start = time.time()
    make_venv()
    install_torch(choice)
    say('installing posellm and what it needs at the tested versions (constraints.txt), about %.1f GB to download' % REST[0])
    if not pip('-c', 'constraints.txt', '-e', '.[dev]'):
        stop('the installation failed (see pip above); once the cause is gone, call again: what is done is kept')
    with open(mark, 'w') as f: f.write(key + '\n')
    say('installed in %d s' % (time.time() - start))


if __name__ == '__main__': main()
