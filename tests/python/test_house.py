"""Rules of the house that a reader cannot be expected to check: who may include whom, who may know what."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLOORS = {
    "core": set(),
    "backend": {"core"},
    "cpu": {"core", "backend"},
    "cuda": {"core", "backend"},
    "model": {"core", "backend"},
    "engine": {"core", "backend", "model"},
    "bindings": {"core", "backend", "model", "engine"},
}
POSIX = {"dlfcn.h", "fcntl.h", "pthread.h", "sched.h", "signal.h", "unistd.h"}
X86 = re.compile(r"(\w*intrin|cpuid|immintrin)\.h$")
CPP = {".h", ".cpp", ".inl", ".cu", ".cuh"}


def sources(*folders, suffixes=CPP):
    found = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes
    ]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def floor_of(path):
    """The folder under cpp/, "cuda" or "bindings"; None for the porch, cpp/open.cpp."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "cpp":
        return parts[0]
    return parts[1] if len(parts) > 2 else None


def includes(path):
    return re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', path.read_text(), re.MULTILINE)


def test_the_rules_below_see_the_code():
    assert (
        len(sources("cpp")) > 30
        and len(sources("bindings")) > 3
        and len(sources("python", suffixes={".py"})) > 5
    )
    assert {floor_of(path) for path in sources("cpp", "bindings")} <= {*FLOORS, None}


def test_floors():
    wrong = []
    for path in sources("cpp", "cuda", "bindings"):
        floor = floor_of(path)
        for _, name in includes(path):
            folder = name.split("/")[0]
            target = folder if "/" in name and folder in FLOORS else floor
            if floor is None:
                allowed = target != "engine" and target != "model"
            else:
                allowed = target == floor or target in FLOORS[floor]
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert wrong == []


def test_only_the_porch_knows_the_backends():
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources("cpp", "cuda", "bindings")
        for _, name in includes(path)
        if name.split("/")[0] in {"cpu", "cuda"}
        and floor_of(path) != name.split("/")[0]
        and path != ROOT / "cpp" / "open.cpp"
    ]
    assert wrong == []


def test_the_operating_system_is_asked_in_one_file():
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources("cpp", "cuda", "bindings")
        for _, name in includes(path)
        if (name in POSIX or name.startswith("sys/"))
        and path != ROOT / "cpp" / "core" / "platform.cpp"
    ]
    assert wrong == []


def test_instruction_sets_stay_in_their_room():
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources("cpp", "bindings")
        for _, name in includes(path)
        if X86.search(name) and path.parent.name != "simd"
    ]
    assert wrong == []


GPU_RULES = {  # what may stand in which files of cuda/ alone, by the file's name
    r"<<<": "",
    r"\basm\b": "gpu.h",
    r"\b__shared__\b": "gpu.h",
    r"\batomicAdd\b": "gpu.h",  # whose wrapper takes integers
    r"#\s*include\s*[\"<](cuda_|cuda\.h|cooperative|mma\.h)": "gpu.h runtime.cu",
}


def gpu_sins(name, text):
    code = re.sub(r"//.*", "", text)
    return [rule for rule, allowed in GPU_RULES.items() if re.search(rule, code) and name not in allowed.split()]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("small.cuh", "small<<<1, 2>>>(p);", 1),
        ("small.cuh", 'asm("mma.sync");', 1),
        ("gpu.h", 'asm("mma.sync"); extern __shared__ char memory[];', 0),
        ("rows.cuh", "__shared__ float sums[32]; atomicAdd(sums, 1.f);", 2),
        ("backend.cpp", '#include "cuda_runtime.h"', 1),
        ("runtime.cu", "#include <cuda_runtime.h>", 0),
        ("tape.h", '#include "cuda/device.h"  // no <<<, no asm', 0),
    ],
)
def test_the_rules_of_gpu_code_find(name, text, found):
    assert len(gpu_sins(name, text)) == found


def test_gpu_code_is_plain():
    """Kernels compile for the host as well: what only nvcc understands stays in one file."""
    sins = {path.name: gpu_sins(path.name, path.read_text()) for path in sources("cuda")}
    assert {name: found for name, found in sins.items() if found} == {}


def test_kernels_of_a_step_wait_for_the_one_before():
    """Those that may start early, as all do but what packs weights and what samples."""
    kernels = {}
    for path in sources("cuda", suffixes={".cuh"}):
        for text in re.split(r"(?=RWKV_KERNEL void)", path.read_text())[1:]:
            kernels[re.search(r"(\w+)\(PARAMS", text)[1]] = text
    assert {"mix", "small", "mixed", "sparse", "tile", "wkv7_carry", "finite"} <= set(kernels)
    waiting = {name for name, text in kernels.items() if re.search(r"\b(start|wait_for_previous)\(\);", text)}
    assert set(kernels) - waiting == {"pack", "sample"}


def test_files_are_short():
    folders = ("cpp", "cuda", "bindings", "python", "tests", "examples", "benchmarks")
    lines = {
        path: path.read_text().count("\n") for path in sources(*folders, suffixes={*CPP, ".py"})
    }
    assert {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > 500} == {}
    assert (ROOT / "python/rwkv_engine/engine.py").read_text().count("\n") < 200


def test_the_core_is_private_to_the_package():
    importing = re.compile(r"^\s*(from|import)\s.*\b_core\b", re.MULTILINE)
    outside = sources("tests", "benchmarks", "examples", suffixes={".py"})
    assert [str(path) for path in outside if importing.search(path.read_text())] == []


def test_the_package_needs_numpy_and_nothing_else_to_import():
    # tokenizers brings huggingface_hub; tomli is for Python 3.10
    allowed = {*sys.stdlib_module_names, "numpy", "tokenizers", "huggingface_hub", "tomli"}
    found = set()
    adapter = ROOT / "python/rwkv_engine/lm_eval.py"  # which nothing else imports
    for path in set(sources("python", suffixes={".py"})) - {adapter}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    assert found - allowed == set()


def test_one_version_number():
    import rwkv_engine

    (cmake,) = re.findall(
        r"^project\(.* VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE
    )
    changes = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert rwkv_engine.__version__ == cmake == changes[1]


# ---- tools ----


def clean(command):
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]


def test_clang_format(tool):
    files = sources("cpp", "cuda", "bindings", "tests", "examples", "benchmarks")
    clean([tool("clang-format"), "--dry-run", "-Werror", *files])


def test_ruff(tool):
    clean([tool("ruff"), "check", "--no-cache", "."])


def test_mypy(tool):
    clean([tool("mypy"), "--cache-dir", ROOT / "build" / "mypy"])
