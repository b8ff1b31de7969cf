"""Random RWKV-7 checkpoints of any shape, without torch: name -> float32 array, in the layout of the official files.

The scales keep activations of order one through many layers, decays over their whole range and about half of the ffn
units alive, so that a wrong formula shows in the logits.
"""

import numpy as np


def round_to(values, dtype):
    """float32 values that `dtype` ("f32", "f16", "bf16") holds exactly; nearest, ties to even."""
    values = np.asarray(values, np.float32)
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16).astype(np.float32)
    if dtype != "bf16":
        raise ValueError(f"expected f32, f16 or bf16, found {dtype!r}")
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def random_model(
    L=2, C=64, N=16, F=None, V=50, ranks=(8, 8, 8, 16), layer0_v=False, dtype="bf16", seed=0
):
    """`ranks` are those of w, a, v, g; `layer0_v` adds the v0, v1, v2 of layer 0 that many files carry unused."""
    if C % N:
        raise ValueError(f"C={C} is not a multiple of N={N}")
    F = 4 * C if F is None else F
    H = C // N
    rng = np.random.default_rng(seed)
    model = {}

    def put(name, array):
        model[name] = round_to(array, dtype)

    def normal(*shape, std, mean=0.0):
        return mean + std * rng.standard_normal(shape, np.float32)

    def uniform(*shape, low, high):
        return low + (high - low) * rng.random(shape, np.float32)

    def norm(name, n):
        put(name + ".weight", normal(n, mean=1.0, std=0.1))
        put(name + ".bias", normal(n, std=0.05))

    put("emb.weight", normal(V, C, std=0.3))
    for i in range(L):
        block = f"blocks.{i}."
        if i == 0:
            norm(block + "ln0", C)
        norm(block + "ln1", C)
        norm(block + "ln2", C)
        att = block + "att."
        for q in "rwkvag":
            put(att + "x_" + q, uniform(1, 1, C, low=0.05, high=0.95))
        put(att + "w0", uniform(1, 1, C, low=-6.0, high=0.5))
        put(att + "a0", normal(1, 1, C, mean=-0.2, std=0.4))
        v = normal(1, 1, C, mean=0.7, std=0.2)
        in_gain = {"w": 0.5, "a": 0.7, "v": 0.7, "g": 0.7}
        out_gain = {"w": 0.5, "a": 0.7, "v": 0.7, "g": 2.0}
        for q, rank in zip("wavg", ranks):
            first = normal(C, rank, std=in_gain[q] / C**0.5)
            second = normal(rank, C, std=out_gain[q] / rank**0.5)
            if q == "v" and i == 0 and not layer0_v:
                continue
            put(att + q + "1", first)
            put(att + q + "2", second)
        if i > 0 or layer0_v:
            put(att + "v0", v)
        put(att + "k_k", normal(1, 1, C, mean=0.85, std=0.1))
        put(att + "k_a", normal(1, 1, C, mean=1.0, std=0.05))
        put(att + "r_k", normal(H, N, std=0.1))
        for matrix in ("receptance", "key", "value"):
            put(att + matrix + ".weight", normal(C, C, std=0.8 / C**0.5))
        put(att + "output.weight", normal(C, C, std=0.5 / C**0.5))
        norm(att + "ln_x", C)
        ffn = block + "ffn."
        put(ffn + "x_k", uniform(1, 1, C, low=0.05, high=0.95))
        put(ffn + "key.weight", normal(F, C, std=0.8 / C**0.5))
        put(ffn + "value.weight", normal(C, F, std=0.4 / F**0.5))
    norm("ln_out", C)
    put("head.weight", normal(V, C, std=2.0 / C**0.5))
    return model


def without_layer0_v(model):
    return {
        name: t
        for name, t in model.items()
        if not name.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"))
    }
