"""From prompts to texts: read them, then choose a token, step the state by it, hand it over."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from . import _core
from ._arguments import Array, Progress, Tokens, integer
from .errors import Error, StateError
from .params import SamplingParams
from .restore import RestoreMixin
from .state import State, core_of

if TYPE_CHECKING:
    pass

FinishReason: TypeAlias = Literal["stop", "length"]
Prompt: TypeAlias = str | Tokens
T = TypeVar("T")
TokenLogprobs: TypeAlias = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step of `Engine.stream` brings."""

    text: str
    """Text that has become certain; empty while a character is incomplete."""
    token: int | None
    """The token; None for what was left of a broken character when the text ended."""
    logprob: float | None = None
    """Its log-probability in the model's own distribution, before penalties, bias and truncation
    (and after a `logits_processor`, if there is one)."""
    top_logprobs: TokenLogprobs = field(default_factory=list)
    """The `SamplingParams.top_logprobs` most likely tokens there, the most likely first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What `Engine.generate` returns."""

    text: str
    """Whole characters; the bytes of one that `max_tokens` cut wait in `state`."""
    tokens: list[int]
    finish_reason: FinishReason
    """"stop": a token or string that ends the text; "length": `max_tokens`."""
    state: State
    """After the last of `tokens`; with an empty prompt the text goes on from here."""
    usage: Usage
    logprobs: list[float]
    """Of each token, as in `Piece`."""
    top_logprobs: list[TokenLogprobs]


class Stream:
    """One text as an iterator of pieces, and a context manager that closes it.

    Text is handed over as soon as it is certain: a piece waits while a stop string may have begun
    in it. One thread at a time may use a stream; a second raises ConcurrentUseError.
    """

    def __init__(
        self,
        engine: GenerationMixin,
        prompt: Prompt,
        params: SamplingParams | None,
        state: State | None,
        progress: Progress | None,
    ) -> None:
        params = _params_of(params)
        self._state: State | None = engine.new_state() if state is None else state
        self._core: _core.Generation | None = _core.Generation(
            engine._core,
            engine.tokenizer._core,
            [(prompt_ids(engine, prompt), core_of(self._state), params, 1)],
        )
        self._processors = [params.logits_processor]
        self._progress = progress
        self._read = False
        self._prompt_tokens = 0
        self._tokens = 0
        self._finish_reason: FinishReason | None = None

    @property
    def state(self) -> State:
        """The state after the last piece handed over. A stream lets go of it when it is closed."""
        if self._state is None:
            raise StateError("stream: expected one that is open, found it closed")
        return self._state

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text has ended; None before it has."""
        return self._finish_reason

    @property
    def usage(self) -> Usage:
        """How many tokens have been read, and written in pieces handed over."""
        return Usage(self._prompt_tokens, self._tokens)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        core = self._core
        if core is None:
            raise StopIteration
        if not self._read:
            core.read(self._progress)
            self._read = True
            self._prompt_tokens = core.prompt_tokens(0)
        found = core.next(0, self._processors)
        if found is None:
            self._finish_reason = core.finish(0)
            self._core = None
            raise StopIteration
        piece = _piece_of(found)
        self._tokens += piece.token is not None
        return piece

    def close(self) -> None:
        """Stop the work and let go of the state, which is freed unless somebody else has it.

        The state has taken in the tokens of all pieces that were handed over, and no others: a
        stream of an empty prompt over it brings the pieces that would have come next.
        """
        self._core = None
        self._state = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def result(self) -> Result:
        """Run to the end and return what is still to come at once."""
        state = self.state
        pieces = list(self)
        return _result_of(pieces, self._finish_reason or "length", state, self._prompt_tokens)


class GenerationMixin(RestoreMixin):
    """What an engine does with prompts."""

    __slots__ = ()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        state: State | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Read a prompt, text or ids, and write what comes after it.

        The state, by default a new one, is stepped in place through the prompt and every token
        written; a call that fails leaves it as it was. With an empty prompt the text goes on from
        the state exactly as if it had never stopped, in another process too; a new state reads
        token 0, the end of a document, instead. ``progress(tokens_done, tokens_total)`` is called
        while the prompt is read.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> greedy = rwkv.SamplingParams(temperature=0, max_tokens=4)
        >>> first = engine.generate("def main(", greedy)
        >>> rest = engine.generate("", greedy, state=first.state)
        >>> first.usage.completion_tokens, rest.finish_reason
        (4, 'length')
        """
        states = None if state is None else [state]
        return self.generate_batch([prompt], params, states, progress=progress)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        states: Sequence[State] | None = None,
        n: int = 1,
        progress: Progress | None = None,
    ) -> list[Result]:
        """Write `n` texts for each of several prompts, all together; as `generate` otherwise.

        Each prompt is read once, whatever `n`. Each text is the one that `generate` would write
        alone; text i of a prompt with a seed draws with ``seed + i``.

        Parameters
        ----------
        prompts : sequence of str or token ids
        params : SamplingParams or a sequence of them, optional
            One for all prompts, or one for each.
        states : sequence of State, optional
            One for each prompt, by default new ones. With ``n=1`` they take in prompt and text;
            otherwise they take in the prompt, and each result has a state of its own.
        n : int, default 1

        Returns
        -------
        list of Result
            The texts of the first prompt, then those of the second, and so on.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> params = rwkv.SamplingParams(seed=1, max_tokens=8)
        >>> texts = [r.text for r in engine.generate_batch(["def main("], params, n=4)]
        >>> len(texts), texts[0] == engine.generate("def main(", params).text
        (4, True)
        """
        prompts = list(prompts)
        integer(n, "n", 1, 2**31 - 1)
        if params is None or isinstance(params, SamplingParams):
            params = [_params_of(params)] * len(prompts)
        params = [_params_of(p) for p in _one_each("params", params, len(prompts))]
        if states is None:
            states = [self.new_state() for _ in prompts]
        states = _one_each("states", states, len(prompts))
        requests = [
            (prompt_ids(self, prompt), core_of(state), p, n)
            for prompt, state, p in zip(prompts, states, params, strict=True)
        ]
        core = _core.Generation(self._core, self.tokenizer._core, requests)
        texts = core.run([p.logits_processor for p in params for _ in range(n)], progress)
        return [
            _result_of(
                [_piece_of(piece) for piece in pieces],
                core.finish(i),
                states[i] if n == 1 else State(core.state(i)),
                core.prompt_tokens(i // n),
            )
            for i, pieces in enumerate(texts)
        ]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        state: State | None = None,
        progress: Progress | None = None,
    ) -> Stream:
        r"""Return `generate` as an iterator of pieces; closing it stops the work.

        The state is stepped as pieces are handed over, and always stands after the last of them.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> params = rwkv.SamplingParams(seed=1, stop=["\n"])
        >>> with engine.stream("import ", params) as stream:
        ...     text = "".join(piece.text for piece in stream)
        >>> "\n" in text
        False
        """
        return Stream(self, prompt, params, state, progress)

    def sample(
        self,
        logits: Array,
        params: SamplingParams | None = None,
        position: int = 0,
    ) -> int:
        """Draw one token id from logits, (V,) float32, as the parameters say.

        A seed and the position determine the outcome; without a seed every call draws anew.
        Penalties and `logits_processor` do not take part: they belong to a text.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> logits = engine.forward([1, 2, 3], engine.new_state())
        >>> engine.sample(logits, rwkv.SamplingParams(temperature=0)) == int(logits.argmax())
        True
        """
        params = _params_of(params)
        row = np.asarray(logits)
        if row.dtype != np.float32 or row.shape != (self.config.n_vocab,):
            raise Error(
                f"logits: expected float32 of shape ({self.config.n_vocab},), "
                f"found {row.dtype} of shape {row.shape}"
            )
        integer(position, "position", 0, 2**64 - 1)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        return self._core.sample(row, params, seed, position)


def prompt_ids(engine: GenerationMixin, prompt: Prompt) -> Tokens:
    """Return the tokens of a prompt."""
    if isinstance(prompt, str):
        return engine.tokenizer.encode(prompt)
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, (Sequence, np.ndarray)):
        raise TypeError(f"prompt: expected str or token ids, found {type(prompt).__name__}")
    if isinstance(prompt, np.ndarray) and prompt.dtype.kind not in "iu":
        raise TypeError(f"prompt: expected str or token ids, found an array of {prompt.dtype}")
    return prompt  # type: ignore[return-value] # bytes and str are out


def _params_of(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params: expected SamplingParams, found {type(params).__name__}")
    return params


def _one_each(name: str, given: Sequence[T], count: int) -> list[T]:
    found = list(given)
    if len(found) != count:
        raise Error(f"{name}: expected one for each of {count} prompts, found {len(found)}")
    return found


def _piece_of(found: tuple[str, int, float, TokenLogprobs]) -> Piece:
    text, token, logprob, top = found
    return Piece(text, None, None) if token < 0 else Piece(text, token, logprob, top)


def _result_of(
    pieces: list[Piece], finish_reason: FinishReason, state: State, prompt_tokens: int
) -> Result:
    written = [piece for piece in pieces if piece.token is not None]
    return Result(
        text="".join(piece.text for piece in pieces),
        tokens=[piece.token for piece in written if piece.token is not None],
        finish_reason=finish_reason,
        state=state,
        usage=Usage(prompt_tokens, len(written)),
        logprobs=[piece.logprob for piece in written if piece.logprob is not None],
        top_logprobs=[piece.top_logprobs for piece in written],
    )
