"""Strategies cpu fp16, int8 and int4: against the definition with products of such numbers, and what trained models lose.

That splits, batches, threads and instruction sets change no bit is in test_exact.py.
"""

import numpy as np
import pytest
from helpers import (
    DEEP_32,
    OLDER,
    SMALL,
    bits,
    engine,
    model,
    models_folder,
    relative,
    round_to,
    save,
)

import rwkv_engine as rwkv

FULL = dict(L=2, C=192, A=128, N=64, F=512, V=100)
SHAPES = {
    **{"rwkv-" + version: options | FULL for version, options in OLDER.items()},
    **{"odd rwkv-" + version: options for version, options in OLDER.items()},
    "rwkv-7": SMALL,
    "odd rwkv-7": dict(L=2, C=35, N=5, F=91, V=13, ranks=(3, 5, 7, 9)),
    "rwkv-7a": DEEP_32,
}
LARGE = ("receptance", "key", "value", "gate", "output", "head")


def groups_of(t):
    """Of 64 along the last axis, the last with zeros behind it."""
    padded = np.pad(t, [(0, 0)] * (t.ndim - 1) + [(0, -t.shape[-1] % 64)])
    return padded.reshape(*t.shape[:-1], -1, 64)


def in_steps(t, scale, least, most):
    """The multiples of the scale of each group, of `least` to `most` times, that are nearest."""
    steps = np.round(groups_of(t) / np.where(scale == 0, 1, scale)).clip(least, most)
    return (steps * scale).reshape(*t.shape[:-1], -1)[..., : t.shape[-1]]


def stored(scale):
    return round_to(scale.astype(np.float32), "bf16").astype(np.float64)


def largest(t):
    """Of each group the number of the largest magnitude."""
    groups = groups_of(t)
    return np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)


def activations(t):
    return in_steps(t, np.abs(largest(t)) / 127, -127, 127)


WEIGHTS = {
    "int8": lambda t: in_steps(t, stored(np.abs(largest(t)) / 127), -127, 127),
    "int4": lambda t: in_steps(t, stored(largest(t) / -8), -8, 7),
}


class Rounding:
    """For both sides of a product, the matrix first: of the large matrices only, and the head in int8."""

    def __init__(self, weights, kind):
        large = {name: t for name, t in weights.items() if name.split(".")[-2] in LARGE}
        self.weights = {
            id(t): WEIGHTS["int8" if name.startswith("head") else kind](t)
            for name, t in large.items()
        }
        self.quantises = False

    def __call__(self, t):
        if t.ndim == 2:
            self.quantises = id(t) in self.weights
            return self.weights.get(id(t), t)
        return activations(t) if self.quantises else t


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_it_matches_the_definition_with_quantised_products(kind, shape):
    options = SHAPES[shape]
    m, e, exact = model(**options), engine("cpu " + kind, **options), engine(**options)
    tokens = m.tokens(40)
    rounding = Rounding(m.exact, kind)
    expected, _ = m.reference(tokens, round=rounding)
    found = e.forward(tokens, e.new_state(), output="all")
    fp32 = exact.forward(tokens, exact.new_state(), output="all")
    # Steps that float32 takes the other way than float64 are few, and what they change is small.
    assert relative(found, expected) <= 1e-2
    assert 5e-4 < relative(found, fp32) <= (0.1 if kind == "int8" else 0.6)
    assert relative(found[:3], expected[:3]) < 0.5 * relative(found[:3], fp32[:3])
    assert len(rounding.weights) > 6 * options["L"]


@pytest.mark.parametrize("shape", SHAPES)
def test_fp16_matches_the_definition_with_rounded_matrices(shape):
    m = model(**SHAPES[shape], dtype="f32")
    e, exact = (rwkv.Engine(str(m.path()), s) for s in ("cpu fp16", "cpu fp32"))
    tokens = m.tokens(40)

    def rounded(t):
        return round_to(t.astype(np.float32), "f16").astype(np.float64) if t.ndim == 2 else t

    expected, _ = m.reference(tokens, round=rounded)
    found = e.forward(tokens, e.new_state(), output="all")
    fp32 = exact.forward(tokens, exact.new_state(), output="all")
    assert relative(found, expected) <= 1e-5
    assert 2e-5 < relative(found, fp32) <= 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_halves_loses_nothing(shape):
    m = model(**SHAPES[shape], dtype="f16")
    tokens, path = m.tokens(40), str(m.path("f16"))
    narrow, automatic, wide = (rwkv.Engine(path, s) for s in ("cpu fp16", "auto", "cpu fp32"))
    assert narrow._core.weight_bytes == automatic._core.weight_bytes < wide._core.weight_bytes
    every = [e.forward(tokens, e.new_state(), output="all") for e in (narrow, automatic, wide)]
    assert bits(every[0]) == bits(every[1]) == bits(every[2])
    for kind in ("cpu int8", "cpu int4"):  # the other matrices as in the file
        from_halves, from_floats = (rwkv.Engine(p, kind) for p in (path, str(m.path("f32"))))
        assert from_halves._core.weight_bytes <= from_floats._core.weight_bytes
        found, expected = (e.forward(tokens, e.new_state()) for e in (from_halves, from_floats))
        assert bits(found) == bits(expected)


@pytest.mark.parametrize("name", ["blocks.1.att.key.weight", "blocks.0.att.w1", "head.weight"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_numbers_too_large_for_a_half_are_refused(name, dtype, tmp_path):
    weights = dict(model(**SMALL).weights)
    weights[name] = weights[name].copy()
    weights[name].flat[-1] = -65536
    path = save(tmp_path / "a.pth", weights, dtype)
    with pytest.raises(rwkv.StrategyError) as error:
        rwkv.Engine(str(path), "cpu fp16")
    for word in ("a.pth", name, "fp16", "up to 65504", "-65536"):
        assert word in str(error.value)
    rwkv.Engine(str(path), "cpu fp32"), rwkv.Engine(str(path), "cpu int4")
    weights[name].flat[-1] = -65519  # the nearest half is -65504
    rwkv.Engine(str(save(tmp_path / "b.pth", weights, "f32")), "cpu fp16")


def test_memory_of_each_format():
    options = dict(L=2, C=512, N=64, F=2048, V=100, ranks=(8, 8, 8, 8))
    sizes = {}
    for s in ("fp32", "fp16", "bf16", "int8", "int4"):
        core = engine("cpu " + s, **options)._core
        sizes[s] = core.weight_bytes - core.column_bytes
    assert sizes["fp16"] == sizes["bf16"] < 0.53 * sizes["fp32"]
    large = 2 * (4 * 512 * 512 + 2 * 512 * 2048)  # the head is int8 in both
    assert sizes["int8"] - sizes["int4"] == large * (66 - 34) // 64


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


LOSSES = {"fp16": (0, 1e-5, 0.999), "int8": (1e-7, 2e-3, 0.97), "int4": (1e-6, 5e-2, 0.9)}


@pytest.mark.parametrize("name", ["demo", "tiny-rwkv4-660K", "tiny-rwkv6-3M", "tiny-rwkv7-834K"])
@pytest.mark.parametrize("kind", LOSSES)
def test_trained_models_lose_little(kind, name):
    path = name if name == "demo" else models_folder() / (name + ".pth")
    if name != "demo" and not path.exists():
        pytest.skip(f"{path} is absent")
    with open(__file__, "rb") as file:
        text = file.read()
    full, narrow = (rwkv.Engine(str(path), s, threads=2) for s in ("cpu fp32", "cpu " + kind))
    tokens = full.tokenizer.encode(text.decode()) if name == "demo" else list(text)
    p, q = (
        log_softmax(e.forward(tokens[:500], e.new_state(), output="all")) for e in (full, narrow)
    )
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    least, most, agreement = LOSSES[kind]
    assert least <= max(divergence, 0) < most
    assert (p.argmax(-1) == q.argmax(-1)).mean() > agreement


@pytest.mark.parametrize("word", ["int5", "fp8", "f16", "i4", ""])
def test_a_wrong_word_is_told_what_may_stand_there(word):
    with pytest.raises(rwkv.StrategyError, match=r"\(fp32, fp16, bf16, int8, int4\)"):
        engine(f"cpu {word} *1 -> cpu fp32", **SMALL)
