"""One model, its states, and the calls that step them."""

from __future__ import annotations

from . import _core
from ._arguments import (
    DEMO,
    Path,
    Progress,
    engine_options,
    model_name,
    model_path,
)
from .adapters import Adapters, adapters_of
from .chat import Chat
from .config import Config
from .embedding import EmbeddingMixin
from .params import SamplingParams
from .scoring import ScoringMixin
from .state import State
from .templates import ChatTemplate
from .text import Tokenizer, tokenizer_for


class Engine(EmbeddingMixin, ScoringMixin):
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
        int4 (the head int8), "cuda P" or "cuda:1 P", "cuda P state16" to keep states' matrices as
        float16 there, or several as "cuda fp16 *10 -> cpu bf16" (the first 10 layers, the rest).
        "auto" keeps the file's precision, on a GPU if there is one.
    threads : int, optional
        1 to 1024; by default one for each core that this process may use.
    pin : bool, default False
        Keep each thread on a core of its own, the caller's excepted, to which one core is left.
    tokenizer : path or Tokenizer, optional
        A World vocabulary or a JSON file of `tokenizers`. By default the one in the model's GGUF
        file or folder; else, for 65,536 token ids, the World vocabulary.
    adapters : path, Adapter or sequence of them, optional
        What to merge into the weights, in this order and in float32, before they are rounded to the
        strategy's precision; `Adapter` says which kinds. The fingerprint is that of the result.
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
        adapters: Adapters = None,
        progress: Progress | None = None,
        sparse: bool | None = None,
    ) -> None:
        options = engine_options(strategy, threads, pin, sparse)
        path = model_path(model, progress)
        self._core = _core.Engine.open(path, *options, adapters_of(adapters), progress)
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
