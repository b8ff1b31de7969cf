"""``rwkv-engine bench``."""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

from .._arguments import DEMO
from ..engine import Engine
from ..errors import Error
from ..inspection import inspect
from ._progress import Bar
from ._shared import MODEL_HELP, PIN_HELP, STRATEGY_HELP, fetch

HELP = "measure a model on this machine"
DESCRIPTION = """Measure loading, reading and writing of a model on this machine: medians of several
rounds, the results of which must be equal. What else runs on the machine changes the figures."""
EXAMPLE = 'example: rwkv-engine bench --strategy "cpu fp32" --strategy "cpu bf16" --batch 4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    option = parser.add_argument
    option("--model", default=DEMO, metavar="PATH", help=MODEL_HELP)
    option(
        "--strategy",
        action="append",
        metavar="S",
        help=f"{STRATEGY_HELP}; may be repeated (default: auto)",
    )
    option("--threads", type=int, metavar="N", help="default: one per core")
    option("--pin", action="store_true", help=PIN_HELP)
    option("--prompt", type=_count, default=512, metavar="N", help="tokens read (default: 512)")
    option("--tokens", type=_count, default=32, metavar="N", help="tokens written (default: 32)")
    option("--batch", type=_count, default=1, metavar="N", help="texts at once (default: 1)")
    option("--rounds", type=_count, default=5, metavar="N", help="default: 5")
    option("--json", action="store_true", help="as a JSON list")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    fetch(options.model)
    found = [_measure(strategy, options) for strategy in options.strategy or ["auto"]]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        print(f"{row['model']}, {row['strategy']!r} on {row['device']}")
        print(f"  load     {row['load_seconds']:9.2f} s")
        print(f"  prefill  {row['prefill_tokens_per_second']:9.1f} tokens/s")
        print(
            f"  decode   {row['decode_tokens_per_second']:9.1f} tokens/s,"
            f" {row['weights_gigabytes_per_second']:.1f} GB/s of weights"
        )
        if row["resident_megabytes"] is not None:
            print(f"  memory   {row['resident_megabytes']:9.1f} MB resident")


def _measure(strategy: str, options: argparse.Namespace) -> dict[str, Any]:
    begin = time.perf_counter()
    with Bar("loading") as bar:
        threads = {"threads": options.threads, "pin": options.pin}
        engine = Engine(options.model, strategy, **threads, progress=bar.update)
    load = time.perf_counter() - begin
    prompt = [1 + i % (engine.config.n_vocab - 1) for i in range(options.prompt)]
    prefill: list[float] = []
    decode: list[float] = []
    answer = None
    with Bar("measuring") as bar:
        for i in range(options.rounds + 1):
            bar.update(i, options.rounds + 1)
            read, wrote, ids = _round(engine, prompt, options)
            if answer is not None and ids != answer:
                raise Error("bench: expected the same tokens in every round, found others")
            if answer is not None:  # the first round warms up
                prefill.append(read)
                decode.append(wrote)
            answer = ids
    per_step = statistics.median(decode) / options.tokens
    return {
        "model": engine.name,
        "strategy": strategy,
        "device": engine.description,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "batch": options.batch,
        "rounds": options.rounds,
        "load_seconds": load,
        "prefill_tokens_per_second": options.prompt / statistics.median(prefill),
        "decode_tokens_per_second": options.batch / per_step,
        "weights_gigabytes_per_second": _streamed_bytes(engine, options.model) / per_step / 1e9,
        "resident_megabytes": _resident_megabytes(),
    }


def _round(
    engine: Engine, prompt: list[int], options: argparse.Namespace
) -> tuple[float, float, list[list[int]]]:
    begin = time.perf_counter()
    state = engine.new_state()
    first = int(engine.forward(prompt, state).argmax())
    read = time.perf_counter()
    # Texts that differ from the first token on, as many as the batch.
    ids = [[(first + i) % engine.config.n_vocab] for i in range(options.batch)]
    states = state.fork(options.batch)
    for _ in range(options.tokens):
        logits = engine.forward_batch([text[-1:] for text in ids], states)
        for text, row in zip(ids, logits, strict=True):
            text.append(int(row.argmax()))
    return read - begin, time.perf_counter() - read, ids


def _streamed_bytes(engine: Engine, model: str) -> int:
    """Bytes of weights of one step, skipped or read: all but the embedding table."""
    table = next(t for t in inspect(model, tensors=True)["tensors"] if t["name"] == "emb.weight")
    size = {"f32": 4}.get(table["dtype"], 2)
    once = engine._core.weight_bytes - engine._core.column_bytes
    return once - engine.config.n_vocab * engine.config.n_embd * size


def _resident_megabytes() -> float | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS")), None)
