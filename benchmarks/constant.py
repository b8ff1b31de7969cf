"""Time and memory for a token after a thousand tokens and after a million, beside what a transformer would have to keep.

    python benchmarks/constant.py [--shape 0.1B] [--threads N] [--positions 1000 10000 100000 1000000] [--tokens 32]
                                  [--rounds 7]

One state reads random tokens up to each position, where it is saved and the resident memory of the process is noted.
At the end the saved states take turns: each decodes some tokens in every round, so that what else the machine does
falls on all of them alike. A restored state must have seen as many tokens as its position says, and continue in every
round as the state did when it was there.

The transformer is computed, not run: the key-value cache in fp16 of full multi-head attention with the same L and C,
and the time merely to read it at the machine's measured bandwidth. Grouped queries divide both by their factor.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import common
import rwkv_engine as rwkv

CALL = 4096  # tokens in one call, which is all that memory while reading depends on


def decode(engine: rwkv.Engine, state: rwkv.State, tokens: int) -> list[int]:
    ids = [1]
    for _ in range(tokens):
        ids.append(int(engine.forward(ids[-1:], state).argmax()))
    return ids


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--positions", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    a = common.parse(parser, "11 minutes", quick={"positions": [10, 100, 1000], "tokens": 3, "rounds": 2})
    engine = rwkv.Engine(common.model_file(a.shape, "bf16"), "cpu bf16", threads=a.threads)
    config = engine.config
    rng = np.random.default_rng(0)
    state = engine.new_state()
    engine.forward(rng.integers(1, config.n_vocab, CALL), state, output="none")
    resident, reading, answers = {}, {}, {}
    with tempfile.TemporaryDirectory(dir=common.BUILD) as folder:
        for _ in range(3):  # before anything counts: then the memory that every position needs is there
            state.save(Path(folder) / "warm")
            decode(engine, state.fork(), a.tokens)
        state = engine.new_state()
        for position in a.positions:
            begin, first = time.perf_counter(), state.tokens_seen
            while state.tokens_seen < position:
                count = min(CALL, position - state.tokens_seen)
                engine.forward(rng.integers(1, config.n_vocab, count), state, output="none")
            reading[position] = (position - first) / (time.perf_counter() - begin)
            resident[position] = common.memory("VmRSS")
            common.note(f"{position} tokens, read at {reading[position]:.0f} tokens/s")
            state.save(Path(folder) / str(position))
            answers[position] = decode(engine, state.fork(), a.tokens)

        seconds: dict[int, list[float]] = {position: [] for position in a.positions}
        limits = common.Limits(a.quick)  # takes memory of its own, so not before
        for _ in range(a.rounds):
            for position in a.positions:
                restored = engine.load_state(Path(folder) / str(position))
                assert restored.tokens_seen == position
                found: list[int] = []
                elapsed = common.timed(lambda: found.extend(decode(engine, restored, a.tokens)))
                assert found == answers[position], f"the answer changed at {position}"
                seconds[position].append(elapsed / a.tokens)
        bandwidth = limits.read_bandwidth(a.threads)

    weights = common.streamed_bytes(config, a.shape, "bf16")
    results = []
    for position in a.positions:
        cache = 2 * config.n_layer * config.n_embd * 2 * position
        second = common.median(seconds[position])
        results.append(
            {
                "position": position,
                "milliseconds_per_token": common.rounded(second * 1e3),
                "milliseconds_lowest_highest": common.lowest_highest(s * 1e3 for s in seconds[position]),
                "gigabytes_per_second": common.rounded((weights + 2 * state.nbytes) / second / 1e9),
                "share_of_read_bandwidth": common.rounded((weights + 2 * state.nbytes) / second / 1e9 / bandwidth),
                "prefill_tokens_per_second": common.rounded(reading[position]),
                "resident_megabytes": common.rounded(resident[position] / 1e6),
                "state_megabytes": common.rounded(state.nbytes / 1e6),
                "megabytes_per_token": common.rounded((weights + 2 * state.nbytes) / 1e6),
                "kv_cache_megabytes": common.rounded(cache / 1e6),
                "kv_cache_read_milliseconds": common.rounded(cache / bandwidth / 1e6),
                "transformer_megabytes_per_token": common.rounded((weights + cache) / 1e6),
            }
        )
    common.record("constant", a, engine, results)


if __name__ == "__main__":
    main()
