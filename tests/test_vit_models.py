"Sapiens, Sapiens2 and ViTPose: files of the official structure, made in miniature, load strictly; wrong ones are named; networks equal those of transformers."
import collections
import os
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from posellm.core.errors import PoseError
from posellm.models.archive import archive_kind, convert_archive, read_archive
from posellm.models.nets import layer_groups, no_decay
from posellm.models.sapiens import SIZES, Sapiens, check_table
from posellm.models.sapiens2 import Sapiens2
from posellm.models.spec import ModelSpec
from posellm.models.vit import grid_of, resize_table, sincos_table
from posellm.models.vitpose import ViTPose
from posellm.models.weights import load_model, load_weights, read_tensors, save_model
from posellm.models.zoo import create_model, entry, make_spec
from posellm.pose.skeleton import make_skeleton

HW = (64, 48)


def with_spec(net, name, hw=HW):
    e = entry(name)
    net.spec = make_spec(e, "coco17", hw)
    return net.eval()


def mini_sapiens(hw=HW, dim=32, layers=2, padding=2):
    torch.manual_seed(0)
    return with_spec(Sapiens((dim, layers, 4), 17, hw, padding, ((16, 16), (16, 16))), "sapiens-0.3b", hw)


def mini_vitpose(hw=HW, head="classic"):
    torch.manual_seed(0)
    net = with_spec(ViTPose((32, 2, 4, 0.1), 17, hw, head), "vitpose-b", hw)
    for k, v in net.named_buffers():  # statistics that are not those of a fresh network
        if v.dtype.is_floating_point: v.add_(torch.rand(v.shape))
    return net


def mini_sapiens2():
    torch.manual_seed(0)
    net = with_spec(Sapiens2((32, 3, 4), 17, widths=((24, 16), (16, 16, 8)), ends=1), "sapiens2-0.1b")
    for p in net.parameters(): torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 1.0, 0.2)
    return net


class Mae(torch.nn.Module):
    "The pre-training model: encoder with class token, and a decoder that the trace does not touch."
    def __init__(self, dim=32, side=4):
        super().__init__()
        net = Sapiens((dim, 2, 4), 17, (16 * side, 16 * side), 0, ((8, 8), (8, 8)))
        self.backbone = net.backbone
        self.backbone.cls_token = torch.nn.Parameter(torch.randn(1, 1, dim))
        table = torch.cat([torch.zeros(1, dim), sincos_table(side, side, dim)])[None]
        self.backbone.pos_embed = torch.nn.Parameter(table, requires_grad=False)
        self.neck = torch.nn.ModuleDict(dict(decoder_embed=torch.nn.Linear(dim, 8), decoder_blocks=torch.nn.ModuleList([torch.nn.Linear(8, 8)]), decoder_pred=torch.nn.Linear(8, 768)))
        self.neck.register_parameter("mask_token", torch.nn.Parameter(torch.zeros(1, 1, 8)))
        self.register_buffer("mean", torch.ones(3), persistent=False)

    def forward(self, x):
        b = self.backbone
        t = b.patch_embed["projection"](x - self.mean[:, None, None]).flatten(2).transpose(1, 2) + b.pos_embed[:, 1:]
        t = torch.cat([b.cls_token.expand(len(x), -1, -1), t], 1)
        for layer in b.layers: t = layer(t)
        return (b.ln1(t)[:, 1:].transpose(1, 2).unflatten(2, b.grid),)


@pytest.fixture(scope="module")
def pt2(tmp_path_factory):
    file = tmp_path_factory.mktemp("sapiens") / "sapiens_mini_epoch_1_torchscript.pt2"
    torch.manual_seed(0)
    torch.jit.trace(Mae().eval(), torch.randn(1, 3, 64, 64), check_trace=False).save(str(file))
    return file


def error(f, *words):
    with pytest.raises(PoseError) as e: f()
    for w in words: assert w in str(e.value), str(e.value)


# official names and shapes, as published


@pytest.mark.parametrize("size", SIZES)
def test_sapiens_names_and_shapes(size):
    dim, layers, _ = SIZES[size]
    want = {"pos_embed": (1, 3072, dim), "patch_embed.projection.weight": (dim, 3, 16, 16), "patch_embed.projection.bias": (dim,), "ln1.weight": (dim,), "ln1.bias": (dim,)}
    for i in range(layers):
        p = f"layers.{i}."
        for n in ("ln1", "ln2"): want |= {f"{p}{n}.weight": (dim,), f"{p}{n}.bias": (dim,)}
        for n, o, c in (("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("ffn.layers.0.0", 4 * dim, dim), ("ffn.layers.1", dim, 4 * dim)):
            want |= {f"{p}{n}.weight": (o, c), f"{p}{n}.bias": (o,)}
    want = {"backbone." + k: v for k, v in want.items()}
    want |= {"head.deconv_layers.0.weight": (dim, 768, 4, 4), "head.deconv_layers.3.weight": (768, 768, 4, 4), "head.final_layer.weight": (17, 768, 1, 1), "head.final_layer.bias": (17,)}
    for i in (0, 3): want |= {f"head.conv_layers.{i}.weight": (768, 768, 1, 1), f"head.conv_layers.{i}.bias": (768,)}
    with torch.device("meta"): net = create_model(f"sapiens-{size}", weights=None)
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == want
    assert net.spec.codec["sigma"] == 6 and net.spec.codec["variant"] == "mmpose" and net.spec.heatmap_hw == (256, 192) and net.spec.family == "udp"
    assert net.backbone.patch_embed["projection"].padding == (2, 2)


def test_vitpose_names_and_shapes():
    with torch.device("meta"): got = {k: tuple(v.shape) for k, v in create_model("vitpose-s", weights=None).state_dict().items()}
    bn = lambda k, w: {f"{k}.{n}": (w,) for n in ("weight", "bias", "running_mean", "running_var")} | {f"{k}.num_batches_tracked": ()}
    want = {"backbone.pos_embed": (1, 193, 384), "backbone.patch_embed.proj.weight": (384, 3, 16, 16), "backbone.patch_embed.proj.bias": (384,), "backbone.last_norm.weight": (384,), "backbone.last_norm.bias": (384,)}
    for i in range(12):
        for n, o, c in (("attn.qkv", 1152, 384), ("attn.proj", 384, 384), ("mlp.fc1", 1536, 384), ("mlp.fc2", 384, 1536)): want |= {f"backbone.blocks.{i}.{n}.weight": (o, c), f"backbone.blocks.{i}.{n}.bias": (o,)}
        for n in ("norm1", "norm2"): want |= {f"backbone.blocks.{i}.{n}.{p}": (384,) for p in ("weight", "bias")}
    want |= {"keypoint_head.deconv_layers.0.weight": (384, 256, 4, 4), "keypoint_head.deconv_layers.3.weight": (256, 256, 4, 4), "keypoint_head.final_layer.weight": (17, 256, 1, 1), "keypoint_head.final_layer.bias": (17,)}
    want |= bn("keypoint_head.deconv_layers.1", 256) | bn("keypoint_head.deconv_layers.4", 256)
    assert got == want
    with torch.device("meta"): simple = create_model("vitpose-h-simple", weights=None)
    assert simple.keypoint_head.final_layer.weight.shape == (17, 1280, 3, 3) and simple.backbone.blocks[0].attn.heads == 16
    with torch.device("meta"): assert create_model("vitpose-s", weights=None).backbone.blocks[0].attn.heads == 12


def test_sapiens2_shares_keys_in_the_middle():
    with torch.device("meta"): net = create_model("sapiens2-0.4b", weights=None)
    rows = [len(b.attn.wk.weight) for b in net.backbone.blocks]
    assert rows == [1024] * 8 + [512] * 8 + [1024] * 8
    assert net.state_dict()["backbone.storage_tokens"].shape == (1, 8, 1024) and "backbone.blocks.3.attn.gamma.weight" in net.state_dict()


# archives


def test_archive_equals_what_torch_reads(pt2):
    sd, unknown = read_archive(pt2)
    want = torch.jit.load(str(pt2)).state_dict()
    assert set(want) <= set(sd) and all(torch.equal(sd[k], v) for k, v in want.items())


def test_pretrained_archive_loads_and_is_converted_once(pt2):
    net = load_weights(mini_sapiens(), pt2)
    want = torch.jit.load(str(pt2)).state_dict()
    for k, v in net.backbone.state_dict().items():
        if k != "pos_embed": assert torch.equal(v, want["backbone." + k])
    table = resize_table(want["backbone.pos_embed"][0, 1:], (4, 4), (4, 3))
    assert torch.allclose(net.backbone.pos_embed[0], table)
    out = pt2.with_suffix(".safetensors")
    assert out.is_file() and not any(k.startswith("neck") for k in load_file(out))
    stamp = out.stat().st_mtime_ns
    load_weights(mini_sapiens(), pt2)
    assert out.stat().st_mtime_ns == stamp
    assert torch.equal(load_weights(mini_sapiens(), out).backbone.pos_embed, net.backbone.pos_embed)


def test_converted_file_of_another_archive_is_not_taken(pt2, tmp_path):
    a = tmp_path / "a.pt2"; a.write_bytes(pt2.read_bytes())
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    error(lambda: convert_archive(a), "a.safetensors", "move it away")


def test_table_check(pt2, caplog):
    sd, _ = read_archive(pt2)
    table = sd["backbone.pos_embed"][:, 1:]
    assert check_table(table) < 1e-6
    assert check_table(table.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)) > 0.1  # columns first
    assert "another way" in caplog.text


def test_wrong_archives(pt2, tmp_path):
    def bad(name, content): (tmp_path / name).write_bytes(content); return tmp_path / name
    whole = pt2.read_bytes()
    net = mini_sapiens()
    error(lambda: load_weights(net, bad("cut.pt2", whole[: len(whole) // 2])), "cut.pt2", "cut short")
    error(lambda: load_weights(net, bad("page.pt2", b"<!DOCTYPE html>")), "web page")
    with zipfile.ZipFile(tmp_path / "program.pt2", "w") as z:
        for n in ("archive_format", "models/model.json"): z.writestr("program/" + n, "pt2")
    assert archive_kind(tmp_path / "program.pt2") == "export"
    error(lambda: load_weights(net, tmp_path / "program.pt2"), "torch.export", "torchscript")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as z: z.writestr("readme", "x")
    error(lambda: load_weights(net, tmp_path / "other.pth"), "none of torch")
    torch.save(net.backbone, tmp_path / "whole.pth")
    error(lambda: load_weights(net, tmp_path / "whole.pth"), "run its code")
    other = Sapiens((32, 1, 4), 17, HW, 2, ((8,), (8,)))
    save_file(other.state_dict(), tmp_path / "one.safetensors")
    error(lambda: load_weights(net, tmp_path / "one.safetensors"), "another size", "1 layers")
    with torch.device("meta"): big = Sapiens("0.6b", 17, HW).state_dict()
    error(lambda: mini_sapiens().adapt_state(big, "x.pth"), "sapiens-0.6b", "create_model")
    error(lambda: load_weights(net, bad("vit.pth", b"PK\x03\x04" + bytes(60))), "cut short")


def test_entry_shorter_than_its_index_says(pt2, tmp_path):
    "Sizes in the pickle are claims: a storage cut down inside an intact zip is noticed."
    f = tmp_path / "short.pt2"
    with zipfile.ZipFile(pt2) as a, zipfile.ZipFile(f, "w") as b:
        for i in a.infolist(): b.writestr(i.filename, a.read(i)[:-8] if i.filename.endswith("data/0") else a.read(i))
    error(lambda: read_archive(f), "data/0")


def test_foreign_objects_do_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "ran"),)
    m = types.ModuleType("fake_engine"); m.HistoryBuffer = type("HistoryBuffer", (), dict(__module__="fake_engine")); sys.modules["fake_engine"] = m
    try:
        buffer = m.HistoryBuffer(); buffer.values = [1.0]
        net = mini_sapiens()
        sd = collections.OrderedDict(net.state_dict())
        torch.save(dict(state_dict=sd, meta=dict(epoch=1, cfg="x"), message_hub=dict(log=buffer, hook=Evil())), tmp_path / "best_coco_AP.pth")
    finally: del sys.modules["fake_engine"]
    got = read_tensors(tmp_path / "best_coco_AP.pth")
    assert all(torch.equal(got[k], v) for k, v in sd.items()) and not (tmp_path / "ran").exists()
    fresh = mini_sapiens()
    with torch.no_grad():
        for p in fresh.parameters(): p.zero_()
    x = torch.randn(1, 3, *HW)
    assert torch.equal(load_weights(fresh, tmp_path / "best_coco_AP.pth")(x), net(x))


# other forms of the same weights


def test_pose_checkpoint_at_another_size(tmp_path):
    "A table of 64x48 patches is 4:3 and not square."
    net = mini_sapiens((256, 192))
    torch.save(dict(state_dict=net.state_dict(), meta={}), tmp_path / "pose.pth")
    small = load_weights(mini_sapiens(), tmp_path / "pose.pth")
    assert torch.equal(small.backbone.pos_embed[0], resize_table(net.backbone.pos_embed[0].detach(), (16, 12), (4, 3)))
    assert torch.equal(small.head.final_layer.weight, net.head.final_layer.weight)
    clean = {k.removeprefix("backbone."): v for k, v in net.state_dict().items() if k.startswith("backbone.")}
    torch.save(clean, tmp_path / "clean.pth")
    assert torch.equal(load_weights(mini_sapiens(), tmp_path / "clean.pth").backbone.pos_embed, small.backbone.pos_embed)
    assert [grid_of(n) for n in (4096, 3072, 972, 192, 193)] == [(64, 64), (64, 48), (36, 27), (16, 12), None]


def test_padding_is_kept_with_the_weights(tmp_path):
    with torch.device("meta"): a, b = (create_model(n, weights=None, input_hw=HW) for n in ("sapiens-0.3b", "sapiens-0.3b-pad0"))
    assert a.backbone.patch_embed["projection"].padding == (2, 2) and b.backbone.patch_embed["projection"].padding == (0, 0)
    assert b.spec.name == "sapiens-0.3b-pad0" == ModelSpec.from_dict(b.spec.to_dict()).name


def test_experts_are_merged(tmp_path):
    net, part = mini_vitpose(), 8
    file = {}
    for k, v in net.state_dict().items():
        if ".mlp.fc2." not in k: file[k] = v; continue
        file[k] = v[:-part]
        for e in range(6): file[k.replace(".fc2.", f".experts.{e}.")] = v[-part:] + e
    for i in range(5): file |= {k.replace("keypoint_head", f"associate_keypoint_heads.{i}"): v + i + 1 for k, v in net.state_dict().items() if k.startswith("keypoint_head") and "num" not in k}
    torch.save(dict(state_dict=file | {"backbone.cls_token": torch.zeros(1, 1, 32)}, meta=dict(epoch=210)), tmp_path / "plus.pth")
    x = torch.randn(1, 3, *HW)
    assert torch.equal(load_weights(mini_vitpose(), tmp_path / "plus.pth")(x), net(x))
    animals = ViTPose((32, 2, 4, 0.1), 17, HW, expert=3)
    got = animals.adapt_state(file, "plus.pth")
    assert torch.equal(got["backbone.blocks.0.mlp.fc2.bias"][-part:], net.state_dict()["backbone.blocks.0.mlp.fc2.bias"][-part:] + 3)
    assert torch.equal(got["keypoint_head.final_layer.bias"], net.keypoint_head.final_layer.bias + 3)


@pytest.mark.parametrize("make", [mini_sapiens, mini_vitpose, mini_sapiens2])
def test_networks_learn_and_have_depths(make):
    net = make().train()
    groups = layer_groups(net)
    assert [d for d, _ in groups] == list(range(len(groups))) and len(groups) == net.arch[1] + 2
    head = {n for n, _ in groups[-1][1]}
    assert {n for n, _ in net.named_parameters() if net.is_head(n)} < head and any("norm" in n or "ln1" in n for n in head)
    assert {n for n, p in net.named_parameters() if p.ndim == 3} == {n for n, p in net.named_parameters() if p.ndim == 3 and no_decay(n, p)}
    torch.manual_seed(0)
    x, y, losses = torch.randn(2, 3, *HW), torch.rand(2, 17, 16, 12), []
    opt = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(8):
        loss = (net(x) - y).square().mean(); opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(); net.eval(); net.set_checkpointing().train()
    for m in net.modules():
        if type(m).__name__ == "DropPath": m.drop_prob = 0.0
    net(x).square().mean().backward(); a = net.backbone.patch_embed[next(iter(net.backbone.patch_embed))].weight.grad.clone()
    net.zero_grad(); net.set_checkpointing(False); net(x).square().mean().backward()
    assert torch.allclose(a, net.backbone.patch_embed[next(iter(net.backbone.patch_embed))].weight.grad, rtol=1e-4, atol=1e-7)


def test_saved_network_comes_back_at_another_size(tmp_path):
    "Through the names a user types; the smallest true network."
    torch.manual_seed(0)
    net = create_model("vitpose-s-simple", weights=None, input_hw=HW).eval()
    save_model(net, tmp_path)
    x = torch.randn(1, 3, *HW)
    assert torch.equal(load_model(tmp_path)(x), net(x))
    assert create_model("vitpose-s-simple", weights=tmp_path, input_hw=(64, 64)).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 17, 16, 16)
    dots = make_skeleton("dots", ["a", "b"])
    assert create_model("vitpose-s-simple", dots, weights=tmp_path, new_head=True)(x).shape == (1, 2, 16, 12)
    error(lambda: create_model("vitpose-s", weights=tmp_path), "another network")


# transformers


def hf_vitpose(simple, experts=1, part=0):
    transformers = pytest.importorskip("transformers")
    from transformers import VitPoseBackboneConfig, VitPoseConfig
    torch.manual_seed(1)
    b = VitPoseBackboneConfig(image_size=list(HW), patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=4, num_experts=experts, part_features=part, out_indices=[2], layer_norm_eps=1e-6)
    net = transformers.VitPoseForPoseEstimation(VitPoseConfig(backbone_config=b, use_simple_decoder=simple, num_labels=17)).eval()
    with torch.no_grad():
        for k, p in [*net.named_parameters(), *net.named_buffers()]:
            if p.dtype.is_floating_point: p.copy_(torch.rand(p.shape) + 0.5 if "var" in k else torch.randn(p.shape) * 0.2)
    return net


@pytest.mark.parametrize("simple,experts", [(True, 1), (False, 1), (False, 6)])
def test_vitpose_equals_transformers(simple, experts, tmp_path):
    hf = hf_vitpose(simple, experts, 8 if experts > 1 else 0)
    save_file({k: v.contiguous() for k, v in hf.state_dict().items()}, tmp_path / "model.safetensors")
    net = load_weights(mini_vitpose(head="simple" if simple else "classic"), tmp_path)
    x = torch.randn(2, 3, *HW)
    more = dict(dataset_index=torch.zeros(2, dtype=torch.long)) if experts > 1 else {}
    with torch.no_grad(): want, got = hf(x, **more).heatmaps, net(x)
    assert (want - got).abs().max() <= 1e-4 * want.abs().max()


def test_sapiens2_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Sapiens2ForPoseEstimation"): pytest.skip("this transformers has no Sapiens2")
    from posellm.models.sapiens2 import from_transformers
    torch.manual_seed(1)
    c = transformers.Sapiens2Config(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_attention_heads=2, num_first_full_attention_layers=1, num_last_full_attention_layers=1, image_size=list(HW),
                                    num_labels=17, head_config=dict(upsample_out_channels=[24, 16], conv_out_channels=[16, 16, 8]))
    hf = transformers.Sapiens2ForPoseEstimation(c).eval()
    with torch.no_grad():
        for p in hf.parameters(): p.copy_(torch.randn(p.shape) * 0.2 + (p.ndim == 1))
    net = mini_sapiens2()
    assert set(from_transformers(hf.state_dict())) == set(net.state_dict())
    save_file({k: v.contiguous() for k, v in hf.state_dict().items()}, tmp_path / "model.safetensors")
    load_weights(net, tmp_path)
    for hw in (HW, (96, 64)):
        x = torch.randn(2, 3, *hw)
        with torch.no_grad(): want, got = hf(x).heatmaps, net(x)
        assert (want - got).abs().max() <= 1e-4 * want.abs().max()
