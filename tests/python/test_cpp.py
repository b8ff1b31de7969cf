"""The C++ tests and examples, one test for each program, and what the objects export.

All that uses what CMake builds is in this file: with `pytest -n 2 --dist loadfile` one process builds.
"""

import pathlib
import subprocess

import pytest

import rwkv_engine as rwkv

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "python" / "rwkv_engine" / "data" / "demo-rwkv7-1.2M.pth"
PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "cpp").glob("*_test.cpp"))


def run(*command, timeout=300):
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_cpp(cpp_build, program, tmp_path):
    output = run(cpp_build / program)
    assert output.rstrip().endswith(" 0 failures"), output


def test_example_embed(cpp_build, tmp_path):
    output = run(cpp_build / "embed", DEMO, tmp_path / "a.state")
    assert "agree after 6 tokens" in output and output.count("\n") == 1


def test_example_generate(cpp_build):
    """The texts that the package writes with the same seeds."""
    output = run(cpp_build / "generate", DEMO, DEMO.with_name("demo-vocab.txt"), "def main(")
    engine = rwkv.Engine("demo")
    params = rwkv.SamplingParams(seed=1, max_tokens=40, stop="\n\n")
    first = engine.generate("def main(", params)
    params = rwkv.SamplingParams(seed=2, max_tokens=10, stop="\n\n")
    seen = first.state.tokens_seen
    more = engine.generate_batch([""], params, [first.state], n=2)
    texts = [first.text, *(f"\n-- {result.text}" for result in more)]
    assert output == "".join(texts) + f"\n{seen} tokens read and written\n"


@pytest.mark.parametrize("isa", ["generic", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512amx", "avx512bf16"])
def test_each_instruction_set_exports_one_symbol(cpp_build, tool, isa):
    """Anything else with linkage, inline functions above all, could be taken by code for older machines."""
    objects = list(cpp_build.rglob(f"kernels_{isa}.cpp.o*"))
    if not objects and isa != "generic":
        pytest.skip(f"not built here: {isa}")
    (built,) = objects
    lines = subprocess.run(
        [tool("nm"), "--defined-only", built], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    exported = [line.split()[-2:] for line in lines if line.split()[-2] not in set("abcdnrst")]
    assert len(exported) == 1 and exported[0][0] in {"D", "R", "B"}, exported
