"""The compatibility layer: what its forward costs over Engine.forward on the same engine, token by token.

    python benchmarks/compat.py [--shape 0.1B] [--threads N] [--tokens 24] [--rounds 15]

Interleaved rounds, which of the two begins alternates. Both must give the same bits in every step.
"""

from __future__ import annotations

import common
from rwkv_engine.compat import RWKV

PROMPT = list(range(1, 9))


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=15)
    a = common.parse(parser, "a minute", quick={"tokens": 3, "rounds": 2})
    path = common.model_file(a.shape, "bf16")
    results = []
    for precision in ("fp32", "bf16"):
        model = RWKV(path, f"cpu {precision}", threads=a.threads)
        engine = model.engine

        def plain() -> list[bytes]:
            state = engine.new_state()
            ids = [int(engine.forward(PROMPT, state).argmax())]
            rows = []

            def steps() -> None:
                for _ in range(a.tokens):
                    rows.append(engine.forward(ids[-1:], state))
                    ids.append(int(rows[-1].argmax()))

            times["plain"].append(common.timed(steps) / a.tokens)
            return [row.tobytes() for row in rows]

        def compat() -> list[bytes]:
            out, first = model.forward(PROMPT, None)
            ids, states, rows = [int(out.argmax())], [first], []

            def steps() -> None:
                for _ in range(a.tokens):
                    out, states[0] = model.forward(ids[-1:], states[0])
                    rows.append(out)
                    ids.append(int(out.argmax()))

            times["compat"].append(common.timed(steps) / a.tokens)
            return [row.tobytes() for row in rows]

        times: dict[str, list[float]] = {"plain": [], "compat": []}
        for turn in range(a.rounds + 1):
            first, second = (plain, compat) if turn % 2 else (compat, plain)
            assert first() == second(), "the two differ"
            if turn == 0:  # the first round warms up
                times = {"plain": [], "compat": []}
        overheads = common.ratios(times["compat"], times["plain"])
        results.append(
            {
                "precision": precision,
                "engine_milliseconds_per_token": common.rounded(common.median(times["plain"]) * 1e3),
                "compat_milliseconds_per_token": common.rounded(common.median(times["compat"]) * 1e3),
                "compat_over_engine": common.rounded(common.median(overheads)),
                "lowest_highest": common.lowest_highest(overheads),
                "tokens": a.tokens,
            }
        )
    common.record(f"compat-{a.shape}-{a.threads}t", a, engine, results)


if __name__ == "__main__":
    main()
