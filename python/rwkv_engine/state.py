"""The whole context of one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias, overload

import numpy as np

from . import _core
from ._arguments import Array, Path, integer, path_bytes, word
from ._rwkv_list import Layout, write_list
from .adapters import LoadedAdapter
from .device import DeviceArray
from .errors import ConcurrentUseError, StateError

Parts: TypeAlias = Mapping[str, Array]


class State:
    """The whole context of one sequence: an opaque handle, made by `Engine.new_state`.

    A call that steps a state either succeeds and moves it on, or leaves it as it was. One handle
    serves one call at a time: a second raises ConcurrentUseError. A state keeps its engine alive.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> engine = rwkv.Engine("demo")
    >>> state = engine.new_state()
    >>> logits = engine.forward([1, 2, 3], state)
    >>> branch = state.fork()
    >>> logits = engine.forward([4], branch)
    >>> state.tokens_seen, branch.tokens_seen
    (3, 4)
    """

    __slots__ = ("__weakref__", "_core")

    def __init__(self, core: _core.State) -> None:
        if not isinstance(core, _core.State):
            raise TypeError("states are made by Engine.new_state(), fork() and the load functions")
        self._core = core

    @property
    def tokens_seen(self) -> int:
        """How many tokens the state has been stepped through."""
        return self._core.tokens_seen

    @property
    def last_token(self) -> int | None:
        """The last of them; None before the first."""
        token = self._core.last_token
        return None if token < 0 else token

    @property
    def last_logits(self) -> Array | None:
        """A copy of the logits after the last token, (V,) float32.

        None if there are none: before the first token, and after output "none" or "hidden".
        """
        return self._core.last_logits

    @property
    def nbytes(self) -> int:
        """Bytes of the state's numbers in the portable form."""
        return self._core.nbytes

    @property
    def adapter(self) -> LoadedAdapter | None:
        """The adapter that the state was made with, if there is one."""
        core = self._core.adapter
        return None if core is None else LoadedAdapter(core)

    @overload
    def fork(self) -> State: ...
    @overload
    def fork(self, n: int) -> list[State]: ...
    def fork(self, n: int | None = None) -> State | list[State]:
        """Return a second handle on the same context, or a list of `n`.

        Copies nothing: a handle moves to memory of its own with its next step.
        """
        if n is None:
            return State(self._core.fork())
        return [State(self._core.fork()) for _ in range(integer(n, "n", 0, 2**31 - 1))]

    def to_bytes(self, dtype: str = "fp32") -> bytes:
        """Return the state as a safetensors file with a digest; `Engine.state_from_bytes` reads it.

        It holds everything that continuing needs, on any device and with any strategy, and with
        "fp32" every bit. With "fp16" its parts are rounded to halves and take half the space (but
        for RWKV-4's ``att.pp``, which stays); a number beyond 65,504 raises StateError.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> state = engine.new_state()
        >>> logits = engine.forward([1, 2, 3], state)
        >>> len(state.to_bytes()) > 1.8 * len(state.to_bytes("fp16"))
        True
        >>> engine.state_from_bytes(state.to_bytes("fp16")).tokens_seen
        3
        """
        return self._core.to_bytes(word(dtype, "dtype"))

    def save(self, path: Path, dtype: str = "fp32") -> None:
        """Write `to_bytes` to a file, whole or not at all; `Engine.load_state` reads it."""
        self._core.save(path_bytes(path, "path"), word(dtype, "dtype"))

    def to_numpy(self) -> dict[str, Array]:
        """Return copies of the parts as float32 arrays; `Engine.state_from_numpy` reads them.

        Each is over all L layers: ``att.shift`` and ``ffn.shift``, (L, C), what the two halves of a
        layer keep of the last token, and ``att.wkv``, (L, H, N, N), a matrix [value, key] for each
        head. RWKV-4 has no matrices but ``att.aa``, ``att.bb`` and ``att.pp``, (L, C): numerator,
        denominator and running maximum. Tokens seen and last logits are not among them.
        """
        return self._core.parts()

    def to_rwkv(self) -> list[Array]:
        """Return the parts as the `rwkv` package's list, which `Engine.state_from_rwkv` reads.

        Layer after layer, RWKV-5, 6 and 7 have three arrays each: ``att.shift`` (C,), ``att.wkv``
        (H, N, N), which is [key, value] with RWKV-5 and 6 and [value, key] with 7, and
        ``ffn.shift`` (C,). RWKV-4 has five (C,): ``att.shift``, ``att.aa``, ``att.bb``, ``att.pp``
        and ``ffn.shift``. Tokens seen and last logits are not among them.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> items = engine.new_state().to_rwkv()
        >>> len(items), items[1].shape
        (12, (2, 64, 64))
        """
        parts = self._core.parts()
        return Layout.of_parts(parts, self._core.config.version).items_of(parts)

    def save_rwkv(self, path: Path) -> None:
        """Write `to_rwkv` as a .pth, as ``torch.save`` writes such a list of float32 tensors.

        ``torch.load(path)`` gives the `rwkv` package its state; `Engine.state_from_rwkv` reads it
        back. The file is written whole or not at all.
        """
        write_list(path, self.to_rwkv())

    def views(self) -> dict[str, DeviceArray]:
        """Return the same parts where they lie, without a copy, for DLPack and CUDA libraries.

        The state may move on meanwhile; what is looked at stays. They are float32, with state16 the
        matrices float16. Raises DeviceError where layers are on several devices.
        """
        return {name: DeviceArray(view) for name, view in self._core.views()}

    def equals(self, other: State) -> bool:
        """Tell whether both hold the same bits: parts, tokens seen, last token and last logits.

        States with different adapters are never equal.
        """
        return self._core.equals(core_of(other))

    def __repr__(self) -> str:
        try:
            return f"<State after {self.tokens_seen} tokens, {self.nbytes} bytes>"
        except ConcurrentUseError:
            return f"<State in use, {self.nbytes} bytes>"

    def __copy__(self) -> NoReturn:
        raise TypeError("a State is not copied implicitly; fork() gives a second handle")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a State is not pickled; to_bytes() and Engine.state_from_bytes() carry it over"
        )


def core_of(state: object) -> _core.State:
    """Return the handle itself."""
    if not isinstance(state, State):
        raise TypeError(f"state: expected a State, found {type(state).__name__}")
    return state._core


def parts_of(parts: Parts) -> list[tuple[str, Array]]:
    """Return named arrays as the core takes them; float32 is neither rounded to nor assumed."""
    arrays = [(name, np.asarray(part)) for name, part in parts.items()]
    for name, array in arrays:
        if array.dtype != np.float32:
            raise StateError(f"state: {name}: expected float32, found {array.dtype}")
    return arrays
