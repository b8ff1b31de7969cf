"""Where the time of a step goes: kernel by kernel, and what lies between them.

    python benchmarks/gpu/breakdown.py MODEL --shape 1.5B [--features graphs,pdl] [--batches 1 32] [--prompts 1024]

torch's profiler, if torch is there, notes when each kernel began and ended, also those of launch graphs: a row for each
kind of kernel of a step, and one of the time in which none ran. Nsight Compute (`ncu`), if it is there, reads the
counters of the kernels of one step, each by itself: the bytes that it read and wrote, and so its bandwidth.
"""

from __future__ import annotations

import argparse
import collections
import csv
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import results  # first, as it finds common

import common
import numpy as np

import rwkv_engine as rwkv

STEPS = 8
METRICS = ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum")
MOST_KERNELS = 400  # that ncu looks at


def stepper(engine: rwkv.Engine, batch: int, length: int):
    """A call of so many sequences; more than one token each: from an empty state."""
    states = [engine.new_state() for _ in range(batch)]
    tokens = np.random.default_rng(0).integers(1, engine.config.n_vocab, (batch, length))
    if length == 1:
        return lambda: engine.forward_batch(tokens, states)
    return lambda: engine.forward_batch(tokens, [state.fork() for state in states])


def kernel_name(name: str) -> str:
    """Without namespaces, parameters and return type: small<Stored::f16, 1, 1>."""
    name = re.sub(r"\(rwkv::cuda::Stored\)", "", re.sub(r"^void ", "", name))
    return re.sub(r"\(.*", "", name.replace("rwkv::cuda::", ""))[:60]


def timeline(what: str, call, steps: int) -> list[dict[str, object]]:
    """Of the kernels of some calls, by torch's profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    for _ in range(8):
        call()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            call()
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if str(event.device_type).endswith("CUDA")]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    if not spans:
        raise RuntimeError("the profiler saw no kernels")
    busy, until = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    whole = until - spans[0][0]
    count, time = collections.Counter(), collections.Counter()
    for event in kernels:
        count[kernel_name(event.name)] += 1
        time[kernel_name(event.name)] += event.time_range.end - event.time_range.start
    rows = [row(what, name, count[name] / steps, took / steps, whole / steps) for name, took in time.most_common()]
    return [*rows, row(what, "(no kernel)", 0, (whole - busy) / steps, whole / steps)]


def row(what: str, kernel: str, launches: float, microseconds: float, whole: float) -> dict[str, object]:
    return {
        "what": what,
        "kernel": kernel,
        "launches": common.rounded(launches),
        "microseconds": common.rounded(microseconds),
        "share": common.rounded(microseconds / whole),
    }


def counters(a: argparse.Namespace, batch: int, length: int) -> list[dict[str, object]]:
    """The same of ncu, which runs this program once more; the clocks of the device stay as they are."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    command = [ncu, "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off"]
    command += ["--metrics", ",".join(METRICS), "--launch-count", str(MOST_KERNELS)]
    command += [sys.executable, __file__, a.model, "--shape", a.shape, "--alone", f"{batch}x{length}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*map(str, command)], stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            said, errors = process.communicate(timeout=max(a.end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it runs
            raise
    lines = [line for line in said.splitlines() if line.startswith('"')]
    if process.returncode != 0 or len(lines) < 3:
        raise RuntimeError((errors or said).strip()[-300:] or "ncu said nothing")
    return table_of(lines, f"{batch}x{length}")


def table_of(lines: list[str], what: str) -> list[dict[str, object]]:
    """Rows of the csv: names, units, then a line for each kernel."""
    names, units, *values = csv.reader(lines)
    scale = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6}
    sums = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for line in values:
        cells = dict(zip(names, line, strict=False))
        of = {name: scale.get(unit, 1) for name, unit in zip(names, units, strict=False)}
        seconds, read, written = (float(cells[name].replace(",", "")) * of[name] for name in METRICS)
        for i, value in enumerate((1, seconds, read + written)):
            sums[kernel_name(cells["Kernel Name"])][i] += value
    whole = sum(seconds for _, seconds, _ in sums.values())
    rows = []
    for name, (count, seconds, moved) in sorted(sums.items(), key=lambda item: -item[1][1]):
        found = row(f"{what} alone", name, count, 1e6 * seconds, 1e6 * whole)
        rows.append(found | {"gigabytes_per_second": common.rounded(moved / max(seconds, 1e-9) / 1e9)})
    return rows


def alone(a: argparse.Namespace) -> None:
    """One call between the marks that ncu waits for."""
    import ctypes

    batch, length = map(int, a.alone.split("x"))
    call = stepper(rwkv.Engine(a.model, "cuda fp16"), batch, length)
    for _ in range(2):
        call()
    runtime = ctypes.CDLL(next(str(path) for path in runtimes() if path.exists()))
    runtime.cudaProfilerStart()
    call()
    runtime.cudaProfilerStop()


def runtimes():
    """Where libcudart may be."""
    yield from pathlib.Path("/usr/local/cuda/lib64").glob("libcudart.so*")
    for folder in sys.path:
        yield from pathlib.Path(folder, "nvidia").glob("*/lib/libcudart.so*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--shape", required=True, choices=common.SHAPES)
    parser.add_argument("--features", default="")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--prompts", nargs="*", type=int, default=[1024])
    parser.add_argument("--seconds", type=float, default=40, help="for everything")
    parser.add_argument("--alone", help="a single call, for ncu")
    a = parser.parse_args()
    a.end = time.monotonic() + a.seconds
    os.environ["RWKV_CUDA_FEATURES"] = a.features
    if a.alone:
        return alone(a) or 0
    rows: list[dict[str, object]] = []
    left_out: dict[str, str] = {}

    def attempt(name: str, work) -> None:
        try:
            rows.extend(work())
        except Exception as error:  # whatever a tool does, the others are asked
            left_out[name] = f"{type(error).__name__}: {error}"[:500]
            common.note(f"{name}: {left_out[name]}")
        results.write("breakdown", {"shape": a.shape, "features": a.features}, rows, left_out=left_out)

    engine = rwkv.Engine(a.model, "cuda fp16")
    calls = [(batch, 1) for batch in a.batches] + [(1, length) for length in a.prompts]
    for batch, length in calls:
        call, what, steps = stepper(engine, batch, length), f"{batch}x{length}", STEPS if length == 1 else 2
        attempt(f"torch {what}", functools.partial(timeline, what, call, steps))
    del engine, call
    for batch, length in calls:
        attempt(f"ncu {batch}x{length}", functools.partial(counters, a, batch, length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
