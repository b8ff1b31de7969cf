"""Where the benchmarks on a GPU leave what they found: gpu-NAME.json, with the machine."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

QUERY = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm", "clocks.max.memory")


def folder() -> pathlib.Path:
    """$OUT, or benchmarks/results."""
    return pathlib.Path(os.environ.get("OUT") or pathlib.Path(__file__).resolve().parent.parent / "results")


def write(name: str, settings: dict[str, object], results: list[dict[str, object]], **more: object) -> None:
    """Again after every part of a run, so that what ends early leaves what it had."""
    document = {"benchmark": f"gpu {name}", "machine": machine(), "settings": settings, **more, "results": results}
    path = folder() / f"gpu-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.rename(path)


def read(name: str) -> dict | None:
    """What a benchmark before this one has written; None where it did not."""
    try:
        return json.loads((folder() / f"gpu-{name}.json").read_text())
    except (OSError, ValueError):
        return None


@functools.cache
def machine() -> dict[str, object]:
    """Of the first GPU and its host, as far as they tell. They are asked once: that may take a second of the driver."""
    smi = _output("nvidia-smi", "--id=0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader")
    values = smi.split(", ") if smi else [None] * len(QUERY)
    compiler = _output("nvcc", "--version")
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return {
        "gpu": dict(zip(QUERY, values, strict=False)),
        "nvcc": compiler.splitlines()[-1] if compiler else None,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _output(*command: str) -> str:
    """Nothing where there is no such program, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
