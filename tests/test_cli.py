"""The command line as a user meets it: in processes of its own, in a small project with quick chapters."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARAMS = 'gpu: str = "tiny"  # preset\ndata: str = "synth"\nrun: str = "notebook"\nseed: int = 0\nresume: bool = False\nforce: bool = False\n'
LEAVE = 'from pathlib import Path\nimport os\nd = Path(os.environ["POSELLM_RUNS"])/run/%r\nd.mkdir(parents=True, exist_ok=True)\n(d/"done.txt").write_text(repr((seed, resume, force)))'


def chapter(folder, name, *cells, params=PARAMS):
    code = lambda i, s, **meta: dict(cell_type='code', id=f'cell{i}', metadata=meta, source=s, outputs=[], execution_count=None)
    nb = dict(cells=[code(0, params, tags=['parameters']), *(code(i + 1, s) for i, s in enumerate(cells))], nbformat=4, nbformat_minor=5,
              metadata=dict(kernelspec=dict(name='python3', language='python', display_name='python3')))
    (folder / f'{name}.ipynb').write_text(json.dumps(nb))


@pytest.fixture
def project(tmp_path):
    """A root with three chapters: two that work and, between them in number, one that fails."""
    nbs = tmp_path / 'nbs'
    nbs.mkdir()
    chapter(nbs, '00_data', 'import sys\nprint("to the log")\nprint("shown", file=sys.stderr)\nprint(sys.executable)', LEAVE % '00_data')
    chapter(nbs, '01_stage1', 'x = lr', LEAVE % '01_stage1', params=PARAMS + 'lr: float = 1e-3\n')
    chapter(nbs, '02_bad', 'a = 1', 'b = a\nraise ValueError("the learning rate is <odd>")')
    chapter(nbs, '06_eval', LEAVE % '06_eval')
    return tmp_path


def environment(project, **more):
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'POSELLM_DEBUG')}
    return dict(env, POSELLM_ROOT=str(project), POSELLM_RUNS=str(project / 'runs'), **more)


def posellm(project, *args, **more):
    return subprocess.run([sys.executable, '-m', 'posellm.app.cli', *map(str, args)], capture_output=True, text=True, cwd=project,
                          env=environment(project, **more), stdin=subprocess.DEVNULL, timeout=120)


def test_help_is_quick_and_light(project):
    t = time.time()
    r = posellm(project, '--help')
    assert r.returncode == 0 and 'run' in r.stdout and time.time() - t < 5
    code = 'import sys, posellm, posellm.app.cli; print(sorted({"torch", "matplotlib", "cv2", "pycocotools", "papermill", "numpy"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


@pytest.mark.parametrize('args, more, code', [(['convert', '--formats'], {}, 0), (['convert', '--formats'], dict(PYTHONUNBUFFERED='1'), 0), (['--help'], {}, 0), (['eval', 'nowhere.json', '--json'], {}, 2)])
def test_a_reader_who_leaves_early_is_no_fault(project, args, more, code):
    "As in `posellm convert --formats | true`: nothing is said, the exit code is the verb's."
    r, w = os.pipe(); os.close(r)
    try: p = subprocess.run([sys.executable, '-m', 'posellm.app.cli', *args], stdout=w, stderr=subprocess.PIPE, text=True, cwd=project, env=environment(project, **more), stdin=subprocess.DEVNULL, timeout=120)
    finally: os.close(w)
    assert p.returncode == code and ('Broken' not in p.stderr if code else p.stderr == ''), p.stderr


@pytest.mark.parametrize('verb', ['run', 'check', 'eval', 'predict'])
def test_every_verb_has_help_with_an_example_and_json(project, verb):
    r = posellm(project, verb, '--help')
    assert r.returncode == 0 and 'Example' in r.stdout and '--json' in r.stdout, r.stdout + r.stderr


def test_a_run_leaves_notebooks_and_says_what_it_does(project):
    "A foreign python3 kernel specification in the way is not used."
    spec = project / 'jupyter' / 'kernels' / 'python3'
    spec.mkdir(parents=True)
    (spec / 'kernel.json').write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='other', language='python')))
    r = posellm(project, 'run', '--gpu', 'tiny', '--data', 'synth', '--name', 'demo', '--chapters', '00,06', '-p', 'seed', '7', '--json', JUPYTER_PATH=str(project / 'jupyter'))
    assert r.returncode == 0, r.stderr
    got = json.loads(r.stdout)
    assert [c['chapter'] for c in got['chapters']] == ['00_data', '06_eval'] and got['chapters'][0]['parameters']['seed'] == 7
    run = project / 'runs' / 'demo'
    assert (run / '06_eval' / 'done.txt').read_text() == '(7, False, False)'
    assert (run / 'notebooks' / '00_data.ipynb').exists() and not (run / 'notebooks' / '01_stage1.ipynb').exists()
    log = (run / 'log.txt').read_text()
    assert 'to the log' in log and sys.executable in log
    assert 'shown' in r.stderr and 'to the log' not in r.stderr and 'WARNING' not in r.stderr, r.stderr
    assert '[1/2] 00_data' in r.stderr and '[2/2] 06_eval done' in r.stderr
    again = posellm(project, 'run', '--name', 'demo', '--chapters', '00')
    assert again.returncode == 2 and '--resume' in again.stderr and '--force' in again.stderr
    resumed = posellm(project, 'run', '--name', 'demo', '--chapters', '06', '--resume')
    assert resumed.returncode == 0 and (run / '06_eval' / 'done.txt').read_text() == '(7, True, False)', resumed.stderr  # with the settings that it had
    other = posellm(project, 'run', '--name', 'demo', '--chapters', '01,06', '--resume', '-p', 'seed', '8')
    assert other.returncode == 0 and [(run / c / 'done.txt').read_text() for c in ('01_stage1', '06_eval')] == ['(8, True, False)'] * 2, other.stderr


def test_the_first_failing_chapter_ends_the_run(project):
    r = posellm(project, 'run', '--name', 'x', '--chapters', '02,06')
    assert r.returncode == 3, r.stderr
    for part in ('02_bad failed', 'in cell 4', 'raise ValueError', 'ValueError: the learning rate is <odd>', 'notebooks/02_bad.ipynb', 'log.txt'): assert part in r.stderr
    assert 'Traceback' not in r.stderr and not (project / 'runs' / 'x' / '06_eval').exists()


def test_a_kernel_that_dies_is_a_failed_chapter(project):
    chapter(project / 'nbs', '02_bad', 'import os\nos._exit(9)')
    r = posellm(project, 'run', '--name', 'x', '--chapters', '02', '--json')
    assert r.returncode == 3 and 'memory' in json.loads(r.stdout)['error'] and 'Traceback' not in r.stderr


@pytest.mark.parametrize('args, words', [
    (['--name', 'x', '-p', 'sede', '1'], ['unknown parameter', "'sede'", "did you mean 'seed'"]),
    (['--name', 'x', '-p', 'seed', 'one'], ['seed', "'one'", 'allowed int']),
    (['--name', 'x', '--chapters', '00', '-p', 'lr', '0.1'], ['unknown parameter', "'lr'"]),
    (['--name', 'x', '--chapters', '00,07'], ['unknown chapter', "'07'", '06_eval']),
    (['--name', '../x'], ['run name', 'letters, digits']),
    (['--name', 'x', '--data', './nowhere'], ['data', 'no such file or folder']),
    (['--name', 'x', '--config', 'none.yaml'], ['none.yaml', 'no such file']),
    (['--name', 'x', '--resume', '--force'], ['exclude each other']),
    ([], ['--name']),
    (['--nmae', 'x'], ['--nmae']),
])
def test_mistakes_stop_before_the_first_kernel(project, args, words):
    for extra in ([], ['--json']):
        r = posellm(project, 'run', *args, *extra)
        assert r.returncode == 2 and all(w in r.stderr for w in words) and 'Traceback' not in r.stderr, r.stderr
        assert (json.loads(r.stdout)['exit_code'] == 2) if extra else r.stdout == ''
    assert not (project / 'runs').exists()


def test_a_configuration_is_checked_and_arguments_win(project):
    (project / 'c.yaml').write_text('name: a\nchapters: "00,01"\nlr: 1e-2\nseed: 3\n')
    got = json.loads(posellm(project, 'run', '--config', 'c.yaml', '--name', 'b', '-p', 'seed=4', '--dry-run', '--json').stdout)
    assert got['name'] == 'b' and [c['parameters'].get('lr') for c in got['chapters']] == [None, .01] and got['chapters'][0]['parameters']['seed'] == 4
    (project / 'c.yaml').write_text('name: a\nchaptres: "00"\n')
    r = posellm(project, 'run', '--config', 'c.yaml')
    assert r.returncode == 2 and 'c.yaml' in r.stderr and "did you mean 'chapters'" in r.stderr, r.stderr


def test_example_configurations_fit_the_chapters(monkeypatch):
    from posellm.app.pipeline import make_plan
    monkeypatch.setenv('POSELLM_ROOT', str(ROOT))
    files = sorted((ROOT / 'configs').glob('*.yaml'))
    assert files
    for file in files: assert make_plan(config=file, name='never-run').steps, file.name


def test_without_notebooks_it_says_that_it_needs_the_clone(tmp_path):
    r = posellm(tmp_path, 'run', '--name', 'x')
    assert r.returncode == 2 and 'clone' in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_an_interrupted_run_leaves_no_kernel(project):
    chapter(project / 'nbs', '02_bad', 'import os\nprint("pid", os.getpid(), flush=True)', 'import time\ntime.sleep(60)')
    p = subprocess.Popen([sys.executable, '-m', 'posellm.app.cli', 'run', '--name', 'x', '--chapters', '02'], cwd=project, env=environment(project),
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), # a shell's background job is born deaf to Ctrl-C
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, end = project / 'runs' / 'x' / 'log.txt', time.time() + 60
    while not (log.exists() and 'pid ' in log.read_text()) and time.time() < end: time.sleep(.1)
    kernel = int(log.read_text().split('pid ')[1].split()[0])
    time.sleep(.5)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err, err
    for _ in range(100):
        try: os.kill(kernel, 0)
        except ProcessLookupError: return
        time.sleep(.1)
    raise AssertionError('the kernel is still running')


def test_a_mistake_of_ours_has_a_log_and_no_traceback(project):
    code = ('import sys, posellm.app.cli as c, posellm.app.pipeline as p\n'
            'def broken(*a, **k): raise KeyError("inner")\n'
            'p.run_chapters = broken\nsys.exit(c.call(["run", "--name", "x"]))')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment(project))
    assert r.returncode == 70 and 'Traceback' not in r.stderr
    log = Path(r.stderr.split('details are in ')[1].split(';')[0])
    assert 'KeyError' in log.read_text()
    log.unlink()
    debug = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment(project, POSELLM_DEBUG='1'))
    assert 'Traceback' in debug.stderr


# ---- check, eval, predict

NAMES = ('nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist '
         'left_hip right_hip left_knee right_knee left_ankle right_ankle').split()


def person(i, image, shift=0.):
    xy = [(40 + 9 * (4 - j % 5) + 30 * (i % 3) + shift, 30 + 9 * j + shift) for j in range(17)]
    return dict(id=i, image_id=image, category_id=1, iscrowd=0, bbox=[30 + 30 * (i % 3), 25, 70, 165], area=7000., num_keypoints=17, keypoints=[v for x, y in xy for v in (x, y, 2)])


@pytest.fixture
def truth(tmp_path):
    d = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=200, height=200) for i in (1, 2, 3)], annotations=[person(i, (i - 1) % 3 + 1) for i in range(1, 7)],
             categories=[dict(id=1, name='person', keypoints=NAMES, skeleton=[])])
    (tmp_path / 'truth.json').write_text(json.dumps(d))
    for name, shift in (('good', 1), ('poor', 9)):
        rows = [dict(image_id=a['image_id'], category_id=1, keypoints=person(a['id'], 1, shift)['keypoints'], score=.9 - a['id'] / 100) for a in d['annotations']]
        (tmp_path / f'{name}.json').write_text(json.dumps(rows))
    return tmp_path


def test_eval_of_files_says_what_each_number_is_of(truth):
    r = posellm(truth, 'eval', 'truth.json', 'good.json', '--resamples', 50)
    assert r.returncode == 0 and 'OKS .50:.95, 6 people, 3 images' in r.stdout and 'interval' in r.stdout, r.stdout + r.stderr
    got = json.loads(posellm(truth, 'eval', 'truth.json', 'poor.json', 'good.json', '--resamples', 50, '--json').stdout)['results']
    assert got[1]['AP'] > got[0]['AP'] and got[1]['verdict'] in ('better', 'not shown') and got[1]['ap_lo'] <= got[1]['AP'] <= got[1]['ap_hi']


def test_check_has_exit_codes_for_scripts(truth):
    assert posellm(truth, 'check', 'truth.json', '--no-images').returncode == 0
    d = json.loads((truth / 'truth.json').read_text())
    d['annotations'][2]['keypoints'] = d['annotations'][2]['keypoints'][:-1]
    (truth / 'bad.json').write_text(json.dumps(d))
    r = posellm(truth, 'check', 'bad.json', '--no-images', '--json', '--html', 'page.html')
    got = json.loads(r.stdout)
    assert r.returncode == 1 and got['exit_code'] == 1 and any('50 values' in e for f in got['findings'] for e in f['examples'])
    assert '50 values' in (truth / 'page.html').read_text()
    assert posellm(truth, 'check', 'nowhere').returncode == 2
    ok = posellm(truth, 'check', 'truth.json', '--no-images', '--results', 'good.json')
    assert ok.returncode == 0 and '6 people in 3 of 3 images' in ok.stdout, ok.stdout + ok.stderr


@pytest.mark.parametrize('args, words', [
    ('eval truth.json', ['TRUTH RESULTS']),
    ('eval truth.json good.json --limit 3', ['--limit', 'for --weights']),
    ('eval truth.json truth.json', ['truth.json', 'not a COCO results file', 'do: the truth comes first']),
    ('eval truth.json nowhere.json', ['nowhere.json', 'no such file']),
    ('eval truth.json cut.json', ['cut.json', 'line 1', 'not valid JSON']),
    ('eval truth.json alien.json', ['alien.json', '3 of 6 results are for images', 'image_id', '77']),
    ('check truth.json --no-images --results cut.json', ['cut.json', 'line 1']),
    ('predict nowhere.jpg --out x', ['nowhere.jpg', 'no such image']),
    ('predict', ['SOURCE']),
])
def test_mistakes_with_files(truth, args, words):
    (truth / 'cut.json').write_text((truth / 'good.json').read_text()[:100])
    rows = json.loads((truth / 'good.json').read_text())
    for row in rows[:3]: row['image_id'] = 77
    (truth / 'alien.json').write_text(json.dumps(rows))
    for extra in ([], ['--json']):
        r = posellm(truth, *args.split(), *extra)
        assert r.returncode == 2 and 'Traceback' not in r.stderr and all(w in r.stderr for w in words), r.stderr
        assert not extra or json.loads(r.stdout)['exit_code'] == 2


@pytest.mark.parametrize('args, words', [
    ('eval good.json truth.json', ['good.json', 'this is a results file', 'do: the truth comes first']),
    ('eval truth.json good.json --limit -3', ['--limit']),
    ('eval truth.json five.json', ['five.json', 'result 1', 'found \'5 keypoints\'', 'allowed the 17 of coco17']),
    ('eval truth.json bare.json', ['bare.json', 'result 2: keypoints', 'a result has no keypoints']),
    ('eval truth.json nan.json', ['nan.json', 'result 3', 'y of keypoint 2', 'found nan', 'allowed finite', 'do: ']),
    ('refine bare.json --out x.json', ['bare.json', 'result 2: keypoints']),
    ('refine null.json --out x.json', ['null.json', 'not a COCO results file']),
    ('explain null.json --images .', ['null.json', 'not a COCO results file']),
    ('fuse none.json none.json --out x.json', ['none.json', 'nobody to fuse']),
    ('fuse none.json none.json --truth truth.json --out x.json', ['none.json', 'nobody to fuse']),
    ('fuse good.json poor.json --rule auto --out x.json', ['--rule', 'give --truth']),
    ('fuse good.json poor.json --rule mops --truth truth.json --out x.json', ['unknown rule', 'auto, first']),
    ('explain good.json --images . --truth truth.json --llm http://127.0.0.1:9/v1', ['--llm-model: which model']),
    ('explain good.json --images . --truth truth.json --llm http://127.0.0.1:9/v1 --llm-model m --llm-most 1', ['--llm-most: ', 'prices']),
    ('explain good.json --images . --truth truth.json --llm http://127.0.0.1:9/v1 --llm-model m --llm-price -1,2', ['--llm-price: ']),
    ('predict pic.png --stage 02_ssl --out x', ['stage', '--weights']),
])
def test_mistakes_inside_files_and_between_options(truth, args, words, monkeypatch, capsys):
    from posellm.app.cli import call
    rows = json.loads((truth / 'good.json').read_text()); kp = rows[2]['keypoints']
    for name, made in (('five', [{**r, 'keypoints': r['keypoints'][:15]} for r in rows]), ('bare', [rows[0], {**rows[1], 'keypoints': None}]), ('nan', [*rows[:2], {**rows[2], 'keypoints': [*kp[:4], float('nan'), *kp[5:]]}]), ('null', None), ('none', [])):
        (truth / f'{name}.json').write_text(json.dumps(made))
    (truth / 'pic.png').write_bytes(b'')
    for i in (1, 2, 3): (truth / f'{i}.jpg').write_bytes(b'')
    monkeypatch.chdir(truth); code = call(args.split()); said = capsys.readouterr().err
    assert code == 2 and not (truth / 'x.json').exists() and all(w in said for w in words) and 'maps' not in said, said


def test_settings_that_were_refused_are_not_remembered(project):
    """`--resume` with another setting is refused; the next `--resume` goes on with what the run was begun with."""
    chapter(project / 'nbs', '01_stage1', "from pathlib import Path\nfrom posellm.core.errors import PoseError\nf = Path('lr.txt'); begun = f.read_text() if f.exists() else str(lr); f.write_text(begun)\n"
            "if str(lr) != begun: raise PoseError('the run was begun with another setting', field='lr', found=lr, allowed=begun)", params=PARAMS + 'lr: float = 0.1\n')
    go = lambda *more: posellm(project, 'run', '--name', 'x', '--chapters', '01', *more)
    assert go().returncode == 0; assert 'begun with another setting' in go('--resume', '-p', 'lr', '0.5').stderr
    last = go('--resume'); assert last.returncode == 0, last.stderr
