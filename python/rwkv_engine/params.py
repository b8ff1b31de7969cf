"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ._arguments import integer, real

_MAX_FLOAT32 = 3.4028234e38


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when generation ends.

    Parameters
    ----------
    temperature : float, default 1.0
        Divides the logits. 0 always takes the most likely token (the lowest id of equals), and then
        neither `top_p` nor `seed` has an effect.
    top_p : float, default 0.85
        Only the most likely tokens whose probabilities add up to this share are candidates, 0 to 1.
    seed : int, optional
        0 to 2**64 - 1. The same seed, prompt and state give the same text. A token's randomness
        depends on the seed and its position alone: a text that goes on from a saved state with the
        same seed is the text that one call would have written. None takes a new seed in every call.
    stop_tokens : iterable of int, default ()
        Token ids that end the text, beside token 0, the end of a document. The token that ends it
        is not part of the text and not fed to the state.
    ignore_eos : bool, default False
        Let token 0 be a token like any other.
    max_tokens : int, default 256
        The text ends after this many tokens.

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
    seed: int | None = None
    stop_tokens: Iterable[int] = ()
    ignore_eos: bool = False
    max_tokens: int = 256

    def __post_init__(self) -> None:
        real(self.temperature, "temperature", _MAX_FLOAT32)
        real(self.top_p, "top_p", 1)
        if self.seed is not None:
            integer(self.seed, "seed", 0, 2**64 - 1)
        integer(self.max_tokens, "max_tokens", 0, 2**63 - 1)
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos: expected a bool, found {type(self.ignore_eos).__name__}")
        if isinstance(self.stop_tokens, (str, bytes)) or not isinstance(self.stop_tokens, Iterable):
            raise TypeError(
                f"stop_tokens: expected integers, found {type(self.stop_tokens).__name__}"
            )
        stop = tuple(integer(token, "stop_tokens", 0, 2**31 - 1) for token in self.stop_tokens)
        object.__setattr__(self, "stop_tokens", stop)
