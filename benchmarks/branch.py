"""A beam search that forks states, against the same search that reads the whole text again for every branch.

    python benchmarks/branch.py [--shape 0.1B] [--threads N] [--prefixes 128 512 2048] [--width 16] [--steps 4]
                                [--rounds 1]

Both are one function over two ways of stepping branches, both step all branches of a step in one batch, and both must
find the same texts with the same log-probabilities, compared with ==. The forks search before and after each
rereading.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import common
import rwkv_engine as rwkv

Branch = tuple[rwkv.State, list[int]]  # a state, and the tokens after the prefix that it has seen
Step = Callable[[list[Branch]], tuple[list[rwkv.State], np.ndarray]]  # the last token of each has not been seen yet


def search(engine: rwkv.Engine, prefix: list[int], width: int, steps: int, step: Step):
    """The best texts as (log-probability, tokens), and the seconds before the first step and after."""
    begin = time.perf_counter()
    state = engine.new_state()
    logits = engine.forward(prefix, state)[None]
    beam: list[tuple[float, list[int], rwkv.State]] = [(0.0, [], state)]
    first = time.perf_counter()
    for _ in range(steps):
        top = logits.max(axis=1)
        norms = (top + np.log(np.exp(logits - top[:, None]).sum(axis=1))).tolist()
        candidates = [
            (total + float(row[token]) - norm, [*tokens, token], parent)
            for (total, tokens, parent), row, norm in zip(beam, logits, norms, strict=True)
            for token in np.argpartition(row, -width)[-width:].tolist()
        ]
        beam = sorted(candidates, key=lambda c: (-c[0], c[1]))[:width]
        states, logits = step([(parent, tokens) for _, tokens, parent in beam])
        beam = [(total, tokens, state) for (total, tokens, _), state in zip(beam, states, strict=True)]
    end = time.perf_counter()
    return [(total, tokens) for total, tokens, _ in beam], logits, first - begin, end - first


def fork(engine: rwkv.Engine) -> Step:
    def step(branches: list[Branch]):
        states = [parent.fork() for parent, _ in branches]
        return states, engine.forward_batch([tokens[-1:] for _, tokens in branches], states)

    return step


def reread(engine: rwkv.Engine, prefix: list[int]) -> Step:
    def step(branches: list[Branch]):
        states = [engine.new_state() for _ in branches]
        return states, engine.forward_batch([prefix + tokens for _, tokens in branches], states)

    return step


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--prefixes", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    a = common.parse(parser, "two minutes", quick={"prefixes": [16, 64], "width": 4, "steps": 3})
    engine = rwkv.Engine(common.model_file(a.shape, "bf16"), "cpu bf16", threads=a.threads)
    text = np.random.default_rng(0).integers(1, engine.config.n_vocab, max(a.prefixes)).tolist()
    search(engine, text[:64], a.width, 1, fork(engine))  # warms up
    search(engine, text[:64], a.width, 1, reread(engine, text[:64]))

    results = []
    for length in a.prefixes:
        prefix = text[:length]
        forked, again = [], []
        for _ in range(a.rounds):
            forked.append(search(engine, prefix, a.width, a.steps, fork(engine)))
            again.append(search(engine, prefix, a.width, a.steps, reread(engine, prefix)))
            forked.append(search(engine, prefix, a.width, a.steps, fork(engine)))
        best, logits = forked[0][:2]
        assert all(found == best and (rows == logits).all() for found, rows, _, _ in forked + again)
        common.note(f"prefix of {length} tokens done")
        whole = {name: common.median(r + s for _, _, r, s in runs) for name, runs in (("fork", forked), ("again", again))}
        step = {name: common.median(s for _, _, _, s in runs) / a.steps for name, runs in (("fork", forked), ("again", again))}
        results.append(
            {
                "prefix_tokens": length,
                "fork_seconds": common.rounded(whole["fork"]),
                "reread_seconds": common.rounded(whole["again"]),
                "ratio": common.rounded(whole["again"] / whole["fork"]),
                "fork_step_milliseconds": common.rounded(step["fork"] * 1e3),
                "reread_step_milliseconds": common.rounded(step["again"] * 1e3),
                "ratio_of_steps": common.rounded(step["again"] / step["fork"]),
                "fork_tokens_per_second": common.rounded(a.width / step["fork"]),
                "best_log_probability": best[0][0],
            }
        )
    common.record("branch", a, engine, results)


if __name__ == "__main__":
    main()
