"""States: what fork, the first step after it, to_bytes, save and the ways back cost, beside what they could cost.

    python benchmarks/states.py [--threads N] [--rounds 30]

`to_bytes` and its way back are compared with a memcpy of the state plus Python's SHA-256 of it, files with the same
bytes written durably or read, plus the digest; all in interleaved rounds. Every state that comes back must be the one
that went. The model has the 1.5B state (24 layers, 32 heads of 64) and a small ffn and vocabulary, which a state does
not know.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

import common
import rwkv_engine as rwkv

COPY, WRITE, READ = "memcpy + sha256", "durable write + sha256", "read + sha256"
LIMITS = {
    "step after fork": "step",
    "to_bytes": COPY,
    "state_from_bytes": COPY,
    "save": WRITE,
    "load_state": READ,
}
FORKS = 1000


def main() -> None:
    parser = common.parser(__doc__, shape=None)
    parser.add_argument("--rounds", type=int, default=30)
    a = common.parse(parser, "half a minute", quick={"rounds": 2})
    if a.quick:
        path = common.model_file("tiny", "bf16")
    else:
        a.shape = "1.5B"
        path = common.model_file(a.shape, "bf16", F=64, V=1024)
    engine = rwkv.Engine(path, "cpu bf16", threads=a.threads)
    state = engine.new_state()
    engine.forward(list(range(20)), state)
    blob = state.to_bytes()
    plain = np.frombuffer(blob, np.uint8)
    target = np.empty_like(plain)
    digest = hashlib.sha256(plain).digest()
    assert blob == state.to_bytes()

    seconds: dict[str, list[float]] = {}

    def measure(name: str, call):
        found = []
        seconds.setdefault(name, []).append(common.timed(lambda: found.append(call())))
        return found[0]

    def copy_and_digest() -> bytes:
        np.copyto(target, plain)
        return hashlib.sha256(target).digest()

    def write_and_digest() -> bytes:
        common.write_durably(folder / "plain", plain)
        return hashlib.sha256(plain).digest()

    with tempfile.TemporaryDirectory(dir=common.BUILD) as name:
        folder = Path(name)
        common.write_durably(folder / "plain", plain)
        state.save(folder / "state")
        for _ in range(a.rounds):
            branch = measure("first fork after other work", state.fork)
            for _ in range(20):
                measure("fork", state.fork)
            forks = measure("fork(1000)", lambda: state.fork(FORKS))
            seconds["fork(1000)"][-1] /= FORKS
            forks.clear()
            ordinary = measure("step", lambda: engine.forward([5], state))
            forked = measure("step after fork", lambda: engine.forward([5], branch))
            assert (forked == ordinary).all() and branch.equals(state)
            state = engine.state_from_bytes(blob)
            assert measure(COPY, copy_and_digest) == digest
            assert measure("to_bytes", state.to_bytes) == blob
            assert measure("state_from_bytes", lambda: engine.state_from_bytes(blob)).equals(state)
            assert measure(WRITE, write_and_digest) == digest
            measure("save", lambda: state.save(folder / "state"))
            assert measure(READ, lambda: hashlib.sha256((folder / "plain").read_bytes()).digest()) == digest
            assert measure("load_state", lambda: engine.load_state(folder / "state")).equals(state)

    results = []
    for operation, times in seconds.items():
        limit = LIMITS.get(operation)
        moves = None if "fork" in operation or operation == "step" else len(blob)
        results.append(
            {
                "operation": operation,
                "microseconds": common.rounded(common.median(times) * 1e6),
                "megabytes": moves and common.rounded(moves / 1e6),
                "gigabytes_per_second": moves and common.rounded(moves / common.median(times) / 1e9),
                "limit": limit,
                "share_of_limit": limit and common.rounded(common.median(common.ratios(seconds[limit], times))),
            }
        )
    common.record(f"states-{a.shape}", a, engine, results)


if __name__ == "__main__":
    main()
