"""The Python examples do what they say: a search over forks, and a document that is read in spite of everything."""

import importlib.util
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import child_environment, rwkv

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def command(name, *arguments):
    return [sys.executable, "-W", "error", ROOT / "examples" / f"{name}.py", *map(str, arguments)]


def run(name, *arguments):
    done = subprocess.run(command(name, *arguments), env=child_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_tested(path):
    assert len(path.read_text().splitlines()) <= 80
    assert f'"{path.stem}"' in pathlib.Path(__file__).read_text()


# ---- branching_search ----


@pytest.fixture(scope="module")
def engine():
    return rwkv.Engine("demo", threads=2)


@pytest.fixture(scope="module")
def searching():
    return imported("branching_search")


def logprob_of(engine, prompt, tokens):
    """Of a text that is read in one call, without any branch."""
    ids = engine.tokenizer.encode(prompt)
    rows = engine.forward(ids + tokens[:-1], engine.new_state(), output="all")[len(ids) - 1 :].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return sum(float(row[token]) for row, token in zip(rows, tokens, strict=True))


def test_the_search_prints_continuations_best_first():
    lines = run("branching_search", "def main(", "--width", 3, "--depth", 5).splitlines()
    found = [re.fullmatch(r" *(-\d+\.\d{4})  '(.*)'", line).groups() for line in lines]
    assert len(found) == 3 and all(text.startswith("def main(") for _, text in found)
    assert [float(logprob) for logprob, _ in found] == sorted((float(logprob) for logprob, _ in found), reverse=True)


def test_branches_have_the_log_probabilities_of_their_texts(engine, searching):
    branches = searching.search(engine, "def main(", width=4, depth=8)
    assert len({tuple(b.tokens) for b in branches}) == 4
    for branch in branches:
        assert len(branch.tokens) == 8 or branch.ended
        assert branch.logprob == pytest.approx(logprob_of(engine, "def main(", branch.tokens), abs=1e-9)
        assert branch.state.tokens_seen == len(engine.tokenizer.encode("def main(")) + len(branch.tokens)


def test_a_search_of_width_one_is_greedy(engine, searching):
    (branch,) = searching.search(engine, "import ", width=1, depth=10)
    greedy = rwkv.SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    assert branch.tokens == engine.generate("import ", greedy).tokens


def test_a_wide_search_finds_the_best_of_all_pairs(engine, searching):
    best = searching.search(engine, "class ", width=32, depth=2)[0]
    state = engine.new_state()
    first = engine.forward(engine.tokenizer.encode("class "), state).astype(np.float64)
    second = engine.forward_batch([[t] for t in range(len(first))], state.fork(len(first))).astype(np.float64)
    first, second = (rows - rows.max(-1, keepdims=True) for rows in (first, second))
    first, second = (rows - np.log(np.exp(rows).sum(-1, keepdims=True)) for rows in (first, second))
    total = first[1:, None] + second[1:]  # token 0 ends the text, and is not likely here
    row, column = np.unravel_index(total.argmax(), total.shape)
    assert best.tokens == [row + 1, column]


def test_a_text_that_has_ended_stays_and_is_not_stepped(searching):
    ended = searching.Branch(-1.0, [5, 0], None, None)
    assert ended.ended and searching.extensions(ended, 4) == [(-1.0, [5, 0], ended)]


# ---- read_document ----

EVERY = 2000


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Code, a line that is longer than a block, bytes that are no text, and no line end at the end."""
    path = tmp_path_factory.mktemp("document") / "document.txt"
    code = b"".join(p.read_bytes() for p in sorted((ROOT / "python" / "rwkv_engine").glob("*.py")))
    path.write_bytes(code[:60_000] + "é".encode() * 3001 + b"\xff\xfe\n" + code[60_000:80_000].rstrip())
    return path


@pytest.fixture(scope="module")
def uninterrupted(document):
    state = document.with_name("whole.state")
    return run("read_document", document, "--state", state, "--every", EVERY), state.read_bytes()


def test_the_figure_is_the_cost_of_the_text(engine, document, uninterrupted, tmp_path):
    """Tokens of each piece, and one call over all of them."""
    reading = imported("read_document")
    ids, offset = [], 0
    while piece := reading.next_piece(document, offset):
        assert len(piece) <= reading.BLOCK
        ids += engine.tokenizer.encode(piece)
        offset += len(piece)
    assert engine.tokenizer.decode_bytes(ids) == document.read_bytes()
    state = engine.new_state()
    rows = engine.forward([0, *ids], state, output="all")[:-1]
    nats = 0.0
    for row, token in zip(rows, ids, strict=True):
        nats += float(np.log(np.exp(row - row.max()).sum(dtype=np.float64))) + float(row.max() - row[token])
    printed, blob = uninterrupted
    expected = nats / np.log(2) / document.stat().st_size
    assert float(printed.split()[0]) == pytest.approx(expected, rel=1e-5)
    assert blob == state.to_bytes()
    assert 1 < expected < 4


PAUSING = """
import runpy, sys
import rwkv_engine as rwkv
save = rwkv.State.save
def save_and_wait(state, path):
    save(state, path)
    print("saved", flush=True)
    sys.stdin.readline()
rwkv.State.save = save_and_wait
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_a_reader_that_is_stopped_goes_on_where_it_was(document, uninterrupted, tmp_path, sent):
    """Stopped while it waits after a snapshot, or on its way to the next: there it waits for us again."""
    state = tmp_path / "a.state"
    reading = command("read_document", document, "--state", state, "--every", EVERY)
    pausing = [sys.executable, "-c", PAUSING, *reading[3:]]
    for snapshots, delay in ((2, 0), (1, 0.01), (3, 0.03)):
        process = subprocess.Popen(
            pausing, env=child_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(snapshots):
            assert process.stdout.readline() == "saved\n"
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(delay)
        process.send_signal(getattr(signal, sent))
        _, err = process.communicate(timeout=60)
        assert state.read_bytes() != uninterrupted[1], "it has come to the end: make the document longer"
        if sent == "SIGINT":
            assert process.returncode == 1 and "goes on from the last snapshot" in err and "Traceback" not in err
        else:
            assert process.returncode == -signal.SIGKILL
    assert run("read_document", document, "--state", state, "--every", EVERY) == uninterrupted[0]
    assert state.read_bytes() == uninterrupted[1]
    assert run("read_document", document, "--state", state, "--every", EVERY) == uninterrupted[0], "nothing left to do"
    if sent == "SIGINT":
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.state", "a.state.json"]


class Crash(Exception):
    pass


def test_a_crash_between_any_two_writes_loses_nothing(engine, document, uninterrupted, tmp_path, monkeypatch):
    """Crashes before and after every rename and every save, twice each, until the document has been read."""
    reading = imported("read_document")
    state, moments = tmp_path / "a.state", itertools.count()
    crash_at = None

    def crashing(call):
        def wrapped(*arguments):
            if next(moments) == crash_at:
                raise Crash
            result = call(*arguments)
            if next(moments) == crash_at:
                raise Crash
            return result

        return wrapped

    monkeypatch.setattr(rwkv.State, "save", crashing(rwkv.State.save))
    monkeypatch.setattr(pathlib.Path, "replace", crashing(pathlib.Path.replace))
    crashes = 0
    for crash_at in [0, 1, 2, 3, 0, 1, 5, 6, 2, 2, 7, None]:
        moments = itertools.count()
        try:
            bits = reading.read(engine, document, state, EVERY)
        except Crash:
            crashes += 1
    assert crashes == 11
    assert f"{bits / document.stat().st_size} bits per byte" == uninterrupted[0].strip()
    assert state.read_bytes() == uninterrupted[1]
    assert len(json.loads(state.with_name("a.state.json").read_text())) <= 2


def test_an_empty_document(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert float(run("read_document", empty, "--state", os.fspath(tmp_path / "s")).split()[0]) == 0


# ---- search_folder ----

DOCUMENTS = {
    "a.py": "import os\n\n\ndef names(folder):\n    return sorted(os.listdir(folder))\n",
    "b/same.py": "class Empty:\n    pass\n",
    "b/c/same.py": "class Empty:\n    pass\n",
    "notes.txt": "größer: 你好\n" * 300,
}


@pytest.fixture
def documents_folder(tmp_path):
    for name, text in DOCUMENTS.items():
        path = tmp_path / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "documents" / "image.bin").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "documents" / "empty.txt").touch()
    return tmp_path / "documents"


def searched(folder, query="import os", *options):
    """What is printed, and how many documents were read for it."""
    arguments = (folder, query, "--index", folder.parent / "index", *options)
    done = subprocess.run(
        command("search_folder", *arguments), env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [(float(s), float(c), pathlib.Path(p).relative_to(folder).as_posix()) for s, c, p in rows], done.stderr.count("reading")


def test_documents_are_found_by_meaning_and_by_likelihood(engine, documents_folder):
    found, _ = searched(documents_folder)
    assert {name for _, _, name in found} == set(DOCUMENTS)
    assert [score for score, _, _ in found] == sorted((score for score, _, _ in found), reverse=True)
    for score, cosine, name in found:
        vectors = engine.embed([DOCUMENTS[name], "import os"])
        assert cosine == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
        query = engine.tokenizer.encode("\nimport os")
        assert score == pytest.approx(logprob_after(engine, DOCUMENTS[name], query), abs=1e-3)
    best, _ = searched(documents_folder, "import os", "--best", 2)
    cosines = sorted((cosine for _, cosine, _ in found), reverse=True)
    assert sorted((cosine for _, cosine, _ in best), reverse=True) == cosines[:2]


def logprob_after(engine, document, tokens):
    """Of all but the first of the tokens, the document before them, read in one call."""
    ids = engine.tokenizer.encode(document)
    rows = engine.forward(ids + tokens[:-1], engine.new_state(), output="all")[len(ids) :].astype(np.float64)
    return sum(float(row[token] - np.log(np.exp(row).sum())) for row, token in zip(rows, tokens[1:], strict=True))


def test_only_what_is_new_is_read(documents_folder):
    first, read = searched(documents_folder)
    assert read == 3, "two have the same contents"
    assert searched(documents_folder) == (first, 0)
    (documents_folder / "a.py").rename(documents_folder / "moved.py")
    moved, read = searched(documents_folder)
    assert read == 0 and {row[:2] for row in moved} == {row[:2] for row in first}
    (documents_folder / "notes.txt").write_bytes(b"not UTF-8: \xff")
    (documents_folder / "moved.py").unlink()
    changed, read = searched(documents_folder)
    assert read == 1 and {row[2] for row in changed} == {"notes.txt", "b/same.py", "b/c/same.py"}
    (index,) = (documents_folder.parent / "index").iterdir()
    assert sorted(path.suffix for path in index.iterdir()) == [".npy", ".npy", ".state", ".state"]


@pytest.mark.parametrize("suffix", [".npy", ".part"])
def test_an_index_that_was_left_half_way(documents_folder, suffix):
    first, _ = searched(documents_folder)
    (index,) = (documents_folder.parent / "index").iterdir()
    entry = next(index.glob("*.npy"))
    entry.rename(entry.with_suffix(".part"))
    if suffix == ".npy":
        entry.with_suffix(".part").unlink()
    assert searched(documents_folder) == (first, 1)
    assert not list(index.glob("*.part"))


def test_states_in_memory_serve_many_queries(engine):
    searching = imported("search_folder")
    state = engine.new_state()
    engine.embed("import os", states=[state])
    before = state.to_bytes()
    first, again = searching.logprobs(engine, [state], "x = 1"), searching.logprobs(engine, [state], "x = 1")
    assert first == again and state.to_bytes() == before


def test_nothing_to_search(tmp_path):
    done = subprocess.run(
        command("search_folder", tmp_path, "x", "--index", tmp_path / "i"), env=child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "found none" in done.stderr and "Traceback" not in done.stderr
