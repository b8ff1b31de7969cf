"""The package's World tokenizer over the engine's."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .._arguments import Path
from ..text import Tokenizer


class TRIE_TOKENIZER:  # noqa: N801 (the package's name)
    """A vocabulary in the World format; what `PIPELINE.tokenizer` is with it.

    Unlike the package's, `decode` keeps the whole characters of broken text, each broken one being
    U+FFFD, and ids without a token, such as 0, are no text. Nothing in a file is evaluated.

    Parameters
    ----------
    file_name : path
        The vocabulary.

    Examples
    --------
    >>> from rwkv_engine.compat import PIPELINE, RWKV
    >>> tokenizer = PIPELINE(RWKV("demo", "cpu fp32"), "rwkv_vocab_v20230424").tokenizer
    >>> tokenizer.encode("Hello"), tokenizer.decodeBytes([33155])
    ([33155], b'Hello')
    """

    def __init__(self, file_name: Path) -> None:
        self._engine_tokenizer = Tokenizer(file_name)

    @classmethod
    def _of(cls, tokenizer: Tokenizer) -> TRIE_TOKENIZER:
        self = cls.__new__(cls)
        self._engine_tokenizer = tokenizer
        return self

    def encode(self, src: str) -> list[int]:
        """Return the ids of a text."""
        return self._engine_tokenizer.encode(src)

    def encodeBytes(self, src: bytes) -> list[int]:
        """Return the ids of bytes, which need not be UTF-8."""
        return self._engine_tokenizer.encode(src)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._engine_tokenizer.decode(tokens)

    def decodeBytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        return self._engine_tokenizer.decode_bytes(tokens)

    @functools.cached_property
    def idx2token(self) -> dict[int, bytes]:
        """The bytes of every token by its id."""
        words = ((i, self.decodeBytes([i])) for i in range(self._engine_tokenizer.vocab_size))
        return {i: word for i, word in words if word}

    @functools.cached_property
    def token2idx(self) -> dict[bytes, int]:
        """The id of every token by its bytes."""
        return {word: i for i, word in self.idx2token.items()}

    def printTokens(self, tokens: Sequence[int]) -> None:
        """Print each token with its id in one line."""
        for i in tokens:
            word = self.decodeBytes([i])
            try:
                shown = repr(word.decode())
            except UnicodeDecodeError:
                shown = repr(word)
            print(f"{shown}{i}", end=" ")
        print()
