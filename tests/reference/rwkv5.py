"""RWKV-5 "Eagle" as its definition (Peng et al., "Eagle and Finch", 2024): 5.0 has no gate, 5.0 and 5.1 one decay and
one bonus for all channels of a head, 5.2 one for each. Where a file calls the bonus time_first, it holds its logarithm.
"""

import common
import numpy as np
from common import layer_norm, lerps, silu


def size_of_heads(weights):
    """(H, N): a head has one decay, or one row of them."""
    H = len(weights["blocks.0.att.time_decay"])
    return H, weights["blocks.0.att.key.weight"].shape[0] // H


class State:
    """What one sequence carries from token to token; all zeros before the first."""

    def __init__(self, weights, heads=None):
        L, C = common.layers_of(weights), weights["emb.weight"].shape[1]
        H, N = heads or size_of_heads(weights)
        self.att_shift = np.zeros((L, C))  # the layer norm's output at the previous token
        self.wkv = np.zeros((L, H, N, N))  # [key, value]
        self.ffn_shift = np.zeros((L, C))

    def parts(self):
        wkv = self.wkv.swapaxes(-1, -2)  # the engine's states are [value, key] in every version
        return {"att.shift": self.att_shift, "att.wkv": wkv, "ffn.shift": self.ffn_shift}


def attend(S, r, k, v, w, u, ln_x):
    """One step of all heads: S (H, N, N) in place, r k v (A), w and u (H, 1 or N); the normed output (A)."""
    H, N, _ = S.shape
    r, k, v = (t.reshape(H, N) for t in (r, k, v))
    w, u = (np.broadcast_to(t.reshape(H, -1), (H, N)) for t in (w, u))
    y = np.empty((H, N))
    for h in range(H):
        kv = np.outer(k[h], v[h])
        y[h] = r[h] @ (u[h][:, None] * kv + S[h])
        S[h] = w[h][:, None] * S[h] + kv
    weight, bias = (t.reshape(H, N) for t in ln_x)
    return layer_norm(y, weight, bias, eps=64e-5).ravel()


def time_mix(x, i, p, state, product):
    gated = "gate.weight" in p
    mixed = lerps(x, state.att_shift[i], p, "time_mix_", "kvrg" if gated else "kvr")
    state.att_shift[i] = x
    r = product(p["receptance.weight"], mixed["r"])
    k = product(p["key.weight"], mixed["k"])
    v = product(p["value.weight"], mixed["v"])
    w = np.exp(-np.exp(p["time_decay"]))
    u = p["time_faaaa"] if "time_faaaa" in p else np.exp(p["time_first"])
    y = attend(state.wkv[i], r, k, v, w, u, (p["ln_x.weight"], p["ln_x.bias"]))
    if gated:
        y = y * silu(product(p["gate.weight"], mixed["g"]))
    return product(p["output.weight"], y)


def forward(weights, tokens, state, **options):
    return common.forward(weights, tokens, state, time_mix, **options)
