"""How well a text is predicted, and how far engines of the same model are from each other on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arguments import Array, Progress, Tokens
from .engine import Engine
from .errors import Error
from .generation import Prompt, prompt_ids
from .scoring import token_scores, total_of
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

PIECE = 256  # tokens of a call: what memory depends on, as a row of logits is long
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


def perplexity(engine: Engine, text: Prompt, progress: Progress | None = None) -> Perplexity:
    r"""Return how well a text of any length is predicted.

    Parameters
    ----------
    engine : Engine
    text : str or token ids
        At least two tokens; the first is not predicted.
    progress : callable, optional
        Called as ``progress(tokens_done, tokens_total)``; what it raises ends the work.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.evaluation import perplexity
    >>> found = perplexity(rwkv.Engine("demo"), "import os\nimport sys\n")
    >>> found.tokens, found.bytes, found.bits_per_byte < 1
    (5, 15, True)
    """
    tokens = prompt_ids(engine, text)
    if len(tokens) < 2:
        raise Error(f"text: expected at least 2 tokens, found {len(tokens)}")
    tokenizer = engine.tokenizer  # raises before the work if there is none
    ((logprobs, _),) = token_scores(engine, [tokens], [engine.new_state()], progress)
    return measure(logprobs, len(tokenizer.decode_bytes(tokens[1:])))


def measure(logprobs: Array, size: int) -> Perplexity:
    """Return what log-probabilities of tokens that are `size` bytes long come to."""
    total = -total_of(logprobs)
    loss = total / len(logprobs)
    bits = total / math.log(2) / size if size else math.inf
    return Perplexity(len(logprobs), size, loss, _exp(loss), bits)


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
    text: Prompt,
    progress: Progress | None = None,
) -> list[Comparison]:
    r"""Return what the reference and then each of the others makes of a text.

    The engines have the same vocabulary: they are the same model with several strategies, or the
    same model from several files. The text is read by all of them side by side in pieces, so that
    memory does not depend on its length.

    Parameters
    ----------
    reference : Engine
    others : sequence of Engine
        May be empty: then it is the text's perplexity alone.
    text : str or token ids
        At least two tokens; the first is not predicted.
    progress : callable, optional
        Called as ``progress(tokens_done, tokens_total)``; what it raises ends the work.

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
    tokens = prompt_ids(reference, text)
    total = len(tokens) - 1
    if total < 1:
        raise Error(f"text: expected at least 2 tokens, found {len(tokens)}")
    for i, engine in enumerate(others):
        if engine.config.n_vocab != reference.config.n_vocab:
            raise Error(
                f"others[{i}]: expected a vocabulary of {reference.config.n_vocab} tokens as the "
                f"reference has, found {engine.config.n_vocab}"
            )
    states = [engine.new_state() for engine in engines]
    sums = [_Sums() for _ in engines]
    for begin in range(0, total, PIECE):
        end = min(begin + PIECE, total)
        piece = tokens[begin:end]
        following = _targets(tokens[begin + 1 : end + 1], reference.config.n_vocab)
        rows = [
            engine.forward(piece, state, output="all")
            for engine, state in zip(engines, states, strict=True)
        ]
        for at in range(0, end - begin, BLOCK):
            _add(sums, [row[at : at + BLOCK] for row in rows], following[at : at + BLOCK])
        if progress is not None:
            progress(end, total)
    return [s.comparison(total) for s in sums]


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


def _add(sums: list[_Sums], rows: list[Array], following: NDArray[np.int64]) -> None:
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


def _targets(tokens: Tokens, n_vocab: int) -> NDArray[np.int64]:
    """Return them as indices. The last of a text is read by no engine, so nobody else checks it."""
    ids = np.asarray(tokens)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"text: expected token ids, found {ids.dtype}")
    wrong = ids[(ids < 0) | (ids >= n_vocab)]
    if len(wrong):
        raise Error(f"text: expected token ids from 0 to {n_vocab - 1}, found {wrong[0]}")
    return ids.astype(np.int64)
