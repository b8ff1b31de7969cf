"""States from bytes, files and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from ._arguments import Path, path_bytes
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

    def state_from_dlpack(self, parts: Mapping[str, Any]) -> State:
        """Return a state of float32 or float16 parts of any library with DLPack, which are copied.

        Names and shapes are those of `State.views`. They lie on the CPU or on one of the engine's
        GPUs.
        """
        return self.state_from_numpy({name: self._numbers(name, p) for name, p in parts.items()})

    def _numbers(self, name: str, part: Any) -> Any:
        if part.__dlpack_device__()[0] == 1:
            numbers = np.from_dlpack(part)
            return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers
        return _core.numbers_of(self._core, name, part.__dlpack__())
