"""One model, its states, and the calls that step them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core
from ._arguments import (
    DEMO,
    Path,
    Progress,
    Tokens,
    engine_options,
    model_name,
    model_path,
)
from .chat import Chat
from .config import Config
from .device import DeviceArray
from .params import SamplingParams
from .restore import RestoreMixin
from .scoring import ScoringMixin
from .state import State, core_of
from .templates import ChatTemplate
from .text import Tokenizer, tokenizer_for


class Engine(ScoringMixin, RestoreMixin):
    """One model, ready to run.

    Calls from several threads are served one after the other while the interpreter goes on; Ctrl-C
    ends a long call. After ``os.fork()`` the child must open an engine of its own.

    Parameters
    ----------
    model : path, "hf:owner/repo/file" or "demo"
        A .pth, safetensors or GGUF file, or the folder of a Hugging Face model; one of the hub,
        downloaded once (`rwkv_engine.hub.download` says how); or the package's own small model.
    strategy : str, default "auto"
        Where layers run and how matrices are stored: "cpu P", P one of fp32, fp16, bf16, int8 and
        int4 (the head int8), "cuda P" or "cuda:1 P", or several as "cuda fp16 *10 -> cpu bf16" (the
        first 10 layers, the rest). "auto" keeps the file's precision, on a GPU if there is one.
    threads : int, optional
        1 to 1024; by default one for each core that this process may use.
    pin : bool, default False
        Keep each thread on a core of its own, the caller's excepted, to which one core is left.
    tokenizer : path or Tokenizer, optional
        A World vocabulary or a JSON file of `tokenizers`. By default the one in the model's GGUF
        file or folder; else, for 65,536 token ids, the World vocabulary.
    progress : callable, optional
        Called as ``progress(bytes_read, bytes_total)``, first of a download; raising ends it.
    sparse : bool, optional
        Whether single tokens skip the weights of zeros in the channel mix; no bit changes. It keeps
        a quarter of the model twice. By default where it pays, but not in files of `quantize`.

    Raises
    ------
    Error
        Or one of its kinds, for a file, strategy or device that cannot be used.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> engine = rwkv.Engine("demo", "cpu fp32", threads=2)
    >>> engine.config.version, engine.config.n_vocab
    ('7', 1024)
    """

    __slots__ = ("_config", "_core", "_name", "_tokenizer")

    def __init__(
        self,
        model: Path,
        strategy: str = "auto",
        *,
        threads: int | None = None,
        pin: bool = False,
        tokenizer: Path | Tokenizer | None = None,
        progress: Progress | None = None,
        sparse: bool | None = None,
    ) -> None:
        options = engine_options(strategy, threads, pin, sparse)
        path = model_path(model, progress)
        self._core = _core.Engine.open(path, *options, progress)
        self._name = model_name(model)
        self._config = config = Config._of(self._core.config)
        self._tokenizer = tokenizer_for(DEMO if model == DEMO else path, tokenizer, config.n_vocab)

    @property
    def name(self) -> str:
        """The name of the model's file without folder and suffix, its folder or repository."""
        return self._name

    @property
    def config(self) -> Config:
        """The numbers of the model."""
        return self._config

    @property
    def fingerprint(self) -> str:
        """64 hex digits that name the weights, whatever the strategy and the container."""
        return self._core.fingerprint

    @property
    def description(self) -> str:
        """Where the model runs, such as "cpu avx2, 2 threads"."""
        return self._core.description

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary. Raises Error if none was given and none is known for the model."""
        return self._tokenizer()

    def new_state(self) -> State:
        """Return the state before any token."""
        return State(self._core.new_state())

    def forward(
        self,
        tokens: Tokens,
        state: State,
        output: str = "last",
        progress: Progress | None = None,
        device: bool = False,
    ) -> Any:
        """Step a state in place through T >= 1 tokens, sequence or array of ids from 0 to V - 1.

        Results and state have the same bits however a text is split into calls. A call that fails
        leaves the state as it was; ``progress(tokens_done, T)`` may make it fail by raising.

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
        if device:
            return DeviceArray(
                self._core.forward_on_device([tokens], [core_of(state)], output, progress)
            )
        rows = self._core.forward([tokens], [core_of(state)], output, progress)
        return rows[0] if rows is not None and output == "last" else rows

    def forward_batch(
        self,
        tokens: Sequence[Tokens],
        states: Sequence[State],
        output: str = "last",
        progress: Progress | None = None,
    ) -> Any:
        """Step B states, each through tokens of its own, with the bits of `forward`; all or none.

        Returns
        -------
        (B, V) float32 for "last", None for "none", for the others a list of B arrays.
        """
        sequences = list(tokens)
        rows = self._core.forward(sequences, [core_of(s) for s in states], output, progress)
        if rows is None or output == "last":
            return rows
        return np.split(rows, np.cumsum([len(s) for s in sequences])[:-1]) if sequences else []

    def chat(
        self,
        template: ChatTemplate | Path | None = None,
        *,
        system: str | None = None,
        think: str | None = None,
        params: SamplingParams | None = None,
        state: State | None = None,
    ) -> Chat:
        """Begin a conversation; `Chat` has the parameters and an example."""
        return Chat(self, template, system=system, think=think, params=params, state=state)

    def __repr__(self) -> str:
        return f"<Engine RWKV-{self._config.version} on {self.description}>"
