"""The strategy word state16: the matrices of states as halves on a (simulated) GPU, everything else as it is."""

import numpy as np
import pytest
from helpers import DEEP, OLDER, SMALL, TINY, bits, engine, model, relative, snapshot

import rwkv_engine as rwkv

SHAPES = {**OLDER, "7": SMALL, "7 with heads of 64": dict(L=2, C=128, N=64, F=192, V=100, ranks=(5, 6, 7, 9)), "7a": DEEP}


@pytest.fixture(params=["", "order:rev,greedy,copies:eager", "order:rand:3,greedy,stream:late"])
def device(request, cpp_build, monkeypatch):
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", request.param)


@pytest.fixture
def simulator(cpp_build, monkeypatch):
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", "stream:late")


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def in_halves(parts):
    """What is left of a state when its matrices are rounded."""
    most = np.float32(65504)
    return {
        name: np.clip(part, -most, most).astype(np.float16).astype(np.float32) if name == "att.wkv" else part
        for name, part in parts.items()
    }


def same(found, expected):
    return {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in expected.items()}


def test_a_step_is_one_of_float32_whose_state_is_rounded(device, shape):
    """Bit for bit, from the same state: arithmetic is float32, and the vectors of states stay so."""
    wide, narrow = engine("cuda fp16", **shape), engine("cuda fp16 state16", **shape)
    state = narrow.new_state()
    for token in model(**shape).tokens(4):
        other = wide.state_from_numpy(state.to_numpy())
        assert bits(narrow.forward([token], state)) == bits(wide.forward([token], other))
        assert same(state.to_numpy(), in_halves(other.to_numpy()))


def test_results_stay_near_those_of_the_cpu(simulator, shape):
    """A token moves a number by half of the distance of two halves, 2^-11 of it, as cuda_wkv_test.cpp derives; 8 tokens
    then by 8 of them, and a second layer that reads what the first one wrote by twice as much."""
    tokens = model(**shape).tokens(8)
    cpu, e = engine("cpu fp32", **shape), engine("cuda fp32 state16", **shape)
    expected, state = cpu.new_state(), e.new_state()
    logits = cpu.forward(tokens, expected, output="all")
    found = e.forward(tokens, state, output="all")
    bound = 1e-5 if shape.get("version") == "4" else 2 * len(tokens) * 2.0**-11
    assert relative(found, logits) <= bound
    for name, part in expected.to_numpy().items():
        assert relative(state.to_numpy()[name], part) <= bound, name


def test_rows_have_the_same_bits_in_any_company(device, shape):
    m, e = model(**shape), engine("cuda fp16 state16", **shape)
    tokens = m.tokens(12)
    whole = snapshot(e, tokens)
    assert whole == snapshot(e, tokens, [1] * 12) == snapshot(e, tokens, [5, 7])
    states = [e.new_state() for _ in range(3)]
    rows = e.forward_batch([m.tokens(5, seed=1), tokens, [3]], states)
    assert (bits(rows[1]), states[1].to_bytes()) == whole
    fork = states[1].fork()
    assert bits(e.forward([3], states[1])) == bits(e.forward([3], fork))
    assert fork.to_bytes() == states[1].to_bytes()


@pytest.mark.parametrize("count", [1, 8, 9, 33, 64])
def test_batches_of_up_to_64_change_no_bit(simulator, count):
    m, e = model(**SMALL), engine("cuda fp16 state16", **SMALL)
    alone = e.new_state()
    expected = [bits(e.forward([token], alone)) for token in (4, 9)]
    states = [e.new_state() for _ in range(count)]
    for step, token in enumerate((4, 9)):
        others = m.tokens(count, seed=step)
        rows = e.forward_batch([[token if i == count // 2 else t] for i, t in enumerate(others)], states)
        assert bits(rows[count // 2]) == expected[step]
    assert states[count // 2].to_bytes() == alone.to_bytes()


def test_races(cpp_build, monkeypatch, shape):
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim_race.so"))
    e = engine("cuda fp16 state16", **shape)
    states = [e.new_state() for _ in range(2)]
    assert e.forward_batch([[1, 2], [3]], states).shape == (2, shape["V"])


def test_a_state_comes_and_goes(simulator, shape):
    """Snapshots are float32. What state16 wrote it reads back bit for bit, others go on with the same numbers, and of a
    state of others it takes what a step of its own would have left."""
    m, narrow, cpu = model(**shape), engine("cuda fp16 state16", **shape), engine("cpu fp32", **shape)
    state = narrow.new_state()
    narrow.forward(m.tokens(6), state)
    blob = state.to_bytes()
    back = narrow.state_from_bytes(blob)
    assert back.to_bytes() == blob and back.equals(state)
    assert bits(narrow.forward([2], back)) == bits(narrow.forward([2], state))
    there = cpu.state_from_bytes(blob)
    assert there.to_bytes() == blob
    cpu.forward([1, 2], there)
    parts = there.to_numpy()
    assert same(narrow.state_from_bytes(there.to_bytes()).to_numpy(), in_halves(parts))
    if "att.wkv" not in parts:
        return
    parts["att.wkv"][0, 0, 0, :3] = 1e6, -1e6, 65504
    assert narrow.state_from_numpy(parts).to_numpy()["att.wkv"][0, 0, 0, :3].tolist() == [65504, -65504, 65504]


@pytest.mark.parametrize("strategy", ["cuda fp16 state16 *1 -> cpu fp32", "cuda fp16 *1 -> cuda fp16 state16 *0+"])
def test_each_stage_keeps_its_states_as_it_says(simulator, strategy):
    m, e = model(**SMALL), engine(strategy, **SMALL)
    state = e.new_state()
    e.forward(m.tokens(5), state)
    parts = state.to_numpy()
    rounded = [np.array_equal(a, b) for a, b in zip(parts["att.wkv"], in_halves(parts)["att.wkv"], strict=True)]
    assert rounded == [" *1 -> cpu" in strategy, " *1 -> cuda" in strategy]
    assert snapshot(e, m.tokens(5)) == snapshot(e, m.tokens(5), [1] * 5)


def test_it_takes_half_of_the_room(simulator, monkeypatch):
    """Of a device with room for so many states of float32 there is room for almost twice as many."""
    shape = dict(L=2, C=256, N=64, F=256, V=20, ranks=(3, 3, 3, 3))

    def most(strategy):
        monkeypatch.setenv("RWKV_CUSIM", "memory:300000000")
        e, states = engine(strategy, **shape), []
        blob = e.new_state().to_bytes()
        with pytest.raises(rwkv.DeviceError, match="expected .* MB of memory, found"):
            while True:
                states.append(e.state_from_bytes(blob))
        return len(states)

    assert most("cuda fp16 state16") > 1.8 * most("cuda fp16")


def test_views_are_float16(simulator):
    e = engine("cuda fp16 state16", **SMALL)
    state = e.new_state()
    e.forward(model(**SMALL).tokens(6), state)
    views = state.views()
    assert {n: v.__cuda_array_interface__["typestr"] for n, v in views.items()} == {
        "att.shift": "<f4",
        "att.wkv": "<f2",
        "ffn.shift": "<f4",
    }
    wkv = views["att.wkv"]
    assert wkv.shape == (2, 4, 16, 16) and wkv.strides[1:] == (512, 32, 2)
    assert same(e.state_from_dlpack(views).to_numpy(), state.to_numpy())
    # The same numbers from the host.
    halves = {n: p.astype(np.float16) if n == "att.wkv" else p for n, p in state.to_numpy().items()}
    assert same(e.state_from_dlpack(halves).to_numpy(), state.to_numpy())


@pytest.mark.parametrize(
    ("strategy", "words"),
    {
        "cpu fp32 state16": "expected state16 for cuda only, found it for cpu, whose states are float32",
        "cuda fp16 *1 -> cpu bf16 state16": "expected state16 for cuda only, found it for cpu",
        "cuda fp16 state32": r"expected state16 or a number of layers such as \*10, found 'state32'",
        "cuda fp16 state16 state16": r"expected a number of layers such as \*10, found 'state16'",
        "cuda fp16 *1 state16": "expected '->' or the end, found 'state16'",
        "cuda state16": r"expected a precision \(fp32, .*\), found 'state16'",
    }.items(),
)
def test_where_the_word_may_stand(simulator, strategy, words):
    with pytest.raises(rwkv.StrategyError, match=words):
        engine(strategy, **TINY)
