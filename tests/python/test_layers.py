"""What enters in place of tokens, and what layers leave: embeddings as input, outputs of chosen layers."""

import numpy as np
import pytest
from helpers import DEEP, OLDER, SMALL, bits, engine, model, relative, save, snapshot

import rwkv_engine as rwkv

VERSIONS = {**OLDER, "7": SMALL}
MANY = dict(L=5, C=64, N=16, F=192, V=40, ranks=(5, 6, 7, 9))


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


def looked_up(m, tokens, dtype=np.float32):
    return m.weights["emb.weight"][tokens].astype(dtype)


# ---- embeddings ----


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8", "cpu int4"])
def test_rows_of_the_table_are_their_tokens(version, strategy):
    """Bit for bit, in one call, token by token and after tokens."""
    m, e = model(**version), engine(strategy, **version)
    tokens = m.tokens(30)
    vectors = looked_up(m, tokens)
    expected, state = e.new_state(), e.new_state()
    rows = e.forward(tokens, expected, output="all")
    assert bits(e.forward(embeddings=vectors, state=state, output="all")) == bits(rows)
    parts = state.to_numpy()
    assert all(bits(part) == bits(parts[name]) for name, part in expected.to_numpy().items())
    assert state.tokens_seen == 30 and state.last_token is None

    pieces = e.new_state()
    e.forward(tokens[:7], pieces)
    e.forward(embeddings=vectors[7:8], state=pieces)
    e.forward(embeddings=vectors[8:29], state=pieces, output="none")
    e.forward(tokens[29:], pieces)
    assert pieces.to_bytes() == expected.to_bytes()


def test_embeddings_that_no_token_has_match_the_definition(version):
    m, e = model(**version), engine(**version)
    vectors = np.random.default_rng(1).normal(size=(40, e.config.n_embd)).astype(np.float32)
    exact = m.exact | {"emb.weight": vectors.astype(np.float64)}
    expected = m.definition.forward(exact, range(40), m.definition.State(exact))
    assert relative(e.forward(embeddings=vectors, state=e.new_state(), output="all"), expected) <= 1e-5


def test_embeddings_in_batches_and_panels():
    """More rows than go through the layers at once, beside shorter sequences, on any number of threads."""
    m = model(**SMALL)
    tokens = m.tokens(3000)
    vectors = looked_up(m, tokens)
    for threads in (1, 2, 3):
        e = engine(threads=threads, **SMALL)
        states = [e.new_state() for _ in range(3)]
        rows = e.forward_batch(
            embeddings=[vectors[:5], vectors, vectors[:1]], states=states, output="hidden"
        )
        assert [len(r) for r in rows] == [5, 3000, 1]
        assert bits(rows[1]) == bits(e.forward(tokens, e.new_state(), output="hidden"))
        assert bits(rows[0]) == bits(rows[1][:5])
        assert bits(rows[2]) == bits(rows[1][:1])


def test_halves_and_views_are_taken_as_they_are():
    m, e = model(**SMALL), engine(**SMALL)
    halves = looked_up(m, m.tokens(6), np.float16)
    expected = bits(e.forward(embeddings=halves.astype(np.float32), state=e.new_state()))
    assert bits(e.forward(embeddings=halves, state=e.new_state())) == expected
    doubled = np.repeat(halves.astype(np.float32), 2, axis=1)[:, ::2]
    assert not doubled.flags.c_contiguous
    assert bits(e.forward(embeddings=doubled, state=e.new_state())) == expected


def test_a_text_goes_on_after_embeddings():
    e = rwkv.Engine("demo", "cpu fp32")
    state = e.new_state()
    prefix = np.random.default_rng(0).normal(size=(4, e.config.n_embd)).astype(np.float32)
    e.forward(embeddings=prefix, state=state)
    again = e.state_from_bytes(state.to_bytes())
    params = rwkv.SamplingParams(temperature=0, max_tokens=8)
    assert e.generate("", params, state).tokens == e.generate("", params, again).tokens


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, rwkv.Error, ["either tokens or embeddings", "neither"]),
        ({"tokens": [1], "embeddings": np.zeros((1, 64), "f4")}, rwkv.Error, ["both"]),
        ({"embeddings": np.zeros((2, 63), "f4")}, rwkv.Error, ["(T, 64)", "(2, 63)"]),
        ({"embeddings": np.zeros(64, "f4")}, rwkv.Error, ["(T, 64)", "(64,)"]),
        ({"embeddings": np.zeros((0, 64), "f4")}, rwkv.Error, ["(0, 64)"]),
        ({"embeddings": np.zeros((1, 64))}, TypeError, ["float32 or float16", "float64"]),
        ({"embeddings": [[1] * 64]}, TypeError, ["float32 or float16", "int64"]),
        ({"tokens": np.zeros(3, "f4")}, TypeError, ["sequence of integers", "float32"]),
        ({"embeddings": np.full((1, 64), np.nan, "f4")}, rwkv.NonFiniteError, ["NaN or infinity"]),
    ],
)
def test_what_is_refused_leaves_the_state(given, error, words):
    m, e = model(**SMALL), engine(**SMALL)
    state = e.new_state()
    e.forward(m.tokens(3), state)
    before = state.to_bytes()
    with pytest.raises(error) as raised:
        e.forward(**given, state=state)
    assert all(word in str(raised.value) for word in words), raised.value
    assert state.to_bytes() == before


def test_a_call_without_a_state_says_so():
    e = engine(**SMALL)
    with pytest.raises(TypeError, match="state: expected a State, found NoneType"):
        e.forward([1])
    with pytest.raises(TypeError, match="state: expected a State, found NoneType"):
        e.layer_outputs([1])


def test_layers_that_look_tokens_up_refuse_embeddings():
    e = engine(**DEEP)
    with pytest.raises(rwkv.Error, match="RWKV-7a.*expected tokens, found embeddings"):
        e.forward(embeddings=np.zeros((1, e.config.n_embd), "f4"), state=e.new_state())


# ---- outputs of layers ----


@pytest.mark.parametrize("options", [*VERSIONS.values(), DEEP], ids=[*VERSIONS, "7a"])
def test_layers_match_the_definition(options):
    m, e = model(**options), engine(**options)
    tokens = m.tokens(20)
    residuals = []
    m.reference(tokens, residuals=residuals)
    layers, width = e.config.n_layer, e.config.n_embd
    expected = np.array(residuals).reshape(20, layers, width).swapaxes(0, 1)
    found = e.layer_outputs(tokens, e.new_state())
    assert found.shape == (layers, 20, width) and found.dtype == np.float32
    for layer in range(layers):
        assert relative(found[layer], expected[layer]) <= 1e-5, layer


def test_layers_have_the_same_bits_however_they_are_asked_for():
    m, e = model(**MANY), engine(**MANY)
    tokens = m.tokens(2500)  # several panels
    state = e.new_state()
    every = e.layer_outputs(tokens, state)
    assert (bits(state.last_logits), state.to_bytes()) == snapshot(e, tokens)
    some = e.layer_outputs(tokens, e.new_state(), layers=[3, 0, 4])
    assert bits(some) == bits(every[[3, 0, 4]])
    parts = e.new_state()
    pieces = [e.layer_outputs(tokens[at : at + 999], parts, [1]) for at in range(0, 2500, 999)]
    assert bits(np.concatenate(pieces, axis=1)) == bits(every[1:2])
    vectors = looked_up(m, tokens)
    assert bits(e.layer_outputs(embeddings=vectors, state=e.new_state())) == bits(every)
    assert e.layer_outputs([1], e.new_state(), layers=[]).shape == (0, 1, 64)


def test_the_norm_of_the_last_layer_is_the_hidden_output():
    m, e = model(**MANY), engine(**MANY)
    tokens = m.tokens(9)
    x = e.layer_outputs(tokens, e.new_state(), [4])[0].astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    normed = normed * m.exact["ln_out.weight"] + m.exact["ln_out.bias"]
    assert relative(e.forward(tokens, e.new_state(), output="hidden"), normed) <= 1e-5


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ([5], rwkv.Error, ["layers", "0 to 4", "5"]),
        ([-1], rwkv.Error, ["layers", "0 to 4", "-1"]),
        ([1, 1], rwkv.Error, ["each once", "1"]),
        ([1.0], TypeError, ["layers", "float"]),
        ("12", TypeError, ["layers", "str"]),
    ],
)
def test_layers_that_are_not_there(layers, error, words):
    e = engine(**MANY)
    state = e.new_state()
    with pytest.raises(error) as raised:
        e.layer_outputs([1], state, layers)
    assert all(word in str(raised.value) for word in words), raised.value
    assert state.tokens_seen == 0


def test_a_model_cut_after_a_layer_ends_with_its_output(tmp_path):
    """The same numbers by another road: the weights of the first layers alone, with a plain last norm."""
    m, e = model(**MANY), engine(**MANY)
    tokens = m.tokens(12)
    cut = {
        name: t
        for name, t in m.weights.items()
        if not name.startswith("blocks.") or int(name.split(".")[1]) < 3
    }
    first = rwkv.Engine(str(save(tmp_path / "cut.pth", cut)), "cpu fp32", threads=2)
    found = first.layer_outputs(tokens, first.new_state())
    assert bits(found) == bits(e.layer_outputs(tokens, e.new_state(), [0, 1, 2]))


# ---- on a GPU ----


@pytest.mark.parametrize("strategy", ["cuda fp16", "cuda fp32 *1 -> cpu fp32", "cpu fp32 *1 -> cuda fp16"])
def test_embeddings_and_outputs_of_layers(device, strategy):
    m, e, cpu = model(**SMALL), engine(strategy, **SMALL), engine(**SMALL)
    tokens = m.tokens(70)
    vectors = m.weights["emb.weight"][tokens]
    state = e.new_state()
    logits = e.forward(embeddings=vectors, state=state)
    assert (bits(logits), state.to_numpy()["att.wkv"].tobytes()) == (
        bits(e.forward(tokens, other := e.new_state())),
        other.to_numpy()["att.wkv"].tobytes(),
    )
    outputs = e.layer_outputs(tokens, e.new_state(), [1, 0])
    expected = cpu.layer_outputs(tokens, cpu.new_state(), [1, 0])
    assert relative(outputs, expected) <= 2e-3
    assert bits(e.layer_outputs(embeddings=vectors, state=e.new_state(), layers=[1])) == bits(outputs[:1])
