"""The package's `RWKV` over an Engine."""

from __future__ import annotations

import operator
import os
import pathlib
import types
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .._arguments import DEMO, Path
from ..engine import Engine
from ..errors import Error, StateError
from .state import State, Tensor, handle_of

_Given: TypeAlias = State | Sequence[Any] | None


class RWKV:
    """A model as the `rwkv` package has it: logits and a state from tokens and a state.

    ``args`` has MODEL_NAME, strategy_string, n_layer, n_embd, n_att, n_ffn, n_head, head_size and
    vocab_size; ``engine`` is the Engine behind it.

    Parameters
    ----------
    model : path or "demo"
        A checkpoint, with its suffix or, as the package wants it, without ".pth".
    strategy : str
        The package's language; a word that this build cannot serve raises StrategyError or
        DeviceError and is never replaced by another.
    verbose : bool, default True
        As in the package; nothing is printed either way.
    threads : int, optional
        As for Engine; the package has no such parameter.

    Examples
    --------
    >>> from rwkv_engine.compat import RWKV
    >>> model = RWKV("demo", "cpu fp32")
    >>> out, state = model.forward([187, 510], None)
    >>> out, state = model.forward([64], state)
    >>> model.forward([1, 2, 3], state, full_output=True)[0].shape
    (3, 1024)
    """

    def __init__(
        self,
        model: Path,
        strategy: str,
        verbose: bool = True,
        convert_and_save_and_exit: Path | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        if convert_and_save_and_exit is not None:
            raise Error(
                "convert_and_save_and_exit: expected None, found "
                f"{convert_and_save_and_exit!r}: every strategy opens the checkpoint itself"
            )
        self.engine = Engine(_file_of(model), strategy, threads=threads)
        config = self.engine.config
        self.n_layer, self.n_embd = config.n_layer, config.n_embd
        self.n_head, self.head_size = config.n_head, config.head_size
        self.args = types.SimpleNamespace(
            MODEL_NAME=os.fsdecode(model),
            strategy_string=strategy,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_att=config.n_head * config.head_size,
            n_ffn=config.n_ffn,
            n_head=config.n_head,
            head_size=config.head_size,
            vocab_size=config.n_vocab,
        )

    def generate_zero_state(self) -> State:
        """Return the state before any token."""
        return State(self.engine, self.engine.new_state())

    def forward(
        self, tokens: Any, state: _Given = None, full_output: bool = False
    ) -> tuple[Tensor, State]:
        """Return the logits after the tokens and a new state; the one passed stays as it was.

        Parameters
        ----------
        tokens : int, sequence of int, or None
            None gives the logits of the state as it is.
        state : State or list of arrays, optional
            None begins anew.
        full_output : bool, default False
            Logits after every token: (T, V) for T > 1 tokens, (V,) for one.
        """
        handle = self._handle(state)
        if tokens is None:
            logits = handle.last_logits
            if logits is None:
                raise StateError(
                    "forward(None, state): expected a state that a forward returned, found one "
                    "without logits; step it by a token first"
                )
            return logits.view(Tensor), State(self.engine, handle)
        ids = _ids(tokens)
        every = full_output and len(ids) > 1
        rows = self.engine.forward(ids, handle, "all" if every else "last")
        return rows.view(Tensor), State(self.engine, handle)

    __call__ = forward

    def _handle(self, state: _Given) -> Any:
        if state is None:
            return self.engine.new_state()
        if isinstance(state, State):
            return state.handle(self.engine)
        if isinstance(state, (list, tuple)):
            return handle_of(state, self.engine)
        raise TypeError(f"state: expected a State, a list of arrays or None, found {type(state)}")

    def __repr__(self) -> str:
        return f"<RWKV on {self.engine!r}>"


def _file_of(model: Path) -> Path:
    if model == DEMO:
        return model
    try:
        name = os.fsdecode(model)
    except TypeError:
        raise TypeError(f"model: expected a path, found {type(model).__name__}") from None
    if not pathlib.Path(name).exists() and pathlib.Path(name + ".pth").exists():
        return name + ".pth"
    return model


def _ids(tokens: Any) -> Any:
    """Return tokens as the engine takes them; one int stands for a list of it."""
    if isinstance(tokens, np.ndarray):
        return tokens.reshape(1) if tokens.ndim == 0 else tokens
    if isinstance(tokens, Sequence) or not hasattr(tokens, "__index__"):
        return tokens
    return tokens.tolist() if getattr(tokens, "ndim", 0) else [operator.index(tokens)]
