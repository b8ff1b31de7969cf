"""The numbers of a model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from . import _core


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers of a model, all read from the shapes of its tensors."""

    version: str
    """Which RWKV: "4", "5.0", "5.1", "5.2", "6" or "7"."""
    kind: str
    """"language model" or "embedding model", an EmbeddingRWKV: vectors and no logits."""
    n_layer: int
    """L, layers."""
    n_embd: int
    """C, width of the embedding."""
    n_head: int
    """H, heads; 0 for RWKV-4, which has none."""
    head_size: int
    """N, width of a head; 0 for RWKV-4."""
    n_ffn: int
    """F, width of the channel mix."""
    n_vocab: int
    """V, token ids: 0 to V - 1."""

    @classmethod
    def _of(cls, core: _core.Config) -> Config:
        return cls(**{field.name: getattr(core, field.name) for field in fields(cls)})
