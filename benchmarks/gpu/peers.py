"""What others need for the same work on this GPU: the `rwkv` package, flash-linear-attention, and torch's products.

    python benchmarks/gpu/peers.py [--shape 1.5B] [--zeros 88] [--folder /dev/shm] [--peers torch rwkv fla] [--warm]

Who cannot be imported is left out with a line. The package reads the same kind of model as the engine (same seed, shape
and zero fraction). What is compiled or tuned at the first call is not in the times: medians of five rounds after three
calls that warm up; --warm does no more than that, so that what is compiled lies in the caches of torch and triton.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import sys
import tempfile
import time

import results  # first, as it finds common

import common
import models


class Row(dict):
    """A line of the result; times are seconds of one call."""

    def __init__(self, peer: str, version: str, what: str, seconds: list[float], tokens: int = 0, operations: float = 0):
        middle = common.median(seconds)
        super().__init__(
            peer=peer,
            version=version,
            what=what,
            milliseconds=common.rounded(1e3 * middle),
            lowest_highest=common.lowest_highest(1e3 * s for s in seconds),
            tokens_per_second=common.rounded(tokens / middle) if tokens else None,
            teraflops=common.rounded(operations / middle / 1e12) if operations else None,
        )


def seconds_of(call, least: float = 0.1) -> list[float]:
    """Of one call, in five rounds of as many as take `least` seconds; the device has ended before a clock is read."""
    import torch

    def rounds(count: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    rounds(3)
    count = max(1, round(least / max(rounds(1), 1e-6)))
    return [rounds(count) for _ in range(5)]


def torch_products(a: argparse.Namespace) -> list[Row]:
    """cuBLAS: products of few tokens, weights that no cache holds, and a large one, its peak."""
    import torch

    rows = []
    k, n, copies = 2048, 8192, 64  # 2 GB of weights
    weights = torch.randn(copies, k, n, device="cuda", dtype=torch.float16)
    for batch in (1, 8, 32, 64, 256, 960):
        x = torch.randn(batch, k, device="cuda", dtype=torch.float16)

        def products(x=x) -> None:
            for w in weights:
                torch.mm(x, w)

        graph = torch.cuda.CUDAGraph()
        products()
        with torch.cuda.graph(graph):
            products()
        seconds = [s / copies for s in seconds_of(graph.replay)]
        rows.append(Row("torch", torch.__version__, f"({batch}, {k}) x ({k}, {n}) fp16", seconds, batch, 2 * batch * k * n))
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rows.append(Row("torch", torch.__version__, "8192 cubed, bf16", seconds_of(lambda: x @ y), 0, 2 * 8192**3))
    return rows


def rwkv_package(a: argparse.Namespace) -> list[Row]:
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="1")
    from rwkv.model import RWKV

    version = importlib.metadata.version("rwkv")
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path, _ = models.model(a.folder or pathlib.Path(folder), a.shape, a.zeros / 100)
        model = RWKV(model=str(path.with_suffix("")), strategy="cuda fp16")
    rows = []
    last = [1, None]

    def step() -> None:
        logits, last[1] = model.forward([last[0]], last[1])
        last[0] = int(logits.argmax())

    rows.append(Row("rwkv", version, f"{a.shape} decode, batch 1, fp16", seconds_of(step), 1))
    for length in (1024, 4096):
        tokens = list(range(1, 1 + length))
        seconds = seconds_of(lambda tokens=tokens: model.forward(tokens, None))
        rows.append(Row("rwkv", version, f"{a.shape} prefill 1x{length}, fp16", seconds, length))
    return rows


def linear_attention(a: argparse.Namespace) -> list[Row]:
    """The recurrence alone, as the library has it for prefill and for single tokens."""
    import inspect

    import torch
    from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7

    version = importlib.metadata.version("flash-linear-attention")
    rows = []
    for batch, length, heads in ((1, 4096, 32), (1, 4096, 64), (8, 1024, 32), (64, 1, 32), (256, 1, 32)):
        r, k, v, kk, gate = (
            torch.randn(batch, length, heads, 64, device="cuda", dtype=torch.bfloat16) for _ in range(5)
        )
        kk = torch.nn.functional.normalize(kk, dim=-1)
        gate, decay = torch.sigmoid(gate), -0.6065306597126334 * torch.sigmoid(r)
        op = chunk_rwkv7 if length > 1 else fused_recurrent_rwkv7
        options = {"output_final_state": True}
        if "lower_bound" in inspect.signature(op).parameters:
            options["lower_bound"] = -0.6065306597126334
        with torch.no_grad():
            seconds = seconds_of(lambda: op(r, decay, k, v, -kk, kk * gate, **options))
        what = f"{op.__name__} {batch}x{length}, {heads} heads of 64, bf16"
        rows.append(Row("fla", version, what, seconds, batch * length))
    return rows


PEERS = {"torch": torch_products, "rwkv": rwkv_package, "fla": linear_attention}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5B", choices=common.SHAPES)
    parser.add_argument("--zeros", type=float, default=88, metavar="PERCENT", help="of ffn activations")
    parser.add_argument("--folder", type=pathlib.Path, help="for the model, which is removed afterwards")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--warm", action="store_true", help="only what peers compile")
    a = parser.parse_args()
    if a.warm:
        vars(a).update(shape="0.1B", peers=["fla", "rwkv"])
    rows: list[dict[str, object]] = []
    left_out: dict[str, str] = {}
    for peer in a.peers:
        try:
            rows += PEERS[peer](a)
        except Exception as error:  # whatever a peer does, the others are measured
            left_out[peer] = f"{type(error).__name__}: {error}"[:500]
            print(f"{peer} is left out: {left_out[peer]}", file=sys.stderr)
        if a.warm:
            continue
        results.write("peers", {"shape": a.shape, "zeros": a.zeros}, rows, left_out=left_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
