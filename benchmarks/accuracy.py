"""What each precision costs: perplexity, Kullback-Leibler divergence and top-1 agreement beside fp32 on the same text.

    python benchmarks/accuracy.py [--threads N] [--tokens 20000]

Of the demo model, and of those in the folder that RWKV_TEST_MODELS names, if it does. The text is the source of Python's
own argparse. Models of 256 token ids are taken to read bytes.
"""

from __future__ import annotations

import argparse
import os
import pathlib

import common
import rwkv_engine as rwkv
from rwkv_engine.evaluation import compare


def models() -> list[str]:
    folder = os.environ.get("RWKV_TEST_MODELS")
    found = sorted(map(str, pathlib.Path(folder).glob("tiny-*.pth"))) if folder else []
    return ["demo", *found]


def main() -> None:
    parser = common.parser(__doc__, shape=None)
    parser.add_argument("--tokens", type=int, default=20_000)
    a = common.parse(parser, "a minute", quick={"tokens": 300})
    text = pathlib.Path(argparse.__file__).read_bytes()
    precisions = common.known_precisions(["fp32", "bf16", "fp16", "int8", "int4"])
    results = []
    for model in ["demo"] if a.quick else models():
        engines = [rwkv.Engine(model, f"cpu {p}", threads=a.threads) for p in precisions]
        first = engines[0]
        tokens = (list(text) if first.config.n_vocab == 256 else first.tokenizer.encode(text))[: a.tokens]
        compared = compare(first, engines[1:], tokens)
        if compared[0].perplexity > first.config.n_vocab:
            common.note(f"{first.name} is left out: it predicts this text worse than guessing")
            continue
        for precision, found in zip(precisions, compared, strict=True):
            exact = precision == "fp32"
            results.append(
                {
                    "model": first.name,
                    "version": first.config.version,
                    "precision": precision,
                    "tokens": found.tokens,
                    "perplexity": common.rounded(found.perplexity),
                    "kl_divergence": None if exact else common.rounded(found.kl_divergence),
                    "largest_kl_divergence": None if exact else common.rounded(found.largest_kl_divergence),
                    "top1_agreement": None if exact else common.rounded(found.top1_agreement),
                }
            )
    common.record("accuracy", a, first, results, weights="trained weights")


if __name__ == "__main__":
    main()
