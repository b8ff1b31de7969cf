"""Last words and questions with choices: the library against plain sums over `score`, the files, and the commands."""

import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest
from test_cli import assert_one_sentence, run

import rwkv_engine as rwkv
from rwkv_engine.evaluation import Question, last_word, multiple_choice, read_questions, read_texts

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "lm_eval"
TEXTS = ["if not self.x: return None", "x = 1 if True else None", "for i in range(3):", "a b", "  x y"]


def logprob(engine, context, continuation):
    """Of a continuation whose tokens begin where the context ends, after token 0."""
    ids = engine.tokenizer.encode(context)
    whole = engine.tokenizer.encode(context + continuation)
    assert whole[: len(ids)] == ids
    row = engine.score(whole, bos=0)[len(ids) :]
    return float(row.sum(dtype=np.float64))


def greedy(engine, context, continuation):
    ids = engine.tokenizer.encode(context)
    rest = engine.tokenizer.encode(context + continuation)[len(ids) :]
    params = rwkv.SamplingParams(temperature=0, max_tokens=len(rest), ignore_eos=True)
    return engine.generate([0, *ids], params).tokens == rest


def test_last_words():
    demo = rwkv.Engine("demo")
    found = last_word(demo, TEXTS)
    pairs = [(text[: text.rindex(" ")], text[text.rindex(" ") :]) for text in TEXTS]
    losses = [-logprob(demo, *pair) for pair in pairs]
    right = [greedy(demo, *pair) for pair in pairs]
    assert 0 < sum(right) < len(TEXTS)
    assert (found.documents, found.accuracy) == (len(TEXTS), sum(right) / len(TEXTS))
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-12)
    two_words = r"texts\[1\]: expected a text of two words or more"
    surrogate = r"texts\[0\]: text, character 0: expected one that UTF-8 can hold"
    for texts, word in (([], "at least one, found none"), (["a b", "word"], two_words), (["a b", "a "], two_words), (["\ud800 b"], surrogate)):
        with pytest.raises(rwkv.Error, match=word):
            last_word(demo, texts)
    with pytest.raises(TypeError, match=r"texts\[1\]: expected a str, found int"):
        last_word(demo, ["two words", 5])


@pytest.mark.parametrize("answer", [2, -1, True, "A"])
def test_answers_that_are_none_of_the_choices(answer):
    with pytest.raises((TypeError, rwkv.Error), match=r"questions\[1\].answer: expected an integer"):
        multiple_choice(rwkv.Engine("demo"), [Question("a", ["x", "y"], 0), Question("a", ["x", "y"], answer)])


def test_questions():
    demo = rwkv.Engine("demo")
    asked = [
        Question("for i in", [" range(", " xyzzy"], 0),  # right, whatever counts
        Question("raise", [" ValueError('the value is not a number')", " x"], 0),  # the longer one
        Question("raise", [" ValueError('the value is not a number')", " x"], 1),
        Question("def f(self):\n    return", [" self.get_name(self, value)", " no"], 0),
        Question("", ["import", "xyzzy"], 1),
    ]
    answers = []
    for q in asked[:4]:
        sums = np.array([logprob(demo, q.context, choice) for choice in q.choices])
        lengths = np.array([len(choice) for choice in q.choices])
        answers.append((sums.argmax() == q.answer, (sums / lengths).argmax() == q.answer))
    assert answers == [(True, True), (False, True), (True, False), (False, True)]
    found = multiple_choice(demo, asked)
    assert dataclasses.astuple(found) == (5, 2 / 5, 3 / 5)
    seen = []
    multiple_choice(demo, asked * 20, lambda *counts: seen.append(counts))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len(seen) > 2
    with pytest.raises(rwkv.Error, match="questions: expected at least one"):
        multiple_choice(demo, [])
    for choices, error, words in (
        ([], rwkv.Error, r"questions\[5\]: choices: expected at least one"),
        (["a", ""], rwkv.Error, r"questions\[5\]: choices\[1\]: expected one of at least a token"),
        (["a", 5], TypeError, r"questions\[5\]: choices\[1\]: expected str"),
        ("ab", TypeError, r"questions\[5\].choices: expected a sequence of choices, found str"),
    ):
        with pytest.raises(error, match=words):
            multiple_choice(demo, [*asked, Question("x", choices, 0)])


# ---- files ----


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        return path

    return write


def test_lines_that_are_read(file):
    assert read_texts(file({"text": "a b", "id": 3}, b"", b"  ", {"text": "é ü"})) == ["a b", "é ü"]
    path = file(
        {"question": "Q", "choices": ["x", "y"], "answer": "B"},
        {"context": "C", "question": "Q", "choices": ["x"], "answer": 0, "more": None},
    )
    assert read_questions(path) == [Question("Q", [" x", " y"], 1), Question("C", [" x"], 0)]
    assert read_questions(str(path), delimiter="")[0].choices == ["x", "y"]


QUESTION = {"context": "C", "choices": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("read", "line", "words"),
    [
        (read_texts, b"{", "a JSON object, found '{'"),
        (read_texts, b"[1]", "a JSON object"),
        (read_texts, b'{"text": "a \xff"}', "a JSON object"),
        (read_texts, b"[" * 100_000, "a JSON object"),
        (read_texts, b'{"text": ' + b"1" * 10_000 + b"}", "a JSON object"),
        (read_texts, {}, '"text" to be a string, found none'),
        (read_texts, {"text": 3}, '"text" to be a string, found 3'),
        (read_texts, {"text": "word"}, "a text of two words or more"),
        (read_questions, {**QUESTION, "context": None}, '"context" or "question" to be a string'),
        (read_questions, {**QUESTION, "choices": "xy"}, 'list of strings, found "xy"'),
        (read_questions, {**QUESTION, "choices": []}, "list of strings"),
        (read_questions, {**QUESTION, "choices": ["x", 3]}, "strings that are not empty, found 3"),
        (read_questions, {**QUESTION, "choices": ["x", ""]}, 'not empty, found ""'),
        (read_questions, {**QUESTION, "answer": 2}, "from 0 to 1 or its letter, found 2"),
        (read_questions, {**QUESTION, "answer": -1}, "found -1"),
        (read_questions, {**QUESTION, "answer": True}, "found true"),
        (read_questions, {**QUESTION, "answer": "C"}, 'found "C"'),
        (read_questions, {**QUESTION, "answer": "a"}, 'found "a"'),
        (read_questions, {**QUESTION, "answer": ""}, 'found ""'),
        (read_questions, {**QUESTION, "answer": 0.0}, "found 0.0"),
        (read_questions, {"context": "C", "choices": ["x"]}, "found none"),
    ],
)
def test_lines_that_are_refused(file, read, line, words):
    path = file({"text": "a b", **QUESTION}, b"", line)
    with pytest.raises(rwkv.Error, match=re.escape(words)) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, line 3: expected") and len(str(error.value)) < 500


def test_files_that_are_refused(file, tmp_path):
    with pytest.raises(rwkv.Error, match="expected at least one line, found none"):
        read_texts(file(b"", b" "))
    with pytest.raises(rwkv.Error, match="absent.jsonl: expected a file that can be read"):
        read_questions(tmp_path / "absent.jsonl")


# ---- the commands ----


def test_the_command_evaluates_files(file):
    path = DATA / "choices.jsonl"
    demo = rwkv.Engine("demo", "cpu int8")
    words = ("--strategy", "cpu int8", "--json")
    (row,) = json.loads(run("eval", "--choices", path, "--delimiter", "", *words).stdout)
    found = multiple_choice(demo, read_questions(path, delimiter=""))
    assert row == {"strategy": "cpu int8", **dataclasses.asdict(found)}
    (row,) = json.loads(run("eval", "--lambada", file(*({"text": text} for text in TEXTS)), *words).stdout)
    assert row == {"strategy": "cpu int8", **dataclasses.asdict(last_word(demo, TEXTS))}
    lines = run("eval", "--choices", path, "--strategy", "cpu int8", "--strategy", "cpu fp32").stdout.decode().splitlines()
    assert lines[0] == f"{found.questions} questions" and lines[1].split() == ["strategy", "accuracy", "by", "bytes"]
    assert len(lines) == 4 and len(set(map(len, lines[1:]))) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--lambada", "absent.jsonl"), "absent.jsonl"),
        (("--lambada", __file__), "line 1: expected a JSON object"),
        (("--choices", DATA / "texts.jsonl"), "line 1"),
        (("--choices", DATA / "choices.jsonl", "--compare"), "--compare: expected --file"),
        (("--lambada", "x", "--tokens", "5"), "--tokens: expected --file"),
    ],
)
def test_errors_are_one_sentence(arguments, word):
    done = run("eval", *arguments)
    assert_one_sentence(done.returncode, done.stderr, word)


def test_one_file_at_a_time():
    done = run("eval", "--file", __file__, "--lambada", __file__)
    assert done.returncode == 2 and b"not allowed with" in done.stderr
