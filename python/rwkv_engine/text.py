"""Text to token ids and back."""

from __future__ import annotations

import functools
from collections.abc import Callable

from . import _core
from ._arguments import DATA, DEMO, Path, Tokens, path_bytes
from .errors import Error

WORLD_SIZE = 65536


class Tokenizer:
    """A vocabulary in the World file format, and greedy longest-match encoding over it.

    Parameters
    ----------
    path : path
        One line per token: its id, a Python string or bytes literal, its length in bytes.

    Raises
    ------
    ModelFormatError
        For a file that is no such vocabulary, naming the line.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> tokenizer = rwkv.Tokenizer.world()
    >>> tokenizer.encode("Hello world")
    [33155, 40213]
    >>> tokenizer.decode([33155, 40213])
    'Hello world'
    """

    __slots__ = ("_core",)

    def __init__(self, path: Path) -> None:
        self._core = _core.Tokenizer.open(path_bytes(path, "tokenizer"))

    @classmethod
    def world(cls) -> Tokenizer:
        """Return the vocabulary of the World models, which comes with the package."""
        return cls(DATA / "rwkv_vocab_v20230424.txt")

    @classmethod
    def _in_model(cls, model: Path) -> Tokenizer | None:
        """Return the vocabulary that a model file carries itself, if it does."""
        core = _core.Tokenizer.in_model(path_bytes(model, "model"))
        if core is None:
            return None
        tokenizer = cls.__new__(cls)
        tokenizer._core = core
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._core.size

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of a text; bytes need not be UTF-8.

        Raises Error at a byte that no token of the vocabulary begins with.
        """
        if isinstance(text, str):
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                raise Error(
                    f"text, character {error.start}: expected one that UTF-8 can hold, "
                    f"found the surrogate U+{ord(text[error.start]):04X}"
                ) from None
        elif isinstance(text, (bytes, bytearray, memoryview)):
            data = bytes(text)
        else:
            raise TypeError(f"text: expected str or bytes, found {type(text).__name__}")
        return self._core.encode(data)

    def decode(self, ids: Tokens) -> str:
        """Return the text of the ids; what is not UTF-8 becomes U+FFFD.

        Ids without a token, and 0 (the end of a document), stand for no text.
        """
        return self._core.decode(ids)

    def decode_bytes(self, ids: Tokens) -> bytes:
        """Return the bytes of the ids as they are."""
        return self._core.decode_bytes(ids)

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes ids one at a time and never splits a character.

    Bytes wait until they are a whole character, or until it is certain that they never will be.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> tokenizer = rwkv.Tokenizer.world()
    >>> decoder = tokenizer.stream()
    >>> euro = [id for byte in "€".encode() for id in tokenizer.encode(bytes([byte]))]
    >>> [decoder.put(id) for id in euro]
    ['', '', '€']
    """

    __slots__ = ("_core",)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._core = _core.StreamDecoder(tokenizer._core)

    def put(self, id: int) -> str:
        """Return the text that has become certain with this id; may be empty."""
        return self._core.put(id)

    def finish(self) -> str:
        """Return what still waits; broken characters become U+FFFD."""
        return self._core.finish()


def tokenizer_for(
    model: Path, given: Path | Tokenizer | None, n_vocab: int
) -> Callable[[], Tokenizer]:
    """Return how to get a model's vocabulary; one that was not asked for is opened on first use."""
    if given is None:
        given = DATA / "demo-vocab.txt" if model == DEMO else Tokenizer._in_model(model)
    if given is not None:
        tokenizer = given if isinstance(given, Tokenizer) else Tokenizer(given)
        if tokenizer.vocab_size > n_vocab:
            raise Error(
                f"tokenizer: expected ids below the model's {n_vocab}, "
                f"found ids up to {tokenizer.vocab_size - 1}"
            )
        return lambda: tokenizer
    if n_vocab == WORLD_SIZE:
        return functools.cache(Tokenizer.world)

    def unknown() -> Tokenizer:
        raise Error(
            f"tokenizer: expected a model with the World vocabulary ({WORLD_SIZE} ids), found one "
            f"with {n_vocab}; pass Engine(..., tokenizer=path)"
        )

    return unknown
