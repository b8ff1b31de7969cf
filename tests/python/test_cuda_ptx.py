"""The kernels as nvcc compiles them, translated to C++ by tests/cusim/ptx.py: in the simulator each launch runs them
beside those that the host's compiler makes of the sources, and any bit of memory that differs is an error.

What is always run has but some of the kernels translated; --run-slow has all, and once more those for compute
capability 7.5, which are not compared: there products are rounded twice. The translator itself: test_ptx.py.
"""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, find_tool, one_process_at_a_time
from helpers import DEEP, OLDER, SMALL, TINY, bits, engine, model

import rwkv_engine as rwkv

sys.path.insert(0, str(ROOT / "tests" / "cusim"))

import counts

HEADS_OF_64 = dict(C=128, N=64, F=192, V=100)
SHAPES = {
    **{name: OLDER[name] for name in ("4", "5.2", "6")},
    "7": SMALL,
    "7a": DEEP,
    "7 with heads of 64": dict(L=2, ranks=(5, 6, 7, 9), **HEADS_OF_64),
    "6 with heads of 64": dict(version="6", L=2, ranks=(5, 70), **HEADS_OF_64),
}
PROGRAMS = [f"cuda_{name}_test" for name in "rows pack products tile wkv chunk sample decode memory cublaslt".split()]


def library(cpp_build, tool, target):
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    with one_process_at_a_time(cpp_build):
        done = subprocess.run([tool("ninja"), "-C", cpp_build, target], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}", pytrace=False)
    return cpp_build / f"lib{target}.so"


@pytest.fixture(scope="module")
def some(cpp_build, tool):
    return library(cpp_build, tool, "rwkv_cusim_ptx_some")


@pytest.fixture(scope="module")
def whole(cpp_build, tool):
    return library(cpp_build, tool, "rwkv_cusim_ptx")


@pytest.fixture(scope="module")
def of_75(cpp_build, tool):
    return library(cpp_build, tool, "rwkv_cusim_ptx75")


def check(program, library):
    environment = {**os.environ, "RWKV_TESTS_SIMULATOR": str(library)}
    done = subprocess.run([library.parent / program], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0 and done.stdout.rstrip().endswith(" 0 failures"), done.stdout[-4000:] + done.stderr


def steps(library, shape, precision, monkeypatch, words="stream:late"):
    """Everything that a few calls leave, with as much at once as a GPU is asked for."""
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(library))
    monkeypatch.setenv("RWKV_CUDA_FEATURES", "graphs,pdl")
    monkeypatch.setenv("RWKV_CUSIM", words)
    m, e = model(**shape), engine(f"cuda {precision}", **shape)
    states = [e.new_state() for _ in range(3)]
    seen = [bits(e.forward_batch([m.tokens(n, seed=n) for n in (12, 1, 5)], states))]
    seen += [bits(e.forward_batch([[t], [t + 1], [3]], states)) for t in range(3)]
    return seen, [state.to_bytes() for state in states]


@pytest.mark.parametrize("program", ["cuda_rows_test", "cuda_pack_test"])
def test_some_kernels_have_the_bits_of_the_other_compiler(some, program):
    check(program, some)


@pytest.mark.parametrize("name", SHAPES)
def test_steps_with_some_kernels_have_the_bits_of_the_other_compiler(cpp_build, some, name, monkeypatch):
    plain = steps(cpp_build / "librwkv_cusim.so", SHAPES[name], "fp16", monkeypatch)
    assert steps(some, SHAPES[name], "fp16", monkeypatch) == plain


def test_tokens_are_those_of_the_other_compiler(cpp_build, some, tmp_path, monkeypatch):
    words = tmp_path / "words.txt"
    words.write_text("".join(f"{i} '{chr(96 + i)}' 1\n" for i in range(1, TINY["V"])))
    params = [
        rwkv.SamplingParams(temperature=1, seed=i, max_tokens=3, ignore_eos=True, **options)
        for i, options in enumerate([{"top_p": 0.8}, {"top_k": 5}, {"presence_penalty": 0.3}, {"top_logprobs": 2}])
    ]

    def drawn(library):
        monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(library))
        e = rwkv.Engine(model(**TINY).path(), "cuda fp32", threads=2, tokenizer=words)
        return [result.tokens for result in e.generate_batch([[1], [2], [3], [4]], params)]

    assert drawn(some) == drawn(cpp_build / "librwkv_cusim.so")


def test_what_a_step_asks_of_a_gpu_is_counted(some, tmp_path, capsys, monkeypatch):
    noted = tmp_path / "counts"
    steps(some, SHAPES["7 with heads of 64"], "fp16", monkeypatch, f"counts:{noted}")
    found = {name: launch for name, launch, _ in counts.read(noted)}
    assert {found[name]["file"] for name in ("embed", "keep_rows")} == {"rows.ptx"}
    assert found["wkv7_decode_f16"]["mma"] > 0 and found["embed"]["mma"] == 0
    monkeypatch.setattr(sys, "argv", ["counts.py", str(noted), str(some.parent / "ptx" / "90")])
    counts.main()
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in found)


@pytest.mark.parametrize("word", ["alone", "counts:a"])
def test_without_translated_kernels_there_is_nothing_to_count(cpp_build, word, monkeypatch):
    with pytest.raises(rwkv.DeviceError, match='"alone" and "counts" are of kernels translated from PTX'):
        steps(cpp_build / "librwkv_cusim.so", TINY, "fp16", monkeypatch, word)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_all_kernels_have_the_bits_of_the_other_compiler(whole, program):
    check(program, whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16 state16", "bf16", "fp16i8", "fp16i4"])
@pytest.mark.parametrize("name", SHAPES)
def test_steps_have_the_bits_of_the_other_compiler(cpp_build, whole, name, precision, monkeypatch):
    plain = steps(cpp_build / "librwkv_cusim.so", SHAPES[name], precision, monkeypatch)
    assert steps(whole, SHAPES[name], precision, monkeypatch) == plain


@pytest.mark.slow
def test_no_kernel_is_missing(whole, tmp_path, monkeypatch):
    """One that is not translated would run as the host compiles it, and differ from itself in nothing."""
    listed = re.findall(r"^  X\((\w+),", (ROOT / "cuda" / "kernels.h").read_text(), re.M)
    made = "".join(path.read_text() for path in (whole.parent / "ptx" / "90").glob("*.cpp"))
    assert sorted(re.findall(r"table\[uint32_t\(Kernel::(\w+)\)\]", made)) == sorted(listed)
    noted = tmp_path / "counts"
    for name, shape in SHAPES.items():
        steps(whole, shape, "fp16i8" if "7" in name else "fp16", monkeypatch, f"counts:{noted}")
    files = {launch["file"] for _, launch, _ in counts.read(noted)}
    assert files == {"rows.ptx", "small.ptx", "sparse.ptx", "wkv.ptx"}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_of_compute_capability_75(of_75, program):
    check(program, of_75)


@pytest.mark.slow
def test_compute_capability_75_is_said(of_75, monkeypatch):
    with pytest.raises(rwkv.DeviceError, match=r"8\.0 or more for bf16, found 7\.5"):
        steps(of_75, TINY, "bf16", monkeypatch)
