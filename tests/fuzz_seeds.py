"""Writes small valid inputs for each fuzz target: python tests/fuzz_seeds.py FOLDER makes FOLDER/<target>/..."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "reference")]

import checkpoint_files
from random_model import random_model


def main():
    folder = pathlib.Path(sys.argv[1])
    checkpoints, vocabularies = folder / "checkpoint", folder / "vocab"
    for made in (checkpoints, vocabularies):
        made.mkdir(parents=True)

    weights = random_model(L=1, C=16, N=16, F=32, V=12, ranks=(3, 3, 3, 3))
    few = {name: weights[name] for name in ("emb.weight", "ln_out.weight", "blocks.0.att.r_k")}
    for name, tensors in (("model", weights), ("few", few)):
        for dtype in ("f32", "f16", "bf16"):
            checkpoint_files.write_pth(checkpoints / f"{name}-{dtype}.pth", tensors, dtype=dtype)
            path = checkpoints / f"{name}-{dtype}.safetensors"
            checkpoint_files.write_safetensors(path, tensors, dtype=dtype, metadata={"format": "pt"})

    data = TESTS.parent / "python" / "rwkv_engine" / "data"
    world = (data / "rwkv_vocab_v20230424.txt").read_bytes().splitlines(keepends=True)
    for name, lines in (("bytes", world[:256]), ("few", world[300:340]), ("long", world[-8:])):
        (vocabularies / name).write_bytes(b"".join(lines))
    (vocabularies / "crlf").write_bytes(b"".join(world[:20]).replace(b"\n", b"\r\n"))


if __name__ == "__main__":
    main()
