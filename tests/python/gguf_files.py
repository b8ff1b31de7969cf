"""GGUF files for tests, by the format's own rules: whole models in llama.cpp's names, and damaged relatives of them.

>>> write_gguf("a.gguf", {"general.architecture": "rwkv7"}, {"token_embd.weight": array})
"""

import re
import struct

import numpy as np
from checkpoint_files import to_bf16

# name -> (number in the file, elements of a block, bytes of a block)
TYPES = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "bf16": (30, 1, 2),
}
VALUES = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "array": 9,
}
VALUES |= {"u64": 10, "i64": 11, "f64": 12}
_FORMATS = dict(
    zip(VALUES, ["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<B", "", "", "<Q", "<q", "<d"])
)


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind, payload):
    """A typed value without its type: value("u32", 5), value("array", ("str", ["a", "b"]))."""
    if kind == "str":
        return string(payload)
    if kind == "array":
        inner, items = payload
        return struct.pack("<IQ", VALUES[inner], len(items)) + b"".join(
            value(inner, item) for item in items
        )
    return struct.pack(_FORMATS[kind], payload)


def typed(payload):
    """What the usual Python values are stored as; a tuple says its type itself."""
    if isinstance(payload, tuple):
        return payload
    if isinstance(payload, bool):
        return "bool", payload
    if isinstance(payload, (str, bytes)):
        return "str", payload
    return ("u32", payload) if isinstance(payload, int) else ("f32", payload)


class Raw:
    """A tensor's bytes as they are, for a type and a shape that they need not fit."""

    def __init__(self, kind, shape, data):
        self.kind, self.shape, self.data = kind, tuple(shape), bytes(data)


def stored(array, kind):
    array = np.ascontiguousarray(array, np.float32)
    if kind == "bf16":
        return Raw(kind, array.shape, to_bf16(array).tobytes())
    return Raw(kind, array.shape, array.astype({"f32": "<f4", "f16": "<f2"}[kind]).tobytes())


def gguf_bytes(values, tensors, *, version=3, alignment=32, counts=None, describe=None):
    """The bytes of a file. `values` is a dict or a list of pairs; `tensors` maps names to arrays (stored as f32) or Raw.

    counts : (tensors, key-values) in place of the true ones.
    describe : f(name, fields) may change a tensor's "shape" (file order), "type" and "offset".
    """
    pairs = list(values.items()) if isinstance(values, dict) else list(values)
    named = list(tensors.items()) if isinstance(tensors, dict) else list(tensors)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(named), len(pairs)))))
    for key, payload in pairs:
        kind, payload = typed(payload)
        out += string(key) + struct.pack("<I", VALUES[kind]) + value(kind, payload)
    data = bytearray()
    for name, tensor in named:
        tensor = tensor if isinstance(tensor, Raw) else stored(tensor, "f32")
        data += bytes(-len(data) % alignment)
        fields = {"shape": tensor.shape[::-1], "type": TYPES[tensor.kind][0], "offset": len(data)}
        if describe:
            describe(name, fields)
        data += tensor.data
        shape = fields["shape"]
        out += string(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", n % 2**64) for n in shape)
        out += struct.pack("<IQ", fields["type"], fields["offset"])
    return bytes(out + bytes(-len(out) % alignment) + data)


def write_gguf(path, values, tensors, **options):
    path.write_bytes(gguf_bytes(values, tensors, **options))
    return path


# ---- models ----

_COMMON = {
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "attn_norm_2.weight",
    "ln2.bias": "attn_norm_2.bias",
    "att.ln_x.weight": "time_mix_ln.weight",
    "att.ln_x.bias": "time_mix_ln.bias",
    "ffn.x_k": "channel_mix_lerp_k.weight",
    "ffn.key.weight": "channel_mix_key.weight",
    "ffn.value.weight": "channel_mix_value.weight",
}
_OUTSIDE = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}


def rwkv7_tensors(weights):
    """An official RWKV-7 checkpoint's arrays as llama.cpp names and lays them out."""
    out = {}
    for name, array in weights.items():
        if name in _OUTSIDE:
            out[_OUTSIDE[name]] = array
            continue
        block, inner = re.fullmatch(r"blocks\.(\d+)\.(.+)", name).groups()
        blk = f"blk.{block}."
        if inner in _COMMON:
            out[blk + _COMMON[inner]] = array.reshape(array.shape if array.ndim == 2 else -1)
        elif inner == "att.x_r":
            lerps = [
                weights[f"blocks.{block}.att.x_{letter}"].reshape(1, 1, -1) for letter in "rwkvag"
            ]
            out[blk + "time_mix_lerp_fused.weight"] = np.stack(lerps)
        elif inner.startswith("att.x_"):
            continue
        elif block == "0" and re.fullmatch(r"att\.v[012]", inner):
            continue
        else:
            part = inner.removeprefix("att.").removesuffix(".weight")
            turned = array.T if re.fullmatch(r"[wavg][12]", part) else array
            if part == "r_k" or array.ndim == 3:
                turned = array.reshape(-1)
            out[f"{blk}time_mix_{part}.weight"] = turned
            if block == "0" and re.fullmatch(r"a[012]", part):
                out[f"{blk}time_mix_{part.replace('a', 'v')}.weight"] = turned
    return out


def rwkv7_values(weights, **more):
    heads, size = weights["blocks.0.att.r_k"].shape
    return {
        "general.architecture": "rwkv7",
        "general.name": "test",
        "rwkv7.embedding_length": heads * size,
        "rwkv7.block_count": sum(name.endswith(".att.r_k") for name in weights),
        "rwkv7.attention.layer_norm_epsilon": 1e-5,
        "rwkv7.wkv.head_size": size,
        **more,
    }


_SIX = {
    "att.time_maa_x": "time_mix_lerp_x.weight",
    "att.time_faaaa": "time_mix_first.weight",
    "att.time_decay": "time_mix_decay.weight",
    "ffn.time_maa_k": "channel_mix_lerp_k.weight",
    "ffn.time_maa_r": "channel_mix_lerp_r.weight",
    "ffn.receptance.weight": "channel_mix_receptance.weight",
}
_SIX_TURNED = {
    "att.time_maa_w1": "time_mix_w1.weight",
    "att.time_maa_w2": "time_mix_w2.weight",
    "att.time_decay_w1": "time_mix_decay_w1.weight",
    "att.time_decay_w2": "time_mix_decay_w2.weight",
}


def rwkv6_tensors(weights, rescale_every=0):
    """An official RWKV-6 checkpoint's arrays as llama.cpp names and lays them out."""
    out = {}
    for name, array in weights.items():
        if name in _OUTSIDE:
            out[_OUTSIDE[name]] = array
            continue
        block, inner = re.fullmatch(r"blocks\.(\d+)\.(.+)", name).groups()
        blk = f"blk.{block}."
        scale = 2 ** (int(block) // rescale_every) if rescale_every else 1
        if inner == "ffn.value.weight":
            out[blk + _COMMON[inner]] = array / scale
        elif inner in _COMMON:
            out[blk + _COMMON[inner]] = array
        elif inner in _SIX_TURNED:
            out[blk + _SIX_TURNED[inner]] = array.swapaxes(-1, -2)
        elif inner in _SIX:
            squeezed = inner == "att.time_faaaa" or array.ndim == 3
            out[blk + _SIX[inner]] = array.reshape(-1) if squeezed else array
        elif inner == "att.time_maa_w":
            lerps = [
                weights[f"blocks.{block}.att.time_maa_{letter}"].reshape(1, 1, -1)
                for letter in "wkvrg"
            ]
            out[blk + "time_mix_lerp_fused.weight"] = np.stack(lerps)
        elif not inner.startswith("att.time_maa_"):
            matrix = inner.removeprefix("att.").removesuffix(".weight")
            out[f"{blk}time_mix_{matrix}.weight"] = array / scale if matrix == "output" else array
    return out


def rwkv6_values(weights, **more):
    heads, size = weights["blocks.0.att.time_faaaa"].shape
    return {
        "general.architecture": "rwkv6",
        "general.name": "test",
        "rwkv6.embedding_length": heads * size,
        "rwkv6.block_count": sum(name.endswith(".att.time_faaaa") for name in weights),
        "rwkv6.attention.layer_norm_epsilon": 1e-5,
        "rwkv6.wkv.head_size": size,
        "rwkv6.rescale_every_n_layers": 0,
        **more,
    }


def vocabulary(tokens, types=None, model="rwkv"):
    """The key-values of a vocabulary: byte strings by id, escaped as llama.cpp's converter does."""
    texts = [repr(token)[2:-1] if isinstance(token, bytes) else token for token in tokens]
    found = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": ("array", ("str", texts))}
    if types is not None:
        found["tokenizer.ggml.token_type"] = ("array", ("i32", types))
    return found


WORDS = [
    b"<s>",
    *(bytes([i]) for i in range(256)),
    b"hello",
    b" world",
    "é€".encode(),
    b"it's",
    b"\"'\\x41\n",
    b"a\0b",
]


def with_vocabulary(path, base, **found):
    """The model of these weights with this vocabulary."""
    return write_gguf(path, rwkv7_values(base) | vocabulary(**found), rwkv7_tensors(base))
