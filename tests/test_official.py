"""Other people's models: official files of HRNet and SimpleBaseline, ONNX files of the RTMPose family, the hub; from the file to `posellm predict`."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fake_hub import fake_hub
from hypothesis import given, settings
from hypothesis import strategies as st

from posellm.app.cli import call
from posellm.app.estimator import Estimator, people_from_boxes
from posellm.core.errors import PoseError
from posellm.models.hrnet import HRNet
from posellm.models.hub import LICENCES, PUBLISHED, pack
from posellm.models.weights import load_model, named_size, save_model
from posellm.models.zoo import create_model
from posellm.pose.poses import Poses
from posellm.pose.skeleton import get_skeleton
from posellm.refine.fuse import fuse_points
from posellm.refine.maps import fuse_maps
from posellm.refine.members import stack_people
from posellm.stages.ensemble import look, open_member
from posellm.train.predict import predict_poses

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from posellm.models.simcc import SimccModel, open_onnx, write_colour_finder  # noqa: E402


def refused(f, *words):
    with pytest.raises(PoseError) as e: f()
    for w in words: assert w in str(e.value), str(e.value)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A photograph with three coloured squares, its boxes, and an official file of each kind at a small size."""
    d = tmp_path_factory.mktemp('official')
    image = np.zeros((160, 120, 3), np.uint8)
    for c, (x, y) in enumerate(((30, 40), (60, 80), (90, 120))): image[y - 3:y + 4, x - 3:x + 4, c] = 255
    cv2.imwrite(str(d / 'photo.png'), image[..., ::-1])
    (d / 'boxes.json').write_text(json.dumps(dict(images=[dict(id=1, file_name='photo.png', width=120, height=160)], categories=[],
                                                  annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 10, 100, 140])])))
    torch.manual_seed(0)
    torch.save({f'module.{k}': v for k, v in create_model('simplebaseline50', weights=None).state_dict().items()}, d / 'pose_resnet_50_64x64.pth.tar')
    torch.save(create_model('hrnet-w32', weights=None).state_dict(), d / 'pose_hrnet_w32_64x64.pth')
    write_colour_finder(d / 'dw.onnx')
    return d


@pytest.mark.parametrize('name,weights,channels', [('simplebaseline50', 'pose_resnet_50_64x64.pth.tar', 'bgr'), ('hrnet-w32', 'pose_hrnet_w32_64x64.pth', 'rgb')])
def test_predict_with_an_official_file(files, tmp_path, capsys, name, weights, channels):
    code = call(['predict', str(files / 'photo.png'), '--model', name, '--weights', str(files / weights), '--boxes', str(files / 'boxes.json'), '--out', str(tmp_path), '--json'])
    out = json.loads(capsys.readouterr().out)
    assert code == 0 and out['people'] == 1 and name in out['model'] and weights in out['model']
    person = json.loads((tmp_path / 'results.json').read_text())[0]
    assert len(person['keypoints']) == 51 and np.isfinite(person['keypoints']).all()
    spec = Estimator(name, 'whole', weights=files / weights).model.spec
    assert (spec.channels, spec.input_hw, spec.family) == (channels, (64, 64), 'classic')


def test_predict_with_an_onnx_file(files, tmp_path, capsys):
    "Keypoints 0, 1, 2 of this file lie where the picture is red, green, blue: the whole road keeps RGB and gives image pixels."
    code = call(['predict', str(files / 'photo.png'), '--weights', str(files / 'dw.onnx'), '--boxes', str(files / 'boxes.json'), '--out', str(tmp_path), '--json'])
    out = json.loads(capsys.readouterr().out)
    assert code == 0 and 'CPUExecutionProvider' in out['model']
    xy = np.array(json.loads((tmp_path / 'results.json').read_text())[0]['keypoints']).reshape(17, 3)[:, :2]
    # the flip test moves keypoints 1 and 2 to their pair's colour as well, so it is switched off for the places
    found = Estimator(files / 'dw.onnx', [[10, 10, 100, 140]], flip=False)(files / 'photo.png').xy[0]
    assert np.abs(found[:3] - [[30, 40], [60, 80], [90, 120]]).max() < 4 and np.isfinite(xy).all()


def test_an_onnx_file_is_a_member_of_an_ensemble(files):
    "Beside one of our networks: the same people in step, its responses as maps, and fused places where both have an answer."
    people = Poses.from_coco(files / 'boxes.json', skeleton='coco17'); people.images = [dict(im, path=str(files / im['file_name'])) for im in people.images]
    nets = {'dw': open_member(str(files / 'dw.onnx')), 'ours': open_member('posellm-synth-s')}; out, maps, _ = look(nets, people, flip=False)
    s = stack_people(out, maps=list(maps.values())); assert s.names == ('dw', 'ours') and s.on.all() and all(m is not None for m in s.maps)
    assert np.abs(s.xy[0, 0, :3] - [[30, 40], [60, 80], [90, 120]]).max() < 4
    for rule in ('uniform', 'confidence', 'median'): f = fuse_points(s, rule); assert np.isfinite(f.xy).all() and f.xy.shape == (1, 17, 2), rule
    xy, conf = fuse_maps(list(s.maps)).decode(); assert xy.shape == (1, 17, 2) and np.isfinite(xy).all() and (conf > 0).all()


def test_responses_are_maps(files):
    m = SimccModel(files / 'dw.onnx')
    image = cv2.imread(str(files / 'photo.png'))[..., ::-1]
    people = people_from_boxes([[10, 10, 100, 140], [20, 20, 60, 90]], [1, 1], dict(id=1, file_name='x', width=120, height=160), get_skeleton('coco17'))
    opts = dict(flip=False, read=lambda r: image, workers=0) # mirrored, two colours are equally bright
    pred, maps = predict_poses(m, people, return_maps=True, batch=1, **opts)
    xy, conf = maps.decode()
    assert maps.heatmaps.shape == (2, 17, 576 + 768) and maps.heatmaps.dtype == np.float16 and maps.codec.kind == 'simcc'
    assert np.abs(xy - pred.xy).max() < 2 # half precision moves a best bin to its neighbour
    both = predict_poses(m, people, batch=2, **opts)
    assert np.allclose(both.xy, pred.xy)


@settings(max_examples=8, deadline=None)
@given(h=st.integers(2, 6), w=st.integers(2, 6), k=st.sampled_from([17, 26, 133]), n=st.integers(1, 3))
def test_any_size_is_read_from_the_file(tmp_path_factory, h, w, k, n):
    m = SimccModel(write_colour_finder(tmp_path_factory.mktemp('s') / 'm.onnx', (32 * h, 32 * w), k))
    assert m.spec.input_hw == (32 * h, 32 * w) and m(torch.zeros(n, 3, 32 * h, 32 * w)).shape == (n, 17, 64 * (h + w))


def fixed(file, out, batch):
    "The same file exported for one batch size."
    m = onnx.load(str(file))
    for v in (*m.graph.input, *m.graph.output): v.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(m, str(out))
    return out


def test_a_file_for_one_picture_takes_many(files, tmp_path):
    x = torch.randn(3, 3, 384, 288)
    for b in (1, 2): assert torch.equal(SimccModel(fixed(files / 'dw.onnx', tmp_path / f'{b}.onnx', b))(x), SimccModel(files / 'dw.onnx')(x))


def test_wrong_onnx_files(files, tmp_path):
    m = onnx.load(str(files / 'dw.onnx'))
    del m.graph.output[1]
    onnx.save(m, str(tmp_path / 'half.onnx'))
    refused(lambda: SimccModel(tmp_path / 'half.onnx'), 'no SimCC pair', 'half.onnx', 'r bins per pixel')
    m = onnx.load(str(files / 'dw.onnx'))
    m.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(m, str(tmp_path / 'double.onnx'))
    refused(lambda: SimccModel(tmp_path / 'double.onnx'), 'double.onnx')
    whole = (files / 'dw.onnx').read_bytes()
    for n in (0, 1, 10, 100, len(whole) // 2, len(whole) - 3):
        (tmp_path / 'cut.onnx').write_bytes(whole[:n])
        refused(lambda: SimccModel(tmp_path / 'cut.onnx'), 'cut.onnx')
    for content, word in ((b'<!DOCTYPE html>', 'HTML'), (b'version https://git-lfs.github.com/spec/v1', 'lfs'), (b'PK\x03\x04' + b'0' * 99, 'zip'), (bytes(200), 'cut short')):
        (tmp_path / 'x.onnx').write_bytes(content)
        refused(lambda: open_onnx(tmp_path / 'x.onnx'), word)
    refused(lambda: SimccModel(files / 'dw.onnx', input_hw=(256, 192)), 'one size only')
    refused(lambda: SimccModel(write_colour_finder(tmp_path / 'hand.onnx', (64, 64), 21)), '21 keypoints')
    refused(lambda: Estimator(tmp_path / 'none.onnx'), 'none.onnx', 'no such file')
    refused(lambda: Estimator('vitpose-b', weights=files / 'dw.onnx'), 'dw.onnx', 'a network of its own')
    assert 'CPUExecutionProvider' in Estimator('dwpose', 'whole', weights=files / 'dw.onnx').name


def test_wrong_official_files(files, tmp_path):
    whole = (files / 'pose_hrnet_w32_64x64.pth').read_bytes()
    for name, content, word in (('cut.pth', whole[: len(whole) // 3], 'cut short'), ('page.pth', b'<html>quota exceeded</html>', 'HTML'), ('empty.pth', b'', 'empty')):
        (tmp_path / name).write_bytes(content)
        refused(lambda: create_model('hrnet-w32', weights=tmp_path / name), name, word)
    refused(lambda: create_model('hrnet-w48', weights=files / 'pose_hrnet_w32_64x64.pth'), 'another shape')
    refused(lambda: create_model('hrnet-w32', weights=files / 'pose_resnet_50_64x64.pth.tar'), 'missing', 'unexpected')
    refused(lambda: create_model('simplebaseline101', weights=files / 'pose_resnet_50_64x64.pth.tar'), 'missing')


class Evil:
    def __reduce__(self): return os.system, ('touch /tmp/posellm-evil',)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save(dict(HRNet(8, 17, (1, 1, 1), 1).state_dict(), x=Evil()), tmp_path / 'evil.pth')
    refused(lambda: create_model('hrnet-w32', weights=tmp_path / 'evil.pth'), 'evil.pth')
    assert not Path('/tmp/posellm-evil').exists()


@pytest.mark.parametrize('name,hw', [('pose_hrnet_w48_384x288.pth', (384, 288)), ('simcc_256x192-acd4a1ef_20230504.pth', (256, 192)), ('model.pth', None), ('resnet50-19c8e357.pth', None)])
def test_size_in_a_name(name, hw): assert named_size(name) == hw


def test_published_names_are_in_the_registry():
    from posellm.core.registry import entries
    table = entries('weights')
    for name, key in PUBLISHED.items():
        assert key in table and table[key].licence, name
    assert {row[0].split()[0] for row in LICENCES} >= {'Sapiens', 'Sapiens2', 'HRNet', 'SimpleBaseline'}
    assert table['sapiens_1b'].restricted and 'no' == next(r for r in LICENCES if r[0].startswith('Sapiens ('))[2]


# ---- the hub

PUSH_AND_PULL = """
import sys, torch
from posellm.core.errors import PoseError
from posellm.models.hub import from_hub, push_to_hub
from posellm.models.weights import load_model
from posellm.models.zoo import create_model
from posellm.app.estimator import Estimator
print(push_to_hub(sys.argv[1], 'me/pose', licence='mit'))
a, b, x = load_model(sys.argv[1]), load_model('hub:me/pose'), torch.randn(1, 3, 64, 48)
assert torch.equal(a(x), b(x)) and a.spec == b.spec
assert torch.equal(create_model('posellm-s', weights='hub:me/pose').eval()(x), a(x)) and Estimator('hub:me/pose', 'whole').name == 'hub:me/pose'
import os
os.environ['POSELLM_OFFLINE'] = '1'
assert (from_hub('me/pose') / 'model.safetensors').is_file()
del os.environ['POSELLM_OFFLINE']
for f, word in ((lambda: from_hub('me/nothing'), 'could not be fetched'), (lambda: push_to_hub(sys.argv[1], 'pose'), 'OWNER/NAME')):
    try: f()
    except PoseError as e: assert word in str(e), e
    else: raise SystemExit('not refused')
os.environ['HF_TOKEN'] = 'wrong'
try: push_to_hub(sys.argv[1], 'me/pose')
except PoseError as e: assert 'could not be published' in str(e) and 'hf auth login' in str(e), e
else: raise SystemExit('not refused')
"""


def test_push_and_pull(tmp_path):
    "In a process of its own: the hub's library reads its address when it is imported."
    save_model(create_model('posellm-s', weights=None, input_hw=(64, 48)), tmp_path / 'run' / '01_stage1', dict(step=1))
    with fake_hub() as (url, hub):
        env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'POSELLM_')) and 'proxy' not in k.lower()}
        env |= dict(HF_ENDPOINT=url, HF_TOKEN='hf_test', HF_HOME=str(tmp_path / 'home'), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
        r = subprocess.run([sys.executable, '-c', PUSH_AND_PULL, str(tmp_path / 'run')], env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert r.returncode == 0, r.stdout + r.stderr
        assert f'{url}/me/pose/commit/' in r.stdout and sorted(hub.repos['me/pose']) == ['README.md', 'model.json', 'model.safetensors']
        card = hub.repos['me/pose']['README.md'].decode()
    assert 'license: mit' in card and 'Estimator("hub:me/pose")' in card and 'Not measured' in card


def test_what_goes_up_is_whole(tmp_path):
    save_model(create_model('posellm-s', weights=None, input_hw=(64, 48)), tmp_path / 'w')
    pack(tmp_path / 'w', tmp_path / 'p', title='a|b <script>')
    assert '<script>' not in (tmp_path / 'p' / 'README.md').read_text()
    assert load_model(tmp_path / 'p').spec.input_hw == (64, 48)
    (tmp_path / 'w' / 'model.safetensors').write_bytes(b'short')
    refused(lambda: pack(tmp_path / 'w', tmp_path / 'q'), 'bytes')
