"""RWKV-4 to 6 against their definitions, and what they share with RWKV-7: states, strategies, stages, errors.

That splits, batches, threads and instruction sets change no bit of any version is in test_exact.py.
"""

import numpy as np
import pytest
from helpers import (
    DEEP,
    OLDER,
    SMALL,
    bits,
    engine,
    model,
    refusal,
    relative,
    round_to,
    save,
    snapshot,
)

import rwkv_engine as rwkv

SIZES = {
    "odd": {},
    "small": dict(L=3, C=64, A=64, N=16, F=192, V=40),
    "heads of 64": dict(L=2, C=192, A=128, N=64, F=512, V=100),
    "one head": dict(L=2, C=24, A=24, N=24, F=31, V=12),
    "one layer": dict(L=1, C=7, A=5, N=1, F=14, V=13),
}
ALL = {**OLDER, "7": SMALL, "7a": DEEP}


@pytest.fixture(params=OLDER)
def older(request):
    return OLDER[request.param]


@pytest.fixture(params=ALL)
def any_version(request):
    return ALL[request.param]


# ---- the definitions ----


@pytest.mark.parametrize("size", SIZES)
def test_fp32_matches_the_definition(older, size):
    options = older | SIZES[size]
    m, e = model(**options), engine(**options)
    tokens = m.tokens(40)
    state = e.new_state()
    found = e.forward(tokens, state, output="all")
    expected, exact = m.reference(tokens)
    assert relative(found, expected) <= 1e-5
    parts = state.to_numpy()
    assert list(parts) == list(exact.parts())
    for name, part in exact.parts().items():
        assert relative(parts[name], part) <= 1e-5, name
    hidden, _ = m.reference(tokens, hidden=True)
    assert relative(e.forward(tokens, e.new_state(), output="hidden"), hidden) <= 1e-5


def test_a_state_goes_on_from_the_definitions(older):
    """Given as arrays, after many tokens: the decays have had their effect."""
    m, e = model(**older), engine(**older)
    first, rest = m.tokens(300), m.tokens(20, seed=1)
    _, exact = m.reference(first)
    given = e.state_from_numpy(
        {name: part.astype(np.float32) for name, part in exact.parts().items()}
    )
    expected, _ = m.reference(rest, exact)
    assert relative(e.forward(rest, given, output="all"), expected) <= 1e-5


EXTREMES = {
    "slow decays": ("att.time_decay", lambda t: t * 0 - 12),  # nothing is forgotten
    "fast decays": ("att.time_decay", lambda t: t * 0 + 6),  # exp(-exp(6)) is no float32
    "large keys": ("att.key.weight", lambda t: t * 300),  # their exponentials are no float32
    "large bonus": (("att.time_faaaa", "att.time_first"), lambda t: t * 30),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_weights_match_the_definition(older, extreme, tmp_path):
    ending, change = EXTREMES[extreme]
    m = model(**older)
    weights = {k: change(t) if k.endswith(ending) else t for k, t in m.weights.items()}
    exact = {name: t.astype(np.float64) for name, t in weights.items()}
    e = rwkv.Engine(str(save(tmp_path / "a.pth", weights)), "cpu fp32", threads=2)
    tokens, state, expected_state = m.tokens(40), e.new_state(), m.definition.State(exact)
    expected = m.definition.forward(exact, tokens, expected_state)
    assert relative(e.forward(tokens, state, output="all"), expected) <= 1e-5
    assert snapshot(e, tokens) == snapshot(e, tokens, [1] * 40)
    for name, part in expected_state.parts().items():
        assert relative(state.to_numpy()[name], part) <= 1e-4, name


def test_bf16_matches_the_definition_with_rounded_products(older):
    options = older | SIZES["heads of 64"]
    m, e, exact = model(**options), engine("cpu bf16", **options), engine(**options)
    tokens = m.tokens(40)
    rounded, _ = m.reference(tokens, round=lambda t: round_to(t, "bf16").astype(np.float64))
    found = e.forward(tokens, e.new_state(), output="all")
    assert relative(found, rounded) <= 2e-2
    assert 1e-4 < relative(found, exact.forward(tokens, exact.new_state(), output="all")) <= 5e-2


def test_the_definitions_differ(older):
    """The comparisons above can fail: dropping what sets a version apart shows in the logits."""
    m = model(**older)
    tokens = m.tokens(40)
    expected, _ = m.reference(tokens)
    changed = {
        "4": ["time_first"],
        "5.0": ["time_first"],
        "5.1": ["gate.weight", "time_faaaa", "time_first"],
        "5.2": ["time_faaaa", "time_decay"],
        "6": ["time_maa_w2", "time_decay_w2", "time_maa_x"],
    }[older["version"]]
    for ending in changed:
        names = [name for name in m.exact if name.endswith("att." + ending)]
        weights = m.exact | {name: m.exact[name] * 0.9 for name in names}
        if names:
            found = m.definition.forward(weights, tokens, m.definition.State(weights))
            assert relative(found, expected) > 1e-4, ending


# ---- what every version does ----


def test_config(older):
    c = engine(**older).config
    assert c.version == older["version"]
    heads = (0, 0) if c.version == "4" else (9, 5)
    assert (c.n_layer, c.n_embd, c.n_ffn, c.n_vocab) == (2, 35, 91, 17)
    assert (c.n_head, c.head_size) == heads


@pytest.mark.parametrize(
    "strategy",
    [
        "cpu fp32",
        "cpu fp16",
        "cpu bf16",
        "cpu int8",
        "cpu int4",
        "cpu bf16 *1 -> cpu fp32",
        "cpu fp16 *1 -> cpu int4",
        "cpu int8 *1 -> cpu bf16",
        "cpu int4 *1 -> cpu int8",
    ],
)
def test_strategies(any_version, strategy):
    m, e, whole = model(**any_version), engine(strategy, **any_version), engine(**any_version)
    tokens = m.tokens(30)
    assert snapshot(e, tokens) == snapshot(e, tokens, [1] * 30) == snapshot(e, tokens, [7, 13, 10])
    found, exact = (x.forward(tokens, x.new_state(), output="all") for x in (e, whole))
    tolerance = 0.5 if "int4" in strategy else 0.1 if "int8" in strategy else 0.05
    assert relative(found, exact) <= tolerance
    if strategy != "cpu fp16":  # which holds numbers of few bits as they are
        assert (bits(found) == bits(exact)) == (strategy == "cpu fp32")
    assert e.fingerprint == whole.fingerprint


@pytest.mark.parametrize("device", ["cuda fp16", "cuda:1 bf16 *1 -> cpu fp32", "cuda fp16i8"])
def test_devices_that_are_not_there(any_version, device):
    with pytest.raises(rwkv.DeviceError, match="cuda"):
        engine(device, **any_version)


def test_a_save_and_another_engine_in_between(any_version):
    m = model(**any_version)
    first, second = engine(threads=1, **any_version), engine(threads=3, **any_version)
    start, rest = m.tokens(33), m.tokens(21, seed=1)
    state = first.new_state()
    first.forward(start, state)
    again = second.state_from_bytes(state.to_bytes())
    assert again.tokens_seen == 33 and bits(again.last_logits) == bits(state.last_logits)
    given = first.state_from_numpy(state.to_numpy())
    logits = {
        bits(e.forward(rest, s)) for e, s in ((first, state), (second, again), (first, given))
    }
    assert len(logits) == 1
    assert state.to_bytes() == again.to_bytes()


def test_forks(any_version):
    m, e = model(**any_version), engine("cpu bf16", **any_version)
    start, rest = m.tokens(20), m.tokens(10, seed=1)
    plain = snapshot(e, start + rest, [20, 10])
    state = e.new_state()
    e.forward(start, state)
    branches = state.fork(3)
    e.forward(m.tokens(5, seed=2), branches[0])
    assert snapshot(e, rest, state=branches[1]) == plain
    assert snapshot(e, rest, [1] * 10, state=branches[2]) == plain
    assert snapshot(e, rest, state=state) == plain


@pytest.mark.parametrize("other", ALL)
def test_a_state_of_another_version_is_refused(any_version, other):
    mine, its = engine(**any_version), engine(**ALL[other])
    foreign = its.new_state()
    blob, parts = foreign.to_bytes(), foreign.to_numpy()
    with pytest.raises(rwkv.Error, match="engine"):
        mine.forward([1], foreign)
    if any_version is ALL[other]:
        assert mine.state_from_bytes(blob).tokens_seen == 0
        return
    versions = mine.config.version, its.config.version
    if versions[0] == versions[1]:  # the two forms of 5.1 are other weights, not another model
        with pytest.raises(rwkv.StateError, match="expected the fingerprint"):
            mine.state_from_bytes(blob)
        assert mine.state_from_bytes(blob, check_weights=False).to_numpy().keys() == parts.keys()
        return
    for options in ({}, {"check_weights": False}):
        with pytest.raises(rwkv.StateError) as error:
            mine.state_from_bytes(blob, **options)
        assert "expected model_version {}, found {}".format(*versions) in str(error.value)
    # The arrays of 5 and 6 have the same names and shapes.
    if "4" in versions or "7" in versions:
        with pytest.raises(rwkv.StateError, match="expected"):
            mine.state_from_numpy(parts)


# ---- files ----


def test_the_order_of_the_tensors_does_not_matter(any_version, tmp_path):
    m, e = model(**any_version), engine(**any_version)
    tokens = m.tokens(10)
    expected = bits(e.forward(tokens, e.new_state()))
    names = sorted(m.weights)
    for order in (names, names[::-1], np.random.default_rng(0).permutation(names).tolist()):
        path = save(tmp_path / "a.pth", {name: m.weights[name] for name in order})
        shuffled = rwkv.Engine(str(path), "cpu fp32", threads=2)
        assert shuffled.config == e.config and shuffled.fingerprint == e.fingerprint
        assert bits(shuffled.forward(tokens, shuffled.new_state())) == expected


def test_a_missing_tensor_is_named(older, tmp_path):
    weights = model(**older).weights
    for name in weights:
        message = refusal(save(tmp_path / "a.pth", {k: t for k, t in weights.items() if k != name}))
        # The mark of a block: without it this is a smaller model, with a surplus.
        if name == "blocks.1.att.key.weight":
            assert "blocks.1." in message
        elif name.endswith("att.time_first") and older["version"] != "4":
            newer = name.replace("time_first", "time_faaaa")
            assert f"expected the tensor {newer}" in message
        else:
            assert name in message, (name, message)


def test_a_wrong_shape_is_named_with_both_shapes(older, tmp_path):
    weights = model(**older).weights
    for name, t in weights.items():
        wrong = np.zeros((*t.shape[:-1], t.shape[-1] + 1), np.float32)
        message = refusal(save(tmp_path / "a.pth", {**weights, name: wrong}))
        assert "expected" in message and "found" in message, (name, message)
        if name == "emb.weight":  # it says what the others should be
            assert "blocks.0.ln0.weight: expected (36), found (35)" in message
        else:
            # The width of one of a low-rank pair is what the other should have.
            assert name.replace("decay_w1", "decay_w2") in message, (name, message)
    wrong = np.zeros((45, 36), np.float32)
    for name in ("blocks.1.att.receptance.weight", "blocks.0.att.value.weight"):
        message = refusal(save(tmp_path / "a.pth", {**weights, name: wrong}))
        assert f"{name}: expected (45, 35), found (45, 36)" in message


def test_a_surplus_tensor_is_named(older, tmp_path):
    surplus = {"blocks.0.att.extra": np.zeros((3, 4), np.float32)}
    refusal(save(tmp_path / "a.pth", {**model(**older).weights, **surplus}), "blocks.0.att.extra")
