"""A text of any length as windows of tokens: one that is there, or a file read on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ._arguments import Progress, integer, token_ids
from .errors import Error
from .generation import Prompt, prompt_ids

if TYPE_CHECKING:
    from .engine import Engine

Text: TypeAlias = Prompt | BinaryIO
Ids: TypeAlias = NDArray[np.int32]

_PART = 1 << 16  # bytes of a file that are read at a time


class Windows:
    """Tokens of a text, `size` at a time and the one after them, with which the next ones begin.

    Progress counts tokens, or the bytes of a file.
    """

    def __init__(
        self, engine: Engine, text: Text, size: int, most: int | None, progress: Progress | None
    ) -> None:
        self._size, self._progress = size, progress
        self._most = None if most is None else integer(most, "tokens", 2, 1 << 62)
        self._done = self._share = 0
        self._tokenizer = engine.tokenizer if hasattr(text, "read") else None
        if self._tokenizer is None:
            if isinstance(text, (bytes, bytearray)) or not hasattr(text, "__iter__"):
                raise TypeError(
                    f"text: expected a str, token ids or a file open in binary mode, found "
                    f"{type(text).__name__}"
                )
            prompt = prompt_ids(engine, cast(Prompt, text))
            ids = token_ids(prompt, "text", engine.config.n_vocab)
            self._total = len(ids[:most]) - 1
            self._parts = iter([ids])
        else:
            file = cast(BinaryIO, text)
            self._total = 0 if progress is None else _length(file)
            encoded = self._tokenizer.encode_parts(_parts(file))
            self._parts = (np.asarray(ids, np.int32) for ids in encoded)

    def __iter__(self) -> Iterator[Ids]:
        held, several = np.empty(0, np.int32), False
        for ids in self._limited():
            held = np.concatenate([held, ids]) if len(held) else ids
            while len(held) > self._size:
                yield self._begun(held[: self._size + 1])
                held, several = held[self._size :], True
        if len(held) > 1:
            yield self._begun(held)
        elif not several:
            raise Error(f"text: expected at least 2 tokens, found {len(held)}")

    def report(self, read: int, count: int) -> None:
        """Tell how much of the present window has been read."""
        if self._progress is not None:
            self._progress(self._done + self._share * read // count, self._total)

    def _limited(self) -> Iterator[Ids]:
        left = self._most
        for ids in self._parts:
            yield ids[:left]
            if left is not None:
                left = max(0, left - len(ids))
                if left == 0:
                    return

    def _begun(self, window: Ids) -> Ids:
        self._done += self._share
        new = window[1:]  # than which the first window has one more, which is not predicted
        self._share = (
            len(new) if self._tokenizer is None else len(self._tokenizer.decode_bytes(new))
        )
        return window


def _parts(file: BinaryIO) -> Iterator[bytes]:
    while True:
        part = file.read(_PART)
        if not isinstance(part, bytes):
            raise TypeError(
                f"text: expected a file that is open in binary mode, found one that reads "
                f"{type(part).__name__}"
            )
        if not part:
            return
        yield part


def _length(file: BinaryIO) -> int:
    """Return how many bytes are left to read, or 0 if nobody knows."""
    if not getattr(file, "seekable", bool)():
        return 0
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return max(0, end - here)
