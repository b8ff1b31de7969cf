"""This engine, llama.cpp and the `rwkv` package on the same random weights, in interleaved rounds.

    python benchmarks/compare.py [--shape 0.1B] [--threads N] [--zeros 50 86] [--peers llama.cpp rwkv]
                                 [--precisions fp32 fp16 bf16 int8 int4] [--rounds 5] [--tokens 24] [--prompt 512]
                                 [--loads 3]

Programs of one width run in turns, each in a process of its own (runners.py), of which one computes at a time. LLAMA_PYTHON
and RWKV_PYTHON in the environment name interpreters that have the peers, if this one does not. RWKV_ISA holds the engine and the peaks to an instruction set, which becomes part of
the result's name; the peers are as they were built.

Below 32 bits the engine runs twice: as "int8" it reads all weights, as "int8 skipping" it skips those of zero ffn
activations where that pays.

Everybody reads the same tokens. The engine must give the same bits in every round, skipping or not, and everybody's
logits must be those of the engine in float32, as exactly as their width allows.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

import common
import rwkv_engine as rwkv

ENGINE = "rwkv_engine"
INTERPRETERS = {"llama.cpp": "LLAMA_PYTHON", "rwkv": "RWKV_PYTHON"}
# Precision of the engine -> bits of a weight, and who is compared with it.
OPPONENTS = {
    "fp32": (32, [("llama.cpp", "f32"), ("rwkv", "fp32")]),
    "bf16": (16, [("llama.cpp", "f16"), ("llama.cpp", "bf16"), ("rwkv", "bf16")]),
    "fp16": (16, [("llama.cpp", "f16")]),
    "int8": (8, [("llama.cpp", "q8_0")]),
    "int4": (4, [("llama.cpp", "q4_0")]),
}
# Of the largest logit. Random weights magnify what is rounded: with 4 bits of them nothing can be told at 1.5B.
TOLERANCES = {32: 0.01, 16: 0.3, 8: 1.0, 4: float("inf")}
CHECKED = list(range(1, 17))
DECODED_AFTER = list(range(1, 9))
WARM_UP = 2  # rounds; torch compiles in both
PAUSE = 0.05  # seconds in which threads that wait for more work go to sleep


class Process:
    """A runner in its process. Attributes are its methods: process.prefill([1, 2, 3])."""

    def __init__(self, runner: str, threads: int) -> None:
        python = os.environ.get(INTERPRETERS.get(runner, ""), sys.executable)
        program = pathlib.Path(__file__).with_name("runners.py")
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [python, program, runner, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.greeting = self._answer()

    def __getattr__(self, method: str):
        def tell(*arguments):
            time.sleep(PAUSE)
            print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
            return self._answer()

        return tell

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *raised) -> None:
        if any(raised):
            self._process.kill()
        self._process.communicate()
        self._errors.close()


@dataclass
class Entry:
    """What was measured of a runner at one precision."""

    runner: str
    precision: str
    process: Process
    file: str
    difference: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"load": [], "decode": [], "prefill": []})
    answers: set[tuple[str, str]] = field(default_factory=set)


def installed(peers: list[str]) -> list[str]:
    found = []
    for peer in peers:
        with Process(peer, 1) as process:
            missing = process.greeting.get("missing")
        if missing:
            common.note(f"{peer} is left out, as it is not installed: {missing}")
        else:
            found.append(peer)
    return found


@contextlib.contextmanager
def entries(a, path: pathlib.Path, precision: str) -> Iterator[list[Entry]]:
    """The engine and its opponents, with their processes and files. The files of llama.cpp are written for it and then removed."""
    others = [(runner, kind) for runner, kind in OPPONENTS[precision][1] if runner in a.peers]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=common.BUILD)))
        found = []
        own = [precision] if precision in ("fp32", "int4") else [precision, f"{precision} skipping"]
        for runner, kind in [*((ENGINE, kind) for kind in own), *others]:
            file = path
            if runner == "llama.cpp":
                file = folder / f"{kind}.gguf"
                rwkv.convert(path, file, kind)
            found.append(Entry(runner, kind, stack.enter_context(Process(runner, a.threads)), str(file)))
        yield found


def measure(a, found: list[Entry], width: int, limits: common.Limits, expected: np.ndarray | None):
    """Runs them in turns; returns the bandwidths and peaks of the rounds, and the logits of the engine."""
    for entry in found:
        common.read_file(pathlib.Path(entry.file), a.threads)  # into the page cache
    for _ in range(a.loads):
        for entry in found:
            entry.seconds["load"].append(entry.process.load(entry.file, entry.precision))
    with tempfile.TemporaryDirectory() as folder:
        for entry in found:
            name = str(pathlib.Path(folder, "logits.npy"))
            entry.process.save_logits(CHECKED, name)
            logits = np.load(name)
            expected = logits if expected is None else expected  # the first is the engine's
            entry.difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
            assert entry.difference < TOLERANCES[width], f"{entry.runner} {entry.precision} computes another model"

    random = np.random.default_rng(0)
    prompt, tokens = (random.integers(1, len(expected), n).tolist() for n in (a.prompt, a.tokens))
    bandwidths, peaks = [], []
    for round_ in range(WARM_UP + a.rounds):
        bandwidth, peak = limits.read_bandwidth(a.threads), limits.peak(max(width, 8), a.threads)
        if round_ >= WARM_UP:
            bandwidths.append(bandwidth)
            peaks.append(peak)
        for task, arguments in {"decode": (DECODED_AFTER, tokens), "prefill": (prompt,)}.items():
            for i in range(len(found)):
                entry = found[(i + round_) % len(found)]  # everybody comes first in turn
                seconds, digest = getattr(entry.process, task)(*arguments)
                if round_ >= WARM_UP:
                    entry.seconds[task].append(seconds)
                    entry.answers.add((task, digest))
    answers = set().union(*(entry.answers for entry in found if entry.runner == ENGINE))
    assert len(answers) == 2, "the answers of the engine changed between rounds, or by skipping"
    return bandwidths, peaks, expected


def row(a, entry: Entry, found: list[Entry], width: int, zeros: float, operations: float, bandwidths, peaks):
    engine, skipping = found[0], next((e for e in found if e.precision.endswith("skipping")), None)
    skips = None if skipping in (None, entry) else common.ratios(entry.seconds["decode"], skipping.seconds["decode"])
    about, memory, streamed = (getattr(entry.process, name)() for name in ("about", "memory", "streamed_bytes"))
    decode, prefill = entry.seconds["decode"], entry.seconds["prefill"]
    read = [streamed * a.tokens / s / 1e9 / bandwidth for s, bandwidth in zip(decode, bandwidths, strict=True)]
    computed = [operations * a.prompt / s / 1e9 / peak for s, peak in zip(prefill, peaks, strict=True)]
    ratios = {
        task: None if entry.runner == ENGINE else common.ratios(entry.seconds[task], engine.seconds[task])
        for task in ("decode", "prefill")
    }
    return {
        "runner": entry.runner,
        "version": about["version"],
        "uses": about["uses"],
        "ffn_zero_fraction": common.rounded(zeros),
        "bits": width,
        "precision": entry.precision,
        "engine_precision": engine.precision,
        "largest_logit_difference": common.rounded(entry.difference),
        "load_seconds": common.rounded(common.median(entry.seconds["load"])),
        "highest_resident_megabytes": common.rounded(memory["highest"] / 1e6),
        "anonymous_megabytes": common.rounded(memory["anonymous"] / 1e6),
        "decode_tokens_per_second": common.rounded(a.tokens / common.median(decode)),
        "megabytes_per_token": common.rounded(streamed / 1e6),
        "read_bandwidth_gigabytes_per_second": common.rounded(common.median(bandwidths)),
        "share_of_read_bandwidth": common.rounded(common.median(read)),
        "decode_times_faster": ratios["decode"] and common.rounded(common.median(ratios["decode"])),
        "decode_lowest_highest": ratios["decode"] and common.lowest_highest(ratios["decode"]),
        "skipping_times_faster": skips and common.rounded(common.median(skips)),
        "skipping_lowest_highest": skips and common.lowest_highest(skips),
        "prefill_tokens_per_second": common.rounded(a.prompt / common.median(prefill)),
        "peak_gigaops": common.rounded(common.median(peaks)),
        "share_of_peak": common.rounded(common.median(computed)),
        "prefill_times_faster": ratios["prefill"] and common.rounded(common.median(ratios["prefill"])),
        "prefill_lowest_highest": ratios["prefill"] and common.lowest_highest(ratios["prefill"]),
    }


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--zeros", type=int, nargs="+", default=[50, 86], metavar="PERCENT", help="of ffn activations")
    parser.add_argument("--peers", nargs="*", choices=INTERPRETERS, help="default: all, none in a quick run")
    parser.add_argument("--precisions", nargs="+", choices=OPPONENTS, default=list(OPPONENTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in each round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill")
    parser.add_argument("--loads", type=int, default=3)
    quick = {"rounds": 1, "tokens": 3, "prompt": 40, "loads": 1}
    a = common.parse(parser, "3 minutes at 0.1B and half an hour at 1.5B", quick)
    if a.peers is None:
        a.peers = [] if a.quick else list(INTERPRETERS)
    a.peers, limits = installed(a.peers), common.Limits(a.quick)
    precisions = common.known_precisions(a.precisions)
    results = []
    for percent in a.zeros:
        path, zeros = common.model_with_zeros(a.shape, percent)
        common.note(f"{zeros:.1%} of the ffn's activations are zero")
        operations = common.operations_per_token(rwkv.Engine(path).config, a.shape)
        expected = None
        for precision in precisions:
            width = OPPONENTS[precision][0]
            with entries(a, path, precision) as found:
                bandwidths, peaks, expected = measure(a, found, width, limits, expected)
                results += [row(a, e, found, width, zeros, operations, bandwidths, peaks) for e in found]
    a.isa = os.environ.get("RWKV_ISA")
    name = "-".join(filter(None, ["compare", a.shape, f"{a.threads}t", a.isa]))
    common.record(name, a, rwkv.Engine("demo", threads=a.threads), results)


if __name__ == "__main__":
    main()
