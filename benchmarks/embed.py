"""What a token of an embedding costs in texts of ten thousand tokens to a million, beside reading them alone.

    python benchmarks/embed.py [--threads N] [--lengths 10000 100000 1000000] [--rounds 2]

The demo model, in fp32. The lengths take turns in every round. After each its first hundred thousand tokens are read by
calls of as many tokens without a vector; the shortest are repeated. A text must give the same vector in every round, and
in a batch with others. The peak of memory is the process's, lengths from the shortest.
"""

from __future__ import annotations

import numpy as np

import common
import rwkv_engine as rwkv
from rwkv_engine.embedding import CALL

MOST_READ = 100_000  # tokens


def read(engine: rwkv.Engine, tokens: np.ndarray) -> None:
    state = engine.new_state()
    for begin in range(0, len(tokens), CALL):
        engine.forward(tokens[begin : begin + CALL], state, output="none")


def main() -> None:
    parser = common.parser(__doc__, shape=None)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--rounds", type=int, default=2)
    a = common.parse(parser, "half a minute", quick={"lengths": [300, 3000], "rounds": 2})
    engine = rwkv.Engine("demo", "cpu fp32", threads=a.threads)
    text = np.random.default_rng(0).integers(1, engine.config.n_vocab, max(a.lengths), dtype=np.int32)
    engine.embed([text[:CALL]])  # before anything counts
    seconds: dict[int, list[float]] = {length: [] for length in a.lengths}
    alone: dict[int, list[float]] = {length: [] for length in a.lengths}
    vectors, peak = {}, {}
    for round in range(a.rounds):
        for length in a.lengths:
            tokens = text[:length]
            times = max(1, max(a.lengths) // length // 50)
            some = tokens[:MOST_READ]
            found: list[np.ndarray] = []
            seconds[length].append(common.timed(lambda: [found.append(engine.embed([tokens])) for _ in range(times)]) / times)
            alone[length].append(common.timed(lambda: [read(engine, some) for _ in range(times)]) / times / len(some) * length)
            if round == 0:
                vectors[length], peak[length] = found[0], common.memory("VmHWM")
            assert all((vector == vectors[length]).all() for vector in found), f"another vector of {length} tokens"
    shortest = min(a.lengths)
    together = engine.embed([text[:7], text[:shortest], text[:300]])
    assert (together[1] == vectors[shortest][0]).all(), "another vector in a batch"

    per_token = {length: common.median(seconds[length]) / length for length in a.lengths}
    results = [
        {
            "tokens": length,
            "seconds": common.rounded(common.median(seconds[length])),
            "microseconds_per_token": common.rounded(1e6 * per_token[length]),
            "microseconds_lowest_highest": common.lowest_highest(1e6 * s / length for s in seconds[length]),
            "times_the_first": common.rounded(per_token[length] / per_token[a.lengths[0]]),
            "times_reading_alone": common.rounded(common.median(common.ratios(seconds[length], alone[length]))),
            "peak_megabytes": common.rounded(peak[length] / 1e6),
        }
        for length in a.lengths
    ]
    common.record("embed", a, engine, results, weights="trained weights")


if __name__ == "__main__":
    main()
