"""Byte-level BPE vocabularies in the JSON form of the `tokenizers` package."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from .errors import Error, ModelFormatError

_MAX_BYTES = 1 << 26


def _alphabet() -> dict[str, int]:
    """Return which byte each letter stands for, as in GPT-2: printable ones for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {
        **{chr(byte): byte for byte in plain},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


def is_bpe(path: bytes) -> bool:
    """Tell whether a file is such a vocabulary: JSON, where a World file begins with a number."""
    try:
        with pathlib.Path(os.fsdecode(path)).open("rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError:
        return False


class ByteLevelBpe:
    """Encoding by the `tokenizers` package, and the bytes of every id."""

    def __init__(self, path: bytes) -> None:
        import tokenizers

        name = os.fsdecode(path)
        size = pathlib.Path(name).stat().st_size
        if size > _MAX_BYTES:
            raise ModelFormatError(f"{name}: expected at most {_MAX_BYTES} bytes, found {size}")
        data = pathlib.Path(name).read_bytes()
        try:
            model: dict[str, Any] = json.loads(data)
            words = tokenizers.Tokenizer.from_buffer(data).get_vocab()
            # Marks such as <|endoftext|> are no words: nobody can write one into a prompt.
            marks = model.get("added_tokens") or []
            plain = [token for token in marks if not token.get("special")]
            self._tokenizer = tokenizers.Tokenizer.from_str(
                json.dumps(model | {"added_tokens": plain, "post_processor": None})
            )
        except Exception as error:  # `tokenizers` raises plain Exception
            raise ModelFormatError(
                f"{name}: expected a vocabulary of the tokenizers package: {error}"
            ) from None
        decoder = (model.get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise ModelFormatError(
                f"{name}: expected a byte-level vocabulary (decoder ByteLevel), found {decoder}"
            )
        added = {token["id"]: token for token in marks}
        letters = _alphabet()
        self.words: dict[int, bytes] = {}
        for word, token in words.items():
            if token in added:
                # A mark such as <|endoftext|> is no text; added runs of spaces are what they say.
                text = b"" if added[token].get("special") else word.encode()
            else:
                try:
                    text = bytes(letters[letter] for letter in word)
                except KeyError as error:
                    raise ModelFormatError(
                        f"{name}: token {token}: expected letters of the byte alphabet, found "
                        f"{error.args[0]!r} in {word!r}"
                    ) from None
            if text:
                self.words[token] = text

    def encode(self, text: bytes) -> list[int]:
        """Return the ids of a text, which must be UTF-8."""
        try:
            string = text.decode()
        except UnicodeDecodeError as error:
            raise Error(
                f"text, byte {error.start}: expected UTF-8, which this vocabulary encodes, found "
                f"byte {text[error.start]:#04x}"
            ) from None
        ids: list[int] = self._tokenizer.encode(string, add_special_tokens=False).ids
        return ids
