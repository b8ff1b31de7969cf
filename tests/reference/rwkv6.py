"""RWKV-6 "Finch" as its definition (Peng et al., "Eagle and Finch", 2024): what is mixed and how fast a channel forgets
depend on the token.
"""

import common
import numpy as np
import rwkv5
from common import silu


class State(rwkv5.State):
    def __init__(self, weights):
        super().__init__(weights, weights["blocks.0.att.time_faaaa"].shape)


def time_mix(x, i, p, state, product):
    delta = state.att_shift[i] - x
    state.att_shift[i] = x
    z = np.tanh(product(p["time_maa_w1"].T, x + delta * p["time_maa_x"].ravel()))
    mixed = {}
    for j, q in enumerate("wkvrg"):
        rank = p["time_maa_w2"].shape[1]
        m = product(p["time_maa_w2"][j].T, z[j * rank : (j + 1) * rank])
        mixed[q] = x + delta * (p["time_maa_" + q].ravel() + m)

    r = product(p["receptance.weight"], mixed["r"])
    k = product(p["key.weight"], mixed["k"])
    v = product(p["value.weight"], mixed["v"])
    g = silu(product(p["gate.weight"], mixed["g"]))
    slow = product(p["time_decay_w2"].T, np.tanh(product(p["time_decay_w1"].T, mixed["w"])))
    w = np.exp(-np.exp(p["time_decay"].ravel() + slow))
    y = rwkv5.attend(state.wkv[i], r, k, v, w, p["time_faaaa"], (p["ln_x.weight"], p["ln_x.bias"]))
    return product(p["output.weight"], y * g)


def forward(weights, tokens, state, **options):
    return common.forward(weights, tokens, state, time_mix, **options)
