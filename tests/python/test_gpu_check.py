"""benchmarks/gpu_check.sh without a GPU: the whole of it on the simulator, models, tables; nvcc takes the probes."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, find_tool
from helpers import child_environment

import rwkv_engine as rwkv

GPU = ROOT / "benchmarks" / "gpu"
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(
    not (pathlib.Path("/proc/self/status").exists() and shutil.which("bash")), reason="needs Linux and bash"
)


def run(*command, status=0, **environment):
    environment = {**child_environment(), "GPU_CHECK_PYTHON": sys.executable, **environment}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def simulated(cpp_build, tmp_path_factory):
    """(what was printed, folder of results)"""
    out = tmp_path_factory.mktemp("out")
    options = {"RWKV_CUDA_LIBRARY": str(cpp_build / "librwkv_cusim.so"), "RWKV_CUSIM": "stream:late"}
    return run(SCRIPT, "--simulate", OUT=str(out), **options).stdout, out


def test_a_simulated_run_ends_in_tables(simulated):
    text, out = simulated
    names = {"gpu-engine.json", "gpu-peers.json", "gpu-steps.json", "gpu-log.txt", "gpu-tables.txt"}
    assert {path.name for path in out.iterdir()} == names
    assert re.search(r"^  fp16 +decode 3 +[\d.]+ +[\d.]+ ", text, re.M)
    for step in ("pytest", "pytest-graphs,pdl", "engine", "peers"):
        assert re.search(rf"^  {step} +ok +\d+ ", text, re.M), step
    assert text.index("\nsteps\n") > text.index("decode 3") and (out / "gpu-tables.txt").read_text() == text
    left_out = json.loads((out / "gpu-peers.json").read_text())["left_out"]
    assert ("fla" in left_out) == ("fla is left out" in text)


def test_tests_of_the_gpu_were_run(simulated):
    """By the library that was named, not skipped."""
    log = (simulated[1] / "gpu-log.txt").read_text()
    assert len(re.findall(r"^=+ [2-9] passed.* deselected", log, re.M)) == 2 and " skipped" not in log
    assert len(re.findall(r"^tests/python/test_cuda.py::test_auto_takes_the_device.gpu. PASSED", log, re.M)) == 2


def test_the_engine_is_measured(simulated):
    found = json.loads((simulated[1] / "gpu-engine.json").read_text())
    zeros = found["settings"]["ffn_zero_fraction"]["tiny"]
    assert 0.86 <= zeros <= 0.9 and [check["features"] for check in found["checks"]] == ["", "graphs,pdl", "graphs,pdl"]
    for check in found["checks"]:
        assert check["device"] == "cuda:0 simulator" and check["error"] is None
        assert check["same_bits"] and check["largest_logit_difference"] < 0.05
    rows = {(row["precision"], row["task"], row["batch"]): row for row in found["results"]}
    assert {task for _, task, _ in rows} == {"decode", "sampled", "steps", "logits", "prefill", "fork"}
    assert all(row["tokens_per_second"] > 0 and row["share_of_roofline"] is None for row in rows.values())
    # Weights but the table, rows of ffn.value that zeros meet left out, and states there and back.
    L, C, V, R = 2, 128, 512, 2 * (8 + 8 + 8 + 16) - 8
    read = 2 * (L * (12 - 4 * zeros) * C * C + V * C + 2 * C * R) + L * 21 * C * 4
    states = 2 * 4 * L * (2 * C + C * 64)
    assert rows["fp16", "decode", 1]["bytes"] == pytest.approx(read + states, rel=1e-3)


def lines_of(tmp_path, *options, **environment):
    """What engine.py says of a tiny model."""
    run(sys.executable, GPU / "models.py", tmp_path, "--shapes", "tiny")
    model = tmp_path / "tiny-880.pth"
    command = [sys.executable, GPU / "engine.py", model, "--shape", "tiny", "--zeros", "0.88", "--quick", *options]
    return [json.loads(line) for line in run(*command, **environment).stdout.splitlines()]


def test_what_a_device_allows_comes_from_the_probes(cpp_build, tmp_path):
    limits = {"read_gigabytes": 2.0, "copy_gigabytes": 1.0, "mma_teraflops": 0.5}
    (tmp_path / "gpu-probes.json").write_text(json.dumps({"results": [], "limits": limits}))
    options = {"RWKV_CUDA_LIBRARY": str(cpp_build / "librwkv_cusim.so"), "OUT": str(tmp_path)}
    check, steps, prefill = lines_of(tmp_path, "--tasks", "steps:3", "prefill:1x9", **options)
    assert check["check"]["device"] == "cuda:0 simulator"
    row = steps["row"]
    states = 3 * 2 * 4 * 2 * (2 * 128 + 128 * 64)
    floor = ((row["bytes"] - states) / 2e9 + states / 1e9) * 1e3
    assert row["share_of_roofline"] == pytest.approx(floor / row["milliseconds"], rel=0.01)
    assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / row["milliseconds"] / 1e6, rel=0.01)
    row = prefill["row"]
    assert row["share_of_roofline"] == pytest.approx(row["operations"] / 0.5e9 / row["milliseconds"], rel=0.01)


def test_why_there_is_no_graph_is_told(cpp_build, tmp_path):
    """Such a step has the same results and is only slower, so nothing else would say so."""
    options = {"RWKV_CUDA_LIBRARY": str(cpp_build / "librwkv_cusim.so"), "RWKV_CUSIM": "graphs:none", "OUT": str(tmp_path)}
    found = [lines_of(tmp_path, "--tasks", "--features", features, **options) for features in ("", "graphs")]
    assert [line["check"]["device"] for (line,) in found] == ["cuda:0 simulator", "cuda:0 simulator, no graph: there are no graphs"]


def test_models_are_made_of_two_layers(tmp_path):
    code = """
import pathlib, sys
sys.path.insert(0, "benchmarks/gpu")
import results, common, models
common.SHAPES["deep"] = common.Shape(5, 128, (8, 8, 8, 16), V=1100)
print(models.model(pathlib.Path(sys.argv[1]), "deep", 0.88)[1])
"""
    fraction = float(run(sys.executable, "-c", code, tmp_path).stdout)
    assert fraction == pytest.approx(0.88, abs=0.011)
    (path,) = tmp_path.glob("deep*.pth")
    engine = rwkv.Engine(path, "cpu fp32")
    assert (engine.config.n_layer, engine.config.n_embd, engine.config.n_vocab) == (5, 128, 1100)
    plain = tmp_path / "a.safetensors"
    rwkv.convert(path, plain)
    assert path.stat().st_size < plain.stat().st_size
    data = plain.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)

    def tensor(name):
        begin, end = header[name]["data_offsets"]
        at = len(data) - max(t["data_offsets"][1] for t in header.values())
        return np.frombuffer(data[at + begin : at + end], np.uint16).reshape(header[name]["shape"])

    keys = [tensor(f"blocks.{i}.ffn.key.weight") for i in range(5)]
    assert not any((keys[i] == keys[j]).all(1).any() for i in range(5) for j in range(i))
    assert (np.roll(keys[1], -128, axis=0) == keys[2]).all()
    assert (tensor("emb.weight")[:512] == tensor("emb.weight")[512:1024]).all()
    assert np.isfinite(engine.forward([1, 1099], engine.new_state())).all()


def test_a_part_that_fails_loses_no_other(cpp_build, tmp_path):
    options = {"RWKV_CUDA_LIBRARY": str(cpp_build / "librwkv_cusim.so"), "OUT": str(tmp_path / "out")}
    done = run(SCRIPT, "--simulate", "engine", "peers", status=1, RWKV_CUSIM="fail:1", **options)
    assert "-- engine: exit status 1" in done.stderr
    found = json.loads((tmp_path / "out" / "gpu-engine.json").read_text())
    assert len(found["checks"]) == 3 and all("the call that was to fail" in check["error"] for check in found["checks"])
    assert steps_of(tmp_path / "out") == [("engine", "exit status 1"), ("peers", "ok")]


def put_programs(folder, **programs):
    """What is found in front of the machine's own."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        path = folder / name.replace("_sanitizer", "-sanitizer").replace("_smi", "-smi")
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def steps_of(out):
    return [(row["step"], row["status"]) for row in json.loads((out / "gpu-steps.json").read_text())["results"]]


KERNEL_TESTS = ("cuda_chunk_test", "cuda_products_test", "cuda_sample_test", "cuda_tile_test", "cuda_wkv_test")
SANITIZER = 'echo "$@"; exec "${!#}" "$2"'  # its options, then the program with the tool's name


def test_a_program_that_hangs_loses_no_words(tmp_path):
    """Not its own, and not those of the others."""
    path = put_programs(tmp_path / "bin", compute_sanitizer=SANITIZER)
    programs = dict.fromkeys(KERNEL_TESTS, 'echo "in front of $RWKV_GPU_TESTS"')
    programs["cuda_tile_test"] = "echo before; [[ $1 == racecheck ]] || sleep 60"
    programs["cuda_wkv_test"] = "echo found; [[ $1 == racecheck ]] || exit 9"
    put_programs(tmp_path / "build", **programs)
    options = {"GPU_CHECK_ARCHITECTURE": "90", "GPU_CHECK_BUILD": str(tmp_path / "build"), "GPU_CHECK_SECONDS": "40"}
    run(SCRIPT, "sanitize", status=1, OUT=str(tmp_path / "out"), **options, **path)
    assert steps_of(tmp_path / "out") == [("memcheck", "exit status 1"), ("racecheck", "ok")]
    log = (tmp_path / "out" / "gpu-log.txt").read_text()
    memcheck, racecheck = log.split("\n== ")[1:]
    said = [re.sub(r"--tool (\w+) .*", r"\1", part).split("\n") for part in re.split("^-- ", memcheck, flags=re.M)[1:]]
    assert [lines[:3] for lines in said] == [
        ["cuda_chunk_test: ok", "memcheck", "in front of 1"],
        ["cuda_products_test: ok", "memcheck", "in front of 1"],
        ["cuda_sample_test: ok", "memcheck", "in front of 1"],
        ["cuda_tile_test: no end after 6 s", "memcheck", "before"],
        ["cuda_wkv_test: exit status 9", "memcheck", "found"],
    ]
    assert re.findall(r"^-- (\w+: .*)", racecheck, re.M) == [f"{name}: ok" for name in KERNEL_TESTS]


def test_without_the_package_kernels_are_tested(tmp_path):
    """Its build needs more than theirs does, and may fail on a machine where they would have said what is wrong."""
    build = f'for test in cuda_{{chunk,products,sample,tile,wkv}}_test; do cp /bin/true "{tmp_path}/build/$test"; done'
    path = put_programs(
        tmp_path / "bin",
        python3=f'exec "{sys.executable}" "$@"',
        cmake=f'echo "$@"; mkdir -p "{tmp_path}/build"; if [[ $1 == --build ]]; then {build}; fi',
        compute_sanitizer=SANITIZER,
        nvidia_smi="exit 9",
    )
    options = {"GPU_CHECK_PYTHON": str(tmp_path / "bin" / "python3"), "GPU_CHECK_BUILD": str(tmp_path / "build")}
    options["PIP_RETRIES"] = "so that pip refuses to start"
    done = run(SCRIPT, "build", "sanitize", status=1, OUT=str(tmp_path / "out"), **options, **path)
    assert "nvidia-smi says nothing, so the GPU is taken for one of compute capability 9.0" in done.stderr
    found = steps_of(tmp_path / "out")
    assert found[0] == ("venv", "ok") and found[1] == ("package", "exit status 3")
    assert found[2:] == [(name, "ok") for name in ("configure", "kernel-tests", "memcheck", "racecheck")]
    log = (tmp_path / "out" / "gpu-log.txt").read_text()
    assert "-DRWKV_BUILD_PYTHON=OFF -DRWKV_CUDA=ON" in log and "-DCMAKE_CUDA_ARCHITECTURES=90-real" in log
    assert "--target rwkv_cuda cuda_chunk_test" in log


def test_no_sanitizer_is_no_failure(tmp_path):
    if shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"):
        pytest.skip("there is one")
    run(SCRIPT, "sanitize", OUT=str(tmp_path), GPU_CHECK_ARCHITECTURE="90")
    assert steps_of(tmp_path) == [("sanitize", "left out")]


CHILD = """
import json, sys, time
import numpy as np
words = sys.argv[1:]
features = words[words.index("--features") + 1]
np.save(words[words.index("--logits") + 1], np.full((16, 512), 1 + (features == "pdl"), np.float32))
print(json.dumps({"check": {"load_seconds": 1}}), flush=True)
print(json.dumps({"row": {"task": "decode", "batch": 1}}), flush=True)
print('{"row": {"task": "st', end="", flush=True)
if features == "graphs,pdl": time.sleep(60)
if features == "pdl": sys.exit("it failed")
"""


def test_runs_that_hang_or_fail_leave_the_others_their_time(tmp_path):
    """What they said before counts; the best features are the fastest that ended and had the bits of the plain ones."""
    (tmp_path / "child.py").write_text(CHILD)
    code = """
import argparse, pathlib, sys, time
sys.path.insert(0, "benchmarks/gpu")
import results, schedule
from schedule import BEST, Run, Schedule
folder = pathlib.Path(sys.argv[1])
schedule.ENGINE = folder / "child.py"
s = Schedule(argparse.Namespace(end=time.monotonic() + 600, seconds=600, zeros=88, quick=True), folder)
for features in ("", "graphs", "graphs,pdl", "pdl", BEST, BEST + ",cublaslt"):
    s.run(Run("tiny", "fp16", features, ("decode:1",), 3 if features == "graphs,pdl" else 30))
for check in s.checks:
    print(check["features"], check["same_bits"], check["error"], sep="|")
assert len(s.rows) == 6
"""
    said = run(sys.executable, "-c", code, tmp_path, OUT=str(tmp_path / "out")).stdout.splitlines()
    assert said == [
        "|True|None",
        "graphs|True|None",
        "graphs,pdl|True|no end after 3 s",
        "pdl|False|it failed",
        "graphs|True|None",
        "graphs,cublaslt|True|None",
    ]


def test_what_ncu_says_becomes_a_table():
    code = """
import sys
sys.path.insert(0, "benchmarks/gpu")
import breakdown
names = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"
small = "void rwkv::cuda::small<(rwkv::cuda::Stored)1, 1, 1>(rwkv::cuda::LinearParams)"
rows = [("ID", "Kernel Name", *names), ("", "", "us", "Mbyte", "Kbyte"), ("0", small, "10", "20", "0")]
rows += [("1", small, "10", "19", "1,000"), ("2", "rwkv::cuda::embed(rwkv::cuda::EmbedParams)", "20", "1", "0")]
lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
for row in breakdown.table_of(lines, "1x1"):
    print(row["kernel"], row["launches"], row["microseconds"], row["share"], row["gigabytes_per_second"], sep="|")
"""
    assert run(sys.executable, "-c", code).stdout.splitlines() == [
        "small<1, 1, 1>|2.0|20.0|0.5|2000.0",
        "embed|1.0|20.0|0.5|50.0",
    ]


def test_refusals(tmp_path):
    assert "gpu_check.sh [--simulate]" in run(SCRIPT, "nonsense", status=2).stderr
    assert "expected the simulator" in run(SCRIPT, "--simulate", status=2, RWKV_CUDA_LIBRARY="none").stderr
    options = {"OUT": str(tmp_path), "GPU_CHECK_ARCHITECTURE": "none"}
    assert "expected a GPU, found none" in run(SCRIPT, "probes", status=2, **options).stderr


def test_probes_compile(tmp_path):
    nvcc = find_tool("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    command = [nvcc, "-std=c++20", "-O3", "-arch=sm_90", "-Xptxas", "-v", "-c", GPU / "probes.cu", "-o", tmp_path / "a.o"]
    said = run(*command).stderr
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(found) >= 14 and {sizes for sizes in found} == {("0", "0", "0")}
    assert os.path.getsize(tmp_path / "a.o") > 10_000
