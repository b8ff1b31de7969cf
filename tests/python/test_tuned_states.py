"""Tuned initial states: from files and arrays, inside of models, side by side in a batch, and what is refused."""

import numpy as np
import pytest
from checkpoint_files import write_pth, write_safetensors
from helpers import OLDER, SMALL, bits, engine, model, refusal, relative, rwkv, save
from rwkv_engine.inspection import inspect, report

CASES = {"7": SMALL, **{name: OLDER[name] for name in OLDER if name != "4"}}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def tuned(m, seed=1, std=0.3):
    """name -> (H, N, N) [value, key], as trainers write it."""
    shape = m.definition.State(m.exact).wkv.shape
    drawn = np.random.default_rng(seed).normal(0, std, shape).astype(np.float32)
    return {f"blocks.{i}.att.time_state": layer for i, layer in enumerate(drawn)}


def expected(m, state, tokens):
    """Logits of the definition, which keeps [key, value] before RWKV-7."""
    wkv = np.stack(list(state.values())).astype(np.float64)
    start = m.definition.State(m.exact)
    start.wkv[:] = wkv if m.options.get("version", "7") == "7" else wkv.swapaxes(-1, -2)
    return m.reference(tokens, start)[0]


@pytest.mark.parametrize("case", CASES)
def test_the_recurrence_begins_with_it(case, tmp_path):
    m, e = model(**CASES[case]), engine(**CASES[case])
    state = tuned(m)
    tokens = [t % m.V for t in TOKENS]
    files = [save(tmp_path / "a.pth", state), save(tmp_path / "a.safetensors", state)]
    found = []
    for init in (state, *files, str(files[0])):
        s = e.new_state(init=init)
        assert (s.tokens_seen, s.last_token, s.last_logits) == (0, None, None)
        parts = s.to_numpy()
        assert (parts["att.wkv"] == np.stack(list(state.values()))).all()
        assert not parts["att.shift"].any() and not parts["ffn.shift"].any()
        found.append(bits(e.forward(tokens, s, output="all")))
    assert len(set(found)) == 1
    logits = e.forward(tokens, e.new_state(init=state), output="all")
    assert relative(logits, expected(m, state, tokens)) <= 1e-5
    turned = {name: t.swapaxes(-1, -2) for name, t in state.items()}
    assert relative(logits, expected(m, turned, tokens)) > 1e-3  # the orientation matters here


def test_several_side_by_side_in_one_batch():
    m, e = model(**SMALL), engine(**SMALL)
    inits = [None, tuned(m, 1), tuned(m, 2), tuned(m, 1)]
    alone = []
    for init in inits:
        state = e.new_state(init=init)
        alone.append((bits(e.forward(TOKENS, state)), state.to_bytes()))
    states = [e.new_state(init=init) for init in inits]
    rows = e.forward_batch([TOKENS] * len(inits), states)
    assert [(bits(row), s.to_bytes()) for row, s in zip(rows, states)] == alone
    assert alone[1] == alone[3] and len(set(alone)) == 3


@pytest.mark.parametrize("strategy", ["cpu fp32 *1 -> cpu bf16", "cpu int8"])
def test_on_any_strategy(strategy):
    m = model(**SMALL)
    state, e = tuned(m), engine(strategy, **SMALL)
    wkv = e.new_state(init=state).to_numpy()["att.wkv"]
    assert bits(wkv) == bits(np.stack(list(state.values())))


def test_narrow_numbers_and_what_trainers_put_before_names(tmp_path):
    m, e = model(**SMALL), engine(**SMALL)
    state = {name: t.astype(np.float16).astype(np.float32) for name, t in tuned(m).items()}
    plain = e.new_state(init=state).to_bytes()
    wrapped = {"model._orig_mod." + name: t for name, t in state.items()}
    write_pth(tmp_path / "a.pth", wrapped, "f16")
    write_safetensors(tmp_path / "a.safetensors", state, "f16")
    halves = {name: t.astype(np.float16) for name, t in state.items()}
    doubles = {name: t.astype(np.float64) for name, t in state.items()}
    for init in (tmp_path / "a.pth", tmp_path / "a.safetensors", halves, doubles):
        assert e.new_state(init=init).to_bytes() == plain


# ---- inside of a model ----


def test_a_model_that_has_one_begins_with_it(tmp_path):
    m = model(**SMALL)
    state = tuned(m)
    path = save(tmp_path / "with.pth", {**m.weights, **state})
    plain, e = engine(**SMALL), rwkv.Engine(path, "cpu fp32", threads=2)
    logits = e.forward(TOKENS, e.new_state())
    assert bits(logits) == bits(plain.forward(TOKENS, plain.new_state(init=state)))
    assert e.fingerprint != plain.fingerprint
    with pytest.raises(rwkv.StateError, match="fingerprint"):
        e.state_from_bytes(plain.new_state().to_bytes())
    other = tuned(m, 2)  # what the caller wants goes before what the file has
    assert bits(e.forward(TOKENS, e.new_state(init=other))) == bits(
        plain.forward(TOKENS, plain.new_state(init=other))
    )
    changed = {name: t + 1 for name, t in state.items()}
    again = rwkv.Engine(save(tmp_path / "b.pth", {**m.weights, **changed}), "cpu fp32", threads=1)
    assert again.fingerprint not in (e.fingerprint, plain.fingerprint)


def test_files_made_of_such_a_model_keep_it(tmp_path):
    m = model(**SMALL)
    path = save(tmp_path / "with.pth", {**m.weights, **tuned(m)}, "bf16")
    e = rwkv.Engine(path, "cpu fp32", threads=2)
    logits = bits(e.forward(TOKENS, e.new_state()))
    rwkv.convert(path, tmp_path / "a.safetensors")
    rwkv.quantize(path, tmp_path / "p.safetensors", "fp32")
    for made in ("a.safetensors", "p.safetensors"):
        again = rwkv.Engine(tmp_path / made, "cpu fp32", threads=2)
        assert again.fingerprint == e.fingerprint
        assert bits(again.forward(TOKENS, again.new_state())) == logits
    with pytest.raises(rwkv.ModelFormatError, match=r"tuned.*GGUF.*blocks\.0\.att\.time_state"):
        rwkv.convert(path, tmp_path / "a.gguf")


def test_inspect_shows_it(tmp_path):
    m = model(**SMALL)
    path = save(tmp_path / "with.pth", {**m.weights, **tuned(m)}, "bf16")
    found, plain = inspect(path), inspect(m.path("bf16"))
    assert (found["tuned_state"], plain["tuned_state"]) == (True, False)
    assert found["parameters"] == plain["parameters"] + 2 * 4 * 16 * 16
    assert "tuned" in report(found) and "tuned" not in report(plain)


def test_a_float32_state_does_not_make_a_narrow_model_wide(tmp_path):
    m = model(**SMALL)
    names = tuned(m)
    weights = {name: np.zeros(t.shape, np.float32) for name, t in names.items()}
    path = tmp_path / "mixed.safetensors"
    both = {n: t if n in weights else _bf16(t) for n, t in {**m.weights, **weights}.items()}
    write_safetensors(path, both, "f32")
    narrow = rwkv.Engine(path, "auto", threads=1)
    wide = rwkv.Engine(path, "cpu fp32", threads=1)
    as_bf16 = rwkv.Engine(path, "cpu bf16", threads=1)
    rows = [bits(e.forward(TOKENS, e.new_state())) for e in (narrow, as_bf16, wide)]
    assert rows[0] == rows[1] != rows[2]


def _bf16(array):
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_half_a_tuned_state_inside_of_a_model_is_refused(tmp_path):
    m = model(**SMALL)
    state = tuned(m)
    first = dict([next(iter(state.items()))])
    refusal(save(tmp_path / "a.pth", {**m.weights, **first}), "blocks.1.att.time_state", "expected")
    name = "blocks.1.att.time_state"
    wrong = {**state, name: state[name][:, :-1]}
    message = refusal(save(tmp_path / "a.pth", {**m.weights, **wrong}), name)
    assert "expected (4, 16, 16), found (4, 15, 16)" in message
    odd = {**state, name: np.full_like(state[name], np.nan)}
    refusal(save(tmp_path / "a.pth", {**m.weights, **odd}), name, "finite")
    old = model(**OLDER["4"])
    odd = {"blocks.0.att.time_state": np.zeros((1, 4, 4), np.float32)}
    refusal(save(tmp_path / "a.pth", {**old.weights, **odd}), "blocks.0.att.time_state")


def test_web_rwkv_files_may_have_turned_it_around(tmp_path):
    from container_files import to_st, to_st_turned

    for options, convert in ((SMALL, to_st), (OLDER["6"], to_st), (OLDER["6"], to_st_turned)):
        m = model(**options)
        path = save(tmp_path / "a.safetensors", convert({**m.weights, **tuned(m)}))
        refusal(path, "web-rwkv", "tuned")


# ---- turned around ----


@pytest.mark.parametrize("case", CASES)
def test_matrices_that_are_said_to_be_turned_around(case, tmp_path):
    """[key, value], as some converters to .st files write them: no file tells, so the caller does."""
    m, e = model(**CASES[case]), engine(**CASES[case])
    state = tuned(m)
    turned = {name: np.ascontiguousarray(t.swapaxes(-1, -2)) for name, t in state.items()}
    plain, other = e.new_state(init=state).to_bytes(), e.new_state(init=turned).to_bytes()
    assert plain != other
    pth = save(tmp_path / "a.pth", turned)
    write_safetensors(tmp_path / "a.st", turned, "f32")
    write_safetensors(tmp_path / "B.ST", state, "f32")
    for init in (turned, pth, tmp_path / "a.st"):
        assert e.new_state(init=init, transposed=True).to_bytes() == plain
        assert e.new_state(init=init, transposed=False).to_bytes() == other
    assert e.new_state(init=tmp_path / "B.ST", transposed=False).to_bytes() == plain
    for name in ("a.st", "B.ST"):
        no_state(tmp_path / name, name, "transposed=True or False", of=CASES[case])
    with pytest.raises(TypeError, match="transposed: expected a bool, found int"):
        e.new_state(init=state, transposed=1)
    with pytest.raises(rwkv.StateError, match="transposed: expected init with it"):
        e.new_state(transposed=False)


# ---- what is refused ----


def no_state(init, *words, of=SMALL):
    e = engine(**of)
    with pytest.raises(rwkv.StateError) as error:
        e.new_state(init=init)
    message = str(error.value)
    assert len(message) < 1000
    for word in ("expected", "found", *words):
        assert word in message, message


def test_what_does_not_fit(tmp_path):
    m = model(**SMALL)
    state = tuned(m)
    first, last = state
    for write in (lambda arrays: arrays, lambda arrays: save(tmp_path / "a.pth", arrays)):
        no_state(write({first: state[first]}), "2 layers", last)
        extra = {**state, "blocks.2.att.time_state": state[first]}
        no_state(write(extra), "blocks.2.att.time_state", "blocks.1.att.time_state")
        no_state(write({**state, "blocks.00.att.time_state": state[first]}), "blocks.00")
        # Not square, heads side by side in either way, other heads of the same size, other sizes, the layers of one.
        shapes = ((4, 16, 15), (64, 16), (16, 64), (4, 256), (1, 1024), (16, 4, 16), (16, 16, 4), (8, 16, 16), (2, 32, 32))
        for shape in (*shapes, (1, 64, 64), (1, 4, 16, 16), (4, 16, 16, 1), (2, 4, 16, 16)):
            wrong = np.zeros(shape, np.float32)
            no_state(write({**state, last: wrong}), last, "(4, 16, 16)", str(shape))
        for value in (np.nan, np.inf, -np.inf):
            odd = state[last].copy()
            odd[1, 2, 3] = value
            no_state(write({**state, last: odd}), last, "finite")
        no_state(write({**state, last: np.zeros((4, 16, 16), np.int32)}), last)
    no_state({}, first)
    no_state({first: [[1.0], [1.0, 2.0]]}, "init", "arrays of floats")
    no_state({first: "text"}, first, "floats")
    double = {name: np.full(t.shape, 1e300) for name, t in state.items()}
    no_state(double, "finite")


def test_what_is_something_else(tmp_path):
    m, e = model(**SMALL), engine(**SMALL)
    state = tuned(m)
    no_state(m.path(), "a model")
    no_state(m.path(suffix=".safetensors"), "a model")
    e.new_state().save(tmp_path / "saved.state")
    no_state(tmp_path / "saved.state", "load_state()")
    names = ("blocks.0.att.key.lora_A", "blocks.0.att.key.disha", "a.miss_block", "a.bone")
    for name in names:
        no_state(save(tmp_path / "a.pth", {name: np.zeros((2, 2), np.float32)}), name, "adapters=")
    no_state(save(tmp_path / "a.pth", {**state, "x": np.zeros(2, np.float32)}), "x (2)")
    (tmp_path / "text").write_text("no state")
    no_state(tmp_path / "text")
    no_state(state, "RWKV-4", of=OLDER["4"])
    with pytest.raises((rwkv.Error, OSError)):
        e.new_state(init=tmp_path / "absent")
    for init in (5, 1.5, [state]):
        with pytest.raises(TypeError, match="init"):
            e.new_state(init=init)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused_or_load(tmp_path, suffix):
    """Damage of numbers cannot be seen; anything else is refused, and the engine goes on."""
    m, e = model(**SMALL), engine(**SMALL)
    good = e.new_state(init=tuned(m)).to_bytes()
    path = save(tmp_path / f"good{suffix}", tuned(m))
    blob, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = tmp_path / "damaged"

    def opens(data):
        damaged.write_bytes(data)
        try:
            state = e.new_state(init=damaged)
        except rwkv.StateError:
            return False
        assert np.isfinite(state.to_numpy()["att.wkv"]).all()
        return True

    assert opens(blob)
    cuts = rng.integers(0, len(blob) - 1, 200)
    assert not any(opens(blob[:cut]) for cut in cuts)
    ends = [*rng.integers(0, 1000, 300), *(len(blob) - rng.integers(1, 1000, 300))]
    for at in ends:
        changed = bytearray(blob)
        changed[at] ^= 1 << rng.integers(8)
        opens(bytes(changed))
    assert e.new_state(init=path).to_bytes() == good
