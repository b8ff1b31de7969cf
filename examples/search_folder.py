"""Search the text files of a folder by meaning, each of them read only once.

python examples/search_folder.py FOLDER "how is a file written" --index INDEX

Of every document the index keeps the embedding and a snapshot of the state after it, named by its
contents: a file that has not changed, or moved, is not read again. The nearest embeddings are
looked at once more: after which document is the query the most likely to follow?
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import rwkv_engine as rwkv


def documents(folder: Path) -> dict[Path, str]:
    """Return the text of every file that seems to be one."""
    found = {}
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        data = path.read_bytes()
        if data and b"\0" not in data:
            found[path] = data.decode(errors="replace")
    return found


def update(engine: rwkv.Engine, texts: list[str], index: Path) -> list[Path]:
    """Read what the index lacks, drop what is gone; return the places of .npy and .state."""
    index.mkdir(parents=True, exist_ok=True)
    entries = [index / hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
    kept = {entry.with_suffix(suffix) for entry in entries for suffix in (".npy", ".state")}
    for old in {*index.iterdir()} - kept:
        old.unlink()
    for i, (entry, text) in enumerate(zip(entries, texts, strict=True), 1):
        if entry.with_suffix(".npy").exists():
            continue
        print(f"reading {i} of {len(texts)}", file=sys.stderr)
        state = engine.new_state()
        vector = engine.embed(text, states=[state])[0]
        state.save(entry.with_suffix(".state"))
        with (unfinished := entry.with_suffix(".part")).open("wb") as file:
            np.save(file, vector)
        unfinished.replace(entry.with_suffix(".npy"))  # last: an entry that has it is whole
    return entries


def logprobs(engine: rwkv.Engine, states: list[rwkv.State], query: str) -> list[float]:
    """Return how likely the query is on a line after each state; the states stay as they are."""
    rows = engine.score_batch(["\n" + query] * len(states), states)
    return [float(row.sum(dtype=np.float64)) for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search the text files of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("query")
    parser.add_argument("--index", type=Path, required=True, help="folder that keeps what was read")
    parser.add_argument("--best", type=int, default=5, help="documents to print")
    parser.add_argument("--model", default="demo", help="path of a checkpoint (default: the demo)")
    options = parser.parse_args()
    engine = rwkv.Engine(options.model)
    found = documents(options.folder)
    if not found or not options.query:
        sys.exit("expected a folder with text files and a query, found none")
    index = options.index / engine.fingerprint[:16]  # a model's own
    entries = update(engine, [*found.values()], index)
    vectors = np.array([np.load(entry.with_suffix(".npy")) for entry in entries])
    cosines = vectors @ engine.embed(options.query)[0]
    near = np.argsort(-cosines, kind="stable")[: options.best]
    if engine.config.kind == "embedding model":  # which gives no probabilities
        scores = cosines[near].tolist()
    else:
        states = [engine.load_state(entries[i].with_suffix(".state")) for i in near]
        scores = logprobs(engine, states, options.query)
    for score, i in sorted(zip(scores, near, strict=True), reverse=True):
        print(f"{score:10.3f}  {cosines[i]:.4f}  {[*found][i]}")
