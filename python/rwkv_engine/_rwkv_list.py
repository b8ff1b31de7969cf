"""The `rwkv` package's list of state tensors: how it is laid out, and files of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._arguments import Array, path_bytes
from ._pth import pth_of_list
from .errors import ModelFormatError, StateError

if TYPE_CHECKING:
    from .engine import Engine

_EXACT = ("float32", "float16", "bfloat16")  # what float32 holds every number of
_STORED = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


@dataclass(frozen=True)
class Layout:
    """How a version's list is laid out: layer after layer, the same parts in each."""

    layers: int
    parts: tuple[str, ...]
    """What the engine calls the parts of a layer, in the package's order."""
    shapes: tuple[tuple[int, ...], ...]
    """Of a layer's parts, as in the list."""
    turned: bool
    """Whether the package keeps the matrices as [key, value]; the engine has [value, key]."""

    @classmethod
    def of(cls, engine: Engine) -> Layout:
        """Return the layout of a model's states."""
        return cls.of_parts(engine.new_state().to_numpy(), engine.config.version)

    @classmethod
    def of_parts(cls, parts: Mapping[str, Array], version: str) -> Layout:
        """Return the layout of states with these parts, each over all layers."""
        shapes = tuple(part.shape[1:] for part in parts.values())
        layers = len(next(iter(parts.values())))
        return cls(layers, tuple(parts), shapes, version[:1] in {"5", "6"})

    def __len__(self) -> int:
        return self.layers * len(self.parts)

    def turn(self, values: Array) -> Array:
        """Return a part as the other side has it."""
        return values.swapaxes(-1, -2) if self.turned and values.ndim >= 3 else values

    def items_of(self, parts: Mapping[str, Array]) -> list[Array]:
        """Return the engine's parts, each over all layers, as the list."""
        ordered = [parts[name] for name in self.parts]
        return [
            np.ascontiguousarray(self.turn(part[layer]))
            for layer in range(self.layers)
            for part in ordered
        ]

    def parts_of(self, items: Sequence[Array]) -> dict[str, Array]:
        """Return a list as the engine's parts."""
        self.check([item.shape for item in items])
        n = len(self.parts)
        return {
            name: np.stack([self.turn(array) for array in items[part::n]])
            for part, name in enumerate(self.parts)
        }

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise StateError unless a list of arrays of these shapes fits."""
        n = len(self.parts)
        if len(shapes) != len(self):
            raise StateError(
                f"state: expected {len(self)} arrays ({n} a layer), found {len(shapes)}"
            )
        for at, shape in enumerate(shapes):
            layer, part = divmod(at, n)
            if shape != self.shapes[part]:
                raise StateError(
                    f"state[{at}]: expected shape {self.shapes[part]} "
                    f"({self.parts[part]} of layer {layer}), found {shape}"
                )


def arrays_of(items: Sequence[Any]) -> list[Array]:
    """Return a list of arrays or tensors as float32, which rounds none of their numbers."""
    arrays = []
    for at, item in enumerate(items):
        dtype = str(getattr(item, "dtype", type(item).__name__)).removeprefix("torch.")
        if dtype not in _EXACT:
            raise StateError(f"state[{at}]: expected {', '.join(_EXACT)}, found {dtype}")
        if hasattr(item, "detach") and not isinstance(item, np.ndarray):
            item = item.detach().cpu().float().numpy()
        arrays.append(np.asarray(item, np.float32))
    return arrays


def read_list(path: Any, layout: Layout) -> list[Array]:
    """Return the arrays of a .pth that ``torch.save`` wrote of a list; nothing in it is run."""
    name = os.fsdecode(path_bytes(path, "source"))
    try:
        file = _core.PthList.open(os.fsencode(name))
        layout.check([shape for _, _, shape in file.tensors])
        for at, (_, dtype, _) in enumerate(file.tensors):
            if _STORED.get(dtype) not in _EXACT:
                raise StateError(
                    f"state[{at}]: expected {', '.join(_EXACT)}, found {_STORED.get(dtype, dtype)}"
                )
        return [file.read(at) for at in range(len(layout))]
    except ModelFormatError as error:
        raise StateError(str(error)) from None
    except StateError as error:
        raise StateError(f"{name}: {error}") from None


def write_list(path: Any, arrays: Sequence[Array]) -> None:
    """Write a .pth as ``torch.save`` writes a list of float32 tensors, whole or not at all."""
    _core.write_file(path_bytes(path, "path"), pth_of_list(arrays), True)
