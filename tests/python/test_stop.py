"""Where a text ends and what of it is handed over: stop strings, whole characters, and the state behind each piece."""

import codecs
import dataclasses
import random

import pytest
from helpers import rwkv

PROMPT = "def main():\n"
WILD = rwkv.SamplingParams(temperature=2.5, top_p=1.0, max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=2)


def with_(params, **changes):
    return dataclasses.replace(params, **changes)


def definition(e, tokens, stops):
    """What of a text of these tokens is written, by Python's own decoder and a plain search.

    Returns text, number of tokens and whether a stop string ended it. It ends at the stop string that is complete
    first, of several the longest; a token belongs to the text if it begins in it.
    """
    decoder, text, begins = codecs.getincrementaldecoder("utf-8")("replace"), "", []
    for token in tokens:
        begins.append(len(text))
        text += decoder.decode(e.tokenizer.decode_bytes([token]))
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            cut = end - max(map(len, found))
            return text[:cut], sum(begin < cut for begin in begins), True
    return text, len(tokens), False


def stop_strings(texts, count):
    """Random stop strings: some occur, some begin and do not end, some are no text that the model writes."""
    rng = random.Random(7)
    for i in range(count):
        text = texts[i % len(texts)]
        strings = []
        for _ in range(rng.choice([1, 1, 2, 4])):
            begin = rng.randrange(len(text))
            part = text[begin : begin + rng.choice([1, 2, 3, 5, 9, 20])]
            kind = rng.random()
            if kind < 0.3:
                part += rng.choice("xyz\u20ac\ufffd\n")
            elif kind < 0.4:
                part = "".join(rng.choice("abc \n=\u00e9\ufffd") for _ in range(rng.randint(1, 3)))
            strings.append(part)
        yield i % len(texts), tuple(strings)


def test_a_thousand_stop_strings_neither_leak_nor_swallow(e):
    seeds = range(20)
    whole = e.generate_batch([PROMPT] * 20, [with_(WILD, seed=seed) for seed in seeds])
    texts = [definition(e, r.tokens, ())[0] for r in whole]
    assert any("\ufffd" in text for text in texts)
    cases = list(stop_strings(texts, 1000))
    ended = 0
    for at in range(0, len(cases), 100):
        part = cases[at : at + 100]
        results = e.generate_batch([PROMPT] * len(part), [with_(WILD, seed=seed, stop=stop) for seed, stop in part])
        for (seed, stop), result in zip(part, results):
            text, count, stopped = definition(e, whole[seed].tokens, stop)
            assert (result.text, result.tokens) == (text, whole[seed].tokens[:count]), stop
            assert result.finish_reason == ("stop" if stopped else "length")
            assert not any(s in result.text for s in stop)
            assert result.state.tokens_seen == len(e.tokenizer.encode(PROMPT)) + count
            assert len(result.logprobs) == count == result.usage.completion_tokens
            ended += stopped
    assert 300 < ended < 1000


def test_the_state_is_behind_the_last_token_of_the_text(e):
    """As if the tokens that belong to a stop string had never been written, bit for bit."""
    whole = e.generate(PROMPT, with_(WILD, seed=3))
    for seed, stop in list(stop_strings([whole.text], 60)):
        result = e.generate(PROMPT, with_(WILD, seed=3, stop=stop))
        again = e.new_state()
        e.forward([*e.tokenizer.encode(PROMPT), *result.tokens], again)
        assert result.state.equals(again), stop


def test_a_stream_hands_over_what_is_certain_and_its_state_is_there(e):
    prompt = e.tokenizer.encode(PROMPT)
    for seed in range(6):
        whole = e.generate(PROMPT, with_(WILD, seed=seed))
        for _, stop in list(stop_strings([whole.text], 12)):
            params = with_(WILD, seed=seed, stop=stop)
            text, count, stopped = definition(e, whole.tokens, stop)
            stream = e.stream(prompt, params)
            shown, tokens = "", []
            for piece in stream:
                shown += piece.text
                tokens += [] if piece.token is None else [piece.token]
                assert text.startswith(shown) and whole.tokens[: len(tokens)] == tokens
                assert stream.state.tokens_seen == len(prompt) + len(tokens)
            assert (shown, len(tokens)) == (text, count)
            assert stream.finish_reason == ("stop" if stopped else "length")
            assert stream.usage == rwkv.Usage(len(prompt), count)


def test_text_is_handed_over_at_once_when_no_stop_string_can_begin_in_it(e):
    pieces = list(e.stream(PROMPT, rwkv.SamplingParams(temperature=0, max_tokens=20, stop=["\x01\x02"])))
    assert all(piece.text == e.tokenizer.decode([piece.token]) for piece in pieces)


def test_closing_a_stream_that_holds_text_back_loses_nothing(e):
    """What was computed and not handed over is computed again: the text goes on as if the stream had gone on."""
    for seed in range(8):
        whole = e.generate(PROMPT, with_(WILD, seed=seed))
        stop = (whole.text[20:30] + "never",)  # begins, and holds ten characters back
        expected = e.generate(PROMPT, with_(WILD, seed=seed, stop=stop))
        for cut in (1, 5, 12, 20):
            state = e.new_state()
            stream = e.stream(PROMPT, with_(WILD, seed=seed, stop=stop), state=state)
            first = [next(stream) for _ in range(cut)]
            stream.close()
            assert state.tokens_seen == len(e.tokenizer.encode(PROMPT)) + cut
            rest = e.generate("", with_(WILD, stop=stop, max_tokens=WILD.max_tokens - cut), state=state)
            assert [p.token for p in first] + rest.tokens == expected.tokens
            assert "".join(p.text for p in first) + rest.text == expected.text


def test_long_stop_strings_hold_many_tokens_back(e):
    """More than a stream keeps states for: it steps once more, and every bit is as if it had not had to."""
    params = with_(WILD, seed=5)
    whole = e.generate(PROMPT, params)
    stop = (whole.text[5:45] + "never",)
    prompt = e.tokenizer.encode(PROMPT)
    state = e.new_state()
    for i, piece in enumerate(e.stream(prompt, with_(params, stop=stop), state=state), 1):
        again = e.new_state()
        e.forward([*prompt, *whole.tokens[:i]], again)
        assert state.equals(again), i
    assert i == len(whole.tokens)
    hit = e.generate(PROMPT, with_(params, stop=(whole.text[5:45],)))
    again = e.new_state()
    e.forward([*prompt, *hit.tokens], again)
    assert hit.text == whole.text[:5] and hit.state.equals(again)


def test_a_stop_string_across_two_calls(e):
    """The second call ends where one call would have ended; what the first has handed over stays."""
    params = rwkv.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    whole = e.generate(PROMPT, params)
    for cut in range(1, 12):
        held = e.tokenizer.decode(whole.tokens[cut - 1 : cut + 2])
        one = e.generate(PROMPT, with_(params, stop=held))
        first = e.generate(PROMPT, with_(params, stop=held, max_tokens=cut))
        if first.finish_reason == "stop":
            continue
        state = e.state_from_bytes(first.state.to_bytes())
        rest = e.generate("", with_(params, stop=held), state=state)
        assert rest.finish_reason == one.finish_reason == "stop" and rest.tokens == []
        assert (first.text + rest.text).startswith(one.text)


def test_a_text_that_a_stop_string_has_ended_stays_ended(e):
    """Wherever in a token it begins; with other stop strings the text goes on behind the token."""
    whole = e.generate(PROMPT, with_(WILD, seed=4))
    for stop in (whole.text[7:9], whole.text[7:12], whole.text[8:9]):
        ended = e.generate(PROMPT, with_(WILD, seed=4, stop=stop))
        for state in (ended.state, e.state_from_bytes(ended.state.to_bytes())):
            again = e.generate("", with_(WILD, stop=stop), state=state.fork())
            assert (again.text, again.tokens, again.finish_reason) == ("", [], "stop")
            more = e.generate("", with_(WILD, max_tokens=5), state=state)
            assert ended.tokens + more.tokens == whole.tokens[: len(ended.tokens) + 5]


def test_bytes_of_a_character_wait_for_the_rest_of_it(e):
    """A character whose bytes are split between two calls, or lost, or followed by other text."""
    euro = [id for byte in "\u20ac".encode() for id in e.tokenizer.encode(bytes([byte]))]
    a = e.tokenizer.encode("a")[0]

    def forced(ids):
        queue = list(ids)

        def choose(tokens, logits):
            logits[:] = -1e9
            logits[queue[len(tokens)]] = 0

        return choose

    def write(ids, state=None, prompt=PROMPT, **changes):
        params = rwkv.SamplingParams(max_tokens=len(ids), logits_processor=forced(ids), ignore_eos=True)
        return e.generate(prompt, with_(params, **changes), state=state)

    assert write(euro).text == "\u20ac" and write(euro + [a]).text == "\u20aca"
    first = write(euro[:2])
    assert first.text == "" and first.tokens == euro[:2]
    restored = e.state_from_bytes(first.state.to_bytes())
    assert write(euro[2:], restored, "").text == "\u20ac"
    assert write([a], first.state, "").text == "\ufffda"
    assert write([a], write(euro[:2]).state).text == "a", "a new prompt begins a new text"
    # The end of a document ends the character too.
    ended = write([*euro[:2], 0], ignore_eos=False)
    assert (ended.text, ended.tokens, ended.finish_reason) == ("\ufffd", euro[:2], "stop")
    stream = e.stream(PROMPT, with_(rwkv.SamplingParams(), max_tokens=3, logits_processor=forced([*euro[:2], 0])))
    assert [(p.text, p.token) for p in stream] == [("", euro[0]), ("", euro[1]), ("\ufffd", None)]
    # A stop string may begin with the character, or with what stands for a broken one.
    assert write([a, *euro, a], stop="\u20ac").tokens == [a]
    broken = write([a, euro[0], a, a], stop="\ufffda")
    assert (broken.text, broken.tokens) == ("a", [a])


def test_whatever_the_tokens_text_is_utf8(e):
    for seed in range(30):
        for piece in e.stream(PROMPT, with_(WILD, temperature=8.0, seed=seed, stop=("\ufffd\ufffd\ufffd", "ab"))):
            piece.text.encode("utf-8", "strict")
    result = e.generate_batch([PROMPT], with_(WILD, temperature=8.0, seed=1), n=30)
    assert all(r.text == definition(e, r.tokens, ())[0] for r in result)


def test_stop_as_one_string_and_as_several(e):
    params = rwkv.SamplingParams(temperature=0, max_tokens=30)
    assert e.generate(PROMPT, with_(params, stop="\n")).text == e.generate(PROMPT, with_(params, stop=["\n"])).text
    for bad in ("", [""], [b"x"], 3, [3], "\ud800"):
        with pytest.raises((rwkv.Error, TypeError), match="stop"):
            rwkv.SamplingParams(stop=bad)
    with pytest.raises(rwkv.Error, match="65536 bytes together, found 65537"):
        e.generate(PROMPT, with_(params, stop="x" * 65537))
    assert e.generate(PROMPT, with_(params, stop=["x" * 65536])).tokens == e.generate(PROMPT, params).tokens
