"""Options, and the C++ side of the project built for its tests: once, then only what has changed."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest

try:
    import fcntl
except ImportError:
    fcntl = None

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The tests are those of the CPU, also where "auto" would find a GPU; those of the GPU take this away. With RWKV_GPU_TESTS
# in the environment there must be one; if it is a path, it is that of a library in place of the one that is installed.
os.environ["RWKV_CUDA_LIBRARY"] = str(ROOT / "build" / "no-cuda.so")

# Whoever is started in the background ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow")
    parser.addoption("--peers", action="store_true", help="run those with other engines")


def pytest_collection_modifyitems(config, items):
    for mark, option in {"slow": "--run-slow", "peers": "--peers"}.items():
        if not config.getoption(option):
            for item in items:
                if mark in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"{mark}; {option} runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A device that has failed is lost to its process and so to the tests after: with `pytest -n` a new one takes over.

    What fails on a GPU is said at once, as who is killed says nothing in the end.
    """
    report = yield
    if report.failed:
        lost = "PYTEST_XDIST_WORKER" in os.environ and "it is lost to this process" in str(report.longrepr)
        if lost or os.environ.get("RWKV_GPU_TESTS"):
            print(f"\n{item.nodeid}\n{report.longrepr}", file=sys.__stderr__, flush=True)
        if lost:
            os._exit(3)
    return report


def find_tool(name):
    """A program of this environment, whether or not the environment is activated."""
    here = os.path.dirname(sys.executable)
    return shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))


@pytest.fixture(scope="session")
def tool():
    def require(name):
        found = find_tool(name)
        if found is None:
            pytest.skip(f"{name} is not installed; the extra `test` brings it")
        return found

    return require


@contextlib.contextmanager
def one_process_at_a_time(folder):
    """With `pytest -n`, whoever comes second waits, where the system has locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def cpp_build(tool):
    """The folder with the built C++ tests, examples and library objects."""
    build = ROOT / "build" / "tests"
    ninja = tool("ninja")
    configure = [
        tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DCMAKE_BUILD_TYPE=Release", "-DRWKV_BUILD_TESTS=ON", "-DRWKV_BUILD_PYTHON=OFF",
    ]  # fmt: skip
    with one_process_at_a_time(build):
        for command in (configure, [ninja, "-C", build]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                pytest.fail(
                    f"{' '.join(map(str, command))}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}",
                    pytrace=False,
                )
    return build


def library_of_gpu():
    named = os.environ.get("RWKV_GPU_TESTS", "")
    return named if os.sep in named else None


@functools.cache
def why_no_gpu():
    import helpers

    import rwkv_engine as rwkv

    try:
        helpers.engine("cuda fp32", **helpers.TINY)
    except rwkv.DeviceError as error:
        return str(error)
    return None


def gpu(monkeypatch):
    """The library of GPUs in place of none."""
    if library_of_gpu():
        monkeypatch.setenv("RWKV_CUDA_LIBRARY", library_of_gpu())
    else:
        monkeypatch.delenv("RWKV_CUDA_LIBRARY")


@pytest.fixture(params=["simulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The simulator in place of the library, with the words of RWKV_CUSIM as its argument; or a GPU."""
    if request.param == "gpu":
        gpu(monkeypatch)
        if why_no_gpu():  # where there must be one, it is no reason
            (pytest.fail if os.environ.get("RWKV_GPU_TESTS") else pytest.skip)(why_no_gpu())
        return lambda *words: pytest.skip("of the simulator") if words else None
    build = request.getfixturevalue("cpp_build")
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", "stream:late")
    return lambda *words: monkeypatch.setenv("RWKV_CUSIM", ",".join(words))
