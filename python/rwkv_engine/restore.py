"""States from bytes, files and arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from ._arguments import Array, Path, boolean, path_bytes
from ._opened import Opened
from ._rwkv_list import Layout, arrays_of, read_list
from .adapters import Adapter, LoadedAdapter, adapter_of, handle_of
from .errors import StateError
from .state import Parts, State, parts_of


def _floats(arrays: Mapping[str, Any]) -> list[tuple[str, Array]]:
    """Return named arrays of any floats as float32; what is too large becomes infinite."""
    try:
        found = [(str(name), np.asarray(array)) for name, array in arrays.items()]
    except ValueError as error:
        raise StateError(f"init: expected arrays of floats, found none: {error}") from None
    for name, array in found:
        if array.dtype.kind != "f":
            raise StateError(f"init: {name}: expected an array of floats, found {array.dtype}")
    with np.errstate(over="ignore"):
        return [(name, array.astype(np.float32)) for name, array in found]


class RestoreMixin(Opened):
    """What an engine makes states of."""

    __slots__ = ()

    def load_adapter(self, adapter: Path | Adapter) -> LoadedAdapter:
        """Bring an adapter beside the weights, for states that are made with it.

        Nothing is merged: states with different adapters, or none, go through one batch and one
        copy of the weights, whatever their precision, also those of a file of `quantize`. It works
        on the CPU, with LoRA and MiSS; whatever is no low-rank product has to be merged, as
        ``Engine(adapters=...)`` does. Loading the same again gives the same memory.

        Parameters
        ----------
        adapter : path or Adapter
            As ``Engine(adapters=...)`` takes it.

        Raises
        ------
        ModelFormatError
            As `Adapter` says, and for what can only be merged: Bat, weights that were trained in
            full, adapters of the embedding.
        DeviceError
            Where layers are on a GPU.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> poems = engine.load_adapter(rwkv.Adapter("poems.pth", alpha=32))  # doctest: +SKIP
        >>> states = [engine.new_state(adapter=poems), engine.new_state()]  # doctest: +SKIP
        >>> rows = engine.forward_batch([[1, 2], [1, 2]], states)  # doctest: +SKIP
        """
        return LoadedAdapter(self._core.load_adapter(adapter_of(adapter)))

    def new_state(
        self,
        init: Path | Mapping[str, Any] | None = None,
        *,
        adapter: LoadedAdapter | None = None,
        transposed: bool | None = None,
    ) -> State:
        """Return the state before any token.

        Parameters
        ----------
        init : path or mapping, optional
            A tuned state to begin with, of RWKV-5, 6 or 7: a .pth or safetensors file, or float
            arrays, with ``blocks.{i}.att.time_state`` for each layer and nothing else, (H, N, N) as
            trainers write them. By default what the model's file has of that kind, else zeros.
        adapter : LoadedAdapter, optional
            Of `load_adapter`. All tokens of the state and of its forks go through it.
        transposed : bool, optional
            Whether its matrices are [key, value]; trainers write [value, key], for every version.
            No file tells, so it has to be said of a .st file, which some of web-rwkv's converters
            turn around and some do not.

        Raises
        ------
        StateError
            If it does not fit. Nothing in such a file tells for which version or model of the same
            shape it was trained. Also for an adapter that another engine has loaded.

        Examples
        --------
        >>> import numpy as np
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> shape = (engine.config.n_head, engine.config.head_size, engine.config.head_size)
        >>> layers = range(engine.config.n_layer)
        >>> tuned = {f"blocks.{i}.att.time_state": np.ones(shape) for i in layers}
        >>> engine.new_state(init=tuned).tokens_seen
        0
        """
        loaded = handle_of(adapter)
        turned = False if transposed is None else boolean(transposed, "transposed")
        if init is None:
            if transposed is not None:
                raise StateError(f"transposed: expected init with it, found {transposed} alone")
            return State(self._core.new_state(loaded))
        if isinstance(init, Mapping):
            return State(self._core.new_state_of_arrays(_floats(init), turned, loaded))
        path = path_bytes(init, "init")
        if transposed is None and path.lower().endswith(b".st"):
            raise StateError(
                f"{os.fsdecode(path)}: expected transposed=True or False for a .st file, as some "
                "converters turn matrices around and some do not, found neither"
            )
        return State(self._core.new_tuned_state(path, turned, loaded))

    def state_from_bytes(
        self,
        blob: bytes | bytearray | memoryview,
        check_weights: bool = True,
        *,
        adapter: LoadedAdapter | None = None,
    ) -> State:
        """Return the state that `State.to_bytes` wrote, on any device and with any strategy.

        Parameters
        ----------
        blob : bytes-like
        check_weights : bool
            False: other weights of the same shape may have made it.
        adapter : LoadedAdapter, optional
            Of `load_adapter`, which must have made it or, with ``check_weights=False``, goes on
            with it. By default the one that has made it, if that is loaded; else the state is
            another model's.

        Raises
        ------
        StateError
            If it is damaged or another model's.
        """
        data = blob if isinstance(blob, bytes) else bytes(memoryview(blob))
        core = self._core.state_from_bytes(data, bool(check_weights), handle_of(adapter))
        return State(core)

    def load_state(
        self, path: Path, check_weights: bool = True, *, adapter: LoadedAdapter | None = None
    ) -> State:
        """Return the state in a file that `State.save` wrote; otherwise as `state_from_bytes`."""
        name = path_bytes(path, "path")
        return State(self._core.load_state(name, bool(check_weights), handle_of(adapter)))

    def state_from_numpy(self, parts: Parts, *, adapter: LoadedAdapter | None = None) -> State:
        """Return a state that has seen no tokens, of float32 parts as `State.to_numpy` has them.

        Parts do not say whose they are: ``adapter`` is that of the state they come from, if it had
        one, as `new_state` takes it. Raises StateError for parts that are not this model's.
        """
        return State(self._core.state_from_parts(parts_of(parts), handle_of(adapter)))

    def state_from_rwkv(
        self, source: Path | Sequence[Any], *, adapter: LoadedAdapter | None = None
    ) -> State:
        """Return a state that has seen no tokens, of a state list of the `rwkv` package.

        Parameters
        ----------
        source : sequence of arrays or tensors, or path
            As `State.to_rwkv` lists them, in float32, float16 or bfloat16, or a .pth that
            ``torch.save`` wrote of such a list. torch is not needed, and nothing in a file is run.
        adapter : LoadedAdapter, optional
            As in `state_from_numpy`.

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
        parts = self._core.new_state(None).parts()
        layout = Layout.of_parts(parts, self._core.config.version)
        if isinstance(source, (str, bytes, os.PathLike)):
            items = read_list(source, layout)
        else:
            items = arrays_of(source)
        return self.state_from_numpy(layout.parts_of(items), adapter=adapter)

    def state_from_dlpack(
        self, parts: Mapping[str, Any], *, adapter: LoadedAdapter | None = None
    ) -> State:
        """Return a state of float32 or float16 parts of any library with DLPack, which are copied.

        Names and shapes are those of `State.views`. They lie on the CPU or on one of the engine's
        GPUs. ``adapter`` is as in `state_from_numpy`.
        """
        numbers = {name: self._numbers(name, p) for name, p in parts.items()}
        return self.state_from_numpy(numbers, adapter=adapter)

    def _numbers(self, name: str, part: Any) -> Any:
        if part.__dlpack_device__()[0] == 1:
            numbers = np.from_dlpack(part)
            return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers
        return _core.numbers_of(self._core, name, part.__dlpack__())
