"""Whole models through a library in the place of cuBLASLt; the products by themselves are in cuda_cublaslt_test.cpp."""

import os

import pytest
from conftest import gpu
from helpers import engine, model, python, relative, snapshot

import rwkv_engine as rwkv

WIDE = dict(L=2, C=256, N=64, F=320, V=40, ranks=(5, 6, 7, 9))
SHAPES = {"7": WIDE, "6": dict(version="6", L=2, C=256, A=256, N=64, F=320, V=40, ranks=(3, 7))}


@pytest.fixture
def log(cpp_build, monkeypatch, tmp_path):
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", "stream:late")
    monkeypatch.setenv("RWKV_CUBLASLT", str(cpp_build / "libfake_cublaslt.so"))
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "cublaslt")
    monkeypatch.setenv("FAKE_CUBLASLT_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.mark.parametrize(("name", "precision"), [("7", "fp16"), ("7", "bf16"), ("6", "fp16")])
def test_long_prompts(log, name, precision):
    shape = SHAPES[name]
    m, cpu, e = model(**shape), engine("cpu fp32", **shape), engine(f"cuda {precision}", **shape)
    assert e.description == "cuda:0 simulator, cublaslt 13.1.0"
    tokens = m.tokens(70)
    state, expected = e.new_state(), cpu.new_state()
    found = e.forward(tokens, state)
    products = log.read_text().splitlines()
    # Receptance, key, value, output, the two of the channel mix; of RWKV-6 two gates.
    assert len(products) == shape["L"] * (6 if name == "7" else 8)
    assert sum(line.startswith("columns 256 x 320 x 70 ") for line in products) == shape["L"]
    bound = 2e-3 if precision == "fp16" else 5e-2
    assert relative(found, cpu.forward(tokens, expected)) <= bound
    for part, numbers in expected.to_numpy().items():
        assert relative(state.to_numpy()[part], numbers) <= bound, part
    # Up to 64 rows nothing has changed, and float32 has none of it.
    before = len(products)
    assert snapshot(e, tokens, [30, 40]) == snapshot(e, tokens, [35, 35])
    wide = engine("cuda fp32", **shape)
    wide.forward(tokens, wide.new_state())
    assert len(log.read_text().splitlines()) == before


def test_without_the_library_there_is_a_reason(log, monkeypatch):
    monkeypatch.setenv("RWKV_CUBLASLT", "/nowhere/libcublasLt.so.13")
    e = engine("cuda fp16", **WIDE)
    place = "/nowhere/libcublasLt.so.13"
    assert e.description.startswith(f"cuda:0 simulator, without cublaslt: {place}: cannot load {place}: ")
    found = e.forward(model(**WIDE).tokens(70), e.new_state())
    monkeypatch.delenv("RWKV_CUDA_FEATURES")
    own = engine("cuda fp16", **WIDE)
    assert own.description == "cuda:0 simulator"
    assert (found == own.forward(model(**WIDE).tokens(70), own.new_state())).all()


@pytest.mark.parametrize("last", ["libfake_cublaslt.so", "librwkv_cusim.so"])
def test_a_library_that_is_of_no_use_hides_no_other(log, cpp_build, monkeypatch, tmp_path, last):
    """The places are tried one after the other; if none will do, the reason names each."""
    monkeypatch.delenv("RWKV_CUBLASLT")
    for name, library in {"libcublasLt.so.13": "librwkv_cusim.so", "libcublasLt.so.12": last}.items():
        (tmp_path / name).symlink_to(cpp_build / library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path), prepend=os.pathsep)
    found = python("from helpers import *; print(engine('cuda fp16', **TINY).description)")
    if last == "libfake_cublaslt.so":
        assert found.strip() == "cuda:0 simulator, cublaslt 13.1.0"
    else:
        *ours, pip13, pip12 = found.strip().split("without cublaslt: ")[1].split("; ")
        assert ours == [f"libcublasLt.so.{n}: expected cublasLtGetVersion, found none" for n in (13, 12)]
        assert "cu13/lib/libcublasLt.so.13: cannot load" in pip13 and "cublas/lib/libcublasLt.so.12: cannot" in pip12


def test_a_forked_process_leaves_it_alone(log):
    code = """
import os
from helpers import *
e = engine("cuda fp16", L=1, C=256, N=64, F=256, V=12, ranks=(3, 3, 3, 3))
e.forward([1] * 65, e.new_state())
if os.fork() == 0:
    del e
    os._exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]), e.forward([1] * 65, e.new_state()).shape)
"""
    assert python(code).split() == ["3", "(12,)"]
    assert log.read_text().count("destroyed") <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_nvidias_library(monkeypatch, precision):
    gpu(monkeypatch)
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "cublaslt")
    try:
        e = engine(f"cuda {precision}", **WIDE)
    except rwkv.DeviceError as error:
        (pytest.fail if os.environ.get("RWKV_GPU_TESTS") else pytest.skip)(str(error))
    tokens, cpu = model(**WIDE).tokens(300), engine("cpu fp32", **WIDE)
    found, expected = (x.forward(tokens, x.new_state()) for x in (e, cpu))
    assert relative(found, expected) <= (2e-3 if precision == "fp16" else 5e-2)
    if "without cublaslt" in e.description:
        pytest.skip(e.description)
