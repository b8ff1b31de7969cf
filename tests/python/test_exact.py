"""The promise: the same tokens give the same bits, whatever the split into calls, the neighbours, the threads, the
instruction set, forks, and a save in between. Every comparison here is equality of bytes."""

import hashlib

import numpy as np
import pytest
from helpers import (
    DEEP,
    DEEP_32,
    OLDER,
    SMALL,
    WIDE,
    bits,
    engine,
    folder,
    instruction_sets,
    model,
    pieces_of,
    python,
    random_model,
    relative,
    rwkv,
    save,
    snapshot,
)

STRATEGIES = ["cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4"]
SHAPES = {
    "small": SMALL,
    "wide": WIDE,
    "odd": dict(L=2, C=35, N=5, F=91, V=13, ranks=(3, 5, 7, 9)),
    "rwkv-7a": DEEP,
    "rwkv-7a-32": DEEP_32,
    **{"rwkv-" + version: options for version, options in OLDER.items()},
    # Vectors that are full: 5 and 6 share one recurrence.
    "wide rwkv-4": dict(version="4", L=2, C=128, A=192, F=320, V=40),
    "wide rwkv-6": dict(version="6", L=2, C=128, A=192, N=64, F=320, V=40),
}


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def test_any_split_into_calls(strategy, shape):
    m, e = model(**shape), engine(strategy, **shape)
    tokens = m.tokens(150)
    whole = snapshot(e, tokens)
    for length in (1, 7, 16, 64):
        assert snapshot(e, tokens, pieces_of(len(tokens), length)) == whole, length
    assert snapshot(e, tokens, [1, 148, 1]) == whole


def test_rows_of_all_outputs_are_the_steps(strategy, shape):
    m, e = model(**shape), engine(strategy, **shape)
    tokens = m.tokens(70)
    together, alone = e.new_state(), e.new_state()
    every = e.forward(tokens, together, output="all")
    for i, token in enumerate(tokens):
        assert bits(e.forward([token], alone)) == bits(every[i]), i
    assert together.to_bytes() == alone.to_bytes()


def test_hidden_rows_are_the_steps(strategy, shape):
    m, e = model(**shape), engine(strategy, **shape)
    tokens = m.tokens(30)
    every = e.forward(tokens, e.new_state(), output="hidden")
    state = e.new_state()
    for i, token in enumerate(tokens):
        assert bits(e.forward([token], state, output="hidden")[0]) == bits(every[i]), i


@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["small", "wide"])
def test_lengths_around_the_pieces_of_work(strategy, shape):
    m, e = model(**shape), engine(strategy, **shape)
    tokens = m.tokens(1025)
    every = e.forward(tokens, e.new_state(), output="all")
    for length in (255, 256, 257, 511, 512, 513, 1024, 1025):
        state = e.new_state()
        assert bits(e.forward(tokens[:length], state)) == bits(every[length - 1]), length
        assert state.to_bytes() == snapshot(e, tokens[:length], pieces_of(length, 100))[1], length


@pytest.mark.parametrize("size", [1, 3, 8, 17])
def test_any_neighbours_in_a_batch(strategy, shape, size):
    m, e = model(**shape), engine(strategy, **shape)
    rows = [m.tokens(1 + (i * 11) % 23, seed=i) for i in range(size)]
    rows[-1] = m.tokens(90, seed=99)
    warm = [m.tokens(1 + i, seed=100 + i) for i in range(size)]
    together, alone = [e.new_state() for _ in rows], [e.new_state() for _ in rows]
    for tokens, a, b in zip(warm, together, alone):
        e.forward(tokens, a)
        e.forward(tokens, b)
    found = e.forward_batch(rows, together)
    for i, tokens in enumerate(rows):
        assert bits(e.forward(tokens, alone[i])) == bits(found[i]), i
        assert alone[i].to_bytes() == together[i].to_bytes(), i


def test_one_token_each_in_a_batch(strategy, shape):
    m, e = model(**shape), engine(strategy, **shape)
    together, alone = ([e.new_state() for _ in range(17)] for _ in range(2))
    for step in range(4):
        tokens = m.tokens(17, seed=step)
        found = e.forward_batch([[t] for t in tokens], together)
        for i, token in enumerate(tokens):
            assert bits(e.forward([token], alone[i])) == bits(found[i]), (step, i)


def test_a_batch_longer_than_a_piece_of_work():
    m, e = model(**SMALL), engine(**SMALL)
    rows = [m.tokens(n, seed=n) for n in (700, 3, 600, 1, 1100)]
    together = [e.new_state() for _ in rows]
    found = e.forward_batch(rows, together)
    for i, tokens in enumerate(rows):
        assert (bits(found[i]), together[i].to_bytes()) == snapshot(e, tokens), i


def test_any_number_of_threads(strategy, shape):
    m = model(**shape)
    tokens = m.tokens(90)
    results = set()
    for threads in (1, 2, 3, 4):
        e = engine(strategy, threads=threads, **shape)
        results.add((snapshot(e, tokens), snapshot(e, tokens, [80] + [1] * 10)))
    assert len(results) == 1


def test_any_instruction_set(strategy, shape, monkeypatch):
    names = instruction_sets()
    if len(names) < 2:
        pytest.skip(
            f"this machine has {names or 'no vector instructions we use'}: nothing to compare"
        )
    m = model(**shape)
    tokens = m.tokens(90)
    results = {}
    for name in names:
        monkeypatch.setenv("RWKV_ISA", name)
        e = engine(strategy, **shape)
        assert e.description.replace(",", " ").split()[1] == name, e.description
        results[name] = (
            snapshot(e, tokens),
            snapshot(e, tokens, [60] + [1] * 30),
            bits(e.forward(tokens, e.new_state(), output="all")),
        )
    assert len(set(results.values())) == 1, [
        name for name in names if results[name] != results[names[0]]
    ]


def test_denormal_numbers(strategy, monkeypatch):
    """They are flushed on every instruction set alike, and the caller's own arithmetic keeps them."""
    small = {
        "ln1.weight": 1e-38,
        "ffn.key.weight": 1e-20,
        "att.value.weight": 1e-36,
        "head.weight": 1e-30,
    }
    weights = random_model(**SMALL, dtype="f32")
    for name in weights:
        for ending, scale in small.items():
            if name.endswith(ending):
                weights[name] = weights[name] * np.float32(scale)
    path, tokens = str(save(folder() / "denormal.pth", weights)), model(**SMALL).tokens(50)
    results = set()
    for name in instruction_sets() or ["generic"]:
        monkeypatch.setenv("RWKV_ISA", name)
        e = rwkv.Engine(path, strategy, threads=2)
        results |= {
            snapshot(e, tokens),
            snapshot(e, tokens, [1] * 50),
            snapshot(e, tokens, [20, 30]),
        }
        parts = e.new_state().to_numpy()
        for part in parts.values():
            part[...] = 1e-40
        again = e.state_from_numpy(parts)
        assert {k: bits(v) for k, v in again.to_numpy().items()} == {
            k: bits(v) for k, v in parts.items()
        }
        results.add(("from denormals", *snapshot(e, tokens, state=again)))
    assert len(results) == 2
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_the_generic_kernels_are_close(strategy, shape, monkeypatch):
    m = model(**shape)
    tokens = m.tokens(40)
    best = engine(strategy, **shape)
    monkeypatch.setenv("RWKV_ISA", "generic")
    generic = engine(strategy, **shape)
    found = generic.forward(tokens, generic.new_state(), output="all")
    # One bit of a bf16 activation is 2^-8 of it, and any difference in the last place may turn one.
    tolerance = 1e-5 if strategy in ("cpu fp32", "cpu fp16") else 2e-2
    assert relative(found, best.forward(tokens, best.new_state(), output="all")) <= tolerance
    assert snapshot(generic, tokens) == snapshot(generic, tokens, pieces_of(40, 7))


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("RWKV_ISA", "mmx")
    with pytest.raises(rwkv.DeviceError, match="mmx"):
        engine(**SMALL)


def test_forks(strategy):
    m, e = model(**SMALL), engine(strategy, **SMALL)
    start, rest = m.tokens(20), m.tokens(30, seed=1)
    plain = snapshot(e, start + rest, [20, 30])
    state = e.new_state()
    e.forward(start, state)
    branches = state.fork(4)
    other = m.tokens(5, seed=2)
    e.forward(other, branches[0])
    assert snapshot(e, rest, state=branches[1]) == plain
    assert snapshot(e, rest, [1] * 30, state=branches[2].fork()) == plain
    assert snapshot(e, rest, state=state) == plain
    assert snapshot(e, other + rest, state=branches[3]) == snapshot(
        e, start + other + rest, [20, 5, 30]
    )


CONTINUE = """
import sys, hashlib
import rwkv_engine as rwkv
import numpy as np
path, strategy, saved, tokens, threads = sys.argv[1:]
engine = rwkv.Engine(path, strategy, threads=int(threads))
state = engine.load_state(saved)
logits = engine.forward([int(t) for t in tokens.split()], state)
print(hashlib.sha256(logits.tobytes()).hexdigest(), hashlib.sha256(state.to_bytes()).hexdigest())
"""


def test_a_save_and_another_process_in_between(strategy, tmp_path):
    m, e = model(**SMALL), engine(strategy, **SMALL)
    start, rest = m.tokens(33), m.tokens(21, seed=1)
    state = e.new_state()
    e.forward(start, state)
    state.save(tmp_path / "a.state")
    logits = e.forward(rest, state)
    found = python(
        CONTINUE, m.path(), strategy, tmp_path / "a.state", " ".join(map(str, rest)), 3
    ).split()
    assert found == [
        hashlib.sha256(logits.tobytes()).hexdigest(),
        hashlib.sha256(state.to_bytes()).hexdigest(),
    ]
