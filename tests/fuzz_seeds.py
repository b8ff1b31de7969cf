"""Writes small valid inputs for each fuzz target: python tests/fuzz_seeds.py FOLDER makes FOLDER/<target>/..."""

import json
import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "reference")]

import checkpoint_files
import container_files
import gguf_files
import numpy as np
from pooling import embedding_model
from random_model import random_model


# The tensors of RWKV-6 that are put together from parts.
FLA6 = {
    "model.embeddings.weight": np.ones((12, 16), np.float32),
    "model.layers.0.attn.x_proj.0.linear.weight": np.ones((15, 16), np.float32),
    "model.layers.0.attn.x_proj.2.weight": np.ones((16, 15), np.float32),
    "model.layers.0.attn.x_bias": np.ones((5, 16), np.float32),
}


def main():
    folder = pathlib.Path(sys.argv[1])
    checkpoints, vocabularies, ggufs = folder / "checkpoint", folder / "vocab", folder / "gguf"
    for made in (checkpoints, vocabularies, ggufs):
        made.mkdir(parents=True)

    weights = random_model(L=1, C=16, N=16, F=32, V=12, ranks=(3, 3, 3, 3))
    few = {name: weights[name] for name in ("emb.weight", "ln_out.weight", "blocks.0.att.r_k")}
    for name, tensors in (("model", weights), ("few", few)):
        for dtype in ("f32", "f16", "bf16"):
            checkpoint_files.write_pth(checkpoints / f"{name}-{dtype}.pth", tensors, dtype=dtype)
            path = checkpoints / f"{name}-{dtype}.safetensors"
            checkpoint_files.write_safetensors(
                path, tensors, dtype=dtype, metadata={"format": "pt"}
            )

    for name, converted in (
        ("fla", container_files.to_fla7(weights)),
        ("rwkv-rs", container_files.to_rwkv_rs(few)),
        ("st", container_files.to_st(weights)),
        ("wrapped", {"model._orig_mod." + name: t for name, t in few.items()}),
        ("fla6", FLA6),
        ("embedding", embedding_model(weights)),
    ):
        checkpoint_files.write_safetensors(checkpoints / f"{name}.safetensors", converted, "f16")

    matrix = {"head.weight": {"format": "fp32", "shape": [12, 16]}}
    said = {"layout": 1, "precision": "fp32", "small": "fp32", "matrices": matrix}
    packed = {"rwkv_fingerprint": "0" * 64, "rwkv_packed": json.dumps(said)}
    checkpoint_files.write_safetensors(
        checkpoints / "packed.safetensors",
        {"head.weight": np.zeros(32 * 16 * 4, np.uint8), **few},
        metadata=packed,
    )

    values = gguf_files.rwkv7_values(weights) | gguf_files.vocabulary(
        [b"<s>", b"a", b"\xff\n'"], [3, 1, 1]
    )
    gguf_files.write_gguf(ggufs / "model", values, gguf_files.rwkv7_tensors(weights))
    values |= {"general.alignment": 8, "a": ("array", ("array", [("u8", [1]), ("str", ["b"])]))}
    for kind, (_, elements, size) in gguf_files.TYPES.items():
        data = np.random.default_rng(0).bytes(12 * size)
        tensor = gguf_files.Raw(kind, (6, 2 * elements), data)
        named = {"output.weight": tensor, "blk.1.time_mix_w1.weight": tensor}
        gguf_files.write_gguf(ggufs / kind, values, named, alignment=8)

    data = TESTS.parent / "python" / "rwkv_engine" / "data"
    world = (data / "rwkv_vocab_v20230424.txt").read_bytes().splitlines(keepends=True)
    for name, lines in (("bytes", world[:256]), ("few", world[300:340]), ("long", world[-8:])):
        (vocabularies / name).write_bytes(b"".join(lines))
    (vocabularies / "crlf").write_bytes(b"".join(world[:20]).replace(b"\n", b"\r\n"))


if __name__ == "__main__":
    main()
