"""What is installed, and what a half-installed package says."""

import importlib.metadata
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import rwkv_engine as rwkv

PACKAGE = pathlib.Path(rwkv.__file__).parent
ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_package_that_was_not_compiled_says_so(tmp_path):
    shutil.copytree(ROOT / "python" / "rwkv_engine", tmp_path / "rwkv_engine", ignore=shutil.ignore_patterns("*.so", "data"))
    done = subprocess.run(
        [sys.executable, "-c", "import rwkv_engine"], cwd=tmp_path, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: ") and "pip install ." in last


def test_the_data_is_installed():
    for name in ("demo-rwkv7-1.2M.pth", "demo-vocab.txt", "rwkv_vocab_v20230424.txt", "templates.toml"):
        assert (PACKAGE / "data" / name).read_bytes() == (ROOT / "python/rwkv_engine/data" / name).read_bytes()
    assert (PACKAGE / "py.typed").exists() and (PACKAGE / "_core.pyi").exists()


def test_what_is_tested_is_what_is_in_the_tree():
    """An old installation would pass or fail for reasons that nobody can see here."""
    source = ROOT / "python" / "rwkv_engine"
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source)
        assert (PACKAGE / name).read_bytes() == path.read_bytes(), f"{name}: install again"


def test_importing_brings_numpy_and_little_else():
    code = "import sys, rwkv_engine; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "tokenizers", "huggingface_hub", "cupy"} & set(done.stdout.split()) == set()


def test_the_extras_are_there():
    extras = set(importlib.metadata.metadata("rwkv-engine").get_all("Provides-Extra"))
    assert extras == {"server", "json", "cuda12", "cuda13", "train", "redis", "ray", "bench", "test"}


def test_names_that_the_package_offers():
    assert all(hasattr(rwkv, name) for name in rwkv.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", rwkv.__version__)


def test_errors_travel_between_processes():
    for kind in (rwkv.Error, rwkv.StateError):
        again = pickle.loads(pickle.dumps(kind("expected a, found b")))
        assert type(again) is kind and str(again) == "expected a, found b"
