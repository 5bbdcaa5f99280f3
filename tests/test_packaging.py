"""The package outside the clone: built as a wheel, installed in an environment of its own, used from another folder."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def outside(**more):
    """The environment of somebody who has no clone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('POSELLM_') and k not in ('IN_TEST', 'PYTHONPATH', 'VIRTUAL_ENV')}
    return dict(env, HF_HUB_OFFLINE='1', **more)


def run(*args, cwd, check=True, **more):
    r = subprocess.run([str(a) for a in args], cwd=cwd, env=outside(**more), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or r.returncode == 0, f'{args}\n{r.stdout}\n{r.stderr}'
    return r


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the tree."""
    tmp = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT / 'posellm', tmp / 'src' / 'posellm', ignore=shutil.ignore_patterns('__pycache__', '*.tmp~'))
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        if (ROOT / name).exists(): shutil.copy(ROOT / name, tmp / 'src')
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', tmp, '.', cwd=tmp / 'src')
    return next(tmp.glob('posellm-*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel; what posellm needs is lent by this environment, less its link to the clone."""
    env = tmp_path_factory.mktemp('env') / 'env'
    run(sys.executable, '-m', 'venv', '--without-pip', env, cwd=env.parent)
    bin = env / ('Scripts' if os.name == 'nt' else 'bin')
    python = bin / ('python.exe' if os.name == 'nt' else 'python')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel, cwd=env.parent)
    mine = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=env.parent).stdout.strip())
    lent = {str(Path(p).resolve()) for p in sys.path if p.endswith('site-packages')}
    (mine / 'lent.pth').write_text('\n'.join(sorted(lent)) + '\n')    # a path named in a .pth file has its own .pth files ignored
    return bin


def test_the_wheel_holds_every_module_and_asset(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    want = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'posellm').rglob('*') if p.is_file() and '__pycache__' not in p.parts and not p.name.endswith('~')}
    assert want <= inside, f'missing in the wheel: {sorted(want - inside)}'
    strange = {n for n in inside if not n.startswith('posellm')}
    assert not strange, f'too much in the wheel: {sorted(strange)}'


def test_the_command_works_outside_the_clone(installed, tmp_path):
    assert 'Commands' in run(installed / 'posellm', '--help', cwd=tmp_path).stdout
    code = 'import posellm; from posellm.pose.skeleton import get_skeleton; print(posellm.__file__); assert get_skeleton("coco17").K == 17'
    file = run(installed / 'python', '-c', code, cwd=tmp_path).stdout.strip()
    assert str(ROOT) not in file, f'the clone was imported: {file}'
    r = run(installed / 'posellm', 'run', '--name', 'x', cwd=tmp_path, check=False)
    assert r.returncode == 2 and 'clone' in r.stderr and 'Traceback' not in r.stderr


def test_predict_works_outside_the_clone(installed, tmp_path):
    pytest.importorskip('posellm.app.estimator')
    make = ('import numpy as np, cv2\nfrom posellm.models.zoo import create_model\nfrom posellm.models.weights import save_model\n'
            'save_model(create_model("posellm-s", weights=None), "weights", {})\n'
            'cv2.imwrite("photo.jpg", (np.random.default_rng(0).random((240, 160, 3)) * 255).astype("uint8"))')
    run(installed / 'python', '-c', make, cwd=tmp_path)
    r = run(installed / 'posellm', 'predict', 'photo.jpg', '--weights', 'weights', '--out', 'out', cwd=tmp_path, TORCH_HOME=str(tmp_path), POSELLM_DATA=str(tmp_path))
    assert '1 person in 1 image' in r.stdout and 'one person assumed' in r.stdout + r.stderr
    assert {p.name for p in (tmp_path / 'out').iterdir()} >= {'results.json', 'people.json', 'photo_pose.jpg'}


def test_import_is_light():
    "`import posellm` is quick: no torch, no pictures, no evaluation, no network."
    code = ('import sys, time\nt = time.perf_counter()\nimport posellm\ns = time.perf_counter() - t\n'
            'bad = {"torch", "matplotlib", "cv2", "pycocotools", "numba", "timm", "requests"} & set(sys.modules)\nprint(round(s, 3), sorted(bad))\nsys.exit(bool(bad) or s > 1)')
    r = run(sys.executable, '-c', code, cwd=ROOT, check=False)
    assert r.returncode == 0, r.stdout + r.stderr


@pytest.mark.parametrize('package', ['core.run', 'pose.poses', 'pose.geometry', 'metrics.ap'])
def test_numpy_parts_do_without_torch(package):
    pytest.importorskip(f'posellm.{package}')
    r = run(sys.executable, '-c', f'import sys, posellm.{package}; print("torch" in sys.modules)', cwd=ROOT)
    assert r.stdout.strip() == 'False'


def test_lazy_names_at_the_top_exist():
    import posellm
    for name in posellm.__all__: assert getattr(posellm, name) is not None
    with pytest.raises(AttributeError, match='offers'): posellm.no_such_name


@pytest.mark.parametrize('version', ['2.7.18', '3.6.15', '3.8.18', '3.10.13'])
def test_an_old_python_gets_one_clear_line(version):
    python = Path.home() / '.pyenv' / 'versions' / version / 'bin' / 'python'
    if not python.exists(): pytest.skip(f'no Python {version} here to try it with')
    r = run(python, 'tools/setup_env.py', cwd=ROOT, check=False)
    assert r.returncode == 2 and len(r.stderr.strip().split('\n')) == 1 and 'too old' in r.stderr and 'PYTHON=' in r.stderr, r.stderr
