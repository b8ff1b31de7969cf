"""The figures of the README, from the results of constant.py and branch.py.

    python benchmarks/plot.py --machine NAME | --results FOLDER

Writes constant.svg and branch.svg beside the results, which --machine finds in benchmarks/results/NAME/. The same results and the same matplotlib give the same bytes.
The background is left transparent, and all colours can be read on white and on black.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: E402

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
GREY, BLUE, ORANGE = "#768390", "#2f81f7", "#db6d28"
STYLE = {
    "svg.hashsalt": "rwkv-engine",
    "svg.fonttype": "none",  # letters as letters: a tenth of the size
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "lines.marker": "o",
    "lines.markersize": 5,
    "lines.linewidth": 2,
}


def number(value: float, _position: object = None) -> str:
    """Such as 100k: short, and the same for ticks and labels."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(number))
        axis.set_minor_locator(NullLocator())


def end(axes: Axes, x: float, y: float, text: str, color: str, below: bool = False) -> None:
    """A label at the end of a line."""
    place = {"textcoords": "offset points", "xytext": (0, -14 if below else 8), "ha": "right"}
    axes.annotate(text, (x, y), color=color, **place)


def column(document: dict, key: str) -> list[float]:
    return [row[key] for row in document["results"]]


def caption(figure: plt.Figure, document: dict, more: str) -> None:
    settings, machine = document["settings"], document["machine"]
    figure.supxlabel(f"shape {settings['shape']}, bf16, {machine['device']}; {more}", fontsize=8.5, color=GREY)


def constant(document: dict) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    x = column(document, "position")
    ours, cache = column(document, "milliseconds_per_token"), column(document, "kv_cache_read_milliseconds")
    panel(left, "Time for a token", "tokens read before", "milliseconds per token")
    left.plot(x, cache, color=ORANGE, linestyle="--", marker="")
    left.plot(x, ours, color=BLUE)
    end(left, x[-1], ours[-1], f"this engine: {number(ours[-1])} ms", BLUE, below=True)
    end(left, x[-1], cache[-1], "only to read a KV cache", ORANGE)
    resident, kept = column(document, "resident_megabytes"), column(document, "kv_cache_megabytes")
    panel(right, "Memory of one sequence", "tokens read before", "megabytes")
    right.plot(x, kept, color=ORANGE, linestyle="--", marker="")
    right.plot(x, resident, color=BLUE)
    state = column(document, "state_megabytes")
    right.plot(x, state, color=BLUE, alpha=0.6)
    end(right, x[-1], resident[-1], f"whole process: {number(resident[-1])} MB", BLUE, below=True)
    end(right, x[-1], state[-1], f"of it the state: {number(state[-1])} MB", BLUE, below=True)
    end(right, x[-1], kept[-1], "KV cache", ORANGE)
    for axes in (left, right):
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.8, high * 2.5)  # room for the labels
    caption(figure, document, "KV cache: full attention of the same layers and width, in fp16, computed")
    return figure


def branch(document: dict) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    x = column(document, "prefix_tokens")
    forked, again = column(document, "fork_step_milliseconds"), column(document, "reread_step_milliseconds")
    width = document["settings"]["width"]
    panel(axes, f"A step of a search of {width} branches", "tokens before the search", "milliseconds per step")
    axes.plot(x, again, color=ORANGE)
    axes.plot(x, forked, color=BLUE)
    for at, low, high, ratio in zip(x, forked, again, column(document, "ratio_of_steps"), strict=True):
        axes.plot([at, at], [low, high], color=GREY, linewidth=1, linestyle=":", marker="")
        middle = {"textcoords": "offset points", "xytext": (5, 0), "va": "center"}
        axes.annotate(f"{number(ratio)} times", (at, (low * high) ** 0.5), **middle)
    end(axes, x[-1], again[-1], "every branch read again", ORANGE)
    end(axes, x[-1], forked[-1], "states forked", BLUE, below=True)
    axes.set_xticks(x, [f"{tokens:,}" for tokens in x])
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.8, high * 1.8)
    axes.set_xlim(right=x[-1] * 1.9)
    caption(figure, document, "both find the same texts")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--machine", dest="results", type=RESULTS.joinpath, metavar="NAME", help="those in benchmarks/results/NAME/")
    where.add_argument("--results", type=pathlib.Path, metavar="FOLDER")
    a = parser.parse_args()
    with plt.rc_context(STYLE):
        for draw in (constant, branch):
            figure = draw(json.loads((a.results / f"{draw.__name__}.json").read_text()))
            # Neither a date nor a version: a change of the file is a change of the figure.
            figure.savefig(a.results / f"{draw.__name__}.svg", transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
