"""``rwkv-engine eval``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from .._arguments import DEMO
from ..engine import Engine
from ..evaluation import Comparison, compare
from ._progress import Bar
from ._shared import (
    MODEL_HELP,
    PIN_HELP,
    STRATEGY_HELP,
    add_adapter_option,
    fetch,
    file_bytes,
    text_bytes,
)

HELP = "measure how well a model predicts a text"
DESCRIPTION = """Print the perplexity of a text; with --compare, also how far each strategy is from
"cpu fp32": the Kullback-Leibler divergence in nats per token, mean and largest, and how often
both find the same token the most likely."""
EXAMPLE = 'example: rwkv-engine eval --file book.txt --compare --strategy "cpu bf16"'

REFERENCE = "cpu fp32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    option = parser.add_argument
    option("--file", required=True, metavar="FILE", help="the text; - reads standard input")
    option("--model", default=DEMO, metavar="PATH", help=MODEL_HELP)
    option(
        "--strategy",
        action="append",
        metavar="S",
        help=f"{STRATEGY_HELP}; may be repeated (default: cpu bf16)",
    )
    option("--compare", action="store_true", help=f'compare with "{REFERENCE}"')
    option("--tokens", type=_count, metavar="N", help="read so many at most (default: all)")
    option("--threads", type=int, metavar="N", help="default: one per core")
    option("--pin", action="store_true", help=PIN_HELP)
    option("--tokenizer", metavar="PATH", help="vocabulary in the World format")
    option("--json", action="store_true", help="as a JSON list")
    add_adapter_option(parser)


def _count(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"expected 2 or more, found {value}")
    return value


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    data = text_bytes("-") if options.file == "-" else file_bytes(options.file)
    fetch(options.model)
    strategies = options.strategy or ["cpu bf16"]
    if options.compare:
        strategies = [REFERENCE, *strategies]
        found = _evaluate(strategies, data, options)
    else:  # one model in memory at a time
        found = [_evaluate([strategy], data, options)[0] for strategy in strategies]
    rows = [
        _row(strategy, one, options.compare)
        for strategy, one in zip(strategies, found, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{found[0].tokens:,} tokens predicted")
        print("\n".join(_table(rows)))


def _evaluate(strategies: list[str], data: bytes, options: argparse.Namespace) -> list[Comparison]:
    with Bar("loading") as bar:
        engines = [
            Engine(
                options.model,
                strategy,
                threads=options.threads,
                pin=options.pin,
                tokenizer=options.tokenizer,
                adapters=options.adapter,
                progress=bar.update,
            )
            for strategy in strategies
        ]
    tokens = engines[0].tokenizer.encode(data)[: options.tokens]
    with Bar("reading") as bar:
        return compare(engines[0], engines[1:], tokens, bar.update)


def _row(strategy: str, found: Comparison, compared: bool) -> dict[str, Any]:
    row = {"strategy": strategy, **dataclasses.asdict(found)}
    if not compared:
        for name in ("kl_divergence", "largest_kl_divergence", "top1_agreement"):
            del row[name]
    return row


def _table(rows: list[dict[str, Any]]) -> list[str]:
    formats = {
        "strategy": ("strategy", "{}"),
        "perplexity": ("perplexity", "{:.4f}"),
        "kl_divergence": ("KL divergence", "{:.3g}"),
        "largest_kl_divergence": ("largest", "{:.3g}"),
        "top1_agreement": ("top-1 agreement", "{:.2%}"),
    }
    columns = [
        [title, *(form.format(row[name]) for row in rows)]
        for name, (title, form) in formats.items()
        if name in rows[0]
    ]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in zip(*columns, strict=True)
    ]
