"""How even the times of single tokens are: median, 90th and 99th percentile and the longest, and what disturbed them.

    python benchmarks/steady.py [--shape 0.1B] [--threads N] [--tokens 2000] [--block 100]

Each precision decodes with threads that go where the system sends them and with pinned ones, in turns of some tokens,
so that what else the machine does falls on both alike. A token's time includes its greedy choice in numpy. Both must
write the same text. Linux says how long each thread could have run and had no core: a token in which no thread waited
for a tenth of a millisecond is one that nothing else on the machine disturbed.
"""

from __future__ import annotations

import os
import pathlib
import resource
import time

import numpy as np

import common
import rwkv_engine as rwkv

WARM_UP = 20  # tokens
DISTURBED = 1e-4  # seconds without a core
TASKS = pathlib.Path("/proc/self/task")


def threads_here() -> set[str]:
    return {path.name for path in TASKS.iterdir()}


class Decoder:
    """An engine with its threads, and what its tokens took."""

    def __init__(self, path: pathlib.Path, precision: str, threads: int, pin: bool, tokens: int) -> None:
        others = threads_here() - {str(os.getpid())}
        self.engine = rwkv.Engine(path, f"cpu {precision}", threads=threads, pin=pin)
        self.files = [os.open(TASKS / thread / "schedstat", os.O_RDONLY) for thread in threads_here() - others]
        self.state = self.engine.new_state()
        self.last, self.done = 1, 0
        # Arrays of ones, so that the page faults are the engine's and not those of lists that grow.
        self.ids = np.ones(tokens, int)
        self.seconds, self.waits = np.ones(tokens), np.ones(tokens)  # waits: of the thread that waited longest for a core
        self.counted = np.zeros(3, int)
        self.run(min(WARM_UP, tokens))
        self.done, self.counted = 0, np.zeros(3, int)

    def waited(self) -> np.ndarray:
        return np.array([int(os.pread(file, 100, 0).split()[1]) for file in self.files]) / 1e9

    def counters(self) -> np.ndarray:
        own = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([own.ru_minflt + own.ru_majflt, own.ru_nvcsw, own.ru_nivcsw])

    def run(self, tokens: int) -> None:
        before, waited = self.counters(), self.waited()
        for i in range(self.done, self.done + tokens):
            begin = time.perf_counter()
            self.last = int(self.engine.forward([self.last], self.state).argmax())
            self.seconds[i] = time.perf_counter() - begin
            now = self.waited()
            self.ids[i], self.waits[i] = self.last, (now - waited).max()
            waited = now
        self.done += tokens
        self.counted = self.counted + self.counters() - before

    def result(self) -> dict[str, object]:
        seconds = self.seconds
        alone = seconds[self.waits < DISTURBED]
        median, p90, p99, longest = (float(q) for q in np.percentile(seconds, [50, 90, 99, 100]))
        faults, waited, preempted = (int(count) for count in self.counted)
        return {
            "milliseconds_median": common.rounded(median * 1e3),
            "milliseconds_p90": common.rounded(p90 * 1e3),
            "milliseconds_p99": common.rounded(p99 * 1e3),
            "milliseconds_longest": common.rounded(longest * 1e3),
            "p99_over_median": common.rounded(p99 / median),
            "undisturbed_tokens": len(alone),
            "undisturbed_p99_over_median": common.rounded(float(np.percentile(alone, 99) / np.median(alone))),
            "page_faults": faults,
            "voluntary_switches": waited,
            "involuntary_switches": preempted,
        }


def main() -> None:
    parser = common.parser(__doc__, shape="0.1B")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--block", type=int, default=100)
    a = common.parse(parser, "70 seconds", quick={"tokens": 40, "block": 10})
    path = common.model_file(a.shape, "bf16")
    results = []
    for precision in ("bf16", "int8"):
        decoders = {pin: Decoder(path, precision, a.threads, pin, a.tokens) for pin in (False, True)}
        while decoders[True].done < a.tokens:
            for decoder in decoders.values():
                decoder.run(min(a.block, a.tokens - decoder.done))
        assert np.array_equal(decoders[False].ids, decoders[True].ids), "pinning changed the answer"
        results += [{"precision": precision, "pinned": pin, **decoder.result()} for pin, decoder in decoders.items()]
    common.record(f"steady-{a.shape}-{a.threads}t", a, decoders[True].engine, results)


if __name__ == "__main__":
    main()
