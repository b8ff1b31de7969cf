"""States of the 1.5B shape: what fork, the first step after it, to_bytes and restore cost.

    python benchmarks/states.py [--rounds 30]

`to_bytes` is compared with a memcpy of the state plus SHA-256 of it by Python's hashlib, in interleaved rounds. The
model has the 1.5B state (24 layers, 32 heads of 64) and a small ffn and vocabulary, which a state does not know.
"""

from __future__ import annotations

import argparse
import hashlib

import numpy as np

import common
import rwkv_engine as rwkv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    a = parser.parse_args()
    engine = rwkv.Engine(str(common.model_file("1.5B", "bf16", F=64, V=1024)), "cpu bf16", threads=2)
    state = engine.new_state()
    engine.forward(list(range(20)), state)
    plain = np.frombuffer(state.to_bytes(), np.uint8)
    target = np.empty_like(plain)
    seconds: dict[str, list[float]] = {k: [] for k in ("fork", "first fork after other work", "step", "step after fork", "to_bytes", "memcpy + sha256", "restore")}
    for _ in range(a.rounds):
        forks: list[rwkv.State] = []
        seconds["first fork after other work"].append(common.timed(lambda: forks.append(state.fork())))
        for _ in range(20):
            seconds["fork"].append(common.timed(state.fork))
        seconds["step"].append(common.timed(lambda: engine.forward([5], state)))
        seconds["step after fork"].append(common.timed(lambda: engine.forward([5], forks[0])))
        seconds["to_bytes"].append(common.timed(state.to_bytes))

        def copy_and_digest() -> None:
            np.copyto(target, plain)
            hashlib.sha256(target).digest()

        seconds["memcpy + sha256"].append(common.timed(copy_and_digest))
        blob = state.to_bytes()
        restored: list[rwkv.State] = []
        seconds["restore"].append(common.timed(lambda: restored.append(engine.state_from_bytes(blob))))
        assert restored[0].equals(state)
    many = common.timed(lambda: state.fork(1000)) / 1000
    medians = {name: common.median(values) for name, values in seconds.items()}
    ratio = common.median([x / y for x, y in zip(seconds["to_bytes"], seconds["memcpy + sha256"], strict=True)])
    after = common.median([x / y for x, y in zip(seconds["step after fork"], seconds["step"], strict=True)])
    common.record(
        "states-1.5B",
        {
            "state_megabytes": round(state.nbytes / 1e6, 2),
            "microseconds": {name: round(value * 1e6, 2) for name, value in medians.items()},
            "microseconds per fork of fork(1000)": round(many * 1e6, 2),
            "to_bytes over memcpy + sha256": round(ratio, 2),
            "step after fork over ordinary step": round(after, 3),
        },
    )


if __name__ == "__main__":
    main()
