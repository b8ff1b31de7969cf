"""The command ``rwkv-engine``: text from a model, and what is in a model file."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from ._arguments import DEMO
from ._progress import Bar
from .engine import Engine
from .errors import Error
from .inspection import inspect, report
from .params import SamplingParams

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
CLOSED_PIPE = 141  # as a shell reports one whose reader went away


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rwkv-engine: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rwkv-engine", description="Run RWKV language models.")
    parser.add_argument("--version", action="version", version=f"rwkv-engine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        help="write what comes after a prompt",
        description="Write what comes after PROMPT to standard output, as it is produced.",
    )
    generate.add_argument(
        "prompt", nargs="?", default="", metavar="PROMPT", help="text; - reads standard input"
    )
    defaults = SamplingParams()
    option = generate.add_argument
    option("--model", default=DEMO, metavar="PATH", help=".pth or .safetensors (default: the demo)")
    option("--strategy", default="auto", metavar="S", help='such as "cpu bf16" (default: auto)')
    option("--threads", type=int, metavar="N", help="default: one per core")
    option("--tokenizer", metavar="PATH", help="vocabulary in the World format")
    option("--temperature", type=float, default=defaults.temperature, metavar="X", help="0: greedy")
    option("--top-p", type=float, default=defaults.top_p, metavar="X", help="0 to 1")
    option("--seed", type=int, metavar="N", help="the same seed gives the same text")
    option("--max-tokens", type=int, default=defaults.max_tokens, metavar="N")
    option("--state", metavar="FILE", help="go on from a state that --save wrote")
    option("--save", metavar="FILE", help="write the state after the text")
    generate.set_defaults(run=_generate)

    look = commands.add_parser(
        "inspect",
        help="show what is in a model file",
        description="Show what is in a model file, without loading it.",
    )
    look.add_argument("model", nargs="?", default=DEMO, metavar="MODEL")
    look.add_argument("--json", action="store_true", help="as a JSON object")
    look.add_argument("--tensors", action="store_true", help="every tensor too")
    look.set_defaults(run=_inspect)
    return parser


def _generate(options: argparse.Namespace) -> None:
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        max_tokens=options.max_tokens,
    )
    with Bar("loading") as bar:
        engine = Engine(
            options.model,
            options.strategy,
            threads=options.threads,
            tokenizer=options.tokenizer,
            progress=bar.update,
        )
    state = engine.new_state() if options.state is None else engine.load_state(options.state)
    prompt = engine.tokenizer.encode(_prompt_bytes(options.prompt))
    with Bar("reading") as bar:
        stream = engine.stream(prompt, params, state, progress=bar.update)
        for piece in stream:
            bar.clear()
            if piece.text:
                print(piece.text, end="", flush=True)
    if sys.stdout.isatty():
        print()
    if options.save is not None:
        state.save(options.save)


def _prompt_bytes(prompt: str) -> bytes:
    if prompt == "-":
        if sys.stdin is None:
            raise Error("expected a prompt on standard input, found it closed")
        return sys.stdin.buffer.read()
    return prompt.encode(errors="surrogateescape")  # arguments that are no text come so


def _inspect(options: argparse.Namespace) -> None:
    print(report(inspect(options.model, tensors=options.tensors), as_json=options.json))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status. Errors are one sentence on standard error."""
    _prepare_output()
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except Exception as error:  # whatever it is, one sentence
        _drop_output()
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"rwkv-engine: {sentence}", file=sys.stderr)
        return 1
    return 0


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
