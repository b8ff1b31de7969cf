"""The `rwkv` package's `PIPELINE`: its sampling, its loop and its tokenizer, by their definitions."""

import pathlib

import numpy as np
import pytest
from helpers import rwkv

from rwkv_engine import compat
from rwkv_engine.compat import PIPELINE, PIPELINE_ARGS, RWKV, TRIE_TOKENIZER

DEMO_WORDS = pathlib.Path(rwkv.__file__).parent / "data" / "demo-vocab.txt"


@pytest.fixture(scope="module")
def demo():
    return PIPELINE(RWKV("demo", "cpu fp32"), DEMO_WORDS)


def words_file(folder, words, n_first=1):
    path = folder / "words.txt"
    lines = [
        f"{i} {w!r} {len(w if isinstance(w, bytes) else w.encode())}"
        for i, w in enumerate(words, n_first)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Scripted:
    """A model that writes given tokens, whatever it reads."""

    def __init__(self, tokens, V=16):
        self.answers, self.V, self.calls = tokens, V, []

    def forward(self, tokens, state, full_output=False):
        self.calls.append(None if tokens is None else list(tokens))
        at = state or 0
        out = np.full(self.V, -50, np.float32)
        out[self.answers[min(at, len(self.answers) - 1)]] = 50
        return out.view(compat.Tensor), at + 1


def package_rule(logits, temperature, top_p, top_k):
    """The distribution that the package draws from, in float64 but for the comparisons."""
    if temperature == 0:
        temperature, top_p = 1.0, 0
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    ids = sorted(range(len(p)), key=lambda i: -p[i])
    total = 0.0
    for i in ids:
        total += p[i]
        if total >= top_p:
            break
    kept = {j for j in ids if p[j] >= p[i]}
    if 0 < top_k < len(p):
        kept &= set(ids[:top_k])
    q = np.array([p[j] ** (1 / temperature) if j in kept else 0 for j in range(len(p))])
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (1.0, 0.85, 0),
        (0.7, 0.6, 0),
        (2.0, 0.95, 5),
        (1.0, 0.3, 3),
        (1.5, 1.0, 0),
        (0, 0.85, 0),
        (1.0, 0.0, 0),
    ],
)
def test_the_distribution_is_the_packages(demo, temperature, top_p, top_k):
    logits = np.random.default_rng(5).normal(0, 1.5, 24).astype(np.float32)
    logits[[3, 9]] = logits.max() + 0.2 if top_k != 3 else logits[[3, 9]]  # a tie at the top
    expected = package_rule(logits, temperature, top_p, top_k)
    np.random.seed(7)
    draws = [demo.sample_logits(logits, temperature, top_p, top_k) for _ in range(10_000)]
    counts = np.bincount(draws, minlength=24)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    chi2 = ((counts - expected * 1e4)[seen] ** 2 / (expected * 1e4)[seen]).sum()
    freedom = seen.sum() - 1
    assert chi2 <= freedom + 4 * np.sqrt(2 * freedom) + 8, (chi2, freedom)


def test_sampling_takes_lists_and_arrays(demo):
    for logits in (
        [0, 9, 1],
        (0, 9, 1),
        np.array([0, 9, 1]),
        np.array([0, 9, 1], np.float64),
        np.float32([0, 9, 1]).view(compat.Tensor),
    ):
        assert demo.sample_logits(logits, top_p=0.5) == 1
    with pytest.raises(rwkv.Error, match=r"expected shape \(V,\), found \(1, 2\)"):
        demo.sample_logits([[1, 2]])


def test_sampling_at_the_edges(demo):
    logits = np.array([1, 5, 2, -np.inf], np.float32)
    before = logits.copy()
    assert {demo.sample_logits(logits, temperature=0) for _ in range(20)} == {1}
    assert {demo.sample_logits(logits, temperature=0.001, top_p=1) for _ in range(20)} == {1}, (
        "no underflow"
    )
    assert (logits == before).all()
    flat = np.zeros(60_000, np.float32)
    flat[0] = 0.1  # alone at the top
    for top_p in (1.0, 1.5):  # rounding may keep the sum from 1; nothing reaches 1.5
        assert len({demo.sample_logits(flat, top_p=top_p) for _ in range(30)}) > 20
    for bad in (np.full(4, -np.inf), np.array([0, np.nan]), np.array([np.inf, 0])):
        with pytest.raises(rwkv.NonFiniteError):
            demo.sample_logits(bad)
    np.random.seed(3)
    first = [demo.sample_logits(flat) for _ in range(5)]
    np.random.seed(3)
    assert [demo.sample_logits(flat) for _ in range(5)] == first


def test_defaults_are_the_packages():
    assert vars(PIPELINE_ARGS()) == dict(
        temperature=1.0, top_p=0.85, top_k=0, alpha_frequency=0.2, alpha_presence=0.2, alpha_decay=0.996,
        token_ban=[], token_stop=[], chunk_len=256,
    )  # fmt: skip


def test_generate_is_the_packages_loop(demo, monkeypatch):
    """Against the loop's definition over the engine's logits, with a sampler that records what it is given."""
    engine = demo.model.engine
    prompt, steps, ban = "def add(a, b):\n    return ", 40, [5, 77]
    args = PIPELINE_ARGS(
        alpha_presence=0.7, alpha_frequency=0.9, alpha_decay=0.9, token_ban=ban, chunk_len=3
    )
    blank = {i for i in range(1024) if demo.decode([i]) and demo.decode([i]) in " \t0123456789"}

    state, tokens, seen, weights, expected = engine.new_state(), demo.encode(prompt), [], {}, []
    for _ in range(steps):
        row = engine.forward(tokens, state)
        row[ban] = -np.inf
        for t in seen:
            row[t] -= args.alpha_presence + weights[t] * args.alpha_frequency
        expected.append(row)
        token = int(row.argmax())
        weights = {t: w * args.alpha_decay for t, w in weights.items()}
        weights[token] = weights.get(token, 0) + (token not in blank)
        seen, tokens = list(weights), [token]
    written = [int(row.argmax()) for row in expected]
    assert blank & set(written), "a token without weight is among them"

    rows, calls, pieces = [], [], []

    def sampler(logits, **settings):
        rows.append(logits.copy())
        calls.append(settings)
        return int(logits.argmax())

    monkeypatch.setattr(demo, "sample_logits", sampler)
    text = demo.generate(prompt, token_count=steps, args=args, callback=pieces.append)
    assert [int(r.argmax()) for r in rows] == written
    assert all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(rows, expected))
    assert text == "".join(pieces) == demo.decode(written)
    assert calls[0] == dict(temperature=1.0, top_p=0.85, top_k=0)
    args.token_stop = [written[10]]
    end = written.index(written[10])
    assert demo.generate(prompt, steps, args) == demo.decode(written[:end])


def test_generate_goes_on_from_a_state(demo):
    args = PIPELINE_ARGS(temperature=0, alpha_presence=0, alpha_frequency=0)
    whole = demo.generate("import os\ndef main(", 20, args)
    _, state = demo.model.forward(demo.encode("import os\ndef"), None)
    for _ in range(2):
        rest = demo.encode("import os\ndef main(")[len(demo.encode("import os\ndef")) :]
        assert demo.generate(demo.decode(rest), 20, args, state=state) == whole
    _, state = demo.model.forward(demo.encode("import os\ndef main("), None)
    assert demo.generate("", 20, args, state=state) == whole
    assert demo.generate("x", 0) == ""
    with pytest.raises(rwkv.Error, match="without logits"):
        demo.generate("")
    with pytest.raises(rwkv.Error, match="chunk_len"):
        demo.generate("x", 5, PIPELINE_ARGS(chunk_len=0))


GREEDY = dict(temperature=0, alpha_presence=0, alpha_frequency=0)


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        ([1, 2, 3, 1], ["a", "é", "a"]),  # whole characters only
        (
            [1, 2, 4, 1],
            ["a", "\ufffdb", "a"],
        ),  # broken for certain: the package is silent from here on
        ([1, 2], ["a", "\ufffd"]),  # cut at the end: the package drops it
        (
            [1, 0, 4, 1],
            ["a", "b", "a"],
        ),  # an id without a token: the package is silent from here on
    ],
)
def test_text_comes_in_whole_characters_and_none_is_lost(tmp_path, tokens, pieces):
    words = words_file(tmp_path, ["a", b"\xc3", b"\xa9", "b"])
    model_ = Scripted(tokens)
    found = []
    text = PIPELINE(model_, words).generate(
        "b", len(tokens), PIPELINE_ARGS(**GREEDY), callback=found.append
    )
    assert found == pieces and text == "".join(pieces)
    assert model_.calls == [[4], *[[t] for t in tokens[:-1]]]


def test_prompts_are_read_in_chunks_and_a_stop_is_not_fed(tmp_path):
    words = words_file(tmp_path, ["a", "b", "c"])
    model_ = Scripted([1, 1, 1, 1, 2, 3])
    text = PIPELINE(model_, words).generate(
        "abcabca", 9, PIPELINE_ARGS(**GREEDY, chunk_len=3, token_stop=[3])
    )
    # Each call moves the script on by one answer, so the third call is the first to be sampled from.
    assert text == "aab" and model_.calls == [[1, 2, 3], [1, 2, 3], [1], [1], [1], [2]]


def test_a_vocabulary_of_the_tokenizers_library(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    built = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.save(str(tmp_path / "20B_tokenizer.json"))
    ids = built.encode("xé").ids
    model_ = Scripted([*ids, ids[1]], V=256)
    pipeline = PIPELINE(model_, str(tmp_path / "20B_tokenizer.json"))
    assert pipeline.encode("xé") == ids and pipeline.decode(ids) == "xé"
    found = []
    assert pipeline.generate("x", 4, PIPELINE_ARGS(**GREEDY), callback=found.append) == "xé\ufffd"
    assert found == ["x", "é", "\ufffd"]
    (tmp_path / "bad.json").write_text('{"no": "tokenizer"}')
    with pytest.raises(rwkv.Error, match="bad.json"):
        PIPELINE(model_, tmp_path / "bad.json")


def test_the_world_tokenizer_has_the_packages_names(tmp_path, capsys):
    tokenizer = TRIE_TOKENIZER(words_file(tmp_path, ["a", b"\xc3", b"\xa9", "ab"]))
    assert (
        tokenizer.encode("aab\u00e9") == tokenizer.encodeBytes("aab\u00e9".encode()) == [1, 4, 2, 3]
    )
    assert (
        tokenizer.decode([1, 4, 2, 3]) == "aab\u00e9" and tokenizer.decodeBytes([2, 1]) == b"\xc3a"
    )
    assert tokenizer.decode([4, 2, 1, 0]) == "ab\ufffda", (
        "the package gives one U+FFFD for all of it"
    )
    assert tokenizer.idx2token == {1: b"a", 2: b"\xc3", 3: b"\xa9", 4: b"ab"}
    assert tokenizer.token2idx == {word: i for i, word in tokenizer.idx2token.items()}
    tokenizer.printTokens([4, 2])
    assert capsys.readouterr().out == "'ab'4 b'\\xc3'2 \n"


def test_refine_context(demo):
    assert demo.refine_context("  a \n\n\u3000b\u3000\r\n \n c") == "\na\nb\nc"
    assert demo.refine_context(" \n ") == "\n"


def test_sampling_parameters_that_are_none():
    pipeline = PIPELINE(RWKV("demo", "cpu fp32"), "rwkv_vocab_v20230424")
    logits = np.arange(5, dtype=np.float32)
    for options in ({"temperature": -1}, {"temperature": float("nan")}, {"top_p": float("nan")}):
        with pytest.raises(rwkv.Error, match="temperature of 0 or more"):
            pipeline.sample_logits(logits, **options)
    with np.errstate(all="raise"):
        assert pipeline.sample_logits(logits, temperature=1e-300) == 4
