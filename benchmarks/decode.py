"""Decode at batch 1: tokens/s, and the weights read per second as a share of the machine's measured read bandwidth.

    python benchmarks/decode.py [--shape 0.4B] [--threads N] [--tokens 24] [--rounds 9]

No weights are skipped (compare.py has that). The bandwidth is measured before and after every round, in the same
process. The greedy continuation of a prompt is computed while timing, must be the same in every round, and must be what
one reading of the whole text predicts.
"""

from __future__ import annotations

import argparse

import common
import rwkv_engine as rwkv

PROMPT = list(range(1, 9))


def run(a: argparse.Namespace, engine: rwkv.Engine, precision: str, limits: common.Limits) -> dict[str, object]:
    per_token = common.streamed_bytes(engine.config, a.shape, precision)
    answer = None
    seconds, shares, bandwidths = [], [], []
    for _ in range(a.rounds + 1):
        before = limits.read_bandwidth(a.threads)
        state = engine.new_state()
        ids = [int(engine.forward(PROMPT, state).argmax())]

        def decode() -> None:
            for _ in range(a.tokens):
                ids.append(int(engine.forward(ids[-1:], state).argmax()))

        elapsed = common.timed(decode) / a.tokens
        bandwidth = (before + limits.read_bandwidth(a.threads)) / 2
        if answer is None:  # the first round warms up
            answer = ids
            continue
        assert ids == answer, "the answer changed between rounds"
        seconds.append(elapsed)
        bandwidths.append(bandwidth)
        shares.append(per_token / elapsed / 1e9 / bandwidth)
    predicted = engine.forward(PROMPT + answer[:-1], engine.new_state(), output="all").argmax(axis=1)
    assert predicted[len(PROMPT) - 1 :].tolist() == answer, "one call and many differ"
    second = common.median(seconds)
    return {
        "precision": precision,
        "tokens_per_second": common.rounded(1 / second),
        "milliseconds_per_token": common.rounded(second * 1e3),
        "megabytes_per_token": common.rounded(per_token / 1e6),
        "gigabytes_per_second": common.rounded(per_token / second / 1e9),
        "read_bandwidth_gigabytes_per_second": common.rounded(common.median(bandwidths)),
        "share_of_read_bandwidth": common.rounded(common.median(shares)),
        "share_lowest_highest": common.lowest_highest(shares),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    a = common.parse(parser, "a minute", quick={"tokens": 3, "rounds": 1})
    path = common.model_file(a.shape, "bf16")
    limits = common.Limits(a.quick)
    results = []
    for precision in ("fp32", "fp16", "bf16", "int8", "int4"):
        engine = rwkv.Engine(path, f"cpu {precision}", threads=a.threads, sparse=False)
        results.append(run(a, engine, precision, limits))
    common.record(f"decode-{a.shape}-{a.threads}t", a, engine, results)


if __name__ == "__main__":
    main()
