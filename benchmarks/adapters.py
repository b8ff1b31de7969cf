"""Adapters of single states, beside the weights: what a decoded token of a batch costs with them, against without.

    python benchmarks/adapters.py [--shape 0.1B] [--threads N] [--precisions int8 bf16] [--ranks 16 64] [--batch 8]
                                  [--tokens 8] [--rounds 7]

Random LoRA of all matrices of the layers. Batches of one state and of `--batch` states, of which neighbours have
different adapters, each round first without any. What a state of a batch gets is compared with what it gets alone, ==.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np

import common
import rwkv_engine as rwkv


def adapter_file(folder: pathlib.Path, config: rwkv.Config, rank: int, seed: int) -> rwkv.Adapter:
    import checkpoint_files

    path = folder / f"{rank}-{seed}.pth"
    if path.exists():
        return rwkv.Adapter(path, alpha=rank)
    c, f = config.n_embd, config.n_ffn
    shapes = {f"att.{q}": (c, c) for q in ("receptance", "key", "value", "output")} | {"ffn.key": (f, c), "ffn.value": (c, f)}
    random, tensors = np.random.default_rng(seed), {}
    for layer in range(config.n_layer):
        for name, (rows, cols) in shapes.items():
            module = f"blocks.{layer}.{name}"
            tensors[module + ".lora_A"] = random.standard_normal((rank, cols), np.float32) * cols**-0.5
            tensors[module + ".lora_B"] = random.standard_normal((rows, rank), np.float32) * 0.1
    checkpoint_files.write_pth(path, tensors, dtype="bf16")
    return rwkv.Adapter(path, alpha=rank)


def run(a: argparse.Namespace, engine: rwkv.Engine, precision: str, rank: int, folder: pathlib.Path) -> list[dict[str, object]]:
    adapters = [engine.load_adapter(adapter_file(folder, engine.config, rank, i)) for i in range(a.batch)]
    settings = [(batch, count) for batch in (1, a.batch) for count in (0, 1, 2, a.batch) if count <= batch]

    def begin(batch: int, count: int) -> list[rwkv.State]:
        states = [engine.new_state(adapter=adapters[i % count] if count else None) for i in range(batch)]
        engine.forward_batch([[i + 1] for i in range(batch)], states)
        return states

    def steps(states: list[rwkv.State]) -> np.ndarray:
        for t in range(a.tokens):
            rows = engine.forward_batch([[i + t + 2] for i in range(len(states))], states)
        return rows

    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(a.rounds + 1):  # the first round warms up
        for setting in settings:
            states = begin(*setting)
            seconds[setting].append(common.timed(lambda: steps(states)) / a.tokens)
    for batch, count in settings:
        together, alone = steps(begin(batch, count)), begin(batch, count)[-1]
        for t in range(a.tokens):
            row = engine.forward([batch + t + 1], alone)
        assert (row == together[-1]).all(), "a state of a batch differs from one alone"
    return [
        {
            "precision": precision,
            "rank": rank,
            "batch": batch,
            "adapters": count,
            "milliseconds_per_step": common.rounded(1e3 * common.median(seconds[batch, count][1:])),
            "times_without": common.rounded(common.median(found)),
            "times_without_lowest_highest": common.lowest_highest(found),
            "adapter_megabytes": common.rounded(adapters[0].nbytes / 1e6),
        }
        for batch, count in settings
        for found in [common.ratios(seconds[batch, count][1:], seconds[batch, 0][1:])]
    ]


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--precisions", nargs="+", default=["int8", "bf16"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    a = common.parse(parser, "a minute", quick={"ranks": [4], "batch": 3, "tokens": 2, "rounds": 1})
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in a.precisions:
            engine = rwkv.Engine(common.model_file(a.shape, "bf16"), f"cpu {precision}", threads=a.threads)
            for rank in a.ranks:
                results += run(a, engine, precision, rank, pathlib.Path(folder))
    common.record(f"adapters-{a.shape}-{a.threads}t", a, engine, results)


if __name__ == "__main__":
    main()
