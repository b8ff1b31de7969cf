"""What the benchmarks share: random models of real shapes, the machine's measured limits, medians, results on disk."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "tests" / "reference")]

# L, C, ranks of w a v g; N = 64, F = 4 C, V = 65536. As the released models have them.
SHAPES = {
    "0.1B": (12, 768, (64, 64, 32, 128)),
    "0.4B": (24, 1024, (64, 64, 32, 128)),
    "1.5B": (24, 2048, (96, 96, 64, 256)),
}


def weights(shape: str, **changes) -> dict[str, np.ndarray]:
    """Random weights of a shape, float32 values that bf16 holds exactly."""
    from random_model import random_model

    layers, width, ranks = SHAPES[shape]
    options = {"L": layers, "C": width, "N": 64, "V": 65536, "ranks": ranks, "dtype": "bf16", **changes}
    return random_model(**options)


def model_file(shape: str, dtype: str, suffix: str = ".pth", **changes) -> pathlib.Path:
    """A checkpoint of random weights, written once and kept in build/benchmarks."""
    import checkpoint_files

    name = "-".join([shape, dtype, *(f"{k}{v}" for k, v in sorted(changes.items()))])
    path = BUILD / f"random-{name}{suffix}"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name("unfinished" + suffix)
        write = checkpoint_files.write_pth if suffix == ".pth" else checkpoint_files.write_safetensors
        write(unfinished, weights(shape, **changes), dtype=dtype)
        unfinished.rename(path)
    return path


def streamed_bytes(config, ranks, width: int) -> int:
    """Bytes of weights that one decoded token reads: every matrix and vector but the embedding table."""
    c, f, layers = config.n_embd, config.n_ffn, config.n_layer
    low_rank = 2 * c * (layers * sum(ranks) - ranks[2])
    matrices = layers * (4 * c * c + 2 * c * f) + low_rank + config.n_vocab * c
    return matrices * width + layers * 21 * c * 4


class Limits:
    """The machine's limits, measured by a small native library in the process that is being benchmarked."""

    def __init__(self) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        library = BUILD / "liblimits.so"
        source = ROOT / "benchmarks" / "limits" / "limits.cpp"
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, "-I", str(ROOT / "benchmarks"), "-I", str(ROOT / "cpp"), str(source), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))
        for name in ("rwkv_read_bandwidth", "rwkv_fma_peak"):
            getattr(self._library, name).restype = ctypes.c_double

    def read_bandwidth(self, threads: int) -> float:
        """GB/s of the best of several ways to read memory larger than the caches."""
        return self._library.rwkv_read_bandwidth(threads)

    def fma_peak(self, threads: int) -> float:
        """GFLOP/s of float32 fused multiply-adds, widest vectors of the machine."""
        return self._library.rwkv_fma_peak(threads)


def timed(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median(values) -> float:
    return statistics.median(values)


def machine() -> dict[str, object]:
    model = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def record(name: str, result: dict[str, object]) -> None:
    """Prints a result and writes it, with the machine and the command, to benchmarks/results."""
    command = " ".join(["python", *sys.argv]).replace(str(ROOT) + os.sep, "")
    document = {"command": command, "machine": machine(), **result}
    text = json.dumps(document, indent=2)
    print(text)
    (ROOT / "benchmarks" / "results" / f"{name}.json").write_text(text + "\n")
