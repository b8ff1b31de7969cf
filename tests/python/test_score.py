"""`score` and `score_batch`: the definition's log-probabilities, the bits of `generate`, and no other in any company."""

import numpy as np
import pytest
from helpers import OLDER, SMALL, WIDE, bits, engine, model, python

import rwkv_engine as rwkv

SHAPES = {**OLDER, "7": SMALL}


def log_softmax(rows):
    rows = np.asarray(rows, np.float64)
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def following(rows, tokens):
    """The log-probability of each token in the row before it."""
    return log_softmax(rows)[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize("version", SHAPES)
def test_it_is_what_the_definition_gives(version):
    m, e = model(**SHAPES[version]), engine(**SHAPES[version])
    tokens = m.tokens(40)
    found = e.score(tokens)
    assert found.shape == (39,) and found.dtype == np.float32
    rows, _ = m.reference(tokens[:-1])
    assert np.abs(found - following(rows, tokens[1:])).max() < 1e-4
    # Of the engine's own rows nothing is left but the rounding to float32.
    rows = e.forward(tokens[:-1], e.new_state(), output="all")
    exact = following(rows, tokens[1:]).astype(np.float32)
    assert np.abs(found - exact).max() <= np.spacing(np.abs(exact).max())


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8"])
def test_it_has_the_bits_of_generate(strategy):
    e = rwkv.Engine("demo", strategy, threads=2)
    prompt = e.tokenizer.encode("def main(argv):\n")
    written = e.generate(prompt, rwkv.SamplingParams(seed=1, max_tokens=40, ignore_eos=True))
    found = e.score([*prompt, *written.tokens])
    assert bits(found[len(prompt) - 1 :]) == bits(np.float32(written.logprobs))


@pytest.mark.parametrize("version", SHAPES)
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu int8"])
def test_a_state_in_front_changes_no_bit(version, strategy):
    tokens = model(**SHAPES[version]).tokens(60)
    whole = engine(strategy, **SHAPES[version]).score(tokens)
    for threads in (1, 3):
        e = engine(strategy, threads, **SHAPES[version])
        assert bits(e.score(tokens)) == bits(whole)
        for read in (1, 17, 59):
            state = e.new_state()
            e.forward(tokens[:read], state)
            before = state.to_bytes()
            found = e.score(tokens[read:], state)
            assert bits(found) == bits(whole[read - 1 :])
            assert state.to_bytes() == before


def test_many_side_by_side_are_each_alone():
    m, e = model(**WIDE), engine(**WIDE)
    texts = [m.tokens(length, seed=length) for length in (*range(1, 50), 300, 0, 2)]
    state = e.new_state()
    e.forward(m.tokens(5), state)
    states = [state if i % 3 else e.new_state() for i in range(len(texts))]
    found = e.score_batch(texts, states)
    for row, text, one in zip(found, texts, states, strict=True):
        assert bits(row) == bits(e.score(text, one))
        assert len(row) == (len(text) if one is state else max(len(text) - 1, 0))
    assert e.score_batch([]) == []


def test_a_token_in_front():
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(9)
    assert bits(e.score(tokens, bos=0)) == bits(e.score([0, *tokens]))
    state = e.new_state()
    e.forward([3], state)
    assert bits(e.score(tokens, state, bos=0)) == bits(e.score([3, 0, *tokens])[1:])
    assert bits(e.score([7], bos=0)) == bits(e.score([0, 7]))
    assert e.score([], bos=0).shape == e.score([], state, bos=0).shape == (0,)


def test_a_state_without_logits_predicts_nothing():
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(9)
    state = e.new_state()
    e.forward(tokens[:3], state, output="none")
    assert bits(e.score(tokens[3:], state)) == bits(e.score(tokens)[3:])


@pytest.mark.parametrize("text", ["", [], np.array([], np.int64), "d", [5]])
def test_what_has_no_token_to_score(text):
    found = rwkv.Engine("demo").score(text)
    assert found.shape == (0,) and found.dtype == np.float32


def test_texts_and_arrays():
    demo = rwkv.Engine("demo")
    text = "x = 'é€'\n"
    ids = demo.tokenizer.encode(text)
    assert bits(demo.score(text)) == bits(demo.score(ids)) == bits(demo.score(np.array(ids, np.uint16)))


@pytest.mark.parametrize(
    ("tokens", "kind", "word"),
    [
        ([1, 40, 2], rwkv.Error, "token 1: expected an id from 0 to 39, found 40"),
        ([1, 2, 40], rwkv.Error, "token 2: expected an id from 0 to 39, found 40"),
        ([40], rwkv.Error, "found 40"),
        ([1, -1], rwkv.Error, "found -1"),
        ([1, 2.5], TypeError, "integer"),
        ([1, 2**70], rwkv.Error, str(2**70)),
        (b"ab", TypeError, "bytes"),
        (None, TypeError, "NoneType"),
        (np.zeros(3, np.float32), TypeError, "array of float32"),
        (np.zeros((3, 64), np.float32), TypeError, "array of float32"),
    ],
)
def test_what_is_no_text(tokens, kind, word):
    e = engine(**SMALL)
    with pytest.raises(kind, match=word):
        e.score(tokens)
    with pytest.raises(rwkv.Error, match="found 40"):
        e.score([1, 2], bos=40)


def test_a_text_is_no_list_of_texts():
    e = rwkv.Engine("demo")
    with pytest.raises(TypeError, match="texts: expected a sequence of texts, found str"):
        e.score_batch("import os")
    with pytest.raises(TypeError, match="choices: expected a sequence of choices, found str"):
        e.rank("import ", "os")


def test_what_is_no_state():
    e, other = engine(**SMALL), rwkv.Engine("demo")
    with pytest.raises(rwkv.StateError, match="of this engine"):
        e.score([1, 2], other.new_state())
    with pytest.raises(rwkv.Error, match="states: expected one for each of 2 texts, found 1"):
        e.score_batch([[1, 2], [3, 4]], [e.new_state()])
    with pytest.raises(TypeError, match="State"):
        e.score([1, 2], "state")


def test_progress_counts_tokens_and_may_stop_it():
    m, e = model(**WIDE), engine(**WIDE)
    texts = [m.tokens(20, seed=i) for i in range(70)]
    seen = []
    e.score_batch(texts, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (70 * 19, 70 * 19) and len(seen) > 2
    state = e.new_state()
    e.forward([1], state)
    before = state.to_bytes()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        e.score(texts[0], state, stop)
    assert state.to_bytes() == before and bits(e.score(texts[0], state)) == bits(e.score([1, *texts[0]]))


def test_memory_does_not_depend_on_the_length():
    """Rows of 10,000 tokens would be 2.6 GB."""
    grown = python(
        """
import resource
from scripted import world_engine
engine = world_engine()
engine.score(list(range(300)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores = engine.score(list(range(10_000)))
assert scores.shape == (9_999,) and (scores < 0).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    )
    assert int(grown) < 50_000


@pytest.mark.parametrize("strategy", ["cuda fp32", "cuda fp16 *1 -> cpu fp32", "cpu fp32 *1 -> cuda fp16"])
def test_on_a_device_they_are_those_of_its_logits(device, strategy):  # noqa: F811
    m, e = model(**SMALL), engine(strategy, **SMALL)
    tokens = m.tokens(12)
    found = e.score(tokens)
    rows = e.forward(tokens[:-1], e.new_state(), output="all").astype(np.float64)
    expected = following(rows, tokens[1:])
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    state = e.new_state()
    e.forward(tokens[:5], state)
    before = state.to_bytes()
    forks = e.score_batch([tokens[5:], tokens[5:6], tokens[5:9]], [state] * 3)
    assert [bits(row) for row in forks] == [bits(found[4:][: len(row)]) for row in forks]
    assert state.to_bytes() == before
    best = [int(row.argmax()) for row in rows]
    assert e.rank(tokens[:5], [[best[4]], [best[4] ^ 1]])[0].greedy
