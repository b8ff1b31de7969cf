"""``rwkv-engine embed``."""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
from typing import Any

import numpy as np

from .. import _core
from .._arguments import Array, path_bytes
from ..embedding import POOLINGS, TASKS
from ..errors import Error
from ..text import Tokenizer
from ._progress import Bar
from ._shared import add_model_options, file_bytes, open_engine, text_bytes

HELP = "turn texts into vectors"
DESCRIPTION = """Write a vector for each FILE, or with --lines for each line of one file, as JSON
lines or a NumPy array."""
EXAMPLE = """examples:
  rwkv-engine embed a.txt b.txt > vectors.jsonl
  rwkv-engine embed --lines sentences.txt --output vectors.npy"""

_JSON_SUFFIXES = (".jsonl", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="a text; - reads standard input")
    option = parser.add_argument
    option("--lines", metavar="FILE", help="each line a text; - reads standard input")
    option("--output", metavar="FILE", help="write a .npy or .jsonl file")
    option("--json", action="store_true", help="write JSON lines whatever the file's name")
    option("--pooling", choices=POOLINGS, help="default: the model's own way")
    option("--no-normalize", action="store_true", help="keep the vectors' lengths")
    option("--task", choices=TASKS, help="of an embedding model (default: retrieval)")
    option("--eos-token", type=int, metavar="ID", help="the end token for --pooling eos")
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if bool(options.files) == (options.lines is not None):
        found = "both" if options.files else "neither"
        raise Error(f"expected files or --lines, found {found}")
    as_array = _is_array(options)
    texts = _files(options.files) if options.files else _lines(options.lines)
    engine = open_engine(options)
    tokens = [_encoded(engine.tokenizer, where, text) for where, text in texts]
    with Bar("reading") as bar:
        vectors = engine.embed(
            tokens,
            options.pooling,
            not options.no_normalize,
            task=options.task,
            eos_token=options.eos_token,
            progress=bar.update,
        )
    if as_array:
        data = io.BytesIO()
        np.save(data, vectors)
        _core.write_file(path_bytes(options.output, "--output"), data.getvalue())
        return
    rows = _json_lines([where for where, _ in texts], tokens, vectors)
    if options.output is None:
        sys.stdout.write(rows)
    else:
        _core.write_file(path_bytes(options.output, "--output"), rows.encode())


def _is_array(options: argparse.Namespace) -> bool:
    if options.output is None or options.json:
        return False
    suffix = pathlib.Path(options.output).suffix
    if suffix not in (".npy", *_JSON_SUFFIXES):
        raise Error(
            f"--output: expected a name that ends in .npy or .jsonl, or --json, "
            f"found {options.output!r}"
        )
    return suffix == ".npy"


def _lines(path: str) -> list[tuple[dict[str, Any], bytes]]:
    data = text_bytes("-") if path == "-" else file_bytes(path)
    return [({"line": number}, line) for number, line in enumerate(data.splitlines(), 1)]


def _files(paths: list[str]) -> list[tuple[dict[str, Any], bytes]]:
    return [
        ({"file": path}, text_bytes("-") if path == "-" else file_bytes(path)) for path in paths
    ]


def _encoded(tokenizer: Tokenizer, where: dict[str, Any], text: bytes) -> list[int]:
    place = f"line {where['line']}" if "line" in where else str(where["file"])
    if not text:
        raise Error(f"{place}: expected a text, found an empty one")
    try:
        return tokenizer.encode(text)
    except Error as error:
        raise Error(f"{place}: {error}") from None


def _json_lines(places: list[dict[str, Any]], tokens: list[list[int]], vectors: Array) -> str:
    """Return an object for each text; numbers have the digits that a float32 needs."""
    rows = [
        json.dumps({**where, "tokens": len(ids), "embedding": [float(str(x)) for x in vector]})
        for where, ids, vector in zip(places, tokens, vectors, strict=True)
    ]
    return "".join(row + "\n" for row in rows)
