"""The compatibility layer: what its forward costs over Engine.forward on the same engine, token by token.

    python benchmarks/compat.py [--shape 0.1B] [--threads N] [--tokens 24] [--rounds 15]

The two take turns at every token, and which of them begins alternates. Both must give the same bits in every step.
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

        def one_round() -> dict[str, float]:
            """Milliseconds of the median token of each, over a text of their own."""
            handle = engine.new_state()
            row = engine.forward(PROMPT, handle)
            state = model.forward(PROMPT, None)[1]
            rows = {}

            def plain() -> None:
                rows["engine"] = engine.forward(ids, handle)

            def compat() -> None:
                nonlocal state
                rows["compat"], state = model.forward(ids, state)

            times: dict[str, list[float]] = {"engine": [], "compat": []}
            for turn in range(a.tokens):
                ids = [int(row.argmax())]
                pair = [("engine", plain), ("compat", compat)]
                for name, call in pair if turn % 2 else pair[::-1]:
                    times[name].append(common.timed(call) * 1e3)
                row = rows["engine"]
                assert row.tobytes() == rows["compat"].tobytes(), "the two differ"
            return {name: common.median(values) for name, values in times.items()}

        one_round()  # warms up
        rounds = [one_round() for _ in range(a.rounds)]
        times = {name: [one[name] for one in rounds] for name in ("engine", "compat")}
        overheads = common.ratios(times["compat"], times["engine"])
        results.append(
            {
                "precision": precision,
                "engine_milliseconds_per_token": common.rounded(common.median(times["engine"])),
                "compat_milliseconds_per_token": common.rounded(common.median(times["compat"])),
                "compat_over_engine": common.rounded(common.median(overheads)),
                "lowest_highest": common.lowest_highest(overheads),
                "tokens": a.tokens,
            }
        )
    common.record(f"compat-{a.shape}-{a.threads}t", a, engine, results)


if __name__ == "__main__":
    main()
