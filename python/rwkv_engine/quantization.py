"""Models whose matrices are quantised and packed once, to start in next to no time."""

from __future__ import annotations

import os

from . import _core
from ._arguments import Path, Progress, model_path, path_bytes
from .adapters import Adapters, adapters_of
from .conversion import check_free
from .errors import Error

PRECISIONS = ("int8", "int4", "fp16", "bf16", "fp32")


def quantize(
    source: Path,
    target: Path,
    precision: str,
    *,
    adapters: Adapters = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model as a file that opens at once, with its large matrices as the CPU wants them.

    An engine on that file computes what ``Engine(source, "cpu int8")`` computes with that strategy,
    bit for bit; "auto" takes the same precision, on a GPU if there is one. A GPU turns the matrices
    while it reads them and has the bits of ``Engine(source, "cuda int8")``; there fp16i8 and bf16i8
    are int8 too. Other precisions are refused, and so is `convert`. The file's fingerprint is that
    of the source, so states go from one to the other.

    Parameters
    ----------
    source : path
        A model of any container that `Engine` opens, called as there.
    target : path
        The new file, whose name ends in ".safetensors"; it appears when it is complete.
    precision : str
        "int8" or "int4"; or "fp16", "bf16" or "fp32", which save the time of loading and no memory.
    adapters : path, Adapter or sequence of them, optional
        What to merge into the weights first, as in `Engine`.
    overwrite : bool
        Replace a target that exists. The source itself is never written to.
    progress : callable, optional
        Called as ``progress(done, total)`` with a measure of the work; what it raises ends it.

    Raises
    ------
    ModelFormatError
        For a source that is no model, or that was quantised before.

    Notes
    -----
    Matrices and the embedding table may stay in the file while an engine is open: whoever cuts it
    short meanwhile ends the process. To replace it, write a new file over its name, as this does.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import rwkv_engine as rwkv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "demo-int8.safetensors")
    ...     rwkv.quantize("demo", path, "int8")
    ...     rwkv.Engine(path).fingerprint == rwkv.Engine("demo").fingerprint
    True
    """
    to = path_bytes(target, "target")
    if not to.endswith(b".safetensors"):
        raise Error(f"target: expected a name that ends in .safetensors, found {os.fsdecode(to)!r}")
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise Error(f"precision: expected one of {expected}, found {precision!r}")
    path = model_path(source)
    check_free(to, path, "target", overwrite)
    _core.write_packed(path, adapters_of(adapters), to, precision, progress)
