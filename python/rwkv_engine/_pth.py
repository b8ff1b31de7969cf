"""A list of tensors as ``torch.save`` writes it, without torch.

It is a zip archive of stored entries: data.pkl, a pickle that builds the list of storages, and
beside it the storages, data/0, data/1 and so on, each at a multiple of 64 bytes so that it can be
mapped.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence

import numpy as np

from ._arguments import Array

_ROOT = "archive"
_ALIGNMENT = 64


def pth_of_list(arrays: Sequence[Array]) -> bytes:
    """Return a .pth of float32 arrays; the same arrays give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
            # The data begin behind 30 bytes, the name and this field, which takes up the rest.
            rest = -(file.tell() + 30 + len(entry.filename) + 4) % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", rest) + b"Z" * rest
            archive.writestr(entry, data)

        add("data.pkl", _pickle([array.shape for array in arrays]))
        add("byteorder", b"little")
        for i, array in enumerate(arrays):
            add(f"data/{i}", np.ascontiguousarray(array, "<f4").tobytes())
        add("version", b"3\n")
    return file.getvalue()


def _pickle(shapes: Sequence[tuple[int, ...]]) -> bytes:
    """Return protocol 2 of a list of dense tensors, each the whole of its storage."""
    return b"\x80\x02](" + b"".join(map(_tensor, range(len(shapes)), shapes)) + b"e."


def _tensor(storage: int, shape: tuple[int, ...]) -> bytes:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    count = strides[0] * shape[0] if shape else 1
    place = _tuple(
        _text("storage"),
        b"ctorch\nFloatStorage\n",
        _text(str(storage)),
        _text("cpu"),
        _integer(count),
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + _tuple(
            place + b"Q",
            _integer(0),
            _tuple(*map(_integer, shape)),
            _tuple(*map(_integer, strides[: len(shape)])),
            b"\x89",  # requires_grad=False
            b"ccollections\nOrderedDict\n)R",  # no backward hooks
        )
        + b"R"
    )


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode("ascii")


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
