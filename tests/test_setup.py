"""check-setup: what it says of machines that we do not have, on consoles that know only ASCII, and as a page."""
import json
import os
import subprocess
import sys

import pytest

from posellm.app import setup
from posellm.app.cli import call
from posellm.train.hardware import Machine

GTX = Machine('cuda', 'NVIDIA GeForce GTX 1650', 4., False, 8)
T4 = Machine('cuda', 'Tesla T4', 15., False, 4)
A100 = Machine('cuda', 'NVIDIA A100-SXM4-40GB', 40., True, 16)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv('POSELLM_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('POSELLM_RUNS', str(tmp_path/'runs'))


@pytest.mark.parametrize('m, nvidia, cuda, states, words', [
    (GTX, 'GTX', '13.0', 'ok ok note', 'emulation does not count'), (A100, 'A100', '13.0', 'ok ok ok', 'in hardware'), (Machine('cpu', cores=2), '', None, 'note ok note', 'precision fp32'),
    (Machine('cpu', cores=2), 'RTX 4060, 580', None, 'note mend note', 'download.pytorch.org/whl/cu'), (Machine('cpu', cores=2), 'RTX 4060, 470', '13.0', 'note mend note', 'driver is too old'),
    (Machine('mps', 'Apple', cores=8), '', None, 'ok ok note', 'Apple GPU'),
], ids='gtx1650 a100 cpu torch_without_cuda old_driver mac'.split())
def test_cards(m, nvidia, cuda, states, words):
    rows = setup.check_card(m, nvidia, cuda, '2.15')
    assert ' '.join(r['state'] for r in rows) == states and words in str(rows)


def test_t4_does_not_get_bf16():
    name, table, _ = setup.settings_table(T4)
    row = next(r for r in table if r['parameter'] == 'precision')
    assert (name, row['original'], row['adjusted']) == ('t4', 'bf16', 'fp16') and 'T4' in row['reason']


def test_disk_by_route(monkeypatch):
    monkeypatch.setattr(setup, '_free', lambda p: (10*setup.GB, 1))
    assert [r['state'] for r in setup.check_disk()] == ['ok', 'ok', 'note', 'note']
    assert [r['state'] for r in setup.check_disk(here=40*setup.GB)] == ['ok', 'ok', 'ok', 'note']
    monkeypatch.setattr(setup, '_free', lambda p: (1, 1))
    assert setup.check_disk()[0]['state'] == 'mend'


def test_counts_of_data(tmp_path):
    d = tmp_path/'data'/'coco'/'val2017'                      # the other usual place
    d.mkdir(parents=True)
    for i in range(3): (d/f'{i}.jpg').write_bytes(b'x')
    row = next(r for r in setup.check_data() if 'val' in r['what'])
    assert row['found'] == '3 of 5,000 files' and row['remedy'] == 'posellm download coco-val'


def test_the_verb(tmp_path, capsys):
    code = call(['check-setup', '--out', str(tmp_path/'READY.md'), '--json'])
    got = json.loads(capsys.readouterr().out)
    page = (tmp_path/'READY.md').read_text(encoding='utf8')
    assert code == (0 if got['ready'] else 1) and {'machine', 'rows', 'settings', 'next', 'preset'} <= set(got)
    assert '| Parameter | Original | Adjusted | Reason for this machine |' in page and got['next'] in page and page.count('- [') == len(got['rows'])


def test_two_opencvs_are_not_ready(monkeypatch, capsys):
    found = setup.look()
    bad = setup.check_opencv({'opencv-python': '4.10', 'opencv-python-headless': '4.11'})
    monkeypatch.setattr(setup, 'check_opencv', lambda: bad)
    assert call(['check-setup']) == 1
    text = capsys.readouterr().out
    assert '[MEND] OpenCV: 2 packages' in text and f"next: {bad['remedy']}" in text and found['preset'] in text


@pytest.mark.parametrize('encoding', ['ascii', 'cp437'])
def test_on_narrow_consoles(encoding, tmp_path):
    env = dict(os.environ, PYTHONIOENCODING=f'{encoding}:strict', POSELLM_OFFLINE='1')
    code = 'import sys; from posellm.app.cli import call; sys.exit(call(sys.argv[1:]))'
    for argv in (['check-setup'], ['download', 'coco', '--dry-run'], ['download', 'papers', 'coco'])[slice(None) if encoding == 'ascii' else slice(1)]:
        r = subprocess.run([sys.executable, '-c', code, *argv], capture_output=True, env=env)
        assert b'Traceback' not in r.stderr and r.returncode == (2 if 'papers' in argv else 0), r.stderr.decode()[-500:]
