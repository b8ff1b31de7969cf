"""How likely texts are: token by token, and as continuations of what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._arguments import Array, Progress, Tokens
from .errors import Error, StateError
from .forward import ForwardMixin
from .generation import GenerationMixin, Prompt, prompt_ids
from .prefixes import read_contexts, shared_length
from .state import State, core_of

SUMMED = 8192  # log-probabilities that are summed at a time, counted from a text's beginning
END_OF_DOCUMENT = 0  # the token that stands between documents, and so before each of them
Scores: TypeAlias = tuple[Array, NDArray[np.bool_]]
Normalize: TypeAlias = Literal["tokens", "bytes"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the choices of `Engine.rank`."""

    index: int
    """Its place among the choices given."""
    choice: Prompt
    """The choice itself."""
    score: float
    """What it is ranked by: `logprob`, or that for each token or byte."""
    logprob: float
    """Sum of the log-probabilities of its tokens."""
    tokens: int
    """How many those are."""
    bytes: int | None
    """How long the choice is as UTF-8; None for token ids."""
    greedy: bool
    """Whether each of its tokens is the most likely one: what temperature 0 would write."""


class ScoringMixin(ForwardMixin, GenerationMixin):
    """What an engine makes of texts that are there."""

    __slots__ = ()

    def score(
        self,
        text: Prompt,
        state: State | None = None,
        progress: Progress | None = None,
        *,
        bos: int | None = None,
    ) -> Array:
        r"""Return the log-probability of each token of a text, given those before it.

        They are those that `generate` reports of the same tokens, bit for bit. A text may be of any
        length: memory does not depend on it, but for the results.

        Parameters
        ----------
        text : str or token ids
        state : State, optional
            What the text comes after, by default nothing. It stays as it is.
        progress : callable, optional
            Called as ``progress(tokens_done, tokens_total)``; what it raises ends the work.
        bos : int, optional
            A token that is read before the text, and has no score: 0, the end of a document, before
            which each document of the training stood.

        Returns
        -------
        (T,) float32 if there is a token or a state with `last_logits` before the text, otherwise
        (T - 1,), because nothing predicts the first token.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> len(engine.tokenizer.encode("import os\n")), engine.score("import os\n").shape
        (3, (2,))
        >>> state = engine.new_state()
        >>> logits = engine.forward(engine.tokenizer.encode("import"), state)
        >>> bool(engine.score(" os", state).sum() > engine.score(" so", state).sum())
        True
        """
        states = None if state is None else [state]
        return self.score_batch([text], states, progress, bos=bos)[0]

    def score_batch(
        self,
        texts: Sequence[Prompt],
        states: Sequence[State] | None = None,
        progress: Progress | None = None,
        *,
        bos: int | None = None,
    ) -> list[Array]:
        r"""Score several texts side by side, each with the bits of `score`.

        Parameters
        ----------
        texts : sequence of str or token ids
        states : sequence of State, optional
            What each comes after. They stay as they are, and one may stand there several times.
        progress, bos
            As in `score`.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> [len(row) for row in engine.score_batch(["import os\n", "import sys\n"], bos=0)]
        [3, 3]
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected a sequence of texts, found str")
        given = list(texts)
        if states is None:
            new = self.new_state()
            states = [new] * len(given)
        if len(states) != len(given):
            raise Error(f"states: expected one for each of {len(given)} texts, found {len(states)}")
        before = [] if bos is None else [bos]
        tokens = [prompt_ids(self, text) for text in given]
        found = token_scores(
            self, [[*before, *ids] if before else ids for ids in tokens], states, progress
        )
        # A state with logits predicts `bos` too, which nobody has asked for.
        return [
            row if bos is None else row[len(row) - len(ids) :]
            for (row, _), ids in zip(found, tokens, strict=True)
        ]

    def rank(
        self,
        context: Prompt,
        choices: Sequence[Prompt],
        state: State | None = None,
        progress: Progress | None = None,
        *,
        normalize: Normalize | None = None,
    ) -> list[Choice]:
        """Return choices by how likely they come after a context, the most likely first.

        The context is read once, then all choices side by side, in forks. Text is encoded with each
        choice as a whole, since a token may reach over the border between them: everything from
        where the first two differ in a token counts as the choice's, for each alike. Where nothing
        is before that, token 0 is, the end of a document, as in `generate`.

        Parameters
        ----------
        context : str or token ids
        choices : sequence of str or token ids
            Of the same kind, as they stand behind the context: often with a blank in front.
        state : State, optional
            What the context comes after, by default nothing. It stays as it is.
        progress : callable, optional
            Called as ``progress(tokens_done, tokens_total)``.
        normalize : "tokens" or "bytes", optional
            Divide by the length of the choice; otherwise longer ones are less likely.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> best, second = engine.rank("import ", ["so", "os"])
        >>> best.choice, best.index, best.logprob > second.logprob
        ('os', 1, True)
        """
        if normalize not in (None, "tokens", "bytes"):
            raise Error(f"normalize: expected 'tokens', 'bytes' or None, found {normalize!r:.100}")
        if isinstance(choices, str):
            raise TypeError("choices: expected a sequence of choices, found str")
        given = list(choices)
        start = self.new_state() if state is None else state
        read, continuations = split(self, context, given, start)
        ((rows),) = continuation_scores(self, [(read, continuations)], start, progress)
        found = [
            _choice(i, choice, scores, normalize)
            for i, (choice, scores) in enumerate(zip(given, rows, strict=True))
        ]
        return sorted(found, key=lambda choice: -choice.score)  # stable: of equals the first


def total_of(logprobs: Array) -> float:
    """Return the log-probability of all tokens together."""
    pieces = (logprobs[at : at + SUMMED] for at in range(0, len(logprobs), SUMMED))
    return sum((float(piece.sum(dtype=np.float64)) for piece in pieces), 0.0)


def token_scores(
    engine: GenerationMixin,
    texts: Sequence[Tokens],
    states: Sequence[State],
    progress: Progress | None = None,
    advance: bool = False,
) -> list[Scores]:
    """Return log-probabilities of tokens, and which of them are the most likely.

    The states stay as they are, or advance over all tokens but the last.
    """
    cores = [core_of(state) for state in states]
    return engine._core.score(list(texts), cores, progress, advance)


def continuation_scores(
    engine: ScoringMixin,
    requests: Sequence[tuple[Tokens, Sequence[Tokens]]],
    state: State,
    progress: Progress | None = None,
) -> list[list[Scores]]:
    """Return the scores of continuations of contexts, all of which come after a state.

    A context is read once, and what contexts begin with alike is too; ``progress`` counts all
    tokens as if it were not.
    """
    sizes = [len(context) + sum(map(len, rest)) for context, rest in requests]
    found: list[list[Scores]] = [[] for _ in requests]
    total, done = sum(sizes), 0

    def report(read: int, _: int) -> None:
        if progress is not None:
            progress(done + read, total)

    contexts = [list(context) for context, _ in requests]
    for batch in read_contexts(engine, contexts, state, report):
        texts = [text for i, _ in batch for text in requests[i][1]]
        states = [one for i, one in batch for _ in requests[i][1]]
        read = sum(len(contexts[i]) for i, _ in batch)
        scored = _after(done + read, total, progress)
        scores: Iterator[Scores] = iter(token_scores(engine, texts, states, scored))
        for i, _ in batch:
            found[i] = [next(scores) for _ in requests[i][1]]
            done += sizes[i]
        report(0, 0)
    return found


def _after(done: int, total: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda more, _: progress(done + more, total)


def split(
    engine: GenerationMixin, context: Prompt, choices: Sequence[Prompt], state: State
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens before all choices, and what is left of each; none is without one."""
    if not choices:
        raise Error("choices: expected at least one, found none")
    for i, choice in enumerate(choices):
        if isinstance(choice, str) is not isinstance(context, str):
            raise TypeError(
                f"choices[{i}]: expected {'str' if isinstance(context, str) else 'token ids'} as "
                f"the context is, found {type(choice).__name__}"
            )
        if len(choice) == 0:
            raise Error(f"choices[{i}]: expected one of at least a token, found it empty")
    read = list(prompt_ids(engine, context))
    if isinstance(context, str):
        wholes = [engine.tokenizer.encode(f"{context}{choice}") for choice in choices]
        border = min(shared_length(read, whole) for whole in wholes)
    else:
        wholes = [[*read, *prompt_ids(engine, choice)] for choice in choices]
        border = len(read)
    before = read[:border]
    if not before and state.last_logits is None:
        if state.tokens_seen > 0:
            raise StateError(
                "context: expected at least one token, found none, and the state has no last "
                "logits (its last call asked for none)"
            )
        before = [END_OF_DOCUMENT]
    return before, [whole[border:] for whole in wholes]


def _choice(index: int, choice: Prompt, scores: Scores, normalize: Normalize | None) -> Choice:
    logprobs, greedy = scores
    logprob = total_of(logprobs)
    length = len(choice.encode()) if isinstance(choice, str) else None
    if normalize == "bytes" and length is None:
        raise Error("normalize: expected 'tokens' or None for choices of token ids, found 'bytes'")
    by = {"tokens": len(logprobs), "bytes": length}.get(normalize or "") or 1
    return Choice(index, choice, logprob / by, logprob, len(logprobs), length, bool(greedy.all()))
