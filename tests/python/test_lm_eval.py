"""The engine as a model of lm-eval: what plain torch finds with the same weights, and what the adapter does by itself.

lm-eval is no dependency of the tests: without it they are skipped. It is asked in processes of its own, because it
warns of much while it is imported.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from helpers import child_environment, python

TESTS = pathlib.Path(__file__).resolve().parents[1]
TASKS = TESTS / "data" / "lm_eval"

needs_lm_eval = pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm-eval is not installed")
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")

BEGIN = """
import rwkv_engine as rwkv
from lm_eval.api.instance import Instance
from rwkv_engine.lm_eval import RWKVLM

def requests(*arguments):
    return [Instance(request_type="any", doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]

engine = rwkv.Engine("demo", "cpu fp32")
model = RWKVLM(engine)
"""


def in_tasks(*command, cache):
    """Runs Python in the folder of the tasks, with the cache of data sets elsewhere."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**child_environment(), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)},
        cwd=TASKS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(bool(importlib.util.find_spec("lm_eval")), reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install():
    with pytest.raises(ImportError, match="`pip install lm-eval`"):
        importlib.import_module("rwkv_engine.lm_eval")


@pytest.mark.oracle
@needs_lm_eval
@needs_torch
def test_results_are_those_of_torch(tmp_path):
    found = json.loads(in_tasks(TESTS / "reference" / "torch_lm.py", cache=tmp_path))
    ours, theirs = found["engine"], found["torch"]
    for task, metrics in theirs["metrics"].items():
        assert {name: v for name, v in metrics.items() if type(v) is float} == pytest.approx(
            {name: v for name, v in ours["metrics"][task].items() if type(v) is float}, rel=1e-5
        )
    choices, expected = ours["metrics"]["local_choices"], theirs["metrics"]["local_choices"]
    for name in ("acc,none", "acc_norm,none"):
        assert choices[name] == expected[name] and 0 < choices[name] < 1
    assert choices["acc,none"] != choices["acc_norm,none"]
    for rows, others in zip(ours["answers"]["local_choices"], theirs["answers"]["local_choices"], strict=True):
        assert [greedy for _, greedy in rows] == [greedy for _, greedy in others]
        assert [x for x, _ in rows] == pytest.approx([x for x, _ in others], rel=1e-5, abs=1e-5)
    texts = [[row[0] for row in of["answers"]["local_texts"]] for of in (ours, theirs)]
    assert texts[0] == pytest.approx(texts[1], rel=1e-6)
    assert ours["answers"]["local_writing"] == theirs["answers"]["local_writing"]


@needs_lm_eval
def test_the_command_of_lm_eval_knows_the_engine(tmp_path):
    arguments = ["--model", "rwkv-engine", "--model_args", "model=demo,strategy=cpu int8,threads=1"]
    arguments += ["--tasks", "local_choices", "--include_path", ".", "--output_path", tmp_path / "out", "--batch_size", "4"]
    in_tasks("-m", "rwkv_engine.lm_eval", "run", *arguments, cache=tmp_path / "cache")
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]["local_choices"]
    assert 0.5 < results["acc,none"] < 1


@needs_lm_eval
def test_log_likelihoods_are_those_of_score():
    python(
        BEGIN
        + """
def total(ids):
    return float(engine.score(ids).sum(dtype="float64"))

encode = engine.tokenizer.encode
pairs = [("for i in", " range("), ("", "import"), ("for i in", " self"), ("x = [", "]"), ("import ", "os"), ("def f(", "self")]
for bos, begin in ((0, [0]), (None, []), (5, [5])):
    answers = RWKVLM(engine, bos=bos).loglikelihood(requests(*pairs), disable_tqdm=True)
    for (context, rest), (logprob, _) in zip(pairs, answers, strict=True):
        before, whole = encode(context.rstrip()), encode(context + rest)
        while before != whole[: len(before)]:
            before.pop()
        front = begin + before or [0]
        expected = engine.score([*front, *whole[len(before) :]])[len(front) - 1 :]
        assert logprob == float(expected.sum(dtype="float64")), (bos, context)
# Where no token reaches over the border, texts are split as lm-eval splits them.
from lm_eval.api.model import TemplateLM
for context, rest in [("import os", "\\nimport sys"), ("for i in ", "range(9)"), ("x = 1\\n", "y"), ("def f():  ", "return 0")]:
    before, after = model._encode_pair(context, rest)
    assert (before, after) == TemplateLM._encode_pair(model, context, rest), (context, before, after)
texts = ["import os", "", "x"] * 30
answers = model.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
assert answers == [total([0, *encode(text)]) for text in texts] and answers[1] == 0
"""
    )


@needs_lm_eval
def test_texts_are_those_of_generate():
    python(
        BEGIN
        + """
prompts = ["def main(", "import ", "", "class Node:\\n    def __init__(self"] * 20
for given, params in [
    ({"until": ["\\n", ""]}, dict(temperature=0, stop=["\\n"], max_tokens=256)),
    ({"until": ":", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}, dict(temperature=0, stop=[":"], max_tokens=5)),
    ({"max_new_tokens": 7, "temperature": None, "num_beams": 1}, dict(temperature=0, max_tokens=7)),
    ({"max_new_tokens": 7, "temperature": 0.0}, dict(temperature=0, max_tokens=7)),
    ({"max_gen_toks": 9, "do_sample": True, "temperature": 0.5, "seed": 1}, dict(temperature=0.5, top_p=1, seed=1, max_tokens=9)),
]:
    answers = model.generate_until(requests(*((prompt, given) for prompt in prompts)), disable_tqdm=True)
    expected = {p: engine.generate([0, *engine.tokenizer.encode(p)], rwkv.SamplingParams(**params)).text for p in set(prompts)}
    assert answers == [expected[prompt] for prompt in prompts], given
try:
    model.generate_until(requests(("a", {"num_beams": 3})), disable_tqdm=True)
except rwkv.Error as error:
    assert "'num_beams'" in str(error)
else:
    raise AssertionError
"""
    )
