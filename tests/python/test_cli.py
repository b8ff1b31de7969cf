"""The command, as a shell sees it: what it prints where, and its exit status."""

import dataclasses
import io
import json
import math
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest
from helpers import SMALL, model

import rwkv_engine as rwkv
from rwkv_engine.cli._progress import Bar

COMMAND = [sys.executable, "-m", "rwkv_engine"]
PROMPT = "def main("


def start(*arguments, **options):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **{**pipes, **options})


def run(*arguments, stdin=b"", **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def generated(*arguments, **options):
    done = run("generate", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def expected(prompt=PROMPT, **changes):
    return rwkv.Engine("demo").generate(prompt, rwkv.SamplingParams(**changes)).text.encode()


# ---- generate ----


def test_the_text_of_the_library_and_nothing_else():
    found = generated(PROMPT, "--seed", 5, "--max-tokens", 20)
    assert found == expected(seed=5, max_tokens=20) != b""
    options = (
        "--temperature",
        0.5,
        "--top-p",
        0.9,
        "--seed",
        5,
        "--max-tokens",
        20,
        "--threads",
        1,
    )
    found = generated(PROMPT, *options, "--strategy", "cpu bf16")
    assert found == expected(temperature=0.5, top_p=0.9, seed=5, max_tokens=20)
    assert generated(PROMPT, "--temperature", 0, "--max-tokens", 0) == b""


def test_the_installed_command_is_this_one():
    command = pathlib.Path(sys.executable).with_name("rwkv-engine")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    done = subprocess.run([command, "--version"], capture_output=True, timeout=60)
    assert done.stdout == run("--version").stdout == f"rwkv-engine {rwkv.__version__}\n".encode()


def test_the_prompt_may_come_from_standard_input():
    options = ("--temperature", 0, "--max-tokens", 12)
    text = PROMPT.encode() + "é\n".encode()
    assert generated("-", *options, stdin=text) == generated(text.decode(), *options)
    assert generated("-", *options, stdin=b"\xff\xfe\x00") != b""


def test_an_argument_need_not_be_utf8():
    options = ("--temperature", "0", "--max-tokens", "5")
    done = subprocess.run(
        [*COMMAND, "generate", b"a\xff", *options], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == generated("-", *options, stdin=b"a\xff")


def test_a_saved_state_goes_on(tmp_path):
    greedy = ("--temperature", 0, "--max-tokens")
    whole = generated(PROMPT, *greedy, 12)
    first = generated(PROMPT, *greedy, 5, "--save", tmp_path / "a.state")
    rest = generated("--state", tmp_path / "a.state", *greedy, 7)
    assert first + rest == whole
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_locale_cannot_show(encoding):
    """The demo writes ASCII, so characters of every kind are put in its mouth."""
    code = "from rwkv_engine import cli; cli._prepare_output(); print('a\u00e9\u20ac\ufffd')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "a\u00e9\u20ac\ufffd\n".encode(encoding, "backslashreplace")
    found = run("generate", "é€", "--seed", 1, "--max-tokens", 20, LC_ALL="C", PYTHONUTF8="0")
    assert (found.returncode, found.stderr) == (0, b"")


ENDLESS = ("generate", PROMPT, "--temperature", 0, "--max-tokens", 10**9)


@pytest.fixture
def endless():
    process = start(*ENDLESS)
    yield process
    process.kill()
    process.communicate()


def test_text_is_printed_as_it_is_produced(endless):
    assert endless.stdout.read(1) != b""
    assert endless.poll() is None, "the first character comes before the last token"


def test_ctrl_c_is_quiet(endless):
    endless.stdout.read(1)
    endless.send_signal(signal.SIGINT)
    _, errors = endless.communicate(timeout=20)
    assert (endless.returncode, errors) == (130, b"")


def test_a_closed_pipe_is_quiet(endless):
    endless.stdout.read(1)
    endless.stdout.close()
    assert endless.stderr.read() == b""
    assert endless.wait(timeout=20) == 141


def test_without_standard_output():
    command = " ".join(["exec", *COMMAND, "generate", "x", "--max-tokens", "3", ">&-"])
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "wb") as full:
        process = start("generate", PROMPT, "--max-tokens", 3, "--seed", 1, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert_one_sentence(process.returncode, errors, "No space left on device")


def test_on_a_terminal_the_text_ends_its_line():
    leader, follower = pty.openpty()
    process = start("generate", PROMPT, "--seed", 5, "--max-tokens", 8, stdout=follower)
    _, errors = process.communicate(timeout=60)
    os.close(follower)
    shown = os.read(leader, 65536).replace(b"\r\n", b"\n")
    os.close(leader)
    assert (process.returncode, errors) == (0, b"")
    assert shown == expected(seed=5, max_tokens=8) + b"\n"


def test_progress_is_for_terminals(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar("loading") as bar:
            for done in range(0, 101, 20):
                bar.update(done, 100)
        return stream.getvalue()

    monkeypatch.setattr("rwkv_engine.cli._progress.DELAY", 0)
    monkeypatch.setattr("rwkv_engine.cli._progress.INTERVAL", 0)
    assert shown(io.StringIO()) == ""
    text = shown(Terminal())
    assert "loading [......" in text and "100%" in text and text.endswith("\r\x1b[K")
    monkeypatch.setattr("rwkv_engine.cli._progress.DELAY", 60)
    assert shown(Terminal()) == "", "what is soon done needs no bar"


# ---- errors ----


def assert_one_sentence(status, errors, word):
    text = errors.decode()
    assert (status, text.count("\n"), text[:13]) == (1, 1, "rwkv-engine: "), text
    assert word in text and "Traceback" not in text


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("--model", "absent.pth"), "absent.pth"),
        (("--model", "."), "folder with a model"),
        (("--model", ""), "path"),
        (("--model", "hf:owner/repo/file"), "hf:owner/repo/file"),
        (("--model", __file__), "test_cli.py"),
        (("--strategy", "cpu fp99"), "fp99"),
        (("--strategy", "cuda fp16"), "cuda"),
        (("--threads", "0"), "threads"),
        (("--temperature", "nan"), "temperature"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "2"), "top_p"),
        (("--seed", "-1"), "seed"),
        (("--max-tokens", "-1"), "max_tokens"),
        (("--tokenizer", "absent.txt"), "absent.txt"),
        (("--tokenizer", __file__), "test_cli.py"),
        (("--state", "absent.state"), "absent.state"),
        (("--state", __file__), "test_cli.py"),
        (("--save", "absent/a.state", "--max-tokens", "1"), "absent/a.state"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_errors_are_one_sentence(arguments, word, tmp_path):
    done = subprocess.run(
        [*COMMAND, "generate", PROMPT, *arguments], capture_output=True, timeout=60, cwd=tmp_path
    )
    assert_one_sentence(done.returncode, done.stderr, word)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_vocabulary_says_what_to_pass():
    done = run("generate", PROMPT, "--model", model(**SMALL).path())
    assert_one_sentence(done.returncode, done.stderr, "tokenizer")
    assert "40" in done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sing",),
        ("generate", "--temperature", "warm"),
        ("generate", "a", "b"),
        ("inspect", "--all"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence_and_status_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(b"rwkv-engine: ")


def test_help():
    for arguments, word in (
        ((), b"generate"),
        (("generate",), b"--top-p"),
        (("inspect",), b"--json"),
    ):
        done = run(*arguments, "--help")
        assert (done.returncode, done.stderr) == (0, b"") and word in done.stdout


# ---- inspect ----


def test_inspect_agrees_with_the_engine():
    found = json.loads(run("inspect", "--json", "--tensors").stdout)
    engine = rwkv.Engine("demo")
    assert {key: found[key] for key in dataclasses.asdict(engine.config)} == dataclasses.asdict(
        engine.config
    )
    assert (
        found["container"] == "pth" and pathlib.Path(found["path"]).stat().st_size > found["bytes"]
    )
    assert found["parameters"] == sum(math.prod(t["shape"]) for t in found["tensors"])
    assert found["bytes"] == 2 * found["parameters"]
    assert found["state_bytes"] == engine.new_state().nbytes
    emb = {"name": "emb.weight", "dtype": "bf16", "shape": [1024, 128], "bytes": 1024 * 128 * 2}
    assert emb in found["tensors"]


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4"])
def test_the_memory_that_inspect_names_is_what_loading_takes(strategy):
    found = json.loads(run("inspect", "--json").stdout)
    taken = rwkv.Engine("demo", strategy)._core.weight_bytes
    assert abs(found["memory_bytes"][strategy] / taken - 1) < 0.02


def test_inspect_for_people():
    text = run("inspect").stdout.decode()
    assert "RWKV-7" in text and "1,222,656" in text and "emb.weight" not in text
    assert "emb.weight  bf16  (1024, 128)" in run("inspect", "--tensors").stdout.decode()
    done = run("inspect", "absent.pth")
    assert_one_sentence(done.returncode, done.stderr, "absent.pth")
