"""Decode of many sequences at once: tokens/s of all together, and how many times those of one alone.

    python benchmarks/batch.py [--shape 1.5B] [--threads N] [--batches 1 2 4 8 16 32] [--tokens 4] [--rounds 5]

Each round measures all batches, one after the other. No weights are skipped. The sequences differ, and each must get
the logits that it gets alone, bit for bit.
"""

from __future__ import annotations

import common
import rwkv_engine as rwkv


def main() -> None:
    parser = common.parser(__doc__, shape="1.5B")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8", "int4"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    a = common.parse(parser, "3 minutes at 1.5B", quick={"batches": [1, 3], "tokens": 2, "rounds": 1})
    path = common.model_file(a.shape, "bf16")
    results = []
    for precision in a.precisions:
        engine = rwkv.Engine(path, f"cpu {precision}", threads=a.threads, sparse=False)

        def run(batch: int) -> float:
            """Tokens of all sequences in a second."""
            states = [engine.new_state() for _ in range(batch)]
            engine.forward_batch([[s + 1] for s in range(batch)], states, output="none")

            def decode() -> None:
                for token in range(a.tokens):
                    rows.append(engine.forward_batch([[token + s] for s in range(batch)], states)[0].tobytes())

            rows: list[bytes] = []
            elapsed = common.timed(decode)
            alone.setdefault("rows", rows)
            assert rows == alone["rows"], "a sequence got other logits in company"
            return batch * a.tokens / elapsed

        alone: dict[str, list[bytes]] = {}
        rounds = [{batch: run(batch) for batch in a.batches} for _ in range(a.rounds + 1)][1:]  # the first warms up
        for batch in a.batches:
            speed = common.median([speeds[batch] for speeds in rounds])
            ratios = [speeds[batch] / speeds[a.batches[0]] for speeds in rounds]
            results.append(
                {
                    "precision": precision,
                    "batch": batch,
                    "tokens_per_second": common.rounded(speed),
                    "milliseconds_per_step": common.rounded(1e3 * batch / speed),
                    "times_the_first": common.rounded(common.median(ratios)),
                    "lowest_highest": common.lowest_highest(ratios),
                }
            )
    common.record(f"batch-{a.shape}-{a.threads}t", a, engine, results)


if __name__ == "__main__":
    main()
