"""`rwkv-engine score`: what the library finds, as tables and as JSON."""

import json
import math

import pytest
from test_cli import assert_one_sentence, run

import rwkv_engine as rwkv

TEXT = "def main():\n    print('é')"
DEMO = ("--strategy", "cpu fp32")


def test_a_text():
    demo = rwkv.Engine("demo", "cpu fp32")
    ids = demo.tokenizer.encode(TEXT)
    logprobs = demo.score(ids).tolist()
    done = run("score", TEXT, *DEMO)
    assert (done.returncode, done.stderr) == (0, b"")
    *rows, last = done.stdout.decode().splitlines()
    assert [int(row[10:18]) for row in rows] == ids
    assert rows[0][:10].strip() == "" and [row[:10].strip() for row in rows[1:]] == [f"{x:.4f}" for x in logprobs]
    assert "".join(eval(row[20:]).decode("latin1") if row[20] == "b" else eval(row[20:]) for row in rows).startswith("def main():\n")
    assert f"log-probability {sum(logprobs):.4f}" in last and last.startswith(f"{len(ids) - 1} tokens, ")
    found = json.loads(run("score", TEXT, "--json", *DEMO).stdout)
    assert [row["id"] for row in found["scores"]] == ids
    assert [row["logprob"] for row in found["scores"]] == [None, *logprobs]
    assert found["perplexity"] == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)))
    size = len(demo.tokenizer.decode_bytes(ids[1:]))
    assert found["bits_per_byte"] == pytest.approx(-sum(logprobs) / math.log(2) / size)


def test_where_a_text_comes_from_and_what_it_comes_after(tmp_path):
    expected = run("score", TEXT, "--json", *DEMO).stdout
    (tmp_path / "text").write_text(TEXT)
    assert run("score", "--file", tmp_path / "text", "--json", *DEMO).stdout == expected
    assert run("score", "-", "--json", *DEMO, stdin=TEXT.encode()).stdout == expected
    demo = rwkv.Engine("demo", "cpu fp32")
    begun = json.loads(run("score", "x", "--json", "--bos", 0, *DEMO).stdout)
    assert [row["logprob"] for row in begun["scores"]] == demo.score("x", bos=0).tolist()
    state = demo.new_state()
    demo.forward(demo.tokenizer.encode("import os\n"), state)
    state.save(tmp_path / "a.state")
    after = json.loads(run("score", "import", "--json", "--state", tmp_path / "a.state", *DEMO).stdout)
    assert [row["logprob"] for row in after["scores"]] == demo.score("import", state).tolist()


def test_choices():
    demo = rwkv.Engine("demo", "cpu fp32")
    choices = [" self", " range(", " enumerate("]
    for options, normalize in (((), None), (("--normalize", "bytes"), "bytes")):
        expected = demo.rank("for i in", choices, normalize=normalize)
        done = run("score", "for i in", "--choices", *choices, "--json", *options, *DEMO)
        found = json.loads(done.stdout)
        assert [(row["index"], row["score"]) for row in found] == [(c.index, c.score) for c in expected]
        lines = run("score", "for i in", "--choices", *choices, *options, *DEMO).stdout.decode().splitlines()
        assert [line.split("'")[1] for line in lines[1:]] == [c.choice for c in expected]
        assert [float(line.split()[-4]) for line in lines[1:]] == [round(c.score, 4) for c in expected]
    state = demo.new_state()
    demo.forward([0], state)
    begun = json.loads(run("score", "for i in", "--choices", *choices, "--bos", 0, "--json", *DEMO).stdout)
    assert [row["logprob"] for row in begun] == [c.logprob for c in demo.rank("for i in", choices, state)]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "expected TEXT or --file, found neither"),
        (("a", "--file", __file__), "found both"),
        (("", "--file", __file__), "found both"),
        (("",), "expected at least 2 tokens, found 0"),
        (("a",), "expected at least 2 tokens, found 1"),
        (("", "--bos", "0"), "expected a token, found 0"),
        (("ab cd", "--bos", "1024"), "1024"),
        (("a", "--normalize", "bytes"), "--choices"),
        (("a", "--choices", ""), "choices[0]"),
        (("-", "--choices", "b"), "byte 2: expected UTF-8 with --choices, found 0xff"),
        (("a", "--choices", "\udcff"), "U+DCFF"),
        (("--file", "absent.txt"), "absent.txt"),
        (("a b", "--state", __file__), "test_cli_score.py"),
    ],
)
def test_errors_are_one_sentence(arguments, word):
    done = run("score", *arguments, stdin=b"a \xff")
    assert_one_sentence(done.returncode, done.stderr, word)
