"""RWKV-7 as its definition: numpy, float64, one token at a time. Everything else answers to this page.

Letters: L layers, C embedding, H heads, N head size, F ffn width, V vocabulary, T tokens. `weights` maps the names of
an official .pth file to arrays; a matrix named `*.weight` is (out, in), the low-rank pairs w1/w2, a1/a2, v1/v2, g1/g2
are (in, out).
"""

import numpy as np
from common import layer_norm, sigmoid


class State:
    """What one sequence carries from token to token; all zeros before the first."""

    def __init__(self, weights):
        L = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        H, N = weights["blocks.0.att.r_k"].shape
        C = weights["emb.weight"].shape[1]
        self.att_shift = np.zeros((L, C))  # the layer norm's output at the previous token
        self.wkv = np.zeros((L, H, N, N))  # [value, key]
        self.ffn_shift = np.zeros((L, C))

    def parts(self):
        return {"att.shift": self.att_shift, "att.wkv": self.wkv, "ffn.shift": self.ffn_shift}


def time_mix(x, i, p, state, v_first, product):
    H, N = p["r_k"].shape

    def heads(t):
        return t.reshape(H, N)

    def low_rank(q, act=None):
        inner = product(p[q + "1"].T, mixed[q])
        return product(p[q + "2"].T, act(inner) if act else inner)

    mixed = {q: x + (state.att_shift[i] - x) * p["x_" + q].ravel() for q in "rwkvag"}
    state.att_shift[i] = x

    r = product(p["receptance.weight"], mixed["r"])
    k = product(p["key.weight"], mixed["k"])
    v = product(p["value.weight"], mixed["v"])
    w = np.exp(-np.exp(-0.5) * sigmoid(p["w0"].ravel() + low_rank("w", np.tanh)))
    a = sigmoid(p["a0"].ravel() + low_rank("a"))
    g = low_rank("g", sigmoid)
    if i == 0:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(p["v0"].ravel() + low_rank("v"))

    kk = heads(k * p["k_k"].ravel())
    kk = kk / np.maximum(np.sqrt((kk**2).sum(-1, keepdims=True)), 1e-12)
    k = k * (1 + (a - 1) * p["k_a"].ravel())

    r, w, k, a, vh = map(heads, (r, w, k, a, v))
    y = np.empty((H, N))
    for h in range(H):
        S = state.wkv[i, h]
        S = S * w[h] - np.outer(S @ kk[h], kk[h] * a[h]) + np.outer(vh[h], k[h])
        y[h] = S @ r[h]
        state.wkv[i, h] = S
    y = layer_norm(y, heads(p["ln_x.weight"]), heads(p["ln_x.bias"]), eps=64e-5)
    y = y + (r * k * p["r_k"]).sum(-1, keepdims=True) * vh
    return product(p["output.weight"], y.ravel() * g), v_first


def channel_mix(x, i, p, state, product):
    mixed = x + (state.ffn_shift[i] - x) * p["x_k"].ravel()
    state.ffn_shift[i] = x
    return product(p["value.weight"], np.maximum(product(p["key.weight"], mixed), 0) ** 2)


def forward(weights, tokens, state, round=None, hidden=False, residuals=None):
    """Logits (T, V), or with `hidden` the rows (T, C) after ln_out; steps `state` in place.

    `round` is applied to both sides of every matrix product, to stand in for a format of fewer bits. `residuals` is a
    list that gets the stream behind each layer, (C), token by token.
    """

    def product(W, x):
        return round(W) @ round(x) if round else W @ x

    def part(prefix):
        return {name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)}

    def norm(x, name):
        return layer_norm(x, weights[name + ".weight"], weights[name + ".bias"])

    layers = [(part(f"blocks.{i}.att."), part(f"blocks.{i}.ffn.")) for i in range(len(state.wkv))]
    rows = []
    for token in tokens:
        x = norm(weights["emb.weight"][token], "blocks.0.ln0")
        v_first = None
        for i, (att, ffn) in enumerate(layers):
            y, v_first = time_mix(norm(x, f"blocks.{i}.ln1"), i, att, state, v_first, product)
            x = x + y
            x = x + channel_mix(norm(x, f"blocks.{i}.ln2"), i, ffn, state, product)
            if residuals is not None:
                residuals.append(x)
        x = norm(x, "ln_out")
        rows.append(x if hidden else product(weights["head.weight"], x))
    return np.array(rows)
