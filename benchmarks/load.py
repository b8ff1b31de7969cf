"""Loading: time beside that of reading the file, and memory beside that of the packed weights.

    python benchmarks/load.py [--shape 0.4B] [--threads N] [--rounds 5]

Every load is a process of its own, all containers and precisions in interleaved rounds, from a file in the page cache.
Files of `quantize` are opened in both ways, whichever the engine would choose. The limit is measured by the same process
just before: reading the file with as many threads into fresh memory of its size, or having its pages mapped. Whatever
the container, the weights must have the same fingerprint, and in one precision give the same logits.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pathlib
import subprocess
import sys

import common
import rwkv_engine as rwkv
from rwkv_engine.inspection import inspect

MAPPED = "quantised, mapped"
CASES = [(container, precision) for container in (".pth", ".safetensors") for precision in ("fp32", "bf16")]
CASES += [(container, "int8") for container in (".pth", "quantised, read", MAPPED)]
MADV_POPULATE_READ = 22  # which Python has no name for
ONE = "--one"  # PATH PRECISION THREADS: one load, which is what the processes are started with


def fault_pages(path: pathlib.Path) -> None:
    """Maps a file whole, asking for huge pages, and has the system fill in all of them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        pages.madvise(MADV_POPULATE_READ)


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
    huge = common.memory("FilePmdMapped", "smaps_rollup")
    del engine
    mapped = os.environ.get("RWKV_MAP") == "1"
    common.read_file(path, threads)  # warms up
    limit = common.timed(lambda: fault_pages(path) if mapped else common.read_file(path, threads))
    seconds = common.timed(lambda: rwkv.Engine(path, strategy, threads=threads))
    return {"limit": limit, "seconds": seconds, "peak": peak - before, "high": high, "huge": huge, "answer": answer}


def quantised_file(source: pathlib.Path) -> pathlib.Path:
    """Written anew each time: as `quantize` leaves it, the system reads it into huge pages, if it can."""
    path = source.with_name(f"{source.stem}-int8.safetensors")
    rwkv.quantize(source, path, "int8", overwrite=True)
    return path


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    a = common.parse(parser, "a minute", quick={"rounds": 1})
    files = {container: common.model_file(a.shape, "bf16", container) for container in (".pth", ".safetensors")}
    for container, _ in CASES:
        if container not in files:
            files[container] = quantised_file(files[".pth"])
    runs: dict[tuple[str, str], list[dict]] = {case: [] for case in CASES}
    for _ in range(a.rounds):
        for (container, precision), found in runs.items():
            command = [sys.executable, __file__, ONE, str(files[container]), precision, str(a.threads)]
            environment = {**os.environ, "RWKV_MAP": "1" if container == MAPPED else "0"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            found.append(json.loads(done.stdout))

    answers: dict[str, set] = {}
    for (_, precision), found in runs.items():
        answers.setdefault(precision, set()).update(tuple(r["answer"]) for r in found)
    assert all(len(found) == 1 for found in answers.values()), "the containers differ"
    assert len({fingerprint for found in answers.values() for fingerprint, _ in found}) == 1
    results = []
    for (container, precision), found in runs.items():
        size = files[container].stat().st_size
        packed = inspect(files[container])["memory_bytes"][f"cpu {precision}"]
        seconds = common.median(r["seconds"] for r in found)
        peak = max(r["peak"] for r in found)
        results.append(
            {
                "container": container,
                "precision": precision,
                "seconds": common.rounded(seconds),
                "gigabytes_per_second": common.rounded(size / seconds / 1e9),
                "limit": "mapping the pages" if container == MAPPED else "reading the file",
                "share_of_limit": common.rounded(common.median(r["limit"] / r["seconds"] for r in found)),
                "file_megabytes": common.rounded(size / 1e6),
                "packed_megabytes": common.rounded(packed / 1e6),
                "peak_anonymous_megabytes": common.rounded(peak / 1e6),
                "peak_over_packed": common.rounded(peak / packed),
                "huge_page_megabytes": int(common.median(r["huge"] for r in found)) >> 20,
                "highest_resident_megabytes": common.rounded(max(r["high"] for r in found) / 1e6),
            }
        )
    common.record(f"load-{a.shape}-{a.threads}t", a, rwkv.Engine(files[".pth"], threads=a.threads), results)


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        print(json.dumps(load_once(pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main()
