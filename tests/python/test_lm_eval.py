"""The engine as a model of lm-eval: what plain torch finds with the same weights, and what the adapter does by itself.

lm-eval is no dependency of the tests: without it they are skipped. It is asked in processes of its own, because it
warns of much while it is imported, and takes its time: one answers all questions but those to its command.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from helpers import child_environment

import rwkv_engine as rwkv

TESTS = pathlib.Path(__file__).resolve().parents[1]
TASKS = TESTS / "data" / "lm_eval"

needs_lm_eval = pytest.mark.skipif(
    not (importlib.util.find_spec("lm_eval") and importlib.util.find_spec("torch")),
    reason="lm-eval or torch is not installed",
)

PAIRS = [
    ("for i in", " range("),
    ("", "import"),
    ("for i in", " self"),
    ("x = [", "]"),
    ("import ", "os"),
    ("def f(", "self"),
]
# Where no token reaches over the border, texts are split as lm-eval splits them.
SPLITS = [("import os", "\nimport sys"), ("for i in ", "range(9)"), ("x = 1\n", "y"), ("def f():  ", "return 0"), ("  \nx = ", "1"), ("  ", "x")]
BEGINNINGS = {0: [0], None: [], 5: [5]}  # bos, and what contexts begin with
TEXTS = ["import os", "", "x"] * 30
PROMPTS = ["def main(", "import ", "", "class Node:\n    def __init__(self", "  \n  x = ", "  "] * 15
WRITING = [  # what a task says, and what it means
    ({"until": ["\n", ""]}, dict(temperature=0, stop=["\n"], max_tokens=256)),
    (
        {"until": ":", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7},
        dict(temperature=0, stop=[":"], max_tokens=5),
    ),
    ({"max_new_tokens": 7, "temperature": None, "num_beams": 1}, dict(temperature=0, max_tokens=7)),
    ({"max_new_tokens": 7, "temperature": 0.0}, dict(temperature=0, max_tokens=7)),
    (
        {"max_gen_toks": 9, "do_sample": True, "temperature": 0.5, "seed": 1},
        dict(temperature=0.5, top_p=1, seed=1, max_tokens=9),
    ),
]
# A conversation as it is written down for the models.
TALKS = {
    "world": "System: Be brief.\n\nUser: {}\n\nAssistant:",
    "assistant": "System: Be brief.\n\nUser: {}\n\nAssistant: ",
    "bot": "System✿Be brief.✿\nUser✿{}✿\nBot✿",
}
# Whether a context is a conversation up to within a reply, and then what of it is read.
CONTEXTS = {
    "# User Go on.\n# Reply ": "# User Go on.\n# Reply",
    "# System Brief.\n# User Go on.\n# Reply class Node": "# System Brief.\n# User Go on.\n# Reply class Node",
    "# User Go on.\n# Reply class Node\n  ": "# User Go on.\n# Reply class Node\n  ",
    "Go on.\n# Reply ": None,
    "# Reply class Node\n# User Go on.": None,
    "# User def main(": None,
}
# Pairs in a World conversation, and the continuations that are read.
REPLIES = {
    ("User: Go on.\n\nAssistant:", "range(9)"): " range(9)",
    ("User: Go on.\n\nAssistant:", " range(9)"): " range(9)",
    ("User: Go on.\n\nAssistant:", "\nreturn"): "\nreturn",
    ("User: Go on.\n\nAssistant: It is", "range(9)"): "range(9)",
    ("User: Go on.\n\nAssistant:", ""): "",
    ("Go on.\n\nAssistant:", "range(9)"): "range(9)",
    ("User: Go on:", "range(9)"): "range(9)",
}
TALKING = {
    "tasks": ["local_writing", "local_choices", "local_begun"],
    "apply_chat_template": True,
    "fewshot_as_multiturn": True,
    "system_instruction": " Be brief.\n\n",
}


# `python -m rwkv_engine.lm_eval`, without reading the 26,000 files of the tasks that come with lm-eval.
COMMAND = """
import functools, runpy
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
runpy.run_module("rwkv_engine.lm_eval", run_name="__main__", alter_sys=True)
"""


def in_tasks(*command, cache, stdin=""):
    """Runs Python in the folder of the tasks, with the cache of data sets elsewhere."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**child_environment(), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)},
        cwd=TASKS,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def demo():
    return rwkv.Engine("demo", "cpu fp32")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    asked = {
        "splits": SPLITS,
        "requests": [
            *([{"bos": bos}, "loglikelihood", PAIRS] for bos in BEGINNINGS),
            [{}, "loglikelihood_rolling", [[text] for text in TEXTS]],
            *([{}, "generate_until", [[prompt, given] for prompt in PROMPTS]] for given, _ in WRITING),
            [{"template": "world"}, "loglikelihood", list(REPLIES)],
            [{"template": "comments.toml"}, "generate_until", [[context, {"max_gen_toks": 20}] for context in CONTEXTS]],
            [{}, "generate_until", [["a", {"num_beams": 3}]]],
        ],
        "tasks": {name: [{"template": name}, TALKING] for name in TALKS},
    }
    cache = tmp_path_factory.mktemp("lm_eval")
    return json.loads(in_tasks(TESTS / "reference" / "torch_lm.py", cache=cache, stdin=json.dumps(asked)))


@pytest.mark.skipif(bool(importlib.util.find_spec("lm_eval")), reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install():
    with pytest.raises(ImportError, match="`pip install lm-eval`"):
        importlib.import_module("rwkv_engine.lm_eval")


@pytest.mark.oracle
@needs_lm_eval
def test_results_are_those_of_torch(found):
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
    arguments += ["--apply_chat_template", "bot", "--log_samples"]
    in_tasks("-c", COMMAND, "run", *arguments, cache=tmp_path / "cache")
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())
    assert 0.2 < results["results"]["local_choices"]["acc,none"] < 1
    assert results["chat_template"].startswith("System✿{system}✿\nUser✿{user}✿\nBot✿{assistant}✿")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert all("User✿" in line for line in samples.read_text().splitlines())


def total(logprobs):
    return float(logprobs.sum(dtype="float64"))


def continued(demo, context, rest, begin):
    """The log-probability of a continuation, by `Engine.score` alone."""
    encode = demo.tokenizer.encode
    before, whole = encode(context.rstrip()), encode(context + rest)
    while before != whole[: len(before)]:
        before.pop()
    front = begin + before or [0]
    return total(demo.score([*front, *whole[len(before) :]])[len(front) - 1 :])


@needs_lm_eval
def test_log_likelihoods_are_those_of_score(demo, found):
    for begin, answers in zip(BEGINNINGS.values(), found["answers"], strict=False):
        expected = [continued(demo, *pair, begin) for pair in PAIRS]
        assert [logprob for logprob, _ in answers] == expected, begin
    for ours, theirs in found["splits"]:
        assert ours == theirs
    answers = found["answers"][len(BEGINNINGS)]
    assert answers == [total(demo.score([0, *demo.tokenizer.encode(text)])) for text in TEXTS] and answers[1] == 0


@needs_lm_eval
def test_texts_are_those_of_generate(demo, found):
    *answers, _, _, refusal = found["answers"][len(BEGINNINGS) + 1 :]
    for texts, (given, params) in zip(answers, WRITING, strict=True):
        expected = {p: written(demo, p, **params) for p in set(PROMPTS)}
        assert texts == [expected[prompt] for prompt in PROMPTS], given
    assert "'num_beams'" in refusal


def written(demo, prompt, **params):
    return demo.generate([0, *demo.tokenizer.encode(prompt)], rwkv.SamplingParams(**params)).text


@needs_lm_eval
def test_what_ends_a_reply_ends_replies_alone(demo, found):
    for text, (context, read) in zip(found["answers"][-2], CONTEXTS.items(), strict=True):
        plain = written(demo, context, temperature=0, max_tokens=20)
        assert "e" in plain or "s" in plain
        if read is None:
            assert text == plain
        else:
            expected = written(demo, read, temperature=0, max_tokens=20, stop=["e", "s"])
            assert text == (expected.removeprefix(" ") if read != context else expected) != plain


@needs_lm_eval
def test_a_world_model_s_reply_stands_behind_a_blank(demo, found):
    for (logprob, _), ((context, _), read) in zip(found["answers"][-3], REPLIES.items(), strict=True):
        assert logprob == continued(demo, context, read, [0])


@needs_lm_eval
@pytest.mark.parametrize("name", TALKS)
def test_conversations_are_written_as_the_template_says(demo, found, name):
    talk, template = found["tasks"][name], rwkv.ChatTemplate.named(name)
    marks = {text: demo.tokenizer.encode(text) for text in template.stop_tokens}
    stop = [*template.stop, *(text for text, ids in marks.items() if len(ids) > 1)]
    stop_tokens = [ids[0] for ids in marks.values() if len(ids) == 1]
    prompts = [json.loads(line)["prompt"] for line in (TASKS / "writing.jsonl").read_text().splitlines()]
    contexts = [request[0][0] for request in talk["requests"]["local_writing"]]
    assert contexts == [TALKS[name].format(prompt.strip()) for prompt in prompts]
    params = dict(temperature=0, stop=["\n", *stop], stop_tokens=stop_tokens, max_tokens=12)
    texts = [written(demo, context.rstrip(" "), **params) for context in contexts]
    if name in ("assistant", "world"):  # the blank behind "Assistant:" is no part of the reply
        assert any(text.startswith(" ") for text in texts)
        texts = [text.removeprefix(" ") for text in texts]
    assert talk["answers"]["local_writing"] == [[text] for text in texts]
    begun = [request[0][0] for request in talk["requests"]["local_begun"]]
    blank = " " if name == "world" else ""
    assert begun == [f"{context}{blank}It goes on:\n" for context in contexts]
    assert talk["answers"]["local_begun"] == [[written(demo, context, **params)] for context in begun]
    examples, answers = talk["requests"]["local_choices"], talk["answers"]["local_choices"]
    separator, reply = template.separator, template.separator + template.roles["assistant"].prefix
    for requests, found_here in zip(examples, answers, strict=True):
        for (context, choice), (logprob, _) in zip(requests, found_here, strict=True):
            assert context.startswith(TALKS[name].split("{}")[0]) and context.endswith(reply)
            assert context.count(reply) == 3 and context.count(separator + "User") == 3
            assert context.count(f"{reply}{blank}") == (2 if blank else 3)
            read = choice if choice[0].isspace() else blank + choice
            assert logprob == continued(demo, context, read, [0])
