"""``rwkv-engine score``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from .._arguments import Array
from ..engine import Engine
from ..errors import Error
from ..evaluation import measure
from ..scoring import Choice
from ..state import State
from ..text import Tokenizer
from ._progress import Bar
from ._shared import (
    add_model_options,
    aligned,
    file_bytes,
    open_engine,
    plain_token,
    text_bytes,
    token_literal,
)

HELP = "show how likely a text is"
DESCRIPTION = """Print the log-probability of each token of TEXT given those before it, and what
they come to together; with --choices, how likely each of them is after TEXT, best first."""
EXAMPLE = """examples:
  rwkv-engine score "def main():"
  rwkv-engine score "for i in" --choices " range(" " enumerate(" " self" --normalize bytes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="- reads standard input")
    option = parser.add_argument
    option("--file", metavar="FILE", help="read the text from a file")
    option("--choices", nargs="+", metavar="CHOICE", help="what may come after the text")
    option("--normalize", choices=["tokens", "bytes"], help="rank choices by this length")
    option("--bos", type=int, metavar="ID", help="read this token first, such as 0")
    option("--state", metavar="FILE", help="the text comes after a state that --save wrote")
    option("--json", action="store_true", help="print a JSON object, or a list with --choices")
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if (options.text is None) is (options.file is None):
        found = "neither" if options.text is None else "both"
        raise Error(f"expected TEXT or --file, found {found}")
    if options.choices is None and options.normalize is not None:
        raise Error("--normalize: expected --choices with it, found none")
    data = text_bytes(options.text) if options.file is None else file_bytes(options.file)
    engine = open_engine(options)
    state = engine.new_state() if options.state is None else engine.load_state(options.state)
    if options.choices is None:
        _score(engine, data, state, options)
    else:
        _rank(engine, data, state, options)


def _score(engine: Engine, data: bytes, state: State, options: argparse.Namespace) -> None:
    tokens = engine.tokenizer.encode(data)
    with Bar("reading") as bar:
        logprobs = engine.score(tokens, state, bar.update, bos=options.bos)
    if len(logprobs) == 0:
        begun = options.bos is not None or options.state is not None
        least = "a token" if begun else "at least 2 tokens"
        raise Error(f"text: expected {least}, found {len(tokens)}")
    unscored = len(tokens) - len(logprobs)
    size = len(engine.tokenizer.decode_bytes(tokens[unscored:]))
    found = measure(logprobs, size)
    if options.json:
        rows = [
            {**plain_token(engine.tokenizer, id), "logprob": logprob}
            for id, logprob in zip(tokens, _with_gaps(unscored, logprobs), strict=True)
        ]
        totals = {"logprob": -found.loss * found.tokens, **dataclasses.asdict(found)}
        print(json.dumps({**totals, "scores": rows}, indent=2))
        return
    sys.stdout.writelines(_lines(engine.tokenizer, tokens, _with_gaps(unscored, logprobs)))
    print(
        f"{found.tokens:,} tokens, {size:,} bytes: log-probability "
        f"{-found.loss * found.tokens:.4f}, perplexity {found.perplexity:.4f}, "
        f"{found.bits_per_byte:.4f} bits per byte"
    )


def _with_gaps(unscored: int, logprobs: Array) -> list[float | None]:
    return [*[None] * unscored, *logprobs.tolist()]


def _lines(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float | None]
) -> Sequence[str]:
    return [
        f"{'' if logprob is None else f'{logprob:.4f}':>10}  {id:>6}  "
        f"{token_literal(tokenizer, id)}\n"
        for id, logprob in zip(tokens, logprobs, strict=True)
    ]


def _rank(engine: Engine, data: bytes, state: State, options: argparse.Namespace) -> None:
    if options.bos is not None:
        engine.forward([options.bos], state)
    with Bar("reading") as bar:
        found = engine.rank(
            _text(data),
            options.choices,
            state,
            bar.update,
            normalize=options.normalize,
        )
    if options.json:
        print(json.dumps([dataclasses.asdict(choice) for choice in found], indent=2))
    else:
        print("\n".join(_table(found)))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Error(
            f"text, byte {error.start}: expected UTF-8 with --choices, found {data[error.start]:#x}"
        ) from None


def _table(choices: Sequence[Choice]) -> list[str]:
    rows = [["choice", "score", "tokens", "bytes", "greedy"]]
    for choice in choices:
        greedy = "yes" if choice.greedy else "no"
        numbers = [str(choice.tokens), str(choice.bytes)]
        rows.append([repr(choice.choice), f"{choice.score:.4f}", *numbers, greedy])
    return aligned(rows)
