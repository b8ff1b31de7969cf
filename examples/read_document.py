"""Read a document of any length through one state, and tell how well the model predicts it.

python examples/read_document.py book.txt --state book.state

A snapshot is saved every so often. Stop with Ctrl-C, or pull the plug: the same command goes on
from the last snapshot and ends with the same state and the same number, to the last bit.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import rwkv_engine as rwkv

BLOCK = 1024  # bytes read at a time; a call makes at most as many rows of logits


def next_piece(document: Path, offset: int) -> bytes:
    """Return whole lines where they fit in a block. Depends on nothing but the offset."""
    with document.open("rb") as file:
        file.seek(offset)
        block = file.read(BLOCK)
    return block[: block.rfind(b"\n") + 1] or block


def bits_of(tokens: list[int], logits: np.ndarray) -> float:
    """Return what the tokens cost, each under the row of logits before it."""
    logits = logits - logits.max(axis=1, keepdims=True)
    totals = np.log(np.exp(logits).sum(axis=1, dtype=np.float64))
    return float((totals - logits[np.arange(len(tokens)), tokens]).sum()) / math.log(2)


def read(engine: rwkv.Engine, document: Path, path: Path, every: int) -> float:
    """Read on from the snapshot, if there is one; return the bits that the whole document costs."""
    # The notes beside the snapshot: where in the document it is, and the bits so far. They are
    # written before it and keep those of the one it replaces: whichever is there finds its own.
    notes, saved = path.with_name(path.name + ".json"), {}
    if path.exists():
        state = engine.load_state(path)
        offset, bits = json.loads(notes.read_text())[str(state.tokens_seen)]
        saved = {state.tokens_seen: [offset, bits]}
    else:
        state, offset, bits = engine.new_state(), 0, 0.0
        engine.forward([0], state)  # the end of the document before
    size, last = document.stat().st_size, state.tokens_seen
    while piece := next_piece(document, offset):
        tokens, before = engine.tokenizer.encode(piece), state.last_logits
        rows = engine.forward(tokens, state, output="all")
        bits += bits_of(tokens, np.vstack([before, rows[:-1]]))
        offset += len(piece)
        if state.tokens_seen - last >= every or offset >= size:
            last = state.tokens_seen
            with (fresh := notes.with_suffix(".new")).open("w") as file:
                json.dump(saved | {last: [offset, bits]}, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(notes)
            state.save(path)
            saved = {last: [offset, bits]}
        done = f"{state.tokens_seen:,} tokens, {100 * offset / size:.1f} %"
        print(f"\r{done}, {bits / offset:.4f} bits per byte", end=" ", file=sys.stderr, flush=True)
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read a document through one state.")
    parser.add_argument("document", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="snapshot; STATE.json beside it")
    parser.add_argument("--every", type=int, default=20_000, help="tokens between snapshots")
    parser.add_argument("--model", default="demo", help="path of a checkpoint (default: the demo)")
    options = parser.parse_args()
    try:
        total = read(rwkv.Engine(options.model), options.document, options.state, options.every)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last snapshot")
    print(f"\n{total / max(1, options.document.stat().st_size)} bits per byte")
