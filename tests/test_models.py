"Models as a user meets them: names, sizes, weights on disk, files that are not what they claim."
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from posellm.core.errors import PoseError
from posellm.models.nets import PoseResNet, SkipNet, layer_groups, trunk_parameters
from posellm.models.spec import ModelSpec
from posellm.models.weights import load_model, read_info, save_model
from posellm.models.zoo import create_model, list_models
from posellm.pose.skeleton import get_skeleton, make_skeleton


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return create_model("posellm-s", weights=None, input_hw=(64, 48)).eval()


@pytest.fixture
def saved(small, tmp_path):
    save_model(small, tmp_path / "run" / "01_stage1", dict(ap=0.2))
    return tmp_path / "run"


@settings(max_examples=12, deadline=None)
@given(h=st.integers(8, 40), w=st.integers(8, 40), k=st.integers(1, 20))
def test_maps_have_a_quarter_of_any_size(h, w, k):
    net = SkipNet(k, (8, 8, 8, 8), (1, 1, 1, 1), 8).eval()
    assert net(torch.zeros(1, 3, 4 * h, 4 * w)).shape == (1, k, h, w)


@pytest.mark.parametrize("h,w", [(8, 8), (80, 60), (9, 31), (64, 48)])
def test_resnet_maps_have_a_quarter_of_any_size(h, w):
    with torch.device("meta"): net = PoseResNet(18, 17).eval()
    assert net(torch.zeros(1, 3, 4 * h, 4 * w, device="meta")).shape == (1, 17, h, w)


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds(name):
    with torch.device("meta"): net = create_model(name, weights=None)
    assert net.spec.name == name
    assert net.spec == ModelSpec.from_dict(json.loads(json.dumps(net.spec.to_dict())))
    assert net.spec.codec().family == net.spec.family
    groups = layer_groups(net)
    assert [d for d, _ in groups] == list(range(len(groups)))
    assert sum(len(g) for _, g in groups) == len(list(net.parameters()))
    assert 0 < len(trunk_parameters(net)) < len(list(net.parameters()))


def test_official_simplebaseline_size():
    with torch.device("meta"): net = create_model("simplebaseline50", weights=None)
    assert len(net.state_dict()) == 338
    assert sum(p.numel() for p in net.parameters()) == 33_999_697


def test_small_network_learns_a_dot():
    "Cross-entropy from random weights: a bright dot is found within a few steps."
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    net = create_model("posellm-s", make_skeleton("dot", ["dot"]), (32, 32), weights=None).train()
    opt = torch.optim.AdamW(net.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        at = torch.randint(0, 8, (16, 2), generator=g)
        x = torch.randn(16, 3, 32, 32, generator=g) * 0.1
        for i, (r, c) in enumerate(at.tolist()): x[i, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] += 3
        loss = torch.nn.functional.cross_entropy(net(x).flatten(1), at[:, 0] * 8 + at[:, 1])
        opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[0] == pytest.approx(4.16, abs=0.1) and sum(losses[-3:]) / 3 < 1.5


def test_frozen_trunk_does_not_move(small):
    net = create_model("posellm-s", weights=None, input_hw=(64, 48))
    net.freeze_trunk().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1.0)
    net(torch.randn(4, 3, 64, 48)).square().sum().backward(); opt.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(net.is_head(k) for k in moved)
    net.freeze_trunk(False).train()
    assert net.layer1.training and all(p.requires_grad for p in net.parameters())


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    net = create_model("vit_tiny-simple", weights=None, input_hw=(32, 32)).train()
    x, grads = torch.randn(1, 3, 32, 32), []
    for on in (False, True):
        net.set_checkpointing(on).zero_grad(); net(x).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-8) and grads[0].abs().sum() > 0


def test_save_and_load(small, saved, tmp_path, monkeypatch):
    x = torch.randn(2, 3, 64, 48)
    monkeypatch.setenv("POSELLM_RUNS", str(tmp_path))
    for source in (saved, "run", saved / "01_stage1", saved / "01_stage1" / "model.safetensors"):
        assert torch.equal(load_model(source)(x), small(x))
    assert read_info(saved)["meta"] == dict(ap=0.2)
    assert not list(saved.rglob("*tmp*"))


def error(f, *words):
    with pytest.raises(PoseError) as e: f()
    for w in words: assert w in str(e.value), str(e.value)


def test_wrong_files(saved, tmp_path):
    file = saved / "01_stage1" / "model.safetensors"
    whole = file.read_bytes()
    for content, word in ((whole[: len(whole) // 2], "bytes"), (b"<html>not found</html>", "bytes")):
        file.write_bytes(content); error(lambda: load_model(saved), "model.safetensors", word)
    alone = tmp_path / "alone.safetensors"
    for content, word in ((b"<html>not found</html>", "web page"), (whole[: len(whole) // 2], "cut short"), (b"", "empty"), (b"PK\x03\x04" + bytes(60), "pickle")):
        alone.write_bytes(content); error(lambda: create_model("posellm-s", weights=alone), "alone.safetensors", word)
    error(lambda: create_model("posellm-s", weights=tmp_path / "none.pth"), "none.pth", "no such file")
    error(lambda: load_model(tmp_path), "holds no weights")


def test_pickles_do_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "ran"),)
    torch.save(dict(a=Evil()), tmp_path / "evil.pth")
    error(lambda: create_model("simplebaseline18", weights=tmp_path / "evil.pth"), "run its code", "mkdir")
    assert not (tmp_path / "ran").exists()


def test_wrong_descriptions(saved):
    file = saved / "01_stage1" / "model.json"
    good = json.loads(file.read_text())
    for change, words in ((dict(schema=7), ("schema", "7")), (dict(kind="x"), ("kind",)), (dict(spec=dict(good["spec"], loss="x")), ("loss",)),
                          (dict(spec=dict(good["spec"], inputhw=1)), ("did you mean 'input_hw'",)), (dict(spec=[]), ("spec",)), (dict(spec=dict(good["spec"], input_hw=5)), ("spec",))):
        file.write_text(json.dumps(good | change)); error(lambda: load_model(saved), *words)
    file.write_text("{"); error(lambda: load_model(saved), "not valid JSON", "model.json")
    file.unlink(); error(lambda: load_model(saved), "no description")


def test_other_skeleton_and_other_network(saved):
    error(lambda: create_model("posellm-s", "crowdpose14", weights=saved), "another skeleton", "crowdpose14", "new_head")
    error(lambda: create_model("simplebaseline18", weights=saved), "another network"); error(lambda: create_model("vit_tiny", weights=saved), "another network")
    net = create_model("posellm-s", "crowdpose14", weights=saved, new_head=True)
    assert net.spec.skeleton == get_skeleton("crowdpose14") and net.spec.input_hw == (64, 48)


def test_official_file_with_and_without_prefix(tmp_path):
    src = create_model("simplebaseline18", weights=None, input_hw=(64, 48)).eval()
    for prefix in ("", "module."):
        torch.save({prefix + k: v for k, v in src.state_dict().items()}, tmp_path / "pose.pth")
        net = create_model("simplebaseline18", weights=tmp_path / "pose.pth", input_hw=(64, 48)).eval()
        assert torch.equal(net.final_layer.weight, src.final_layer.weight) and net.spec.channels == "bgr"
    sd = src.state_dict(); sd.pop("deconv_layers.0.weight")
    save_file(sd, tmp_path / "pose.safetensors")
    error(lambda: create_model("simplebaseline18", weights=tmp_path / "pose.safetensors"), "1 missing: deconv_layers.0.weight")


def test_offline_word_comes_at_once(tmp_path):
    code = "from posellm.models.zoo import create_model\ncreate_model('vit_tiny', weights='imagenet')"
    env = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert "PoseError" in out.stderr and "HF_HUB_OFFLINE is set" in out.stderr and "weights=None" in out.stderr


def test_names():
    error(lambda: create_model("posellm-x", weights=None), "did you mean 'posellm-s'")
    error(lambda: create_model("posellm-s"), "no trained weights")
    error(lambda: create_model("posellm-s", weights=None, input_hw=(65, 48)), "multiples of 4", "(68, 48)")


def test_the_presets_weights_stay_with_their_network():
    from posellm.stages.stage1 import stage1_settings
    from posellm.train.hardware import preset
    assert stage1_settings(preset("cpu"))[1] == "posellm-synth-s" and stage1_settings(preset("cpu"), model="posellm-s")[1] == "posellm-synth-s"
    assert stage1_settings(preset("cpu"), model="mobilenetv4")[:2] == ("mobilenetv4", None)
    assert stage1_settings(preset("cpu"), model="mobilenetv4", weights="imagenet")[1] == "imagenet"
