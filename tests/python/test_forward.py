"""Logits against the float64 definition, at the shapes where a kernel's edges lie."""

import numpy as np
import pytest
from helpers import SMALL, bits, engine, model, models_folder, relative, round_to, save

import rwkv_engine as rwkv

SHAPES = {
    "one layer": dict(L=1, C=32, N=16, F=128, V=20, ranks=(8, 8, 8, 8)),
    "small heads": dict(L=2, C=32, N=16, F=128, V=12, ranks=(8, 8, 8, 8)),
    "heads of 8": dict(L=2, C=24, N=8, F=40, V=17, ranks=(4, 4, 4, 4)),
    "heads of 32": dict(L=2, C=96, N=32, F=384, V=50, ranks=(8, 8, 8, 8)),
    "heads of 64": dict(L=3, C=128, N=64, F=512, V=100, ranks=(16, 16, 16, 16)),
    "one head": dict(L=2, C=64, N=64, F=256, V=33, ranks=(8, 8, 8, 8)),
    "C=192": dict(L=2, C=192, N=64, F=768, V=70, ranks=(16, 24, 8, 40)),
    "C=320": dict(L=2, C=320, N=64, F=1280, V=70, ranks=(16, 24, 8, 40)),
    "odd ranks": dict(L=2, C=64, N=16, F=256, V=40, ranks=(5, 1, 7, 33)),
    "odd F": dict(L=2, C=64, N=16, F=171, V=40, ranks=(8, 8, 8, 8)),
    "narrow F": dict(L=2, C=64, N=16, F=31, V=40, ranks=(8, 8, 8, 8)),
    "odd heads": dict(L=2, C=60, N=20, F=90, V=13, ranks=(8, 8, 8, 8)),
    "odd head size": dict(L=2, C=35, N=5, F=70, V=13, ranks=(3, 3, 3, 3)),
    "heads of 1": dict(L=2, C=7, N=1, F=14, V=13, ranks=(2, 2, 2, 2)),
    "heads of 128": dict(L=2, C=256, N=128, F=300, V=13, ranks=(8, 8, 8, 8)),
    "one token of vocabulary": dict(L=2, C=32, N=16, F=64, V=1, ranks=(4, 4, 4, 4)),
    "many layers": dict(L=8, C=64, N=16, F=256, V=40, ranks=(8, 8, 8, 8)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fp32_matches_the_definition(shape):
    m, e = model(**shape), engine(**shape)
    tokens = m.tokens(40)
    expected, _ = m.reference(tokens)
    assert relative(e.forward(tokens, e.new_state(), output="all"), expected) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 12, 13, 31, 32, 33, 64, 100])
def test_every_length_matches_the_definition(count):
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(count, seed=count)
    expected, _ = m.reference(tokens)
    state = e.new_state()
    assert relative(e.forward(tokens, state), expected[-1]) <= 1e-5
    assert relative(e.forward(tokens, e.new_state(), output="all"), expected) <= 1e-5
    assert state.tokens_seen == count


def test_config_is_read_from_the_shapes():
    c = engine(L=2, C=60, N=20, F=90, V=13, ranks=(8, 8, 8, 8)).config
    assert c.version == "7"
    assert (c.n_layer, c.n_embd, c.n_head, c.head_size, c.n_ffn, c.n_vocab) == (
        2,
        60,
        3,
        20,
        90,
        13,
    )


def test_outputs_have_their_shapes_and_agree():
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(9)
    states = [e.new_state() for _ in range(4)]
    last = e.forward(tokens, states[0])
    every = e.forward(tokens, states[1], output="all")
    nothing = e.forward(tokens, states[2], output="none")
    hidden = e.forward(tokens, states[3], output="hidden")
    assert (
        last.shape == (m.V,)
        and every.shape == (9, m.V)
        and hidden.shape == (9, 64)
        and nothing is None
    )
    assert last.dtype == every.dtype == hidden.dtype == np.float32
    assert bits(every[-1]) == bits(last)
    expected, _ = m.reference(tokens, hidden=True)
    assert relative(hidden, expected) <= 1e-5
    assert len({s.to_numpy()["att.wkv"].tobytes() for s in states}) == 1
    assert e.forward(tokens[:1], e.new_state(), output="all").shape == (1, m.V)
    with pytest.raises((rwkv.Error, ValueError), match="sideways"):
        e.forward(tokens, e.new_state(), output="sideways")
    with pytest.raises(TypeError, match="output: expected a str, found NoneType"):
        e.forward(tokens, e.new_state(), output=None)


def test_results_belong_to_the_caller():
    m, e = model(**SMALL), engine(**SMALL)
    state = e.new_state()
    first = e.forward(m.tokens(3), state)
    kept = first.copy()
    e.forward(m.tokens(3, seed=1), state)
    assert bits(first) == bits(kept)


def test_tokens_may_be_any_sequence_of_integers():
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(6)
    expected = bits(e.forward(tokens, e.new_state()))
    for same in (
        tuple(tokens),
        np.array(tokens),
        np.array(tokens, np.int32),
        np.array(tokens, np.uint16),
        np.repeat(tokens, 2)[::2],
    ):
        assert bits(e.forward(same, e.new_state())) == expected


def test_a_batch_matches_the_definition():
    m, e = model(**SMALL), engine(**SMALL)
    rows = [m.tokens(n, seed=n) for n in (5, 1, 17, 2)]
    found = e.forward_batch(rows, [e.new_state() for _ in rows])
    assert relative(found, np.array([m.reference(row)[0][-1] for row in rows])) <= 1e-5


def test_a_batch_may_be_an_array():
    m, e = model(**SMALL), engine(**SMALL)
    for rows in (np.zeros((1, 1), np.int64), np.array([m.tokens(3), m.tokens(3, seed=1)])):
        found = e.forward_batch(rows, [e.new_state() for _ in rows])
        assert bits(found) == bits(e.forward_batch(rows.tolist(), [e.new_state() for _ in rows]))


def test_a_state_carries_on():
    m, e = model(**SMALL), engine(**SMALL)
    state, exact = e.new_state(), None
    for n in (3, 1, 20, 1):
        tokens = m.tokens(n, seed=n)
        expected, exact = m.reference(tokens, exact)
        assert relative(e.forward(tokens, state), expected[-1]) <= 1e-5


def test_unused_tensors_of_the_first_layer_change_nothing():
    with_them, without = engine(**SMALL, layer0_v=True), engine(**SMALL, layer0_v=False)
    tokens = model(**SMALL).tokens(20)
    assert bits(with_them.forward(tokens, with_them.new_state())) == bits(
        without.forward(tokens, without.new_state())
    )


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16"])
def test_containers_agree_in_every_bit(dtype, strategy):
    options = dict(SMALL, dtype=dtype)
    m = model(**options)
    tokens = m.tokens(20)
    pth, st = (
        rwkv.Engine(str(m.path(dtype, suffix)), strategy, threads=2)
        for suffix in (".pth", ".safetensors")
    )
    assert bits(pth.forward(tokens, pth.new_state())) == bits(st.forward(tokens, st.new_state()))
    assert pth.fingerprint == st.fingerprint
    if strategy == "cpu fp32":
        assert relative(pth.forward(tokens, pth.new_state()), m.reference(tokens)[0][-1]) <= 1e-5


def test_the_same_numbers_in_a_wider_dtype_give_the_same_bits():
    m = model(**SMALL)
    tokens = m.tokens(20)
    narrow, wide = (
        rwkv.Engine(str(m.path(dtype)), "cpu fp32", threads=2) for dtype in ("bf16", "f32")
    )
    assert bits(narrow.forward(tokens, narrow.new_state())) == bits(
        wide.forward(tokens, wide.new_state())
    )
    assert narrow.fingerprint == wide.fingerprint


def test_auto_keeps_the_precision_of_the_file():
    m = model(**SMALL)
    tokens = m.tokens(20)
    results, sizes = {}, {}
    for strategy, dtype in (
        ("auto", "bf16"),
        ("cpu bf16", "bf16"),
        ("auto", "f32"),
        ("cpu fp32", "f32"),
        ("auto", "f16"),
        ("cpu fp16", "f16"),
    ):
        e = rwkv.Engine(str(m.path(dtype)), strategy, threads=2)
        results[strategy, dtype] = bits(e.forward(tokens, e.new_state()))
        sizes[strategy, dtype] = e._core.weight_bytes
    if results["auto", "bf16"] != results["cpu bf16", "bf16"]:
        pytest.skip("auto chose a device other than the CPU")
    assert results["auto", "f32"] == results["cpu fp32", "f32"] != results["cpu bf16", "bf16"]
    assert results["auto", "f16"] == results["cpu fp16", "f16"]
    assert sizes["auto", "f16"] == sizes["cpu fp16", "f16"] < 0.7 * sizes["auto", "f32"]


def test_transposed_storage_is_the_same_model(tmp_path):
    """torch.save keeps the strides of a view; the file then holds the matrix column by column."""
    m = model(**SMALL)
    matrices = {name for name, t in m.weights.items() if t.ndim == 2}
    path = save(tmp_path / "views.pth", m.weights, transposed=matrices)
    e, plain = rwkv.Engine(str(path), "cpu fp32", threads=2), engine(**SMALL)
    tokens = m.tokens(20)
    assert bits(e.forward(tokens, e.new_state())) == bits(plain.forward(tokens, plain.new_state()))
    assert e.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "shape",
    [SMALL, SHAPES["C=320"], SHAPES["odd F"], SHAPES["odd ranks"]],
    ids=["small", "C=320", "odd F", "odd ranks"],
)
def test_bf16_matches_the_definition_with_rounded_products(shape):
    m, e, exact = model(**shape), engine("cpu bf16", **shape), engine(**shape)
    tokens = m.tokens(40)
    rounded, _ = m.reference(tokens, round=lambda t: round_to(t, "bf16").astype(np.float64))
    found = e.forward(tokens, e.new_state(), output="all")
    fp32 = exact.forward(tokens, exact.new_state(), output="all")
    assert relative(found, rounded) <= 2e-2
    assert 1e-4 < relative(found, fp32) <= 5e-2


def test_a_strategy_may_split_the_layers():
    m = model(**SMALL)
    tokens = m.tokens(20)
    whole, split = engine("cpu fp32", **SMALL), engine("cpu fp32 *1 -> cpu fp32", **SMALL)
    assert bits(whole.forward(tokens, whole.new_state())) == bits(
        split.forward(tokens, split.new_state())
    )
    mixed, rounded = engine("cpu bf16 *1 -> cpu fp32", **SMALL), engine("cpu bf16", **SMALL)
    results = {bits(e.forward(tokens, e.new_state())) for e in (mixed, rounded, whole)}
    assert len(results) == 3


@pytest.mark.parametrize("name", ["tiny-rwkv4-660K", "tiny-rwkv6-3M", "tiny-rwkv7-834K"])
def test_trained_models(name):
    path = models_folder() / (name + ".pth")
    if not path.exists():
        pytest.skip(f"{path} is absent")
    expected = np.load(path.with_suffix(".logits.npy"))
    e = rwkv.Engine(str(path), "cpu fp32", threads=2)
    assert relative(e.forward(list(b'"in'), e.new_state()), expected[0]) <= 1e-5
    text = b"The quick brown fox jumps over the lazy dog."
    assert relative(e.forward(list(text), e.new_state(), output="all"), expected[1:]) <= 1e-5
