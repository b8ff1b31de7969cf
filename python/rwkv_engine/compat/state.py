"""The package's list of state tensors over an engine's opaque state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import _core
from .._arguments import Array
from .._rwkv_list import Layout
from ..engine import Engine
from ..errors import StateError
from ..state import State as EngineState
from .tensor import Tensor, as_tensor


def items_of(layout: Layout, parts: Mapping[str, Array]) -> list[Tensor]:
    """Return the engine's parts, each over all layers, as the list."""
    return [item.view(Tensor) for item in layout.items_of(parts)]


class State:
    """The package's list of state tensors; its arrays are made when somebody looks.

    Layer after layer, RWKV-5, 6 and 7 have three arrays each: what the time mix keeps of the last
    token (C,), a matrix for each head (H, N, N), and what the channel mix keeps (C,). The matrices
    are [key, value] with RWKV-5 and 6 and [value, key] with 7. RWKV-4 has five: time mix,
    numerator, denominator, running maximum, channel mix. All are float32, whatever the strategy;
    the package has the first and the last in the precision of the strategy.

    Elements may be replaced or changed in place; the next forward starts from what they hold then,
    and such a state has no logits of its own until it is stepped. It is copied and pickled as a
    list is; what was pickled continues in another process.

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
    __slots__ = ("_blob", "_engine", "_items", "_layout", "_state")

    _engine: Engine | None
    _layout: Layout
    _state: EngineState | None  # None once unpickled; then _blob, or _items alone
    _blob: bytes | None
    _items: list[Tensor] | None  # None until somebody looks

    def __init__(self, engine: Engine, layout: Layout, state: EngineState) -> None:
        self.become(engine, layout, state)

    def handle(self, engine: Engine) -> EngineState:
        """Return a handle of the engine's own that may be stepped."""
        if self._untouched():
            if self._state is not None and self._engine is engine:
                return self._state.fork()
            if self._state is None and self._blob is not None:
                # As with lists of tensors, other weights of the same shape may go on.
                return engine.state_from_bytes(self._blob, check_weights=False)
        return engine.state_from_numpy(Layout.of(engine).parts_of(self._list()))

    def become(self, engine: Engine, layout: Layout, state: EngineState) -> None:
        """Hold another state from now on; arrays that were handed out stay what they are."""
        self._engine, self._layout, self._state = engine, layout, state
        self._blob = self._items = None

    def _origin(self) -> list[Tensor] | None:
        """Return fresh arrays of what the state was made with; None if it was made of arrays."""
        if self._state is not None:
            return items_of(self._layout, self._state.to_numpy())
        if self._blob is None:
            return None
        return items_of(self._layout, _core.StateFile.parse(self._blob).parts())

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

    def __len__(self) -> int:
        return len(self._layout)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._list())

    def __getitem__(self, index: Any) -> Any:
        return self._list()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        items = self._list()
        places = range(len(items))[index]
        if isinstance(places, int):
            places, value = range(places, places + 1), [value]
        arrays = [as_tensor(one) for one in value]
        if len(arrays) != len(places):
            raise StateError(f"state: expected {len(places)} arrays, found {len(arrays)}")
        for at, array in zip(places, arrays, strict=True):
            if array.shape != items[at].shape:
                raise StateError(
                    f"state[{at}]: expected shape {items[at].shape}, found {array.shape}"
                )
        for at, array in zip(places, arrays, strict=True):
            items[at] = array

    def _twin(self, items: list[Tensor] | None) -> State:
        twin = State.__new__(State)
        for name in State.__slots__:
            setattr(twin, name, getattr(self, name))
        twin._items = items
        return twin

    def __copy__(self) -> State:
        return self._twin(list(self._list()))

    def copy(self) -> State:
        """Return another list of the same arrays."""
        return self.__copy__()

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self._twin(None if self._untouched() else [item.clone() for item in self._list()])

    def __getstate__(self) -> dict[str, Any]:
        if not self._untouched():
            return {"layout": self._layout, "items": [item.numpy() for item in self._list()]}
        blob = self._blob if self._state is None else self._state.to_bytes()
        return {"layout": self._layout, "blob": blob}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._engine = self._state = None
        self._layout = saved["layout"]
        self._blob = saved.get("blob")
        items = saved.get("items")
        self._items = None if items is None else [as_tensor(item) for item in items]

    def __repr__(self) -> str:
        return f"<State of {len(self)} arrays>"
