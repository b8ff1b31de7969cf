"""How the next token is chosen, and when a text ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ._arguments import Array, boolean, integer, real
from .errors import Error

PenaltyStyle: TypeAlias = Literal["rwkv", "rapid", "openai"]
LogitsProcessor: TypeAlias = Callable[[list[int], Array], object]

_MAX_FLOAT32 = 3.4028234e38
_STYLES = ("rwkv", "rapid", "openai")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a text ends.

    A token is chosen in this order: `logits_processor`, penalties and `logit_bias` change the
    logits; of their softmax the tokens that `top_p`, `top_k` and `min_p` all keep are candidates;
    each is drawn with its probability to the power of 1 / `temperature`. Of equally likely tokens
    the lower id comes first.

    Parameters
    ----------
    temperature : float, default 1.0
        0 always takes the most likely token.
    top_p : float, default 0.85
        Keeps the most likely tokens that together have this share of the probability, 0 to 1.
    top_k : int, default 0
        Keeps this many of the most likely tokens; 0 keeps all.
    min_p : float, default 0.0
        Keeps tokens at least this share as likely as the most likely, 0 to 1.
    presence_penalty, frequency_penalty : float, default 0.0
        What tokens already written in this text lose; see `penalty_style`. The prompt's do not
        count.
    penalty_decay : float, default 0.996
        How much of a penalty is left after each further token, 0 to 1.
    penalty_style : "rwkv", "rapid" or "openai", default "rwkv"
        With w the weight of a token that was written, its logit loses ``presence + w * frequency``
        with "rwkv" (as the `rwkv` package: w decays and grows by 1, but not for blanks and digits)
        and with "openai" (w counts, and nothing decays). With "rapid" (as Albatross) it loses w,
        which decays and grows by `presence_penalty` the first time, then by `frequency_penalty`.
    seed : int, optional
        0 to 2**64 - 1. A token's randomness depends on the seed and its position alone: the same
        seed gives the same text alone, in a batch, as a stream, and after a state was restored.
        None takes a new seed for a new text, and the text's own for one that goes on.
    stop : str or iterable of str, default ()
        Strings that end the text, and are not part of it.
    stop_tokens : iterable of int, default ()
        Token ids that end the text, beside token 0, the end of a document, and are not part of it.
    logit_bias : mapping of int to float, optional
        Added to the logits of these tokens; ``-math.inf`` bans one.
    max_tokens : int, default 256
        The text ends after this many tokens.
    ignore_eos : bool, default False
        Let token 0 be a token like any other.
    top_logprobs : int, default 0
        How many of the most likely tokens to report for each token written.
    logits_processor : callable, optional
        Called before each token as ``logits_processor(tokens, logits)`` with the tokens written so
        far and a float32 array (V,), which it changes in place or replaces by what it returns.

    Raises
    ------
    Error
        For a number out of its range; TypeError for another type.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> rwkv.SamplingParams(temperature=0, max_tokens=10).top_p
    0.85
    >>> rwkv.SamplingParams(top_p=1.5)
    Traceback (most recent call last):
    rwkv_engine.errors.Error: top_p: expected a number from 0 to 1, found 1.5
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    penalty_style: PenaltyStyle = "rwkv"
    seed: int | None = None
    stop: str | Iterable[str] = ()
    stop_tokens: Iterable[int] = ()
    logit_bias: Mapping[int, float] | None = None
    max_tokens: int = 256
    ignore_eos: bool = False
    top_logprobs: int = 0
    logits_processor: LogitsProcessor | None = None

    def __post_init__(self) -> None:
        real(self.temperature, "temperature", 0, _MAX_FLOAT32)
        for name in ("top_p", "min_p", "penalty_decay"):
            real(getattr(self, name), name, 0, 1)
        for name in ("presence_penalty", "frequency_penalty"):
            real(getattr(self, name), name, -_MAX_FLOAT32, _MAX_FLOAT32)
        if self.penalty_style not in _STYLES:
            raise Error(
                f"penalty_style: expected one of {', '.join(_STYLES)}, found {self.penalty_style!r}"
            )
        if self.seed is not None:
            integer(self.seed, "seed", 0, 2**64 - 1)
        integer(self.top_k, "top_k", 0, 2**31 - 1)
        integer(self.max_tokens, "max_tokens", 0, 2**63 - 1)
        integer(self.top_logprobs, "top_logprobs", 0, 2**31 - 1)
        boolean(self.ignore_eos, "ignore_eos")
        if self.logits_processor is not None and not callable(self.logits_processor):
            found = type(self.logits_processor).__name__
            raise TypeError(f"logits_processor: expected a callable, found {found}")
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_tokens", _tokens(self.stop_tokens))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


def _strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if isinstance(strings, (bytes, bytearray)) or not isinstance(strings, Iterable):
        raise TypeError(f"stop: expected strings, found {type(stop).__name__}")
    found = tuple(strings)
    for string in found:
        if not isinstance(string, str):
            raise TypeError(f"stop: expected strings, found {type(string).__name__}")
        if not string:
            raise Error("stop: expected text, found an empty string")
        try:
            string.encode()
        except UnicodeEncodeError:
            raise Error(f"stop: expected text that UTF-8 can hold, found {string!r}") from None
    return found


def _tokens(stop_tokens: object) -> tuple[int, ...]:
    if isinstance(stop_tokens, (str, bytes)) or not isinstance(stop_tokens, Iterable):
        raise TypeError(f"stop_tokens: expected integers, found {type(stop_tokens).__name__}")
    return tuple(integer(token, "stop_tokens", 0, 2**31 - 1) for token in stop_tokens)


def _biases(logit_bias: object) -> dict[int, float] | None:
    if logit_bias is None:
        return None
    if not isinstance(logit_bias, Mapping):
        raise TypeError(f"logit_bias: expected a mapping, found {type(logit_bias).__name__}")
    biases = {}
    for key, value in logit_bias.items():
        token = integer(key, "logit_bias", 0, 2**31 - 1)
        name = f"logit_bias of token {token}"
        if value == -math.inf:  # bans it
            biases[token] = -math.inf
        else:
            biases[token] = real(value, name, -_MAX_FLOAT32, _MAX_FLOAT32)
    return dict(sorted(biases.items()))
