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

    adapters = folder / "adapter"
    adapters.mkdir()
    ones = {
        name: np.ones(shape, np.float32)
        for name, shape in {
            "lora_A": (2, 16), "lora_B": (16, 2), "disha": (4, 16), "bat.disha": (4, 4, 4),
            "emb.lora_embedding_A": (2, 12), "emb.lora_embedding_B": (16, 2),
        }.items()
    }  # fmt: skip
    key = "blocks.0.att.key."
    lora = {key + "lora_A": ones["lora_A"], key + "lora_B": ones["lora_B"]}
    table = {name: t for name, t in ones.items() if name.startswith("emb")}
    full = {"blocks.0.ln1.weight": np.ones(16), "blocks.0.att.time_state": np.ones((2, 8, 8))}
    for name, tensors in {
        "lora": lora,
        "peft": {f"base_model.model.{name}.weight": t for name, t in lora.items()} | table,
        "miss": {key + "disha": ones["disha"], "blocks.0.att.value.miss_block": ones["bat.disha"]},
        "bat": {key + "bone": ones["bat.disha"]},
        "full": lora | full,
        "state": {name: t for name, t in full.items() if name.endswith("state")},
    }.items():
        checkpoint_files.write_pth(adapters / f"{name}.pth", tensors, "f32")
        checkpoint_files.write_safetensors(adapters / f"{name}.safetensors", tensors, "bf16")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.5, "use_rslora": True, "mini_r": 1}
    config |= {"rank_pattern": {"att.key": 2}, "alpha_pattern": {"^key": 8}, "use_dora": False}
    (adapters / "config.json").write_text(json.dumps(config | {"init_lora_weights": "eva"}))
    write_states(folder / "state", folder / "list")

    data = TESTS.parent / "python" / "rwkv_engine" / "data"
    world = (data / "rwkv_vocab_v20230424.txt").read_bytes().splitlines(keepends=True)
    for name, lines in (("bytes", world[:256]), ("few", world[300:340]), ("long", world[-8:])):
        (vocabularies / name).write_bytes(b"".join(lines))
    (vocabularies / "crlf").write_bytes(b"".join(world[:20]).replace(b"\n", b"\r\n"))


def write_states(states, lists):
    """Saved states, whose digests the target makes right, and lists of arrays as the `rwkv` package has them."""
    states.mkdir()
    lists.mkdir()
    said = {"digest": "0" * 64, "format": "rwkv-state 1", "fingerprint": "1" * 64, "model_version": "7", "n_layer": "2"}
    said |= {"n_embd": "16", "n_head": "2", "head_size": "8", "n_vocab": "12", "tokens_seen": "7", "last_token": "3"}
    shift = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    wkv = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 2, 8, 8)
    parts = {"att.shift": shift, "att.wkv": wkv, "ffn.shift": shift}
    halves = {**said, "format": "rwkv-state 2"}
    checkpoint_files.write_safetensors(states / "fp32", parts, "f32", said)
    checkpoint_files.write_safetensors(states / "fp16", parts, "f16", halves)
    text = {"sampler_seed": "5", "sampler_style": "rwkv", "sampler_pending": "e4b8", "sampler_tail": "ab"}
    logits = {"last_logits": wkv[0, 0].ravel()[:12]}
    checkpoint_files.write_safetensors(states / "text", {**parts, **logits}, "f32", {**said, **text})
    four = {**said, "model_version": "4", "n_head": "0", "head_size": "0"}
    names = ("att.shift", "att.aa", "att.bb", "att.pp", "ffn.shift")
    checkpoint_files.write_safetensors(states / "four", dict.fromkeys(names, shift), "f32", four)

    items = [array[layer] for layer in range(2) for array in parts.values()]
    for name, options in (("f32", {}), ("f16", {"dtype": "f16"}), ("tuple", {"as_tuple": True}), ("views", {"views": True})):
        checkpoint_files.write_list(lists / name, items, **options)
    checkpoint_files.write_list(lists / "none", items, extra=[None, 1.5, []])


if __name__ == "__main__":
    main()
