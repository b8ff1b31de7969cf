"""States from bytes, files and arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from ._arguments import Path, path_bytes
from ._rwkv_list import Layout, arrays_of, read_list
from .state import Parts, State, parts_of


class RestoreMixin:
    """What an engine makes states of."""

    __slots__ = ()
    _core: _core.Engine

    def state_from_bytes(
        self, blob: bytes | bytearray | memoryview, check_weights: bool = True
    ) -> State:
        """Return the state that `State.to_bytes` wrote, on any device and with any strategy.

        Raises StateError if it is damaged or another model's; with ``check_weights=False`` other
        weights of the same shape may have made it.
        """
        data = blob if isinstance(blob, bytes) else bytes(memoryview(blob))
        return State(self._core.state_from_bytes(data, bool(check_weights)))

    def load_state(self, path: Path, check_weights: bool = True) -> State:
        """Return the state in a file that `State.save` wrote; otherwise as `state_from_bytes`."""
        return State(self._core.load_state(path_bytes(path, "path"), bool(check_weights)))

    def state_from_numpy(self, parts: Parts) -> State:
        """Return a state that has seen no tokens, of float32 parts as `State.to_numpy` has them."""
        return State(self._core.state_from_parts(parts_of(parts)))

    def state_from_rwkv(self, source: Path | Sequence[Any]) -> State:
        """Return a state that has seen no tokens, of a state list of the `rwkv` package.

        Parameters
        ----------
        source : sequence of arrays or tensors, or path
            As `State.to_rwkv` lists them, in float32, float16 or bfloat16, or a .pth that
            ``torch.save`` wrote of such a list. torch is not needed, and nothing in a file is run.

        Raises
        ------
        StateError
            For another length, shape or type than those of this model's states, and for numbers
            that are not finite. A list does not say whose weights made it.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> state = engine.new_state()
        >>> logits = engine.forward([1, 2, 3], state)
        >>> again = engine.state_from_rwkv(state.to_rwkv())
        >>> (engine.forward([4], again) == engine.forward([4], state)).all()
        np.True_
        """
        parts = self._core.new_state().parts()
        layout = Layout.of_parts(parts, self._core.config.version)
        if isinstance(source, (str, bytes, os.PathLike)):
            items = read_list(source, layout)
        else:
            items = arrays_of(source)
        return self.state_from_numpy(layout.parts_of(items))

    def state_from_dlpack(self, parts: Mapping[str, Any]) -> State:
        """Return a state of float32 parts of any library that speaks DLPack, which are copied.

        Names and shapes are those of `State.views`. They lie on the CPU or on one of the engine's
        GPUs.
        """
        return self.state_from_numpy({name: self._numbers(name, p) for name, p in parts.items()})

    def _numbers(self, name: str, part: Any) -> Any:
        if part.__dlpack_device__()[0] == 1:
            return np.from_dlpack(part)
        return _core.numbers_of(self._core, name, part.__dlpack__())
