"""Text to token ids and back."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from . import _core
from ._arguments import DATA, DEMO, Path, Tokens, path_bytes
from ._bpe import ByteLevelBpe, is_bpe
from .errors import Error

WORLD_SIZE = 65536


class Tokenizer:
    """A vocabulary: the World format with greedy longest-match encoding, or byte-level BPE.

    Parameters
    ----------
    path : path
        In the World format one line per token: its id, a Python string or bytes literal, its length
        in bytes. Or a JSON file of the `tokenizers` package, such as the ``20B_tokenizer.json`` of
        the RWKV-4 models trained on the Pile; its marks, such as "<|endoftext|>", are no text.

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

    __slots__ = ("_bpe", "_core")

    _bpe: ByteLevelBpe | None

    def __init__(self, path: Path) -> None:
        name = path_bytes(path, "tokenizer")
        self._bpe = ByteLevelBpe(name) if is_bpe(name) else None
        if self._bpe is None:
            self._core = _core.Tokenizer.open(name)
        else:
            self._core = _core.Tokenizer.of_words([*self._bpe.words.items()], os.fsdecode(name))

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
        tokenizer._core, tokenizer._bpe = core, None
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._core.size

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of a text; for a World vocabulary bytes need not be UTF-8.

        Raises Error at a byte that no token of the vocabulary begins with.
        """
        data = _bytes_of(text)
        return self._core.encode(data) if self._bpe is None else self._bpe.encode(data)

    def encode_parts(self, parts: Iterable[str | bytes]) -> Iterator[list[int]]:
        """Yield the ids of a text that comes in parts: those of `encode`, wherever it is cut.

        Of a World vocabulary no more is held than a part and a token. Byte-level BPE looks at
        whole texts, so with that the parts are collected first.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> tokenizer = rwkv.Tokenizer.world()
        >>> [ids for ids in tokenizer.encode_parts(["Hel", "lo wor", "ld"]) if ids]
        [[33155], [40213]]
        """
        if self._bpe is not None:
            yield self._bpe.encode(b"".join(map(_bytes_of, parts)))
            return
        encoder = _core.StreamEncoder(self._core)
        for part in parts:
            yield encoder.put(_bytes_of(part))
        yield encoder.finish()

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


def _bytes_of(text: object) -> bytes:
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise Error(
                f"text, character {error.start}: expected one that UTF-8 can hold, "
                f"found the surrogate U+{ord(text[error.start]):04X}"
            ) from None
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"text: expected str or bytes, found {type(text).__name__}")


def _json_beside(model: Path) -> pathlib.Path | None:
    """Return the tokenizer.json in a model's folder, if it is one that can be used."""
    path = pathlib.Path(os.fsdecode(model)) / "tokenizer.json"
    return path if path.is_file() and is_bpe(os.fsencode(path)) else None


def tokenizer_for(
    model: Path, given: Path | Tokenizer | None, n_vocab: int
) -> Callable[[], Tokenizer]:
    """Return how to get a model's vocabulary; one that was not asked for is opened on first use."""
    if given is None:
        given = DATA / "demo-vocab.txt" if model == DEMO else Tokenizer._in_model(model)
    if given is None and n_vocab != WORLD_SIZE:
        given = _json_beside(model)
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
