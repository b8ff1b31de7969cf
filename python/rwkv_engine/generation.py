"""From a prompt to text: read it, then choose a token, step the state by it, hand it over."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ._arguments import Progress, Tokens
from .errors import StateError
from .params import SamplingParams
from .state import State

if TYPE_CHECKING:
    from .engine import Engine

END_OF_DOCUMENT = 0

FinishReason: TypeAlias = Literal["stop", "length"]
Prompt: TypeAlias = str | Tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step of `Engine.stream` brings."""

    text: str
    """Text that has become certain; empty while a character is incomplete."""
    token: int | None
    """The token; None for what was left of a character when the tokens ended."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What `Engine.generate` returns."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    """"stop": a token that ends the text; "length": `max_tokens`."""
    state: State
    """After the last of `tokens`; with an empty prompt the text goes on from here."""
    usage: Usage


class Stream:
    """One generation as an iterator of pieces; closing it stops the work."""

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        params: SamplingParams | None,
        state: State | None,
        progress: Progress | None,
    ) -> None:
        if params is None:
            params = SamplingParams()
        elif not isinstance(params, SamplingParams):
            raise TypeError(f"params: expected SamplingParams, found {type(params).__name__}")
        if state is not None and not isinstance(state, State):
            raise TypeError(f"state: expected a State or None, found {type(state).__name__}")
        self.state = engine.new_state() if state is None else state
        self.prompt = _prompt_ids(engine, prompt, self.state)
        self._decoder = engine.tokenizer.stream()
        self.finish_reason: FinishReason = "length"
        self._pieces = self._run(engine, params, progress)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here. The state has taken in every token that was handed over, and no other."""
        self._pieces.close()

    def result(self) -> Result:
        """Run to the end and return everything at once."""
        pieces = list(self)
        tokens = [piece.token for piece in pieces if piece.token is not None]
        return Result(
            text="".join(piece.text for piece in pieces),
            tokens=tokens,
            finish_reason=self.finish_reason,
            state=self.state,
            usage=Usage(len(self.prompt), len(tokens)),
        )

    def _run(
        self, engine: Engine, params: SamplingParams, progress: Progress | None
    ) -> Generator[Piece, None, None]:
        state = self.state
        seed = secrets.randbits(64) if params.seed is None else params.seed
        stop = set(params.stop_tokens) | (set() if params.ignore_eos else {END_OF_DOCUMENT})
        if len(self.prompt) > 0:
            engine.forward(self.prompt, state, progress=progress)
        for _ in range(params.max_tokens):
            # The position is the counter: a text continued from a saved state stays the same text.
            token = engine._core.sample(
                state._core, params.temperature, params.top_p, seed, state.tokens_seen
            )
            if token in stop:
                self.finish_reason = "stop"
                break
            engine.forward([token], state)
            yield Piece(self._decoder.put(token), token)
        rest = self._decoder.finish()
        if rest:
            yield Piece(rest, None)


def _prompt_ids(engine: Engine, prompt: Prompt, state: State) -> Tokens:
    """Return the tokens to read; with an empty prompt a fresh state reads the end of a document."""
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, (Sequence, np.ndarray)):
        raise TypeError(f"prompt: expected str or token ids, found {type(prompt).__name__}")
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if len(ids) > 0 or state.last_logits is not None:
        return ids
    if state.tokens_seen == 0:
        return [END_OF_DOCUMENT]
    raise StateError(
        "prompt: expected at least one token, found none, and the state has no last logits "
        "(its last call asked for none)"
    )
