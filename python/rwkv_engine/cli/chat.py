"""``rwkv-engine chat``: a conversation at a prompt, or lines of standard input as messages."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from ..chat import Chat
from ..engine import Engine
from ..errors import Error
from ..params import SamplingParams
from ..templates import template_of
from ._progress import Bar
from ._shared import (
    add_init_options,
    add_model_options,
    add_sampling_options,
    given_params,
    has_colours,
    is_terminal,
    open_engine,
    show,
    visible,
)

try:
    import readline
except ImportError:  # it is not everywhere
    readline = None  # type: ignore[assignment]

HELP = "talk with a model"
DESCRIPTION = """Talk with a model. At a terminal, /help lists what else can be typed; otherwise
every line of standard input is a message, whatever it begins with, and the answers go to standard
output."""
EXAMPLE = """examples:
  rwkv-engine chat --model rwkv7-g1k-1.5b.pth --think off
  printf 'Hello\\n' | rwkv-engine chat --json"""

_COMMANDS = """\
/help            this list
/save FILE       write the state of the conversation
/load FILE       go on from a state that /save wrote
/fork NAME       go on in a branch; the other stays as it is
/switch NAME     go to another branch
/branches        list them
/undo            take back the last message and its reply
/system TEXT     begin again, with TEXT as what the model is told first
/think MODE      how much the model is to think
/reset           begin again
/quit            leave, as Ctrl-D does
A line that ends with \\ goes on in the next one; a line \"\"\" begins a text of several lines that
a second \"\"\" ends. A message that begins with / is typed with //. Ctrl-C stops a reply."""

_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    option = parser.add_argument
    option("--template", metavar="NAME", help="or a TOML file (default: by the model's name)")
    option("--system", metavar="TEXT", help="what the model is told first")
    option("--think", metavar="MODE", help="off, open, short, medium or long")
    option("--state", metavar="FILE", help="go on from a state that /save wrote")
    add_init_options(option)
    option("--json", action="store_true", help="print a JSON object for each reply")
    option("--commands", action="store_true", help="obey /commands in piped lines too")
    option("--no-history", action="store_true", help="remember no lines for the next time")
    add_sampling_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if sys.stdin is None:
        raise Error("expected messages on standard input, found it closed")
    engine = open_engine(options)
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout) and not options.json
    talk = _Talk(engine, options)
    if not interactive:
        with contextlib.suppress(EOFError):  # /quit
            if options.commands:
                for message in _messages(_plain_lines()):
                    talk.take(message)
            for line in _plain_lines():
                talk.send(line)
        return
    with _history(enabled=not options.no_history), contextlib.suppress(EOFError):
        print("/help lists what can be typed; Ctrl-D leaves.")
        for message in _messages(_typed_lines(talk)):
            try:
                talk.take(message)
            except KeyboardInterrupt:
                print()
            except (Error, OSError, ValueError) as error:
                print(f"rwkv-engine: {visible(str(error))}", file=sys.stderr)


class _Talk:
    """The conversation and its branches."""

    def __init__(self, engine: Engine, options: argparse.Namespace) -> None:
        self._engine = engine
        self._json = options.json
        self._colours = has_colours(sys.stdout) and not options.json
        self._thinks = is_terminal(sys.stdout)
        self._template = template_of(options.template, engine.name)
        self._given = given_params(options)
        think = self._template.think if options.think is None else options.think
        self._fresh = engine.new_state(options.init, transposed=options.init_transposed)
        state = None if options.state is None else engine.load_state(options.state)
        self.name = "main"
        self._branches = {self.name: self._begin(options.system, think, state)}

    def _begin(self, system: str | None, think: str, state: Any = None) -> Chat:
        state = self._fresh if state is None else state
        return self._engine.chat(
            self._template, system=system, think=think, params=self._params(think), state=state
        )

    def _params(self, think: str) -> SamplingParams:
        """Return the mode's preset with what the command line changes."""
        return dataclasses.replace(self._template.mode(think).params, **self._given)

    @property
    def _chat(self) -> Chat:
        return self._branches[self.name]

    def take(self, message: str) -> None:
        """Do what a message says, or send it."""
        if message.startswith("/") and not message.startswith("//"):
            word, _, rest = message[1:].partition(" ")
            command = getattr(self, f"_do_{word}", None) if word.isidentifier() else None
            if command is None:
                raise Error(f"expected a command that /help lists, found /{word:.40}")
            command(rest.strip())
        else:
            self.send(message.removeprefix("/") if message.startswith("//") else message)

    def send(self, text: str) -> None:
        """Say it and print the reply; nothing for a blank line."""
        if not text.strip():
            return
        kind: str | None = None
        with Bar("reading") as bar, self._chat.stream(text, progress=bar.update) as stream:
            try:
                for piece in stream:
                    bar.clear()
                    if self._json or (piece.kind == "reasoning" and not self._thinks):
                        continue
                    if piece.kind != kind:
                        self._change(kind, piece.kind)
                        kind = piece.kind
                    show(piece.text)
            finally:
                self._change(kind, None)
            reply = stream.result()
        if self._json:
            found = dataclasses.asdict(reply)
            del found["raw"]
            print(json.dumps(found), flush=True)
        else:
            print(flush=True)

    def _change(self, old: str | None, new: str | None) -> None:
        if old == "reasoning":
            print(_PLAIN if self._colours else "", end="\n\n" if new else "")
        if new == "reasoning" and self._colours:
            print(_DIM, end="")

    def prompt(self) -> str:
        """Return what stands before a line to be typed; readline must know what has no width."""
        text = "> " if self.name == "main" else f"{visible(self.name)}> "
        if not self._colours:
            return text
        bold, plain = _BOLD, _PLAIN
        if readline is not None:
            bold, plain = f"\x01{bold}\x02", f"\x01{plain}\x02"
        return f"{bold}{text}{plain}"

    # ---- commands ----

    def _do_help(self, rest: str) -> None:
        print(_COMMANDS)

    def _do_save(self, rest: str) -> None:
        self._chat.state.save(_needed(rest, "/save FILE"))

    def _do_load(self, rest: str) -> None:
        state = self._engine.load_state(_needed(rest, "/load FILE"))
        self._branches[self.name] = self._begin(None, self._chat.think, state)

    def _do_fork(self, rest: str) -> None:
        number = len(self._branches) + 1
        name = rest or next(
            f"{n}" for n in range(number, 2 * number) if f"{n}" not in self._branches
        )
        if name in self._branches:
            raise Error(f"/fork: expected a new name, found {name!r}; /branches lists them")
        self._branches[name] = self._chat.branch()
        self.name = name

    def _do_switch(self, rest: str) -> None:
        name = _needed(rest, "/switch NAME")
        if name not in self._branches:
            raise Error(f"/switch: expected one of {', '.join(self._branches)}, found {name!r}")
        self.name = name

    def _do_branches(self, rest: str) -> None:
        for name, chat in self._branches.items():
            mark = "*" if name == self.name else " "
            print(f"{mark} {visible(name)}  messages: {len(chat.messages)}")

    def _do_undo(self, rest: str) -> None:
        self._chat.undo()

    def _do_system(self, rest: str) -> None:
        self._branches[self.name] = self._begin(rest or None, self._chat.think)

    def _do_think(self, rest: str) -> None:
        think = _needed(rest, f"/think with one of {', '.join(self._template.modes)}")
        self._chat.set_think(think, self._params(think))

    def _do_reset(self, rest: str) -> None:
        self._branches[self.name] = self._begin(self._chat.system, self._chat.think)

    def _do_quit(self, rest: str) -> None:
        raise EOFError


def _needed(rest: str, usage: str) -> str:
    if not rest:
        raise Error(f"expected {usage}, found nothing after the command")
    return rest


def _messages(lines: Iterator[str | None]) -> Iterator[str]:
    r"""Join lines to messages: those that end with a \, and what stands between two \"\"\".

    The line None, for Ctrl-C, drops what has been typed of a message.
    """
    for line in lines:
        if line is None:
            continue
        text = _block(lines) if line.strip() == '"""' else _continued(line, lines)
        if text is not None:
            yield text


def _continued(text: str, lines: Iterator[str | None]) -> str | None:
    while text.endswith("\\"):
        line = next(lines, "")
        if line is None:
            return None
        text = f"{text[:-1]}\n{line}"
    return text


def _block(lines: Iterator[str | None]) -> str | None:
    """Return the lines up to the next \"\"\" as a message, whatever they begin with."""
    found = []
    for line in lines:
        if line is None:
            return None
        if line.rstrip() == '"""':
            break
        found.append(line.rstrip())
    text = "\n".join(found)
    return f"/{text}" if text.startswith("/") else text


def _plain_lines() -> Iterator[str]:
    for data in sys.stdin.buffer:
        yield data.decode(errors="replace").rstrip("\r\n")


def _typed_lines(talk: _Talk) -> Iterator[str | None]:
    """Yield what is typed, None for Ctrl-C; the second in a row leaves."""
    asked = False
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input(talk.prompt())
            asked = False
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if asked:
                raise
            asked = True
            print("Ctrl-C again, or Ctrl-D, leaves.")
            yield None
            continue
        yield line.encode(errors="surrogateescape").decode(errors="replace")


@contextlib.contextmanager
def _history(enabled: bool) -> Iterator[None]:
    """Let the lines of former times be there, and keep those of this one."""
    if not enabled or readline is None:
        yield
        return
    try:
        base = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        yield
        return
    path = pathlib.Path(base) / "rwkv-engine" / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        # Nobody is to miss a conversation because its lines could not be kept.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.set_history_length(1000)
            readline.write_history_file(path)
