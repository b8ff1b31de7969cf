"""Loading: time beside that of reading the file, and memory beside that of the packed weights.

    python benchmarks/load.py [--shape 0.4B] [--threads N] [--rounds 5]

Every load is a process of its own, .pth and .safetensors and both precisions in interleaved rounds, from a file in the
page cache. The limit is measured by the same process just before: reading the file with as many threads into fresh
memory of its size. Whatever the container, the weights must have the same fingerprint and give the same logits.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import sys

import common
import rwkv_engine as rwkv
from rwkv_engine.inspection import inspect

CONTAINERS = (".pth", ".safetensors")
PRECISIONS = ("fp32", "bf16")
ONE = "--one"  # PATH PRECISION THREADS: one load, which is what the processes are started with


def load_once(path: pathlib.Path, precision: str, threads: int) -> dict[str, object]:
    """Memory first, in a process that has done nothing else; it brings the file into the page cache too."""
    strategy = f"cpu {precision}"
    before = peak = common.memory("RssAnon")

    def sample(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, common.memory("RssAnon"))

    engine = rwkv.Engine(path, strategy, threads=threads, progress=sample)
    sample(0, 0)
    high = common.memory("VmHWM")
    logits = engine.forward([1, 2, 3], engine.new_state())
    answer = [engine.fingerprint, hashlib.sha256(logits.tobytes()).hexdigest()]
    del engine
    common.read_file(path, threads)  # warms up
    read = common.timed(lambda: common.read_file(path, threads))
    seconds = common.timed(lambda: rwkv.Engine(path, strategy, threads=threads))
    return {"read": read, "seconds": seconds, "peak": peak - before, "high": high, "answer": answer}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    a = common.parse(parser, "a minute", quick={"rounds": 1})
    files = {suffix: common.model_file(a.shape, "bf16", suffix) for suffix in CONTAINERS}
    runs: dict[tuple[str, str], list[dict]] = {(s, p): [] for s in CONTAINERS for p in PRECISIONS}
    for _ in range(a.rounds):
        for (suffix, precision), found in runs.items():
            command = [sys.executable, __file__, ONE, str(files[suffix]), precision, str(a.threads)]
            found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))

    answers = {precision: {tuple(r["answer"]) for s in CONTAINERS for r in runs[s, precision]} for precision in PRECISIONS}
    assert all(len(found) == 1 for found in answers.values()), "the containers differ"
    assert len({fingerprint for found in answers.values() for fingerprint, _ in found}) == 1
    results = []
    for (suffix, precision), found in runs.items():
        size = files[suffix].stat().st_size
        packed = inspect(files[suffix])["memory_bytes"][f"cpu {precision}"]
        seconds = common.median(r["seconds"] for r in found)
        peak = max(r["peak"] for r in found)
        results.append(
            {
                "container": suffix,
                "precision": precision,
                "seconds": common.rounded(seconds),
                "gigabytes_per_second": common.rounded(size / seconds / 1e9),
                "share_of_file_read": common.rounded(common.median(r["read"] / r["seconds"] for r in found)),
                "file_megabytes": common.rounded(size / 1e6),
                "packed_megabytes": common.rounded(packed / 1e6),
                "peak_anonymous_megabytes": common.rounded(peak / 1e6),
                "peak_over_packed": common.rounded(peak / packed),
                "highest_resident_megabytes": common.rounded(max(r["high"] for r in found) / 1e6),
            }
        )
    common.record(f"load-{a.shape}-{a.threads}t", a, rwkv.Engine(files[".pth"], threads=a.threads), results)


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        print(json.dumps(load_once(pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main()
