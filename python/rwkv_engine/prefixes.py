"""States that have read many contexts, where what contexts have in common is read once.

Contexts are sorted, so that those with a common beginning follow each other, and read in one pass.
A stack of states holds the beginnings that those still to come share; what is left of each context
is read in batches. So no more states live at a time than the stack and a batch have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._arguments import Progress
from .state import State

if TYPE_CHECKING:
    from .scoring import ScoringMixin

BATCH = 32  # contexts that are read side by side
STACK = 8  # beginnings that are kept at a time, one longer than the other
WORTH = 16  # tokens; a shorter common piece costs less read twice than in a call of its own


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def read_contexts(
    engine: ScoringMixin,
    contexts: Sequence[Sequence[int]],
    state: State,
    progress: Progress | None = None,
) -> Iterator[list[tuple[int, State]]]:
    """Yield every context's index with a state of its own behind its last token, some at a time.

    All begin in `state`, which stays as it is. Empty contexts leave it with the logits it has.
    ``progress`` is called for each batch anew.
    """
    order = sorted(range(len(contexts)), key=lambda i: tuple(contexts[i]))
    texts = [contexts[i] for i in order]
    shared = [shared_length(a, b) for a, b in itertools.pairwise(texts)] + [0]
    stack = [(0, state)]
    # What is read for several counts with each of them, so of this only that there is progress.
    quiet = None if progress is None else lambda _, __: progress(0, 0)
    batch: list[tuple[int, State, Sequence[int]]] = []
    for at, text in enumerate(texts):
        while at > 0 and stack[-1][0] > shared[at - 1]:
            stack.pop()
        while len(stack) < STACK:
            begin, last = stack[-1]
            end = _common(shared, at, begin + WORTH)
            if end == 0:
                break
            longer = last.fork()
            engine.forward(text[begin:end], longer, progress=quiet)
            stack.append((end, longer))
        begin, last = stack[-1]
        batch.append((order[at], last.fork(), text[begin:]))
        if len(batch) == BATCH:
            yield _read(engine, batch, progress)
            batch = []
    if batch:
        yield _read(engine, batch, progress)


def _common(shared: Sequence[int], at: int, least: int) -> int:
    """Return what this text and as many after it as share `least` tokens have in common, or 0."""
    end = at
    while shared[end] >= least:
        end += 1
    return min(shared[at:end], default=0)


def _read(
    engine: ScoringMixin,
    batch: list[tuple[int, State, Sequence[int]]],
    progress: Progress | None,
) -> list[tuple[int, State]]:
    unread = [(state, rest) for _, state, rest in batch if len(rest) > 0]
    engine.forward_batch(
        [rest for _, rest in unread], [state for state, _ in unread], progress=progress
    )
    return [(index, state) for index, state, _ in batch]
