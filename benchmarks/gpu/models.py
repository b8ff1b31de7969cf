"""Random models for the benchmarks on a GPU, made in seconds: what a large one needs is drawn for two layers alone.

All further layers have the matrices of the second one, each with its rows begun elsewhere, so that no weight of the file
is another's copy in place. The zero fraction is set and measured by the definition on those two layers.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import struct

import numpy as np

import common

DRAWN_LAYERS, DRAWN_TOKENS = 2, 512  # of the embedding and the head, whose further rows repeat them


def write_model(path: pathlib.Path, shape: str, zeros: float, threads: int) -> float:
    """A safetensors file in bf16 of which about so many of the ffn's activations are zero; returns the measured fraction."""
    from random_model import random_model

    s = common.SHAPES[shape]
    drawn = random_model(L=DRAWN_LAYERS, C=s.C, N=64, V=min(s.V, DRAWN_TOKENS), ranks=s.ranks, dtype="bf16")
    fraction = common.set_zeros(drawn, zeros)
    stored = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in drawn.items()}  # they are bf16
    tensors: dict[str, tuple[np.ndarray, int, int]] = {}  # name -> (rows, the first of them, how many)
    for name, rows in stored.items():
        if name in ("emb.weight", "head.weight"):
            tensors[name] = (rows, 0, s.V)
        elif not name.startswith("blocks.1."):
            tensors[name] = (rows, 0, len(rows))
        else:
            for layer in range(1, s.L):
                begin = (layer - 1) * len(rows) // (s.L - 1) if rows.ndim == 2 and name.endswith("weight") else 0
                tensors[name.replace("blocks.1.", f"blocks.{layer}.")] = (rows, begin, len(rows))
    _write(path, tensors, threads)
    return fraction


def _write(path: pathlib.Path, tensors: dict[str, tuple[np.ndarray, int, int]], threads: int) -> None:
    header, at = {}, 0
    for name, (rows, _, count) in tensors.items():
        size = count * rows[0].nbytes
        header[name] = {"dtype": "BF16", "shape": [count, *rows.shape[1:]], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        os.truncate(file.fileno(), 8 + len(text) + at)

        def put(name: str) -> None:
            rows, row, left = tensors[name]
            place = 8 + len(text) + header[name]["data_offsets"][0]
            while left:
                piece = memoryview(np.ascontiguousarray(rows[row : row + left])).cast("B")
                left -= len(rows[row : row + left])
                row = 0
                while piece:
                    done = os.pwrite(file.fileno(), piece, place)
                    place, piece = place + done, piece[done:]

        list(pool.map(put, tensors))
