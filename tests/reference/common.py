"""What the definitions share: numpy, float64, one token at a time.

Letters: L layers, C embedding, A channels of the recurrence, H heads, N head size, F ffn width, V vocabulary, T tokens.
`weights` maps the names of an official .pth file to arrays; a matrix named `*.weight` is (out, in).
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def layers_of(weights):
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))


def part(weights, prefix):
    """The tensors whose names begin so, without it."""
    return {name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)}


def lerps(x, previous, p, stem, letters):
    """Token shift of RWKV-4 to 6: x where the weight is 1 (4, 5: time_mix), or where it is 0 (6: time_maa)."""
    mixed = {}
    for q in letters:
        mu = p[stem + q].ravel()
        mixed[q] = x + (previous - x) * (mu if stem == "time_maa_" else 1 - mu)
    return mixed


def channel_mix(x, i, p, state, product):
    """The ffn of RWKV-4 to 6."""
    stem = "time_maa_" if "time_maa_k" in p else "time_mix_"
    mixed = lerps(x, state.ffn_shift[i], p, stem, "kr")
    state.ffn_shift[i] = x
    k = np.maximum(product(p["key.weight"], mixed["k"]), 0) ** 2
    return sigmoid(product(p["receptance.weight"], mixed["r"])) * product(p["value.weight"], k)


def forward(weights, tokens, state, time_mix, round=None, hidden=False, residuals=None):
    """Logits (T, V), or with `hidden` the rows (T, C) after ln_out; steps `state` in place. For RWKV-4 to 6.

    `round` is applied to both sides of every matrix product, to stand in for a format of fewer bits. `residuals` is a
    list that gets the stream behind each layer, (C), token by token.
    """

    def product(W, x):
        return round(W) @ round(x) if round else W @ x

    def norm(x, name):
        return layer_norm(x, weights[name + ".weight"], weights[name + ".bias"])

    blocks = [f"blocks.{i}." for i in range(layers_of(weights))]
    layers = [(part(weights, b + "att."), part(weights, b + "ffn.")) for b in blocks]
    rows = []
    for token in tokens:
        x = norm(weights["emb.weight"][token], "blocks.0.ln0")
        for i, (att, ffn) in enumerate(layers):
            x = x + time_mix(norm(x, blocks[i] + "ln1"), i, att, state, product)
            x = x + channel_mix(norm(x, blocks[i] + "ln2"), i, ffn, state, product)
            if residuals is not None:
                residuals.append(x)
        x = norm(x, "ln_out")
        rows.append(x if hidden else product(weights["head.weight"], x))
    return np.array(rows)
