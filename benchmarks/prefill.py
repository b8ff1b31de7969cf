"""Prefill of 512 tokens: tokens/s, the share of the machine's measured float32 multiply-add peak, and the ratio to the
`rwkv` package on torch on the same weights, in interleaved rounds of one process.

    python benchmarks/prefill.py [--shape 0.4B] [--threads 2] [--tokens 512] [--rounds 5] [--no-peer]

The two must agree on the most likely token.
"""

from __future__ import annotations

import argparse
import os

import numpy as np

import common
import rwkv_engine as rwkv


def flops_per_token(config, ranks) -> float:
    """Multiply-adds count two; the head runs once per call and is left out, the recurrence is counted."""
    matrices = common.streamed_bytes(config, ranks, 1) - config.n_layer * 84 * config.n_embd - config.n_vocab * config.n_embd
    return 2 * matrices + config.n_layer * config.n_embd * config.head_size * 10


def peer(path: str, threads: int):
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    import torch
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
    return lambda tokens: model.forward(tokens, None)[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.4B", choices=common.SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    a = parser.parse_args()
    path = str(common.model_file(a.shape, "bf16"))
    limits = common.Limits()
    engines = {p: rwkv.Engine(path, f"cpu {p}", threads=a.threads) for p in ("fp32", "bf16")}
    package = None if a.no_peer else peer(path, a.threads)
    tokens = np.random.default_rng(0).integers(1, 65536, a.tokens).tolist()
    config = next(iter(engines.values())).config
    flops = flops_per_token(config, common.SHAPES[a.shape][2]) * a.tokens

    seconds: dict[str, list[float]] = {name: [] for name in [*engines, "package"]}
    shares: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, int] = {}
    for round_ in range(a.rounds + 1):
        peak = limits.fma_peak(a.threads)
        for name, engine in engines.items():
            state = engine.new_state()
            logits = None

            def prefill() -> None:
                nonlocal logits
                logits = engine.forward(tokens, state)

            elapsed = common.timed(prefill)
            token = int(logits.argmax())
            assert answers.setdefault(name, token) == token
            if round_:
                seconds[name].append(elapsed)
                shares[name].append(flops / elapsed / 1e9 / peak)
        if package:
            elapsed = common.timed(lambda: answers.__setitem__("package", int(package(tokens).argmax())))
            assert answers["package"] == answers["fp32"], answers
            if round_:
                seconds["package"].append(elapsed)

    result: dict[str, object] = {"shape": a.shape, "threads": a.threads, "tokens": a.tokens}
    for name, engine in engines.items():
        result[name] = {
            "tokens_per_second": round(a.tokens / common.median(seconds[name]), 1),
            "share_of_fp32_fma_peak": round(common.median(shares[name]), 3),
            "share_lowest_highest": [round(min(shares[name]), 3), round(max(shares[name]), 3)],
            "device": engine.description,
        }
    if package:
        result["rwkv package fp32"] = {"tokens_per_second": round(a.tokens / common.median(seconds["package"]), 1)}
        ratios = [theirs / ours for theirs, ours in zip(seconds["package"], seconds["fp32"], strict=True)]
        result["fp32 times the rwkv package"] = round(common.median(ratios), 2)
    common.record(f"prefill-{a.shape}-{a.threads}t", result)


if __name__ == "__main__":
    main()
