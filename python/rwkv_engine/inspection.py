"""What is in a model file, read from its headers alone."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from dataclasses import asdict
from typing import Any

from . import _core
from ._arguments import Path, model_path
from .adapters import Adapters, adapters_of
from .config import Config
from .errors import StateError

_STATE = b'{"__metadata__":{"digest":"'  # how the header of a saved state begins
_MAX_HEADER = 1 << 20

_STRATEGIES = ("cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4")
_TUNED = ".att.time_state"
_TASK_HEAD = re.compile(r"head\.\w+_head\.")
_LARGE = re.compile(
    r"head\.weight|blocks\.\d+\.(att|ffn)\.(receptance|key|value|gate|output)\.weight"
)


def inspect(model: Path, tensors: bool = False, adapters: Adapters = None) -> dict[str, Any]:
    """Return what the command ``rwkv-engine inspect`` shows, as plain values.

    Examples
    --------
    >>> from rwkv_engine.inspection import inspect
    >>> found = inspect("demo")
    >>> found["version"], found["n_layer"] * found["n_embd"] > 0
    ('7', True)
    """
    path = model_path(model)
    container, core, state_bytes, listed, precision = _core.inspect(path, adapters_of(adapters))
    config = Config._of(core)
    kinds = {
        dtype
        for name, dtype, shape, _, _, packed in listed
        if _is_matrix(shape) and not packed and not name.endswith(_TUNED)
    }
    native = 2 if kinds in ({"f16"}, {"bf16"}) else 4
    found: dict[str, Any] = {
        "path": os.fsdecode(path),
        "container": container,
        "packed": precision or None,
        **asdict(config),
        "parameters": sum(math.prod(shape) for _, _, shape, _, _, _ in listed),
        "bytes": sum(size for _, _, _, size, _, _ in listed),
        "state_bytes": state_bytes,
        "tuned_state": any(name.endswith(_TUNED) for name, *_ in listed),
        "memory_bytes": {
            strategy: sum(
                _bytes_in_memory(name, shape, element, strategy, native, not precision)
                for name, _, shape, _, element, _ in listed
            )
            for strategy in ([f"cpu {precision}"] if precision else _STRATEGIES)
        },
    }
    if tensors:
        found["tensors"] = [
            {"name": name, "dtype": dtype, "shape": list(shape), "bytes": size}
            for name, dtype, shape, size, _, _ in listed
        ]
    return found


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) > 1


def _bytes_in_memory(
    name: str, shape: tuple[int, ...], element: int, strategy: str, native: int, twice: bool
) -> int:
    count = math.prod(shape)
    if name == "emb.weight":
        return count * element
    if name.endswith(".s_emb.weight"):  # stays in the file
        return 0
    if not _is_matrix(shape) or name.endswith(_TUNED) or _TASK_HEAD.match(name):
        return count * 4
    if twice and name.endswith(".ffn.value.weight") and strategy != "cpu int4":
        count *= 2  # kept twice, to skip zeros
    if strategy in ("cpu int8", "cpu int4"):
        if not _LARGE.fullmatch(name):
            return count * native
        group = 34 if strategy == "cpu int4" and name != "head.weight" else 66  # 64 and a scale
        return count // shape[-1] * -(-shape[-1] // 64) * group
    return count * (4 if strategy == "cpu fp32" else 2)


def report(found: dict[str, Any]) -> str:
    """Return it as text."""
    kind = f", {found['kind']}" if found["kind"] != "language model" else ""
    heads = "heads {n_head} of {head_size}, " if found["n_head"] else ""
    sizes = (
        f"layers {{n_layer}}, embedding {{n_embd}}, {heads}ffn {{n_ffn}}, vocabulary {{n_vocab}}"
    )
    packed = f", packed as {found['packed']}" if found["packed"] else ""
    lines = [
        f"{_printable(found['path'])}: RWKV-{found['version']}{kind}, {found['container']}{packed}",
        sizes.format(**found),
        f"parameters {found['parameters']:,}, {_megabytes(found['bytes'])} in the file",
        f"one state {_megabytes(found['state_bytes'])}"
        + (", beginning with a tuned one" if found["tuned_state"] else ""),
    ]
    how = "maps" if found["packed"] else "needs"
    lines += [
        f'"{strategy}" {how} about {_megabytes(count)} for the weights'
        for strategy, count in found["memory_bytes"].items()
    ]
    for tensor in found.get("tensors", []):
        shape = ", ".join(map(str, tensor["shape"]))
        lines.append(f"{_printable(tensor['name'])}  {tensor['dtype']}  ({shape})")
    return "\n".join(lines)


def is_state(path: Path) -> bool:
    """Tell whether a file begins as a saved state does."""
    place = pathlib.Path(os.fsdecode(path))
    try:
        if not place.is_file():  # a pipe could keep its reader waiting
            return False
        with place.open("rb") as file:
            return file.read(8 + len(_STATE))[8:] == _STATE
    except OSError:
        return False  # whoever reads it as a model says why


def inspect_state(path: Path) -> dict[str, Any]:
    """Return what the header of a saved state says; only loading it checks the digest."""
    name = os.fsdecode(path)
    with pathlib.Path(name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, _MAX_HEADER))
        size = file.seek(0, os.SEEK_END)
    try:
        header = json.loads(text)
        said = {str(key): str(value) for key, value in header.pop("__metadata__").items()}
        tensors = [
            {"name": key, "dtype": str(value["dtype"]), "shape": list(map(int, value["shape"]))}
            for key, value in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StateError(f"{name}: expected the header of a saved state, found damage") from None
    return {"path": name, "bytes": size, "metadata": said, "tensors": tensors}


def report_state(found: dict[str, Any]) -> str:
    """Return it as text."""
    said = found["metadata"]
    lines = [
        f"{_printable(found['path'])}: a saved state, {_megabytes(found['bytes'])}",
        "RWKV-{}, after {} tokens".format(
            *(_printable(said.get(key, "?")) for key in ("model_version", "tokens_seen"))
        ),
    ]
    lines += [f"{_printable(key)}: {_printable(value)}" for key, value in said.items()]
    lines += [
        f"{_printable(t['name'])}  {_printable(t['dtype'])}  ({', '.join(map(str, t['shape']))})"
        for t in found["tensors"]
    ]
    return "\n".join(lines)


def _printable(name: str) -> str:
    """Return a name out of a file so that it can do nothing to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
