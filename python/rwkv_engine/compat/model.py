"""The package's `RWKV` over an Engine."""

from __future__ import annotations

import operator
import os
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from .._arguments import DEMO, Path
from .._rwkv_list import Layout
from ..engine import Engine
from ..errors import Error, StateError
from ..state import State as EngineState
from .state import State, items_of
from .tensor import Tensor, as_tensor

_Given: TypeAlias = State | Sequence[Any] | None


class NoWeightsError(Error, AttributeError):
    """`RWKV.w` or `RWKV.z` was asked for; to ``hasattr`` the model has neither."""


class RWKV:
    """A model as the `rwkv` package has it: logits and a state from tokens and a state.

    One class serves RWKV-4 to 7; which it is says the file, and the variables of the environment
    that the package reads (RWKV_V7_ON, RWKV_JIT_ON, RWKV_CUDA_ON) change nothing. ``version`` is
    4, 5, 5.1, 5.2, 6 or 7; ``args`` has MODEL_NAME, strategy_string, n_layer, n_embd, n_att,
    n_ffn, n_head, head_size (both 0 for RWKV-4), vocab_size and time_state; ``engine`` is the
    Engine behind it.

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
        file = _file_of(model)
        self.engine = Engine(file, strategy, threads=threads)
        self._layout = Layout.of(self.engine)
        config = self.engine.config
        number = float("".join(c for c in config.version if c in "0123456789."))
        self.version = int(number) if number == int(number) else number
        # As in the package, whose RWKV-7 returns a new list and whose others fill the caller's.
        self._in_place = number < 7
        self.n_layer, self.n_embd = config.n_layer, config.n_embd
        self.n_head, self.head_size = config.n_head, config.head_size
        heads = config.n_head * config.head_size
        self.args = types.SimpleNamespace(
            MODEL_NAME=file if self._in_place else os.fsdecode(model),
            strategy_string=strategy,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_att=heads or self._layout.shapes[1][0],
            n_ffn=config.n_ffn,
            n_head=config.n_head,
            head_size=config.head_size,
            vocab_size=config.n_vocab,
            time_state=False,
        )

    def generate_zero_state(self) -> State:
        """Return the state before any token; with the package RWKV-7 alone has this method."""
        return State(self.engine, self._layout, self.engine.new_state())

    def forward(
        self, tokens: Any, state: _Given = None, full_output: bool = False
    ) -> tuple[Tensor, Any]:
        """Return logits and the state after the tokens.

        With RWKV-7 that is a new state, and the one passed stays as it was. With RWKV-4, 5 and 6
        it is the one passed, a State or a list, whose elements are replaced: ``copy.deepcopy`` it
        before to come back to it. A call that raises changes neither.

        Parameters
        ----------
        tokens : int, sequence of int, or None
            At least one token. None gives the logits of the state as it is, which must be a State
            that a forward returned, or a copy of one.
        state : State or list of arrays, optional
            None begins anew.
        full_output : bool, default False
            Logits after every token: (T, V) for T > 1 tokens, (V,) for one.

        Returns
        -------
        (Tensor, State)
            Logits in float32, whatever the strategy. The caller's list if it is one that is filled.
        """
        handle = self._handle(state)
        if tokens is None:
            logits = handle.last_logits
            if logits is None:
                raise StateError(
                    "forward(None, state): expected a state that a forward returned, found one "
                    "without logits; step it by a token first"
                )
            return logits.view(Tensor), self._result(state, handle)
        ids = _ids(tokens)
        every = full_output and len(ids) > 1
        rows = self.engine.forward(ids, handle, "all" if every else "last")
        return rows.view(Tensor), self._result(state, handle)

    __call__ = forward

    def _handle(self, state: _Given) -> EngineState:
        if state is None:
            return self.engine.new_state()
        if isinstance(state, State):
            return state.handle(self.engine)
        if isinstance(state, (list, tuple)):
            items = [as_tensor(item) for item in state]
            return self.engine.state_from_numpy(self._layout.parts_of(items))
        raise TypeError(f"state: expected a State, a list of arrays or None, found {type(state)}")

    def _result(self, given: _Given, handle: EngineState) -> Any:
        if self._in_place and isinstance(given, State):
            given.become(self.engine, self._layout, handle)
            return given
        if self._in_place and isinstance(given, list):
            given[:] = items_of(self._layout, handle.to_numpy())
            return given
        return State(self.engine, self._layout, handle)

    @property
    def w(self) -> NoReturn:
        """The package's dictionary of weights, which there is none of."""
        self._refuse_weights("w")

    @property
    def z(self) -> NoReturn:
        """The package's dictionary of weights, which there is none of."""
        self._refuse_weights("z")

    def _refuse_weights(self, name: str) -> NoReturn:
        raise NoWeightsError(
            f"RWKV.{name}: expected a script that needs no dictionary of weights, found one that "
            "does: the engine keeps them packed; read single tensors from the checkpoint"
        )

    def __repr__(self) -> str:
        return f"<RWKV on {self.engine!r}>"


def _file_of(model: Path) -> str:
    if model == DEMO:
        return DEMO
    try:
        name = os.fsdecode(model)
    except TypeError:
        raise TypeError(f"model: expected a path, found {type(model).__name__}") from None
    if not pathlib.Path(name).is_file() and pathlib.Path(name.strip() + ".pth").exists():
        return name.strip() + ".pth"
    return name


def _ids(tokens: Any) -> Any:
    """Return tokens as the engine takes them; one int stands for a list of it."""
    if isinstance(tokens, np.ndarray):
        return tokens.reshape(1) if tokens.ndim == 0 else tokens
    if isinstance(tokens, Sequence) or not hasattr(tokens, "__index__"):
        return tokens
    return tokens.tolist() if getattr(tokens, "ndim", 0) else [operator.index(tokens)]
