"""``rwkv-engine quantize``."""

from __future__ import annotations

import argparse

from ..quantization import PRECISIONS, quantize
from ._progress import Bar
from ._shared import add_adapter_option, fetch

HELP = "quantise a model once, to open at once"
DESCRIPTION = (
    "Write MODEL as TARGET, a .safetensors file with its large matrices in the given precision and "
    "as the CPU multiplies with them: opening it takes no conversion."
)
EXAMPLE = "example: rwkv-engine quantize model.pth model-int8.safetensors int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("target", metavar="TARGET", help="the new file: .safetensors")
    parser.add_argument("precision", choices=PRECISIONS, help="of the large matrices")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add_adapter_option(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    fetch(options.model)
    with Bar("quantising") as bar:
        quantize(
            options.model,
            options.target,
            options.precision,
            adapters=options.adapter,
            overwrite=options.overwrite,
            progress=bar.update,
        )
