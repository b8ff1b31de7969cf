"""``rwkv-engine tokenize``."""

from __future__ import annotations

import argparse
import json
import sys

from .._arguments import DEMO
from ..errors import Error
from ..inspection import inspect
from ..text import Tokenizer, tokenizer_for
from ._shared import fetch, file_bytes, plain_token, show, text_bytes, token_literal

HELP = "turn text into token ids and back"
DESCRIPTION = "Print the token ids of TEXT with the bytes they stand for, one a line."
EXAMPLE = """examples:
  rwkv-engine tokenize "Hello world"
  rwkv-engine tokenize --decode 33155 40213"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="- reads standard input")
    option = parser.add_argument
    option("--file", metavar="FILE", help="read the text from a file")
    option("--decode", nargs="+", type=int, metavar="ID", help="print the text of these ids")
    option("--count", action="store_true", help="print how many tokens it is")
    option("--json", action="store_true", help="print a JSON list")
    option("--model", metavar="PATH", help="use this model's vocabulary (default: World)")
    option("--tokenizer", metavar="PATH", help="use this vocabulary, in the World format")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    given = [name for name in ("text", "file", "decode") if getattr(options, name) is not None]
    if len(given) != 1:
        raise Error(f"expected one of TEXT, --file and --decode, found {len(given) or 'none'}")
    tokenizer = _tokenizer(options)
    if options.decode is not None:
        _decode(tokenizer, options.decode)
        return
    data = text_bytes(options.text) if options.file is None else file_bytes(options.file)
    ids = tokenizer.encode(data)
    if options.count:
        print(len(ids))
    elif options.json:
        print(json.dumps([plain_token(tokenizer, id) for id in ids]))
    else:
        sys.stdout.writelines(f"{id}\t{token_literal(tokenizer, id)}\n" for id in ids)


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    if options.model is not None:
        fetch(options.model)
        found = inspect(options.model)
        model = options.model if options.model == DEMO else found["path"]
        return tokenizer_for(model, options.tokenizer, found["n_vocab"])()
    return Tokenizer.world() if options.tokenizer is None else Tokenizer(options.tokenizer)


def _decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    unknown = [id for id in ids if not 0 <= id < tokenizer.vocab_size]
    if unknown:
        raise Error(
            f"--decode: expected ids from 0 to {tokenizer.vocab_size - 1}, found {unknown[0]}"
        )
    show(tokenizer.decode(ids))
    print()
