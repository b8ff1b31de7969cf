"""The command at its edges: what a terminal, a shell or a file may do to it, and it to them."""

import json
import os
import select
import subprocess

import pytest
from test_cli import assert_one_sentence, run, start
from test_cli_chat import OPTIONS, PLAIN, Terminal, replies
from test_cli_more import commands

import rwkv_engine as rwkv


# ---- terminals ----


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("inspect", "a\x1b[31m\x9bb"), 1),
        (("generate", "--prompt-file", "\x1b[31m"), 1),
        (("generate", "--\x1b[31m\n"), 2),
    ],
    ids=ascii,
)
def test_names_in_errors_do_nothing_to_a_terminal(arguments, status):
    done = run(*arguments)
    assert (done.returncode, done.stderr.count(b"\n")) == (status, 1)
    assert b"\x1b" not in done.stderr and rb"\x1b[31m" in done.stderr


def test_a_block_is_a_message_whatever_it_begins_with(tmp_path):
    path = tmp_path / "taken"
    params = rwkv.ChatTemplate.named("bot").mode("off").params
    given = {name: getattr(params, name) for name in params.__dataclass_fields__}
    chat = rwkv.Engine("demo").chat("bot", think="off", params=rwkv.SamplingParams(**{**given, "seed": 1, "max_tokens": 6}))
    expected = [chat.send(text).text for text in (f"/save {path}", "//x\n/y")]
    found = replies('"""', f"/save {path}", '"""', '"""', "//x", "/y", '"""')
    assert [reply["text"] for reply in found] == expected and not path.exists()


@pytest.mark.parametrize("line", ['"""', "a\\\\"], ids=str)
def test_ctrl_c_drops_a_message_of_several_lines(line, tmp_path):
    terminal = Terminal(*OPTIONS, XDG_STATE_HOME=str(tmp_path), **PLAIN)
    terminal.wait(rb"> ")
    terminal.type(line + "\n")
    terminal.wait(rb"\n> ")
    terminal.interrupt(rb"leaves\.\r\n> ")
    terminal.type("/branches\n")
    terminal.wait(rb"messages: 0")
    assert terminal.leave() == 0


def test_what_is_typed_need_not_be_utf8(tmp_path):
    terminal = Terminal(*OPTIONS, XDG_STATE_HOME=str(tmp_path), PYTHONIOENCODING="utf-8:strict", **PLAIN)
    terminal.wait(rb"> ")
    os.write(terminal.fd, b"a\xff\n")
    terminal.wait(rb"\n> ")
    terminal.type("/branches\n")
    terminal.wait(rb"messages: 2")
    assert terminal.leave() == 0


# ---- shells ----


def buffered(*arguments, **options):
    """As a shell starts it; what is not flushed is written when the process ends."""
    return start(*arguments, env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, **options)


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("--version",), ("completion", "bash")], ids=str)
def test_a_reader_that_went_away_is_no_news(arguments):
    read, write = os.pipe()
    os.close(read)
    process = buffered(*arguments, stdout=write)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


def test_a_script_answers_a_line_before_it_reads_the_next():
    with buffered("chat", *OPTIONS, stdin=-1) as process:
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        found = b""
        while not found.endswith(b"\n") and select.select([process.stdout], [], [], 20)[0]:
            found += os.read(process.stdout.fileno(), 65536)
        assert found and process.poll() is None
        process.communicate(timeout=30)


def completed(line):
    script = run("completion", "bash").stdout.decode()
    words = line.split(" ")
    probe = f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n_rwkv_engine\necho ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_knows_values():
    assert completed("rwkv-engine generate --penalty-style ") == ["rwkv", "rapid", "openai"]
    assert completed("rwkv-engine generate --model ") == [], "the shell completes file names"
    for name, parser in commands().items():
        assert completed(f"rwkv-engine {name} -") == [o for a in parser._actions for o in a.option_strings]


# ---- files, and what is none ----


def test_an_empty_standard_input_is_no_prompt():
    done = run("generate", "-", "--max-tokens", 3)
    assert_one_sentence(done.returncode, done.stderr, "standard input")


@pytest.mark.parametrize("arguments", [("generate", "--prompt-file"), ("tokenize", "--file")], ids=str)
@pytest.mark.parametrize("path", ["absent", "."])
def test_a_file_that_cannot_be_read(arguments, path):
    done = run(*arguments, path)
    assert_one_sentence(done.returncode, done.stderr, f"{path}: expected a file")


def test_tokens_that_are_no_text_have_bytes():
    data = b"a\xff\xe2\x82"
    found = json.loads(run("tokenize", "-", "--json", stdin=data).stdout)
    assert b"".join(t["text"].encode() if t["text"] is not None else bytes(t["bytes"]) for t in found) == data


def test_a_vocabulary_is_checked_against_the_model(tmp_path):
    vocabulary = tmp_path / "v.txt"
    vocabulary.write_text("".join(f"{i} {chr(i + 19900)!r} 3\n" for i in range(1, 2000)))
    assert run("tokenize", "\u4e00", "--tokenizer", vocabulary).returncode == 0
    done = run("tokenize", "\u4e00", "--tokenizer", vocabulary, "--model", "demo")
    assert_one_sentence(done.returncode, done.stderr, "1024")


OWN = """
[own]
separator = "\\n\\n"
think = "short"
system = { prefix = "System: ", suffix = "" }
user = { prefix = "User: ", suffix = "" }
assistant = { prefix = "Assistant:", suffix = "" }
modes = { short = { opener = "", sampling = "short" }, longer = { opener = "", sampling = "longer" } }
sampling = { short = { max_tokens = 3 }, longer = { max_tokens = 9 } }
"""


def test_a_mode_brings_its_own_preset(tmp_path):
    """What the command line does not give comes from the mode, also after a change of mode."""
    (tmp_path / "own.toml").write_text(OWN)
    options = ("--template", tmp_path / "own.toml", "--seed", 1, "--commands")
    found = replies("Hi", "/think longer", "Hi", "/reset", "Hi", options=options)
    assert [reply["usage"]["completion_tokens"] for reply in found] == [3, 9, 9]
