"""`rank`: choices in forks are choices alone, whatever tokens reach over the border; and contexts that are read once."""

import itertools

import numpy as np
import pytest
from helpers import OLDER, SMALL, WIDE, bits, engine, model

import rwkv_engine as rwkv
from rwkv_engine import prefixes
from rwkv_engine.prefixes import read_contexts

SHAPES = {**OLDER, "7": SMALL}


def total(row):
    return float(row.sum(dtype=np.float64))


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu int8"])
@pytest.mark.parametrize("version", SHAPES)
def test_choices_in_forks_are_choices_scored_whole(version, strategy):
    m = model(**SHAPES[version])
    context = m.tokens(30)
    # One of them once more, one as the beginning of others, one of a token, and more than go into a call.
    choices = [m.tokens(length, seed=3) for length in (5, 1, 5, 3)]
    choices += [m.tokens(1 + i % 7, seed=i) for i in range(40)]
    alone = engine(strategy, 1, **SHAPES[version])
    whole = [alone.score([*context, *choice])[len(context) - 1 :] for choice in choices]
    for threads in (1, 2, 3):
        e = engine(strategy, threads, **SHAPES[version])
        state = e.new_state()
        e.forward(context, state)
        forks = e.score_batch(choices, [state] * len(choices))
        assert [bits(row) for row in forks] == [bits(row) for row in whole]
        for found in (e.rank(context, choices), e.rank(context[20:], choices, first(e, context[:20]))):
            assert sorted(choice.index for choice in found) == list(range(len(choices)))
            assert all(choice.logprob == total(whole[choice.index]) for choice in found)
            assert all(choice.tokens == len(choices[choice.index]) for choice in found)


def first(e, tokens):
    state = e.new_state()
    e.forward(tokens, state)
    return state


def test_the_most_likely_comes_first():
    demo = rwkv.Engine("demo")
    choices = [" xyzzy(", " range(", " enumerate(", " range(", " ran"]
    found = demo.rank("for i in", choices)
    assert [choice.score for choice in found] == sorted((c.score for c in found), reverse=True)
    assert [(c.index, c.choice) for c in found[:2]] == [(1, " range("), (3, " range(")]
    assert [c.choice == choices[c.index] for c in found] == [True] * 5
    by_tokens = demo.rank("for i in", choices, normalize="tokens")
    by_bytes = demo.rank("for i in", choices, normalize="bytes")
    for a, b, c in zip(*(sorted(r, key=lambda c: c.index) for r in (found, by_tokens, by_bytes)), strict=True):
        assert (a.score, b.score, c.score) == (a.logprob, a.logprob / a.tokens, a.logprob / len(a.choice))
        assert a.logprob == b.logprob == c.logprob and a.bytes == len(a.choice)


def test_greedy_is_what_temperature_0_writes():
    demo = rwkv.Engine("demo")
    written = demo.generate("def __init__(", rwkv.SamplingParams(temperature=0, max_tokens=5))
    prompt = demo.tokenizer.encode("def __init__(")
    other = [*written.tokens[:-1], written.tokens[-1] + 1]
    found = demo.rank(prompt, [other, written.tokens, written.tokens[:2]])
    assert {choice.index: choice.greedy for choice in found} == {0: False, 1: True, 2: True}


@pytest.mark.parametrize(
    ("context", "choices"),
    [
        ("import ", ["os", "sys", "é"]),  # " os" is a token
        ("x = [", ["]", "1]", "[]]"]),
        ("é", ["é", "\u0301"]),
        ("na\u0308", ["\u0308h", "h"]),
        ("def f(self):\n    ", ["return", "    return", " pass"]),
        ("", ["import", "im"]),
        ("i", ["mport", "f"]),
    ],
)
def test_tokens_over_the_border(context, choices):
    """What is compared are the probabilities of whole texts, behind what their tokens have in common."""
    demo = rwkv.Engine("demo")
    encode = demo.tokenizer.encode
    wholes = [encode(context + choice) for choice in choices]
    border = 0
    while all(ids[: border + 1] == encode(context)[: border + 1] for ids in wholes) and border < len(encode(context)):
        border += 1
    zero = [] if border else [0]
    for choice in demo.rank(context, choices):
        whole = [*zero, *wholes[choice.index]]
        row = demo.score(whole)[border + len(zero) - 1 :]
        assert (choice.logprob, choice.tokens) == (total(row), len(whole) - border - len(zero))
        assert choice.bytes == len(choices[choice.index].encode())


def test_behind_a_state():
    demo = rwkv.Engine("demo")
    state = first(demo, demo.tokenizer.encode("import os\n"))
    before = state.to_bytes()
    found = demo.rank("", ["import", "def"], state)
    assert [c.logprob for c in found] == [total(demo.score(c.choice, state)) for c in found]
    assert demo.rank("for", [" i", " name"], state)[0].tokens == 1
    assert state.to_bytes() == before
    silent = state.fork()
    demo.forward([5], silent, output="none")
    with pytest.raises(rwkv.StateError, match="no last logits"):
        demo.rank("", ["import"], silent)
    assert demo.rank("for", [" i"], silent)[0].tokens == 1


@pytest.mark.parametrize(
    ("context", "choices", "kind", "word"),
    [
        ("for", [], rwkv.Error, "choices: expected at least one, found none"),
        ("for", [" i", ""], rwkv.Error, r"choices\[1\]: .* empty"),
        ([1], [[2], []], rwkv.Error, r"choices\[1\]: .* empty"),
        ("for", [[2]], TypeError, r"choices\[0\]: expected str as the context is, found list"),
        ([1], [[2], " i"], TypeError, r"choices\[1\]: expected token ids as the context is, found str"),
        ([1], [[2, 1024]], rwkv.Error, "found 1024"),
        ([1024], [[2]], rwkv.Error, "found 1024"),
        ("for", ["\ud800"], rwkv.Error, "U\\+D800"),
    ],
)
def test_what_is_no_choice(context, choices, kind, word):
    with pytest.raises(kind, match=word):
        rwkv.Engine("demo").rank(context, choices)


def test_normalize_is_checked():
    demo = rwkv.Engine("demo")
    with pytest.raises(rwkv.Error, match="normalize: expected 'tokens', 'bytes' or None, found 'words'"):
        demo.rank("for", [" i"], normalize="words")
    with pytest.raises(rwkv.Error, match="for choices of token ids"):
        demo.rank([1], [[2]], normalize="bytes")
    assert demo.rank([1], [[2]])[0].bytes is None


def test_progress_and_stopping():
    m, e = model(**WIDE), engine(**WIDE)
    seen = []
    e.rank(m.tokens(600), [[1, 2], [3]], progress=lambda *counts: seen.append(counts))
    assert seen == sorted(seen) and seen[-1] == (603, 603) and len(seen) > 2

    def stop(done, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        e.rank(m.tokens(9), [[1]], progress=stop)
    seen.clear()
    e.rank([1], [m.tokens(5000)], progress=lambda *counts: seen.append(counts))
    assert len({done for done, _ in seen}) > 3 and seen == sorted(seen)  # of a long choice too


# ---- contexts ----


class Counting:
    """The engine, and how many tokens it was asked to read."""

    def __init__(self, e):
        self.e, self.read, self.calls = e, 0, 0

    def forward(self, tokens, state, progress=None):
        self.forward_batch([tokens], [state])

    def forward_batch(self, tokens, states, progress=None):
        self.read, self.calls = self.read + sum(map(len, tokens)), self.calls + 1
        self.e.forward_batch(tokens, states, progress=progress)


def read_all(e, contexts, state=None):
    counting, found = Counting(e), {}
    for batch in read_contexts(counting, contexts, state or e.new_state()):
        assert 1 <= len(batch) <= prefixes.BATCH
        found.update(batch)
    assert sorted(found) == list(range(len(contexts)))
    return found, counting


def test_what_contexts_begin_with_alike_is_read_once():
    m, e = model(**SMALL), engine(**SMALL)
    subjects = [m.tokens(100, seed=i) for i in range(3)]
    parts = [m.tokens(40, seed=10 + i) for i in range(4)]
    contexts = [
        [*subject, *parts[j], i, j]
        for i, subject in enumerate(subjects)
        for j in range(4)
        for _ in range(3)
    ]
    order = np.random.default_rng(0).permutation(len(contexts))
    found, counting = read_all(e, [contexts[i] for i in order])
    for i, state in found.items():
        assert state.equals(first(e, contexts[order[i]]))
    distinct = 3 * 100 + 3 * 4 * 42
    assert counting.read == distinct
    assert sum(map(len, contexts)) > 6 * distinct


@pytest.mark.parametrize("stack", [1, 2, 8])
@pytest.mark.parametrize("worth", [1, 3, 16])
def test_any_contexts(monkeypatch, stack, worth):
    monkeypatch.setattr(prefixes, "STACK", stack)
    monkeypatch.setattr(prefixes, "WORTH", worth)
    e = engine(**SMALL)
    random = np.random.default_rng(stack * 100 + worth)
    contexts = [random.integers(0, 2, random.integers(1, 9)).tolist() for _ in range(100)]
    state = first(e, [5, 6])
    found, counting = read_all(e, contexts, state)
    assert state.equals(first(e, [5, 6]))
    for i, one in found.items():
        assert one.equals(first(e, [5, 6, *contexts[i]]))
    assert counting.read <= sum(map(len, contexts))


def test_contexts_that_grow_by_a_token():
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(300)
    found, counting = read_all(e, [tokens[:length] for length in range(1, 301)])
    for length, state in itertools.islice(((i + 1, s) for i, s in found.items()), 0, 300, 60):
        assert state.equals(first(e, tokens[:length]))
    assert counting.read < 300 * 301 // 4
