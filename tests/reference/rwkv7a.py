"""RWKV-7a "DeepEmbed" as its definition: RWKV-7, whose ffn units are weighted by a small matrix (D, D) of the token's
own. A part of it is stored for every token, the rest is made from the embedding.
"""

import common
import numpy as np
import rwkv7
from common import layer_norm

State = rwkv7.State


def channel_mix(x, i, p, state, product, token, e):
    mixed = x + (state.ffn_shift[i] - x) * p["x_k"].ravel()
    state.ffn_shift[i] = x
    z = product(p["s1"].T, x)
    matrix = (p["s_emb.weight"][token] + product(p["s_emb_x.weight"], e)).reshape(len(z), len(z))
    gate = p["s0"].ravel() + product(p["s2"].T, z @ matrix)
    return product(p["value.weight"], np.maximum(product(p["key.weight"], mixed), 0) ** 2 * gate)


def forward(weights, tokens, state, round=None, hidden=False, residuals=None):
    """As rwkv7.forward."""

    def product(W, x):
        return round(W) @ round(x) if round else W @ x

    def norm(x, name):
        return layer_norm(x, weights[name + ".weight"], weights[name + ".bias"])

    blocks = [f"blocks.{i}." for i in range(common.layers_of(weights))]
    layers = [(common.part(weights, b + "att."), common.part(weights, b + "ffn.")) for b in blocks]
    rows = []
    for token in tokens:
        x = e = norm(weights["emb.weight"][token], "blocks.0.ln0")
        v_first = None
        for i, (att, ffn) in enumerate(layers):
            y, v_first = rwkv7.time_mix(norm(x, blocks[i] + "ln1"), i, att, state, v_first, product)
            x = x + y
            x = x + channel_mix(norm(x, blocks[i] + "ln2"), i, ffn, state, product, token, e)
            if residuals is not None:
                residuals.append(x)
        x = norm(x, "ln_out")
        rows.append(x if hidden else product(weights["head.weight"], x))
    return np.array(rows)
