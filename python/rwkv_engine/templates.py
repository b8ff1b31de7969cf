r"""How a conversation is written down for a model: templates as data, in one small TOML format.

A file holds one template or more, each a table under its own name. Nothing in it is executed: it
has literal texts, names of patterns and numbers. This is a whole one::

    [marks]                            # the template's name
    models = ["marks", "mk[0-9]*"]     # optional: names of models it fits, see below
    separator = "\n"                   # stands between messages
    stop = ["\n<<"]                    # optional: strings that end a reply
    stop_tokens = ["<<end>>"]          # optional: tokens that end a reply, as text
    think = "off"                      # the mode that is used unless another is asked for
    system = { prefix = "<<system>>", suffix = "<<end>>" }
    user = { prefix = "<<user>>", suffix = "<<end>>" }
    assistant = { prefix = "<<bot>>", suffix = "<<end>>" }
    tool = { prefix = "<<tool>>", suffix = "<<end>>" }   # optional

    [marks.modes.off]                  # one table for each mode
    opener = "<think></think"          # begins the reply, after the assistant's prefix
    sampling = "calm"                  # a preset below

    [marks.modes.long]
    opener = "<think"                  # the model writes the rest: ">", thoughts, "</think>"
    words = " (think a lot)"           # optional: stands after the user's text
    sampling = "calm"

    [marks.sampling.calm]              # parameters of SamplingParams
    temperature = 1.0
    top_p = 0.3
    max_tokens = 1024

A preset may have `temperature`, `top_p`, `top_k`, `min_p`, `presence_penalty`,
`frequency_penalty`, `penalty_decay`, `penalty_style` and `max_tokens`. A pattern (``*``, ``?`` and
``[a-z]``) is compared with each word of a model's name, in lower case: those of
``rwkv7-g1k-1.5b.pth`` are rwkv7, g1k, 1, 5b and pth. A text of `stop_tokens` that is several tokens
in a model's vocabulary ends a reply as a string does.

What people say cannot take on the template's voice. A stop token in a text is spelled in tokens of
single bytes; a longer text of `stop_tokens`, the beginning of a message and the role's own suffix
get a space after their first character; what cannot be told apart in either way becomes U+FFFD.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ._arguments import DATA, Path, path_bytes
from .errors import Error
from .params import SamplingParams

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 64 * 1024
_PRESET = ["temperature", "top_p", "top_k", "min_p", "max_tokens"]
_PRESET += ["presence_penalty", "frequency_penalty", "penalty_decay", "penalty_style"]
_PATTERN = r"(?:[a-z0-9*?]|\[[a-z0-9]-[a-z0-9]\])+"
_TOML_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Role:
    """What stands around a message."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Mode:
    """How much the model is to think: how its reply begins, and how it is sampled."""

    opener: str
    words: str
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a conversation is written down for a model; `rwkv_engine.templates` has the format.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> template = rwkv.ChatTemplate.named("bot")
    >>> template.roles["assistant"].prefix, template.stop_tokens, sorted(template.modes)
    ('Bot✿', ('✿',), ['long', 'medium', 'off', 'open', 'short'])
    >>> rwkv.ChatTemplate.for_model("rwkv7-g1g-1.5b-20260517-ctx8192").name
    'assistant'
    """

    name: str
    separator: str
    think: str
    roles: Mapping[str, Role]
    modes: Mapping[str, Mode]
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str) -> ChatTemplate:
        """Return a template that comes with the package."""
        for template in _built_in():
            if template.name == name:
                return template
        raise Error(f"template: expected one of {', '.join(cls.names())}, found {name!r:.100}")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the templates that come with the package."""
        return [template.name for template in _built_in()]

    @classmethod
    def for_model(cls, model: str) -> ChatTemplate:
        """Return the template of a model, by its name alone."""
        return _fitting(_built_in(), model, "templates.toml")

    @classmethod
    def load(cls, path: Path, model: str = "") -> ChatTemplate:
        """Return the template in a TOML file; of several, the first that fits the model's name.

        Raises Error for anything but what the format has: file, key, expected and found.
        """
        name = os.fsdecode(path)
        first, *others = _read(pathlib.Path(name))
        return _fitting([first, *others], model, name) if others else first

    def fits(self, model: str) -> bool:
        """Tell whether one of the patterns fits a word of the model's name."""
        words = re.findall(r"[a-z0-9]+", model.lower()) or [""]
        return any(fnmatch.fnmatchcase(word, p) for p in self.models for word in words)

    def mode(self, think: str | None) -> Mode:
        """Return a mode by its name; None is the template's own choice."""
        found = self.modes.get(self.think if think is None else think)
        if found is None:
            raise Error(
                f"think: expected one of {', '.join(self.modes)} (template {self.name!r}), "
                f"found {think!r:.100}"
            )
        return found


def template_of(choice: ChatTemplate | Path | None, model: str) -> ChatTemplate:
    """Return the template that a caller chose, or that fits the model's name."""
    if choice is None:
        return ChatTemplate.for_model(model)
    if isinstance(choice, ChatTemplate):
        return choice
    path = os.fsdecode(path_bytes(choice, "template"))
    if choice in ChatTemplate.names():
        return ChatTemplate.named(path)
    if not path.endswith(".toml") and not pathlib.Path(path).is_file():
        names = ", ".join(ChatTemplate.names())
        raise Error(f"template: expected {names} or the path of a TOML file, found {path!r:.100}")
    return ChatTemplate.load(choice, model)


@functools.cache
def _built_in() -> tuple[ChatTemplate, ...]:
    return _read(DATA / "templates.toml")


def _fitting(templates: Sequence[ChatTemplate], model: str, source: str) -> ChatTemplate:
    for template in templates:
        if template.fits(model):
            return template
    names = ", ".join(template.name for template in templates)
    raise Error(f"{source}: expected a template that fits {model!r:.100}, found only {names}")


def _read(path: pathlib.Path) -> tuple[ChatTemplate, ...]:
    try:
        if not path.is_file():  # a pipe could keep its reader waiting
            raise Error(f"{path}: expected a TOML file, found none")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Error(f"{path}: expected a file that can be read, found: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise Error(f"{path}: expected at most {_MAX_BYTES} bytes, found more")
    try:
        tables = tomllib.loads(data.decode().replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise Error(f"{path}: expected TOML, found: {error!s:.200}") from None
    if not tables:
        raise Error(f"{path}: expected at least one template, found none")
    return tuple(_template(f"{path}: {name}", name, table) for name, table in tables.items())


def _template(at: str, name: str, value: object) -> ChatTemplate:
    required = ("separator", "think", "system", "user", "assistant", "modes", "sampling")
    table = _table(at, value, required, ("models", "stop", "stop_tokens", "tool"))
    roles: dict[str, Role] = {
        role: _role(f"{at}.{role}", table[role])
        for role in ("system", "user", "assistant", "tool")
        if role in table
    }
    presets = {
        key: _preset(f"{at}.sampling.{key}", preset)
        for key, preset in _table(f"{at}.sampling", table["sampling"]).items()
    }
    modes = {
        key: _mode(f"{at}.modes.{key}", mode, presets)
        for key, mode in _table(f"{at}.modes", table["modes"]).items()
    }
    think = _one_of(f"{at}.think", table["think"], modes)
    stop = _texts(f"{at}.stop", table.get("stop", []))
    stop_tokens = _texts(f"{at}.stop_tokens", table.get("stop_tokens", []))
    models = _texts(f"{at}.models", table.get("models", []))
    for pattern in models:
        ranges = re.findall(r"\[(.)-(.)\]", pattern)
        if not re.fullmatch(_PATTERN, pattern) or any(low > high for low, high in ranges):
            _refuse(f"{at}.models", "lower-case letters, digits, *, ? and ranges [a-z]", pattern)
    separator = _text(f"{at}.separator", table["separator"])
    return ChatTemplate(name, separator, think, roles, modes, stop, stop_tokens, models)


def _role(at: str, value: object) -> Role:
    table = _table(at, value, ("prefix", "suffix"))
    prefix = _text(f"{at}.prefix", table["prefix"], blank=False)
    return Role(prefix, _text(f"{at}.suffix", table["suffix"]))


def _mode(at: str, value: object, presets: Mapping[str, SamplingParams]) -> Mode:
    table = _table(at, value, ("opener", "sampling"), ("words",))
    preset = presets[_one_of(f"{at}.sampling", table["sampling"], presets)]
    opener = _text(f"{at}.opener", table["opener"])
    return Mode(opener, _text(f"{at}.words", table.get("words", "")), preset)


def _preset(at: str, value: object) -> SamplingParams:
    table = _table(at, value, (), _PRESET)
    try:
        return SamplingParams(**table)
    except (Error, TypeError) as error:  # which name the parameter
        raise Error(f"{at}.{error}") from None


def _table(
    at: str, value: object, required: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a table that has these keys and no others; any, but not none, if None are required."""
    if not isinstance(value, dict):
        _refuse(at, "a table", value)
    if required is None:
        return value if value else _refuse(at, "a table with entries", value)
    for key in value:
        if key not in required and key not in optional:
            expected = ", ".join([*required, *optional])
            raise Error(f"{at}.{key:.100}: expected one of the keys {expected}, found another")
    for key in required:
        if key not in value:
            raise Error(f"{at}.{key}: expected this key, found none")
    return value


def _text(at: str, value: object, blank: bool = True) -> str:
    if not isinstance(value, str):
        _refuse(at, "a string", value)
    if "\0" in value or "\r" in value:
        _refuse(at, "text without NUL and carriage return", value)
    if not blank and not value.strip():
        _refuse(at, "text", value)
    return value


def _texts(at: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse(at, "an array of strings", value)
    return tuple(_text(at, item, blank=False) for item in value)


def _one_of(at: str, value: object, names: Mapping[str, object]) -> str:
    text = _text(at, value)
    return text if text in names else _refuse(at, f"one of {', '.join(names)}", value)


def _refuse(at: str, expected: str, value: object) -> NoReturn:
    found = repr(value)[:100] if isinstance(value, str) else _TOML_TYPES.get(type(value), "a date")
    raise Error(f"{at}: expected {expected}, found {found}")
