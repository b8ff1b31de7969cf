"""Options and output that several commands have in common."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from .. import hub
from .._arguments import DEMO
from ..adapters import Adapter
from ..engine import Engine
from ..errors import Error
from ..params import SamplingParams
from ..text import Tokenizer
from ._progress import Bar

MODEL_HELP = "a file, or hf:owner/repo/file (default: the demo)"
PIN_HELP = "keep each thread on a core of its own"
STRATEGY_HELP = '"cpu fp32", fp16, bf16, int8 or int4'


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs, and where."""
    option = parser.add_argument_group("model").add_argument
    option("--model", default=DEMO, metavar="PATH", help=MODEL_HELP)
    option("--strategy", default="auto", metavar="S", help=f"{STRATEGY_HELP} (default: auto)")
    option("--threads", type=int, metavar="N", help="default: one per core")
    option("--pin", action="store_true", help=PIN_HELP)
    option("--tokenizer", metavar="PATH", help="vocabulary in the World format")
    add_adapter_option(parser)


def add_init_options(option: Callable[..., object]) -> None:
    """Add the options that name a tuned state, given what adds one."""
    option("--init", metavar="FILE", help="begin with a tuned state, a .pth or safetensors file")
    option(
        "--init-transposed",
        action=argparse.BooleanOptionalAction,
        help="whether its matrices are [key, value]; has to be said of .st files",
    )


def add_adapter_option(
    parser: argparse.ArgumentParser, purpose: str = "merge a fine-tuned adapter"
) -> None:
    """Add the option that names adapters, by default what is merged into the model."""
    parser.add_argument(
        "--adapter",
        action="append",
        type=_adapter,
        default=[],
        metavar="PATH",
        help=f"{purpose}; PATH:32 where it does not say its alpha; may be repeated",
    )


def _adapter(text: str) -> Adapter:
    path, colon, alpha = text.rpartition(":")
    try:
        if colon and not pathlib.Path(text).exists():
            return Adapter(path, alpha=float(alpha))
    except ValueError:  # a colon of the path itself
        pass
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Adapter(text)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each of the SamplingParams; those not given are None."""
    option = parser.add_argument_group("sampling").add_argument
    option("--temperature", type=float, metavar="X", help="0: greedy")
    option("--top-p", type=float, metavar="X", help="0 to 1")
    option("--top-k", type=int, metavar="N", help="0: all")
    option("--min-p", type=float, metavar="X", help="0 to 1")
    option("--presence-penalty", type=float, metavar="X", help="for tokens already written")
    option("--frequency-penalty", type=float, metavar="X", help="for each time they were")
    option("--penalty-decay", type=float, metavar="X", help="0 to 1, per token")
    option("--penalty-style", choices=["rwkv", "rapid", "openai"], help="how they are counted")
    option("--seed", type=int, metavar="N", help="the same seed gives the same text")
    option("--stop", action="append", metavar="TEXT", help="ends the text; may be repeated")
    option("--stop-token", action="append", type=int, metavar="ID", dest="stop_tokens")
    option("--logit-bias", action="append", type=_bias, metavar="ID=X", help="-inf bans the token")
    option("--max-tokens", type=int, metavar="N")
    option("--ignore-eos", action="store_true", default=None, help="go on after token 0")


def _bias(text: str) -> tuple[int, float]:
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected ID=X such as 11=-2.5 or 11=-inf, found {text!r:.100}"
        ) from None


def given_params(options: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling parameters that the command line names."""
    given = {
        name: getattr(options, name)
        for name in SamplingParams.__dataclass_fields__
        if getattr(options, name, None) is not None
    }
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return given


def open_engine(options: argparse.Namespace) -> Engine:
    """Open the model that the options name, with a bar."""
    fetch(options.model)
    with Bar("loading") as bar:
        return Engine(
            options.model,
            options.strategy,
            threads=options.threads,
            pin=options.pin,
            tokenizer=options.tokenizer,
            adapters=options.adapter,
            progress=bar.update,
        )


def fetch(model: str) -> None:
    """Download a model of the hub, with a bar, if it is one and not in the cache yet."""
    if hub.is_remote(model):
        with Bar("downloading") as bar:
            hub.download(model, bar.update)


def text_bytes(argument: str) -> bytes:
    """Return the text of an argument; "-" is standard input."""
    if argument == "-":
        if sys.stdin is None:
            raise Error("expected text on standard input, found it closed")
        return sys.stdin.buffer.read()
    return argument.encode(errors="surrogateescape")  # arguments that are no text come so


def file_bytes(path: str) -> bytes:
    """Return what is in a file."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise Error(f"{path}: expected a file that can be read, found: {error.strerror}") from None


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether somebody looks at it."""
    return stream is not None and stream.isatty()


def has_colours(stream: TextIO) -> bool:
    """Tell whether colours are welcome there."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return is_terminal(stream) and not dumb and not os.environ.get("NO_COLOR")


def plain_token(tokenizer: Tokenizer, id: int) -> dict[str, Any]:
    """Return a token for JSON; one that is no text of its own has its bytes instead."""
    data = tokenizer.decode_bytes([id])
    try:
        return {"id": id, "text": data.decode()}
    except UnicodeDecodeError:
        return {"id": id, "text": None, "bytes": list(data)}


def token_literal(tokenizer: Tokenizer, id: int) -> str:
    """Return a token's bytes as Python writes them, as text where they are some."""
    data = tokenizer.decode_bytes([id])
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; all columns but the first are those of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in rows
    ]


def visible(text: str) -> str:
    """Return text that can do nothing to a terminal but break lines and indent."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda c: ascii(c[0])[1:-1], text)


def show(text: str) -> None:
    """Print a part of a text at once; on a terminal without control characters."""
    if text:
        print(visible(text) if is_terminal(sys.stdout) else text, end="", flush=True)
