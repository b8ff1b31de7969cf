"""The tables of a run, from the gpu-*.json in $OUT.

    python benchmarks/gpu/report.py [STEPS]

STEPS are lines of gpu_check.sh: a step's name, status, seconds and last words, which go to gpu-steps.json.
"""

from __future__ import annotations

import json
import pathlib
import sys

import results


def table(title: str, heads: list[str], rows: list[list[object]]) -> None:
    """Columns as wide as they must be; None is a dash."""
    if not rows:
        return
    cells = [heads, *(["-" if value is None else str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def steps(path: str) -> None:
    rows = [line.split("\t") for line in pathlib.Path(path).read_text().splitlines()]
    keys = ["step", "status", "seconds", "said"]
    results.write("steps", {}, [dict(zip(keys, row, strict=True)) for row in rows])
    table("steps", keys, rows)


def probes() -> None:
    found = results.read("probes")
    if found is None:
        return
    heads = ["probe", "what", "microseconds", "GB/s", "TFLOP/s"]
    keys = ["probe", "what", "microseconds", "gigabytes_per_second", "teraflops"]
    table("probes", heads, [[row[key] or None for key in keys] for row in found["results"]])
    print("  limits: " + ", ".join(f"{name} {value:g}" for name, value in found["limits"].items()))


def engine(shape: str, found: dict) -> None:
    zeros = found["settings"]["ffn_zero_fraction"]
    checks = [
        [c["precision"], c["features"], c["skipping"], c.get("load_seconds"), c.get("largest_logit_difference")]
        + [c.get("same_bits", c.get("error"))]
        for c in found["checks"]
    ]
    heads = ["precision", "features", "skipping", "load s", "logits from cpu fp32", "same bits"]
    table(f"{shape} on {found['device']}, random weights, {zeros:.1%} of ffn activations zero", heads, checks)
    # With and without features side by side.
    rows: dict[tuple, dict[str, dict]] = {}
    for row in found["results"]:
        what = f"{row['task']} {row['batch']}" + (f"x{row['length']}" if "length" in row else "")
        precision = row["precision"] + ("" if row["skipping"] else " dense")
        rows.setdefault((precision, what), {})[row["features"]] = row
    lines = []
    for (precision, what), both in rows.items():
        names = ("graphs,pdl", "", "graphs,pdl,nofused", "graphs,pdl,cublaslt")
        best, plain, unfused, cublaslt = (both.get(features, {}) for features in names)
        line = [precision, what, best.get("tokens_per_second"), best.get("milliseconds")]
        line += [percent(best.get("share_of_roofline")), plain.get("tokens_per_second")]
        line += [unfused.get("tokens_per_second"), cublaslt.get("tokens_per_second")]
        line += [best.get("times_an_ordinary_step"), best.get("unfinished", plain.get("unfinished"))]
        lines.append(line)
    heads = ["precision", "what", "tokens/s", "ms", "of roofline", "tokens/s plain", "tokens/s unfused", "tokens/s cublaslt", "ordinary steps", "unfinished"]
    table(f"{shape}: with launch graphs and dependent launches, and plain", heads, lines)


def peers() -> None:
    found = results.read("peers")
    if found is None:
        return
    keys = ["peer", "version", "what", "milliseconds", "tokens_per_second", "teraflops"]
    table("peers", ["peer", "version", "what", "ms", "tokens/s", "TFLOP/s"], [[r[k] for k in keys] for r in found["results"]])
    for peer, why in found["left_out"].items():
        print(f"  {peer} is left out: {why}")


def main() -> None:
    print(json.dumps(results.machine()))
    probes()
    for path in sorted(results.folder().glob("gpu-engine-*.json")):
        engine(path.stem.removeprefix("gpu-engine-"), json.loads(path.read_text()))
    peers()
    if len(sys.argv) > 1:
        steps(sys.argv[1])


if __name__ == "__main__":
    main()
