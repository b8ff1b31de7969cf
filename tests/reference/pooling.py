"""Sentence embeddings as their definition: numpy, float64. And EmbeddingRWKV, with random heads for such checkpoints.

The package `rwkv-emb` is where the formulas of EmbeddingRWKV are from: the mean of the rows after ln_out at the end tokens
of a text, then LN(fc2 relu(fc1 x) + x) with the weights of one of three heads.
"""

import numpy as np
from common import layer_norm
from random_model import Draw

HEADS = {"retrieval": "retr", "classification": "cls", "similarity": "sts"}


def pool(rows, tokens, pooling, end=None):
    """One vector of the rows (T, C) after ln_out."""
    if pooling == "last":
        return rows[-1]
    return rows.mean(0) if pooling == "mean" else rows[np.asarray(tokens) == end].mean(0)


def task_head(weights, x, task):
    stem = f"head.{HEADS[task]}_head."
    hidden = np.maximum(weights[stem + "fc1.weight"] @ x, 0)
    y = weights[stem + "fc2.weight"] @ hidden + x
    return layer_norm(y, weights[stem + "norm.weight"], weights[stem + "norm.bias"])


def normalized(vector):
    return vector / np.sqrt((vector**2).sum())


def embedding_model(weights, seed=0, dtype="f32"):
    """The tensors of an EmbeddingRWKV around a language model of RWKV-7, as its files call them."""
    C = weights["emb.weight"].shape[1]
    draw = Draw(seed, dtype)
    for head in HEADS.values():
        for name in ("fc1", "fc2"):
            draw.put(f"head.{head}_head.{name}.weight", draw.normal(C, C, std=1 / C**0.5))
        draw.norm(f"head.{head}_head.norm", C)
    inner = {"rwkv." + name: t for name, t in weights.items()}
    return inner | draw.model
