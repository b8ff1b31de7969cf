"""Texts as vectors: those of the definition, the same bits alone and in any company."""

import concurrent.futures
import weakref

import numpy as np
import pytest
from helpers import OLDER, SMALL, bits, model, models_folder, relative, rwkv, save
from helpers import engine as opened
from pooling import normalized, pool

import rwkv_engine.embedding as module

SHAPES = {"7": SMALL, **OLDER}
POOLINGS = ["mean", "last", "eos"]


def ids(count, V=SMALL["V"], seed=0):
    return np.random.default_rng(seed).integers(1, V, count).tolist()


@pytest.fixture(scope="module")
def small():
    return opened(**SMALL)


@pytest.fixture(scope="module")
def demo():
    return rwkv.Engine("demo", "cpu fp32", threads=2)


# ---- what they are ----


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("version", SHAPES)
def test_the_vectors_of_the_definition(version, pooling):
    m = model(**SHAPES[version])
    texts = [m.tokens(n, seed=n) for n in (1, 2, 30, 77)]
    found = opened(**SHAPES[version]).embed(texts, pooling)
    for vector, tokens in zip(found, texts, strict=True):
        if pooling == "eos" and tokens[-1] != 0:
            tokens = [*tokens, 0]
        rows, _ = m.reference(tokens, hidden=True)
        expected = normalized(pool(rows, tokens, pooling, end=0))
        assert np.abs(vector - expected).max() <= 1e-5


@pytest.mark.parametrize("version", SHAPES)
def test_vectors_of_any_length_are_the_definitions(version):
    """Not normalised, over more tokens than are summed at a time."""
    m = model(**SHAPES[version])
    tokens = m.tokens(300, seed=300)
    rows, _ = m.reference(tokens, hidden=True)
    found = opened(**SHAPES[version]).embed([tokens], "mean", normalize=False)
    assert relative(found[0], pool(rows, tokens, "mean", end=0)) <= 1e-5


def test_the_mean_and_the_length_one_are_the_defaults(small):
    text = ids(20)
    assert bits(small.embed([text])) == bits(small.embed([text], "mean", True))
    plain = small.embed([text], normalize=False)
    rows = small.forward(text, small.new_state(), output="hidden")
    assert np.abs(plain[0] - rows.mean(0, dtype=np.float64)).max() <= 1e-6
    assert np.abs(normalized(plain[0]) - small.embed([text])[0]).max() <= 1e-6


def test_strings_are_encoded(demo):
    texts = ["def f(x):", "größer: 你好, 🙂", "\x00\n"]
    encoded = [demo.tokenizer.encode(text) for text in texts]
    assert bits(demo.embed(texts)) == bits(demo.embed(encoded))
    assert bits(demo.embed(texts[1])) == bits(demo.embed([np.array(encoded[1], np.uint16)]))
    vectors = demo.embed(["import os\n", "import sys\n", "    return self._value\n"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_an_end_token_is_appended_once(small):
    text = ids(9)
    assert bits(small.embed([text], "eos")) == bits(small.embed([[*text, 0]], "eos"))
    assert bits(small.embed([text], "eos")) == bits(small.embed([[*text, 0]], "last"))
    assert 39 not in text
    assert bits(small.embed([text], "eos", eos_token=39)) == bits(small.embed([[*text, 39]], "last"))


def test_several_end_tokens_are_pooled(small):
    text = [3, 0, 5, 6, 0]
    rows = small.forward(text, small.new_state(), output="hidden")
    found = small.embed([text], "eos", normalize=False)[0]
    assert np.abs(found - (rows[1] + rows[4]) / 2).max() <= 1e-6


def test_no_texts(small):
    assert small.embed([]).shape == (0, SMALL["C"])


# ---- the same bits ----


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_same_alone_and_in_any_batch(strategy, pooling):
    engine = opened(strategy, **SMALL)
    lengths = [1, 2, 700, 255, 256, 257, 3, 5000, 40, 1, 512, 9]
    texts = [ids(n, seed=i) for i, n in enumerate(lengths)] + [ids(n) for n in range(1, 50)]
    alone = [bits(engine.embed([text], pooling)[0]) for text in texts]
    assert [bits(v) for v in engine.embed(texts, pooling)] == alone
    assert [bits(v) for v in engine.embed(texts[::-1], pooling)] == alone[::-1]


@pytest.mark.parametrize("call, texts", [(256, 1), (256, 7), (512, 3), (8192, 500)])
def test_the_same_whatever_the_calls(small, monkeypatch, call, texts):
    given = [ids(n, seed=n) for n in (1, 300, 17, 1025, 256, 4, 999)]
    expected = bits(small.embed(given))
    monkeypatch.setattr(module, "CALL", call)
    monkeypatch.setattr(module, "TEXTS", texts)
    assert bits(small.embed(given)) == expected


def test_the_same_with_any_threads():
    texts = [ids(n, seed=n) for n in (1, 300, 17, 1025)]
    vectors = [opened(threads=n, **SMALL).embed(texts) for n in (1, 2, 3)]
    assert bits(vectors[0]) == bits(vectors[1]) == bits(vectors[2])


def test_the_same_from_several_threads(small):
    texts = [ids(n, seed=n) for n in (1, 300, 17)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [bits(vectors) for vectors in pool.map(small.embed, [texts] * 8)]
    assert found == [bits(small.embed(texts))] * 8


def test_a_long_text_is_the_sum_of_its_rows(demo):
    text = ids(10_000, V=demo.config.n_vocab)
    rows = demo.forward(text, demo.new_state(), output="hidden")
    found = demo.embed([text], normalize=False)[0]
    np.testing.assert_array_max_ulp(found, rows.mean(0, dtype=np.float64).astype(np.float32), 1)
    last = demo.embed([text], "last", normalize=False)[0]
    assert bits(last) == bits(rows[-1])


def test_calls_hold_few_tokens_and_few_states(small):
    counts = [5000, *[1] * 100, 300, 300, 2500]
    texts = [module._Text(np.ones(n, np.int32), module._Way("mean", None, None)) for n in counts]
    done = {id(text): 0 for text in texts}
    for call in module._calls(texts):
        assert 0 < len(call) <= module.TEXTS and sum(n for _, n in call) <= module.CALL
        for i, (text, n) in enumerate(call):
            text.done += n
            done[id(text)] += n
            whole = text.done == len(text.ids)
            assert whole or (i == len(call) - 1 and text.done % module.PIECE == 0)
    assert list(done.values()) == counts


def test_the_states_of_texts_that_have_ended_are_let_go(small, monkeypatch):
    made, alive, new_state = weakref.WeakSet(), [], rwkv.Engine.new_state

    def noted(engine):
        made.add(state := new_state(engine))
        return state

    monkeypatch.setattr(rwkv.Engine, "new_state", noted)
    small.embed([[1, 2]] * 200, progress=lambda done, total: alive.append(len(made)))
    assert 0 < max(alive) <= module.TEXTS


# ---- states ----


def test_texts_go_on_from_states_and_step_them(small):
    before, text = ids(30, seed=1), ids(600, seed=2)
    state = small.new_state()
    small.forward(before, state, output="none")
    other = small.new_state()
    found = small.embed([text, before], states=[state, other], normalize=False)
    assert state.tokens_seen == 630 and other.tokens_seen == 30
    whole = small.new_state()
    rows = small.forward(before + text, whole, output="hidden")
    assert np.abs(found[0] - rows[30:].mean(0, dtype=np.float64)).max() <= 1e-6
    assert small.forward([1], state).tobytes() == small.forward([1], whole).tobytes()
    assert other.last_logits is None


def test_an_instruction_is_read_once(small):
    instruction, texts = ids(20, seed=1), [ids(n, seed=n) for n in (5, 6, 7)]
    state = small.new_state()
    small.forward(instruction, state, output="none")
    found = small.embed(texts, "last", states=state.fork(3))
    assert bits(found) == bits(small.embed([instruction + t for t in texts], "last"))


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_call_that_is_cancelled_changes_nothing(small, at):
    texts = [ids(3000, seed=1), ids(40, seed=2), ids(2500, seed=3)]
    states = [small.new_state() for _ in texts]
    for state in states:
        small.forward([1, 2], state)
    before = [state.fork() for state in states]
    reports = []

    def progress(done, total):
        reports.append((done, total))
        if len(reports) > at:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        small.embed(texts, states=states, progress=progress)
    assert all(a.equals(b) for a, b in zip(states, before, strict=True))
    expected = small.embed(texts, states=before)
    assert bits(small.embed(texts, states=states)) == bits(expected)


def test_progress_counts_all_tokens(small):
    reports = []
    small.embed([ids(3000), ids(5)], "eos", progress=lambda *now: reports.append(now))
    done = [d for d, _ in reports]
    assert {total for _, total in reports} == {3007}
    assert done == sorted(done) and done[-1] == 3007 and len(done) > 2


def test_a_state_that_somebody_steps_meanwhile_is_not_overwritten(small, monkeypatch):
    state, move = small.new_state(), module._move

    def late(states, texts):
        small.forward([1], state)
        move(states, texts)

    monkeypatch.setattr(module, "_move", late)
    with pytest.raises(rwkv.ConcurrentUseError, match="stepped"):
        small.embed([[4, 5]], states=[state])
    assert state.tokens_seen == 1


def test_of_several_states_none_goes_on_if_somebody_has_stepped_one(small, monkeypatch):
    states, move = small.new_state().fork(3), module._move

    def late(states, texts):
        small.forward([1, 2], states[2])  # as many tokens as the text has
        move(states, texts)

    monkeypatch.setattr(module, "_move", late)
    with pytest.raises(rwkv.ConcurrentUseError, match="stepped"):
        small.embed([[4, 5]] * 3, states=states)
    assert [state.tokens_seen for state in states] == [0, 0, 2]


def test_a_stream_learns_of_a_text_that_its_state_has_read(demo):
    """The handle itself goes on, so that whoever else has it sees so, as after `forward`."""
    state = demo.new_state()
    stream = demo.stream("import ", rwkv.SamplingParams(seed=1), state)
    next(stream)
    demo.embed(["x"], states=[state])
    with pytest.raises(rwkv.ConcurrentUseError, match="another call has stepped it"):
        next(stream)


# ---- what is refused ----


@pytest.mark.parametrize(
    "texts, options, kind, words",
    [
        ([[1], []], {}, rwkv.Error, r"texts\[1\]: expected at least one token, found none"),
        ("", {}, rwkv.Error, r"texts\[0\]: expected at least one token"),
        (["ok", "\ud800"], {}, rwkv.Error, r"texts\[1\]: text, character 0: .*surrogate"),
        ([[1], [2, 1024]], {}, rwkv.Error, r"texts\[1\]: token 1: .* from 0 to 1023, found 1024"),
        ([np.array([5, -1])], {}, rwkv.Error, r"texts\[0\]: token 1: .* found -1"),
        ([np.array([[5]])], {}, TypeError, r"texts\[0\]: .*one dimension, found shape \(1, 1\)"),
        ([np.array([0.5])], {}, TypeError, "float64"),
        ([[1, True]], {}, TypeError, r"texts\[0\]: token 1: expected an integer, found bool"),
        ([[1, 2.0]], {}, TypeError, "found float"),
        ([1, 2], {}, TypeError, r"texts\[0\]: .*expected a sequence of integers, found int"),
        ([b"x"], {}, TypeError, "found bytes"),
        ("x", {"pooling": "max"}, rwkv.Error, "pooling: expected one of mean, last, eos, found 'max'"),
        ("x", {"normalize": 1}, TypeError, "normalize"),
        ("x", {"task": "retrieval"}, rwkv.Error, "task: expected none for a language model"),
        ("x", {"eos_token": 3}, rwkv.Error, "eos_token: expected none with pooling 'mean'"),
        ("x", {"pooling": "eos", "eos_token": 1024}, rwkv.Error, "eos_token: .* found 1024"),
        ("x", {"states": []}, rwkv.Error, "states: expected one for each of 1 texts, found 0"),
        ("x", {"states": [None]}, TypeError, "expected a State"),
    ],
)
def test_wrong_arguments(demo, texts, options, kind, words):
    with pytest.raises(kind, match=words):
        demo.embed(texts, **options)


def test_one_state_for_two_texts(demo):
    state = demo.new_state()
    with pytest.raises(rwkv.StateError, match="once"):
        demo.embed(["a", "b"], states=[state, state])
    with pytest.raises(rwkv.StateError, match="another"):
        demo.embed(["a"], states=[opened(**SMALL).new_state()])


def test_numbers_that_are_not_finite(tmp_path):
    weights = dict(model(**SMALL).weights)
    weights["emb.weight"] = weights["emb.weight"].copy()
    weights["emb.weight"][7] = np.nan
    engine = rwkv.Engine(save(tmp_path / "a.pth", weights), "cpu fp32", threads=2)
    state = engine.new_state()
    with pytest.raises(rwkv.NonFiniteError):
        engine.embed([[1, 2, 7, 3]], states=[state])
    assert state.tokens_seen == 0
    assert np.isfinite(engine.embed([[1, 2, 3]])).all()


# ---- trained models ----


@pytest.mark.parametrize("name", ["tiny-rwkv4-660K", "tiny-rwkv6-3M", "tiny-rwkv7-834K"])
def test_trained_models(name):
    path = models_folder() / f"{name}.pth"
    if not path.exists():
        pytest.skip("no trained models here")
    engine = rwkv.Engine(path, "cpu fp32", threads=2)
    texts = [ids(n, V=engine.config.n_vocab, seed=n) for n in (3, 500, 20)]
    together = engine.embed(texts)
    assert bits(together) == bits(np.concatenate([engine.embed([t]) for t in texts]))
    assert np.abs((together**2).sum(1) - 1).max() < 1e-5
