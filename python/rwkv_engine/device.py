"""Numbers that stay on the device where they were computed."""

from __future__ import annotations

from typing import Any

from . import _core


class DeviceArray:
    """Numbers on a device, read-only, for other libraries to go on with without a copy.

    They are float32, or float16 where a strategy keeps states so.
    `numpy.from_dlpack`, `torch.from_dlpack` and `cupy.from_dlpack` take it; on a GPU it has
    ``__cuda_array_interface__`` too. All work on it has ended. The memory stays as long as the
    array or what was made of it; nobody may write there, as states share it. Libraries that ask
    for a version of DLPack before 1.0, or for none, cannot be told so.

    Examples
    --------
    >>> import numpy as np
    >>> import rwkv_engine as rwkv
    >>> engine = rwkv.Engine("demo", "cpu fp32")
    >>> rows = engine.forward([1, 2, 3], engine.new_state(), output="all", device=True)
    >>> rows.shape, np.from_dlpack(rows).shape
    ((3, 1024), (3, 1024))
    """

    __slots__ = ("__weakref__", "_core")

    def __init__(self, core: _core.DeviceArray) -> None:
        if not isinstance(core, _core.DeviceArray):
            raise TypeError("device arrays are made by Engine.forward and State.views")
        self._core = core

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        return self._core.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from number to number in each dimension."""
        return self._core.strides

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the kind of device as DLPack counts, 1 a CPU and 2 a GPU, and its number."""
        return self._core.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return the array as a DLPack capsule; there is nothing that `stream` would wait for."""
        if copy:
            raise BufferError("copy: expected None or False, found True: these arrays share memory")
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"dl_device: expected {self.__dlpack_device__()}, found {dl_device}")
        return self._core.dlpack(max_version is not None and max_version[0] >= 1)

    def __getattr__(self, name: str) -> Any:
        # Only on a GPU, as libraries look whether it is there.
        found = self._core.cuda_interface() if name == "__cuda_array_interface__" else None
        if found is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return found

    def __repr__(self) -> str:
        kind, index = self._core.device
        return f"<DeviceArray {self.shape} on {'cpu' if kind == 1 else f'cuda:{index}'}>"
