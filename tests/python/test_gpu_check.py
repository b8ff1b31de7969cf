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
    return run(SCRIPT, "--simulate", "engine", "peers", OUT=str(out), **options).stdout, out


def test_a_simulated_run_ends_in_tables(simulated):
    text, out = simulated
    assert {path.name for path in out.iterdir()} == {"gpu-engine-tiny.json", "gpu-peers.json", "gpu-steps.json"}
    assert re.search(r"^  fp16 +decode 3 +[\d.]+ +[\d.]+ ", text, re.M)
    assert re.search(r"^  engine +ok +\d+ ", text, re.M) and text.index("\nsteps\n") > text.index("decode 3")
    left_out = json.loads((out / "gpu-peers.json").read_text())["left_out"]
    assert ("fla" in left_out) == ("fla is left out" in text)


def test_the_engine_is_measured(simulated):
    found = json.loads((simulated[1] / "gpu-engine-tiny.json").read_text())
    assert found["device"] == "cuda:0 simulator" and 0.86 <= found["settings"]["ffn_zero_fraction"] <= 0.9
    assert all(check["same_bits"] and check["largest_logit_difference"] < 0.05 for check in found["checks"])
    rows = {(row["precision"], row["task"], row["batch"]): row for row in found["results"]}
    assert {task for _, task, _ in rows} == {"decode", "steps", "prefill", "fork"}
    assert all(row["tokens_per_second"] > 0 and row["share_of_roofline"] is None for row in rows.values())
    # Weights but the table, rows of ffn.value that zeros meet left out, and states there and back.
    L, C, V, R = 2, 128, 512, 2 * (8 + 8 + 8 + 16) - 8
    zeros = found["settings"]["ffn_zero_fraction"]
    read = 2 * (L * (12 - 4 * zeros) * C * C + V * C + 2 * C * R) + L * 21 * C * 4
    states = 2 * 4 * L * (2 * C + C * 64)
    assert rows["fp16", "decode", 1]["bytes"] == pytest.approx(read + states, rel=1e-3)


def test_what_a_device_allows_comes_from_the_probes(simulated, cpp_build, tmp_path):
    limits = {"read_gigabytes": 2.0, "copy_gigabytes": 1.0, "mma_teraflops": 0.5}
    (tmp_path / "gpu-probes.json").write_text(json.dumps({"results": [], "limits": limits}))
    options = {"RWKV_CUDA_LIBRARY": str(cpp_build / "librwkv_cusim.so"), "OUT": str(tmp_path)}
    run(sys.executable, GPU / "engine.py", "--quick", **options)
    rows = json.loads((tmp_path / "gpu-engine-tiny.json").read_text())["results"]
    row = next(row for row in rows if (row["task"], row["batch"]) == ("decode", 3))
    states = 3 * 2 * 4 * 2 * (2 * 128 + 128 * 64)
    floor = ((row["bytes"] - states) / 2e9 + states / 1e9) * 1e3
    assert row["share_of_roofline"] == pytest.approx(floor / row["milliseconds"], rel=0.01)
    row = next(row for row in rows if row["task"] == "prefill")
    assert row["share_of_roofline"] == pytest.approx(row["operations"] / 0.5e9 / row["milliseconds"], rel=0.01)


def test_models_are_made_of_two_layers(tmp_path):
    code = """
import pathlib, sys
sys.path.insert(0, "benchmarks/gpu")
import results, common, models
common.SHAPES["deep"] = common.Shape(5, 128, (8, 8, 8, 16), V=1100)
print(models.write_model(pathlib.Path(sys.argv[1]), "deep", 0.88, 3))
"""
    path = tmp_path / "a.safetensors"
    fraction = float(run(sys.executable, "-c", code, path).stdout)
    assert fraction == pytest.approx(0.88, abs=0.011)
    engine = rwkv.Engine(path, "cpu fp32")
    assert (engine.config.n_layer, engine.config.n_embd, engine.config.n_vocab) == (5, 128, 1100)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])

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
    assert "-- engine: exit status 1" in done.stderr and "the call that was to fail" in done.stderr
    found = json.loads((tmp_path / "out" / "gpu-engine-tiny.json").read_text())
    assert found["device"] is None and "the call that was to fail" in found["checks"][0]["error"]
    steps = json.loads((tmp_path / "out" / "gpu-steps.json").read_text())["results"]
    assert [(row["step"], row["status"]) for row in steps] == [("engine", "exit status 1"), ("peers", "ok")]


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
