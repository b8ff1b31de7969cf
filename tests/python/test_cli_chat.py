"""`rwkv-engine chat`: in a pipe as a filter, on a terminal as a conversation."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import stat
import time

import pytest
from test_cli import COMMAND, assert_one_sentence, run, start

import rwkv_engine as rwkv

OPTIONS = ("--template", "bot", "--think", "off", "--seed", 1, "--max-tokens", 6, "--commands")


def replies(*lines, options=OPTIONS):
    done = run("chat", "--json", *options, stdin="\n".join(lines).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def chat():
    params = rwkv.SamplingParams(**{**sampling(), "seed": 1, "max_tokens": 6})
    return rwkv.Engine("demo").chat("bot", think="off", params=params)


def sampling():
    params = rwkv.ChatTemplate.named("bot").mode("off").params
    return {name: getattr(params, name) for name in params.__dataclass_fields__}


# ---- in a pipe ----


def test_lines_are_messages_and_answers_go_out(chat):
    expected = [chat.send("Hi"), chat.send("More")]
    found = replies("Hi", "", "   ", "More")
    assert [(r["text"], r["reasoning"], r["finish_reason"]) for r in found] == [(r.text, r.reasoning, r.finish_reason) for r in expected]
    plain = run("chat", *OPTIONS, stdin=b"Hi\nMore\n")
    assert plain.stdout.decode() == "".join(r.text + "\n" for r in expected) and plain.stderr == b""


def test_piped_lines_are_messages_whatever_they_begin_with(chat, tmp_path):
    """Text of others may be piped in: it saves nothing, and reads nothing."""
    lines = [f"/save {tmp_path}/a.state", "/quit", '"""', "end\\"]
    expected = [chat.send(line).text for line in lines]
    assert [r["text"] for r in replies(*lines, options=OPTIONS[:-1])] == expected
    assert list(tmp_path.iterdir()) == []


def test_several_lines_are_one_message(chat):
    expected = [chat.send("a\nb\nc").text, chat.send("x\n\n/y").text, chat.send("/z").text, chat.send("end\n").text]
    assert [r["text"] for r in replies("a\\", "b\\", "c", '"""', "x", "", "/y", '"""', "//z", "end\\")] == expected


def test_undo_branches_and_reset(chat):
    first = chat.send("Hi")
    other = chat.branch()
    second, left = chat.send("A"), other.send("B")
    found = replies("Hi", "/fork side", "B", "/switch main", "A", "/undo", "A", "/reset", "Hi", "/quit", "never")
    assert [r["text"] for r in found] == [r.text for r in (first, left, second, second, first)]


def test_save_and_load(chat, tmp_path):
    expected = [chat.send("Hi").text, chat.send("More").text]
    path = tmp_path / "a b.state"
    assert [r["text"] for r in replies("Hi", f"/save {path}", "More", f"/load {path}", "More")] == [*expected, expected[1]]
    assert [r["text"] for r in replies("More", options=(*OPTIONS, "--state", path))] == expected[1:]


def test_system_and_think():
    engine = rwkv.Engine("demo")
    told = engine.chat("bot", system="Be brief.", think="off", params=rwkv.SamplingParams(**{**sampling(), "seed": 1, "max_tokens": 6}))
    expected = told.send("Hi")
    assert [r["text"] for r in replies("/system Be brief.", "Hi")] == [expected.text]
    assert [r["text"] for r in replies("Hi", options=(*OPTIONS, "--system", "Be brief."))] == [expected.text]
    found = replies("/think long", "Hi")
    assert found[0]["text"] == "" and found[0]["reasoning"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/sing", "found /sing"),
        ("/save", "/save FILE"),
        ("/save absent/x", "absent/x"),
        ("/load absent.state", "absent.state"),
        ("/switch nowhere", "found 'nowhere'"),
        ("/fork main", "found 'main'"),
        ("/undo", "undo"),
        ("/think hard", "found 'hard'"),
    ],
)
def test_a_command_that_fails_ends_a_script(line, word):
    done = run("chat", *OPTIONS, stdin=(line + "\n").encode())
    assert_one_sentence(done.returncode, done.stderr, word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--template", "nobody"), "nobody"),
        (("--template", "absent.toml"), "absent.toml"),
        (("--think", "hard"), "hard"),
        (("--state", "absent.state"), "absent.state"),
        (("--model", "absent.pth"), "absent.pth"),
        (("--strategy", "cuda fp16"), "cuda"),
        (("--top-p", "7"), "top_p"),
    ],
)
def test_options_that_cannot_be(arguments, word):
    done = run("chat", *arguments, stdin=b"Hi\n")
    assert_one_sentence(done.returncode, done.stderr, word)


def test_ctrl_c_ends_a_script():
    process = start("chat", "--template", "bot", "--max-tokens", 10**9, "--ignore-eos", "--think", "off", stdin=-1)
    process.stdin.write(b"Hi\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")


# ---- on a terminal ----


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments, **environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(environment)
            os.execv(COMMAND[0], [*COMMAND, "chat", *map(str, arguments)])
        self.seen = b""

    def wait(self, pattern, timeout=30):
        """Read until the pattern has come, and return what came before and with it."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 65536)
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text):
        os.write(self.fd, text.encode())

    def leave(self, key="\x04", timeout=30):
        """Type a key until the command has ended: one that comes before readline waits is only noted."""
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                self.type(key)
            for _ in range(20):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    os.close(self.fd)
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.1)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError("the command does not end")

    def interrupt(self, pattern):
        """Ctrl-C, and once more if it was only noted."""
        self.type("\x03")
        try:
            return self.wait(pattern, 3)
        except AssertionError:
            self.type("\x03")
            return self.wait(pattern)


PLAIN = dict(TERM="dumb", NO_COLOR="1")


def test_a_conversation(tmp_path, chat):
    expected = chat.send("Hi").text
    terminal = Terminal(*OPTIONS, XDG_STATE_HOME=str(tmp_path), **PLAIN)
    terminal.wait(rb"/help lists.*> ")
    terminal.type("Hi\n")
    shown = terminal.wait(rb"Hi\r\n.*\r\n> ").replace(b"\r\n", b"\n")
    assert expected.encode() in shown and b"\x1b[1m" not in shown
    terminal.type("/sing\n")
    terminal.wait(rb"rwkv-engine: expected a command that /help lists, found /sing\r\n> ")
    terminal.type("/fork other\n")
    terminal.wait(rb"other> ")
    terminal.type("/branches\n")
    terminal.wait(rb"  main  messages: 2\r\n\* other  messages: 2\r\n")
    terminal.type("/help\n")
    terminal.wait(rb"/undo +take back.*> ")
    assert terminal.leave() == 0
    history = tmp_path / "rwkv-engine" / "history"
    assert history.read_text().splitlines()[:2] == ["Hi", "/sing"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = Terminal(*OPTIONS, XDG_STATE_HOME=str(tmp_path), TERM="xterm")
    again.wait(rb"> ")
    again.type("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\n")  # five lines back
    assert expected.encode().split(b"\n")[0] in again.wait(rb"Hi\r\n.*> ")
    assert again.leave() == 0


def test_colours_are_for_terminals_that_have_them(tmp_path):
    options = ("--template", "bot", "--think", "open", "--seed", 1, "--max-tokens", 6, "--no-history")
    for environment, coloured in ((dict(TERM="xterm", NO_COLOR=""), True), (dict(TERM="xterm", NO_COLOR="1"), False)):
        terminal = Terminal(*options, XDG_STATE_HOME=str(tmp_path), **environment)
        terminal.wait(rb"> ")
        terminal.type("Hi\n")
        shown = terminal.wait(rb"Hi\r\n.*> ")
        assert (b"\x1b[2m" in shown, b"\x1b[0m" in shown) == (coloured, coloured)
        assert terminal.leave() == 0
    assert list(tmp_path.iterdir()) == [], "--no-history"


def test_history_that_cannot_be_kept_is_no_error(tmp_path):
    (tmp_path / "rwkv-engine").write_text("a file where the folder should be")
    terminal = Terminal(*OPTIONS, XDG_STATE_HOME=str(tmp_path), **PLAIN)
    terminal.wait(rb"> ")
    assert terminal.leave() == 0


def test_control_characters_of_the_model_do_nothing(tmp_path):
    terminal = Terminal(*OPTIONS, "--logit-bias", "27=1000", XDG_STATE_HOME=str(tmp_path), **PLAIN)
    terminal.wait(rb"> ")
    terminal.type("Hi\n")
    assert rb"\x1b\x1b\x1b" in terminal.wait(rb"Hi\r\n.*\r\n> ")
    assert terminal.leave() == 0
