"""Model files from one container into another."""

from __future__ import annotations

import os

from . import _core
from ._arguments import DEMO, Path, Progress, model_path, path_bytes
from .config import Config
from .errors import Error
from .text import Tokenizer, tokenizer_for

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def convert(
    source: Path,
    target: Path,
    type: str = "f16",
    *,
    tokenizer: Path | Tokenizer | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model as a GGUF file, which llama.cpp and what is built on it load.

    Parameters
    ----------
    source : path
        A model of any container that `Engine` opens, called as there.
    target : path
        The new file, which ends in ".gguf". An existing one is replaced only when the new one is
        complete.
    type : str
        What the large matrices become: "f32", "f16", "bf16", "q8_0" or "q4_0". Vectors and low-rank
        factors are kept as float32.
    tokenizer : path or Tokenizer, optional
        The vocabulary to write; as in `Engine` if not given. A model with an unknown one gets none.
    progress : callable, optional
        Called with the bytes written and the bytes in all.

    Raises
    ------
    ModelFormatError
        For a source that is no RWKV-7 model, or numbers that the type cannot hold.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import rwkv_engine as rwkv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "demo.gguf")
    ...     rwkv.convert("demo", path, "f32")
    ...     rwkv.Engine(path).fingerprint == rwkv.Engine("demo").fingerprint
    True
    """
    to = path_bytes(target, "target")
    if not to.endswith(b".gguf"):
        raise Error(f"target: expected a name that ends in .gguf, found {os.fsdecode(to)!r}")
    if type not in TYPES:
        raise Error(f"type: expected one of {' '.join(TYPES)}, found {type!r}")
    path = model_path(source)
    config = Config._of(_core.inspect(path)[1])
    try:
        words = tokenizer_for(source if source == DEMO else path, tokenizer, config.n_vocab)()
    except Error:
        if tokenizer is not None:
            raise
        tokens = []
    else:
        tokens = [words.decode_bytes([id]) for id in range(words.vocab_size)]
    _core.write_gguf(path, to, type, tokens, progress)
