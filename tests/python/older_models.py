"""Random checkpoints of RWKV-4, 5.x and 6, in the layout of the official files: name -> float32 array.

>>> older_model("6", L=2, C=64, N=16, F=96, V=50)
"""

import numpy as np
from helpers import round_to

VERSIONS = ("4", "5.0", "5.1", "5.2", "6")


def older_model(version, L=2, C=64, A=None, N=16, F=96, V=50, ranks=(5, 7), dtype="f16", seed=0):
    """`A` are the channels of the recurrence, `ranks` those of the mixing and the decay of version 6."""
    rng = np.random.default_rng(seed)
    A = A or C
    H, (D, W) = A // N, ranks
    model = {}

    def put(name, array):
        model[name] = round_to(array, dtype)

    def normal(*shape, std, mean=0.0):
        return mean + std * rng.standard_normal(shape, np.float32)

    def matrix(name, rows, cols, gain):
        put(name, normal(rows, cols, std=gain / cols**0.5))

    def norm(name, n):
        put(name + ".weight", normal(n, mean=1.0, std=0.1))
        put(name + ".bias", normal(n, std=0.05))

    six = version == "6"
    mix = "time_maa_" if six else "time_mix_"
    letters = {"4": "kvr", "5.0": "kvr", "6": "xwkvrg"}.get(version, "kvrg")
    put("emb.weight", normal(V, C, std=0.3))
    for i in range(L):
        block = f"blocks.{i}."
        att, ffn = block + "att.", block + "ffn."
        if i == 0:
            norm(block + "ln0", C)
        norm(block + "ln1", C)
        norm(block + "ln2", C)
        for q in letters:
            put(att + mix + q, 0.05 + 0.9 * rng.random((1, 1, C), np.float32))
        for q in "kr":
            put(ffn + mix + q, 0.05 + 0.9 * rng.random((1, 1, C), np.float32))
        per_head = {"4": (A,), "5.0": (H,), "5.1": (H,), "5.2": (H, N), "6": (1, 1, A)}[version]
        put(att + "time_decay", normal(*per_head, std=1.0, mean=-1.0))
        if version == "4":
            put(att + "time_first", normal(A, std=0.5))
        else:
            put(att + "time_faaaa", normal(*((H, N) if six else per_head), std=0.5))
            norm(att + "ln_x", A)
        if six:
            matrix(att + "time_maa_w1", C, 5 * D, 0.5)
            put(att + "time_maa_w2", normal(5, D, C, std=0.3 / D**0.5))
            matrix(att + "time_decay_w1", C, W, 0.5)
            put(att + "time_decay_w2", normal(W, A, std=0.5 / W**0.5))
        for name in ("receptance", "key", "value", *(["gate"] if "g" in letters else [])):
            matrix(f"{att}{name}.weight", A, C, 0.8)
        matrix(att + "output.weight", C, A, 0.5)
        matrix(ffn + "receptance.weight", C, C, 0.8)
        matrix(ffn + "key.weight", F, C, 0.8)
        matrix(ffn + "value.weight", C, F, 0.4)
    norm("ln_out", C)
    matrix("head.weight", V, C, 2.0)
    return model
