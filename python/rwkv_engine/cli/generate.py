"""``rwkv-engine generate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from ..errors import Error
from ..generation import Result
from ..params import SamplingParams
from ..state import State
from ._progress import Bar
from ._shared import (
    add_init_options,
    add_model_options,
    add_sampling_options,
    file_bytes,
    given_params,
    is_terminal,
    open_engine,
    show,
    text_bytes,
)

HELP = "write what comes after a prompt"
DESCRIPTION = "Write what comes after PROMPT to standard output, as it is produced."
EXAMPLE = 'example: rwkv-engine generate "def main(" --temperature 0.8 --seed 1 --max-tokens 40'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text; - reads standard input")
    option = parser.add_argument
    option("--prompt-file", metavar="FILE", help="read the prompt from a file")
    option("-n", type=int, default=1, metavar="N", help="texts of one prompt (default: 1)")
    option("--state", metavar="FILE", help="go on from a state that --save wrote")
    add_init_options(option)
    option("--save", metavar="FILE", help="write the state after the text")
    option("--json", action="store_true", help="print a JSON object, or a list with -n")
    option("--top-logprobs", type=int, metavar="N", help="likely tokens in --json")
    add_sampling_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    params = SamplingParams(**given_params(options))
    if options.n != 1 and options.save is not None:
        raise Error(f"--save: expected one text, found -n {options.n}")
    if options.state is not None and options.init is not None:
        raise Error("expected --state or --init, found both")
    text = _prompt(options)
    engine = open_engine(options)
    start = options.state
    if start is None:
        state = engine.new_state(options.init, transposed=options.init_transposed)
    else:
        state = engine.load_state(start)
    prompt = engine.tokenizer.encode(text)
    with Bar("reading") as bar:
        if options.n == 1 and not options.json:
            for piece in engine.stream(prompt, params, state, progress=bar.update):
                bar.clear()
                show(piece.text)
            if is_terminal(sys.stdout):
                print()
        else:
            results = engine.generate_batch(
                [prompt], params, [state], n=options.n, progress=bar.update
            )
            bar.clear()
            _print(results, options)
    if options.save is not None:
        _save(state, options.save)


def _prompt(options: argparse.Namespace) -> bytes:
    if options.prompt_file is None:
        text = text_bytes(options.prompt or "")
        if options.prompt == "-" and not text:
            raise Error("expected a prompt on standard input, found nothing")
        return text
    if options.prompt is not None:
        raise Error("expected a prompt or --prompt-file, found both")
    return file_bytes(options.prompt_file)


def _print(results: list[Result], options: argparse.Namespace) -> None:
    if options.json:
        found = [_plain(result, options.top_logprobs) for result in results]
        print(json.dumps(found if options.n > 1 else found[0], indent=2))
        return
    for i, result in enumerate(results, 1):
        print(f"==> {i} of {len(results)} <==")
        show(result.text)
        print()


def _plain(result: Result, top: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": result.text,
        "tokens": result.tokens,
        "logprobs": result.logprobs,
        "finish_reason": result.finish_reason,
        "usage": dataclasses.asdict(result.usage),
    }
    if top:
        found["top_logprobs"] = result.top_logprobs
    return found


def _save(state: State, path: str) -> None:
    sys.stdout.flush()
    state.save(path)
