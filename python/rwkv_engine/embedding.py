"""Texts as vectors, to search and compare them by.

A text's vector is pooled from those after the final norm. Texts go through the model side by side
without padding, long ones in parts through states of their own: memory does not depend on their
length. Each is summed in float64 in pieces counted from its own beginning, so that the bits are the
same alone and in company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._arguments import Array, Progress, Tokens, boolean, integer, token_ids
from .errors import Error, StateError
from .forward import ForwardMixin
from .restore import RestoreMixin
from .state import State, core_of

if TYPE_CHECKING:
    from .config import Config

Text: TypeAlias = str | Tokens

POOLINGS = ("mean", "last", "eos")
TASKS = ("retrieval", "classification", "similarity")
PIECE = 256  # tokens of a text that are summed at a time
CALL = 2048  # most tokens of a call; a multiple of PIECE
TEXTS = 32  # most texts of a call, as each has a state

_WORLD_SIZE, _WORLD_END = 65536, 65535  # of embedding models
_DOCUMENT_END = 0  # of language models


class EmbeddingMixin(ForwardMixin, RestoreMixin):
    """What an engine makes of whole texts."""

    __slots__ = ()

    def embed(
        self,
        texts: str | Sequence[Text],
        pooling: str | None = None,
        normalize: bool = True,
        *,
        task: str | None = None,
        eos_token: int | None = None,
        states: Sequence[State] | None = None,
        progress: Progress | None = None,
    ) -> Array:
        """Return a vector for each text, (B, C) float32, with the same bits alone and in any batch.

        Parameters
        ----------
        texts : str, or sequence of str or token ids
            Of any length, each of at least one token.
        pooling : str, optional
            "mean" of the vectors after all tokens of a text, the "last" of them, or "eos": the mean
            of those after its end tokens, one of which is appended where a text does not end with
            one. By default the model's own way: "mean" for a language model, "eos" for an embedding
            model, whose head for `task` has the last word then.
        normalize : bool, default True
            Whether vectors get length one, so that their products are cosines.
        task : str, optional
            What the vectors of an embedding model are for: "retrieval" (the default),
            "classification" or "similarity".
        eos_token : int, optional
            The end token for "eos", where it is not the model's own.
        states : sequence of State, optional
            One for each text, which goes on from it and steps it; by default new ones. A call that
            fails leaves them as they were.
        progress : callable, optional
            Called as ``progress(tokens_done, tokens_total)``; what it raises ends the work.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> query, near, far = engine.embed(["import os", "import sys", "return None"])
        >>> query.shape, bool(query @ near > query @ far)
        ((128,), True)
        """
        boolean(normalize, "normalize")
        way = _way_of(self.config, pooling, task, eos_token)
        given = [texts] if isinstance(texts, str) else list(texts)
        works = [_Text(self._ids_of(text, i), way) for i, text in enumerate(given)]
        if states is not None:
            _fork(states, works)
        total, done = sum(len(work.ids) for work in works), 0
        for call in _calls(works):
            rows = self.forward_batch(
                [work.ids[work.done : work.done + count] for work, count in call],
                [work.begun(self.new_state) for work, _ in call],
                "hidden",
                None if progress is None else _after(done, total, progress),
            )
            for (work, count), some in zip(call, rows, strict=True):
                work.add(some)
                done += count
                if states is None and work.done == len(work.ids):
                    work.state = None  # its memory is for those that follow
        vectors = np.empty((len(works), self.config.n_embd), np.float32)
        for i, work in enumerate(works):
            vectors[i] = self._vector(work, way.task, normalize)
        if states is not None:
            _move(states, works)
        return vectors

    def _ids_of(self, text: object, index: int) -> NDArray[np.int32]:
        """Return the tokens of a text: at least one, and all of the vocabulary."""
        where = f"texts[{index}]"
        if isinstance(text, str):
            try:
                text = self.tokenizer.encode(text)
            except Error as error:
                raise Error(f"{where}: {error}") from None
        ids = token_ids(text, where, self.config.n_vocab)
        if not len(ids):
            raise Error(f"{where}: expected at least one token, found none")
        return ids

    def _vector(self, text: _Text, task: str | None, normalize: bool) -> NDArray[np.float64]:
        vector: NDArray[np.float64] = text.sum / text.count
        if task is not None:
            vector = self._core.apply_task_head(task, vector)
        if not normalize:
            return vector
        length: NDArray[np.float64] = np.sqrt((vector * vector).sum())
        return vector / length if length > 0 else vector


@dataclass(frozen=True, slots=True)
class _Way:
    """How a call pools, which the model can do."""

    pooling: str
    task: str | None
    end: int | None


def _way_of(config: Config, pooling: str | None, task: str | None, eos_token: int | None) -> _Way:
    embedding = config.kind == "embedding model"
    if pooling is None:
        pooling = "eos" if embedding else "mean"
    if pooling not in POOLINGS:
        raise Error(f"pooling: expected one of {', '.join(POOLINGS)}, found {pooling!r}")
    if task is None and embedding and pooling == "eos":
        task = TASKS[0]
    if task is not None:
        if not embedding:
            raise Error(f"task: expected none for a language model, found {task!r}")
        if pooling != "eos":
            raise Error(f"task: expected none with pooling {pooling!r}, found {task!r}")
        if task not in TASKS:
            raise Error(f"task: expected one of {', '.join(TASKS)}, found {task!r}")
    if pooling != "eos":
        if eos_token is not None:
            raise Error(f"eos_token: expected none with pooling {pooling!r}, found {eos_token!r}")
        return _Way(pooling, task, None)
    if eos_token is None and embedding and config.n_vocab != _WORLD_SIZE:
        raise Error(
            f"eos_token: expected an id, as the end token of a vocabulary of {config.n_vocab} is "
            "not known"
        )
    if eos_token is None:
        eos_token = _WORLD_END if embedding else _DOCUMENT_END
    return _Way(pooling, task, integer(eos_token, "eos_token", 0, config.n_vocab - 1))


class _Text:
    """A text on its way: how much of it has been read, and the sum over what counts of that."""

    __slots__ = ("before", "count", "counted", "done", "ids", "state", "sum")

    def __init__(self, ids: NDArray[np.int32], way: _Way) -> None:
        if way.end is not None and ids[-1] != way.end:
            ids = np.append(ids, np.int32(way.end))
        self.ids = ids
        self.counted = ids == way.end if way.end is not None else np.ones(len(ids), np.bool_)
        if way.pooling == "last":
            self.counted[:-1] = False
        self.count = int(self.counted.sum())
        self.done = 0
        self.sum: Any = 0.0
        self.before: State | None = None  # of a state that was given
        self.state: State | None = None

    def begun(self, new_state: Callable[[], State]) -> State:
        """Return the state that goes through the text."""
        self.state = self.state or new_state()
        return self.state

    def add(self, rows: Array) -> None:
        """Take in the rows that follow, whole pieces up to the end of the text."""
        for at in range(0, len(rows), PIECE):
            piece = rows[at : at + PIECE]
            counted = self.counted[self.done : self.done + len(piece)]
            self.sum = self.sum + piece[counted].sum(axis=0, dtype=np.float64)
            self.done += len(piece)


def _calls(texts: Sequence[_Text]) -> Iterator[list[tuple[_Text, int]]]:
    """Yield what goes into one call after the other, texts with a number of their next tokens."""
    waiting = deque(texts)
    while waiting:
        call: list[tuple[_Text, int]] = []
        room = CALL
        while waiting and len(call) < TEXTS:
            left = len(waiting[0].ids) - waiting[0].done
            count = left if left <= room else room // PIECE * PIECE
            if count:
                call.append((waiting[0], count))
                room -= count
            if count < left:
                break
            waiting.popleft()
        yield call


def _fork(states: Sequence[State], texts: Sequence[_Text]) -> None:
    """Let texts go on from states, which stay where they are."""
    if len(states) != len(texts):
        raise Error(f"states: expected one for each of {len(texts)} texts, found {len(states)}")
    if len({id(core_of(state)) for state in states}) < len(states):
        raise StateError(
            "states: expected every state once, found one twice; fork() gives a second"
        )
    for state, text in zip(states, texts, strict=True):
        text.before = state.fork()
        text.state = text.before.fork()


def _move(states: Sequence[State], texts: Sequence[_Text]) -> None:
    """Let states become those after the texts, unless somebody has stepped one meanwhile."""
    _core.advance(
        [
            (core_of(state), core_of(text.before), core_of(text.state))
            for state, text in zip(states, texts, strict=True)
        ]
    )


def _after(done: int, total: int, progress: Progress) -> Progress:
    return lambda some, _: progress(done + some, total)
