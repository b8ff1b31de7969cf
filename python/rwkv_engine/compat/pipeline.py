"""The package's `PIPELINE`: text in, text out, with its penalties and its sampling rule."""

from __future__ import annotations

import codecs
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers

from .._arguments import Path
from ..errors import Error, NonFiniteError
from ..text import Tokenizer
from .tensor import as_tensor
from .vocabulary import TRIE_TOKENIZER

_WORLD = "rwkv_vocab_v20230424"
_BLANKS = " \t0123456789"  # a written text that is a part of this adds nothing to its penalty
_BROKEN = "\ufffd"


class PIPELINE_ARGS:  # noqa: N801 (the package's name)
    """How `PIPELINE.generate` chooses tokens and when it ends.

    Parameters
    ----------
    temperature, top_p, top_k : float, float, int
        See `PIPELINE.sample_logits`.
    alpha_frequency, alpha_presence, alpha_decay : float
        A token written before loses ``presence + w * frequency``. Its weight w decays by the factor
        `alpha_decay` a step and grows by 1 when it is written, but not for blanks and digits.
    token_ban, token_stop : sequence of int
        Tokens that are never chosen; tokens that end the text and are not part of it.
    chunk_len : int, default 256
        How many tokens of the prompt are read at once.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
        alpha_frequency: float = 0.2,
        alpha_presence: float = 0.2,
        alpha_decay: float = 0.996,
        token_ban: Sequence[int] = (),
        token_stop: Sequence[int] = (),
        chunk_len: int = 256,
    ) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.alpha_frequency = alpha_frequency
        self.alpha_presence = alpha_presence
        self.alpha_decay = alpha_decay
        self.token_ban = list(token_ban)
        self.token_stop = list(token_stop)
        self.chunk_len = chunk_len


class PIPELINE:
    """A model with its vocabulary.

    As in the package, `generate` returns the text alone. What it read and wrote is in the state
    that was passed if `RWKV.forward` fills that (RWKV-4, 5 and 6), and is lost otherwise.

    Four defects of the package are mended. Bytes at the end of a text that are no whole character
    are handed over as U+FFFD, where it drops them. A token without text (0, the end of a document)
    or a broken character does not silence the rest of the text. A top_p that rounding keeps the
    sum of all probabilities from reaching keeps all tokens, where it becomes greedy. A low
    temperature does not underflow.

    Parameters
    ----------
    model : RWKV
        The model.
    WORD_NAME : "rwkv_vocab_v20230424" or path
        The World vocabulary, a file in its format, or a file of the `tokenizers` library such as
        20B_tokenizer.json.

    Examples
    --------
    >>> from rwkv_engine import Engine
    >>> from rwkv_engine.compat import PIPELINE, PIPELINE_ARGS, RWKV
    >>> pipeline = PIPELINE(RWKV("demo", "cpu fp32"), "rwkv_vocab_v20230424")
    >>> pipeline.decode(pipeline.encode("Hello"))
    'Hello'
    """

    def __init__(self, model: Any, WORD_NAME: Path) -> None:
        self.model = model
        self.tokenizer: Any = _open(WORD_NAME)

    def refine_context(self, context: str) -> str:
        """Return the lines without blanks around them and without empty ones, after a newline."""
        lines = [line.strip().strip("\u3000").strip("\r") for line in context.strip().split("\n")]
        return "\n" + "\n".join(line for line in lines if line).strip()

    def encode(self, x: str) -> list[int]:
        """Return the ids of a text."""
        found = self.tokenizer.encode(x)
        return list(getattr(found, "ids", found))

    def decode(self, x: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self.tokenizer.decode(x))

    def sample_logits(
        self, logits: Any, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0
    ) -> int:
        """Choose a token by the package's rule, with NumPy's global generator.

        Of the softmax stay the most likely tokens that together reach `top_p`, with all that are as
        likely as the last of them, then the `top_k` most likely (0: all); each is drawn with its
        probability to the power of 1 / `temperature`. Temperature 0 draws among the tokens that
        are as likely as the most likely. ``numpy.random.seed`` makes it repeatable, and with the
        same seed the package on a CPU draws the same, up to rounding.
        """
        values = np.array(as_tensor(logits))  # a copy
        if values.ndim != 1 or not values.size:
            raise Error(f"logits: expected shape (V,), found {values.shape}")
        if not (temperature >= 0 and top_p == top_p):
            raise Error(
                f"sample_logits: expected a temperature of 0 or more and a top_p that is a number, "
                f"found {temperature} and {top_p}"
            )
        if temperature == 0:
            temperature, top_p = 1.0, 0.0
        top = values.max()
        if not np.isfinite(top):
            raise NonFiniteError(f"logits: expected a finite maximum, found {top}")
        probs = np.exp(values - top)
        probs /= probs.sum()
        ordered = np.sort(probs)[::-1]
        reached = np.cumsum(ordered) >= top_p
        order = np.argsort(probs) if 0 < int(top_k) < len(probs) else None
        if reached[-1]:
            probs[probs < ordered[np.argmax(reached)]] = 0
        if order is not None:
            probs[order[: -int(top_k)]] = 0
        if temperature != 1.0:
            with np.errstate(divide="ignore", over="ignore"):  # 1 / temperature may be infinite
                probs = (probs / ordered[0]) ** (1.0 / temperature)
        return int(np.random.choice(len(probs), p=probs / probs.sum()))

    def generate(
        self,
        ctx: str,
        token_count: int = 100,
        args: PIPELINE_ARGS | None = None,
        callback: Callable[[str], object] | None = None,
        state: Any = None,
    ) -> str:
        """Return up to `token_count` tokens of text that follow `ctx`.

        ``callback(text)`` is called for each piece that is whole characters. An empty `ctx` goes
        on with the logits of `state`, where the package fails.
        """
        args = PIPELINE_ARGS() if args is None else args
        if args.chunk_len < 1:
            raise Error(f"chunk_len: expected at least 1, found {args.chunk_len}")
        pieces: list[str] = []
        weights: dict[int, float] = {}
        pending = _Characters(self.tokenizer)

        def emit(text: str | None) -> None:
            if text is not None:
                if callback:
                    callback(text)
                pieces.append(text)

        tokens = self.encode(ctx)
        for _ in range(token_count):
            out, state = self._read(tokens, state, args.chunk_len)
            for n in args.token_ban:
                out[n] = -float("inf")
            for n, weight in weights.items():
                out[n] -= args.alpha_presence + weight * args.alpha_frequency
            token = self.sample_logits(
                out, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k
            )
            if token in args.token_stop:
                break
            for n in weights:
                weights[n] *= args.alpha_decay
            weights[token] = weights.get(token, 0) + self._weight(token)
            emit(pending.put(token))
            tokens = [token]
        emit(pending.finish())
        return "".join(pieces)

    def _read(self, tokens: list[int], state: Any, chunk_len: int) -> Any:
        if not tokens:
            return self.model.forward(None, state)
        for at in range(0, len(tokens), chunk_len):
            out, state = self.model.forward(tokens[at : at + chunk_len], state)
        return out, state

    def _weight(self, token: int) -> int:
        text = self.decode([token])
        if not text and isinstance(self.tokenizer, TRIE_TOKENIZER):
            return 1  # an id without a token, which the package calls U+FFFD
        return 0 if text in _BLANKS else 1


class _Characters:
    """Text of tokens that arrive one at a time, handed over in whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # of a vocabulary that does not tell its bytes
        self._bytes = b""

    def put(self, token: int) -> str | None:
        """Return the text that waits if it is whole, or will never be; else None."""
        if not isinstance(self._tokenizer, TRIE_TOKENIZER):
            self._ids.append(token)
            text = str(self._tokenizer.decode(self._ids))
            if text.endswith(_BROKEN):
                return None
            self._ids = []
            return text
        self._bytes += self._tokenizer.decodeBytes([token])
        try:
            text, used = codecs.utf_8_decode(self._bytes, "strict", False)
            if used < len(self._bytes):
                return None
        except UnicodeDecodeError:  # broken for certain
            text, used = codecs.utf_8_decode(self._bytes, "replace", False)
        self._bytes = self._bytes[used:]
        return text or None

    def finish(self) -> str | None:
        """Return what still waits; broken characters become U+FFFD."""
        if self._ids:
            return str(self._tokenizer.decode(self._ids))
        return self._bytes.decode(errors="replace") or None


def _open(name: Path) -> Any:
    if name == _WORLD:
        return TRIE_TOKENIZER._of(Tokenizer.world())
    try:
        path = pathlib.Path(os.fsdecode(name))
    except TypeError:
        raise TypeError(f"WORD_NAME: expected a path, found {type(name).__name__}") from None
    try:
        with path.open("rb") as file:
            is_json = file.read(64).lstrip().startswith(b"{")
    except OSError as error:
        raise Error(
            f'WORD_NAME: expected "{_WORLD}" or a vocabulary file, found {str(path)!r}: '
            f"{error.strerror}"
        ) from None
    if not is_json:
        return TRIE_TOKENIZER(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise Error(f"{path}: expected a file of the tokenizers library: {error}") from None
