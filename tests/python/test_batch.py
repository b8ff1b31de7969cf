"""Many texts at once, and texts that go on elsewhere: each is the text that one call alone would have written."""

import dataclasses
import gc
import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
from helpers import rwkv

PROMPTS = ["def main():\n", "import ", "class A:\n    def __init__(self", "x"]
PARAMS = rwkv.SamplingParams(
    temperature=1.2, top_p=0.9, top_k=40, seed=11, max_tokens=25, presence_penalty=0.4, frequency_penalty=0.3, ignore_eos=True
)
STYLES = ["rwkv", "rapid", "openai"]


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=2)


def with_(**changes):
    return dataclasses.replace(PARAMS, **changes)


def same(a, b):
    assert (a.text, a.tokens, a.finish_reason, a.usage) == (b.text, b.tokens, b.finish_reason, b.usage)
    assert a.logprobs == b.logprobs and a.state.equals(b.state)


# ---- alone, in a batch, as a stream ----


@pytest.mark.parametrize("style", STYLES)
def test_a_text_is_the_same_alone_in_a_batch_and_as_a_stream(e, style):
    params = [with_(penalty_style=style, seed=s, max_tokens=10 + s) for s in range(4)]
    alone = [e.generate(prompt, p) for prompt, p in zip(PROMPTS, params)]
    for a, b in zip(alone, e.generate_batch(PROMPTS, params)):
        same(a, b)
    for a, prompt, p in zip(alone, PROMPTS, params):
        pieces = list(e.stream(prompt, p))
        assert [x.token for x in pieces] == a.tokens and "".join(x.text for x in pieces) == a.text
        assert [x.logprob for x in pieces] == a.logprobs
    for a, b in zip(reversed(alone), e.generate_batch(PROMPTS[::-1], params[::-1])):
        same(a, b)


def test_samples_of_one_prompt_are_texts_with_the_next_seeds(e):
    samples = e.generate_batch(PROMPTS[:2], PARAMS, n=8)
    assert len(samples) == 16
    for i, sample in enumerate(samples):
        same(sample, e.generate(PROMPTS[i // 8], with_(seed=11 + i % 8)))
    assert len({tuple(s.tokens) for s in samples}) > 12
    last = e.generate_batch(["x"], with_(seed=2**64 - 1), n=2)
    assert last[1].tokens == e.generate("x", with_(seed=0)).tokens


def test_eight_samples_cost_one_prefill(e):
    prompt = list(range(1, 201))
    read = []
    e.generate_batch([prompt], with_(max_tokens=3), n=8, progress=lambda done, total: read.append((done, total)))
    assert read[-1] == (200, 200) and all(total == 200 for _, total in read)
    read.clear()
    e.generate_batch([prompt, [1, 2, 3]], with_(max_tokens=3), n=8, progress=lambda done, total: read.append((done, total)))
    assert read[-1] == (203, 203)


def test_the_states_of_samples(e):
    """Each text has its own; the one given takes in the prompt, and more texts can come from it."""
    state = e.new_state()
    e.forward([5, 6, 7], state)
    samples = e.generate_batch(["def "], PARAMS, [state], n=3)
    assert state.tokens_seen == 3 + len(e.tokenizer.encode("def "))
    again = e.new_state()
    e.forward([5, 6, 7, *e.tokenizer.encode("def ")], again)
    assert state.equals(again)
    assert len({id(s.state) for s in samples} | {id(state)}) == 4
    more = e.generate_batch([""], with_(seed=12), [state.fork()], n=2)
    same(dataclasses.replace(more[0], usage=samples[1].usage), samples[1])


def test_texts_of_a_batch_end_on_their_own(e):
    params = [with_(max_tokens=m) for m in (0, 1, 30, 7)]
    results = e.generate_batch(PROMPTS, params)
    assert [len(r.tokens) for r in results] == [0, 1, 30, 7]
    stop = results[2].tokens[4]
    first = results[2].tokens.index(stop)
    again = e.generate_batch(PROMPTS, [*params[:2], with_(max_tokens=30, stop_tokens=[stop]), params[3]])
    assert again[2].tokens == results[2].tokens[:first] and again[2].finish_reason == "stop"
    same(again[3], results[3])


def test_what_a_batch_refuses(e):
    state = e.new_state()
    for arguments, message in [
        (dict(states=[state, state]), "every state once in a batch, found one twice"),
        (dict(states=[state]), "states: expected one for each of 2 prompts, found 1"),
        (dict(params=[PARAMS]), "params: expected one for each of 2 prompts, found 1"),
        (dict(n=0), "n: expected an integer from 1"),
        (dict(states=[state, rwkv.Engine("demo").new_state()]), "a state of this engine"),
    ]:
        with pytest.raises(rwkv.Error, match=message):
            e.generate_batch(PROMPTS[:2], **arguments)
    for arguments in (dict(states=[state, None]), dict(params=[PARAMS, None, 3]), dict(params=7), dict(n=1.5)):
        with pytest.raises((TypeError, rwkv.Error)):
            e.generate_batch(PROMPTS[:2], **arguments)
    assert e.generate_batch([]) == [] and state.tokens_seen == 0


# ---- all or nothing ----


class Stop(Exception):
    pass


def test_a_call_that_fails_leaves_every_state_as_it_was(e):
    states = [e.new_state() for _ in PROMPTS]
    for i, state in enumerate(states):
        e.forward([i + 1, 2], state)
    before = [state.to_bytes() for state in states]

    def fail(tokens, logits):
        if len(tokens) == 5:
            raise Stop

    def stop_reading(done, total):
        raise Stop

    for arguments in (dict(params=with_(logits_processor=fail)), dict(progress=stop_reading), dict(params=with_(logits_processor=fail), n=3)):
        with pytest.raises(Stop):
            e.generate_batch(PROMPTS, states=states, **arguments)
        assert [state.to_bytes() for state in states] == before
    nan = with_(logits_processor=lambda tokens, logits: logits * math.nan)
    with pytest.raises(rwkv.NonFiniteError):
        e.generate_batch(PROMPTS, nan, states)
    assert [state.to_bytes() for state in states] == before


def test_a_stream_that_fails_may_go_on(e):
    whole = e.generate(PROMPTS[0], PARAMS)
    fails = iter([False] * 4 + [True] + [False] * 100)

    def sometimes(tokens, logits):
        if next(fails):
            raise Stop

    stream = e.stream(PROMPTS[0], with_(logits_processor=sometimes))
    tokens = [next(stream).token for _ in range(4)]
    with pytest.raises(Stop):
        next(stream)
    assert stream.state.tokens_seen == len(e.tokenizer.encode(PROMPTS[0])) + 4
    assert tokens + [piece.token for piece in stream] == whole.tokens


def test_a_state_stepped_behind_the_back_of_a_stream(e):
    state = e.new_state()
    stream = e.stream(PROMPTS[0], PARAMS, state=state)
    next(stream)
    e.forward([1], state)
    with pytest.raises(rwkv.ConcurrentUseError, match="another call has stepped it"):
        next(stream)


def test_a_stream_used_from_within_itself(e):
    refused = []

    def again(tokens, logits):
        try:
            next(stream)
        except rwkv.ConcurrentUseError as error:
            refused.append(str(error))

    stream = e.stream(PROMPTS[0], with_(logits_processor=again, max_tokens=3))
    assert len(list(stream)) == 3 and len(refused) == 3 and "one call of a generation" in refused[0]


def test_a_processor_may_use_the_engine(e):
    """Other states of the same engine, that is: between the steps nobody holds it."""
    side = []

    def look(tokens, logits):
        side.append(e.forward([1, 2], e.new_state()))

    assert e.generate(PROMPTS[0], with_(logits_processor=look, max_tokens=3)).tokens == e.generate(PROMPTS[0], with_(max_tokens=3)).tokens
    assert len(side) == 3


# ---- closing ----


def test_closing_a_stream_frees_its_state_at_once(e):
    gc.disable()
    try:
        stream = e.stream(PROMPTS[0], PARAMS)
        next(stream)
        state = weakref.ref(stream.state)
        stream.close()
        assert state() is None
        with pytest.raises(StopIteration):
            next(stream)
        with pytest.raises(rwkv.StateError, match="found it closed"):
            stream.state
        stream.close()
        with e.stream(PROMPTS[0], PARAMS) as stream:
            next(stream)
            state = weakref.ref(stream.state)
        assert state() is None
        mine = e.new_state()
        with e.stream(PROMPTS[0], PARAMS, state=mine) as stream:
            next(stream)
        assert mine.tokens_seen == len(e.tokenizer.encode(PROMPTS[0])) + 1
    finally:
        gc.enable()


def test_streams_that_nobody_reads_to_the_end_hold_no_memory(e):
    """A thousand of them, each with states of its own: the pool stays as it was."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for i in range(1200):
        if i == 200:
            before = resident()
        stream = e.stream(PROMPTS[0], with_(stop="never to be seen"))
        next(stream)
        stream.close()
    assert resident() - before < 8e6


# ---- going on ----


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", [11, None])
def test_a_text_goes_on_from_its_state(e, style, seed):
    """Penalties and, if none is given, the seed are the text's own."""
    params = with_(penalty_style=style, max_tokens=30, seed=11)
    whole = e.generate(PROMPTS[0], params)
    for cut in (0, 1, 10, 29):
        first = e.generate(PROMPTS[0], dataclasses.replace(params, max_tokens=cut))
        fork = first.state.fork()
        rest = e.generate("", dataclasses.replace(params, max_tokens=30 - cut, seed=seed), state=e.state_from_bytes(first.state.to_bytes()))
        assert first.tokens + rest.tokens == whole.tokens and first.text + rest.text == whole.text
        assert rest.state.equals(whole.state)
        assert e.generate("", dataclasses.replace(params, max_tokens=30 - cut, seed=seed), state=fork).tokens == rest.tokens
    assert e.generate("", with_(seed=12), state=first.state).tokens != rest.tokens or cut == 29


GO_ON = """
import sys
import rwkv_engine as rwkv
engine = rwkv.Engine("demo", threads=1)
state = engine.load_state(sys.argv[1])
params = rwkv.SamplingParams(temperature=1.2, top_p=0.9, top_k=40, max_tokens=15, presence_penalty=0.4,
                             frequency_penalty=0.3, penalty_style=sys.argv[2], ignore_eos=True)
result = engine.generate("", params, state=state)
print(result.tokens)
"""


@pytest.mark.parametrize("style", STYLES)
def test_a_text_goes_on_in_another_process(e, tmp_path, style):
    whole = e.generate(PROMPTS[0], with_(penalty_style=style))
    first = e.generate(PROMPTS[0], with_(penalty_style=style, max_tokens=10, seed=11))
    first.state.save(tmp_path / "a.state")
    done = subprocess.run([sys.executable, "-c", GO_ON, tmp_path / "a.state", style], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(whole.tokens[10:]), done.stderr


def test_a_stream_saved_between_two_pieces_goes_on(e):
    whole = e.generate(PROMPTS[0], PARAMS)
    stream = e.stream(PROMPTS[0], PARAMS)
    for i in range(1, 12):
        next(stream)
        rest = e.generate("", with_(seed=None, max_tokens=25 - i), state=e.state_from_bytes(stream.state.to_bytes()))
        assert rest.tokens == whole.tokens[i:]


def test_without_a_seed_a_saved_text_still_goes_on(e):
    first = e.generate(PROMPTS[0], with_(seed=None))
    blob = first.state.to_bytes()
    rests = [e.generate("", with_(seed=None), state=e.state_from_bytes(blob)).tokens for _ in range(2)]
    assert rests[0] == rests[1]
    assert len({tuple(e.generate(PROMPTS[0], with_(seed=None)).tokens) for _ in range(4)}) > 1


def test_a_new_prompt_begins_a_new_text(e):
    """Penalties of the text before do not count, as if the state had been read and never written."""
    first = e.generate(PROMPTS[0], PARAMS)
    read = e.new_state()
    e.forward([*e.tokenizer.encode(PROMPTS[0]), *first.tokens], read)
    a, b = e.generate("\n", PARAMS, state=first.state), e.generate("\n", PARAMS, state=read)
    same(a, b)


def test_a_state_that_was_stepped_since_begins_a_new_text(e):
    first = e.generate(PROMPTS[0], PARAMS)
    read = first.state.fork()
    e.forward([3], read)
    again = e.new_state()
    e.forward([*e.tokenizer.encode(PROMPTS[0]), *first.tokens, 3], again)
    assert e.generate("", PARAMS, state=read).tokens == e.generate("", PARAMS, state=again).tokens


def test_equal_says_nothing_about_the_text_and_bytes_do(e):
    first = e.generate(PROMPTS[0], PARAMS)
    read = e.new_state()
    e.forward([*e.tokenizer.encode(PROMPTS[0]), *first.tokens], read)
    assert read.equals(first.state) and len(read.to_bytes()) < len(first.state.to_bytes())
    np.testing.assert_array_equal(read.last_logits, first.state.last_logits)
