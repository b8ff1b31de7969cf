"""Compiles probes.cu and runs its probes, each in a process of its own: one that fails or hangs loses no other.

    python benchmarks/gpu/probes.py [--architecture 90] [--probes bandwidth nodes ...] [--seconds 30] [--program FILE]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import results

NAMES = ("bandwidth", "nodes", "barrier", "chain", "wkv", "mma")
SOURCE = pathlib.Path(__file__).with_name("probes.cu")


def run(program: pathlib.Path, name: str, seconds: float) -> dict[str, object]:
    """What a probe printed; {"error": why} if it did not."""
    try:
        done = subprocess.run([program, name], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {seconds:.0f} s"}
    if done.returncode != 0:
        return {"error": done.stderr.strip()[-500:] or f"exit status {done.returncode}"}
    return json.loads(done.stdout)


def compile_probes(architecture: str, program: pathlib.Path) -> None:
    subprocess.run(["nvcc", "-std=c++20", "-O3", f"-arch=sm_{architecture}", SOURCE, "-o", program], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="90", help="compute capability without the dot")
    parser.add_argument("--probes", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seconds", type=float, default=30, help="for each")
    parser.add_argument("--program", type=pathlib.Path, help="as --compile left it; compiled anew if it is not there")
    parser.add_argument("--compile", type=pathlib.Path, metavar="FILE", help="only that")
    a = parser.parse_args()
    if a.compile:
        unfinished = a.compile.with_name("unfinished-probes")
        compile_probes(a.architecture, unfinished)
        unfinished.rename(a.compile)
        return 0
    rows: list[dict[str, object]] = []
    limits: dict[str, float] = {}
    errors: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "probes")
        if a.program and a.program.exists():
            program = a.program
        else:
            compile_probes(a.architecture, program)
        for name in a.probes:
            found = run(program, name, a.seconds)
            if "error" in found:
                errors[name] = found["error"]
                print(f"{name}: {found['error']}", file=sys.stderr)
            rows += found.get("rows", [])
            limits |= found.get("limits", {})
            results.write("probes", {"architecture": a.architecture}, rows, limits=limits, errors=errors)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
