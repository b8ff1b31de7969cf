"""A conversation in tokens: from what people say to a prompt, from what a model writes to a reply.

What people say never takes on the template's voice. The template's own texts and theirs are encoded
apart, so that no token spans both, and theirs is kept from reading like the template's: a stop
token is spelled in tokens of single bytes, any longer mark gets a space after its first character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from .errors import Error
from .templates import ChatTemplate, Mode
from .text import Tokenizer

Kind: TypeAlias = Literal["reasoning", "answer"]

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_TAGS = ("<think>", "</think>")


class Script:
    """Writes a template's own texts, and what people say, as tokens of one vocabulary."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        tokens = {text: tokenizer.encode(text) for text in template.stop_tokens}
        single = [text for text, ids in tokens.items() if len(ids) == 1]
        several = [text for text in tokens if text not in single]
        self.stop_tokens = tuple(tokens[text][0] for text in single)
        self.stop = (*template.stop, *several)
        self._single = single
        # Stop tokens that texts may hold, since they can be spelled.
        self._spelled = [text for text in single if self._bytes(text.encode()) is not None]
        marks = [text for text in tokens if text not in self._spelled]
        begins = [
            template.separator + line
            for role in template.roles.values()
            for line in re.findall(r"\A\n*[^\n]+", role.prefix)
        ]
        self._marks = {
            name: self._possible(marks + [m for m in (*begins, role.suffix) if m.strip()])
            for name, role in template.roles.items()
        }

    def wording(self, role: str, text: str) -> str:
        """Return a text as the model is to read it: clean, and without the template's marks."""
        roles = self._template.roles
        if not isinstance(text, str):
            raise TypeError(f"{role}: expected str, found {type(text).__name__}")
        text = re.sub(r"[\r\n]+", "\n", text).strip().replace("\0", _UNKNOWN)
        for mark in self._marks[role]:
            if len(mark) == 1:
                text = text.replace(mark, " " if mark.isspace() else _UNKNOWN)
        inside = "|".join(
            f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})"
            for mark in self._marks[role]
            if len(mark) > 1
        )
        # The beginning of the text begins a line where the prefix ends with one.
        before = "\n" if roles[role].prefix.endswith("\n") else ""
        text = before + text
        while inside and re.search(inside, text):  # a space may in turn complete another mark
            text = re.sub(inside, " ", text)
        return text[len(before) :]

    def prompt(
        self, messages: Sequence[tuple[str, str]], mode: Mode, written: bytes | None
    ) -> list[int]:
        """Return the tokens from the end of the last reply to the beginning of the next.

        `written` is the end of the last reply, None before the first: what it already has of the
        template's text after it is left out.
        """
        roles, separator = self._template.roles, self._template.separator
        ids = [0] if written is None else []
        own = "" if written is None else roles["assistant"].suffix + separator
        for role, text in messages:
            own += roles[role].prefix
            # Vocabularies have words with the space before them, not after.
            trimmed = own.rstrip(" ")
            ids += self._tokenizer.encode(trimmed.encode()[self._already(trimmed, written) :])
            ids += self._said(own[len(trimmed) :] + text)
            own = roles[role].suffix + separator
            written = None
        words = mode.words if messages[-1][0] == "user" else ""
        return ids + self._tokenizer.encode(words + own + roles["assistant"].prefix + mode.opener)

    def _possible(self, marks: Sequence[str]) -> list[str]:
        """Return the marks that a text could hold although its stop tokens are spelled."""
        found = dict.fromkeys(mark.strip(" ") for mark in marks)
        return [m for m in found if m and not any(token in m for token in self._spelled)]

    def _said(self, text: str) -> list[int]:
        """Encode what somebody says; no token in it holds the text of a stop token."""
        ids = self._tokenizer.encode(text)
        stops = [stop.encode() for stop in self._spelled if stop in text]
        if not stops:
            return ids
        spelled: list[int] = []
        for id in ids:
            data = self._tokenizer.decode_bytes([id])
            if any(stop in data for stop in stops):
                spelled += self._bytes(data) or self._tokenizer.encode(_UNKNOWN)
            else:
                spelled.append(id)
        return spelled

    def _bytes(self, data: bytes) -> list[int] | None:
        """Return a token for each of several bytes, or None if the vocabulary lacks one."""
        try:
            tokens = [self._tokenizer.encode(bytes([byte])) for byte in data]
        except Error:
            return None
        ids = [ids[0] for ids in tokens if len(ids) == 1]
        return ids if len(data) > 1 and self._tokenizer.decode_bytes(ids) == data else None

    def _already(self, own: str, written: bytes | None) -> int:
        """Return how many bytes of a text of the template's own the last reply ended with."""
        if written is None:
            return 0
        # Of a stop token it has nothing: bytes that spell one are not one.
        before = min((own.index(token) for token in self._single if token in own), default=len(own))
        data = own[:before].encode()
        return next(n for n in range(len(data), -1, -1) if written.endswith(data[:n]))


class Splitter:
    """Parts what a model writes into reasoning and answer, whatever the pieces it comes in.

    Tags count where a part begins, and the first that ends the reasoning; blank lines around them
    belong to them. Anywhere else a tag is quoted, and is text like any other.
    """

    def __init__(self, opener: str) -> None:
        self.parts: dict[Kind, str] = {"reasoning": "", "answer": ""}
        opened = opener.rfind("<think") > opener.rfind("</think")
        self._kind: Kind = "reasoning" if opened else "answer"
        # Of a tag that the opener leaves open the model writes the rest.
        ends = [tag[n:] for tag in _TAGS for n in range(1, len(tag)) if opener.endswith(tag[:n])]
        self._rest = ends[0] if ends else ""
        self._begins = True  # nothing of this part has come yet
        self._held = ""

    def put(self, text: str) -> list[tuple[Kind, str]]:
        """Return what has become certain with this text."""
        self._held += text
        if self._rest.startswith(self._held):
            return []
        self._held = self._held.removeprefix(self._rest)
        self._rest = ""
        return list(self._certain())

    def finish(self) -> list[tuple[Kind, str]]:
        """Return what still waits; of the reasoning, not the beginning of a tag."""
        text = "" if self._rest else self._held
        if self._begins:
            text = self._after_break(text)
        if self._kind == "reasoning":
            text = text[: len(text) - _open_tag(text)]
        self._held = ""
        return list(self._part(text.rstrip()))

    def _certain(self) -> Iterator[tuple[Kind, str]]:
        while True:
            if self._begins:
                body = self._held.lstrip()
                tag = next((tag for tag in _TAGS if body.startswith(tag)), None)
                if tag is not None:
                    self._kind = "reasoning" if tag == _TAGS[0] else "answer"
                    self._held = body[len(tag) :]
                    continue
                if _open_tag(body) == len(body):
                    return
                self._held = self._after_break(self._held)
                self._begins = False
            found = re.search("</?think>", self._held)
            if found is None:
                text = self._held[: len(self._held) - _open_tag(self._held)].rstrip()
                self._held = self._held[len(text) :]
                yield from self._part(text)
                return
            before, self._held = self._held[: found.start()], self._held[found.end() :]
            if self._kind == "reasoning" and found[0] == _TAGS[1]:
                yield from self._part(before.rstrip())
                self._kind = "answer"
                self._begins = True
            else:
                yield from self._part(before + found[0])

    def _after_break(self, text: str) -> str:
        """Return a part without the blank lines, or the one space, that it begins with."""
        text = re.sub(r"\A(?:\s*\n| )", "", text)
        return f"\n{text}" if self.parts[self._kind] else text  # more reasoning, on its own lines

    def _part(self, text: str) -> Iterator[tuple[Kind, str]]:
        if text:
            self.parts[self._kind] += text
            yield self._kind, text


def _open_tag(text: str) -> int:
    """Return how many characters at the end may be the beginning of a tag."""
    lengths = (
        n for n in range(7, 0, -1) for tag in _TAGS if n < len(tag) and text.endswith(tag[:n])
    )
    return next(lengths, 0)
