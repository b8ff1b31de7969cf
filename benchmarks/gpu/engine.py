"""The engine on a GPU at one shape: decode in batches, prefill, and steps after a fork, beside what the device allows.

    python benchmarks/gpu/engine.py [--shape 1.5B] [--zeros 88] [--seconds 60] [--folder /dev/shm] [--quick]

A time is that of whole calls from Python, the logits' way to the host and the choice of the next token included: a run
of many in each of five rounds, of which the median counts. Every token is the most likely one after the one before, so
no step can begin early. "steps" are the same without logits and head, with tokens that were chosen beforehand.

What a device allows takes gpu-probes.json from $OUT: bytes of weights over the bandwidth of reads and bytes of states
over that of copies, or operations over the peak of the instructions that multiply.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time
from dataclasses import dataclass

import results  # first, as it finds common

import common
import models
import numpy as np

import rwkv_engine as rwkv

ALL = ((1, 8, 32, 64, 256, 960), ((1, 1024), (1, 4096), (8, 1024)))
# A graph is made of what has come for the third time, and there are two slots for each state.
SETTINGS = {"rounds": 5, "warm_up": 8, "round_seconds": 0.1, "forks": 40}
QUICK = {"rounds": 1, "warm_up": 1, "round_seconds": 0.0, "forks": 1}
FEATURES = ("graphs,pdl", "")
CUBLASLT = "graphs,pdl,cublaslt"  # for long prompts, if the library is there
UNFUSED = "graphs,pdl,nofused"  # which is the same for many tokens
WIDTHS = {"fp16": 2, "bf16": 2, "fp16i8": 66 / 64, "fp16i4": 34 / 64}  # bytes of a weight, its scale included
STORED = {"fp16i8": "int8", "fp16i4": "int4"}
CHECKED = list(range(1, 17))


@dataclass(frozen=True)
class Run:
    """One engine and what is asked of it."""

    precision: str
    features: str
    skipping: bool
    batches: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]  # sequences, tokens of each


class Bench:
    """An engine that is open, and the rows that were measured with it."""

    def __init__(self, a: argparse.Namespace, run: Run, path: pathlib.Path, zeros: float) -> None:
        os.environ["RWKV_CUDA_FEATURES"] = run.features
        self.a, self.run, self.zeros = a, run, zeros
        self.engine = rwkv.Engine(path, f"cuda {run.precision}", sparse=run.skipping)
        config = self.engine.config
        self.weights = common.streamed_bytes(config, a.shape, STORED.get(run.precision, run.precision))
        self.head = config.n_vocab * config.n_embd * WIDTHS["fp16i8" if run.precision == "fp16i4" else run.precision]
        self.skippable = config.n_layer * config.n_embd * config.n_ffn * WIDTHS[run.precision]
        self.limits = (results.read("probes") or {}).get("limits") or {}
        self.rows: list[dict[str, object]] = []

    def logits(self) -> np.ndarray:
        """Of one token after the other: what other engines must give as well."""
        state = self.engine.new_state()
        return np.array([self.engine.forward([token], state) for token in CHECKED])

    def measure(self) -> None:
        tasks = [(self.decode, batch) for batch in self.run.batches]
        tasks += [(self.prefill, *prompt) for prompt in self.run.prompts]
        if len(self.run.prompts):
            tasks += [(self.fork, batch) for batch in self.run.batches if batch in (1, 32)]
        for task, *sizes in tasks:
            if time.monotonic() > self.a.end:
                self.add(task.__name__, sizes[0], unfinished="no time was left")
                continue
            try:
                task(*sizes)
            except rwkv.Error as error:  # such as a device that has no room for so many states
                self.add(task.__name__, sizes[0], unfinished=str(error))

    def decode(self, batch: int) -> None:
        states = [self.engine.new_state() for _ in range(batch)]
        tokens = [[1 + s % (self.engine.config.n_vocab - 1)] for s in range(batch)]

        def greedy() -> None:
            nonlocal tokens
            tokens = self.engine.forward_batch(tokens, states).argmax(axis=1)[:, None].tolist()

        def blind() -> None:
            self.engine.forward_batch(tokens, states, output="none")

        copied = 2 * batch * states[0].nbytes
        skipped = self.skippable * self.zeros**batch if self.run.skipping else 0
        for task, step, read in (("decode", greedy, 0.0), ("steps", blind, self.head)):
            floor = self.floor(read=self.weights - skipped - read, copied=copied)
            self.add(task, batch, batch, *self.rounds(step), floor=floor, bytes=self.weights - skipped - read + copied)

    def prefill(self, sequences: int, length: int) -> None:
        tokens = np.random.default_rng(0).integers(1, self.engine.config.n_vocab, (sequences, length)).tolist()
        empty = self.engine.new_state()

        def read() -> None:
            self.engine.forward_batch(tokens, [empty.fork() for _ in range(sequences)])

        config, count = self.engine.config, sequences * length
        operations = count * common.operations_per_token(config, self.a.shape)
        operations += 2 * sequences * config.n_vocab * config.n_embd
        floor = self.floor(operations=operations)
        self.add("prefill", sequences, count, *self.rounds(read), floor=floor, length=length, operations=operations)

    def fork(self, batch: int) -> None:
        """The first step of forks and an ordinary one, in turns; a row says how long the former takes."""
        states = [self.engine.new_state() for _ in range(batch)]
        tokens = [[1 + s % 100] for s in range(batch)]

        def step(which) -> float:
            return common.timed(lambda: self.engine.forward_batch(tokens, which))

        step(states), step([state.fork() for state in states])
        pairs = [(step([state.fork() for state in states]), step(states)) for _ in range(self.a.forks)]
        branch, ordinary = (common.median(seconds) for seconds in zip(*pairs, strict=True))
        ratio = common.rounded(branch / ordinary)
        self.add("fork", batch, batch, [branch], 1, times_an_ordinary_step=ratio)

    def rounds(self, step) -> tuple[list[float], int]:
        """Seconds of a call in each round, and how many calls a round has."""
        begin = time.perf_counter()
        for _ in range(self.a.warm_up):
            last = common.timed(step)
            if time.perf_counter() - begin > 0.5:
                break
        calls = min(256, max(1, round(self.a.round_seconds / last)))
        return [common.timed(lambda: [step() for _ in range(calls)]) / calls for _ in range(self.a.rounds)], calls

    def floor(self, read: float = 0, copied: float = 0, operations: float = 0) -> float | None:
        """Seconds that the device needs at least, if the probes have told its limits."""
        try:
            if operations:
                return operations / (self.limits["mma_teraflops"] * 1e12)
            return read / (self.limits["read_gigabytes"] * 1e9) + copied / (self.limits["copy_gigabytes"] * 1e9)
        except KeyError:
            return None

    def add(self, task: str, batch: int, tokens: int = 0, seconds=(), calls: int = 0, floor=None, **more) -> None:
        row: dict[str, object] = {
            "task": task,
            "precision": self.run.precision,
            "features": self.run.features,
            "skipping": self.run.skipping,
            "batch": batch,
        }
        if seconds:
            middle = common.median(seconds)
            row |= {
                "tokens_per_second": common.rounded(tokens / middle),
                "lowest_highest": common.lowest_highest(tokens / s for s in seconds),
                "milliseconds": common.rounded(1e3 * middle),
                "calls": calls,
                "share_of_roofline": floor and common.rounded(floor / middle),
            }
        self.rows.append(row | more)


def runs(a: argparse.Namespace) -> list[Run]:
    """In the order of what matters, as time may end."""
    found = [Run("fp16", features, True, *a.sizes) for features in FEATURES]
    if a.quick:
        return [found[0], Run("fp16i8", "", True, (1,), ())]
    found.append(Run("fp16", UNFUSED, True, (1, 8), ()))
    found.append(Run("fp16", FEATURES[0], False, (1, 8), ()))
    found.append(Run("fp16", CUBLASLT, True, (), a.sizes[1]))
    if a.shape == "1.5B":
        others = ("bf16", "fp16i8", "fp16i4")
        found += [Run(precision, FEATURES[0], True, *a.sizes) for precision in others]
        found += [Run(precision, FEATURES[1], True, (1, 32), a.sizes[1][:1]) for precision in others]
    return found


def measure(a: argparse.Namespace, path: pathlib.Path, zeros: float) -> bool:
    """Whether all engines opened and computed."""
    expected = None
    if a.shape in ("0.1B", "0.4B", "1.5B", "tiny"):  # where the CPU has it at once
        cpu = rwkv.Engine(path, "cpu fp32")
        expected = cpu.forward(CHECKED, cpu.new_state(), output="all")
        del cpu
    rows: list[dict[str, object]] = []
    checks: list[dict[str, object]] = []
    first: dict[str, bytes] = {}
    settings = {"shape": a.shape, "seconds": a.seconds, "ffn_zero_fraction": common.rounded(zeros)}
    device = None

    def keep() -> None:
        results.write(f"engine-{a.shape}", settings, rows, device=device, checks=checks)

    for run in runs(a):
        if time.monotonic() > a.end:
            break
        begin = time.perf_counter()
        try:
            bench = Bench(a, run, path, zeros)
            loaded = time.perf_counter() - begin
            found = bench.logits()
        except rwkv.Error as error:
            checks.append({"precision": run.precision, "features": run.features, "skipping": run.skipping, "error": str(error)})
            common.note(f"{run.precision} {run.features}: {error}")
            keep()
            continue
        difference = None if expected is None else np.abs(found - expected).max() / np.abs(expected).max()
        checks.append(
            {
                "precision": run.precision,
                "features": run.features,
                "skipping": run.skipping,
                "load_seconds": common.rounded(loaded),
                "largest_logit_difference": None if difference is None else common.rounded(float(difference)),
                "same_bits": first.setdefault(run.precision, found.tobytes()) == found.tobytes(),
            }
        )
        device = bench.engine.description
        bench.measure()
        rows += bench.rows
        keep()
        del bench
    return not any("error" in check or not check["same_bits"] for check in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5B", choices=common.SHAPES)
    parser.add_argument("--zeros", type=float, default=88, metavar="PERCENT", help="of ffn activations")
    parser.add_argument("--seconds", type=float, default=60, help="after which nothing new is begun")
    parser.add_argument("--folder", type=pathlib.Path, help="for the model, which is removed afterwards")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    a = parser.parse_args()
    a.end, a.sizes = time.monotonic() + a.seconds, ALL
    if a.quick:
        a.shape, a.sizes = "tiny", ((1, 3), ((1, 9), (2, 5)))
    vars(a).update(QUICK if a.quick else SETTINGS)
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path = pathlib.Path(folder, "model.safetensors")
        begin = time.perf_counter()
        zeros = models.write_model(path, a.shape, a.zeros / 100, len(os.sched_getaffinity(0)))
        common.note(f"{a.shape}: made in {time.perf_counter() - begin:.1f} s, {zeros:.1%} of the ffn's activations are zero")
        return 0 if measure(a, path, zeros) else 1


if __name__ == "__main__":
    sys.exit(main())
