"""Arguments on their way into C++: nothing is rounded, wrapped or guessed."""

from __future__ import annotations

import operator
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import Error

Array: TypeAlias = NDArray[np.float32]
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress: TypeAlias = Callable[[int, int], object]
Tokens: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

DATA = pathlib.Path(__file__).resolve().parent / "data"
DEMO = "demo"


def path_bytes(path: Path, name: str) -> bytes:
    """Return a path as the bytes that the operating system knows it by."""
    try:
        return os.fsencode(path)
    except TypeError:
        raise TypeError(f"{name}: expected a path, found {type(path).__name__}") from None


def model_path(model: Path, progress: Progress | None = None) -> bytes:
    """Return the path of a model that may be called by its short name, or by one of the hub.

    A model of the hub that is not in the cache yet is downloaded; `progress` is told of that alone.
    """
    path = path_bytes(DATA / "demo-rwkv7-1.2M.pth" if model == DEMO else model, "model")
    if path.startswith(b"hf:"):
        from . import hub  # which uses this module

        return os.fsencode(hub.download(os.fsdecode(path), progress))
    return path


def model_name(model: Path) -> str:
    """Return what a model is called: its file without suffix, its folder or its repository."""
    name = os.fsdecode(model)
    if name.startswith("hf:") and name.count("/") == 1:
        return name.partition("/")[2].partition("@")[0]
    path = pathlib.Path(name)
    return path.resolve().name if path.is_dir() else path.stem


def integer(value: object, name: str, low: int, high: int) -> int:
    """Return `value` if it is an integer from `low` to `high`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}")
    number = operator.index(value)
    if not low <= number <= high:
        raise Error(f"{name}: expected an integer from {low} to {high}, found {number}")
    return number


def engine_options(
    strategy: object, threads: object, pin: object, sparse: object
) -> tuple[bytes, int, bool, bool | None]:
    """Return what an engine is opened with, as the core takes it."""
    if not isinstance(strategy, str):
        raise TypeError(f"strategy: expected str, found {type(strategy).__name__}")
    return (
        strategy.encode(errors="surrogatepass"),
        0 if threads is None else integer(threads, "threads", 1, 1024),
        boolean(pin, "pin"),
        None if sparse is None else boolean(sparse, "sparse"),
    )


def token_ids(ids: object, name: str, n_vocab: int) -> NDArray[np.int32]:
    """Return what are token ids of the vocabulary as an array."""
    try:
        return _core.token_ids(ids, n_vocab)  # type: ignore[arg-type]  # which it finds out
    except Error as error:
        raise Error(f"{name}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def real(value: object, name: str, low: float, high: float) -> float:
    """Return `value` if it is a number from `low` to `high`; NaN is none."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    number = float(value)
    if not low <= number <= high:
        raise Error(f"{name}: expected a number from {low:g} to {high:g}, found {number}")
    return number


def word(value: object, name: str) -> str:
    """Return `value` if it is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {type(value).__name__}")
    return value


def boolean(value: object, name: str) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, found {type(value).__name__}")
    return value
