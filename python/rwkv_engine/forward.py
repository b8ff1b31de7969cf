"""Steps: tokens or embeddings in, logits, hidden vectors or the outputs of layers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._arguments import Array, Progress, Tokens, integer, word
from ._opened import Opened
from .device import DeviceArray
from .errors import Error
from .state import State, core_of


class ForwardMixin(Opened):
    """What steps states."""

    __slots__ = ()

    def forward(
        self,
        tokens: Tokens | None = None,
        state: State | None = None,
        output: str = "last",
        progress: Progress | None = None,
        device: bool = False,
        *,
        embeddings: Any = None,
    ) -> Any:
        """Step a state in place through T >= 1 tokens, sequence or array of ids from 0 to V - 1.

        Results and state have the same bits however a text is split into calls. A call that fails
        leaves the state as it was; ``progress(tokens_done, T)`` may make it fail by raising.

        In place of tokens, ``embeddings`` is a (T, C) array of float32 or float16 that enters where
        rows of the embedding table would, before the first norm (ln0): the prefix of an image or a
        sound, for example. Not with RWKV-7a, whose layers look tokens up.

        Returns
        -------
        float32 array or None
            (V,) logits after the last token for output "last", (T, V) after every token for "all",
            None for "none", and (T, C) vectors after the final norm for "hidden". With
            ``device=True`` a `DeviceArray` of them on the model's last device, "last" as (1, V).

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> engine.forward([1, 2, 3], engine.new_state(), output="all").shape
        (3, 1024)
        """
        inputs = [_input(tokens, embeddings)]
        states, kind = [core_of(state)], word(output, "output")
        if device:
            return DeviceArray(self._core.forward_on_device(inputs, states, kind, progress))
        rows = self._core.forward(inputs, states, kind, progress)
        return rows[0] if rows is not None and output == "last" else rows

    def forward_batch(
        self,
        tokens: Sequence[Tokens] | None = None,
        states: Sequence[State] = (),
        output: str = "last",
        progress: Progress | None = None,
        *,
        embeddings: Sequence[Any] | None = None,
    ) -> Any:
        """Step B states, each through tokens of its own, with the bits of `forward`; all or none.

        In place of tokens there may be B arrays of embeddings.

        Returns
        -------
        (B, V) float32 for "last", None for "none", for the others a list of B arrays.
        """
        if tokens is not None and embeddings is None:
            inputs = [_input(one, None) for one in tokens]
        elif embeddings is not None and tokens is None:
            inputs = [_input(None, one) for one in embeddings]
        else:
            raise _one_of(tokens)
        kind = word(output, "output")
        rows = self._core.forward(inputs, [core_of(s) for s in states], kind, progress)
        if rows is None or output == "last":
            return rows
        return np.split(rows, np.cumsum([len(i) for i in inputs])[:-1]) if inputs else []

    def layer_outputs(
        self,
        tokens: Tokens | None = None,
        state: State | None = None,
        layers: Sequence[int] | None = None,
        progress: Progress | None = None,
        *,
        embeddings: Any = None,
    ) -> Array:
        """Step a state as `forward` does and return what layers leave of every token.

        Parameters
        ----------
        tokens, state, progress, embeddings
            As for `forward`; of a language model, the state has `last_logits` afterwards.
        layers : sequence of int, optional
            From 0 to L - 1, each once, in any order. By default all of them.

        Returns
        -------
        (len(layers), T, C) float32
            The residual stream behind each layer, before any norm.

        Examples
        --------
        >>> import rwkv_engine as rwkv
        >>> engine = rwkv.Engine("demo")
        >>> engine.layer_outputs([1, 2, 3], engine.new_state(), layers=[0, 2]).shape
        (2, 3, 128)
        """
        if layers is None:
            wanted = list(range(self._core.config.n_layer))
        else:
            last = self._core.config.n_layer - 1
            wanted = [integer(layer, "layers", 0, last) for layer in layers]
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        found = self._core.layer_outputs(
            _input(tokens, embeddings), core_of(state), [wanted[i] for i in order], progress
        )
        return found if order == list(range(len(order))) else found[np.argsort(order)]


def _input(tokens: Tokens | None, embeddings: Any) -> Any:
    """Return tokens as they are, for the core to check, or embeddings as a float32 array."""
    if (tokens is None) == (embeddings is None):
        raise _one_of(tokens)
    if embeddings is None:
        if isinstance(tokens, np.ndarray) and tokens.dtype.kind == "f":
            raise TypeError(
                "tokens: expected a sequence of integers, found an array of "
                f"{tokens.dtype}; embeddings= takes vectors"
            )
        return tokens
    vectors = np.asarray(embeddings)
    if vectors.dtype not in (np.float32, np.float16):
        raise TypeError(f"embeddings: expected float32 or float16, found {vectors.dtype}")
    return vectors.astype(np.float32, copy=False)


def _one_of(tokens: object) -> Error:
    found = "neither" if tokens is None else "both"
    return Error(f"expected either tokens or embeddings, found {found}")
