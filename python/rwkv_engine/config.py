"""The numbers of a model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from . import _core


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers of a model, all read from the shapes of its tensors."""

    version: str
    """Which RWKV: "7"."""
    n_layer: int
    """L, layers."""
    n_embd: int
    """C, width of the embedding."""
    n_head: int
    """H, heads; C = H N."""
    head_size: int
    """N."""
    n_ffn: int
    """F, width of the channel mix."""
    n_vocab: int
    """V, token ids: 0 to V - 1."""

    @classmethod
    def _of(cls, core: _core.Config) -> Config:
        return cls(**{field.name: getattr(core, field.name) for field in fields(cls)})
