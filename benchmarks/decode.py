"""Decode at batch 1: tokens/s, and the weights read per second as a share of the machine's measured read bandwidth.

    python benchmarks/decode.py [--shape 0.4B] [--threads 2] [--tokens 24] [--rounds 7]

The bandwidth is measured before and after every round, in the same process. The greedy continuation of a prompt is
computed while timing and must be the same in every round.
"""

from __future__ import annotations

import argparse

import common
import rwkv_engine as rwkv


def run(shape: str, precision: str, threads: int, tokens: int, rounds: int, limits: common.Limits) -> dict[str, object]:
    engine = rwkv.Engine(str(common.model_file(shape, "bf16")), f"cpu {precision}", threads=threads)
    width = {"fp32": 4, "bf16": 2}[precision]
    per_token = common.streamed_bytes(engine.config, common.SHAPES[shape][2], width)
    prompt = list(range(1, 9))
    answer = None
    seconds, shares = [], []
    for _ in range(rounds + 1):
        before = limits.read_bandwidth(threads)
        state = engine.new_state()
        ids = [int(engine.forward(prompt, state).argmax())]

        def decode() -> None:
            for _ in range(tokens):
                ids.append(int(engine.forward(ids[-1:], state).argmax()))

        elapsed = common.timed(decode) / tokens
        bandwidth = (before + limits.read_bandwidth(threads)) / 2
        if answer is None:  # the first round warms up
            answer = ids
            continue
        assert ids == answer, "the answer changed between rounds"
        seconds.append(elapsed)
        shares.append(per_token / elapsed / 1e9 / bandwidth)
    return {
        "tokens_per_second": round(1 / common.median(seconds), 2),
        "megabytes_per_token": round(per_token / 1e6, 1),
        "gigabytes_per_second": round(per_token / common.median(seconds) / 1e9, 2),
        "share_of_read_bandwidth": round(common.median(shares), 3),
        "share_lowest_highest": [round(min(shares), 3), round(max(shares), 3)],
        "device": engine.description,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.4B", choices=common.SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    limits = common.Limits()
    result = {p: run(a.shape, p, a.threads, a.tokens, a.rounds, limits) for p in ("fp32", "bf16")}
    common.record(f"decode-{a.shape}-{a.threads}t", {"shape": a.shape, "threads": a.threads, **result})


if __name__ == "__main__":
    main()
