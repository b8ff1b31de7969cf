"""Adapters and tuned states on a GPU and across devices: on the simulator, and where there is a GPU once more."""

import adapter_files
import pytest
from helpers import DEEP, SMALL, bits, engine, model, relative, rwkv
from test_tuned_states import TOKENS, tuned

STRATEGIES = ("cuda fp32", "cuda fp32 *1 -> cpu fp32", "cuda fp32 *1+")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tuned_states(device, strategy):
    m, cpu, e = model(**SMALL), engine(**SMALL), engine(strategy, **SMALL)
    inits = [tuned(m, 1), None, tuned(m, 2)]
    found = e.forward_batch([TOKENS] * 3, [e.new_state(init=init) for init in inits])
    expected = cpu.forward_batch([TOKENS] * 3, [cpu.new_state(init=init) for init in inits])
    assert relative(found, expected) <= 1e-5
    state = e.new_state(init=inits[0])
    assert bits(state.to_numpy()["att.wkv"]) == bits(
        cpu.new_state(init=inits[0]).to_numpy()["att.wkv"]
    )


@pytest.mark.parametrize("shape", [SMALL, DEEP], ids=["7", "7a"])
def test_adapters(device, shape, tmp_path):
    m = model(**shape)
    lora = rwkv.Adapter(adapter_files.Adapter(m, "lora").pth(tmp_path / "a.pth"), alpha=6)
    tokens = [t % m.V for t in TOKENS]
    engines = [
        rwkv.Engine(m.path(), strategy, threads=2, adapters=lora)
        for strategy in ("cpu fp32", *STRATEGIES)
    ]
    expected, *found = (e.forward(tokens, e.new_state(), output="all") for e in engines)
    for rows in found:
        assert relative(rows, expected) <= 1e-5
    assert len({e.fingerprint for e in engines}) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adapters_of_single_states_are_refused(device, strategy, tmp_path):
    m, e = model(**SMALL), engine(strategy, **SMALL)
    lora = rwkv.Adapter(adapter_files.Adapter(m, "lora").pth(tmp_path / "a.pth"), alpha=6)
    with pytest.raises(rwkv.DeviceError, match=r"expected .* CPU.*found cuda.*Engine\(model, adapters=") as error:
        e.load_adapter(lora)
    assert len(str(error.value)) < 500
