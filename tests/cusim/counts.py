"""What translated kernels ask of a GPU, launch by launch: counts.py COUNTS PTX_FOLDER

COUNTS is what a simulator with RWKV_CUSIM=counts:COUNTS wrote, PTX_FOLDER where its kernels were translated from
(build/tests/ptx/90). A line has a launch's kernel and blocks; how many instructions a warp executes, and how many of
them are mma; the kB of the sectors of 32 bytes that are touched, and of those that would be if no byte of them were for
nothing; the passes over shared memory, and the fewest; and how many launches are the same. Below it come the places in
the sources where one in ten of all sectors or passes is for nothing.

These are counts, not times. Sectors are counted anew in each request, whether or not a cache still has them, and every
lane of a warp takes the path of the one that has done most.
"""

import argparse
import pathlib
import re
from collections import Counter, defaultdict

ROW = "{:24} {:>7} {:>12} {:>6} {:>10} {:>10} {:>10} {:>10}"


def read(path):
    """(kernel, numbers, {(line of PTX, space): numbers}) of each launch."""
    launches = []
    for line in path.read_text().splitlines():
        first, second, *rest = line.split()
        if line.startswith(" "):
            launches[-1][2][int(first), second] = pairs(rest)
        else:
            launches.append((first, {"file": rest[0], **pairs(rest[1:])}, {}))
    return launches


def pairs(words):
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


def places(path):
    """Where each line of a file of PTX is from: FILE:LINE, and what it is inlined into."""
    files, found, place = {}, {}, "?"
    lines = path.read_text().splitlines()
    for line in lines:
        if match := re.match(r'\s*\.file\s+(\d+) "([^"]+)"', line):
            files[match[1]] = pathlib.PurePosixPath(match[2]).name
    for number, line in enumerate(lines, 1):
        if match := re.match(r"\s*\.loc\s+(\d+) (\d+) \d+(?:.*inlined_at (\d+) (\d+))?", line):
            place = f"{files[match[1]]}:{match[2]}"
            if match[3]:
                place += f" in {files[match[3]]}:{match[4]}"
        found[number] = place
    return found


def waste(launch, sites, where):
    """A line for each place where one in ten of all that the launch touches is for nothing."""
    scale = launch["blocks"] / launch["counted"]  # of a block to all
    by_place = defaultdict(Counter)
    for (line, space), site in sites.items():
        by_place[space, where[line]].update(site)
    for (space, place), site in by_place.items():
        if 10 * (site["passes"] - site["least"]) >= sum(s["passes"] for (_, of), s in sites.items() if of == space):
            requests, found, least = (round(scale * site[what]) for what in ("requests", "passes", "least"))
            unit = "sectors" if space == "global" else "passes"
            yield f"    {place}: {requests} requests, {found} {unit}, at least {least}"


def report(counts, folder):
    """A text for each launch."""
    where = {}
    for name, launch, sites in read(counts):
        scale = launch["blocks"] / launch["counted"]
        total = {
            (space, what): scale * sum(site[what] for (_, of), site in sites.items() if of == space)
            for space in ("global", "shared")
            for what in ("passes", "least")
        }
        line = ROW.format(
            name,
            launch["blocks"],
            round(launch["instructions"] / launch["warps"]),
            round(launch["mma"] / launch["warps"]),
            f"{total['global', 'passes'] * 32 / 1000:.1f}",
            f"{total['global', 'least'] * 32 / 1000:.1f}",
            round(total["shared", "passes"]),
            round(total["shared", "least"]),
        )
        file = launch["file"]
        if sites and file not in where:
            where[file] = places(folder / file)
        yield "\n".join([line, *(waste(launch, sites, where[file]) if sites else ())])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=pathlib.Path)
    parser.add_argument("ptx_folder", type=pathlib.Path)
    options = parser.parse_args()
    print(ROW.format("kernel", "blocks", "instructions", "mma", "kB", "at least", "passes", "at least"), "launches")
    for text, times in Counter(report(options.counts, options.ptx_folder)).items():
        first, *more = text.split("\n")
        print("\n".join([f"{first} {times:8}", *more]))


if __name__ == "__main__":
    main()
