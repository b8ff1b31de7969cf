"""What snapshots in fp16 save, and what they change of what follows: Kullback-Leibler divergence and top-1 agreement.

    python benchmarks/snapshots.py [--threads N] [--pieces 40] [--tokens 256] [--follow 128]

After every piece of a text its state is saved in fp32 and in fp16, and both are restored and go on through the tokens that
follow. A third way saves and restores in fp16 after every piece, so that what rounding does would pile up. Of the demo
model, and of those in the folder that RWKV_TEST_MODELS names, if it does. The text is the source of Python's own argparse.
Models of 256 token ids are taken to read bytes.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

import common
import rwkv_engine as rwkv
from accuracy import models

WAYS = ("once", "after every piece")


class Divergence:
    """Sums over tokens of how far one engine's logits are from another's."""

    def __init__(self) -> None:
        self.tokens = self.agreeing = 0
        self.divergence = self.largest = self.loss = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray, ids: list[int]) -> None:
        p, q = log_probabilities(expected), log_probabilities(found)
        each = (np.exp(p) * (p - q)).sum(axis=1)
        self.tokens += len(each)
        self.divergence += float(each.sum())
        self.largest = max(self.largest, float(each.max()))
        self.agreeing += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        self.loss -= float(p[np.arange(len(ids)), ids].sum())


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def measure(engine: rwkv.Engine, tokens: list[int], a: argparse.Namespace) -> list[dict[str, object]]:
    sums = {way: Divergence() for way in WAYS}
    state, often = engine.new_state(), engine.new_state()
    for i in range(a.pieces):
        at = (i + 1) * a.tokens
        piece, ids = tokens[at - a.tokens : at], tokens[at : at + a.follow + 1]
        if len(ids) < 2:
            break
        engine.forward(piece, state)
        engine.forward(piece, often)
        often = engine.state_from_bytes(often.to_bytes("fp16"))
        wide, narrow = state.to_bytes(), state.to_bytes("fp16")
        exact = engine.forward(ids[:-1], engine.state_from_bytes(wide), output="all")
        for way, restored in zip(WAYS, (engine.state_from_bytes(narrow), often.fork()), strict=True):
            sums[way].add(exact, engine.forward(ids[:-1], restored, output="all"), ids[1:])
    return [
        {
            "model": engine.name,
            "version": engine.config.version,
            "restored": way,
            "kilobytes_fp32": common.rounded(len(wide) / 1e3),
            "kilobytes_fp16": common.rounded(len(narrow) / 1e3),
            "tokens": found.tokens,
            "perplexity": common.rounded(float(np.exp(found.loss / found.tokens))),
            "kl_divergence": common.rounded(found.divergence / found.tokens),
            "largest_kl_divergence": common.rounded(found.largest),
            "top1_agreement": common.rounded(found.agreeing / found.tokens),
        }
        for way, found in sums.items()
    ]


def main() -> None:
    parser = common.parser(__doc__, shape=None)
    parser.add_argument("--pieces", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=256, help="of a piece")
    parser.add_argument("--follow", type=int, default=128, help="tokens after each snapshot")
    a = common.parse(parser, "a minute", quick={"pieces": 3, "tokens": 32, "follow": 16})
    text = pathlib.Path(argparse.__file__).read_bytes()
    results = []
    for model in ["demo"] if a.quick else models():
        engine = rwkv.Engine(model, "cpu fp32", threads=a.threads)
        tokens = list(text) if engine.config.n_vocab == 256 else engine.tokenizer.encode(text)
        found = measure(engine, tokens, a)
        if found[0]["perplexity"] > engine.config.n_vocab:
            common.note(f"{engine.name} is left out: it predicts this text worse than guessing")
            continue
        results += found
    common.record("snapshots", a, engine, results, weights="trained weights")


if __name__ == "__main__":
    main()
