"""``rwkv-engine inspect``."""

from __future__ import annotations

import argparse
import json

from .._arguments import DEMO
from ..inspection import inspect, inspect_state, is_state, report, report_state
from ._shared import add_adapter_option, fetch

HELP = "show what is in a model or state file"
DESCRIPTION = "Show what is in a model file, or a saved state, without loading it."
EXAMPLE = "example: rwkv-engine inspect model.pth --tensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("file", nargs="?", default=DEMO, metavar="FILE", help="default: the demo")
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument("--tensors", action="store_true", help="every tensor too")
    add_adapter_option(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.file != DEMO and is_state(options.file):
        state = inspect_state(options.file)
        print(json.dumps(state, indent=2) if options.json else report_state(state))
        return
    fetch(options.file)
    found = inspect(options.file, tensors=options.tensors, adapters=options.adapter)
    print(json.dumps(found, indent=2) if options.json else report(found))
