"""What the benchmarks share: options, random models of real shapes, the machine and its measured limits, results."""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np

import rwkv_engine as rwkv

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "tests" / "reference")]


@dataclass(frozen=True)
class Shape:
    """The numbers of a model; N = 64 and F = 4 C. `ranks` are those of w, a, v, g."""

    L: int
    C: int
    ranks: tuple[int, int, int, int]
    V: int = 65536


SHAPES = {  # as the released models have them
    "0.1B": Shape(12, 768, (64, 64, 32, 128)),
    "0.4B": Shape(24, 1024, (64, 64, 32, 128)),
    "1.5B": Shape(24, 2048, (96, 96, 64, 256)),
    "2.9B": Shape(32, 2560, (96, 96, 64, 320)),
    "7.2B": Shape(32, 4096, (128, 128, 96, 480)),
    "tiny": Shape(2, 128, (8, 8, 8, 16), V=512),  # for --quick
}


# ---- options ----


def parser(doc: str, shape: str | None = "0.4B") -> argparse.ArgumentParser:
    """The options that every benchmark has; `shape` is the default, None if it cannot be chosen."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--quick", action="store_true", help="a tiny model, in seconds; prints and writes nothing")
    found.add_argument("--machine", type=_machine_name, metavar="NAME", help="writes the result into benchmarks/results/NAME/")
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    if shape:
        found.add_argument("--shape", default=shape, choices=SHAPES)
    return found


def _machine_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected letters, digits, '.', '-' or '_', as it becomes a folder; found {text!r}")
    return text


def parse(options: argparse.ArgumentParser, about: str, quick: dict[str, object]) -> argparse.Namespace:
    """The command line. `quick` are the settings of a quick run, `about` is what a full one needs."""
    found = options.parse_args()
    if found.quick:
        if found.machine:
            options.error("--quick writes nothing, --machine writes; found both")
        vars(found).update(shape="tiny", **quick)
    else:
        if not found.machine:
            note("the result is printed and not written, as no --machine NAME says whose it is")
        note(f"this takes about {about} on two cores; times are worth something on a quiet machine only")
    return found


def note(text: str) -> None:
    """To whoever waits; standard output is the result alone."""
    print(text, file=sys.stderr, flush=True)


# ---- models ----


def model_file(shape: str, dtype: str, suffix: str = ".pth", **changes) -> pathlib.Path:
    """A checkpoint of random weights that bf16 holds exactly, written once and kept in build/benchmarks."""
    path = BUILD / ("-".join(["random", shape, dtype, *(f"{k}{v}" for k, v in sorted(changes.items()))]) + suffix)
    if not path.exists():
        _write(path, _random_weights(shape, **changes), dtype)
    return path


def model_with_zeros(shape: str, percent: int) -> tuple[pathlib.Path, float]:
    """A .pth in bf16 of which about so many of the ffn's activations are zero, and the fraction that was measured."""
    path = BUILD / f"random-{shape}-bf16-zeros{percent}.pth"
    measured = path.with_suffix(".json")
    if not (path.exists() and measured.exists()):
        weights = _random_weights(shape)
        fraction = set_zeros(weights, percent / 100)
        _write(path, weights, "bf16")
        measured.write_text(json.dumps(fraction))
    return path, json.loads(measured.read_text())


def _random_weights(shape: str, **changes) -> dict[str, np.ndarray]:
    from random_model import random_model

    s = SHAPES[shape]
    return random_model(**{"L": s.L, "C": s.C, "N": 64, "V": s.V, "ranks": s.ranks, "dtype": "bf16", **changes})


def _write(path: pathlib.Path, weights: dict[str, np.ndarray], dtype: str) -> None:
    import checkpoint_files

    note(f"writing {path.relative_to(ROOT)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{os.getpid()}{path.suffix}")
    write = checkpoint_files.write_pth if path.suffix == ".pth" else checkpoint_files.write_safetensors
    write(unfinished, weights, dtype=dtype)
    unfinished.rename(path)


def set_zeros(weights: dict[str, np.ndarray], wanted: float) -> float:
    """Moves the ffn's activations down until so many are zero; returns the fraction that is.

    Random rows of ffn.key give 50 %, trained models have more. A constant in ln2.bias and the opposite mean in every
    row of ffn.key shift all sums alike, here by as many of their deviations as a normal distribution needs.
    """
    from random_model import round_to

    constant, normal = np.float32(0.5), statistics.NormalDist()
    C = weights["emb.weight"].shape[1]
    found = _zero_fraction(weights)
    if abs(found - wanted) < 0.01:
        return found
    for name, tensor in weights.items():
        if name.endswith("ln2.bias"):
            tensor[:] = constant
    keys = {name: tensor for name, tensor in weights.items() if name.endswith("ffn.key.weight")}
    deviation = float(np.std(next(iter(keys.values()))))
    shift = normal.inv_cdf(wanted)
    for _ in range(4):
        # An estimate, as mixing with the token before makes the deviation of the sums smaller: so it is corrected.
        mean = np.float32(shift * deviation / (constant * C**0.5))
        weights |= {name: round_to(tensor - mean, "bf16") for name, tensor in keys.items()}
        found = _zero_fraction(weights)
        if abs(found - wanted) < 0.01:
            break
        shift *= normal.inv_cdf(wanted) / max(normal.inv_cdf(found), 0.1)
    return found


def _zero_fraction(weights: dict[str, np.ndarray], tokens: int = 9) -> float:
    """By the definition, on a few random tokens after the first."""
    own = sys.modules.pop(__name__)
    import rwkv7  # which has a module "common" of its own

    sys.modules[__name__] = own
    F = len(weights["blocks.0.ffn.key.weight"])
    zeros: list[float] = []

    def observe(operand: np.ndarray) -> np.ndarray:
        if operand.shape == (F,):  # what ffn.value is multiplied with, and nothing else is that long
            zeros.append(float((operand == 0).mean()))
        return operand.astype(np.float32, copy=False)

    ids = np.random.default_rng(1).integers(1, len(weights["emb.weight"]), tokens)
    state = rwkv7.State(weights)
    rwkv7.forward(weights, ids, state, round=observe, hidden=True)
    return statistics.mean(zeros[len(state.wkv) :])


def streamed_bytes(config: rwkv.Config, shape: str, precision: str) -> int:
    """Bytes of weights that one decoded token reads: every matrix and vector but the embedding table."""
    c, layers = config.n_embd, config.n_layer
    matrices, low_rank = layer_parameters(config, shape) + config.n_vocab * c, low_rank_parameters(config, shape)
    # Of int8 and int4 a scale of two bytes for each 64; beside int4 the head is int8.
    width = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 66 / 64, "int4": 34 / 64}[precision]
    head = config.n_vocab * c * (66 / 64 if precision == "int4" else width)
    large, narrow = matrices - low_rank - config.n_vocab * c, max(width, 2)
    return int(large * width + head + low_rank * narrow) + layers * 21 * c * 4


def operations_per_token(config: rwkv.Config, shape: str) -> float:
    """Multiply-adds count two; the head runs once per call and is left out, the recurrence is counted."""
    return 2 * layer_parameters(config, shape) + config.n_layer * config.n_embd * config.head_size * 10


def layer_parameters(config: rwkv.Config, shape: str) -> int:
    """Numbers in the matrices of all layers."""
    c, f, layers = config.n_embd, config.n_ffn, config.n_layer
    return layers * (4 * c * c + 2 * c * f) + low_rank_parameters(config, shape)


def low_rank_parameters(config: rwkv.Config, shape: str) -> int:
    """Of them in the low-rank pairs, which int8 and int4 leave in bf16."""
    layers, ranks = config.n_layer, SHAPES[shape].ranks
    return 2 * config.n_embd * (layers * sum(ranks) - ranks[2])  # layer 0 has no v


def known_precisions(wanted) -> list[str]:
    """Those that this version of the engine has; a line about each that it has not."""
    found = []
    for precision in wanted:
        try:
            rwkv.Engine("demo", f"cpu {precision}", threads=1)
        except rwkv.StrategyError:
            note(f"{precision} is left out, as this version of the engine does not know it")
        else:
            found.append(precision)
    return found


# ---- the machine's limits ----


class Limits:
    """The machine's limits, measured by a small native library in the process that is being benchmarked."""

    def __init__(self, quick: bool = False) -> None:
        self._bytes = 1 << (24 if quick else 30)
        self._rounds = 100_000 if quick else 10_000_000
        self._library = ctypes.CDLL(str(_limits_library()))
        self._library.rwkv_read_bandwidth.argtypes = [ctypes.c_int, ctypes.c_size_t]
        self._library.rwkv_peak.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long]
        for name in ("rwkv_read_bandwidth", "rwkv_peak"):
            getattr(self._library, name).restype = ctypes.c_double

    def read_bandwidth(self, threads: int) -> float:
        """GB/s of the best of several ways to read memory that no cache holds."""
        return self._library.rwkv_read_bandwidth(threads, self._bytes)

    def fma_peak(self, threads: int) -> float:
        """GFLOP/s of float32 fused multiply-adds, widest vectors of the machine."""
        return self.peak(32, threads)

    def peak(self, bits: int, threads: int) -> float:
        """Gop/s, a multiply-add counts two: of float32 (32), bf16 (16) or int8 (8) without matrix tiles.

        With RWKV_ISA=avx2, avxvnni or avx512 in the environment no more than these instructions.
        """
        return self._library.rwkv_peak(bits, threads, self._rounds)


def _limits_library() -> pathlib.Path:
    library = BUILD / "liblimits.so"
    sources = [ROOT / "benchmarks" / "limits" / "limits.cpp", ROOT / "benchmarks" / "simd" / "limits.h"]
    if not library.exists() or library.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_name(f"unfinished-{os.getpid()}.so")
        command = [_compiler(), "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread"]
        command += ["-I", str(ROOT / "benchmarks"), "-I", str(ROOT / "cpp"), str(sources[0]), "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(library)
    return library


def read_file(path: pathlib.Path, threads: int) -> np.ndarray:
    """A file, most likely in the page cache, into fresh memory, huge pages where the system has them."""
    size = path.stat().st_size
    target = np.empty(size, np.uint8)
    edges = [size * i // threads for i in range(threads + 1)]

    def part(file: int, begin: int, end: int) -> None:
        while begin < end:
            begin += os.preadv(file, [memoryview(target[begin : min(end, begin + (8 << 20))])], begin)

    with path.open("rb") as file, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, [file.fileno()] * threads, edges[:-1], edges[1:]))
    return target


def write_durably(path: pathlib.Path, data) -> None:
    """A new file in the place of an old one, safe from a loss of power: what saving can do no faster."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def memory(field: str, file: str = "status") -> int:
    """Bytes of this process, as Linux calls them: VmRSS, RssAnon, VmHWM."""
    with open(f"/proc/self/{file}") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field + ":"))


# ---- times ----


def timed(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


median = statistics.median


def ratios(values, others) -> list[float]:
    """One quotient for each round: what a round's other load slows down is in both."""
    return [a / b for a, b in zip(values, others, strict=True)]


def rounded(value: float) -> float:
    """Four digits, which is more than a machine repeats."""
    return float(f"{value:.4g}")


def lowest_highest(values) -> list[float]:
    values = list(values)
    return [rounded(min(values)), rounded(max(values))]


# ---- results ----


def machine(engine: rwkv.Engine) -> dict[str, object]:
    """What the figures are of, as far as the system tells."""
    return {
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": engine.description,
        "memory_gigabytes": rounded(int((_line_of("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024 / 1e9),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": _first_line([_compiler(), "--version"]),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _line_of(path: str, key: str) -> str | None:
    with open(path) as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), None)


def _caches() -> list[str]:
    """Such as "L2 Unified 2048K, cores 0"; empty where the system does not say."""
    found = []
    for folder in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, cores = ((folder / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list"))
        found.append(f"L{level} {kind} {size}, cores {cores}")
    return found


def record(
    name: str,
    options: argparse.Namespace,
    engine: rwkv.Engine,
    results: list[dict[str, object]],
    weights: str = "random weights",
) -> None:
    """Prints a result and, if the machine was named, writes it to benchmarks/results/MACHINE/NAME.json."""
    words = [pathlib.Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]
    document = {
        "benchmark": pathlib.Path(words[0]).stem,
        "command": " ".join(["python", *words]),
        "engine": f"rwkv-engine {rwkv.__version__}, {weights}",
        "machine": machine(engine),
        "settings": {key: value for key, value in vars(options).items() if key not in ("quick", "machine")},
        "results": results,
    }
    text = json.dumps(document, indent=2)
    print(text)
    if options.machine:
        folder = RESULTS / options.machine
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n")
