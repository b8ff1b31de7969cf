"""Random checkpoints of every version that the `rwkv` package reads, with the official names and shapes."""

import functools

import numpy as np
from helpers import folder, random_model, save

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]


def weights_of(version, L=3, C=64, N=16, F=192, V=128, D=5, D2=7, seed=1):
    """name -> float32 array; in the order of official files, which the package's detection needs."""
    if version == "7":
        return random_model(L=L, C=C, N=N, F=F, V=V, ranks=(5, 6, 7, 9), layer0_v=True, seed=seed)
    H = C // N
    rng = np.random.default_rng(seed)
    model = {}

    def put(name, *shape, std=0.2, mean=0.0):
        model[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def norm(name):
        put(name + ".weight", C, std=0.1, mean=1.0)
        put(name + ".bias", C, std=0.05)

    def mix(name):
        model[name] = rng.uniform(0.05, 0.95, (1, 1, C)).astype(np.float32)

    def matrix(name, out, into, gain=1.0):
        put(name + ".weight", out, into, std=gain / into**0.5)

    gated = version not in {"4", "5.0"}
    kind = "time_maa_" if version == "6" else "time_mix_"
    put("emb.weight", V, C, std=0.3)
    for i in range(L):
        block = f"blocks.{i}."
        att, ffn = block + "att.", block + "ffn."
        for name in ["ln1", "ln2", "ln0"] if i == 0 else ["ln1", "ln2"]:
            norm(block + name)
        for q in {"4": "kvr", "5.0": "kvr", "6": "xwkvrg"}.get(version, "kvrg"):
            mix(att + kind + q)
        heads = {"4": [C], "5.0": [H], "5.1": [H], "5.2": [H, N], "6": [1, 1, C]}[version]
        put(att + "time_decay", *heads, std=1.0, mean=-1.0)
        if version == "6":
            put(att + "time_maa_w1", C, 5 * D, std=0.5 / C**0.5)
            put(att + "time_maa_w2", 5, D, C, std=0.5 / D**0.5)
            put(att + "time_decay_w1", C, D2, std=0.5 / C**0.5)
            put(att + "time_decay_w2", D2, C, std=0.5 / D2**0.5)
        real = version in {"5.2", "6"}  # the others hold its logarithm
        put(att + ("time_faaaa" if real else "time_first"), *([H, N] if real else heads), std=0.5)
        for name in ["receptance", "key", "value"] + ["gate"] * gated:
            matrix(att + name, C, C)
        matrix(att + "output", C, C, 0.5)
        if version != "4":
            norm(att + "ln_x")
        for q in "kr":
            mix(ffn + kind + q)
        matrix(ffn + "key", F, C)
        matrix(ffn + "receptance", C, C)
        matrix(ffn + "value", C, F, 0.4)
    norm("ln_out")
    matrix("head", V, C, 2.0)
    return model


@functools.cache
def path_of(version):
    """A .pth file of float32: the package normalises the embedding in the file's precision."""
    return save(folder() / f"compat-{version}.pth", weights_of(version))
