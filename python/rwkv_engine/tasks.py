"""Tests of a model with known answers: the last word of a text, and one of several choices.

They are files of JSON lines. Every document begins with token 0, as those of the training did.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ._arguments import Path, Progress, integer, path_bytes, word
from .engine import Engine
from .errors import Error
from .scoring import END_OF_DOCUMENT, Scores, continuation_scores, split, total_of

T = TypeVar("T")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """One with several choices, each of which is scored as it stands behind the context."""

    context: str
    choices: Sequence[str]
    answer: int
    """The place of the right choice, from 0."""


@dataclass(frozen=True, slots=True)
class LastWord:
    """How well last words are predicted."""

    documents: int
    accuracy: float
    """Share of them whose every token is the most likely one."""
    perplexity: float
    """exp of the mean of -log of a whole last word's probability."""


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """How many questions are answered rightly."""

    questions: int
    accuracy: float
    """Share of them whose right choice is the most likely one."""
    normalized_accuracy: float
    """The same where log-probabilities are divided by the length of the choice in bytes."""


def last_word(engine: Engine, texts: Sequence[str], progress: Progress | None = None) -> LastWord:
    """Predict the last word of each text, as LAMBADA asks.

    The last word is what comes after the last blank, with that blank. ``progress`` is called as
    ``progress(tokens_done, tokens_total)``.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.evaluation import last_word
    >>> last_word(rwkv.Engine("demo"), ["if not self.x: return None"]).accuracy
    1.0
    """
    if not texts:
        raise Error("texts: expected at least one, found none")
    parts = []
    for i, text in enumerate(texts):
        given = word(text, f"texts[{i}]")
        with _about(f"texts[{i}]"):
            parts.append(_last_word_of(given))
    pairs = [(context, [f" {last}"]) for context, last in parts]
    scores = [rows[0] for rows in _scores(engine, "texts", pairs, progress)]
    losses = [-total_of(one[0]) for one in scores]
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.mean(losses)))
    right = sum(bool(greedy.all()) for _, greedy in scores)
    return LastWord(len(scores), right / len(scores), perplexity)


def multiple_choice(
    engine: Engine, questions: Sequence[Question], progress: Progress | None = None
) -> MultipleChoice:
    """Answer questions by the likeliest of their choices, as `Engine.rank` finds it.

    What contexts begin with alike is read once. ``progress`` is called as
    ``progress(tokens_done, tokens_total)``.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.evaluation import Question, multiple_choice
    >>> asked = [Question("for i in", [" xyz:", " range("], 1)]
    >>> multiple_choice(rwkv.Engine("demo"), asked)
    MultipleChoice(questions=1, accuracy=1.0, normalized_accuracy=1.0)
    """
    if not questions:
        raise Error("questions: expected at least one, found none")
    for i, question in enumerate(questions):
        if question.choices:  # or the error is that there are none
            integer(question.answer, f"questions[{i}].answer", 0, len(question.choices) - 1)
        if isinstance(question.choices, str):
            raise TypeError(f"questions[{i}].choices: expected a sequence of choices, found str")
    rows = _scores(engine, "questions", [(q.context, q.choices) for q in questions], progress)
    right, normalized = 0, 0
    for question, scores in zip(questions, rows, strict=True):
        found = np.array([total_of(one[0]) for one in scores])
        lengths = np.array([len(choice.encode()) for choice in question.choices])
        right += int(found.argmax()) == question.answer
        normalized += int((found / lengths).argmax()) == question.answer
    return MultipleChoice(len(questions), right / len(questions), normalized / len(questions))


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file with ``{"text": "..."}`` in every line, for `last_word`.

    Raises Error with the number of a line that is no such thing; empty lines are none.
    """
    return _read_lines(path, _text_of)


def read_questions(path: Path, delimiter: str = " ") -> list[Question]:
    """Return the questions of a file of JSON lines, for `multiple_choice`.

    A line has a "context" or "question", "choices", and as "answer" the place of the right one from
    0 on, or its letter. The delimiter is put before each choice.

    Raises Error with the number of a line that is no such thing; empty lines are none.
    """
    return _read_lines(path, lambda line: _question_of(line, delimiter))


@contextlib.contextmanager
def _about(where: str) -> Iterator[None]:
    """Have errors say which of many it is."""
    try:
        yield
    except (Error, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None


def _scores(
    engine: Engine,
    name: str,
    pairs: Sequence[tuple[str, Sequence[str]]],
    progress: Progress | None,
) -> list[list[Scores]]:
    start = engine.new_state()
    engine.forward([END_OF_DOCUMENT], start)
    requests = []
    for i, (context, choices) in enumerate(pairs):
        with _about(f"{name}[{i}]"):
            requests.append(split(engine, context, choices, start))
    return continuation_scores(engine, requests, start, progress)


def _last_word_of(text: str) -> tuple[str, str]:
    context, _, last = text.rpartition(" ")
    if not context or not last:
        raise Error(f"expected a text of two words or more, found {text[:50]!r}")
    return context, last


def _text_of(line: dict[str, Any]) -> str:
    text = line.get("text")
    if not isinstance(text, str):
        raise Error(f'expected "text" to be a string, found {_shown(text)}')
    _last_word_of(text)
    return text


def _question_of(line: dict[str, Any], delimiter: str) -> Question:
    context = line.get("context", line.get("question"))
    choices, answer = line.get("choices"), line.get("answer")
    if not isinstance(context, str):
        raise Error(f'expected "context" or "question" to be a string, found {_shown(context)}')
    if not isinstance(choices, list) or not choices:
        raise Error(f'expected "choices" to be a list of strings, found {_shown(choices)}')
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise Error(
                f'expected "choices" to be strings that are not empty, found {_shown(choice)}'
            )
    place = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(choices):
        raise Error(
            f'expected "answer" to be a number from 0 to {len(choices) - 1} or its letter, '
            f"found {_shown(answer)}"
        )
    return Question(context, [f"{delimiter}{choice}" for choice in choices], place)


def _read_lines(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    name = pathlib.Path(path_bytes(path, "path").decode(errors="surrogateescape"))
    found = []
    for number, line in enumerate(_lines(name), 1):
        try:
            if line.strip():
                found.append(parse(_object(line)))
        except Error as error:
            raise Error(f"{name}, line {number}: {error}") from None
    if not found:
        raise Error(f"{name}: expected at least one line, found none")
    return found


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise Error(f"{path}: expected a file that can be read, found: {error.strerror}") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # UTF-8 that is none is a ValueError too
        raise Error(f"expected a JSON object, found {_shown_bytes(line)} ({error})") from None
    if not isinstance(found, dict):
        raise Error(f"expected a JSON object, found {_shown_bytes(line)}")
    return found


def _shown(value: object) -> str:
    return "none" if value is None else f"{json.dumps(value):.50}"


def _shown_bytes(line: bytes) -> str:
    return repr(line.strip()[:50].decode(errors="replace"))
