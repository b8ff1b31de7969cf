"""``rwkv-engine convert``."""

from __future__ import annotations

import argparse

from ..conversion import TYPES, convert
from ._progress import Bar
from ._shared import add_adapter_option, fetch

HELP = "write a model as a safetensors or GGUF file"
DESCRIPTION = (
    "Write MODEL as TARGET: a .safetensors file with the official names, or a .gguf file, which "
    "llama.cpp and what is built on it load (RWKV-6 and 7)."
)
EXAMPLE = """examples:
  rwkv-engine convert model.pth model.safetensors
  rwkv-engine convert model.pth model.gguf --type q8_0 --modelfile"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("target", metavar="TARGET", help="the new file: .safetensors or .gguf")
    option = parser.add_argument
    types = "of all tensors, or of a GGUF file's matrices (default: as in MODEL; f16 for GGUF)"
    option("--type", choices=TYPES[".gguf"], help=types)
    option("--tokenizer", metavar="PATH", help="write this vocabulary, in the World format")
    option("--modelfile", action="store_true", help="write TARGET's Modelfile for Ollama too")
    option("--template", metavar="T", help="chat template of the Modelfile: a name or a TOML file")
    option("--overwrite", action="store_true", help="replace files that exist")
    add_adapter_option(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    fetch(options.model)
    bar = Bar("converting")
    try:
        convert(
            options.model,
            options.target,
            options.type,
            adapters=options.adapter,
            tokenizer=options.tokenizer,
            modelfile=options.modelfile,
            template=options.template,
            overwrite=options.overwrite,
            progress=bar.update,
        )
    finally:
        bar.clear()
