"""What adapters make of a matrix W (out, in), as their definitions: numpy, float64."""

import numpy as np


def lora(W, A, B, alpha, root=False):
    """Hu et al., 2021; with `root` divided by the root of the rank (Kalajdzievski, 2023)."""
    rank = len(A)
    return W + alpha / (rank**0.5 if root else rank) * B @ A


def miss(W, block):
    """x is padded to a multiple of the rank and summed up in pieces of it: what that does to each unit vector."""
    rank, (rows, cols) = len(block), W.shape
    x = np.pad(np.eye(cols), ((0, 0), (0, -cols % rank)))
    return W + (x.reshape(cols, -1, rank).sum(1) @ block[:, np.arange(rows) % block.shape[1]]).T


def bat(W, blocks, by_column):
    """W is cut into squares; square (a, b) gets W_ab D + D, where D is blocks[b] (RWKV-PEFT) or blocks[a] (peft)."""
    r = blocks.shape[-1]
    out = W.copy()
    for a in range(W.shape[0] // r):
        for b in range(W.shape[1] // r):
            square = (slice(a * r, a * r + r), slice(b * r, b * r + r))
            D = blocks[b if by_column else a]
            out[square] += W[square] @ D + D
    return out
