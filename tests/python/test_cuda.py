"""The CUDA backend from end to end: on the simulator everywhere, and once more where there is a GPU (marker `gpu`).

The kernels by themselves are compared with the CPU's in tests/cpp/cuda_*_test.cpp.
"""

import os
import threading

import numpy as np
import pytest
from helpers import (
    DEEP,
    OLDER,
    SMALL,
    TINY,
    bits,
    engine,
    model,
    models_folder,
    python,
    random_model,
    relative,
    save,
    snapshot,
)

import rwkv_engine as rwkv

SHAPES = {
    **OLDER,
    "7": SMALL,
    "7 with heads of 64": dict(L=2, C=128, N=64, F=192, V=100, ranks=(5, 6, 7, 9)),
    "7a": DEEP,
    "7a with heads of 64": dict(version="7a", L=2, C=128, N=64, F=192, V=100, ranks=(5, 6, 7, 9), D=20),
    "6 with heads of 64": dict(version="6", L=2, C=100, A=128, N=64, F=192, V=100, ranks=(5, 70)),
}
# Of the largest logit, from the CPU's with fp32: what the format alone may cost.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "fp16 state16": 1e-2, "bf16": 5e-2, "fp16i8": 0.1, "fp16i4": 0.5}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("precision", TOLERANCES)
def test_logits_and_states_are_those_of_the_cpu(device, shape, precision):
    m = model(**shape)
    tokens = m.tokens(8)
    cpu = engine("cpu fp32", **shape)
    expected = cpu.new_state()
    logits = cpu.forward(tokens, expected, output="all")
    e = engine(f"cuda {precision}", **shape)
    state = e.new_state()
    found = e.forward(tokens, state, output="all")
    assert 0 < relative(found, logits) <= TOLERANCES[precision]
    hidden = e.forward(tokens, e.new_state(), output="hidden")
    assert relative(hidden, cpu.forward(tokens, cpu.new_state(), output="hidden")) <= TOLERANCES[precision]
    if precision == "fp32":
        for name, part in expected.to_numpy().items():
            assert relative(state.to_numpy()[name], part) <= 1e-5, name
    assert e.fingerprint == cpu.fingerprint
    assert e.description.startswith("cuda:0 ")


@pytest.mark.parametrize("count", [47, 48, 64])
def test_up_to_64_rows_are_one_arithmetic(device, count):
    options = SHAPES["7 with heads of 64"]
    m, e = model(**options), engine("cuda fp16", **options)
    assert snapshot(e, m.tokens(count)) == snapshot(e, m.tokens(count), [1] * (count - 20) + [20])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16 state16", "fp16i4"])
def test_rows_have_the_same_bits_in_any_company(device, shape, precision):
    """Alone, in pieces, in a batch, from a fork: decode and prefill of up to 64 rows are one arithmetic."""
    m, e = model(**shape), engine(f"cuda {precision}", **shape)
    tokens = m.tokens(12)
    whole = snapshot(e, tokens)
    assert whole == snapshot(e, tokens, [1] * 12) == snapshot(e, tokens, [5, 7])
    states = [e.new_state() for _ in range(3)]
    others = [m.tokens(5, seed=1), m.tokens(1, seed=2)]
    rows = e.forward_batch([others[0], tokens, others[1]], states)
    assert (bits(rows[1]), states[1].to_bytes()) == whole
    fork = states[1].fork()
    step = e.forward([3], states[1])
    assert bits(step) == bits(e.forward([3], fork)) and fork.to_bytes() == states[1].to_bytes()
    alone = e.new_state()
    e.forward(others[0], alone)
    assert alone.to_bytes() == states[0].to_bytes()


def test_wide_batches_and_long_prompts(device):
    """More rows than one launch of a product takes, ragged, and more results than go through the head at a time."""
    m, e, cpu = (x(**SMALL) for x in (model, lambda **o: engine("cuda fp32", **o), engine))
    sequences = [m.tokens(1 + i * 7 % 40, seed=i) for i in range(9)] + [m.tokens(150, seed=9)]
    states, expected = [e.new_state() for _ in sequences], [cpu.new_state() for _ in sequences]
    found = e.forward_batch(sequences, states, output="all")
    for mine, other in zip(found, cpu.forward_batch(sequences, expected, output="all"), strict=True):
        assert relative(mine, other) <= 1e-5
    assert e.forward(m.tokens(300), e.new_state(), output="all").shape == (300, m.V)


def test_what_long_prompts_are_read_with(device, tmp_path):
    options = SHAPES["7 with heads of 64"]
    tokens = model(**options).tokens(100)
    trace = tmp_path / "trace"
    device(f"trace:{trace}")
    e = engine("cuda fp16", **options)
    e.forward_batch([tokens[:7], tokens, tokens[:65]], [e.new_state() for _ in range(3)], output="all")
    kernels = trace.read_text().split()
    assert kernels.count("wkv7_chunk") == kernels.count("wkv7_carry") == kernels.count("wkv7_chunk_out") == 2
    trace.unlink()
    e.forward(tokens[:40], e.new_state())
    assert "wkv7_chunk" not in trace.read_text()


def test_long_prompts_are_read_in_chunks(device):
    """On tensor cores, within tolerance of row by row; a sequence gets its own bits whatever it is read with."""
    options = SHAPES["7 with heads of 64"]
    tokens = model(**options).tokens(170)
    e, cpu = engine("cuda fp16", **options), engine("cpu fp32", **options)
    states = [e.new_state() for _ in range(4)]
    parts = [tokens[:7], tokens, tokens[5:80], tokens[:65]]
    rows = e.forward_batch(parts, states, output="all")
    for part, state, row in zip(parts, states, rows, strict=True):
        other = cpu.new_state()
        assert relative(row, cpu.forward(part, other, output="all")) <= 2e-3
        for name, numbers in other.to_numpy().items():
            assert relative(state.to_numpy()[name], numbers) <= 2e-3, name
    alone, serial = e.new_state(), e.new_state()
    e.forward(tokens[5:80], alone)
    assert {k: bits(v) for k, v in alone.to_numpy().items()} == {k: bits(v) for k, v in states[2].to_numpy().items()}
    for at in range(0, 170, 40):
        e.forward(tokens[at : at + 40], serial)
    for name, numbers in serial.to_numpy().items():
        assert 0 < relative(states[1].to_numpy()[name], numbers) <= 2e-3, name


def test_a_state_moves_between_devices(device, shape):
    m, cpu, e = model(**shape), engine("cpu fp32", **shape), engine("cuda fp32", **shape)
    start, rest = m.tokens(7), m.tokens(6, seed=1)
    state = e.new_state()
    e.forward(start, state)
    there = cpu.state_from_bytes(state.to_bytes())
    assert there.to_bytes() == state.to_bytes()
    back = e.state_from_bytes(there.to_bytes())
    assert back.tokens_seen == 7 and bits(back.last_logits) == bits(state.last_logits)
    assert bits(e.forward(rest, back)) == bits(e.forward(rest, state))
    assert relative(cpu.forward(rest, there), e.forward(rest, e.state_from_bytes(there.to_bytes()))) > 0
    again = cpu.state_from_bytes(e.state_from_numpy(there.to_numpy()).to_bytes())
    assert {k: bits(v) for k, v in again.to_numpy().items()} == {k: bits(v) for k, v in there.to_numpy().items()}


@pytest.mark.parametrize(
    "strategy",
    [
        "cuda fp32 *1 -> cpu fp32",
        "cpu fp32 *1 -> cuda fp32",
        "cuda:0 fp32 *1 -> cuda:1 fp32",
        "cuda fp32 *1 -> cuda fp32",
        "cuda fp32 *1 -> cpu fp32 *1 -> cuda:1 fp32",
        "cuda fp32 *1+",
        "cuda fp32 *0+",
        "cpu fp32 *1 -> cuda fp32 *0+",
    ],
)
@pytest.mark.parametrize("name", ["4", "6", "7", "7a"])
def test_layers_on_several_devices(device, name, strategy):
    if "cuda:1" in strategy:
        device("devices:2")
    shape = {**SHAPES[name], "L": 3}
    m, cpu, e = model(**shape), engine("cpu fp32", **shape), engine(strategy, **shape)
    tokens = m.tokens(8)
    state, expected = e.new_state(), cpu.new_state()
    logits = cpu.forward(tokens, expected, output="all")
    assert relative(e.forward(tokens, state, output="all"), logits) <= 1e-5
    assert snapshot(e, tokens) == snapshot(e, tokens, [1] * 8)
    for name, part in expected.to_numpy().items():
        assert relative(state.to_numpy()[name], part) <= 1e-5, name


@pytest.mark.parametrize("strategy", ["cuda fp32 *0+", "cuda fp32 *1+", "cuda fp32 *2+"])
def test_a_streamed_layer_leaves_nothing_to_the_next(device, strategy, tmp_path):
    """Layers of different sizes come to one place: what is expected to be zeros is."""
    shape = {**DEEP, "L": 5}
    weights = random_model(**shape)
    wide = random_model(**{**shape, "ranks": (70, 70, 70, 70)})
    weights |= {name: t for name, t in wide.items() if name.startswith(("blocks.0.", "blocks.1.")) and "att." in name}
    path = str(save(tmp_path / "a.pth", weights))
    tokens = model(**DEEP).tokens(8)
    cpu, e = rwkv.Engine(path, "cpu fp32"), rwkv.Engine(path, strategy)
    found, expected = (x.forward(tokens, x.new_state(), output="all") for x in (e, cpu))
    assert relative(found, expected) <= 1e-5
    assert snapshot(e, tokens) == snapshot(e, tokens, [1] * 8)


def test_text_is_that_of_the_cpu(device):
    def texts(strategy):
        e = rwkv.Engine("demo", strategy)
        params = rwkv.SamplingParams(seed=4, max_tokens=12, top_p=0.8, top_k=30)
        batch = e.generate_batch(["def f(", "import "], params)
        greedy = e.generate("class A", rwkv.SamplingParams(temperature=0, max_tokens=6))
        return [r.text for r in [*batch, greedy]]

    assert texts("cuda fp32") == texts("cpu fp32")


def test_sampling_draws_and_refuses_as_the_cpu_does(device):
    cpu, e = engine("cpu fp32", **SMALL), engine("cuda fp32", **SMALL)
    random = np.random.default_rng(0)
    for i in range(12):
        logits = random.normal(0, 3, 40).astype(np.float32)
        params = rwkv.SamplingParams(
            temperature=[0, 0.7, 1][i % 3], top_p=[1, 0.6][i % 2], top_k=[0, 20][i // 6], seed=i
        )
        assert e.sample(logits, params) == cpu.sample(logits, params)
    for bad in (np.nan, np.inf):
        logits = np.zeros(40, np.float32)
        logits[7] = bad
        messages = []
        for engine_ in (cpu, e):
            with pytest.raises(rwkv.NonFiniteError, match="logit of token 7") as error:
                engine_.sample(logits, rwkv.SamplingParams())
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("name", ["emb.weight", "blocks.1.att.key.weight", "blocks.0.ffn.value.weight", "head.weight"])
def test_what_is_not_finite_ends_the_call_and_moves_no_state(device, tmp_path, name):
    weights = random_model(**SMALL)
    weights[name].flat[5 * weights[name].shape[-1]] = np.nan
    e = rwkv.Engine(str(save(tmp_path / "a.pth", weights)), "cuda fp16")
    state = e.new_state()
    before = state.to_bytes()
    for output in ["last", "all"] if name == "head.weight" else ["last", "none", "hidden"]:
        with pytest.raises(rwkv.NonFiniteError):
            e.forward([1, 5, 2], state, output=output)
        assert state.to_bytes() == before


@pytest.mark.parametrize("path", sorted(models_folder().glob("*.pth")), ids=lambda path: path.stem)
def test_trained_models(device, path):
    expected = path.with_suffix(".npz")
    tokens = np.arange(5, 15)
    cpu, e = rwkv.Engine(str(path), "cpu fp32"), rwkv.Engine(str(path), "cuda fp16")
    found, logits = (x.forward(tokens, x.new_state(), output="all") for x in (e, cpu))
    assert relative(found, logits) <= 2e-3, expected


def test_skipping_changes_no_bit(device):
    m = model(**SMALL)
    tokens = m.tokens(9)
    one, other = (rwkv.Engine(str(m.path()), "cuda fp16", sparse=sparse) for sparse in (True, False))
    assert snapshot(one, tokens) == snapshot(other, tokens)


def test_graphs_change_no_bit(device, shape, monkeypatch):
    m = model(**shape)

    def run():
        e = engine("cuda fp16", **shape)
        states = [e.new_state() for _ in range(3)]
        seen = [snapshot(e, m.tokens(6), [1] * 6)]
        for i in range(5):
            rows = e.forward_batch([[1], [2], [i]], states)
            seen += [bits(rows), bits(e.forward([i], states[i % 3])), bits(e.forward([i], states[0], output="hidden"))]
        return seen, [state.to_bytes() for state in states]

    plain = run()
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "graphs")
    assert run() == plain


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp16i8", "fp16i4"])
@pytest.mark.parametrize("schedule", ["order:fwd", "order:rand:5,greedy,stream:late", "race"])
def test_what_is_made_on_the_way_changes_no_bit(device, shape, precision, schedule, monkeypatch):
    if schedule != "race":
        device(schedule)
    elif "RWKV_CUDA_LIBRARY" in os.environ:
        library = os.environ["RWKV_CUDA_LIBRARY"].replace("cusim.so", "cusim_race.so")
        monkeypatch.setenv("RWKV_CUDA_LIBRARY", library)
    m = model(**shape)

    def run():
        e = engine(f"cuda {precision}", **shape)
        states = [e.new_state() for _ in range(11)]
        seen = [bits(e.forward_batch([[t] for t in m.tokens(n, seed=n)], states[:n])) for n in (8, 1, 11, 3)]
        return seen, [state.to_bytes() for state in states]

    plain = run()
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "nofused,noranks")
    assert run() == plain


def test_a_step_that_comes_again_is_one_graph(device, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    device(f"trace:{trace}")
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "graphs")
    e = engine("cuda fp16", **SMALL)
    states = [e.new_state(), e.new_state()]
    replayed = []
    for token in range(6):
        trace.unlink(missing_ok=True)
        e.forward_batch([[token], [token + 1]], states)
        replayed.append(trace.read_text().split().count("replay"))
    assert replayed == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("features", ["", "nofused"])
@pytest.mark.parametrize(("name", "layers"), {"4": (5, 7), "5.1": (5, 7), "6": (8, 11), "7": (6, 8), "7a": (8, 10)}.items())
def test_a_step_is_a_few_launches(device, name, layers, features, tmp_path, monkeypatch):
    """A number for each layer, and embedding, final norm, head, logits to keep, and the look for what is not finite."""
    trace = tmp_path / "trace"
    device(f"trace:{trace}")
    monkeypatch.setenv("RWKV_CUDA_FEATURES", features)
    e = engine("cuda fp16", **SHAPES[name])
    state = e.new_state()
    for tokens in ([1], [2]):
        trace.unlink(missing_ok=True)
        e.forward(tokens, state)
    rest = 6 if name == "7a" else 5  # which needs the embedding once more
    assert len(trace.read_text().split()) == layers[features == "nofused"] * SHAPES[name]["L"] + rest


# Launches of a layer up to 8 rows and up to 64.
LAUNCHES = {"7 with heads of 64": (5, 7), "6 with heads of 64": (7, 10), "7a with heads of 64": (7, 9)}


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("batch", [1, 8, 9, 64])
def test_a_decode_step_of_heads_of_64_is_fewer_launches(device, name, precision, batch, tmp_path):
    """Beside those that the test above counts."""
    if batch == 64 and precision != "fp16":
        pytest.skip("as 9, and the simulator takes its time")
    shape, (few, many) = SHAPES[name], LAUNCHES[name]
    layer = few if batch <= 8 and precision != "fp32" else many
    trace = tmp_path / "trace"
    device(f"trace:{trace}")
    e = engine(f"cuda {precision}", **shape)
    states = [e.new_state() for _ in range(batch)]
    trace.unlink()
    e.forward_batch([[t] for t in model(**shape).tokens(batch)], states)
    assert len(trace.read_text().split()) == layer * shape["L"] + (6 if name.startswith("7a") else 5)


# ---- memory, errors, threads, processes ----


def test_out_of_memory_says_how_much_and_the_engine_goes_on(device):
    device("memory:100000")
    with pytest.raises(rwkv.DeviceError, match=r"cuda:0: expected [0-9.]+ MB of memory, found [0-9.]+ MB free of 0.1 MB"):
        engine("cuda fp32", **SMALL)
    device("memory:300000000")
    e = engine("cuda fp32", **SMALL)
    states, tokens = [], model(**SMALL).tokens(3)
    kept = e.new_state()
    e.forward(tokens, kept)
    before = kept.to_bytes()
    with pytest.raises(rwkv.DeviceError, match="expected .* MB of memory, found"):
        for _ in range(100_000):
            states.append(e.state_from_bytes(before))
    assert kept.to_bytes() == before
    states.clear()
    e.forward(tokens, kept)
    assert len([e.state_from_bytes(before) for _ in range(1000)]) == 1000


def test_logits_that_could_not_be_fetched_are_not_there_the_next_time(device):
    m = model(**TINY)
    for nth in range(20, 400):
        device(f"fail:{nth}")
        try:
            e = engine("cuda fp16", **TINY)
            state = e.new_state()
            e.forward(m.tokens(3), state, device=True)
        except rwkv.DeviceError:
            continue
        break
    for _ in range(2):
        with pytest.raises(rwkv.DeviceError):
            _ = state.last_logits


def test_memory_of_the_device_is_given_back(device):
    """Of a device that has room for little more than two of them, engines and their forks come and go."""
    device("memory:200000000")
    for _ in range(100):
        e = engine("cuda fp16", **TINY)
        state = e.new_state()
        e.forward([1], state)
        forks = [state.fork() for _ in range(100)]
        e.forward_batch([[1], [2]], forks[:2])
        del e, state, forks


@pytest.mark.slow
def test_a_thousand_engines_and_ten_thousand_forks(device):
    device("memory:200000000")
    for _ in range(1000):
        e = engine("cuda fp16", **TINY)
        state = e.new_state()
        for _ in range(10):
            state = state.fork()
            e.forward([1], state)


def test_a_device_that_fails_says_so_again_and_harms_no_other(device):
    m = model(**TINY)
    seen = set()
    for nth in range(1, 400, 7):
        device(f"fail:{nth}")
        try:
            e = engine("cuda fp16", **TINY)
            state = e.new_state()
            e.forward(m.tokens(3), state)
        except rwkv.DeviceError as error:
            seen.add(str(error))
            continue
        break
    else:
        pytest.fail("a load and a step of so many calls?")
    assert seen == {"cuda:0: the call that was to fail; it is lost to this process, which can be started again"} | {
        message for message in seen if message.startswith("device 'cuda:0'")
    }
    device("stream:eager")
    assert engine("cuda fp16", **TINY).new_state().tokens_seen == 0


def test_nobody_but_the_device_follows_its_pointers(device):
    code = """
from helpers import *
e = engine("cuda fp16", **TINY)
a = e.new_state()
b = a.fork()
e.forward_batch([[1, 2], [3]], [a, b], output="all")
print(e.state_from_bytes(a.to_bytes()).tokens_seen)
"""
    device("protect")
    assert python(code).strip() == "2"


def test_threads_share_an_engine(device):
    m, e = model(**SMALL), engine("cuda fp16", **SMALL)
    expected = [snapshot(e, m.tokens(6, seed=i)) for i in range(4)]
    found = [None] * 4

    def work(i):
        found[i] = snapshot(e, m.tokens(6, seed=i), [1, 2, 3])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork() here")
def test_a_forked_process_opens_an_engine_of_its_own(device):
    code = """
from helpers import *
e = engine("cuda fp32", **TINY)
state = e.new_state()
e.forward([1], state)
if os.fork() == 0:
    try:
        e.forward([1], state)
    except rwkv.DeviceError as error:
        del e, state
        os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), e.forward([1], state).shape)
"""
    assert python(code).split() == ["7", "(12,)"]


# ---- libraries and devices that are not there ----


def test_a_device_that_is_not_there(device):
    device("devices:2")
    assert engine("cuda:1 fp32", **TINY).description == "cuda:1 simulator"
    with pytest.raises(rwkv.DeviceError, match="'cuda:2': expected one of 2 devices, from cuda:0 on"):
        engine("cuda:2 fp32", **TINY)


def test_a_library_that_is_none(monkeypatch, tmp_path):
    for content, words in {b"": "file too short", b"no library at all": "(invalid ELF|file too short)"}.items():
        path = tmp_path / f"{len(content)}.so"
        path.write_bytes(content)
        monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(path))
        with pytest.raises(rwkv.DeviceError, match=f"'cuda:0': expected .* found none: .*{words}.*; cpu can be used"):
            engine("cuda fp16", **TINY)
        assert engine("auto", **TINY).description.startswith("cpu ")


def test_auto_takes_the_device(device):
    e, cpu = engine("auto", **TINY), engine(**TINY)
    assert e.description.startswith("cuda:0 ")
    assert relative(e.forward([1], e.new_state()), cpu.forward([1], cpu.new_state())) <= 1e-5
