"""The benchmarks run and answer rightly, and their results have the keys that benchmarks/README.md explains. No times."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from helpers import child_environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "benchmarks" / "README.md").read_text()
COMMANDS = [line.split()[1:] for line in re.search(r"^```bash\n(.*?)^```", README, re.M | re.S)[1].splitlines()]
NAMES = [pathlib.Path(words[0]).stem for words in COMMANDS if words[0] != "benchmarks/plot.py"]
MACHINE = {"cpu", "cores", "device", "memory_gigabytes", "caches", "system", "compiler", "python", "numpy"}

pytestmark = pytest.mark.skipif(
    not (pathlib.Path("/proc/self/status").exists() and shutil.which("g++")), reason="needs Linux and a compiler"
)


def python(*words):
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)], cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented_keys(name):
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result of a quick run, each benchmark once; kept in files for plot.py."""
    folder = tmp_path_factory.mktemp("results")
    results = ROOT / "benchmarks" / "results"

    def result(name):
        file = folder / f"{name}.json"
        if not file.exists():
            before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
            file.write_text(python(f"benchmarks/{name}.py", "--quick"))
            assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before, "a quick run wrote results"
        return json.loads(file.read_text())

    return result, folder


def test_the_readme_lists_every_benchmark():
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"common", "runners"}
    assert {*NAMES, "plot"} == programs and len(NAMES) == len(COMMANDS) - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_gives_what_is_documented(quick, name):
    result = quick[0](name)
    assert list(result) == ["benchmark", "command", "engine", "machine", "settings", "results"]
    assert result["benchmark"] == name and result["command"] == f"python benchmarks/{name}.py --quick"
    assert set(result["machine"]) == MACHINE and all(result["machine"][key] for key in MACHINE - {"caches"})
    assert result["settings"]["shape"] == "tiny" and result["settings"]["threads"] >= 1
    keys = documented_keys(name)
    assert len(keys) > 5 and len(result["results"]) > 1
    for row in result["results"]:
        assert set(row) == keys
        assert all(value > 0 for key, value in row.items() if isinstance(value, float) and "log" not in key)


def test_a_full_run_is_written_for_a_machine_that_is_named(tmp_path):
    """A benchmark of the demo model, so that no large model is made; its results go where this test can look."""
    prepare = f"import common, pathlib; common.RESULTS = pathlib.Path({str(tmp_path)!r})"

    def run(*options):
        words = ["benchmarks/embed.py", "--lengths", "200", "--rounds", "1", *options]
        path = "import sys; sys.path.insert(0, 'benchmarks')"
        program = f"{path}; {prepare}; sys.argv = {words}; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
        return subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=120)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "not written" in done.stderr and json.loads(done.stdout)["results"] and not any(tmp_path.iterdir())
    done = run("--machine", "zen-5.b")
    assert done.returncode == 0, done.stderr
    assert "not written" not in done.stderr and [path.name for path in tmp_path.rglob("*.json")] == ["embed.json"]
    assert (tmp_path / "zen-5.b" / "embed.json").read_text() == done.stdout
    assert "machine" not in json.loads(done.stdout)["settings"]
    for options in (["--machine", "../elsewhere"], ["--machine", ".."], ["--machine", "a", "--quick"]):
        done = run(*options)
        assert done.returncode == 2 and "--machine" in done.stderr and len(list(tmp_path.rglob("*"))) == 2


def test_results_that_do_not_change_with_time_are_right(quick):
    rows = quick[0]("constant")["results"]
    assert [row["position"] for row in rows] == [10, 100, 1000]
    assert [row["kv_cache_megabytes"] for row in rows] == [2 * 2 * 128 * 2 * p / 1e6 for p in (10, 100, 1000)]
    L, C, V, R = 2, 128, 512, 2 * (8 + 8 + 8 + 16) - 8
    for row in quick[0]("decode")["results"]:
        width = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 66 / 64, "int4": 34 / 64}[row["precision"]]
        head = 66 / 64 if row["precision"] == "int4" else width
        narrow = 4 if row["precision"] == "fp32" else 2
        bytes_read = L * 12 * C * C * width + V * C * head + 2 * C * R * narrow + L * 21 * C * 4
        assert row["megabytes_per_token"] == pytest.approx(bytes_read / 1e6, rel=1e-3)
    originals = {(container, precision) for container in (".pth", ".safetensors") for precision in ("fp32", "bf16")}
    assert {(row["container"], row["precision"]) for row in quick[0]("load")["results"]} == originals | {
        (container, "int8") for container in (".pth", "quantised, read", "quantised, mapped")
    }
    assert {(row["precision"], row["pinned"]) for row in quick[0]("steady")["results"]} == {
        (precision, pinned) for precision in ("bf16", "int8") for pinned in (False, True)
    }
    rows = quick[0]("compare")["results"]
    fractions = [row["ffn_zero_fraction"] for row in rows]
    assert fractions == sorted(fractions) and fractions[0] == pytest.approx(0.5, abs=0.02) and fractions[-1] == pytest.approx(0.86, abs=0.02)
    assert {"fp32", "bf16"} <= {row["precision"] for row in rows} and {row["runner"] for row in rows} == {"rwkv_engine"}
    for row in rows:
        assert (row["largest_logit_difference"] == 0) == (row["precision"] == "fp32")
    operations = [row["operation"] for row in quick[0]("states")["results"]]
    assert {"fork", "step after fork", "to_bytes", "state_from_bytes", "save", "load_state"} <= set(operations)


@pytest.mark.peers
def test_peers_compute_the_same_model():
    """The program itself compares logits; who is not installed is left out."""
    rows = json.loads(python("benchmarks/compare.py", "--quick", "--threads", 1, "--peers", "llama.cpp", "rwkv"))["results"]
    assert len({row["runner"] for row in rows}) > 1
    for row in rows:
        peer = row["runner"] != "rwkv_engine"
        assert (row["decode_times_faster"] is not None) == (row["prefill_lowest_highest"] is not None) == peer
        assert row["largest_logit_difference"] < (1e-4 if row["bits"] == 32 else 0.1 if row["bits"] == 16 else 1)


def test_plots_are_drawn_and_always_the_same(quick):
    pytest.importorskip("matplotlib")
    result, folder = quick
    result("constant"), result("branch")

    def drawn():
        python("benchmarks/plot.py", "--results", folder)
        return {name: (folder / f"{name}.svg").read_text() for name in ("constant", "branch")}

    first = drawn()
    assert drawn() == first
    for text in first.values():
        assert text.count("<svg") == 1 and len(text) < 60_000
        assert "dc:date" not in text and "Matplotlib" not in text
    assert "milliseconds per token" in first["constant"] and "milliseconds per step" in first["branch"]
