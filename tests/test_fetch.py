"""Downloads against a server that drops, lies, refuses and runs in circles: what gets its name is the file, whole and right, or nothing is."""
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from hypothesis import given, strategies as st

from misbehaving import Answer, Server
from posellm.core import fetch as F
from posellm.core.errors import PoseError
from posellm.core.fetch import fetch, fetch_small
from posellm.core.obtain import obtain
from posellm.core.registry import make_entry, read_lock
from posellm.core.unpack import Limits, name_fault, unpack

BLOB = hashlib.shake_256(b'posellm').digest(300_000)
SHA = hashlib.sha256(BLOB).hexdigest()
QUICK = dict(pause=.001, timeout=5)


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY', 'POSELLM_OFFLINE', 'HF_HUB_OFFLINE', 'POSELLM_MIRROR'): monkeypatch.delenv(k, raising=False)
    patient = F._patient
    monkeypatch.setattr(F, '_patient', lambda step, progress, stop, retries, pause: patient(step, progress, stop, retries, pause if pause < .5 else .001))     # the verbs' own patience
    monkeypatch.setattr(os, 'fsync', lambda fd: None)        # what it guards against, a power cut, is not tested; on a busy disk it takes seconds
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('POSELLM_DATA', str(tmp_path/'data'))


def left(folder): return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def one(tmp_path, answer, nbytes=0, sha='', **k):
    with Server({'/f.bin': answer}) as s:
        got = fetch(s.url('/f.bin'), tmp_path/'f.bin', nbytes, sha, **QUICK | k)
        return got, s.asked


# servers

@pytest.mark.parametrize('answer', [
    Answer(BLOB), Answer(BLOB, ranges=False), Answer(BLOB, cuts=[0, 1, 5, 70_000, 30_000]), Answer(BLOB, ranges=False, cuts=[10, 200_000]), Answer(BLOB, codes=[503, 429, 502]),
    Answer(BLOB, chunked=True, ranges=False), Answer(BLOB, late=True), Answer([BLOB[:-1] + b'!', BLOB, BLOB, BLOB, BLOB]), Answer(BLOB, tag=''),
], ids='plain no_ranges drops drops_no_ranges busy chunked whole_after_promise spoilt_once no_tag'.split())
def test_awkward_servers_give_the_file(tmp_path, answer):
    got, _ = one(tmp_path, answer, len(BLOB), SHA, piece=1 << 17)
    assert (tmp_path/'f.bin').read_bytes() == BLOB and got['sha256'] == SHA and left(tmp_path) == ['f.bin']


@pytest.mark.parametrize('answer, words', [
    (Answer(BLOB, codes=[404]*99), '404'), (Answer(BLOB, codes=[403]*99), '403'), (Answer(BLOB, codes=[503]*99), '503'), (Answer(to='/f.bin'), 'redirects without end'), (Answer(to='/chain/0'), 'redirects without end'),
    (Answer(to='file:///etc/passwd'), 'not followed'), (Answer(b'<!DOCTYPE html><html>sign in', kind='text/html'), 'web page'), (Answer(b'<html>quota', kind='application/zip'), 'web page'),
    (Answer(BLOB[:-5]), 'instead of 300000'), (Answer(BLOB + b'x', ranges=False), 'instead of 300000'), (Answer(BLOB[::-1]), 'checksum'), (Answer(BLOB, lie='bytes 7-9/300000'), 'other bytes'),
    (Answer(BLOB, cuts=[0]*99), 'in a row'), (Answer(b''), 'empty'), (Answer(BLOB, headers={'Content-Encoding': 'gzip'}), 'encoded'),
], ids='gone forbidden always_busy loop endless_chain to_file page page_as_zip short long wrong_bytes wrong_range always_drops empty encoded'.split())
def test_bad_servers_give_a_sentence_and_no_file(tmp_path, answer, words):
    known = dict(nbytes=len(BLOB), sha=SHA) if isinstance(answer.body, bytes) and len(answer.body) > 1000 else {}
    with pytest.raises(PoseError) as e: one(tmp_path, answer, retries=3, **known)
    assert words in str(e.value) and 'by other means' in str(e.value)
    assert [n for n in left(tmp_path) if not n.endswith(('.part', '.part.json'))] == []      # a part that may be gone on with is all that stays


def test_a_file_of_unknown_length_is_not_taken_on_trust(tmp_path):
    with pytest.raises(PoseError, match='does not say how long'): one(tmp_path, Answer(BLOB, length=False, ranges=False))
    assert one(tmp_path, Answer(BLOB, length=False, ranges=False), sha=SHA)[0]['bytes'] == len(BLOB)    # the checksum judges


def test_mirrors(tmp_path):
    with Server({'/page': Answer(b'<html>', kind='text/html'), '/cut': Answer(BLOB[:100]), '/good': Answer(BLOB)}) as s:
        got = fetch([s.url('/page'), s.url('/cut'), s.url('/none'), s.url('/good')], tmp_path/'f.bin', len(BLOB), SHA, **QUICK)
        assert got['url'] == s.url('/good')


def test_a_mirror_goes_on_where_another_stopped(tmp_path):
    with Server({'/a': Answer(BLOB, cuts=[120_000] + [0]*50), '/b': Answer(BLOB, tag='"other"')}) as s:
        got = fetch([s.url('/a'), s.url('/b')], tmp_path/'f.bin', len(BLOB), SHA, retries=2, connections=1, **QUICK)
        assert got['resumed'] == 120_000 and (tmp_path/'f.bin').read_bytes() == BLOB


def test_own_mirror_and_proxy_variables(tmp_path, monkeypatch):
    with Server({'/f.bin': Answer(BLOB), '/m/g.bin': Answer(BLOB)}) as s:
        monkeypatch.setenv('POSELLM_MIRROR', s.url('/m'))
        assert fetch('http://nowhere.invalid/g.bin', tmp_path/'g.bin', **QUICK)['url'].startswith(s.url('/m'))
        monkeypatch.delenv('POSELLM_MIRROR')
        monkeypatch.setenv('http_proxy', s.url(''))
        monkeypatch.setenv('no_proxy', '')
        fetch('http://nowhere.invalid/f.bin', tmp_path/'f.bin', len(BLOB), SHA, **QUICK)
        assert any(p == 'http://nowhere.invalid/f.bin' for p, _ in s.asked)


def test_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv('POSELLM_OFFLINE', '1')
    with pytest.raises(PoseError, match='switched off'): fetch('http://127.0.0.1:9/f', tmp_path/'f.bin')


def test_a_file_that_changes_on_the_server_is_begun_anew(tmp_path):
    new = BLOB[::-1]
    with Server({'/f.bin': Answer(BLOB, cuts=[100_000] + [0]*50)}) as s:
        with pytest.raises(PoseError): fetch(s.url('/f.bin'), tmp_path/'f.bin', retries=2, connections=1, **QUICK)
        assert (tmp_path/'f.bin.part').exists()
        s.paths['/f.bin'] = Answer(new, tag='"2"')
        got = fetch(s.url('/f.bin'), tmp_path/'f.bin', **QUICK)
    assert got['resumed'] == 0 and (tmp_path/'f.bin').read_bytes() == new


# interruptions

@given(st.lists(st.integers(0, 60_000), max_size=6), st.integers(1, 4), st.sampled_from([4096, 50_001, 300_000]))
def test_any_cut_any_crew(tmp_path_factory, cuts, crew, piece):
    folder = tmp_path_factory.mktemp('cut')
    one(folder, Answer(BLOB, cuts=cuts), len(BLOB), SHA, connections=crew, piece=piece, retries=9)
    assert (folder/'f.bin').read_bytes() == BLOB and left(folder) == ['f.bin']


@given(st.data(), st.sampled_from([10_000, 77_777, 300_000]))
def test_taken_up_from_any_byte(tmp_path_factory, data, piece):
    "Whatever the note says is there is there; more bytes than that may be, or holes."
    folder, p = tmp_path_factory.mktemp('any'), None
    p = F.Part(folder/'f.bin')
    p.start(len(BLOB), SHA, piece)
    buf = bytearray(len(BLOB))
    for i in range(len(p.have)):
        a, b = p.gap(i)
        p.have[i] = data.draw(st.integers(0, b - a))
        more = data.draw(st.integers(p.have[i], b - a))
        buf[a:a + more] = BLOB[a:a + more]
    p.file.write_bytes(buf)
    p.save()
    if data.draw(st.booleans()):                              # the note itself may be cut
        raw = p.state.read_bytes()
        p.state.write_bytes(raw[:data.draw(st.integers(0, len(raw) - 1))])
    one(folder, Answer(BLOB), len(BLOB), SHA)
    assert (folder/'f.bin').read_bytes() == BLOB and left(folder) == ['f.bin']


def test_interrupted_by_the_user(tmp_path, monkeypatch):
    calls = []
    def bar(*a):
        def show(n):
            calls.append(n)
            if n > 50_000: raise KeyboardInterrupt
        return show
    with Server({'/f.bin': Answer(BLOB, cuts=[60_000, 0, 0])}) as s:
        with monkeypatch.context() as m:
            m.setattr(F, '_bar', bar)
            with pytest.raises(KeyboardInterrupt): fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, connections=1, **QUICK | dict(pause=.3))
        got = fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, **QUICK)
    assert got['resumed'] >= 50_000 and (tmp_path/'f.bin').read_bytes() == BLOB and left(tmp_path) == ['f.bin']


@pytest.mark.skipif(os.name == 'nt', reason='no SIGKILL')
def test_killed_and_run_again(tmp_path):
    code = 'import sys; from posellm.core.fetch import fetch; fetch(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], pause=.5, piece=4096, connections=2)'
    with Server({'/f.bin': Answer(BLOB, cuts=[4096, 1000, 0, 0, 0, 2000, 0, 0, 0, 0, 0])}) as s:
        run = subprocess.Popen([sys.executable, '-c', code, s.url('/f.bin'), str(tmp_path/'f.bin'), str(len(BLOB)), SHA], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while len(s.asked) < 4 and time.monotonic() < until: time.sleep(.01)
        run.send_signal(signal.SIGKILL)
        run.wait(10)
        assert 'f.bin' not in left(tmp_path) and any(n.endswith('.lock~') for n in left(tmp_path))
        fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, **QUICK | dict(retries=9))
    assert (tmp_path/'f.bin').read_bytes() == BLOB and left(tmp_path) == ['f.bin']


def test_two_at_once_are_kept_apart(tmp_path):
    with F.only_one(tmp_path/'f.bin'), pytest.raises(PoseError, match='another process'): fetch('http://127.0.0.1:9/f.bin', tmp_path/'f.bin')


# the disk

def test_full_disk_before_and_during(tmp_path, monkeypatch):
    from collections import namedtuple
    free, usage = [10 << 20], namedtuple('usage', 'total used free')
    monkeypatch.setattr(F.shutil, 'disk_usage', lambda p: usage(1, 1, free[0]))
    with pytest.raises(PoseError, match='no space left'): one(tmp_path, Answer(BLOB), len(BLOB), SHA)
    free[0] = 1 << 40
    clock = [0.]
    def tick(): clock[0] += 3; free[0] = 1 << 20; return clock[0]
    with Server({'/f.bin': Answer(BLOB, cuts=[1000, 0, 0])}) as s:
        with monkeypatch.context() as m:
            m.setattr(F.time, 'monotonic', tick)
            with pytest.raises(PoseError, match='nearly full'): fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, connections=1, pause=.3, timeout=5)
        assert (tmp_path/'f.bin.part.json').exists()
        free[0] = 1 << 40
        fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, **QUICK)
    assert (tmp_path/'f.bin').read_bytes() == BLOB


# what is here

def test_good_copies_stay_and_damaged_ones_go(tmp_path):
    with Server({'/f.bin': Answer(BLOB)}) as s:
        (tmp_path/'f.bin').write_bytes(BLOB)
        assert fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, **QUICK)['url'] == '' and not s.asked
        (tmp_path/'f.bin').write_bytes(BLOB[:-1] + b'?')
        assert fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, **QUICK)['url'] and (tmp_path/'f.bin').read_bytes() == BLOB
        assert fetch(s.url('/f.bin'), tmp_path/'f.bin', len(BLOB), SHA, force=True, **QUICK)['url']


def test_first_sight_is_held_against_later_copies(tmp_path):
    with Server({'/w.bin': Answer(BLOB)}) as s:
        e = make_entry(dict(name='toy', kind='weights', file='w.bin', urls=[s.url('/w.bin')], licence='MIT'))
        assert obtain(e, **QUICK)['checked'] == 'first sight'
        assert read_lock()['files']['pretrained/toy/w.bin']['sha256'] == SHA
        e.path.unlink()
        assert obtain(e, **QUICK)['checked'] == 'seen before'
        e.path.unlink()
        s.paths['/w.bin'] = Answer(BLOB[::-1])
        with pytest.raises(PoseError, match='checksum'): obtain(e, **QUICK)
        assert obtain(e, force=True, **QUICK)['checked'] == 'first sight'      # the user says that the change is meant


def test_restricted_files_are_asked_for_once(tmp_path):
    with Server({'/w.bin': Answer(BLOB)}) as s:
        e = make_entry(dict(name='nc', kind='weights', file='w.bin', urls=[s.url('/w.bin')], licence='CC BY-NC 4.0', restricted='non-commercial use only'))
        with pytest.raises(PoseError, match='non-commercial'): obtain(e, **QUICK)
        assert not s.asked
        obtain(e, agree=True, **QUICK)
        obtain(e, force=True, **QUICK)


def test_from_a_hub(tmp_path, monkeypatch):
    pytest.importorskip('huggingface_hub')
    head = {'X-Repo-Commit': '0'*40, 'X-Linked-Size': str(len(BLOB))}
    with Server({'/o/r/resolve/main/w.bin': Answer(BLOB, headers=head, tag=f'"{SHA}"')}) as s:
        monkeypatch.setenv('HF_ENDPOINT', s.url(''))
        e = make_entry(dict(name='toyhub', kind='weights', file='w.bin', hub='o/r', bytes=len(BLOB), sha256=SHA))
        got = obtain(e)
        assert got['path'] == e.path and got['checked'] == 'published' and e.path.read_bytes() == BLOB
        n = len(s.asked)
        assert obtain(e)['url'] == '' and len(s.asked) == n


def test_small_files(tmp_path):
    with Server({'/a.jpg': Answer(b'photo', cuts=[2, 0], codes=[503]), '/b.jpg': Answer(b'<html>')}) as s:
        assert fetch_small([s.url('/none'), s.url('/a.jpg')], tmp_path/'a.jpg', pause=.001) == 5
        with pytest.raises(PoseError, match='no photo'): fetch_small(s.url('/b.jpg'), tmp_path/'b.jpg', lambda d: 'no photo', pause=.001)
    assert left(tmp_path) == ['a.jpg']


# archives

def zipped(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', kind) as z:
        for name, data in members: z.writestr(name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name), data, kind)
    return path


def link(name, target):
    i = zipfile.ZipInfo(name)
    i.create_system, i.external_attr = 3, 0o120777 << 16
    return i, target


@pytest.mark.parametrize('members, words', [
    ([('../evil', b'x')], 'climbs'), ([('a/../../evil', b'x')], 'climbs'), ([('/evil', b'x')], 'absolute'), ([('C:/evil', b'x')], 'drive'), ([('..\\evil', b'x')], 'backslash|climbs'), ([link('l', '/etc')], 'link'),
    ([link('d', '..'), ('d/evil', b'x')], 'link'), ([('a', b'x'), ('A', b'y')], 'one name'), ([('a', b'x'), ('a/b', b'y')], 'folder is needed'), ([('z', bytes(9 << 20))], 'grows'), ([('con.txt', b'')], 'reserves'),
    ([(f'{i}', b'') for i in range(60)], 'too many'), ([('big', b'12345678901')], 'too much'),
], ids=lambda x: x if isinstance(x, str) else '')
def test_hostile_zips_write_nothing(tmp_path, members, words):
    file = zipped(tmp_path/'h.zip', [('fine.txt', b'ok'), *members])
    with pytest.raises(PoseError, match=words): unpack(file, tmp_path/'out'/'in', limits=Limits(50, 12 if words == 'too much' else 1 << 30))
    assert left(tmp_path) == ['h.zip']


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_hostile_tars_write_nothing(tmp_path, kind):
    with tarfile.open(tmp_path/'h.tar.gz', 'w:gz') as t:
        m = tarfile.TarInfo('x')
        m.type, m.linkname = kind, '../../etc/passwd'
        t.addfile(m)
    with pytest.raises(PoseError, match='link or a device'): unpack(tmp_path/'h.tar.gz', tmp_path/'out')
    assert left(tmp_path) == ['h.tar.gz']


def test_a_link_in_the_way_is_not_followed(tmp_path):
    (tmp_path/'outside').mkdir()
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'d').symlink_to(tmp_path/'outside')
    with pytest.raises(PoseError, match='leads out'): unpack(zipped(tmp_path/'z.zip', [('d/f', b'x')]), tmp_path/'out')
    assert left(tmp_path/'outside') == []


def test_a_zip_that_lies_about_its_contents(tmp_path):
    raw = zipped(tmp_path/'z.zip', [('a.txt', b'A'*5000)]).read_bytes()
    for old, new in ((5000).to_bytes(4, 'little'), (50).to_bytes(4, 'little')), ((5000).to_bytes(4, 'little'), (50_000).to_bytes(4, 'little')):
        (tmp_path/'l.zip').write_bytes(raw.replace(old, new))
        with pytest.raises(PoseError): unpack(tmp_path/'l.zip', tmp_path/'out')
        assert left(tmp_path/'out') == []


@given(st.data())
def test_cut_or_changed_archives(tmp_path_factory, data):
    "A damaged archive gives an error, or files that are right; never a wrong one and never a traceback."
    folder = tmp_path_factory.mktemp('zip')
    content = {f'v/{i}.jpg': BLOB[i*500:i*500 + 400 + i] for i in range(5)}
    raw = bytearray(zipped(folder/'z.zip', content.items()).read_bytes())
    if data.draw(st.booleans()): raw = raw[:data.draw(st.integers(0, len(raw) - 1))]
    else: raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder/'z.zip').write_bytes(raw)
    try: unpack(folder/'z.zip', folder/'out')
    except PoseError: pass
    for f in (folder/'out').rglob('*.jpg'): assert f.read_bytes() in content.values()


@pytest.mark.parametrize('after', [0, 1, 37, 63])
def test_unpacking_interrupted_and_run_again(tmp_path, monkeypatch, after):
    content, left_over = {f'v/{i}.jpg': BLOB[i*100:i*100 + 90 + i] for i in range(64)}, [after]
    file = zipped(tmp_path/'z.zip', content.items())
    def replace(a, b):
        if not left_over[0]: raise KeyboardInterrupt
        left_over[0] -= 1
        os.rename(a, b)
    with monkeypatch.context() as m:
        m.setattr('posellm.core.unpack.os.replace', replace)
        with pytest.raises(KeyboardInterrupt): unpack(file, tmp_path/'out')
    assert len(left(tmp_path/'out'/'v')) == after
    unpack(file, tmp_path/'out')
    assert {f'v/{n}': (tmp_path/'out'/'v'/n).read_bytes() for n in left(tmp_path/'out'/'v')} == content


@given(st.text(max_size=30))
def test_names_that_pass_stay_inside(name):
    if not name_fault(name): assert os.path.normpath(os.path.join('/base', name)).startswith('/base/')


# the verbs

def call(argv, capsys):
    from posellm.app.cli import call as run
    code = run(argv)
    out = capsys.readouterr()
    return code, json.loads(out.out) if '--json' in argv else out.out + out.err


def jpeg(w, h):
    import cv2
    import numpy as np
    return cv2.imencode('.jpg', np.full((h, w, 3), (w*7 % 255, h, 99), np.uint8))[1].tobytes()


@pytest.fixture
def coco(monkeypatch):
    "The registry with small archives on a server of ours."
    from posellm.core import registry
    buf = lambda members: (lambda b: (zipped(b, members), b.getvalue())[1])(io.BytesIO())
    images = [dict(id=i, file_name=f'{i:012d}.jpg', width=20 + i, height=30) for i in range(40)]
    val = buf([(f'val2017/{i:012d}.jpg', jpeg(16, 16 + i)) for i in range(3)])
    info = buf([('annotations/image_info_unlabeled2017.json', json.dumps(dict(images=images)))])
    with Server({'/val2017.zip': Answer(val, cuts=[50, 0, 9]), '/info.zip': Answer(info), **{f'/u/{r["file_name"]}': Answer(jpeg(r['width'], 30), cuts=[7]*(r['id'] % 3)) for r in images}}) as s:
        new = [dict(name='coco-val2017', kind='data', file='val2017.zip', urls=[s.url('/val2017.zip')], bytes=len(val), sha256=hashlib.sha256(val).hexdigest(), unpack=dict(to='coco/images', only='val2017/*.jpg', count=3)),
               dict(name='coco-unlabeled-info', kind='data', file='info.zip', urls=[s.url('/info.zip')], unpack=dict(to='coco', only='annotations/image_info_unlabeled2017.json', count=1)),
               dict(name='coco-images-unlabeled', kind='images', urls=[s.url('/u')]), dict(name='coco-images-val', kind='images', urls=[s.url('/none'), s.url('/u')])]
        table = registry.entries() | {d['name']: make_entry(d) for d in new}
        monkeypatch.setattr(registry, '_load', lambda file, stamp: table)
        yield s


def test_download_coco_val(coco, capsys, tmp_path):
    code, plan = call(['download', 'coco-val', '--dry-run', '--json'], capsys)
    assert code == 0 and plan['rows'][0]['state'] == 'fetch' and not coco.asked and not (tmp_path/'data').exists()
    code, got = call(['download', 'coco-val', '--json'], capsys)
    files = sorted((tmp_path/'data'/'coco'/'images'/'val2017').iterdir())
    assert code == 0 and got['items'][0]['checked'] == 'published' and len(files) == 3 and not (tmp_path/'data'/'downloads'/'val2017.zip').exists()
    n, before = len(coco.asked), [f.read_bytes() for f in files]
    assert call(['download', 'coco-val', '--json'], capsys)[1]['items'][0]['state'] == 'here' and len(coco.asked) == n
    files[1].write_bytes(b'broken')
    call(['download', 'coco-val', '--force', '--json'], capsys)
    assert [f.read_bytes() for f in files] == before


def test_download_unlabeled(coco, capsys, tmp_path):
    code, got = call(['download', 'coco-unlabeled', '-n', '6', '--json'], capsys)
    folder = tmp_path/'data'/'external'/'coco_unlabeled'
    six = left(folder)
    assert code == 0 and len(six) == 6 and got['items'][0]['fetched'] == 6
    call(['download', 'coco-unlabeled', '-n', '9', '--json'], capsys)
    assert set(six) < set(left(folder)) and len(left(folder)) == 9
    assert json.loads((tmp_path/'data'/'external'/'coco_unlabeled.json').read_text())['info']['seed'] == 0
    code, got = call(['download', 'coco-unlabeled', '-n', '41', '--json'], capsys)
    assert code == 2 and 'at most 40' in got['allowed']
    code, got = call(['download', 'coco-val', '--ids', '1,2', '--json'], capsys)
    assert code == 0 and left(tmp_path/'data'/'coco'/'images'/'val2017') == ['000000000001.jpg', '000000000002.jpg']


def test_connections_are_those_that_were_asked_for(coco, capsys, monkeypatch):
    from posellm.data import download as D
    seen = []; pool = D.ThreadPoolExecutor; monkeypatch.setattr(D, 'ThreadPoolExecutor', lambda n: (seen.append(n), pool(n))[1])
    for argv in (['coco-unlabeled', '-n', '3'], ['coco-val', '--ids', '1'], ['coco-unlabeled', '--ids', '7']): call(['download', *argv, '--connections', '2', '--json'], capsys)
    call(['download', 'coco-val', '--ids', '2', '--json'], capsys)
    assert seen == [2, 2, 2, 8]


def test_the_download_ends_with_the_command_that_uses_it(coco, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('POSELLM_DATA', str(tmp_path/'my data'))
    code, text = call(['download', 'coco-unlabeled', '-n', '2'], capsys)
    assert code == 0 and text.strip().endswith(f"posellm run --data DATA -p unlabeled '{tmp_path/'my data'/'external'/'coco_unlabeled'}' -p boxes auto")


def test_failures_are_counted_as_they_were(tmp_path):
    "Of 60 photographs 2 are here, 5 come and the rest fails: who was never asked for is not called here."
    from posellm.data.download import get_photos
    records = [dict(file_name=f'{i:012d}.jpg') for i in range(60)]; data = jpeg(16, 16)
    for r in records[:2]: (tmp_path/r['file_name']).write_bytes(data)
    with Server({f'/{r["file_name"]}': Answer(data) for r in records[:7]}) as s, pytest.raises(PoseError) as e: get_photos(records, [s.url('')], tmp_path, connections=1, **QUICK)
    assert str(e.value).count('21 of 26 photographs that were asked for could not be fetched; of 60 in all, 7 are here, 32 were not asked for') == 1 and len(left(tmp_path)) == 7


def test_a_plan_promises_nothing_that_fetching_would_refuse(capsys):
    for argv, words in ((['coco-val', '--ids', '139,abc'], "not an image id; found 'abc'"), (['coco-unlabeled', '-n', '200000000'], 'at most 123403')):
        code, text = call(['download', *argv, '--dry-run'], capsys); assert code == 2 and words in text, text
    code, text = call(['download', 'papers', '--dry-run'], capsys)
    assert code == 0 and 'in all at least 0 B to fetch; of 18 files the size is not published' in text and 'while unpacking' not in text, text[-200:]


@pytest.mark.parametrize('argv, words', [(['download', 'cocoo'], "did you mean 'coco'"), (['download', 'weights'], 'which weights'), (['download', 'weights', 'vitpose'], 'did you mean'), (['download', 'weights', 'sapiens_1b'], '--accept'),
                                         (['download', 'coco-val', '--ids', 'x'], 'not an image id'), (['download', 'coco-val', '--ids', '²'], 'not an image id'), (['download', 'coco-val', '--ids', '9'*5000], 'not an image id'), (['download', 'papers', 'nope'], 'unknown')])
def test_download_says_what_is_wrong(argv, words, capsys, monkeypatch):
    monkeypatch.setenv('POSELLM_OFFLINE', '1')
    code, text = call(argv, capsys)
    assert code == 2 and words in text
