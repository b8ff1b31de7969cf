"""What `RWKV.forward` returns: logits and states that answer as its tensors and lists do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._arguments import Array
from ..engine import Engine
from ..errors import StateError
from ..state import State as EngineState


class Tensor(np.ndarray):
    """A float32 array that also answers the few calls scripts make on a tensor's way to NumPy.

    As with tensors on a CPU, nothing but `clone` copies.

    Examples
    --------
    >>> from rwkv_engine.compat import RWKV
    >>> logits, _ = RWKV("demo", "cpu fp32").forward([1], None)
    >>> logits[0] = -float("inf")
    >>> int(logits.detach().cpu().float().numpy().argmin())
    0
    """

    def detach(self) -> Tensor:
        """Return itself."""
        return self

    def cpu(self) -> Tensor:
        """Return itself."""
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


class State:
    """The package's list of state tensors; its arrays are made when somebody looks.

    RWKV-7 has three a layer: ``att.shift`` (C,), ``att.wkv`` (H, N, N), ``ffn.shift`` (C,), layer
    after layer. Elements may be replaced or changed in place; the next forward starts from what
    they hold then. No call changes a state that it is passed, whatever the version: the package
    promises that for RWKV-7 alone, and overwrites the caller's list with RWKV-4, 5 and 6. It is
    copied and pickled as a list is; what was pickled continues in another process.

    Examples
    --------
    >>> import copy
    >>> from rwkv_engine.compat import RWKV
    >>> model = RWKV("demo", "cpu fp32")
    >>> _, state = model.forward([1, 2, 3], None)
    >>> saved = copy.deepcopy(state)
    >>> len(saved), saved[1].shape
    (12, (2, 64, 64))
    """

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("_blob", "_engine", "_items", "_state", "_turned")

    def __init__(self, engine: Engine, state: EngineState) -> None:
        self._engine: Engine | None = engine
        self._state: EngineState | None = state  # None once unpickled; then _blob, or _items alone
        self._blob: bytes | None = None
        self._items: list[Tensor] | None = None  # None until somebody looks
        self._turned = turned(engine)

    def _origin(self) -> list[Tensor] | None:
        """Return fresh arrays of what the state was made with; None if it was made of arrays."""
        if self._state is not None:
            return items_of(self._state.to_numpy(), self._turned)
        return None if self._blob is None else items_of(parts_of_file(self._blob), self._turned)

    def _list(self) -> list[Tensor]:
        if self._items is None:
            self._items = self._origin()
        assert self._items is not None
        return self._items

    def _untouched(self) -> bool:
        if self._items is None:
            return True
        origin = self._origin()
        return origin is not None and all(
            a.shape == b.shape and a.tobytes() == b.tobytes()
            for a, b in zip(self._items, origin, strict=True)
        )

    def handle(self, engine: Engine) -> EngineState:
        """Return a handle of the engine's own that may be stepped."""
        if not self._untouched():
            return handle_of(self._list(), engine)
        if self._state is None and self._blob is not None:
            # As with lists of tensors, other weights of the same shape may go on.
            self._state = engine.state_from_bytes(self._blob, check_weights=False)
            self._engine, self._blob = engine, None
        if self._state is None or self._engine is not engine:
            return handle_of(self._list(), engine)
        return self._state.fork()

    def __len__(self) -> int:
        return len(self._list())

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._list())

    def __getitem__(self, index: Any) -> Any:
        return self._list()[index]

    def __setitem__(self, index: int, value: Any) -> None:
        items = self._list()
        array = as_tensor(value)
        if array.shape != items[index].shape:
            raise StateError(
                f"state[{index}]: expected shape {items[index].shape}, found {array.shape}"
            )
        items[index] = array

    def __copy__(self) -> State:
        twin = State.__new__(State)
        for name in State.__slots__:
            setattr(twin, name, getattr(self, name))
        if self._items is not None:
            twin._items = list(self._items)
        return twin

    def copy(self) -> State:
        """Return another list of the same arrays."""
        return self.__copy__()

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        twin = self.__copy__()
        if self._items is not None:
            twin._items = None if self._untouched() else [item.clone() for item in self._items]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if not self._untouched():
            return {"turned": self._turned, "items": [item.numpy() for item in self._list()]}
        blob = self._blob if self._state is None else self._state.to_bytes()
        return {"turned": self._turned, "blob": blob}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._engine = self._state = None
        self._turned = saved["turned"]
        self._blob = saved.get("blob")
        items = saved.get("items")
        self._items = None if items is None else [as_tensor(item) for item in items]

    def __repr__(self) -> str:
        return f"<State of {len(self)} arrays>"


def turned(engine: Engine) -> bool:
    """Tell whether the package keeps this version's matrices as [key, value], not [value, key]."""
    return engine.config.version[:1] in {"5", "6"}


def as_tensor(value: Any) -> Tensor:
    """Return float32 numbers of an array, or of a tensor that NumPy can read."""
    return np.asarray(value, np.float32).view(Tensor)


def items_of(parts: dict[str, Array], turn: bool) -> list[Tensor]:
    """Return the parts, each over all layers, as the package's list: layer after layer."""
    ordered = [p.swapaxes(-1, -2) if turn and p.ndim == 4 else p for p in parts.values()]
    layers = len(ordered[0])
    return [np.ascontiguousarray(p[layer]).view(Tensor) for layer in range(layers) for p in ordered]


def handle_of(items: Sequence[Any], engine: Engine) -> EngineState:
    """Return a new engine state of the package's list."""
    shapes = engine.new_state().to_numpy()
    layers, per_layer, turn = engine.config.n_layer, len(shapes), turned(engine)
    if len(items) != layers * per_layer:
        raise StateError(
            f"state: expected {layers * per_layer} arrays ({per_layer} a layer), found {len(items)}"
        )
    parts = {}
    for at, (name, whole) in enumerate(shapes.items()):
        for layer in range(layers):
            value = as_tensor(items[layer * per_layer + at]).numpy()
            row = value.swapaxes(-1, -2) if turn and value.ndim == 3 else value
            if row.shape != whole[layer].shape:
                raise StateError(
                    f"state[{layer * per_layer + at}]: expected shape {whole[layer].shape} "
                    f"({name} of layer {layer}), found {row.shape}"
                )
            whole[layer] = row
        parts[name] = whole
    return engine.state_from_numpy(parts)


def parts_of_file(blob: bytes) -> dict[str, Array]:
    """Return the parts of a state file, for looking at; the engine checks it before it goes on."""
    length = int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
        if "." in name
    }
