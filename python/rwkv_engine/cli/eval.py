"""``rwkv-engine eval``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeAlias, cast

from .._arguments import DEMO, Progress
from ..engine import Engine
from ..errors import Error
from ..evaluation import (
    compare,
    last_word,
    multiple_choice,
    perplexity,
    read_questions,
    read_texts,
)
from ._progress import Bar
from ._shared import (
    MODEL_HELP,
    PIN_HELP,
    STRATEGY_HELP,
    add_adapter_option,
    aligned,
    fetch,
)

HELP = "measure how well a model predicts a text, or answers questions"
DESCRIPTION = """Print the perplexity of a text and how many bits its bytes need; with
--compare, how far each strategy is from "cpu fp32": the Kullback-Leibler divergence in nats per
token, mean and largest, and how often both find the same token the most likely.

--lambada reads lines of {"text": ...} and predicts the last word of each text. --choices reads
lines of {"context": ..., "choices": [...], "answer": 0 or "A"} and looks which choice is the
most likely, also for each byte. Both put token 0 before each document."""
EXAMPLE = """examples:
  rwkv-engine eval --file book.txt --compare --strategy "cpu bf16"
  rwkv-engine eval --lambada lambada_test.jsonl --strategy "cpu int8\""""

REFERENCE = "cpu fp32"
Evaluate: TypeAlias = Callable[[list[Engine], Progress], list[Any]]  # a result for each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--file", metavar="FILE", help="a text; - reads standard input")
    what("--lambada", metavar="FILE", help="texts whose last word is predicted: JSON lines")
    what("--choices", metavar="FILE", help="questions with choices: JSON lines")
    option = parser.add_argument
    option("--model", default=DEMO, metavar="PATH", help=MODEL_HELP)
    option(
        "--strategy",
        action="append",
        metavar="S",
        help=f"{STRATEGY_HELP}; may be repeated (default: cpu bf16)",
    )
    option("--compare", action="store_true", help=f'compare with "{REFERENCE}"')
    option("--tokens", type=_count, metavar="N", help="read so many at most (default: all)")
    option("--delimiter", default=" ", metavar="TEXT", help="before each choice (default: a blank)")
    option("--threads", type=int, metavar="N", help="default: one per core")
    option("--pin", action="store_true", help=PIN_HELP)
    option("--tokenizer", metavar="PATH", help="vocabulary in the World format")
    option("--json", action="store_true", help="as a JSON list")
    add_adapter_option(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected an integer of 2 or more, found {text!r:.100}")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    strategies = options.strategy or ["cpu bf16"]
    if options.compare:
        together = [[REFERENCE, *strategies]]
    else:  # one model in memory at a time
        together = [[strategy] for strategy in strategies]
    with _evaluation(options, len(together)) as evaluate:
        fetch(options.model)
        found = [row for some in together for row in _run(some, evaluate, options)]
    rows = [
        {"strategy": strategy, **dataclasses.asdict(one)}
        for strategy, one in zip(itertools.chain(*together), found, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(_title(rows[0]))
        print("\n".join(_table(rows)))


@contextlib.contextmanager
def _evaluation(options: argparse.Namespace, times: int) -> Iterator[Evaluate]:
    """Give what is done with engines, so many times, after opening the file."""
    if options.file is None:
        for name in ("compare", "tokens"):
            if getattr(options, name):
                raise Error(f"--{name}: expected --file with it, found none")
    if options.lambada is not None:
        texts = read_texts(options.lambada)
        yield lambda engines, progress: [last_word(engines[0], texts, progress)]
        return
    if options.choices is not None:
        questions = read_questions(options.choices, options.delimiter)
        yield lambda engines, progress: [multiple_choice(engines[0], questions, progress)]
        return

    with _opened(options.file) as file, _repeatable(file, times) as text:
        begin = text.tell() if times > 1 else 0

        def of_text(engines: list[Engine], progress: Progress) -> list[Any]:
            if times > 1:
                text.seek(begin)
            try:
                if options.compare:
                    return compare(engines[0], engines[1:], text, progress, tokens=options.tokens)
                return [perplexity(engines[0], text, progress, tokens=options.tokens)]
            except OSError as error:
                raise _unreadable(options.file, error) from None

        yield of_text


def _opened(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if path == "-":
        if sys.stdin is None:
            raise Error("expected text on standard input, found it closed")
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return pathlib.Path(path).open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> Error:
    return Error(f"{path}: expected a file that can be read, found: {error.strerror}")


@contextlib.contextmanager
def _repeatable(file: BinaryIO, times: int) -> Iterator[BinaryIO]:
    """Give a file that can be read so many times; what comes from a pipe goes to disk for that."""
    if times == 1 or file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        yield cast(BinaryIO, _Kept(file, copy))


class _Kept:
    """A pipe that can be read again: what has been read of it goes to disk, and no more."""

    def __init__(self, source: BinaryIO, copy: BinaryIO) -> None:
        self._source, self._copy = source, copy
        self.seek, self.tell = copy.seek, copy.tell

    def seekable(self) -> bool:
        """Tell that nobody knows its length."""
        return False

    def read(self, size: int) -> bytes:
        """Read at most so many bytes, from the copy as far as it goes."""
        part = self._copy.read(size)
        if not part:
            part = self._source.read(size)
            self._copy.write(part)
        return part


def _run(strategies: list[str], evaluate: Evaluate, options: argparse.Namespace) -> list[Any]:
    with Bar("loading") as bar:
        engines = [
            Engine(
                options.model,
                strategy,
                threads=options.threads,
                pin=options.pin,
                tokenizer=options.tokenizer,
                adapters=options.adapter,
                progress=bar.update,
            )
            for strategy in strategies
        ]
    with Bar("reading") as bar:
        return evaluate(engines, bar.update)


def _title(row: dict[str, Any]) -> str:
    counts = {"tokens": "tokens predicted", "documents": "last words", "questions": "questions"}
    return next(f"{row[name]:,} {words}" for name, words in counts.items() if name in row)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    formats = {
        "strategy": ("strategy", "{}"),
        "accuracy": ("accuracy", "{:.2%}"),
        "normalized_accuracy": ("by bytes", "{:.2%}"),
        "perplexity": ("perplexity", "{:.4f}"),
        "bits_per_byte": ("bits per byte", "{:.4f}"),
        "kl_divergence": ("KL divergence", "{:.3g}"),
        "largest_kl_divergence": ("largest", "{:.3g}"),
        "top1_agreement": ("top-1 agreement", "{:.2%}"),
    }
    shown = {name: of for name, of in formats.items() if name in rows[0]}
    titles = [title for title, _ in shown.values()]
    cells = [[form.format(row[name]) for name, (_, form) in shown.items()] for row in rows]
    return aligned([titles, *cells])
