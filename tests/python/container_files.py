"""Official weights (name -> float32 array) in the names and the orientation of other projects' files, by the rules of
those projects' own converters, and the folders such files lie in.
"""

import json

import numpy as np
from checkpoint_files import write_pth, write_safetensors

_LOW_RANK = {"w", "a", "v", "g"}


def _blocks(weights):
    """(name, block number or None, rest of the name, array)"""
    for name, array in weights.items():
        parts = name.split(".", 2)
        if parts[0] == "blocks":
            yield name, int(parts[1]), parts[2], array
        else:
            yield name, None, name, array


def to_st(weights):
    """web-rwkv's converter: renamed, lower case, low-rank matrices turned around, once for RWKV-7; for RWKV-6 each name
    is in its list of matrices twice. The decay and the bonus of RWKV-5.1 are repeated for all channels of a head.
    """
    out = {}
    decay = weights.get("blocks.0.att.time_decay")
    if "blocks.0.att.gate.weight" in weights and decay.size == len(decay):
        size = len(weights["blocks.0.att.key.weight"]) // len(decay)
        repeated = ("att.time_decay", "att.time_faaaa")
        weights = {
            name: np.repeat(t.reshape(-1, 1), size, 1) if name.endswith(repeated) else t
            for name, t in weights.items()
        }
    for name, _, rest, array in _blocks(weights):
        new = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix").lower()
        if rest in {f"att.{q}{n}" for q in _LOW_RANK for n in "12"}:
            array = array.swapaxes(-1, -2)
        out[new] = array
    return out


def to_st_turned(weights):
    """The same with every low-rank matrix turned around once, as its other converters do."""
    turned = ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")
    out = to_st(weights)
    for name in weights:
        if name.endswith(turned):
            out[name.replace("time_maa", "time_mix")] = weights[name].swapaxes(-1, -2)
    return out


_FLA_OUTSIDE = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_PROJECTIONS = {
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
_FLA_PARTS = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}


def _squeezed(array):
    return array.reshape(-1) if array.shape[:-1] == (1, 1) else array


def to_fla7(weights, fused_lerps=False):
    """flash-linear-attention's convert_from_rwkv7.py. `fused_lerps`: the one tensor x_x of its first files."""
    out = {}
    for name, block, rest, array in _blocks(weights):
        if block is None:
            out[_FLA_OUTSIDE[name]] = array
            continue
        if block == 0 and rest in ("att.v0", "att.v1", "att.v2"):
            continue
        kind, leaf = rest.split(".", 1)
        stem = leaf.split(".")[0]
        if kind == "att" and len(leaf) == 2 and leaf[0] in _LOW_RANK:
            leaf = (
                f"{leaf[0]}_lora.lora." + {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[leaf[1]]
            )
            array = array.T if leaf.endswith("weight") else array
        elif kind == "att" and stem in _PROJECTIONS:
            leaf = leaf.replace(stem, _PROJECTIONS[stem])
        lerp = leaf.startswith("x_") and kind == "att"
        out[f"model.layers.{block}.{_FLA_PARTS[kind]}.{leaf}"] = array if lerp else _squeezed(array)
    if fused_lerps:
        for i in {block for _, block, _, _ in _blocks(weights) if block is not None}:
            lerps = [out.pop(f"model.layers.{i}.attn.x_{q}") for q in "rwkvag"]
            out[f"model.layers.{i}.attn.x_x"] = np.stack([x.reshape(1, 1, -1) for x in lerps])
    return out


def to_fla6(weights):
    """flash-linear-attention's convert_from_rwkv6.py: its five mixes stand in the order r w k v g."""
    out = {}
    for name, block, rest, array in _blocks(weights):
        if block is None:
            out[_FLA_OUTSIDE[name]] = array
            continue
        kind, leaf = rest.split(".", 1)
        layer = f"model.layers.{block}."
        if kind.startswith("ln"):
            out[layer + f"{_FLA_PARTS[kind]}.{leaf}"] = array
        elif kind == "ffn":
            leaf = {
                "time_maa_k": "key.mu",
                "time_maa_r": "receptance.mu",
                "key.weight": "key.linear.weight",
                "receptance.weight": "receptance.linear.weight",
            }.get(leaf, leaf)
            out[layer + "ffn." + leaf] = _squeezed(array)
        elif leaf == "time_maa_w1":
            w, k, v, r, g = np.split(array, 5, axis=1)
            out[layer + "attn.x_proj.0.linear.weight"] = np.concatenate((r, w, k, v, g), 1).T
        elif leaf == "time_maa_w2":
            w, k, v, r, g = array
            out[layer + "attn.x_proj.2.weight"] = np.concatenate((r, w, k, v, g), 0).T
        elif leaf[:-1] == "time_maa_" and leaf[-1] != "x":
            continue
        else:
            new = {
                "time_maa_x": "x_proj.0.mu",
                "receptance.weight": "r_proj.linear.weight",
                "key.weight": "k_proj.linear.weight",
                "value.weight": "v_proj.linear.weight",
                "gate.weight": "g_proj.linear.weight",
                "output.weight": "o_proj.weight",
                "time_decay": "w_proj.linear.lora.2.bias",
                "time_decay_w1": "w_proj.linear.lora.0.weight",
                "time_decay_w2": "w_proj.linear.lora.2.weight",
                "time_faaaa": "bonus",
                "ln_x.weight": "g_norm.weight",
                "ln_x.bias": "g_norm.bias",
            }[leaf]
            out[layer + "attn." + new] = (
                array.T if leaf.startswith("time_decay_w") else _squeezed(array)
            )
    for i in {block for _, block, _, _ in _blocks(weights) if block is not None}:
        lerps = [weights[f"blocks.{i}.att.time_maa_{q}"].reshape(-1) for q in "rwkvg"]
        out[f"model.layers.{i}.attn.x_bias"] = np.stack(lerps)
    return out


def to_rwkv_rs(weights, projections=("key", "value")):
    """rwkv-rs' rwkv_pth2st.py. `projections`: how it calls the two of the ffn."""
    out = {}
    outside = {
        **_FLA_OUTSIDE,
        "emb.weight": "model.embed_tokens.weight",
        "blocks.0.ln0.weight": "model.embedding_norm.weight",
        "blocks.0.ln0.bias": "model.embedding_norm.bias",
    }
    norms = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    for name, block, rest, array in _blocks(weights):
        if name in outside:
            out[outside[name]] = array
            continue
        if block == 0 and rest in ("att.v0", "att.v1", "att.v2"):
            continue
        kind, leaf = rest.split(".", 1)
        if kind == "att":
            stem = leaf.split(".")[0]
            new = "linear_attn." + leaf.replace(stem, _PROJECTIONS.get(stem, stem))
        elif kind == "ffn":
            new = "mlp." + leaf.replace("key.", projections[0] + ".").replace(
                "value.", projections[1] + "."
            )
        else:
            new = f"{norms[kind]}.{leaf}"
        out[f"model.layers.{block}.{new}"] = _squeezed(array)
    return out


def to_transformers(weights):
    """The names of the RwkvModel of transformers."""
    words = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    out = {}
    for name, block, rest, array in _blocks(weights):
        if block is None:
            out[
                {"emb.weight": "rwkv.embeddings.weight"}.get(
                    name, name if name == "head.weight" else "rwkv." + name
                )
            ] = array
            continue
        rest = (
            rest.replace("ln0.", "pre_ln.")
            .replace("att.", "attention.")
            .replace("ffn.", "feed_forward.")
        )
        if rest[:-1].endswith("time_mix_"):
            rest = rest[:-1] + words[rest[-1]]
        out[f"rwkv.blocks.{block}.{rest}"] = array
    return out


def write_folder(path, weights, dtype="f32", shards=1, binary=False):
    """A folder as save_pretrained leaves it: one file, or several and an index."""
    path.mkdir()
    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    write = write_pth if binary else write_safetensors
    (path / "config.json").write_text("{}")
    if shards == 1:
        write(path / f"{stem}.{suffix}", weights, dtype)
        return path
    names = list(weights)
    index = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}"
        some = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write(path / file, {name: weights[name] for name in some}, dtype)
        index |= dict.fromkeys(some, file)
    (path / f"{stem}.{suffix}.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": index}, indent=2)
    )
    return path
