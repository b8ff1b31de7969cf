"""What the behaviour tests share: small random models on disk with the reference beside them, comparison of bits, and
runs in another process.

Models are cheap to name and made once: `model(**options)` writes a random checkpoint into a folder that lives as long
as the test run and returns it again for the same options.
"""

import atexit
import functools
import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))

import adapter_merges  # noqa: F401 (for the tests)
import checkpoint_files
import rwkv4
import rwkv5
import rwkv6
import rwkv7
import rwkv7a
from random_model import random_model, round_to  # noqa: F401 (round_to is for the tests)

import rwkv_engine as rwkv

SMALL = dict(L=2, C=64, N=16, F=192, V=40, ranks=(5, 6, 7, 9))
TINY = dict(L=1, C=16, N=16, F=32, V=12, ranks=(3, 3, 3, 3))  # a state of about 2 kB
DEFINITIONS = {"4": rwkv4, "5.0": rwkv5, "5.1": rwkv5, "5.2": rwkv5, "6": rwkv6, "7": rwkv7, "7a": rwkv7a}
# RWKV-4 to 6 at an odd shape, with more channels in the recurrence than in the embedding.
_ODD = dict(L=2, C=35, A=45, N=5, F=91, V=17)
OLDER = {
    "4": dict(version="4", **_ODD),
    "5.0": dict(version="5.0", **_ODD),
    "5.1": dict(version="5.1", **_ODD),
    "5.1-log": dict(version="5.1", log_bonus=True, **_ODD),
    "5.2": dict(version="5.2", **_ODD),
    "6": dict(version="6", ranks=(3, 7), **_ODD),
}
# RWKV-7a at odd shapes; the matrices of known files are of 32.
DEEP = dict(version="7a", L=2, C=35, N=5, F=91, V=17, ranks=(3, 5, 7, 9), D=5)
DEEP_32 = dict(version="7a", L=3, C=128, N=64, F=512, V=100, ranks=(16, 16, 8, 32), D=32)
WIDE = dict(L=2, C=256, N=64, F=1024, V=100, ranks=(16, 16, 8, 32))


def models_folder():
    """Trained models that are not part of the repository; tests that need them skip without."""
    named = os.environ.get("RWKV_TEST_MODELS")
    return pathlib.Path(named) if named else HERE.parent.parent.parent / "shared" / "models"


@functools.cache
def folder():
    path = tempfile.mkdtemp(prefix="rwkv-tests-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return pathlib.Path(path)


def save(path, weights, dtype="f32", **options):
    """Writes name -> float32 arrays; the suffix chooses the container."""
    write = (
        checkpoint_files.write_safetensors
        if str(path).endswith(".safetensors")
        else checkpoint_files.write_pth
    )
    write(path, weights, dtype, **options)
    return path


class Model:
    """A random checkpoint: its weights as arrays, and a file for each dtype and container asked for."""

    def __init__(self, **options):
        self.options = options
        self.weights = random_model(**options)
        self.exact = {name: t.astype(np.float64) for name, t in self.weights.items()}
        self.V = options["V"]
        self.definition = DEFINITIONS[options.get("version", "7")]

    def path(self, dtype="f32", suffix=".pth"):
        name = hashlib.sha256(repr(sorted(self.options.items())).encode()).hexdigest()[:16]
        path = folder() / f"{name}-{dtype}{suffix}"
        if not path.exists():
            save(path, self.weights, dtype)
        return path

    def tokens(self, count, seed=0):
        return np.random.default_rng(seed).integers(0, self.V, count).tolist()

    def reference(self, tokens, state=None, **options):
        """(logits, state) of the float64 definition."""
        state = state or self.definition.State(self.exact)
        return self.definition.forward(self.exact, tokens, state, **options), state


@functools.cache
def _model(options):
    return Model(**dict(options))


def model(**options):
    return _model(tuple(sorted(options.items())))


def engine(strategy="cpu fp32", threads=2, dtype="f32", **options):
    return rwkv.Engine(str(model(**options).path(dtype)), strategy, threads=threads)


def refusal(path, *words, kind=rwkv.ModelFormatError):
    """Opening the file must fail with a message that holds all the words."""
    with pytest.raises(kind) as error:
        rwkv.Engine(str(path), "cpu fp32", threads=1)
    message = str(error.value)
    assert len(message) < 2000
    for word in words:
        assert word in message, message
    return message


def relative(found, expected):
    """Largest error as a share of the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / np.abs(expected).max()


def bits(array):
    array = np.asarray(array)
    assert array.dtype == np.float32
    return array.shape, array.tobytes()


def snapshot(engine, tokens, pieces=None, state=None):
    """What a run leaves behind, as bytes: the last logits and the state. `pieces` are the lengths of the calls."""
    state = state or engine.new_state()
    at = 0
    for length in pieces or [len(tokens)]:
        logits = engine.forward(tokens[at : at + length], state)
        at += length
    assert at == len(tokens)
    return bits(logits), state.to_bytes()


def pieces_of(total, length):
    return [min(length, total - at) for at in range(0, total, length)]


def instruction_sets():
    """The kernels this machine can run, as RWKV_ISA calls them, except generic."""
    try:
        flags = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    needs = {
        "avx2": {"avx2", "fma", "f16c", "bmi2"},
        "avxvnni": {"avx2", "avx_vnni", "fma", "f16c", "bmi2"},
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c", "bmi2"},
        "avx512vnni": {
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512_vnni",
            "fma",
            "f16c",
            "bmi2",
        },
        "avx512amx": {
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512_vnni",
            "amx_tile",
            "amx_int8",
            "fma",
            "f16c",
            "bmi2",
        },
        "avx512bf16": {
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512_vnni",
            "avx512_bf16",
            "fma",
            "f16c",
            "bmi2",
        },
    }
    return [name for name, wanted in needs.items() if wanted <= flags]


def python(code, *arguments, timeout=120, **environment):
    """Runs code in a new interpreter that finds this module; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**child_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def child_environment():
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def file_of_state(blob):
    """The parts of a state file, read by the safetensors format's own rules: (metadata, header, data)."""
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    metadata = header.pop("__metadata__")
    return metadata, header, blob[8 + length :]


def sign_state(blob):
    """The blob with its digest made right again, as one who damages on purpose would."""
    metadata, _, _ = file_of_state(blob)
    key, digest = next(iter(metadata.items()))
    at = blob.index(digest.encode(), 8)
    assert len(digest) == 64, key
    zeroed = blob[:at] + b"0" * 64 + blob[at + 64 :]
    return zeroed[:at] + hashlib.sha256(zeroed).hexdigest().encode() + zeroed[at + 64 :]
