"""Text out of a model: the same call gives the same text, in one piece or as a stream, from any state."""

import dataclasses

import pytest
from helpers import rwkv

GREEDY = rwkv.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPT = "def main():\n"


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=2)


def with_(**changes):
    return dataclasses.replace(GREEDY, **changes)


def test_the_demo_model_writes(e):
    result = e.generate(PROMPT, GREEDY)
    assert len(result.tokens) == 40 and result.finish_reason == "length"
    assert result.text.strip() and e.tokenizer.decode(result.tokens) == result.text
    assert result.state.tokens_seen == len(e.tokenizer.encode(PROMPT)) + 40


def test_greedy_is_the_argmax(e):
    result = e.generate(PROMPT, GREEDY)
    state = e.new_state()
    logits = e.forward(e.tokenizer.encode(PROMPT), state)
    for token in result.tokens:
        assert int(logits.argmax()) == token
        logits = e.forward([token], state)


def test_the_same_seed_gives_the_same_text(e):
    params = with_(temperature=1.0, top_p=0.95, seed=7, max_tokens=30)
    first = e.generate(PROMPT, params)
    assert e.generate(PROMPT, params).tokens == first.tokens
    others = {
        tuple(e.generate(PROMPT, dataclasses.replace(params, seed=seed)).tokens)
        for seed in range(8)
    }
    assert len(others) > 4
    assert e.generate(PROMPT, GREEDY).tokens == e.generate(PROMPT, with_(seed=3)).tokens


def test_without_a_seed_texts_differ(e):
    params = with_(temperature=1.5, top_p=1.0, seed=None, max_tokens=20)
    assert len({tuple(e.generate(PROMPT, params).tokens) for _ in range(6)}) > 1


@pytest.mark.parametrize(
    "params", [GREEDY, with_(temperature=1.0, seed=5)], ids=["greedy", "sampled"]
)
def test_a_stream_is_generate_in_pieces(e, params):
    whole = e.generate(PROMPT, params)
    pieces = list(e.stream(PROMPT, params))
    assert "".join(p.text for p in pieces) == whole.text
    assert [p.token for p in pieces if p.token is not None] == whole.tokens


def test_closing_a_stream_stops_it_and_the_engine_goes_on(e):
    state = e.new_state()
    stream = e.stream(PROMPT, with_(max_tokens=10_000), state=state)
    for _ in range(3):
        next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert e.generate(PROMPT, with_(max_tokens=5)).tokens == e.generate(PROMPT, GREEDY).tokens[:5]


def test_going_on_from_a_state_is_one_run(e):
    whole = e.generate(PROMPT, GREEDY)
    first = e.generate(PROMPT, with_(max_tokens=15))
    rest = e.generate("", with_(max_tokens=25), state=first.state)
    assert first.tokens + rest.tokens == whole.tokens and rest.state.equals(whole.state)


def test_a_saved_state_goes_on_the_same(e, tmp_path):
    first = e.generate(PROMPT, with_(max_tokens=15))
    first.state.save(tmp_path / "a.state")
    a = e.generate("", GREEDY, state=e.load_state(tmp_path / "a.state"))
    b = e.generate("", GREEDY, state=first.state)
    assert a.tokens == b.tokens and a.text == b.text


def test_max_tokens(e):
    for n in (1, 2, 7):
        assert len(e.generate(PROMPT, with_(max_tokens=n)).tokens) == n
    assert e.generate(PROMPT, with_(max_tokens=0)).tokens == []


def test_a_stop_token_ends_the_text_and_is_not_in_it(e):
    whole = e.generate(PROMPT, GREEDY)
    stop = whole.tokens[6]
    first = whole.tokens.index(stop)
    result = e.generate(PROMPT, with_(stop_tokens=(stop,)))
    assert result.finish_reason == "stop" and result.tokens == whole.tokens[:first]
    assert result.text == e.tokenizer.decode(result.tokens)
    assert result.state.tokens_seen == result.usage.prompt_tokens + first


def test_a_character_is_never_broken(e):
    """Bytes of a character arrive one token at a time: text is held back, never split."""
    decoder, ids = e.tokenizer.stream(), [e.tokenizer.encode(bytes([b])) for b in "€".encode()]
    assert [decoder.put(i) for (i,) in ids] == ["", "", "€"]
    for seed in range(3):
        params = with_(temperature=3.0, top_p=1.0, seed=seed, max_tokens=80)
        pieces = list(e.stream(PROMPT, params))
        ids = [p.token for p in pieces if p.token is not None]
        assert "".join(p.text for p in pieces) == e.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "changes",
    [
        *(dict(temperature=x) for x in (-1, float("nan"), float("inf"))),
        *(dict(top_p=x) for x in (-0.1, 1.1, float("nan"))),
        *(dict(max_tokens=x) for x in (-1, 1.5)),
        *(dict(seed=x) for x in (-1, 2**64, 1.5, "x")),
        *(dict(stop_tokens=x) for x in ((-1,), (2**31,), ("a",))),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(e, changes):
    with pytest.raises((rwkv.Error, ValueError, TypeError, OverflowError)):
        e.generate(PROMPT, with_(**changes))


def test_prompts_that_cannot_be_used(e):
    for prompt in (None, 3, [1.5], [-1], [e.config.n_vocab]):
        with pytest.raises((rwkv.Error, ValueError, TypeError)):
            e.generate(prompt, GREEDY)
    silent = e.new_state()
    e.forward([1], silent, output="none")
    with pytest.raises((rwkv.Error, ValueError), match="logits"):
        e.generate("", GREEDY, state=silent)


def test_an_empty_prompt_begins_a_document(e):
    assert e.generate("", GREEDY).tokens == e.generate([0], GREEDY).tokens


def test_a_prompt_may_be_tokens(e):
    assert (
        e.generate(e.tokenizer.encode(PROMPT), GREEDY).tokens == e.generate(PROMPT, GREEDY).tokens
    )


def test_the_callers_state_moves_on_or_stays_whole(e):
    """A failed call leaves the state it was given as it was."""
    state = e.new_state()
    e.forward(e.tokenizer.encode("import os\n"), state)
    before = state.to_bytes()
    with pytest.raises((rwkv.Error, ValueError, TypeError)):
        e.generate(PROMPT, with_(top_p=7.0), state=state)
    assert state.to_bytes() == before
