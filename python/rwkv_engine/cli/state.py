"""``rwkv-engine state``: saved states, without a model where none is needed."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._arguments import Array
from ..adapters import Adapter, LoadedAdapter
from ..conversion import check_free
from ..engine import Engine
from ..errors import Error, StateError, StrategyError
from ..statefile import StateFile, read_state
from ._progress import Bar
from ._shared import add_adapter_option, fetch, visible

HELP = "show, check, convert and compare saved states"
DESCRIPTION = """Look into states that --save or State.save wrote. They are read whole and checked:
digest, version, shapes, and that all numbers are finite. Only --model opens a model."""
EXAMPLE = """examples:
  rwkv-engine state show a.state --parts
  rwkv-engine state verify *.state --model model.pth --adapter poems.pth:32
  rwkv-engine state convert a.state small.state --dtype fp16
  rwkv-engine state convert a.state a.pth
  rwkv-engine state diff a.state b.state"""

MODEL_HELP = "a model file, or hf:owner/repo/file"
NAMED = ("version", "n_layer", "n_embd", "n_head", "head_size", "n_vocab", "fingerprint")
COUNTED = ("tokens_seen", "last_token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, run: Any, help: str, more: str = "") -> Any:
        action = actions.add_parser(name, help=help, description=help.capitalize() + more)
        action.set_defaults(act=run)
        return action

    show = add("show", _show, "print what is in a state", ", and that it is undamaged.")
    option = show.add_argument
    option("file", metavar="FILE")
    option("--parts", action="store_true", help="norm, least and largest number of every layer")
    option("--json", action="store_true", help="as a JSON object")

    verify = add("verify", _verify, "check states", "; the exit status is 1 if one is bad.")
    option = verify.add_argument
    option("files", nargs="+", metavar="FILE")
    option("--model", metavar="PATH", help=f"check that they are states of it: {MODEL_HELP}")
    add_adapter_option(verify, "an adapter that they have been made with, merged or beside")

    convert = add(
        "convert",
        _convert,
        "write a state in another form",
        ": in fp32 or fp16, or as the rwkv package's list (TARGET ends in .pth), or such a list "
        "as a state, which needs --model.",
    )
    option = convert.add_argument
    option("source", metavar="FILE", help="a state, or a .pth of the rwkv package's list")
    option("target", metavar="TARGET")
    option("--dtype", choices=["fp32", "fp16"], help="of the parts (default: as in FILE)")
    option("--model", metavar="PATH", help=f"whose state it is: {MODEL_HELP}")
    add_adapter_option(convert, "an adapter that it has been made with; of a .pth, merged")
    option("--overwrite", action="store_true", help="replace a file that exists")

    diff = add(
        "diff",
        _diff,
        "compare two states",
        "; the exit status is 0 if they are equal, 1 if they differ, 2 if one cannot be read.",
    )
    option = diff.add_argument
    option("first", metavar="FILE")
    option("second", metavar="FILE")
    option("--json", action="store_true", help="as a JSON object")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    status: int = options.act(options)
    return status


# ---- show ----


def _show(options: argparse.Namespace) -> int:
    file = read_state(options.file)
    found: dict[str, Any] = {
        "path": options.file,
        "bytes": pathlib.Path(options.file).stat().st_size,
        "format": file.format,
        "dtype": file.dtype,
        "digest": "ok",  # or it would not have been read
        **{name: getattr(file, name) for name in (*NAMED, *COUNTED)},
        "last_logits": file.last_logits is not None,
        "sampler": None if file.sampler is None else _plain(dataclasses.asdict(file.sampler)),
        "parts": [
            {
                "name": name,
                "dtype": file.dtypes[name],
                "shape": list(part.shape),
                "bytes": part.size * (2 if file.dtypes[name] == "f16" else 4),
                **({"layers": list(map(_numbers, part))} if options.parts else {}),
            }
            for name, part in file.parts.items()
        ],
    }
    print(json.dumps(found, indent=2) if options.json else visible("\n".join(_lines(found))))
    return 0


def _plain(sampler: dict[str, Any]) -> dict[str, Any]:
    return {**sampler, "pending": sampler["pending"].hex()}


def _numbers(part: Array) -> dict[str, float]:
    norm = float(np.linalg.norm(part.astype(np.float64)))
    return {"norm": norm, "min": float(part.min()), "max": float(part.max())}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    heads = "heads {n_head} of {head_size}, " if found["n_head"] else ""
    last = "" if found["last_token"] is None else f", the last {found['last_token']}"
    yield f"{found['path']}: RWKV-{found['version']} after {found['tokens_seen']:,} tokens{last}"
    yield f"layers {{n_layer}}, embedding {{n_embd}}, {heads}vocabulary {{n_vocab}}".format(**found)
    yield "{format}, parts in {dtype}, {bytes:,} bytes, digest {digest}".format(**found)
    yield f"fingerprint {found['fingerprint']}"
    yield f"last logits: {'yes' if found['last_logits'] else 'no'}"
    sampler = found["sampler"]
    if sampler is not None:
        line = "in a text: seed {seed}, penalties in the style of {penalty_style} of {count} tokens"
        yield line.format(**sampler, count=len(sampler["weights"]))
    for part in found["parts"]:
        shape = ", ".join(map(str, part["shape"]))
        yield f"{part['name']}  {part['dtype']}  ({shape})  {part['bytes']:,} bytes"
        for layer, numbers in enumerate(part.get("layers", [])):
            yield "  layer {:>3}  norm {norm:<10.5g}  from {min:.5g} to {max:.5g}".format(
                layer, **numbers
            )


# ---- verify ----


def _verify(options: argparse.Namespace) -> int:
    model = _model_of(options)
    bad = 0
    for path in options.files:
        try:
            file = read_state(path)
            if model is not None:
                model.check(path)
        except Error as error:
            bad += 1
            _complain(error)
        else:
            print(f"{visible(path)}: ok, RWKV-{file.version} after {file.tokens_seen:,} tokens")
    return 1 if bad else 0


def _complain(error: Error) -> None:
    print(f"rwkv-engine: {visible(str(error))}", file=sys.stderr)


class _Model:
    """What the options say that states are of: a model as it is, or with adapters."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._path, self._adapters = options.model, options.adapter
        self._merged: Engine | None = None
        fetch(self._path)
        if len(self._adapters) != 1:
            self.merged()

    def merged(self) -> Engine:
        """Return the model with all adapters in its weights."""
        if self._merged is None:
            self._merged = self._open("auto", self._adapters)
        return self._merged

    def check(self, path: str) -> None:
        """Raise StateError for a state of other weights; a single adapter may lie beside them."""
        try:
            self.merged().load_state(path)
        except Error as error:
            if len(self._adapters) != 1:
                raise
            try:
                engine, adapter = self._beside
                engine.load_state(path, adapter=adapter)
            except Error as other:  # such an adapter, or such a file, may only go the other way
                raise (error if isinstance(error, StateError) else other) from None

    @functools.cached_property
    def _beside(self) -> tuple[Engine, LoadedAdapter]:
        try:
            engine = self._open("cpu bf16", [])  # where adapters can be; fingerprints are the same
        except StrategyError:  # a file that was quantised
            engine = self._open("auto", [])
        return engine, engine.load_adapter(self._adapters[0])

    def _open(self, strategy: str, adapters: Sequence[Adapter]) -> Engine:
        with Bar("loading") as bar:
            return Engine(self._path, strategy, adapters=adapters, progress=bar.update)


def _model_of(options: argparse.Namespace) -> _Model | None:
    if options.model is not None:
        return _Model(options)
    if options.adapter:
        raise Error("--adapter: expected --model too, whose adapter it is, found none")
    return None


# ---- convert ----


def _convert(options: argparse.Namespace) -> int:
    source, target = options.source, options.target
    check_free(os.fsencode(target), os.fsencode(source), "target", options.overwrite)
    as_list = target.endswith(".pth")
    if as_list and options.dtype is not None:
        raise Error("--dtype: expected a state as the target, found a .pth, which is float32")
    if _is_archive(source):
        if as_list:
            raise Error(f"{target}: expected a state as the target of a .pth, found another .pth")
        model = _model_of(options)
        if model is None:
            raise Error(
                f"{source}: expected --model, as a .pth does not say whose it is, found none"
            )
        model.merged().state_from_rwkv(source).save(target, options.dtype or "fp32")
        return 0
    file = read_state(source)
    model = _model_of(options)
    if model is not None:
        model.check(source)
    if as_list:
        file.save_rwkv(target)
    else:
        file.save(target, options.dtype)
    return 0


def _is_archive(path: str) -> bool:
    """Tell whether a file begins as a zip archive does."""
    place = pathlib.Path(path)
    if not place.is_file():  # a pipe could keep its reader waiting
        return False
    with place.open("rb") as file:
        return file.read(2) == b"PK"


# ---- diff ----


def _diff(options: argparse.Namespace) -> int:
    try:
        first, second = read_state(options.first), read_state(options.second)
    except Error as error:  # 1 says that they differ
        _complain(error)
        return 2
    fields = {
        name: [getattr(first, name), getattr(second, name)]
        for name in (*NAMED, *COUNTED)
        if getattr(first, name) != getattr(second, name)
    }
    comparable = _shapes(first) == _shapes(second)
    parts = list(_differences(first, second)) if comparable else None
    found = {
        "equal": not fields and not parts and _rest(first) == _rest(second),
        "fields": fields,
        "parts": parts,  # null: their shapes differ
        "last_logits": _same_bits(first.last_logits, second.last_logits),
        "sampler": first.sampler == second.sampler,
        "dtypes": [first.dtype, second.dtype],
    }
    print(json.dumps(found, indent=2) if options.json else "\n".join(_report(found)))
    return 0 if found["equal"] else 1


def _shapes(file: StateFile) -> dict[str, tuple[int, ...]]:
    return {name: part.shape for name, part in file.parts.items()}


def _rest(file: StateFile) -> object:
    return None if file.last_logits is None else file.last_logits.tobytes(), file.sampler


def _same_bits(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else a.tobytes() == b.tobytes()


def _differences(first: StateFile, second: StateFile) -> Iterator[dict[str, Any]]:
    """Yield one row for each layer of a part that differs; relative is to its largest number."""
    for name, part in first.parts.items():
        for layer, (a, b) in enumerate(zip(part, second.parts[name], strict=True)):
            if a.tobytes() == b.tobytes():
                continue
            absolute = float(np.abs(a.astype(np.float64) - b).max())
            largest = float(max(np.abs(a).max(), np.abs(b).max()))
            relative = absolute / largest if largest else 0.0
            yield {"part": name, "layer": layer, "absolute": absolute, "relative": relative}


def _report(found: dict[str, Any]) -> Iterator[str]:
    if found["equal"]:
        yield "equal"
    for name, (a, b) in found["fields"].items():
        yield f"{name}: {a} and {b}"
    if found["parts"] is None:
        yield "the parts have other shapes"
    for row in found["parts"] or []:
        yield (
            f"{row['part']}  layer {row['layer']:>3}  largest difference {row['absolute']:.5g}, "
            f"relative {row['relative']:.3g}"
        )
    for name in ("last_logits", "sampler"):
        if not found[name]:
            yield f"{name}: they differ"
