"""`rwkv-engine embed`: the vectors of the library, in files and on standard output."""

import json
import os
import pty
import signal
import time

import numpy as np
import pytest
from helpers import bits
from test_cli import assert_one_sentence, run, start

import rwkv_engine as rwkv

TEXTS = ["import os", "größer: 你好", "x = [1, 2]", "import os"]


@pytest.fixture(scope="module")
def engine():
    return rwkv.Engine("demo")


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\r\n".join(TEXTS).encode() + b"\n")
    return path


def embed(*arguments, **options):
    done = run("embed", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def rows(output):
    return [json.loads(line) for line in output.splitlines()]


def array(found):
    return np.array([row["embedding"] for row in found], np.float32)


def test_lines_as_json(engine, lines):
    found = rows(embed("--lines", lines))
    assert bits(array(found)) == bits(engine.embed(TEXTS))
    assert [row["line"] for row in found] == [1, 2, 3, 4]
    assert [row["tokens"] for row in found] == [len(engine.tokenizer.encode(text)) for text in TEXTS]
    assert rows(embed("--lines", "-", stdin=lines.read_bytes())) == found


def test_files_as_json(engine, lines, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"not UTF-8: \xff\n")
    found = rows(embed(lines, tmp_path / "b.txt", "-", stdin=b"abc"))
    tokens = [engine.tokenizer.encode(t) for t in (lines.read_bytes(), b"not UTF-8: \xff\n", "abc")]
    assert bits(array(found)) == bits(engine.embed(tokens))
    assert [row["file"] for row in found] == [str(lines), str(tmp_path / "b.txt"), "-"]


@pytest.mark.parametrize(
    "options, keywords",
    [
        ([], {}),
        (["--pooling", "last"], {"pooling": "last"}),
        (["--pooling", "eos", "--eos-token", "7"], {"pooling": "eos", "eos_token": 7}),
        (["--no-normalize"], {"normalize": False}),
    ],
)
def test_an_array(engine, lines, tmp_path, options, keywords):
    assert embed("--lines", lines, "--output", tmp_path / "a.npy", *options) == b""
    assert bits(np.load(tmp_path / "a.npy")) == bits(engine.embed(TEXTS, **keywords))


def test_json_into_a_file(lines, tmp_path):
    expected = embed("--lines", lines)
    for name, options in (("a.jsonl", []), ("a.txt", ["--json"]), ("a.npy", ["--json"])):
        assert embed("--lines", lines, "--output", tmp_path / name, *options) == b""
        assert (tmp_path / name).read_bytes() == expected


def test_no_lines(tmp_path):
    assert embed("--lines", "-") == b""
    embed("--lines", "-", "--output", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").shape == (0, 128)


@pytest.mark.parametrize(
    "arguments, stdin, word",
    [
        ([], b"", "expected files or --lines, found neither"),
        (["a", "--lines", "b"], b"", "found both"),
        (["--lines", "absent.txt"], b"", "absent.txt: expected a file"),
        (["-"], b"", "-: expected a text, found an empty one"),
        (["--lines", "-"], b"a\n\nb\n", "line 2: expected a text, found an empty one"),
        (["--lines", "-", "--output", "a.csv"], b"a", "ends in .npy or .jsonl, or --json, found 'a.csv'"),
        (["--lines", "-", "--output", "absent/a.npy"], b"a", "absent"),
        (["--lines", "-", "--task", "retrieval"], b"a", "expected none for a language model"),
        (["--lines", "-", "--eos-token", "5"], b"a", "eos_token"),
    ],
)
def test_what_is_refused(arguments, stdin, word):
    done = run("embed", *arguments, stdin=stdin)
    assert_one_sentence(done.returncode, done.stderr, word)
    assert done.stdout == b""


def test_an_interrupt_leaves_the_old_file(tmp_path):
    """In a terminal, where the bar says that it has begun to read."""
    (tmp_path / "long.txt").write_text("import os\n" * 2_000_000)
    (tmp_path / "a.npy").write_bytes(b"old")
    main, other = pty.openpty()
    arguments = ("embed", tmp_path / "long.txt", "--output", tmp_path / "a.npy")
    process = start(*arguments, stderr=other)
    os.close(other)
    shown = b""
    while b"reading [" not in shown:
        shown += os.read(main, 4096)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=60) == 130 and time.monotonic() - began < 10
    process.communicate()
    os.close(main)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "long.txt"]
    assert (tmp_path / "a.npy").read_bytes() == b"old"
