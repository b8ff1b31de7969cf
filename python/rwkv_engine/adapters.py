"""What was fine-tuned beside a model, merged into its weights or applied beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import _core
from ._arguments import Path, path_bytes, real

_MOST = 1e6


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: a small difference to a model's weights, as fine-tuning writes it.

    ``Engine(adapters=...)`` merges it, `Engine.load_adapter` has it for single states.

    LoRA, also rank-stabilised, and MiSS with its forms Bone, DiSHA and Bat. Files are those of
    peft, the folder or the .safetensors file in it, and of RWKV-PEFT, a .pth file. Tensors are
    called as in official model files; the model may come in any container. Weights that were
    trained in full and lie in the same file, such as norms, replace the model's. PiSSA has to be
    converted to LoRA where it was trained.

    Raises
    ------
    ModelFormatError
        By the engine, for an adapter whose names or shapes are not the model's. One of another
        model of the same version and shape cannot be told from its own.

    Examples
    --------
    >>> from rwkv_engine import Adapter
    >>> Adapter("poems.pth", alpha=32).scale
    1.0
    """

    path: Path
    """A file, or the folder that peft writes."""
    alpha: float | None = None
    """LoRA's, whose strength is alpha / rank; for files that do not say it, as RWKV-PEFT's."""
    scale: float = 1.0
    """Times what the adapter adds; weights that it replaces are replaced whole."""

    def __post_init__(self) -> None:
        path_bytes(self.path, "path")
        if self.alpha is not None:
            real(self.alpha, "alpha", -_MOST, _MOST)
        real(self.scale, "scale", -_MOST, _MOST)


Adapters: TypeAlias = Path | Adapter | Sequence[Path | Adapter] | None


class LoadedAdapter:
    """An adapter beside the weights of an engine, made by `Engine.load_adapter`.

    Its memory is given back when neither a handle nor a state of it is left. Two handles are equal
    if states can go from one to the other.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _core.LoadedAdapter) -> None:
        if not isinstance(core, _core.LoadedAdapter):
            raise TypeError("loaded adapters are made by Engine.load_adapter()")
        self._core = core

    @property
    def fingerprint(self) -> str:
        """64 hex digits that name the model and the adapter; states of it carry them."""
        return self._core.fingerprint

    @property
    def nbytes(self) -> int:
        """Bytes that it takes beside the weights."""
        return self._core.nbytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedAdapter) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<LoadedAdapter {self.fingerprint[:12]}, {self.nbytes} bytes>"


def handle_of(adapter: LoadedAdapter | None) -> _core.LoadedAdapter | None:
    """Return the handle itself."""
    if adapter is None:
        return None
    if not isinstance(adapter, LoadedAdapter):
        found = type(adapter).__name__
        raise TypeError(f"adapter: expected what load_adapter() gives, found {found}")
    return adapter._core


def adapters_of(adapters: Adapters) -> list[tuple[bytes, float | None, float]]:
    """Return one adapter, several or none as the core takes them."""
    if adapters is None:
        return []
    if isinstance(adapters, (str, bytes, os.PathLike, Adapter)):
        return [adapter_of(adapters)]
    if not isinstance(adapters, Sequence):
        expected = "a path, an Adapter or a sequence of them"
        raise TypeError(f"adapters: expected {expected}, found {type(adapters).__name__}")
    several: Sequence[Path | Adapter] = adapters  # type: ignore[assignment]  # no bytes any more
    return [adapter_of(adapter) for adapter in several]


def adapter_of(adapter: Path | Adapter) -> tuple[bytes, float | None, float]:
    """Return one adapter as the core takes it."""
    if not isinstance(adapter, Adapter):
        return path_bytes(adapter, "adapters"), None, 1.0
    alpha = None if adapter.alpha is None else float(adapter.alpha)
    return path_bytes(adapter.path, "adapters"), alpha, float(adapter.scale)
