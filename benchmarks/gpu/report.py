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
    lines = pathlib.Path(path).read_text(errors="replace").split("\n")  # what a tool said may hold anything else
    rows = [line.split("\t") for line in lines if line]
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


def engines() -> None:
    """What was checked, and of each shape a table with the features side by side."""
    found = results.read("engine")
    if found is None:
        return
    heads = ["shape", "precision", "features", "skipping", "load s", "logits from cpu fp32", "same bits", "device", "error"]
    keys = ["shape", "precision", "features", "skipping", "load_seconds", "largest_logit_difference", "same_bits", "device", "error"]
    zeros = ", ".join(f"{shape} {share:.1%}" for shape, share in found["settings"]["ffn_zero_fraction"].items())
    title = f"engines; random weights, ffn activations that are zero: {zeros}"
    table(title, heads, [[check.get(key) for key in keys] for check in found["checks"]])
    for shape in dict.fromkeys(row["shape"] for row in found["results"]):
        engine(shape, [row for row in found["results"] if row["shape"] == shape])


def engine(shape: str, results: list[dict]) -> None:
    rows: dict[tuple, dict[str, dict]] = {}
    for row in results:
        what = f"{row['task']} {row['batch']}" + (f"x{row['length']}" if "length" in row else "")
        precision = row["precision"] + ("" if row["skipping"] else " dense")
        rows.setdefault((precision, what), {})[row["features"]] = row
    features = sorted({row["features"] for row in results}, key=lambda words: (-len(words.split(",")), words))
    heads = ["precision", "what", "tokens/s", "ms", "GB/s", "TFLOP/s", "of roofline", "with", *(f"{f or 'plain'}" for f in features)]
    lines = []
    for (precision, what), by in rows.items():
        best = max(by.values(), key=lambda row: row.get("tokens_per_second", 0))
        line = [precision, what, best.get("tokens_per_second"), best.get("milliseconds")]
        line += [best.get("gigabytes_per_second"), best.get("teraflops")]
        line += [percent(best.get("share_of_roofline")), best["features"] or "plain"]
        line += [by[f].get("tokens_per_second", by[f].get("unfinished")) if f in by else None for f in features]
        if "times_an_ordinary_step" in best:
            line[1] += f", {best['times_an_ordinary_step']} of an ordinary step"
        lines.append(line)
    table(f"{shape}; tokens/s with each of the features", heads, lines)


def breakdown() -> None:
    found = results.read("breakdown")
    if found is None:
        return
    keys = ["what", "kernel", "launches", "microseconds", "share", "gigabytes_per_second"]
    title = f"{found['settings']['shape']} fp16, kernels of a call of SEQUENCESxTOKENS; alone: one by one, with counters"
    table(title, ["call", "kernel", "launches", "us", "share", "GB/s"], [[row.get(key) for key in keys] for row in found["results"]])
    for tool, why in found["left_out"].items():
        print(f"  {tool} is left out: {why}")


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
    breakdown()
    engines()
    peers()
    if len(sys.argv) > 1:
        steps(sys.argv[1])


if __name__ == "__main__":
    main()
