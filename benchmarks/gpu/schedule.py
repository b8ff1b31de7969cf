"""What is asked of engines on a GPU, in the order of its worth: each run is a process of its own (engine.py), so that one
that fails or hangs loses no other, and gpu-engine.json is written after every line that comes.

    python benchmarks/gpu/schedule.py [--seconds 240] [--zeros 88] [--folder /dev/shm] [--quick]

The first runs tell which features work on this device, with the bits of the plain one; the fastest of those are the ones
that all others use.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

import results  # first, as it finds common

import common
import models
import numpy as np
from engine import CHECKED

import rwkv_engine as rwkv

ENGINE = pathlib.Path(__file__).with_name("engine.py")
FEATURES = ("graphs,pdl", "graphs", "")  # the fastest first, the last one for whoever can do nothing else
BEST = "best"
DECODE = ("decode:1", "sampled:1", "steps:1", "logits:1")
PREFILL = ("prefill:1x1024", "prefill:1x4096", "prefill:8x1024")
BATCH = ("decode:32", "decode:8", "decode:64", "decode:256", "steps:32", "steps:256", "fork:1", "fork:32", "decode:960")
ALL = (*DECODE, *PREFILL, *BATCH)
WITH_CPU = ("0.1B", "1.5B", "tiny")  # where the CPU has its logits at once


@dataclass(frozen=True)
class Run:
    """One engine, what is asked of it, and the seconds that it may take."""

    shape: str
    precision: str
    features: str  # BEST, or BEST and more
    tasks: tuple[str, ...]
    seconds: float
    dense: bool = False


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a step goes (breakdown.py)."""

    shape: str
    seconds: float


RUNS: list[Run | Breakdown] = [
    *(Run("0.1B", "fp16", features, ("decode:1", "prefill:1x1024", "decode:32"), 25) for features in ("", "graphs")),
    Run("0.1B", "fp16", "graphs,pdl", ALL, 40),
    Run("1.5B", "fp16", BEST, ALL, 60),
    Run("7.2B", "fp16", BEST, ALL, 90),
    Breakdown("1.5B", 60),
    Run("1.5B", "fp16", f"{BEST},cublaslt", PREFILL, 30),
    Run("1.5B", "fp16", "", ("decode:1", "decode:32", "prefill:1x1024"), 30),
    Run("1.5B", "fp16 state16", BEST, ("decode:256", "decode:960", "decode:64"), 30),
    Run("1.5B", "fp16", BEST, ("decode:1", "decode:8", "decode:32"), 25, dense=True),
    Run("1.5B", "fp16", f"{BEST},nofused", ("decode:1", "decode:8"), 20),
    Run("1.5B", "fp16", f"{BEST},noranks", ("decode:1", "decode:8", "decode:32", "decode:64"), 20),
    Run("1.5B", "fp16i8", BEST, ("decode:1", "decode:8", "decode:32", "prefill:1x1024"), 30),
    Run("7.2B", "fp16", f"{BEST},cublaslt", PREFILL, 40),
    Run("7.2B", "fp16 state16", BEST, ("decode:256", "decode:960"), 60),
    Run("1.5B", "fp16i4", BEST, ("decode:1", "decode:8", "decode:32", "prefill:1x1024"), 30),
    Run("7.2B", "fp16i8", BEST, ("decode:1", "decode:8", "decode:32"), 40),
    Run("0.1B", "fp16", BEST, ("decode:1",), 20, dense=True),
    Run("7.2B", "fp16", BEST, ("decode:1",), 40, dense=True),
    Run("1.5B", "bf16", BEST, ("decode:1", "decode:32", *PREFILL), 30),
    Run("2.9B", "fp16", BEST, (*DECODE[:1], *PREFILL, "decode:32", "decode:256"), 50),
    Run("0.4B", "fp16", BEST, (*DECODE[:1], *PREFILL, "decode:32", "decode:256"), 40),
]
QUICK = [
    Run("tiny", "fp16", "", ("decode:3", "prefill:1x9"), 60),
    Run("tiny", "fp16", "graphs,pdl", ("decode:1", "sampled:2", "steps:3", "logits:1", "prefill:2x5", "fork:1"), 60),
    Run("tiny", "fp16i8", BEST, ("decode:1",), 60, dense=True),
]


class Schedule:
    """Models that are made when they are first wanted, the runs so far, and what came of them."""

    def __init__(self, a: argparse.Namespace, folder: pathlib.Path) -> None:
        self.a, self.folder = a, folder
        self.rows: list[dict[str, object]] = []
        self.checks: list[dict[str, object]] = []
        self.zeros: dict[str, float] = {}
        self.expected: dict[str, np.ndarray | None] = {}
        self.plain: dict[tuple[str, str], bytes] = {}  # logits of a shape and precision without features
        self.works: set[str] = set()

    def keep(self) -> None:
        settings = {"zeros": self.a.zeros, "seconds": self.a.seconds, "ffn_zero_fraction": self.zeros}
        results.write("engine", settings, self.rows, checks=self.checks)

    def model(self, shape: str) -> pathlib.Path:
        path, zeros = models.model(self.folder, shape, self.a.zeros / 100)
        if shape not in self.zeros:
            self.zeros[shape] = common.rounded(zeros)
            self.expected[shape] = None
            if shape in WITH_CPU:
                cpu = rwkv.Engine(path, "cpu fp32")
                self.expected[shape] = cpu.forward(CHECKED, cpu.new_state(), output="all")
        return path

    def best(self) -> str:
        return next((features for features in FEATURES if features in self.works), "")

    def run(self, run: Run) -> None:
        best = self.best()
        features = ",".join(filter(None, run.features.replace(BEST, best).split(",")))
        about: dict[str, object] = {
            "shape": run.shape,
            "precision": run.precision,
            "features": features,
            "skipping": not run.dense,
        }
        check: dict[str, object] = {**about, "error": None}
        path = self.model(run.shape)
        logits = self.folder / "logits.npy"
        logits.unlink(missing_ok=True)
        command = [sys.executable, ENGINE, path, "--shape", run.shape, "--strategy", f"cuda {run.precision}"]
        command += ["--features", features, "--zeros", self.zeros[run.shape], "--logits", logits]
        command += ["--dense"] * run.dense + ["--quick"] * self.a.quick + ["--tasks", *run.tasks]
        seconds = max(min(run.seconds, self.a.end - time.monotonic()), 1)
        killed = threading.Event()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True)
            timer = threading.Timer(seconds, lambda: (killed.set(), process.kill()))
            timer.start()
            for line in process.stdout or ():
                self.take(line, about, check, logits)
            status = process.wait()
            timer.cancel()
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if killed.is_set():
            check["error"] = f"no end after {seconds:.0f} s"
            check["cut"] = seconds < run.seconds  # by the end of all
        elif status != 0:
            check["error"] = said[-1] if said else f"exit status {status}"
        if check.get("same_bits") and not killed.is_set():
            self.works.add(features)
        self.checks.append(check)
        self.keep()
        common.note(f"{run.shape} {run.precision} {features or 'plain'}: {check['error'] or 'done'}")

    def take(self, line: str, about: dict[str, object], check: dict[str, object], logits: pathlib.Path) -> None:
        """A line of a run, which may have been cut short."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if "check" in said:
            check |= said["check"]
            self.compare(check, logits)
        else:
            self.rows.append({**about, **said["row"]})
        self.keep()

    def break_down(self, it: Breakdown) -> None:
        command = [sys.executable, ENGINE.with_name("breakdown.py"), self.model(it.shape), "--shape", it.shape]
        seconds = max(min(it.seconds, self.a.end - time.monotonic()), 1)
        command += ["--features", self.best(), "--seconds", str(max(seconds - 5, 1))]
        try:
            subprocess.run(command, stdout=sys.stderr, timeout=seconds)
        except subprocess.TimeoutExpired:
            common.note(f"{it.shape}: the breakdown had no end after {seconds:.0f} s")

    def compare(self, check: dict, logits: pathlib.Path) -> None:
        found, expected = np.load(logits), self.expected[check["shape"]]
        if expected is not None:
            difference = np.abs(found - expected).max() / np.abs(expected).max()
            check["largest_logit_difference"] = common.rounded(float(difference))
        first = self.plain.setdefault((check["shape"], check["precision"]), found.tobytes())
        check["same_bits"] = bool(np.isfinite(found).all()) and first == found.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="after which all have ended")
    parser.add_argument("--zeros", type=float, default=88, metavar="PERCENT", help="of ffn activations")
    parser.add_argument("--folder", type=pathlib.Path, help="for the models, which stay there; by default one of its own")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    a = parser.parse_args()
    a.end = time.monotonic() + a.seconds
    with tempfile.TemporaryDirectory() as own:
        schedule = Schedule(a, a.folder or pathlib.Path(own))
        schedule.keep()  # which asks the machine what it is, now that nothing is measured
        runs: list[Run | Breakdown] = [*QUICK] if a.quick else RUNS
        for run in runs:
            if a.end - time.monotonic() < 5:
                common.note("no time is left")
                break
            if isinstance(run, Breakdown):
                schedule.break_down(run)
            else:
                schedule.run(run)
        whole = [check for check in schedule.checks if not check.get("cut")]
        failed = [check for check in whole if check["error"] or not check.get("same_bits")]
        return 1 if failed or not schedule.checks else 0


if __name__ == "__main__":
    sys.exit(main())
