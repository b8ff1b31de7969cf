"""``rwkv-engine convert``."""

from __future__ import annotations

import argparse

from ..conversion import TYPES, convert
from ._progress import Bar
from ._shared import fetch

HELP = "write a model as a GGUF file"
DESCRIPTION = "Write MODEL as the GGUF file TARGET, which llama.cpp and what is built on it load."
EXAMPLE = """examples:
  rwkv-engine convert model.pth model.gguf --type q8_0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("target", metavar="TARGET", help="the new file; ends in .gguf")
    option = parser.add_argument
    option("--type", choices=TYPES, default="f16", help="of the large matrices (default: f16)")
    option("--tokenizer", metavar="PATH", help="write this vocabulary, in the World format")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    fetch(options.model)
    bar = Bar("converting")
    try:
        convert(
            options.model,
            options.target,
            options.type,
            tokenizer=options.tokenizer,
            progress=bar.update,
        )
    finally:
        bar.clear()
