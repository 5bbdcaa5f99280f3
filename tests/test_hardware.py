"Presets: one table, strict names, and something that runs on every machine."
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posellm.core.errors import PoseError
from posellm.models.weights import embedded
from posellm.models.zoo import entry
from posellm.train.hardware import Machine, best_preset, better_preset, preset, presets, resolve

NAMES = ("tiny", "cpu", "mps", "gtx1650", "gtx1650_min", "rtx4060", "t4", "a100", "h200")
MACHINES = st.one_of(
    st.builds(Machine, st.just("cpu"), st.just(""), st.just(0.0), st.booleans(), st.integers(1, 64)),
    st.builds(Machine, st.just("mps"), st.just("Apple"), st.just(0.0), st.just(False), st.integers(1, 16)),
    st.builds(Machine, st.just("cuda"), st.sampled_from(["Tesla T4", "NVIDIA A100", "GTX 1660", "card"]), st.floats(1, 200), st.booleans(), st.integers(1, 64)))


def test_the_table():
    assert tuple(presets()) == NAMES
    for p in presets().values():
        e = entry(p.model)
        assert all(v % max(4, e.multiple) == 0 for v in p.input_hw), p
        assert p.weights is None or e.timm or embedded(p.weights), p
        assert p.source, p


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from((*NAMES, "auto")), m=MACHINES)
def test_whatever_is_asked_something_runs(name, m):
    p, notes = resolve(name, m)
    assert p.device in ("cpu", m.device) and p.workers <= m.cores
    if p.device == "cuda":
        assert p.vram_gib * 0.9 <= m.vram_gib or p.name == "gtx1650_min"
        assert p.precision != "bf16" or m.bf16
    if p.device == "mps": assert p.precision == "fp32"
    if p.name != name: assert any(p.name in n for n in notes)
    assert best_preset(m) in NAMES and better_preset(best_preset(m), m) is None


def test_overrides_survive_and_are_checked():
    p, _ = resolve("a100", Machine("cpu", cores=2), batch=3, input_hw=[64, 48])
    assert (p.name, p.batch, p.input_hw) == ("cpu", 3, (64, 48))
    for bad in (dict(batch=0), dict(batch=2.5), dict(precision="int8"), dict(input_hw=64), dict(trunk="half"), dict(colour=1)):
        with pytest.raises(PoseError): preset("cpu", **bad)
    with pytest.raises(PoseError, match="did you mean 'h200'"): preset("h100")


def test_presets_are_frozen_plain_data():
    import json
    p = preset("cpu")
    assert json.loads(json.dumps(p.to_dict()))["input_hw"] == list(p.input_hw)
    with pytest.raises(AttributeError): p.batch = 1
