"""A conversation with a model: messages in a template's words, and a state after each reply."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._arguments import Path, Progress
from ._script import Kind, Script, Splitter
from .errors import ConcurrentUseError, Error
from .generation import Usage
from .params import SamplingParams
from .state import State, core_of
from .templates import ChatTemplate, template_of

if TYPE_CHECKING:
    from .engine import Engine

_END = 64  # tokens of a reply's end that may already be the template's


@dataclass(frozen=True, slots=True)
class Message:
    """What one of the two said."""

    role: str
    """"system", "user", "tool" or "assistant"."""
    content: str
    """The text as the model read it, or the answer that it wrote."""
    reasoning: str | None = None
    """What the model thought before the answer."""


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """A part of a reply that has become certain."""

    text: str
    kind: Kind
    """"reasoning" or "answer"."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What `Chat.send` returns."""

    text: str
    """The answer, without tags and the blank lines around it."""
    reasoning: str | None
    """What the model thought before it; None if it did not."""
    finish_reason: Literal["stop", "length", "closed"]
    """"stop": the reply is whole; "length": `max_tokens`; "closed": the stream was closed early."""
    usage: Usage
    raw: str
    """What the model wrote, tags included, after the template's opener."""


@dataclass(frozen=True, slots=True)
class _Turn:
    messages: tuple[Message, ...]
    state: State  # after the reply
    written: bytes | None  # its end; None before the first

    def fork(self) -> _Turn:
        return dataclasses.replace(self, state=self.state.fork())


class ReplyStream:
    """A reply as an iterator of pieces, and a context manager that closes it."""

    def __init__(self, pieces: Generator[ReplyPiece, None, None], replies: list[Reply]) -> None:
        self._pieces = pieces
        self._replies = replies

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> ReplyPiece:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work; what has been written so far is the reply."""
        self._pieces.close()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def result(self) -> Reply:
        """Run to the end and return the whole reply, whatever has been iterated over before."""
        for _ in self:
            pass
        if not self._replies:
            raise Error("reply: expected one, found a stream that was closed before it, or failed")
        return self._replies[0]


class Chat:
    """A conversation with a model, made by `Engine.chat`.

    Every exchange keeps the state after it (`State.nbytes` of memory), so `undo` and `branch` read
    nothing again. A message whose reply fails leaves the chat as it was. What people say is cleaned
    as the models expect (one line break for a run of them, no blanks around) and cannot take on
    another role: see `rwkv_engine.templates`.

    Parameters
    ----------
    engine : Engine
    template : str, path or ChatTemplate, optional
        The name of a template ("bot", "assistant", "function_calling", "world") or a TOML file. By
        default the one for `Engine.name`; templates in model files are never looked at.
    system : str, optional
        What the model is told before the first message.
    think : str, optional
        A mode of the template. Those of the G1 templates are "off", "open" (as long as the model
        likes), "short", "medium" and "long"; "world" has "off". By default the template's choice.
    params : SamplingParams, optional
        By default the template's preset for the mode. What ends a reply in the template is added.
    state : State, optional
        Where the chat begins, such as ``chat.state`` of another day; it is forked, not stepped. One
        that has seen tokens is taken to stand after a reply.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> engine = rwkv.Engine("demo")  # which writes code, and does not talk
    >>> params = rwkv.SamplingParams(seed=1, max_tokens=8)
    >>> chat = engine.chat("bot", system="Be brief.", think="off", params=params)
    >>> reply = chat.send("Hello!")
    >>> [message.role for message in chat.messages]
    ['system', 'user', 'assistant']
    >>> other = chat.branch()
    >>> reply = other.send("Tell me more.")
    >>> chat.undo()
    >>> len(chat.messages), len(other.messages)
    (1, 5)
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | Path | None = None,
        *,
        system: str | None = None,
        think: str | None = None,
        params: SamplingParams | None = None,
        state: State | None = None,
    ) -> None:
        if params is not None and not isinstance(params, SamplingParams):
            raise TypeError(f"params: expected SamplingParams, found {type(params).__name__}")
        self._engine = engine
        self._template = template_of(template, engine.name)
        self._script = Script(self._template, engine.tokenizer)
        self._given = params
        self.set_think(self._template.think if think is None else think)
        self._system = self._script.wording("system", "" if system is None else system) or None
        state = engine.new_state() if state is None else state
        core_of(state)  # or TypeError
        seen = [] if state.last_token is None else [state.last_token]
        written = engine.tokenizer.decode_bytes(seen) if state.tokens_seen > 0 else None
        self._start = _Turn((), state.fork(), written)
        self._turns: list[_Turn] = []
        self._speaking = False

    @property
    def template(self) -> ChatTemplate:
        """How the conversation is written down."""
        return self._template

    @property
    def think(self) -> str:
        """The mode of the next reply."""
        return self._think

    def set_think(self, think: str, params: SamplingParams | None = None) -> None:
        """Choose the mode of the replies to come, and how they are sampled.

        Without `params` the chat's own stay, or the template's preset for the mode if it has none.
        Raises Error for a mode that the template lacks.
        """
        self._mode = self._template.mode(think)
        self._think = think
        self._given = self._given if params is None else params
        params = self._mode.params if self._given is None else self._given
        self._params = dataclasses.replace(
            params,
            stop=(*params.stop, *self._script.stop),
            stop_tokens=(*params.stop_tokens, *self._script.stop_tokens),
        )

    @property
    def system(self) -> str | None:
        """What the model is told before the first message, as it reads it."""
        return self._system

    @property
    def messages(self) -> list[Message]:
        """All that has been said in this chat, the system's message first."""
        said = [Message("system", self._system)] if self._system is not None else []
        return said + [message for turn in self._turns for message in turn.messages]

    @property
    def state(self) -> State:
        """A fork of the state after the last reply; `Engine.chat` goes on from it."""
        return self._last.state.fork()

    def send(self, text: str, progress: Progress | None = None, *, role: str = "user") -> Reply:
        """Say something and return the reply; a call that fails, by Ctrl-C too, changes nothing.

        ``progress(tokens_done, tokens_total)`` is called while the message is read. With the role
        "tool" it is the output of a tool, in templates that have this role.
        """
        turns = len(self._turns)
        try:
            return self.stream(text, progress, role=role).result()
        except BaseException:
            del self._turns[turns:]
            raise

    def stream(
        self, text: str, progress: Progress | None = None, *, role: str = "user"
    ) -> ReplyStream:
        """Return `send` as an iterator of pieces (``.text .kind``), with `result()` at its end.

        The exchange is in the chat when the stream has ended. If it is closed before, or dropped,
        or stopped by Ctrl-C, the reply in the chat is what was written until then, if anything was.
        Any other error leaves the chat as it was. One stream of a chat runs at a time.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> chat = rwkv.Engine("demo").chat(params=rwkv.SamplingParams(seed=1, max_tokens=8))
        >>> with chat.stream("import") as pieces:
        ...     text = "".join(piece.text for piece in pieces if piece.kind == "answer")
        >>> text == chat.messages[-1].content
        True
        """
        spoken = [name for name in ("user", "tool") if name in self._template.roles]
        if role not in spoken:
            raise Error(f"role: expected {' or '.join(spoken)}, found {role!r:.100}")
        said = Message(role, self._script.wording(role, text))
        if not said.content:
            raise Error(f"{role}: expected text, found none but blanks")
        replies: list[Reply] = []
        return ReplyStream(self._speak(said, progress, replies), replies)

    def undo(self) -> None:
        """Drop the last exchange. Raises Error if there is none."""
        if self._speaking:
            raise ConcurrentUseError("undo: expected no reply in progress, found one")
        if not self._turns:
            raise Error("undo: expected an exchange in this chat, found none")
        self._turns.pop()

    def branch(self) -> Chat:
        """Return a second chat that has come this far; the two go on independently."""
        other = copy.copy(self)
        other._start = self._start.fork()
        other._turns = [turn.fork() for turn in self._turns]
        other._speaking = False
        return other

    def __repr__(self) -> str:
        return f"<Chat {self._template.name!r}, exchanges: {len(self._turns)}>"

    @property
    def _last(self) -> _Turn:
        return self._turns[-1] if self._turns else self._start

    def _speak(
        self, said: Message, progress: Progress | None, replies: list[Reply]
    ) -> Generator[ReplyPiece, None, None]:
        if self._speaking:
            raise ConcurrentUseError("chat: expected one reply at a time, found one in progress")
        self._speaking = True
        try:
            state = self._last.state.fork()
            told = [] if self._turns or self._system is None else [("system", self._system)]
            prompt = self._script.prompt(
                [*told, (said.role, said.content)], self._mode, self._last.written
            )
            splitter = Splitter(self._mode.opener)
            raw: list[str] = []
            tokens: list[int] = []

            def end(reason: Literal["stop", "length", "closed"]) -> None:
                answer, reasoning = splitter.parts["answer"], splitter.parts["reasoning"] or None
                written = self._engine.tokenizer.decode_bytes(tokens[-_END:])
                reply = Message("assistant", answer, reasoning)
                self._turns.append(_Turn((said, reply), state, written))
                usage = Usage(len(prompt), len(tokens))
                replies.append(Reply(answer, reasoning, reason, usage, "".join(raw)))

            with self._engine.stream(prompt, self._params, state, progress) as pieces:
                try:
                    for piece in pieces:
                        raw.append(piece.text)
                        tokens += [] if piece.token is None else [piece.token]
                        for kind, text in splitter.put(piece.text):
                            yield ReplyPiece(text, kind)
                except (GeneratorExit, KeyboardInterrupt):
                    if tokens:
                        splitter.finish()
                        end("closed")
                    raise
                rest = splitter.finish()
                end(pieces.finish_reason or "length")
            for kind, text in rest:
                yield ReplyPiece(text, kind)
        finally:
            self._speaking = False
