"""Saved states without their model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import _core
from ._arguments import Array, Path, path_bytes, word
from ._rwkv_list import Layout, write_list


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """What a state that is in the middle of a text knows of how the text is sampled."""

    seed: int
    penalty_style: str
    pending: bytes
    """The beginning of a character, whose other bytes are to come."""
    tail: str
    """The end of what was written, where a stop string may have begun in it."""
    weights: Mapping[int, float]
    """What penalties have counted for each token, as `SamplingParams` says."""


@dataclass(frozen=True, slots=True, eq=False)
class StateFile:
    """What a file of `State.save` holds; `read_state` makes it, and needs no model.

    Everything that can be checked without the model has been: length, digest, version, shapes, and
    that all numbers are finite.
    """

    format: str
    """ "rwkv-state 1", or "rwkv-state 2" for parts in fp16."""
    dtype: str
    """ "fp32" or "fp16": what `State.save` was given."""
    dtypes: Mapping[str, str]
    """What each part is stored as: "f32" or "f16"."""
    version: str
    """Of the model, and so on, as in `Config`."""
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_vocab: int
    fingerprint: str
    """Of the model's weights, as `Engine.fingerprint`."""
    tokens_seen: int
    last_token: int | None
    last_logits: Array | None
    parts: Mapping[str, Array]
    """The numbers as `State.to_numpy` has them, in float32 and not to be written to."""
    sampler: SamplerInfo | None
    """None unless it was saved in the middle of a text."""
    _core: _core.StateFile = field(repr=False)

    def to_bytes(self, dtype: str | None = None) -> bytes:
        """Return the file's bytes, or those of the same state as "fp32" or "fp16".

        What was rounded to fp16 stays so in fp32; a number that fp16 cannot hold raises StateError.
        """
        return self._core.to_bytes(self.dtype if dtype is None else word(dtype, "dtype"))

    def save(self, path: Path, dtype: str | None = None) -> None:
        """Write `to_bytes` to a file, whole or not at all."""
        _core.write_file(path_bytes(path, "path"), self.to_bytes(dtype), True)

    def to_rwkv(self) -> list[Array]:
        """Return the parts as the `rwkv` package's list, as `State.to_rwkv` does."""
        parts = self._core.parts()
        return Layout.of_parts(parts, self.version).items_of(parts)

    def save_rwkv(self, path: Path) -> None:
        """Write `to_rwkv` as a .pth, as `State.save_rwkv` does."""
        write_list(path, self.to_rwkv())


def read_state(path: Path) -> StateFile:
    """Return what is in a file that `State.save` wrote, of any model.

    Raises
    ------
    StateError
        For a file that is damaged, or none of a state.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import rwkv_engine as rwkv
    >>> engine = rwkv.Engine("demo")
    >>> state = engine.new_state()
    >>> logits = engine.forward([1, 2, 3], state)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.state")
    ...     state.save(path, "fp16")
    ...     file = rwkv.read_state(path)
    >>> file.version, file.tokens_seen, file.parts["att.wkv"].shape
    ('7', 3, (4, 2, 64, 64))
    """
    core = _core.StateFile.open(path_bytes(path, "path"))
    config, parts, sampler = core.config, core.parts(), core.sampler
    for part in parts.values():
        part.flags.writeable = False
    dtypes = {name: dtype for name, dtype, _ in core.tensors if name in parts}
    return StateFile(
        format=core.format,
        dtype=core.dtype,
        dtypes=dtypes,
        version=config.version,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        head_size=config.head_size,
        n_vocab=config.n_vocab,
        fingerprint=core.fingerprint,
        tokens_seen=core.tokens_seen,
        last_token=None if core.last_token < 0 else core.last_token,
        last_logits=core.last_logits(),
        parts=parts,
        sampler=None if sampler is None else SamplerInfo(*sampler),
        _core=core,
    )
