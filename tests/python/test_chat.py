"""Conversations: their parts, states that are kept and forked, replies that do not end, parameters."""

import pytest
from helpers import rwkv
from scripted import FLOWER, NAMES, Recorded, Scripted, canonical, chat_of, world_engine

from rwkv_engine.chat import Message


@pytest.fixture(scope="module")
def world():
    return world_engine()


@pytest.fixture(scope="module")
def demo():
    return rwkv.Engine("demo", threads=2)


def test_the_stream_has_the_parts_and_the_reply_has_them_whole(world):
    engine = Scripted(world, ">\nLet me see.\n</think>\n\nIt is 4.\n\nYes.✿")
    chat = chat_of(engine, think="open")
    assert chat.template.name == "bot"
    with chat.stream("2 + 2?") as stream:
        pieces = list(stream)
        reply = stream.result()
    assert {piece.kind for piece in pieces} == {"reasoning", "answer"}
    for kind, text in (("reasoning", "Let me see."), ("answer", "It is 4.\n\nYes.")):
        assert "".join(piece.text for piece in pieces if piece.kind == kind) == text
    assert len(pieces) > 5
    assert (reply.reasoning, reply.text) == ("Let me see.", "It is 4.\n\nYes.")
    assert reply.raw == ">\nLet me see.\n</think>\n\nIt is 4.\n\nYes." and reply.finish_reason == "stop"
    assert reply.usage.prompt_tokens == len(engine.prompts[0])
    assert reply.usage.completion_tokens == len(engine.tokens) - len(engine.prompts[0])
    assert chat.messages[-1] == Message("assistant", reply.text, reply.reasoning)


# ---- states ----


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_that_of_the_transcript(demo, name):
    params = rwkv.SamplingParams(seed=3, max_tokens=12, temperature=1.3, top_p=1.0)
    tokens = []

    class Listening(Scripted):
        def stream(self, prompt, params, state, progress):
            return Recorded(self, prompt, self.engine.stream(prompt, params, state, progress))

    engine = Listening(demo)
    chat = chat_of(engine, name, system="s", params=params)
    chat.send("def f():"), chat.send("more")
    tokens = engine.tokens
    state = demo.new_state()
    demo.forward(tokens, state)
    assert state.tokens_seen == chat.state.tokens_seen
    for part, array in state.to_numpy().items():
        assert array.tobytes() == chat.state.to_numpy()[part].tobytes()


def test_undo(demo):
    params = rwkv.SamplingParams(seed=3, max_tokens=12)
    chat = chat_of(demo, "bot", params=params)
    start = chat.state
    first = chat.send("one")
    after = chat.state
    second = chat.send("two")
    chat.undo()
    assert len(chat.messages) == 2 and chat.state.equals(after)
    assert chat.send("two").raw == second.raw
    chat.undo(), chat.undo()
    assert chat.messages == [] and chat.state.equals(start)
    with pytest.raises(rwkv.Error, match="undo: expected an exchange"):
        chat.undo()
    assert chat.send("one").raw == first.raw


def test_a_branch_goes_on_by_itself(demo):
    params = rwkv.SamplingParams(seed=3, max_tokens=12)
    chat = chat_of(demo, "bot", params=params)
    chat.send("one")
    other = chat.branch()
    a, b = chat.send("two"), other.send("three")
    assert len(chat.messages) == len(other.messages) == 4 and chat.messages[2] != other.messages[2]
    other.undo()
    assert other.send("two").raw == a.raw and other.state.equals(chat.state)
    other.undo(), other.undo()
    assert len(chat.messages) == 4 and other.messages == [] and b.usage.completion_tokens > 0


def test_a_chat_goes_on_from_a_state(world):
    engine = Scripted(world, ">one✿", ">two✿")
    first = chat_of(engine, "bot", system="s", think="off")
    first.send("a")
    kept = world.state_from_bytes(first.state.to_bytes())
    before = kept.to_bytes()
    second = chat_of(engine, "bot", think="off", state=kept)
    assert second.messages == []
    second.send("b")
    assert kept.to_bytes() == before  # forked, not stepped
    turns = [("a", ">one"), ("b", ">two")]
    assert engine.transcript == canonical("bot", "<think></think", "s", turns).removesuffix("✿\n")
    second.undo()
    assert second.state.equals(kept)
    world.forward([1], kept)
    assert second.state.to_bytes() == before


def test_a_state_without_tokens_begins_a_document(world):
    engine = Scripted(world)
    chat_of(engine, "bot", state=world.new_state()).send("a")
    assert engine.prompts[0][0] == 0


def test_stepping_the_state_of_a_chat_does_not_disturb_it(world):
    engine = Scripted(world, ">x✿")
    chat = chat_of(engine, "bot")
    chat.send("a")
    seen = chat.state.tokens_seen
    world.forward([1, 2, 3], chat.state)
    assert chat.state.tokens_seen == seen


# ---- replies that do not end ----


def test_a_stream_closed_early_leaves_the_partial_reply(world):
    engine = Scripted(world, ">\nOne two three.✿", ">\nGo.✿")
    chat = chat_of(engine, "bot", think="off")
    stream = chat.stream("a")
    assert next(stream).text == "One"
    assert chat.messages == []  # not before it has ended
    stream.close()
    assert [m.content for m in chat.messages] == ["a", "One"]
    assert stream.result().finish_reason == "closed" and list(stream) == []
    chat.send("b")
    turns = [("a", ">\nOne"), ("b", ">\nGo.")]
    assert engine.transcript == canonical("bot", "<think></think", None, turns).removesuffix("✿\n")


def test_a_stream_that_is_dropped_is_closed(world):
    engine = Scripted(world, ">\nOne two three.✿")
    chat = chat_of(engine, "bot", think="off")
    for piece in chat.stream("a"):
        break
    assert [m.content for m in chat.messages] == ["a", piece.text]


def test_a_stream_that_never_began_is_nothing(world):
    chat = chat_of(Scripted(world), "bot")
    stream = chat.stream("a")
    stream.close()
    assert chat.messages == []
    with pytest.raises(rwkv.Error, match="reply: expected one"):
        stream.result()


class Breaking(Scripted):
    """Raises when the reply has come so far."""

    def __init__(self, engine, *replies, error, at):
        super().__init__(engine, *replies)
        self.error, self.at = error, at

    def stream(self, *arguments):
        recorded = super().stream(*arguments)
        pieces, at = recorded.stream, self.at

        def broken():
            for i, piece in enumerate(pieces):
                if i == at:
                    raise self.error
                yield piece

        recorded.__class__ = type("R", (Recorded,), {"__iter__": lambda _: broken()})
        return recorded


@pytest.mark.parametrize("error", [rwkv.NonFiniteError("x"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("at", [0, 3])
def test_send_that_fails_leaves_the_chat_as_it_was(world, error, at):
    engine = Breaking(world, ">x✿", ">\nOne two three.✿", ">y✿", error=error, at=99)
    chat = chat_of(engine, "bot", think="off")
    chat.send("a")
    state, messages, engine.at = chat.state, chat.messages, at
    with pytest.raises(type(error)):
        chat.send("b")
    assert chat.messages == messages and chat.state.equals(state)
    engine.at = 99
    assert chat.send("c").text == "y"


@pytest.mark.parametrize("at", [0, 3])
def test_a_stream_that_fails(world, at):
    engine = Breaking(world, ">\nOne two three.✿", error=ValueError(), at=at)
    chat = chat_of(engine, "bot", think="off")
    with pytest.raises(ValueError), chat.stream("b") as stream:
        list(stream)
    assert chat.messages == []
    engine = Breaking(world, ">\nOne two three.✿", error=KeyboardInterrupt(), at=at)
    chat = chat_of(engine, "bot", think="off")
    with pytest.raises(KeyboardInterrupt), chat.stream("b") as stream:
        list(stream)
    assert [m.content for m in chat.messages] == (["b", "One"] if at else [])


def test_progress_reports_and_may_stop_a_message(world):
    chat, calls = chat_of(Scripted(world, ">x✿", ">x✿"), "bot"), []
    chat.send("a", lambda done, total: calls.append((done, total)))
    assert calls and calls[-1][0] == calls[-1][1]

    def stop(done, total):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        chat.send("b", stop)
    assert len(chat.messages) == 2


def test_one_reply_at_a_time(world):
    chat = chat_of(Scripted(world, ">\none two✿", ">\none two✿"), "bot", think="off")
    stream = chat.stream("a")
    next(stream)
    for call in (lambda: chat.send("b"), chat.undo, lambda: list(chat.stream("b"))):
        with pytest.raises(rwkv.ConcurrentUseError):
            call()
    assert chat.branch().send("b").text == "one two"
    assert stream.result().text == "one two" and len(chat.messages) == 2
    chat.undo()


# ---- parameters ----


def test_the_preset_of_the_mode_or_the_callers_parameters(world):
    engine = Scripted(world)
    chat_of(engine, "bot", think="off").send("a")
    chat_of(engine, "bot").send("a")
    own = rwkv.SamplingParams(temperature=0.5, stop="x", stop_tokens=[7], max_tokens=3)
    chat_of(engine, "assistant", params=own).send("a")
    off, thinking, given_ = engine.params
    assert (off.top_p, off.presence_penalty, off.stop_tokens) == (0.28, 0.0, (FLOWER,))
    assert (thinking.temperature, thinking.presence_penalty, thinking.penalty_decay) == (0.96, 1.0, 0.988)
    assert (given_.temperature, given_.stop, given_.stop_tokens) == (0.5, ("x", "\nUser:"), (7,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(think="hard"), "think: expected one of off, open, short, medium, long .*found 'hard'"),
        (dict(think=True), "think: expected one of"),
        (dict(template="chatml"), "template: expected bot, assistant.*found 'chatml'"),
        (dict(template="none.toml"), "none.toml: expected a TOML file, found none"),
        (dict(template=3), "template: expected a path, found int"),
        (dict(params={}), "params: expected SamplingParams, found dict"),
        (dict(system=3), "system: expected str, found int"),
        (dict(state=b""), "state: expected a State, found bytes"),
    ],
)
def test_bad_arguments(world, options, message):
    with pytest.raises((rwkv.Error, TypeError), match=message):
        chat_of(Scripted(world), **options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "user: expected text, found none"),
        (" \r\n ", {}, "user: expected text, found none"),
        (3, {}, "user: expected str, found int"),
        ("a", dict(role="tool"), "role: expected user, found 'tool'"),
        ("a", dict(role="assistant"), "role: expected user, found 'assistant'"),
        ("a", dict(role="system"), "role: expected user, found 'system'"),
        ("\ud800", {}, "surrogate"),
    ],
)
def test_bad_messages_leave_the_chat_as_it_was(world, text, options, message):
    chat = chat_of(Scripted(world), "bot")
    with pytest.raises((rwkv.Error, TypeError), match=message):
        chat.send(text, **options)
    assert chat.messages == [] and chat.send("a").finish_reason == "stop"


def test_no_system_message(world):
    for system in (None, "", " \n"):
        engine = Scripted(world)
        chat = chat_of(engine, "bot", system=system)
        chat.send("a")
        assert chat.system is None and engine.transcript == "User✿a✿\nBot✿<think"
