"""Random models for the benchmarks on a GPU, made in seconds: what a large one needs is drawn for two layers alone.

    python benchmarks/gpu/models.py FOLDER [--shapes 0.1B 1.5B 7.2B] [--zeros 88]

All further layers have the matrices of the second one, each with its rows begun elsewhere, so that no weight of a model
is another's copy in place. They are views of one storage, as torch saves them: the file of a model of 14 GB has 2.4. The
zero fraction is set and measured by the definition on those two layers, and kept beside the model.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
import zipfile

import numpy as np
import results  # noqa: F401 (first, as it finds common)

import common

DRAWN_LAYERS, DRAWN_TOKENS = 2, 512  # of the embedding and the head, whose further rows repeat them
PIECE = 64 << 20  # bytes to be written at a time


def model(folder: pathlib.Path, shape: str, zeros: float) -> tuple[pathlib.Path, float]:
    """A .pth in bf16 of which about so many of the ffn's activations are zero, made if it is not there, and the fraction."""
    path = folder / f"{shape}-{round(1000 * zeros)}.pth"
    measured = path.with_suffix(".json")
    if not measured.exists():
        fraction = write_model(path, shape, zeros)
        measured.write_text(json.dumps(fraction))
    return path, json.loads(measured.read_text())


def write_model(path: pathlib.Path, shape: str, zeros: float) -> float:
    """Returns the measured fraction. The file has its name when it is complete."""
    import checkpoint_files
    from random_model import random_model

    s = common.SHAPES[shape]
    drawn = random_model(L=DRAWN_LAYERS, C=s.C, N=64, V=min(s.V, DRAWN_TOKENS), ranks=s.ranks, dtype="bf16")
    fraction = common.set_zeros(drawn, zeros)
    items, storages = {}, []
    for name, tensor in drawn.items():
        numbers = (tensor.view(np.uint32) >> 16).astype(np.uint16)  # they are bf16
        rows, row = len(numbers), int(numbers[0].size)
        copies, layers = 1, {name: 0}  # of the rows in the storage; the first row of each tensor
        if name in ("emb.weight", "head.weight"):
            copies, rows = -(-s.V // rows), s.V
        elif name.startswith("blocks.1."):
            moves = numbers.ndim == 2 and name.endswith("weight")
            copies = 1 + moves
            layers = {
                name.replace("blocks.1.", f"blocks.{layer}."): (layer - 1) * rows // (s.L - 1) * moves
                for layer in range(1, s.L)
            }
        storage = checkpoint_files.storage("bf16", len(storages), copies * numbers.size)
        stride = [step // 2 for step in numbers.strides]
        for at, first in layers.items():
            items[at] = checkpoint_files.tensor(storage, first * row, (rows, *numbers.shape[1:]), stride)
        storages.append((numbers, copies))
    entries = checkpoint_files.pth_entries(checkpoint_files.pickled(checkpoint_files.state_dict(items)), storages)
    unfinished = path.with_name(f"unfinished-{os.getpid()}.pth")
    with zipfile.ZipFile(unfinished, "w") as file:
        for name, content in entries.items():
            with file.open(f"archive/{name}", "w") as entry:
                for piece in [content] if isinstance(content, bytes) else pieces(*content):
                    entry.write(piece)
    unfinished.rename(path)
    return fraction


def pieces(numbers: np.ndarray, copies: int):
    """The bytes of so many copies, one behind the other."""
    data = memoryview(np.ascontiguousarray(numbers)).cast("B")
    for _ in range(copies):
        for at in range(0, len(data), PIECE):
            yield data[at : at + PIECE]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shapes", nargs="+", choices=common.SHAPES, default=["0.1B", "1.5B", "7.2B"])
    parser.add_argument("--zeros", type=float, default=88, metavar="PERCENT", help="of ffn activations")
    a = parser.parse_args()
    for shape in a.shapes:
        begin = time.perf_counter()
        path, fraction = model(a.folder, shape, a.zeros / 100)
        made = f"made in {time.perf_counter() - begin:.1f} s, {path.stat().st_size / 1e9:.2f} GB"
        print(f"{shape}: {made}, {fraction:.1%} of the ffn's activations are zero", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
