"""Prefill: tokens/s, the share of the machine's measured float32 multiply-add peak, and the ratio to the `rwkv` package
on torch on the same weights, in interleaved rounds of one process.

    python benchmarks/prefill.py [--shape 0.4B] [--threads N] [--tokens 512] [--rounds 5] [--no-peer]

Every round must give the same logits, those of reading the text in two halves, and the package the same next token.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

import common
import rwkv_engine as rwkv

PACKAGE = "rwkv package"


def peer(path: str, threads: int):
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    import torch
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
    return lambda tokens: model.forward(tokens, None)[0].numpy()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help=f"without the {PACKAGE}")
    a = common.parse(parser, "a minute", quick={"tokens": 40, "rounds": 1, "no_peer": True})
    if not a.no_peer and importlib.util.find_spec("rwkv") is None:
        common.note(f"the {PACKAGE} is not installed: no comparison with it")
        a.no_peer = True
    path = str(common.model_file(a.shape, "bf16"))
    limits = common.Limits(a.quick)
    engines = {p: rwkv.Engine(path, f"cpu {p}", threads=a.threads) for p in ("fp32", "fp16", "bf16", "int8", "int4")}
    config = engines["fp32"].config
    tokens = np.random.default_rng(0).integers(1, config.n_vocab, a.tokens).tolist()
    operations = common.operations_per_token(config, a.shape) * a.tokens

    def prefill(engine: rwkv.Engine, *parts: list[int]) -> np.ndarray:
        state = engine.new_state()
        return [engine.forward(part, state) for part in parts][-1]

    half = a.tokens // 2
    answers = {name: prefill(engine, tokens[:half], tokens[half:]) for name, engine in engines.items()}
    runners = {name: lambda engine=engine: prefill(engine, tokens) for name, engine in engines.items()}
    if not a.no_peer:
        package = peer(path, a.threads)
        runners[PACKAGE] = lambda: package(tokens)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    peaks = []
    for round_ in range(a.rounds + 1):
        peak = limits.fma_peak(a.threads)
        for name, runner in runners.items():
            found: list[np.ndarray] = []
            elapsed = common.timed(lambda: found.append(runner()))
            if name == PACKAGE:
                assert found[0].argmax() == answers["fp32"].argmax(), "the package predicts another token"
            else:
                assert (found[0] == answers[name]).all(), "the answer changed"
            if round_:  # the first warms up
                seconds[name].append(elapsed)
        if round_:
            peaks.append(peak)

    results = []
    for name, times in seconds.items():
        shares = [operations / second / 1e9 / peak for second, peak in zip(times, peaks, strict=True)]
        compared = PACKAGE in seconds and name == "fp32"
        times_package = common.median(common.ratios(seconds[PACKAGE], times)) if compared else None
        results.append(
            {
                "runner": PACKAGE if name == PACKAGE else "rwkv_engine",
                "precision": "fp32" if name == PACKAGE else name,
                "tokens_per_second": common.rounded(a.tokens / common.median(times)),
                "gigaflops": common.rounded(operations / common.median(times) / 1e9),
                "fma_peak_gigaflops": common.rounded(common.median(peaks)),
                "share_of_fma_peak": common.rounded(common.median(shares)),
                "share_lowest_highest": common.lowest_highest(shares),
                "times_the_rwkv_package": times_package and common.rounded(times_package),
            }
        )
    common.record(f"prefill-{a.shape}-{a.threads}t", a, engines["fp32"], results)


if __name__ == "__main__":
    main()
