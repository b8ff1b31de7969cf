"""`evaluation.compare`, `perplexity` and `rwkv-engine eval`: against formulas written down plainly, and distributions
known by hand."""

import dataclasses
import io
import json
import math
import tracemalloc
import types

import numpy as np
import pytest
from helpers import SMALL, TINY, engine, model
from test_cli import assert_one_sentence, run

import rwkv_engine as rwkv
from rwkv_engine import _windows, evaluation, scoring
from rwkv_engine.evaluation import PIECE, compare, perplexity
from rwkv_engine.scoring import SUMMED

TOKENS = model(**SMALL).tokens(100, seed=3)


class Scripted:
    """An engine whose logits are given, a row for each token read."""

    def __init__(self, rows):
        self.rows = np.array(rows, np.float32)
        self.config = types.SimpleNamespace(n_vocab=self.rows.shape[1])
        self.calls = []

    def new_state(self):
        return self

    def forward(self, tokens, state, output):
        assert state is self and output == "all"
        begin = sum(self.calls)
        self.calls.append(len(tokens))
        return self.rows[begin : begin + len(tokens)]


def directly(expected, found, tokens):
    """Means over the tokens, one at a time, by the definitions in float64."""
    loss, divergences, agreeing = 0.0, [], 0
    for p_row, q_row, token in zip(expected.astype(np.float64), found.astype(np.float64), tokens[1:]):
        p, q = (np.exp(row) / np.exp(row).sum() for row in (p_row, q_row))
        loss -= math.log(q[token])
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q)))
        agreeing += p.argmax() == q.argmax()
    n = len(tokens) - 1
    return [n, loss / n, math.exp(loss / n), sum(divergences) / n, max(divergences), agreeing / n]


@pytest.mark.parametrize("piece, block", [(256, 16), (7, 3), (1, 1), (99, 99), (98, 5)])
def test_it_is_what_the_formulas_say(monkeypatch, piece, block):
    monkeypatch.setattr(evaluation, "PIECE", piece)
    monkeypatch.setattr(evaluation, "BLOCK", block)
    engines = [engine("cpu fp32", **SMALL), engine("cpu bf16", **SMALL)]
    logits = [e.forward(TOKENS[:-1], e.new_state(), output="all") for e in engines]
    done = []
    found = compare(engines[0], [engines[1], engines[0]], TOKENS, lambda *counts: done.append(counts))
    for one, rows in zip(found, [*logits, logits[0]], strict=True):
        assert dataclasses.astuple(one) == pytest.approx(directly(logits[0], rows, TOKENS), rel=1e-9, abs=1e-15)
    assert found[0] == found[2] and found[0].kl_divergence == found[0].largest_kl_divergence == 0
    assert found[1].kl_divergence > 0
    assert done == [(min(at + piece, 99), 99) for at in range(0, 99, piece)]


def test_distributions_known_by_hand():
    ln = math.log
    exact = Scripted([[ln(1), ln(1)], [ln(3), ln(1)]])
    other = Scripted([[ln(1), ln(3)], [ln(3), ln(1)]])
    first, second = compare(exact, [other], [0, 1, 0])
    assert first.loss == pytest.approx((ln(2) + ln(4 / 3)) / 2) and first.perplexity == pytest.approx((8 / 3) ** 0.5)
    assert second.loss == pytest.approx(ln(4 / 3))
    assert second.largest_kl_divergence == pytest.approx(0.5 * ln(2) + 0.5 * ln(2 / 3))
    assert second.kl_divergence == pytest.approx(second.largest_kl_divergence / 2)
    assert (second.tokens, second.top1_agreement, first.top1_agreement) == (2, 0.5, 1)


def test_logits_far_apart():
    """Probabilities that float64 rounds to 0, sums that a float32 exponential could not hold."""
    exact = Scripted([[3e4, 0.0, -3e4]])
    other = Scripted([[0.0, 3e4, -3e4]])
    first, second = compare(exact, [other], [0, 2])
    assert (first.loss, second.loss, first.perplexity) == (6e4, 6e4, math.inf)
    assert second.kl_divergence == 3e4 and second.top1_agreement == 0
    close = compare(Scripted([[20, 0]]), [Scripted([[20, 1e-3]])], [0, 0])[1]
    # p log(p/q) summed naively in float32 gives 0; to first order it is p(1-p) d^2 / 2.
    assert close.kl_divergence == pytest.approx(math.exp(-20) * 1e-6 / 2, rel=1e-2)


def test_no_call_is_longer_than_a_piece():
    engines = [Scripted(np.zeros((1000, 2))) for _ in range(3)]
    assert compare(engines[0], engines[1:], [0] * 1001)[2].perplexity == pytest.approx(2)
    assert [max(e.calls) for e in engines] == [evaluation.PIECE] * 3 and sum(engines[0].calls) == 1000


def test_texts_and_arrays():
    demo = rwkv.Engine("demo")
    ids = demo.tokenizer.encode("def main():\n")
    assert compare(demo, [], "def main():\n") == compare(demo, [], ids) == compare(demo, [], np.array(ids, np.uint16))


@pytest.mark.parametrize(
    ("tokens", "kind", "word"),
    [
        ([], rwkv.Error, "found 0"),
        ([1], rwkv.Error, "found 1"),
        ([1, 40], rwkv.Error, "0 to 39, found 40"),
        ([1, -1], rwkv.Error, "found -1"),
        ([1, 2.5], TypeError, "text: token 1: expected an integer, found float"),
        (np.array([1, 2.5]), TypeError, "float64"),
        ([1, True], TypeError, "found bool"),
        ([1, 2**70], rwkv.Error, "found 1180591620717411303424"),
        (b"ab", TypeError, "bytes"),
    ],
)
def test_what_is_no_text(tokens, kind, word):
    with pytest.raises(kind, match=word):
        compare(engine(**SMALL), [], tokens)


def test_other_vocabularies_are_refused():
    with pytest.raises(rwkv.Error, match=r"others\[1\]: expected a vocabulary of 40 .* found 1024"):
        compare(engine(**SMALL), [engine(**SMALL), rwkv.Engine("demo")], [1, 2])


def test_progress_may_stop_it():
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(engine(**SMALL), [], TOKENS, stop)


def test_perplexity_is_what_compare_finds():
    demo = rwkv.Engine("demo", "cpu fp32")
    text = "def main():\n    return 'é'\n"
    ids = demo.tokenizer.encode(text)
    (expected,) = compare(demo, [], text)
    found = perplexity(demo, text)
    assert found == perplexity(demo, np.array(ids))
    assert (found.tokens, found.bytes) == (len(ids) - 1, len(text.encode()) - len(demo.tokenizer.decode_bytes(ids[:1])))
    assert (found.loss, found.perplexity) == pytest.approx((expected.loss, expected.perplexity), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(expected.loss * found.tokens / math.log(2) / found.bytes)
    assert math.isinf(perplexity(demo, [5, 0]).bits_per_byte)  # token 0 is no bytes
    for tokens in ([], [1]):
        with pytest.raises(rwkv.Error, match=f"at least 2 tokens, found {len(tokens)}"):
            perplexity(demo, tokens)


# ---- files ----


class Pipe(io.BytesIO):
    def seekable(self):
        return False


def test_a_file_is_what_its_text_is(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SUMMED", 500)
    monkeypatch.setattr(scoring, "SUMMED", 500)
    demo = rwkv.Engine("demo", "cpu fp32")
    data = b"".join(b"class A%d:  # \xc3\xa9\xff\n    def a(self, b):\r\n        pass\n" % i for i in range(100))
    ids = demo.tokenizer.encode(data)
    assert 2000 < len(ids) < 5000
    logprobs = demo.score(ids)
    size = len(demo.tokenizer.decode_bytes(ids[1:]))
    expected = evaluation.measure(logprobs, size)
    assert expected.loss == pytest.approx(-logprobs.mean(dtype=np.float64), rel=1e-12)
    (tmp_path / "text").write_bytes(data)
    for part in (1 << 16, 997):
        monkeypatch.setattr(_windows, "_PART", part)
        done = []
        with (tmp_path / "text").open("rb") as file:
            assert perplexity(demo, file, lambda *counts: done.append(counts)) == expected
        assert done == sorted(done) and done[-1] == (size, len(data)) and len(done) > 5
        assert perplexity(demo, Pipe(data), lambda *counts: done.append(counts)) == expected
        assert done[-1] == (size, 0)
    assert perplexity(demo, ids) == perplexity(demo, np.array(ids, np.uint16)) == expected
    some = 2 * PIECE + 7
    assert compare(demo, [], io.BytesIO(data), tokens=some) == compare(demo, [], ids[:some])
    assert perplexity(demo, io.BytesIO(data), tokens=some) == perplexity(demo, ids[:some]) == perplexity(demo, ids, tokens=some)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """An engine whose tokens are the letters a to k, with a tiny model."""
    words = tmp_path_factory.mktemp("letters") / "words.txt"
    words.write_text("".join(f"{i} {chr(96 + i)!r} 1\n" for i in range(1, 12)))
    return rwkv.Engine(model(**TINY).path(), "cpu fp32", threads=1, tokenizer=words)


@pytest.mark.parametrize("tokens", [2, SUMMED, SUMMED + 1, SUMMED + 2, 2 * SUMMED + 1])
def test_at_the_borders_of_windows(letters, tokens):
    ids = np.random.default_rng(0).integers(1, 12, tokens)
    found = perplexity(letters, ids)
    assert found == evaluation.measure(letters.score(ids), tokens - 1)
    text = io.BytesIO(letters.tokenizer.decode_bytes(ids))
    assert perplexity(letters, text) == found


@pytest.mark.parametrize("data", [b"", b"a"])
def test_a_file_that_is_too_short(data):
    for call in (perplexity, lambda e, file: compare(e, [], file)):
        with pytest.raises(rwkv.Error, match=f"text: expected at least 2 tokens, found {len(data)}"):
            call(rwkv.Engine("demo"), io.BytesIO(data))


def test_a_file_that_is_not_binary():
    for file in (io.StringIO("import os"), io.StringIO("")):
        with pytest.raises(TypeError, match="open in binary mode, found one that reads str"):
            perplexity(rwkv.Engine("demo"), file)


def test_memory_does_not_depend_on_a_files_length(letters):
    """As a list of ids, their array or their log-probabilities it would be larger than the bound."""

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            assert 0 < size <= 1 << 16
            return b"abcdefgh" * (size // 8)

    perplexity(letters, Endless(), tokens=100)
    tracemalloc.start()
    found = perplexity(letters, Endless(), tokens=600_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.tokens, found.bytes) == (599_999, 599_999) and peak < 2e6


def test_an_endless_file_of_the_command():
    done = run("eval", "--file", "/dev/zero", "--tokens", 300, "--json")
    (row,) = json.loads(done.stdout)
    assert row["tokens"] == 299


@pytest.mark.parametrize("tokens", [1, -1, 0, 2.5, True])
def test_how_many_tokens_to_read(tokens):
    with pytest.raises((TypeError, rwkv.Error), match="tokens: expected an integer"):
        perplexity(rwkv.Engine("demo"), "import os", tokens=tokens)


# ---- the command ----


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "text.py"
    path.write_bytes(b"import os\n\n\ndef main(arguments):\n    print(os.getcwd(), '\xc3\xa9\xff')\n" * 20)
    return path


def test_the_command_prints_what_the_library_finds(text):
    engines = [rwkv.Engine("demo", f"cpu {p}") for p in ("fp32", "bf16")]
    ids = engines[0].tokenizer.encode(text.read_bytes())
    expected = compare(engines[0], engines[1:], ids)
    done = run("eval", "--file", text, "--compare", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    names = ["cpu fp32", "cpu bf16"]
    assert json.loads(done.stdout) == [
        {"strategy": name, **dataclasses.asdict(one)} for name, one in zip(names, expected)
    ]
    lines = run("eval", "--file", text, "--compare").stdout.decode().splitlines()
    assert lines[0] == f"{len(ids) - 1} tokens predicted" and len(lines) == 4
    assert lines[1].split("  ")[0] == "strategy" and len(set(map(len, lines[1:]))) == 1
    assert lines[2].split() == ["cpu", "fp32", f"{expected[0].perplexity:.4f}", "0", "0", "100.00%"]
    assert lines[3].split()[2:4] == [f"{expected[1].perplexity:.4f}", f"{expected[1].kl_divergence:.3g}"]


def test_perplexity_alone(text):
    words = ("--json", "--tokens", 50, "--strategy", "cpu fp32", "--strategy", "cpu bf16")
    done = run("eval", "--file", text, *words)
    assert run("eval", "--file", "-", *words, stdin=text.read_bytes()).stdout == done.stdout
    rows = json.loads(done.stdout)
    assert [row["strategy"] for row in rows] == ["cpu fp32", "cpu bf16"]
    names = {"strategy", "tokens", "bytes", "loss", "perplexity", "bits_per_byte"}
    assert all(set(row) == names and row["tokens"] == 49 for row in rows)
    assert rows[0]["perplexity"] != rows[1]["perplexity"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--file", "absent.txt"), "absent.txt"),
        (("--file", "/dev/null"), "at least 2 tokens, found 0"),
        (("--file", __file__, "--strategy", "cpu fp99"), "fp99"),
        (("--file", __file__, "--model", "absent.pth"), "absent.pth"),
    ],
)
def test_errors_are_one_sentence(arguments, word):
    done = run("eval", *arguments)
    assert_one_sentence(done.returncode, done.stderr, word)


@pytest.mark.parametrize("tokens", [None, "1", "-5", "x", "2.5", ""])
def test_wrong_usage(tokens):
    done = run("eval", *(() if tokens is None else ("--file", __file__, f"--tokens={tokens}")))
    assert done.returncode == 2 and b"--" in done.stderr and b"_count" not in done.stderr
