"""One engine on a GPU: decode, prefill, and steps after a fork, beside what the device allows. Prints a line of JSON as
soon as something is known.

    python benchmarks/gpu/engine.py MODEL --shape 1.5B [--strategy "cuda fp16"] [--features graphs,pdl] [--dense]
        [--zeros 0.88] [--tasks decode:1 steps:8 logits:1 prefill:1x1024 fork:32] [--quick]

MODEL is of models.py, whose zero fraction --zeros tells. "decode" are greedy texts of `generate_batch`, drawn on the
device: the time is what longer ones take more than shorter ones, of calls from Python as anybody makes them. "sampled"
are the same with the usual parameters instead; as models are random, all tokens are likely, the most work there is. "steps"
are calls that want nothing back, so without the head; "logits" those that bring the logits to the host, where the next
token is chosen. Of a fork it is the first step, with ordinary ones in turns.

What a device allows takes gpu-probes.json from $OUT: bytes of weights over the bandwidth of reads and bytes of states
over that of copies, or operations over the peak of the instructions that multiply.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import results  # first, as it finds common

import common
import numpy as np

import rwkv_engine as rwkv

# A graph is made of what has come for the third time, and there are two slots for each state.
SETTINGS = {"rounds": 5, "warm_up": 8, "round_seconds": 0.15, "most": 256, "forks": 40, "short": 6}
QUICK = {"rounds": 1, "warm_up": 1, "round_seconds": 0.0, "most": 8, "forks": 1, "short": 1}
WIDTHS = {"fp16": 2, "bf16": 2, "fp16i8": 66 / 64, "fp16i4": 34 / 64}  # bytes of a weight, its scale included
STORED = {"fp16i8": "int8", "fp16i4": "int4"}
CHECKED = list(range(1, 17))


class Bench:
    """An engine that is open, and what is measured with it."""

    def __init__(self, a: argparse.Namespace, folder: str) -> None:
        self.a = a
        begin = time.perf_counter()
        self.engine = rwkv.Engine(a.model, a.strategy, sparse=not a.dense, tokenizer=vocabulary(a.shape, folder))
        self.load_seconds = time.perf_counter() - begin
        config, precision = self.engine.config, a.strategy.split()[1]
        self.weights = common.streamed_bytes(config, a.shape, STORED.get(precision, precision))
        self.head = config.n_vocab * config.n_embd * WIDTHS["fp16i8" if precision == "fp16i4" else precision]
        self.skippable = config.n_layer * config.n_embd * config.n_ffn * WIDTHS[precision]
        self.limits = (results.read("probes") or {}).get("limits") or {}

    def check(self) -> dict[str, object]:
        """Logits of one token after the other: what other engines must give as well."""
        state = self.engine.new_state()
        found = np.array([self.engine.forward([token], state) for token in CHECKED])
        if self.a.logits:
            np.save(self.a.logits, found)
        return {"load_seconds": common.rounded(self.load_seconds), "device": self.engine.description}

    def decode(self, batch: int, task: str = "decode", **how: float) -> None:
        prompts = [[1 + s % (self.engine.config.n_vocab - 1)] for s in range(batch)]

        def texts(tokens: int) -> tuple[float, int]:
            params = rwkv.SamplingParams(max_tokens=tokens, ignore_eos=True, **(how or {"temperature": 0}))
            begin = time.perf_counter()
            found = self.engine.generate_batch(prompts, params)
            return time.perf_counter() - begin, sum(len(text.tokens) for text in found)

        few = self.a.short
        texts(few)
        per_step = (texts(2 * few)[0] - texts(few)[0]) / few
        more = int(min(max(self.a.round_seconds / max(per_step, 1e-5), 4), self.a.most))
        seconds = []
        for _ in range(self.a.rounds):
            (short, fewer), (long, tokens) = texts(few), texts(few + more)
            seconds.append((long - short) * batch / (tokens - fewer))  # of a step
        self.add_steps(task, batch, seconds, more, read=self.weights)

    def sampled(self, batch: int) -> None:
        self.decode(batch, "sampled", temperature=1, top_p=0.85, seed=1)

    def steps(self, batch: int) -> None:
        states = [self.engine.new_state() for _ in range(batch)]
        tokens = np.arange(1, batch + 1).reshape(batch, 1) % self.engine.config.n_vocab
        self.add_steps(
            "steps",
            batch,
            *self.rounds(lambda: self.engine.forward_batch(tokens, states, output="none")),
            read=self.weights - self.head,
        )

    def logits(self, batch: int) -> None:
        states = [self.engine.new_state() for _ in range(batch)]
        tokens = np.ones((batch, 1), np.int64)

        def greedy() -> None:
            nonlocal tokens
            tokens = self.engine.forward_batch(tokens, states).argmax(axis=1)[:, None]

        self.add_steps("logits", batch, *self.rounds(greedy), read=self.weights)

    def add_steps(self, task: str, batch: int, seconds: list[float], calls: int, read: float) -> None:
        copied = 2 * batch * self.engine.new_state().nbytes / (2 if "state16" in self.a.strategy else 1)
        read -= 0 if self.a.dense else self.skippable * self.a.zeros**batch
        self.add(task, batch, batch, seconds, calls, floor=self.floor(read=read, copied=copied), bytes=read + copied)

    def prefill(self, sequences: int, length: int) -> None:
        tokens = np.random.default_rng(0).integers(1, self.engine.config.n_vocab, (sequences, length))
        empty = self.engine.new_state()

        def read() -> None:
            self.engine.forward_batch(tokens, [empty.fork() for _ in range(sequences)])

        config, count = self.engine.config, sequences * length
        operations = count * common.operations_per_token(config, self.a.shape)
        operations += 2 * sequences * config.n_vocab * config.n_embd
        floor = self.floor(operations=operations)
        self.add("prefill", sequences, count, *self.rounds(read), floor=floor, length=length, operations=operations)

    def fork(self, batch: int) -> None:
        states = [self.engine.new_state() for _ in range(batch)]
        tokens = np.arange(1, batch + 1).reshape(batch, 1) % self.engine.config.n_vocab

        def step(which) -> float:
            return common.timed(lambda: self.engine.forward_batch(tokens, which, output="none"))

        for _ in range(self.a.warm_up):
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
        calls = int(min(max(self.a.round_seconds / last, 1), self.a.most))
        return [common.timed(lambda: [step() for _ in range(calls)]) / calls for _ in range(self.a.rounds)], calls

    def floor(self, read: float = 0, copied: float = 0, operations: float = 0) -> float | None:
        """Seconds that the device needs at least, if the probes have told its limits."""
        try:
            if operations:
                return operations / (self.limits["mma_teraflops"] * 1e12)
            return read / (self.limits["read_gigabytes"] * 1e9) + copied / (self.limits["copy_gigabytes"] * 1e9)
        except KeyError:
            return None

    def add(self, task: str, batch: int, tokens: int, seconds, calls: int, floor=None, **more) -> None:
        middle = common.median(seconds)
        row = {
            "task": task,
            "batch": batch,
            "tokens_per_second": common.rounded(tokens / middle),
            "lowest_highest": common.lowest_highest(tokens / s for s in seconds),
            "milliseconds": common.rounded(1e3 * middle),
            "calls": calls,
            "share_of_roofline": floor and common.rounded(floor / middle),
        }
        for key, rate, unit in (("bytes", "gigabytes_per_second", 1e9), ("operations", "teraflops", 1e12)):
            if key in more:
                row[rate] = common.rounded(more[key] / middle / unit)
        say(row=row | more)


def vocabulary(shape: str, folder: str) -> pathlib.Path | None:
    """None where the World vocabulary has as many words; else one of as many, of two bytes each."""
    count = common.SHAPES[shape].V
    if count == 65536:
        return None
    path = pathlib.Path(folder, "words.txt")
    path.write_text("".join(f"{i} {chr(97 + i // 26) + chr(97 + i % 26)!r} 2\n" for i in range(1, count)))
    return path


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--shape", required=True, choices=common.SHAPES)
    parser.add_argument("--strategy", default="cuda fp16")
    parser.add_argument("--features", default="")
    parser.add_argument("--dense", action="store_true", help="rows of zeros are not skipped")
    parser.add_argument("--zeros", type=float, default=0.5, help="share of the ffn's activations")
    parser.add_argument("--tasks", nargs="*", default=["decode:1"])
    parser.add_argument("--logits", type=pathlib.Path, help="a .npy for what the engine is checked by")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    vars(a).update(QUICK if a.quick else SETTINGS)
    os.environ["RWKV_CUDA_FEATURES"] = a.features
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a, folder)
        say(check=bench.check())
        for task in a.tasks:
            name, sizes = task.split(":")
            numbers = [int(n) for n in sizes.split("x")]
            try:
                getattr(bench, name)(*numbers)
            except rwkv.Error as error:  # such as a device that has no room for so many states
                more = {"length": numbers[1]} if len(numbers) > 1 else {}
                say(row={"task": name, "batch": numbers[0], "unfinished": str(error), **more})
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
