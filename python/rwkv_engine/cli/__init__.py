"""The command ``rwkv-engine``: one file for each of its commands, and here what they share."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from . import (
    bench,
    chat,
    completion,
    convert,
    embed,
    eval,
    generate,
    inspect,
    quantize,
    score,
    state,
    tokenize,
)
from ._shared import visible

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
CLOSED_PIPE = 141  # as a shell reports one whose reader went away


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rwkv-engine: {_sentence(message)} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = _Parser(prog="rwkv-engine", description="Run RWKV language models.")
    parser.add_argument("--version", action="version", version=f"rwkv-engine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        generate,
        chat,
        embed,
        score,
        inspect,
        convert,
        quantize,
        state,
        eval,
        bench,
        tokenize,
        completion,
    ):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status. Errors are one sentence on standard error."""
    _prepare_output()
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except Exception as error:  # whatever it is, one sentence
        _drop_output()
        if sys.stderr is not None:
            with contextlib.suppress(OSError):  # nobody hears it
                print(f"rwkv-engine: {_sentence(error)}", file=sys.stderr)
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    try:
        options = parser.parse_args(arguments, argparse.Namespace(parser=parser))
    except SystemExit as end:  # after help, the version or wrong usage
        return int(end.code or 0)
    return options.run(options) or 0


def _sentence(said: object) -> str:
    """Return it on one line; names in it can do nothing to a terminal."""
    return visible(" ".join(str(said).split())) or type(said).__name__


def _prepare_output() -> None:
    """Let every character be printed somehow, on whatever standard output is."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (for the rest of the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Let go of what cannot be written, or the interpreter would try once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
