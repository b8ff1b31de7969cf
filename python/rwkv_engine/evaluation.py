"""How well a text is predicted, and how far engines of the same model are from each other on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arguments import Array, Progress
from ._windows import Text, Windows
from .engine import Engine
from .errors import Error
from .scoring import SUMMED, token_scores, total_of
from .tasks import (
    LastWord,
    MultipleChoice,
    Question,
    last_word,
    multiple_choice,
    read_questions,
    read_texts,
)

__all__ = [
    "Comparison",
    "LastWord",
    "MultipleChoice",
    "Perplexity",
    "Question",
    "compare",
    "last_word",
    "measure",
    "multiple_choice",
    "perplexity",
    "read_questions",
    "read_texts",
]

PIECE = 256  # tokens of a call whose rows of logits are all kept: what memory depends on
BLOCK = 16  # rows that are float64 at once


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What an engine makes of a text."""

    tokens: int
    """Tokens predicted: all but the first."""
    bytes: int
    """How long those are."""
    loss: float
    """-log of the probability of the token that follows, in nats, a mean."""
    perplexity: float
    """exp(loss), which vocabularies differ in."""
    bits_per_byte: float
    """What a perfect compressor would need with this model, which they do not."""


def perplexity(
    engine: Engine, text: Text, progress: Progress | None = None, *, tokens: int | None = None
) -> Perplexity:
    r"""Return how well a text of any length is predicted.

    Parameters
    ----------
    engine : Engine
    text : str, token ids or file
        At least two tokens; the first is not predicted. A file that is open in binary mode is read
        on the way: with a World vocabulary memory does not depend on its length; byte-level BPE
        looks at whole texts.
    progress : callable, optional
        Called as ``progress(tokens_done, tokens_total)``, of a file with bytes, and with 0 where
        its length is not known; what it raises ends the work.
    tokens : int, optional
        Read so many at most.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.evaluation import perplexity
    >>> found = perplexity(rwkv.Engine("demo"), "import os\nimport sys\n")
    >>> found.tokens, found.bytes, found.bits_per_byte < 1
    (5, 15, True)
    """
    tokenizer = engine.tokenizer  # raises before the work if there is none
    windows = Windows(engine, text, SUMMED, tokens, progress)
    state, total, count, size = engine.new_state(), 0.0, 0, 0
    for window in windows:
        ((logprobs, _),) = token_scores(engine, [window], [state], windows.report, advance=True)
        following = window[1:]  # the token before them has its score already
        total += total_of(logprobs[-len(following) :])
        count += len(following)
        size += len(tokenizer.decode_bytes(following))
    return _perplexity(total, count, size)


def measure(logprobs: Array, size: int) -> Perplexity:
    """Return what log-probabilities of tokens that are `size` bytes long come to."""
    return _perplexity(total_of(logprobs), len(logprobs), size)


def _perplexity(logprob: float, tokens: int, size: int) -> Perplexity:
    loss = -logprob / tokens
    bits = -logprob / math.log(2) / size if size else math.inf
    return Perplexity(tokens, size, loss, _exp(loss), bits)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an engine makes of a text, beside a reference; means over the tokens predicted."""

    tokens: int
    """Tokens predicted: all but the first."""
    loss: float
    """-log of the probability of the token that follows, in nats."""
    perplexity: float
    """exp(loss)."""
    kl_divergence: float
    """From the reference's distribution to this one's, in nats; 0 for the reference itself."""
    largest_kl_divergence: float
    """That of the worst token."""
    top1_agreement: float
    """Share of tokens before which both find the same one the most likely; 1 for the reference."""


def compare(
    reference: Engine,
    others: Sequence[Engine],
    text: Text,
    progress: Progress | None = None,
    *,
    tokens: int | None = None,
) -> list[Comparison]:
    r"""Return what the reference and then each of the others makes of a text.

    The engines have the same vocabulary: they are the same model with several strategies, or the
    same model from several files. The text is read by all of them side by side in pieces, so that
    memory does not depend on its length, but for files with byte-level BPE.

    Parameters
    ----------
    reference : Engine
    others : sequence of Engine
        May be empty: then it is the text's perplexity alone.
    text, progress, tokens
        As in `perplexity`.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.evaluation import compare
    >>> engines = [rwkv.Engine("demo", strategy) for strategy in ("cpu fp32", "cpu bf16")]
    >>> exact, rounded = compare(engines[0], engines[1:], "import os\nimport sys\n")
    >>> exact.kl_divergence, 0 < rounded.kl_divergence < 0.01
    (0.0, True)
    """
    engines = [reference, *others]
    for i, engine in enumerate(others):
        if engine.config.n_vocab != reference.config.n_vocab:
            raise Error(
                f"others[{i}]: expected a vocabulary of {reference.config.n_vocab} tokens as the "
                f"reference has, found {engine.config.n_vocab}"
            )
    states = [engine.new_state() for engine in engines]
    sums = [_Sums() for _ in engines]
    windows, count = Windows(reference, text, PIECE, tokens, progress), 0
    for window in windows:
        piece, following = window[:-1], window[1:]
        rows = [
            engine.forward(piece, state, output="all")
            for engine, state in zip(engines, states, strict=True)
        ]
        for at in range(0, len(piece), BLOCK):
            _add(sums, [row[at : at + BLOCK] for row in rows], following[at : at + BLOCK])
        count += len(piece)
        windows.report(1, 1)
    return [s.comparison(count) for s in sums]


def _exp(loss: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


class _Sums:
    def __init__(self) -> None:
        self.loss = self.divergence = self.largest = 0.0
        self.agreeing = 0

    def comparison(self, tokens: int) -> Comparison:
        loss = self.loss / tokens
        return Comparison(
            tokens,
            loss,
            _exp(loss),
            self.divergence / tokens,
            self.largest,
            self.agreeing / tokens,
        )


def _add(sums: list[_Sums], rows: list[Array], following: NDArray[np.int32]) -> None:
    expected = _log_softmax(rows[0])
    weights = np.exp(expected)
    best = rows[0].argmax(axis=1)
    for s, row in zip(sums, rows, strict=True):
        found = expected if row is rows[0] else _log_softmax(row)
        divergences = (weights * (expected - found)).sum(axis=1)
        s.loss -= float(found[np.arange(len(row)), following].sum())
        s.divergence += float(divergences.sum())
        s.largest = max(s.largest, float(divergences.max()))
        s.agreeing += int((row.argmax(axis=1) == best).sum())


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    normalizer: Any = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    shifted -= normalizer
    return shifted
