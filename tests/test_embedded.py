"""The weights that come with the package: small, offline, of use at once, and described."""
import re

import pytest
import torch

from posellm.core.paths import assets
from posellm.data.coco import load_data
from posellm.data.synth import write_synth
from posellm.metrics.ap import evaluate
from posellm.models.weights import find_weights, read_info
from posellm.models.zoo import create_model
from posellm.train.predict import predict_poses

NAME = 'posellm-synth-s'
FILE = assets() / 'weights' / f'{NAME}.safetensors'


@pytest.fixture(autouse=True)
def offline(monkeypatch): monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def test_small_and_described():
    info = read_info(FILE)
    assert FILE.stat().st_size < 12e6 and 2e6 <= info['params'] <= 6e6 and info['meta']['step'] > 0
    card = FILE.with_suffix('.md').read_text(encoding='utf8')
    assert 'synth-v1 val' in card and '**0.' in card and f"{info['params']:,} parameters" in card


def test_assets_name_no_place_on_the_machine_they_were_made_on():
    files = [f for f in assets().rglob('*') if f.suffix in ('.json', '.md', '.html', '.txt')]; assert len(files) > 10
    for f in files: assert not (hit := re.search(r'"[^"]*/(?:work|home|root|tmp|Users|mnt)/[^"]*"', f.read_text(encoding='utf8'))), (f, hit[0][:200])


def test_found_by_name_wherever_weights_are_asked_for():
    net = create_model(NAME)
    assert find_weights(NAME) == FILE and net.spec.input_hw == tuple(read_info(FILE)['spec']['input_hw']) and all(p.dtype == torch.float32 for p in net.parameters())
    other = create_model('posellm-s', weights=NAME)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))


def test_of_use_at_once(tmp_path):
    "On people that it never saw it is far from what chance gives; random weights get nothing."
    val = load_data(write_synth(tmp_path, 0, 40, 0, seed=5), 'val')
    who = val[val.num_keypoints > 0]
    ap = {name: evaluate(val, predict_poses(create_model('posellm-s', input_hw=create_model(NAME).spec.input_hw, weights=w), who)).stats['AP'] for name, w in (('embedded', NAME), ('random', None))}
    assert ap['embedded'] > .25 > .01 >= ap['random'], ap
