"""Model files from one container into another."""

from __future__ import annotations

import os
import pathlib

from . import _core
from ._arguments import DEMO, Path, Progress, model_path, path_bytes
from ._modelfile import modelfile as modelfile_text
from .adapters import Adapters, adapters_of
from .config import Config
from .errors import Error
from .templates import ChatTemplate, template_of
from .text import Tokenizer, tokenizer_for

TYPES = {
    ".gguf": ("f32", "f16", "bf16", "q8_0", "q4_0"),
    ".safetensors": ("f32", "f16", "bf16"),
}


def convert(
    source: Path,
    target: Path,
    type: str | None = None,
    *,
    adapters: Adapters = None,
    tokenizer: Path | Tokenizer | None = None,
    modelfile: bool = False,
    template: ChatTemplate | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model as a safetensors file, or as a GGUF file for llama.cpp and what is built on it.

    Parameters
    ----------
    source : path
        A model of any container that `Engine` opens, called as there.
    target : path
        The new file, which appears when it is complete. Its name ends in ".safetensors", for every
        version of RWKV under the official names, or in ".gguf", for RWKV-6 and 7.
    type : str, optional
        In safetensors files what every tensor becomes: "f32", "f16" or "bf16"; as in the source if
        not given, quantised tensors as "f32". In GGUF files what the large matrices become: "f32",
        "f16" (the default), "bf16", "q8_0" or "q4_0"; vectors and low-rank factors are kept as
        float32. Numbers are rounded to nearest even.
    adapters : path, Adapter or sequence of them, optional
        What to merge into the weights, as in `Engine`; matrices that it changes count as "f32".
    tokenizer : path or Tokenizer, optional
        The vocabulary for a GGUF file, in the World format; as in `Engine` if not given. A model
        with an unknown one, or one of byte-level BPE, gets none.
    modelfile : bool
        Write a Modelfile for Ollama beside "name.gguf", as "name.Modelfile".
    template : str, path or ChatTemplate, optional
        How it has conversations written down; as in `Chat` if not given.
    overwrite : bool
        Replace a target that exists. The source itself is never written to.
    progress : callable, optional
        Called with the bytes written and the bytes in all.

    Raises
    ------
    ModelFormatError
        For a source that is no model, a version that the container is not for, or a number that
        the type cannot hold, naming the tensor.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import rwkv_engine as rwkv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "demo.safetensors")
    ...     rwkv.convert("demo", path)
    ...     rwkv.Engine(path).fingerprint == rwkv.Engine("demo").fingerprint
    True

    For Ollama, then ``ollama create my-demo -f demo.Modelfile``:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rwkv.convert("demo", pathlib.Path(folder, "demo.gguf"), "q8_0", modelfile=True)
    ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
    ['demo.Modelfile', 'demo.gguf']
    """
    to = path_bytes(target, "target")
    suffix = _suffix_of(to, type)
    merged = adapters_of(adapters)
    path = model_path(source)
    check_free(to, path, "target", overwrite)
    if suffix == ".safetensors":
        for name, given in {"tokenizer": tokenizer, "modelfile": modelfile or None}.items():
            if given is not None:
                raise Error(
                    f"{name}: expected a target that ends in .gguf, found {os.fsdecode(to)!r}"
                )
        _core.write_safetensors(path, merged, to, type or "", progress)
        return

    beside = to.removesuffix(b".gguf") + b".Modelfile"
    text = ""
    if modelfile:
        check_free(beside, path, "modelfile", overwrite)
        origin = pathlib.Path(os.fsdecode(path))
        name = origin.resolve().name if origin.is_dir() else origin.stem
        text = modelfile_text(pathlib.Path(os.fsdecode(to)).name, template_of(template, name))
    config = Config._of(_core.inspect(path, merged)[1])
    tokens = _tokens(source if source == DEMO else path, tokenizer, config.n_vocab)
    _core.write_gguf(path, merged, to, type or "f16", tokens, progress)
    if text:
        _core.write_file(beside, text.encode())


def _tokens(source: Path, tokenizer: Path | Tokenizer | None, n_vocab: int) -> list[bytes]:
    """Return the bytes of every id, or nothing for a vocabulary that is not known."""
    opened = tokenizer_for(source, tokenizer, n_vocab)
    try:
        words = opened()
    except Error:  # none was given, and the model has none
        return []
    if words._bpe is not None:  # of which a GGUF file of RWKV could hold the words, not the merges
        if tokenizer is not None:
            raise Error(
                "tokenizer: expected a World vocabulary, found a byte-level BPE one, which GGUF "
                "files of RWKV cannot hold"
            )
        return []
    return [words.decode_bytes([id]) for id in range(words.vocab_size)]


def _suffix_of(target: bytes, type: str | None) -> str:
    name = os.fsdecode(target)
    for suffix, types in TYPES.items():
        if name.endswith(suffix):
            if type is not None and type not in types:
                expected = ", ".join(types)
                raise Error(f"type: expected one of {expected} in a {suffix} file, found {type!r}")
            return suffix
    raise Error(f"target: expected a name that ends in {' or '.join(TYPES)}, found {name!r}")


def check_free(target: bytes, source: bytes, what: str, overwrite: bool) -> None:
    """Raise Error if a new file may not be written there."""
    name = os.fsdecode(target)
    place, origin = pathlib.Path(name), pathlib.Path(os.fsdecode(source))
    if place.is_dir():
        raise Error(f"{what}: expected the path of a file, found the folder {name!r}")
    if place.exists() and origin.exists() and place.samefile(origin):
        raise Error(f"{what}: expected another file than the source, found {name!r}")
    if place.exists() and origin.is_dir() and origin.resolve() in place.resolve().parents:
        raise Error(f"{what}: expected a file outside the source, found {name!r} in its folder")
    if os.path.lexists(target) and not overwrite:
        raise Error(f"{what}: expected a new file, found {name!r} (overwrite replaces it)")
