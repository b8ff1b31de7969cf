"""What is written down works: the README's commands and code, and the examples in docstrings."""

import doctest
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys

import pytest

import rwkv_engine as rwkv
from rwkv_engine.forward import ForwardMixin
from rwkv_engine.generation import GenerationMixin

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MODULES = sorted(
    module.name.removeprefix("rwkv_engine.")
    for module in pkgutil.walk_packages(rwkv.__path__, "rwkv_engine.")
    if module.name.rpartition(".")[2] not in {"_core", "__main__", "librwkv_cuda"}
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("module", ["", *MODULES])
def test_docstrings(module):
    if module == "lm_eval":  # the one that the package's own dependencies do not suffice for
        importlib.util.find_spec("lm_eval") or pytest.skip("lm-eval is not installed")
    found = importlib.import_module(f"rwkv_engine.{module}" if module else "rwkv_engine")
    failed, _ = doctest.testmod(found)
    assert failed == 0


def test_there_are_docstrings_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    tested = {test.name for cls in (rwkv.Engine, ForwardMixin, GenerationMixin, rwkv.Chat, rwkv.State, rwkv.SamplingParams, rwkv.Tokenizer) for test in finder.find(cls) if test.examples}
    assert {"Engine", "ForwardMixin.forward", "GenerationMixin.generate", "Chat", "State", "SamplingParams", "Tokenizer"} <= tested


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_readme(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_block_of_the_readme_is_tested_here():
    fences = re.findall(r"^ *(?:```+|~~~+)(.*)", README, re.MULTILINE)
    assert len(fences) % 2 == 0 and set(fences[1::2]) == {""} and set(fences[::2]) == {"python", "bash"}
    assert len(fences) // 2 == len(blocks("python")) + len(blocks("bash"))


def commands():
    return [part.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_readme(command, tmp_path):
    words = shlex.split(command)
    if "rwkv-engine" in words:
        here = command.replace("rwkv-engine", f"{shlex.quote(sys.executable)} -m rwkv_engine", 1)
        done = subprocess.run(["sh", "-c", here], cwd=tmp_path, capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout.strip()
    elif words[:2] == ["pip", "install"]:
        offered = importlib.metadata.metadata("rwkv-engine").get_all("Provides-Extra")
        path, extras = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", words[2]).groups()
        assert path == "." and set(filter(None, (extras or "").split(","))) <= set(offered)
    elif words[0] == "cmake" and "-S" in words:
        options = [word[2:].split("=")[0] for word in words if word.startswith("-D")]
        assert options and all(f"option({name} " in (ROOT / "CMakeLists.txt").read_text() for name in options)
    else:
        assert words[0] == "pytest" or words[:2] == ["cmake", "--build"], "say here how this is tested"


def test_the_first_screen_has_the_two_commands():
    first = "\n".join(README.splitlines()[:40])
    for line in ("pip install .", 'rwkv-engine generate "def main("', 'pip install ".[test]" && pytest', "```python"):
        assert line in first


def test_files_that_the_documents_name_exist():
    for document in ("README.md", "CONTRIBUTING.md"):
        for name in re.findall(r"`([\w./-]+\.(?:cpp|h|inl|md|py|sh|toml|yaml|txt)|[\w./-]+/)`", (ROOT / document).read_text()):
            found = [ROOT / name, *ROOT.glob(f"cpp/{name}"), *ROOT.glob(f"cpp/*/{name}"), *ROOT.glob(f"tests/*/{name}"), *ROOT.glob(f"python/rwkv_engine/{name}")]
            assert any(os.path.exists(path) for path in found), f"{document} names {name}"
