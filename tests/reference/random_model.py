"""Random checkpoints of any version and shape, without torch: name -> float32 array, in the layout of the official files.

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
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # in place, as models can be large
    rounded += 0x7FFF
    rounded += bits
    rounded &= 0xFFFF0000
    return rounded.view(np.float32)


class Draw:
    """Tensors drawn one after the other from one seed, rounded to a format."""

    def __init__(self, seed, dtype):
        self._rng, self._dtype = np.random.default_rng(seed), dtype
        self.model = {}

    def put(self, name, array):
        self.model[name] = round_to(array, self._dtype)

    def normal(self, *shape, std, mean=0.0):
        return mean + std * self._rng.standard_normal(shape, np.float32)

    def uniform(self, *shape, low, high):
        return low + (high - low) * self._rng.random(shape, np.float32)

    def norm(self, name, n):
        self.put(name + ".weight", self.normal(n, mean=1.0, std=0.1))
        self.put(name + ".bias", self.normal(n, std=0.05))


def random_model(version="7", seed=0, dtype="bf16", V=50, C=64, **options):
    """A checkpoint of a version; `options` are those of the functions below."""
    draw = Draw(seed, dtype)
    draw.put("emb.weight", draw.normal(V, C, std=0.3))
    (_blocks7 if version in ("7", "7a") else _blocks456)(draw, version, C, **options)
    draw.norm("ln_out", C)
    draw.put("head.weight", draw.normal(V, C, std=2.0 / C**0.5))
    return draw.model


def _norms(draw, i, C):
    block = f"blocks.{i}."
    if i == 0:
        draw.norm(block + "ln0", C)
    draw.norm(block + "ln1", C)
    draw.norm(block + "ln2", C)


def _blocks7(draw, version, C, L=2, N=16, F=None, ranks=(8, 8, 8, 16), layer0_v=False, D=8):
    """`ranks` are those of w, a, v, g; `layer0_v` adds the v0, v1, v2 of layer 0 that many files carry unused; `D` is
    the size of the matrices of RWKV-7a.
    """
    if C % N:
        raise ValueError(f"C={C} is not a multiple of N={N}")
    F = 4 * C if F is None else F
    put, normal, uniform = draw.put, draw.normal, draw.uniform
    for i in range(L):
        _norms(draw, i, C)
        att = f"blocks.{i}.att."
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
        put(att + "r_k", normal(C // N, N, std=0.1))
        for matrix in ("receptance", "key", "value"):
            put(att + matrix + ".weight", normal(C, C, std=0.8 / C**0.5))
        put(att + "output.weight", normal(C, C, std=0.5 / C**0.5))
        draw.norm(att + "ln_x", C)
        ffn = f"blocks.{i}.ffn."
        put(ffn + "x_k", uniform(1, 1, C, low=0.05, high=0.95))
        put(ffn + "key.weight", normal(F, C, std=0.8 / C**0.5))
        put(ffn + "value.weight", normal(C, F, std=0.4 / F**0.5))
        if version == "7a":
            V = len(draw.model["emb.weight"])
            put(ffn + "s_emb.weight", normal(V, D * D, std=0.7))
            put(ffn + "s_emb_x.weight", normal(D * D, C, std=0.7 / C**0.5))
            put(ffn + "s0", normal(1, 1, F, mean=1.0, std=0.2))
            put(ffn + "s1", normal(C, D, std=1 / C**0.5))
            put(ffn + "s2", normal(D, F, std=0.5 / D))


def _blocks456(draw, version, C, L=2, A=None, N=16, F=None, ranks=(8, 16), log_bonus=None):
    """`A` channels of the recurrence (C); `ranks` are those of the mixes and of the decay of RWKV-6; `log_bonus`: the
    bonus of 5.0 or 5.1 under its older name, as a logarithm (5.0: so, 5.1: not).
    """
    A, F = A or C, F or 4 * C
    if A % N:
        raise ValueError(f"A={A} is not a multiple of N={N}")
    H, six, gated = A // N, version == "6", version in ("5.1", "5.2", "6")
    log_bonus = version == "5.0" if log_bonus is None else log_bonus
    stem = "time_maa_" if six else "time_mix_"
    put, normal, uniform = draw.put, draw.normal, draw.uniform
    for i in range(L):
        _norms(draw, i, C)
        att = f"blocks.{i}.att."
        for q in "xwkvrg" if six else "kvrg" if gated else "kvr":
            put(att + stem + q, uniform(1, 1, C, low=0.05, high=0.95))
        if six:
            put(att + "time_maa_w1", normal(C, 5 * ranks[0], std=0.7 / C**0.5))
            put(att + "time_maa_w2", normal(5, ranks[0], C, std=0.4 / ranks[0] ** 0.5))
            put(att + "time_decay_w1", normal(C, ranks[1], std=0.7 / C**0.5))
            put(att + "time_decay_w2", normal(ranks[1], A, std=0.7 / ranks[1] ** 0.5))
        shape = {"4": (A,), "5.2": (H, N), "6": (1, 1, A)}.get(version, (H,))
        put(att + "time_decay", uniform(*shape, low=-6.0, high=1.0))
        if version == "4":
            put(att + "time_first", normal(A, std=0.7))
        else:
            bonus = normal(*((H, N) if version in ("5.2", "6") else (H,)), mean=0.5, std=0.3)
            put(att + "time_first" if log_bonus else att + "time_faaaa", bonus)
        for matrix in ("receptance", "key", "value"):
            put(att + matrix + ".weight", normal(A, C, std=0.8 / C**0.5))
        put(att + "output.weight", normal(C, A, std=0.5 / A**0.5))
        if gated:
            put(att + "gate.weight", normal(A, C, std=1.5 / C**0.5))
        if version != "4":
            draw.norm(att + "ln_x", A)
        ffn = f"blocks.{i}.ffn."
        for q in "kr":
            put(ffn + stem + q, uniform(1, 1, C, low=0.05, high=0.95))
        put(ffn + "key.weight", normal(F, C, std=0.8 / C**0.5))
        put(ffn + "receptance.weight", normal(C, C, std=0.8 / C**0.5))
        put(ffn + "value.weight", normal(C, F, std=0.8 / F**0.5))


def without_layer0_v(model):
    return {
        name: t
        for name, t in model.items()
        if not name.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"))
    }
