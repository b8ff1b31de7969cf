"""Skipping the zeros between ffn.key and ffn.value: with it and without, logits and states are the same bytes."""

import numpy as np
import pytest
from helpers import (
    DEEP,
    DEEP_32,
    OLDER,
    SMALL,
    WIDE,
    bits,
    folder,
    instruction_sets,
    model,
    random_model,
    rwkv,
    save,
    snapshot,
)

STRATEGIES = ["cpu fp32", "cpu fp16", "cpu bf16", "cpu int8"]
SHAPES = {
    "small": SMALL,
    "wide": WIDE,
    "rwkv-7a": DEEP,
    "rwkv-7a-32": DEEP_32,
    **{"rwkv-" + version: options for version, options in OLDER.items()},
    "wide rwkv-4": dict(version="4", L=2, C=128, A=192, F=320, V=40),
    "wide rwkv-6": dict(version="6", L=2, C=128, A=192, N=64, F=320, V=40),
}
WAYS = [False, True, None]


def with_zeros(name, percent, value=None, **options):
    """A model of which so many hidden units of the ffn are always zero; `value` replaces a weight of one of them."""
    path = folder() / f"{name.replace(' ', '-')}-zeros{percent}-{value}.pth"
    if not path.exists():
        weights = random_model(**options)
        dead = np.random.default_rng(1).permutation(options["F"])[: options["F"] * percent // 100]
        for layer in range(options["L"]):
            weights[f"blocks.{layer}.ffn.key.weight"][dead] = 0
        if value is not None:
            weights["blocks.1.ffn.value.weight"][3, dead[0]] = value
        save(path, weights)
    return str(path)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.mark.parametrize("percent", [0, 72, 100])  # to which random weights add half of the others
@pytest.mark.parametrize("shape", SHAPES)
def test_splits_and_threads(strategy, shape, percent):
    options = SHAPES[shape]
    path, tokens = with_zeros(shape, percent, **options), model(**options).tokens(20)
    results = set()
    for sparse in WAYS:
        for threads in (1, 2, 3):
            e = rwkv.Engine(path, strategy, threads=threads, sparse=sparse)
            for pieces in ([20], [1] * 20, [7, 1, 12]):
                results.add(snapshot(e, tokens, pieces))
    assert len(results) == 1


def test_batches(strategy):
    path, m = with_zeros("wide", 72, **WIDE), model(**WIDE)
    rows = [m.tokens(n, seed=n) for n in (1, 5, 1, 2, 1)]
    results = set()
    for sparse in WAYS:
        e = rwkv.Engine(path, strategy, threads=2, sparse=sparse)
        for size in range(1, len(rows) + 1):
            states = [e.new_state() for _ in rows]
            e.forward_batch(rows[:size], states[:size])
            for tokens, state in zip(rows[size:], states[size:]):
                e.forward(tokens, state)
            found = e.forward_batch([t[:1] for t in rows], states)
            results.add((bits(found), *(s.to_bytes() for s in states)))
    assert len(results) == 1


def test_instruction_sets(strategy, monkeypatch):
    path, tokens = with_zeros("wide", 72, **WIDE), model(**WIDE).tokens(30)
    results = {}
    for name in ["generic", *instruction_sets()]:
        monkeypatch.setenv("RWKV_ISA", name)
        engines = [rwkv.Engine(path, strategy, threads=2, sparse=sparse) for sparse in WAYS]
        found = {snapshot(e, tokens, [1] * 30) for e in engines}
        assert len(found) == 1, name
        results[name] = found.pop()
    assert len({results[name] for name in instruction_sets()} or {1}) == 1


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_counts_though_its_input_is_zero(strategy, bad):
    path, m = with_zeros("wide", 72, bad, **WIDE), model(**WIDE)
    for sparse in WAYS:
        e = rwkv.Engine(path, strategy, threads=2, sparse=sparse)
        state = e.new_state()
        with pytest.raises(rwkv.NonFiniteError):
            e.forward(m.tokens(1), state)
        assert state.equals(e.new_state())


def test_what_may_be_said():
    path = model(**SMALL).path()
    for wrong in (1, "auto", 0.5):
        with pytest.raises(TypeError, match="sparse: expected a bool"):
            rwkv.Engine(path, "cpu fp32", threads=1, sparse=wrong)
    bytes_of = [
        rwkv.Engine(path, "cpu fp32", threads=1, sparse=s)._core.weight_bytes for s in WAYS
    ]
    assert bytes_of[0] < bytes_of[1] == bytes_of[2]
