"""EmbeddingRWKV: checkpoints of models that make vectors and no text."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import SMALL, bits, child_environment, folder, model, refusal, rwkv, save
from pooling import HEADS, embedding_model, normalized, pool, task_head

from rwkv_engine.cli import main
from rwkv_engine.evaluation import compare
from rwkv_engine.inspection import inspect

END = 39  # in the small vocabulary; upstream's is 65535
WORLD = dict(L=2, C=128, N=64, V=65536, ranks=(16, 16, 8, 32))  # what the package can run


@functools.cache
def weights_of(options):
    return embedding_model(model(**dict(options)).weights)


@functools.cache
def path_of(options=tuple(SMALL.items())):
    path = folder() / f"embedding-{dict(options)['V']}.pth"
    return save(path, weights_of(options))


@pytest.fixture(scope="module")
def weights():
    return weights_of(tuple(SMALL.items()))


@pytest.fixture(scope="module")
def engine():
    return rwkv.Engine(path_of(), "cpu fp32", threads=2)


def ids(count, seed=0):
    return np.random.default_rng(seed).integers(1, END, count).tolist()


def expected(tokens, task, options=tuple(SMALL.items()), end=END):
    rows, _ = model(**dict(options)).reference(tokens, hidden=True)
    exact = {name: t.astype(np.float64) for name, t in weights_of(options).items()}
    return task_head(exact, pool(rows, tokens, "eos", end), task)


# ---- vectors ----


@pytest.mark.parametrize("task", HEADS)
def test_the_vectors_of_the_definition(engine, task):
    texts = [[5, END], [END], [*ids(30), END], [*ids(9), END, *ids(40, 1), END]]
    plain = engine.embed(texts, normalize=False, task=task, eos_token=END)
    vectors = engine.embed(texts, task=task, eos_token=END)
    for tokens, one, other in zip(texts, plain, vectors, strict=True):
        vector = expected(tokens, task)
        assert np.abs(one - vector).max() <= 1e-5 * np.abs(vector).max()
        assert np.abs(other - normalized(vector)).max() <= 1e-5


def test_the_way_it_was_trained_is_the_default(engine):
    text = ids(20)
    found = engine.embed([text], eos_token=END)
    assert bits(found) == bits(engine.embed([[*text, END]], "eos", task="retrieval", eos_token=END))
    assert bits(found) != bits(engine.embed([text], task="similarity", eos_token=END))


def test_the_same_alone_and_in_a_batch(engine):
    texts = [ids(n, n) for n in (1, 3000, 40, 700)]
    alone = [bits(engine.embed([text], eos_token=END)[0]) for text in texts]
    assert [bits(v) for v in engine.embed(texts, eos_token=END)] == alone


def test_plain_pooling_goes_without_the_head(engine):
    rows = engine.forward(ids(20), engine.new_state(), output="hidden")
    assert np.abs(engine.embed([ids(20)], "mean")[0] - normalized(rows.mean(0))).max() <= 1e-6
    assert bits(engine.embed([ids(20)], "last", normalize=False)[0]) == bits(rows[-1])


def test_the_end_token_of_the_world_vocabulary():
    engine = rwkv.Engine(path_of(tuple(WORLD.items())), "cpu fp32", threads=2)
    text = "EmbeddingRWKV, 你好"
    tokens = [*engine.tokenizer.encode(text), 65535]
    found = engine.embed(text)
    assert bits(found) == bits(engine.embed([tokens]))
    vector = expected(tokens, "retrieval", tuple(WORLD.items()), 65535)
    assert np.abs(found[0] - normalized(vector)).max() <= 1e-5


@pytest.mark.parametrize("strategy", ["cpu bf16", "cpu int8", "cpu fp32 *1 -> cpu bf16"])
def test_other_strategies(engine, strategy):
    other = rwkv.Engine(path_of(), strategy, threads=2)
    texts = [ids(n, n) for n in (8, 50)]
    found, exact = (e.embed(texts, eos_token=END) for e in (other, engine))
    assert bits(found) != bits(exact) and ((found * exact).sum(1) > 0.99).all()
    assert other.fingerprint == engine.fingerprint


# ---- no logits ----


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.forward([1], e.new_state()),
        lambda e: e.forward([1], e.new_state(), output="all"),
        lambda e: e.forward([1] * 10**7, e.new_state(), output="all"),  # nothing is allocated
        lambda e: e.forward_batch([[1], [2]], [e.new_state(), e.new_state()]),
        lambda e: e.forward([1], e.new_state(), device=True),
        lambda e: compare(e, [], [1, 2, 3]),
    ],
)
def test_logits_are_refused(engine, call):
    with pytest.raises(rwkv.Error, match=r"'hidden' or 'none'.*no language-model head"):
        call(engine)


def test_text_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("1 'a' 1\n")
    engine = rwkv.Engine(path_of(), "cpu fp32", threads=1, tokenizer=tmp_path / "vocab.txt")
    for prompt in ("a", ""):
        with pytest.raises(rwkv.Error, match="no language-model head"):
            engine.generate(prompt)


def test_hidden_states_and_states_work(engine, tmp_path):
    tokens = ids(40)
    state, parts = engine.new_state(), engine.new_state()
    rows = engine.forward(tokens, state, output="hidden")
    reference, _ = model(**SMALL).reference(tokens, hidden=True)
    assert np.abs(rows - reference).max() <= 1e-4
    assert engine.forward(tokens[:10], parts, output="none") is None
    parts.save(tmp_path / "a.state")
    again = engine.load_state(tmp_path / "a.state")
    assert bits(engine.forward(tokens[10:], again, output="hidden")) == bits(rows[10:])
    assert again.equals(state) and state.last_logits is None


def test_layers_give_what_those_of_the_language_model_give(engine):
    other = rwkv.Engine(model(**SMALL).path(), "cpu fp32", threads=2)
    found = [e.layer_outputs(ids(40), e.new_state()) for e in (engine, other)]
    assert found[0].shape == (2, 40, 64) and bits(found[0]) == bits(found[1])


# ---- what it is called ----


def test_it_says_what_it_is(engine, capsys):
    assert engine.config.kind == "embedding model" and engine.config.version == "7"
    assert rwkv.Engine("demo").config.kind == "language model"
    assert inspect(path_of())["kind"] == "embedding model"
    assert main(["inspect", str(path_of())]) == 0
    assert "RWKV-7, embedding model" in capsys.readouterr().out


@pytest.mark.parametrize("type", [None, "f32"])
def test_it_is_converted_with_its_heads(engine, tmp_path, type):
    path = tmp_path / "a.safetensors"
    rwkv.convert(path_of(), path, type)
    other = rwkv.Engine(path, "cpu fp32", threads=2)
    assert other.fingerprint == engine.fingerprint and other.config == engine.config
    text = ids(50)
    assert bits(other.embed([text], eos_token=END)) == bits(engine.embed([text], eos_token=END))


def test_it_is_quantised_with_its_heads(engine, tmp_path):
    path = tmp_path / "a.safetensors"
    rwkv.quantize(path_of(), path, "int8")
    texts = [ids(50), ids(3)]
    found = [rwkv.Engine(p, "cpu int8", threads=2).embed(texts, eos_token=END) for p in (path, path_of())]
    assert bits(found[0]) == bits(found[1])
    assert rwkv.Engine(path).fingerprint == engine.fingerprint


def test_a_gguf_file_cannot_hold_it(tmp_path):
    with pytest.raises(rwkv.ModelFormatError, match=r"language model.*heads of EmbeddingRWKV"):
        rwkv.convert(path_of(), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


# ---- what is refused, and what is not used ----


def test_parts_for_images_are_not_used(weights, engine, tmp_path):
    extra = {
        "vit.embeddings.weight": np.ones((3, 4), np.float32),
        "proj.gate.weight": np.ones((4, 4), np.float32),
        "reranker.blocks.0.att.r_k": np.ones((4, 16), np.float32),
    }
    path = save(tmp_path / "a.pth", weights | extra)
    assert rwkv.Engine(path, "cpu fp32", threads=2).fingerprint == engine.fingerprint
    without = {name: t for name, t in weights.items() if name != "rwkv.head.weight"}
    path = save(tmp_path / "b.safetensors", without)
    assert rwkv.Engine(path, "cpu fp32", threads=2).fingerprint == engine.fingerprint


def test_a_head_allocates_nothing_that_is_not_there(weights, tmp_path):
    name = "head.retr_head.fc1.weight"
    for shape in ((1 << 16, 1 << 16, 0), (1 << 20, 1 << 20, 0)):
        refusal(save(tmp_path / "a.pth", weights | {name: np.zeros(shape, np.float32)}), name, "expected (64, 64)")


def test_a_reranker_is_refused_by_name(weights, tmp_path):
    inner = {name.removeprefix("rwkv."): t for name, t in weights.items() if name.startswith("rwkv.blocks.")}
    inner |= {"emb.weight": np.ones((1, 64), np.float32), "ln_out.weight": np.ones(64, np.float32)}
    inner |= {f"head.{i}.weight": np.ones((n, 64), np.float32) for i, n in ((0, 64), (2, 1))}
    whole = {"reranker." + name: t for name, t in inner.items()}
    for file in (inner, whole):
        refusal(save(tmp_path / "a.pth", file), "this is a reranker", "reads tokens")


def test_another_model_around_an_rwkv(weights, tmp_path):
    inner = {name: t for name, t in weights.items() if name.startswith("rwkv.")}
    refusal(save(tmp_path / "a.pth", inner), "head.retr_head", "another model around an RWKV")


@pytest.mark.parametrize("name", ["retr_head.fc1.weight", "cls_head.norm.bias", "sts_head.fc2.weight"])
def test_a_head_that_is_not_whole(weights, tmp_path, name):
    name = "head." + name
    missing = {key: t for key, t in weights.items() if key != name}
    refusal(save(tmp_path / "a.pth", missing), f"expected the tensor {name}, found none")
    wrong = weights | {name: np.ones((64, 63), np.float32)}
    refusal(save(tmp_path / "b.pth", wrong), name, "found (64, 63)")
    refusal(save(tmp_path / "c.pth", weights | {"head.other": np.ones(3, np.float32)}), "head.other")


def test_a_head_that_makes_numbers_that_are_not_finite(weights, tmp_path):
    name = "head.retr_head.norm.weight"
    for value in (np.nan, np.inf):
        wrong = save(tmp_path / "a.pth", weights | {name: np.full(64, value, np.float32)})
        refusal(wrong, name, "expected finite numbers")
    path = save(tmp_path / "b.pth", weights | {name: np.full(64, 3e38, np.float32)})
    engine = rwkv.Engine(path, "cpu fp32", threads=1)
    state = engine.new_state()
    with pytest.raises(rwkv.NonFiniteError, match="head for retrieval"):
        engine.embed([[1, END]], eos_token=END, states=[state])
    assert state.tokens_seen == 0
    assert np.isfinite(engine.embed([[1, END]], eos_token=END, task="similarity")).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "eos_token: expected an id, .* vocabulary of 40"),
        ({"task": "search", "eos_token": END}, "task: expected one of retrieval, .* found 'search'"),
        ({"task": "retrieval", "pooling": "mean"}, "task: expected none with pooling 'mean'"),
    ],
)
def test_wrong_arguments(engine, options, words):
    with pytest.raises(rwkv.Error, match=words):
        engine.embed([[1]], **options)


# ---- the package ----

# The package is written for CUDA and halves: its text becomes one for the CPU and float32, its kernel the formula of the
# paper. What images need is not there and not used.
ORACLE = """
import importlib.util, pathlib, sys, types
import numpy as np
import torch
from torch.utils import cpp_extension

cpp_extension.load = lambda **options: None
library = torch.library.Library("rwkv7_state_fwd_fp16", "DEF")
library.define(
    "forward(int B, int T, int C, int H, Tensor(a!) s, Tensor r, Tensor w, Tensor k, Tensor v,"
    " Tensor a, Tensor b, Tensor(b!) y) -> ()"
)

def wkv(B, T, C, H, s, r, w, k, v, a, b, y):
    S = s.view(B, H, 64, 64)
    r, w, k, v, a, b, out = (t.view(B, T, H, 64) for t in (r, w, k, v, a, b, y))
    w = torch.exp(-np.exp(-0.5) * w)
    for t in range(T):
        row = lambda x: x[:, t, :, None, :]
        column = lambda x: x[:, t, :, :, None]
        S.copy_(S * row(w) + S @ column(a) @ row(b) + column(v) @ row(k))
        out[:, t] = (S @ column(r))[..., 0]

library.impl("forward", wkv, "CPU")
sys.modules["transformers"] = types.SimpleNamespace(SiglipVisionModel=None, SiglipVisionConfig=None)
place = pathlib.Path(importlib.util.find_spec("rwkv_emb").submodule_search_locations[0])
changes = [("torch.half", "torch.float"), ('"cuda"', '"cpu"'), ("'cuda'", "'cpu'"), ("print(args)", "")]
changes += [("torch.jit.ScriptModule", "nn.Module"), ("torch.jit.script_method", "(lambda f: f)")]
changes += [("torch.jit.script", "(lambda f: f)")]
for name in ("reference.rwkv7", "model"):
    module = types.ModuleType("rwkv_emb." + name)
    module.__file__ = str(place / (name.replace(".", "/") + ".py"))
    module.__package__ = module.__name__.rpartition(".")[0]
    text = pathlib.Path(module.__file__).read_text()
    for old, new in changes:
        text = text.replace(old, new)
    sys.modules[module.__name__] = module
    exec(compile(text, module.__file__, "exec"), module.__dict__)

model = sys.modules["rwkv_emb.model"].EmbeddingRWKV(sys.argv[1])
from rwkv_emb.tokenizer import RWKVTokenizer
texts = pathlib.Path(sys.argv[2]).read_text().split("|")
found = {}
for i, text in enumerate(texts):
    tokens = RWKVTokenizer().encode(text, add_eos=True)
    for tag in ("CLS", "STS", "RETR"):
        found[f"{i}{tag}"] = model.forward(tokens, None, task_type=f"[{tag}]")[0].numpy()
    found[f"{i}twice"] = model.forward(tokens + tokens, None)[0].numpy()
np.savez(sys.argv[3], **found)
"""


@pytest.mark.oracle
@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("rwkv_emb")),
    reason="torch or rwkv-emb is not installed",
)
def test_the_vectors_of_the_package(tmp_path):
    texts = ["What marks the end of a sentence?", "苹果是红色的水果。", "x", "long " * 60]
    (tmp_path / "texts").write_text("|".join(texts))
    path = path_of(tuple(WORLD.items()))
    arguments = map(str, (path, tmp_path / "texts", tmp_path / "found.npz"))
    command = [sys.executable, "-W", "ignore", "-c", ORACLE, *arguments]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, env=child_environment())
    expected = np.load(tmp_path / "found.npz")
    engine = rwkv.Engine(path, "cpu fp32", threads=2)
    for task, head in HEADS.items():
        found = engine.embed(texts, normalize=False, task=task)
        for i, vector in enumerate(found):
            other = expected[f"{i}{head.upper()}"].ravel()
            assert np.abs(vector - other).max() <= 1e-5 * np.abs(other).max()
    twice = [2 * [*engine.tokenizer.encode(text), 65535] for text in texts]
    for i, vector in enumerate(engine.embed(twice, normalize=False)):
        other = expected[f"{i}twice"].ravel()
        assert np.abs(vector - other).max() <= 1e-5 * np.abs(other).max()


def test_the_example_searches_with_them(tmp_path):
    """By the vectors alone: such a model says nothing of how likely a text is."""
    (tmp_path / "docs").mkdir()
    for name in "ab":
        (tmp_path / "docs" / name).write_text(f"text {name}\n")
    example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "search_folder.py"
    model_path = path_of(tuple(WORLD.items()))
    done = subprocess.run(
        [sys.executable, example, tmp_path / "docs", "x", "--index", tmp_path / "i", "--model", model_path],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    scores = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
