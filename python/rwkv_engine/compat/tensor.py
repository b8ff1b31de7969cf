"""Arrays that answer the calls that scripts make on a tensor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DeviceError


class Tensor(np.ndarray):
    """A float32 array that also answers the few calls scripts make on a tensor's way to NumPy.

    As with tensors on a CPU, nothing but `clone` copies. Where torch is installed its functions
    take it too, such as ``torch.softmax(out, dim=-1)``, and see the same memory.

    Examples
    --------
    >>> from rwkv_engine.compat import RWKV
    >>> logits, _ = RWKV("demo", "cpu fp32").forward([1], None)
    >>> logits[0] = -float("inf")
    >>> int(logits.detach().cpu().float().numpy().argmin())
    0
    """

    @property
    def device(self) -> Device:  # type: ignore[override]
        """Where it is: "cpu"."""
        return Device("cpu")

    def detach(self) -> Tensor:
        """Return itself."""
        return self

    def cpu(self) -> Tensor:
        """Return itself."""
        return self

    def to(self, *where: object, **options: object) -> Tensor:
        """Return itself for a CPU and float32, which it is; of no other is there any.

        Raises
        ------
        DeviceError
            For another device or number type.
        """
        for word in (*where, options.get("device"), options.get("dtype")):
            name = str(word).removeprefix("torch.")
            if isinstance(word, (bool, type(None))) or name.split(":")[0] in {"cpu", "float32"}:
                continue
            raise DeviceError(f"Tensor.to: expected cpu or float32, found {name}")
        return self

    def float(self) -> Tensor:
        """Return itself, or what it holds as float32."""
        return self if self.dtype == np.float32 else self.astype(np.float32).view(Tensor)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the same memory as a plain array."""
        return self.view(np.ndarray)

    def clone(self) -> Tensor:
        """Return a copy."""
        return np.array(self).view(Tensor)

    def argmax(self, axis: Any = None, out: Any = None, *, dim: Any = None, **rest: Any) -> Any:
        """Return where the largest value is; `dim` is what tensors call the axis."""
        return super().argmax(axis if dim is None else dim, out, **rest)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let a function of torch work on tensors that share the arrays' memory."""
        torch = importlib.import_module("torch")

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.from_numpy(value.numpy())
            return type(value)(map(plain, value)) if type(value) in {list, tuple} else value

        given = {name: plain(value) for name, value in (kwargs or {}).items()}
        return func(*map(plain, args), **given)


class Device(str):
    """The name of a device, which also has it as its type."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """The name without an index."""
        return str(self)


def as_tensor(value: Any) -> Tensor:
    """Return float32 numbers of a list, an array, or a tensor; float32 in memory is shared."""
    if hasattr(value, "detach") and not isinstance(value, np.ndarray):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32).view(Tensor)
