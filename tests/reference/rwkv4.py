"""RWKV-4 as its definition (Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023).

The recurrence is a weighted mean of the values seen: numerator `aa` and denominator `bb`, both times exp(-pp), where
`pp` is the largest exponent so far.
"""

import common
import numpy as np
from common import lerps, sigmoid


class State:
    """What one sequence carries from token to token."""

    def __init__(self, weights):
        L, C = common.layers_of(weights), weights["emb.weight"].shape[1]
        A = weights["blocks.0.att.key.weight"].shape[0]
        self.att_shift = np.zeros((L, C))  # the layer norm's output at the previous token
        self.aa, self.bb = np.zeros((L, A)), np.zeros((L, A))
        self.pp = np.full((L, A), -1e30)
        self.ffn_shift = np.zeros((L, C))

    def parts(self):
        return {
            "att.shift": self.att_shift,
            "att.aa": self.aa,
            "att.bb": self.bb,
            "att.pp": self.pp,
            "ffn.shift": self.ffn_shift,
        }


def time_mix(x, i, p, state, product):
    mixed = lerps(x, state.att_shift[i], p, "time_mix_", "kvr")
    state.att_shift[i] = x
    r = sigmoid(product(p["receptance.weight"], mixed["r"]))
    k = product(p["key.weight"], mixed["k"])
    v = product(p["value.weight"], mixed["v"])
    w, u = -np.exp(p["time_decay"]), p["time_first"]
    aa, bb, pp = state.aa[i], state.bb[i], state.pp[i]

    q = np.maximum(pp, u + k)
    past, now = np.exp(pp - q), np.exp(u + k - q)
    y = (past * aa + now * v) / (past * bb + now)

    q = np.maximum(pp + w, k)
    past, now = np.exp(pp + w - q), np.exp(k - q)
    state.aa[i], state.bb[i], state.pp[i] = past * aa + now * v, past * bb + now, q
    return product(p["output.weight"], r * y)


def forward(weights, tokens, state, **options):
    return common.forward(weights, tokens, state, time_mix, **options)
