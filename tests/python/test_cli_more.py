"""The other commands, and what `generate` takes besides a prompt."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_cli import COMMAND, PROMPT, assert_one_sentence, generated, run, start

import rwkv_engine as rwkv
from rwkv_engine.cli import make_parser


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo")


# ---- generate ----


def test_every_parameter_reaches_the_sampler(e):
    params = dict(
        temperature=1.3, top_p=0.95, top_k=50, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.25,
        penalty_decay=0.9, penalty_style="rapid", seed=5, max_tokens=40, ignore_eos=True, stop=["zz", "qq"],
        stop_tokens=[7], logit_bias={260: -100.0, 44: 1.5},
    )  # fmt: skip
    words = []
    for name, value in params.items():
        option = {"stop_tokens": "--stop-token"}.get(name, "--" + name.replace("_", "-"))
        if value is True:
            words.append(option)
        elif isinstance(value, dict):
            words += [word for id, bias in value.items() for word in (option, f"{id}={bias}")]
        elif isinstance(value, list):
            words += [word for item in value for word in (option, item)]
        else:
            words += [option, value]
    assert generated(PROMPT, *words).decode() == e.generate(PROMPT, rwkv.SamplingParams(**params)).text
    given = {action.dest for action in make_parser()._subparsers._group_actions[0].choices["generate"]._actions}
    fields = set(rwkv.SamplingParams.__dataclass_fields__) - {"logits_processor"}
    assert fields <= given and fields - {"top_logprobs"} <= set(params)


def test_json_is_the_result(e):
    found = json.loads(run("generate", PROMPT, "--seed", 5, "--max-tokens", 9, "--json", "--top-logprobs", 3).stdout)
    result = e.generate(PROMPT, rwkv.SamplingParams(seed=5, max_tokens=9, top_logprobs=3))
    assert (found["text"], found["tokens"], found["finish_reason"]) == (result.text, result.tokens, "length")
    assert found["logprobs"] == result.logprobs and len(found["top_logprobs"][0]) == 3
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 9}


def test_several_texts(e):
    params = rwkv.SamplingParams(seed=5, max_tokens=9)
    texts = [r.text for r in e.generate_batch([PROMPT], params, n=3)]
    found = json.loads(run("generate", PROMPT, "--seed", 5, "--max-tokens", 9, "--json", "-n", 3).stdout)
    assert [r["text"] for r in found] == texts
    plain = generated(PROMPT, "--seed", 5, "--max-tokens", 9, "-n", 3).decode()
    assert plain == "".join(f"==> {i} of 3 <==\n{text}\n" for i, text in enumerate(texts, 1))


def test_a_prompt_from_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(PROMPT.encode() + b"\xff")
    options = ("--seed", 5, "--max-tokens", 9)
    assert generated("--prompt-file", tmp_path / "a.txt", *options) == generated("-", *options, stdin=PROMPT.encode() + b"\xff")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a", "--prompt-file", "b"), "found both"),
        (("--prompt-file", "absent.txt"), "absent.txt"),
        (("--prompt-file", "."), "directory"),
        (("a", "-n", "0"), "n: expected an integer from 1"),
        (("a", "-n", "2", "--save", "x"), "--save: expected one text"),
        (("a", "--logit-bias", "99999=1"), "logit_bias"),
        (("a", "--top-logprobs", "2000"), "top_logprobs"),
        (("a", "--stop", ""), "stop"),
    ],
)
def test_errors_are_one_sentence(arguments, word, tmp_path):
    done = subprocess.run([*COMMAND, "generate", *arguments], capture_output=True, timeout=60, cwd=tmp_path)
    assert_one_sentence(done.returncode, done.stderr, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["x", "3", "3=x", "=1"])
def test_a_bias_that_is_none(value):
    done = run("generate", PROMPT, "--logit-bias", value)
    assert done.returncode == 2 and b"--logit-bias" in done.stderr


def test_ctrl_c_while_saving_leaves_no_broken_file(tmp_path):
    process = start("generate", PROMPT, "--max-tokens", 10**9, "--save", tmp_path / "a.state")
    process.stdout.read(1)
    process.send_signal(2)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors, list(tmp_path.iterdir())) == (130, b"", [])


def test_control_characters_do_not_reach_a_terminal():
    """The model may write any byte. On a terminal they are shown, in a pipe they are what they are."""
    import pty

    words = ("generate", "x", "--logit-bias", "27=1000", "--temperature", "0", "--max-tokens", "3")
    assert run(*words).stdout == b"\x1b\x1b\x1b"
    leader, follower = pty.openpty()
    process = start(*words, stdout=follower)
    process.communicate(timeout=60)
    os.close(follower)
    assert os.read(leader, 100) == rb"\x1b\x1b\x1b" + b"\r\n"
    os.close(leader)


# ---- tokenize ----


def test_tokenize():
    world = rwkv.Tokenizer.world()
    text = "Hello w\u00f6rld\n\u20ac"
    lines = run("tokenize", text).stdout.decode().splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == world.encode(text)
    assert json.loads(run("tokenize", text, "--json").stdout) == [{"id": i, "text": world.decode([i])} for i in world.encode(text)]
    assert run("tokenize", "-", "--count", stdin=text.encode()).stdout == b"%d\n" % len(world.encode(text))
    assert run("tokenize", "--decode", *world.encode(text)).stdout.decode() == text + "\n"


def test_tokenize_with_another_vocabulary(e, tmp_path):
    (tmp_path / "a.txt").write_text("import os")
    for options in (("--model", "demo"), ("--tokenizer", os.path.join(os.path.dirname(rwkv.__file__), "data", "demo-vocab.txt"))):
        found = run("tokenize", "--file", tmp_path / "a.txt", "--json", *options).stdout
        assert [t["id"] for t in json.loads(found)] == e.tokenizer.encode("import os")
    assert b"b'\\xe2'" in run("tokenize", "-", stdin=b"\xe2").stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "found none"),
        (("a", "--file", "b"), "found 2"),
        (("--file", "absent.txt"), "absent.txt"),
        (("--decode", "70000"), "found 70000"),
        (("--decode", "-1"), ""),
        (("a", "--tokenizer", "absent.txt"), "absent.txt"),
        (("a", "--model", "absent.pth"), "absent.pth"),
    ],
)
def test_tokenize_refuses(arguments, word):
    done = run("tokenize", *arguments)
    assert done.returncode in (1, 2) and done.stderr.count(b"\n") == 1 and word in done.stderr.decode()


# ---- inspect ----


def test_inspect_a_state(e, tmp_path):
    e.generate(PROMPT, rwkv.SamplingParams(seed=9, max_tokens=4)).state.save(tmp_path / "a.state")
    text = run("inspect", tmp_path / "a.state").stdout.decode()
    assert "a saved state" in text and "after 9 tokens" in text and e.fingerprint in text and "att.wkv  F32  (4, 2, 64, 64)" in text
    found = json.loads(run("inspect", "--json", tmp_path / "a.state").stdout)
    assert found["metadata"]["sampler_seed"] == "9" and found["bytes"] == (tmp_path / "a.state").stat().st_size
    data = (tmp_path / "a.state").read_bytes()
    (tmp_path / "b.state").write_bytes(data[:40])
    (tmp_path / "c.state").write_bytes(data[:60].replace(b"digest", b"digest") + b"\x1b[31m" * 50)
    for name in ("b.state", "c.state"):
        done = run("inspect", tmp_path / name)
        assert_one_sentence(done.returncode, done.stderr, "expected the header of a saved state")


def test_names_in_files_do_nothing_to_a_terminal(tmp_path):
    from helpers import SMALL, model, save

    weights = {**model(**SMALL).weights, "\x1b]0;title\x07": model(**SMALL).weights["ln_out.bias"]}
    path = save(tmp_path / "a.pth", weights)
    done = run("inspect", "--tensors", path)
    assert b"\x1b" not in done.stdout + done.stderr and rb"\x1b]0;title\x07" in done.stdout + done.stderr


# ---- bench ----


def test_bench():
    words = ("bench", "--prompt", 20, "--tokens", 3, "--rounds", 1, "--batch", 2)
    (row,) = json.loads(run(*words, "--json").stdout)
    assert {"prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds", "device", "resident_megabytes"} <= set(row)
    assert (row["model"], row["strategy"], row["batch"], row["rounds"]) == ("demo", "auto", 2, 1)
    text = run(*words, "--strategy", "cpu fp32", "--strategy", "cpu bf16").stdout.decode()
    assert text.count("tokens/s") == 4 and "'cpu fp32'" in text and "'cpu bf16'" in text
    done = run("bench", "--strategy", "cpu fp99")
    assert_one_sentence(done.returncode, done.stderr, "fp99")
    assert run("bench", "--rounds", 0).returncode == 2


# ---- completion ----


def commands():
    return make_parser()._subparsers._group_actions[0].choices


def all_parsers():
    """Of every command, and of every command of a command."""
    for name, parser in commands().items():
        yield name, parser
        if parser._subparsers is not None:
            yield from parser._subparsers._group_actions[0].choices.items()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell):
    script = run("completion", shell).stdout.decode()
    for name, parser in all_parsers():
        assert name in script
        for action in parser._actions:
            for option in action.option_strings:
                assert (f"-l {option[2:]}" if shell == "fish" and option.startswith("--") else option.lstrip("-")) in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script.encode(), capture_output=True).returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rwkv-engine ge", "generate"),
        ("rwkv-engine generate --top-", "--top-logprobs --top-p --top-k"),
        ("rwkv-engine completion ", "bash zsh fish"),
        ("rwkv-engine inspect mod", ""),
        ("rwkv-engine state ", "show verify convert diff"),
        ("rwkv-engine state s", "show"),
        ("rwkv-engine state show --", "--help --parts --json"),
        ("rwkv-engine state convert --dtype ", "fp32 fp16"),
        ("rwkv-engine state convert a.state", ""),
        ("rwkv-engine convert --dtype ", ""),
    ],
)
def test_completion_completes(line, expected):
    script = run("completion", "bash").stdout.decode()
    words = line.split(" ")
    probe = f"{script}\nCOMP_WORDS=({' '.join(repr(w) for w in words)}) COMP_CWORD={len(words) - 1}\n_rwkv_engine\necho ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


# ---- all of them ----


def test_every_command_has_help_with_an_example():
    for name in commands():
        done = run(name, "--help")
        assert done.returncode == 0 and re.search(rb"examples?:\s+(printf .*\| )?rwkv-engine " + name.encode(), done.stdout), name


def test_without_any_standard_stream():
    for words in ("generate x --max-tokens 2", "tokenize x", "inspect", "chat", "generate --model absent"):
        shell = " ".join(["exec", sys.executable, "-m", "rwkv_engine", words, "<&- >&- 2>&-"])
        assert subprocess.run(["sh", "-c", shell], timeout=60).returncode in (0, 1), words
