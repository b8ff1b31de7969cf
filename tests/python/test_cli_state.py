"""``rwkv-engine state``: show, verify, convert, diff."""

import json
import os

import numpy as np
import pytest
from helpers import SMALL, bits, engine, model
from test_cli import assert_one_sentence, run

import rwkv_engine as rwkv

PROMPT = "def main("


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=1)


@pytest.fixture
def place(e, tmp_path):
    """A folder with a.state, and with b.state, which has seen one token more."""
    state = e.new_state()
    e.forward(e.tokenizer.encode(PROMPT), state)
    state.save(tmp_path / "a.state")
    e.forward([9], state)
    state.save(tmp_path / "b.state")
    return tmp_path


def state(*words, status=0):
    done = run("state", *words)
    assert done.returncode == status, done.stderr
    assert status or done.stderr == b""
    return done.stdout.decode()


def failure(*words):
    done = run("state", *words)
    assert done.stdout == b""
    return done.returncode, done.stderr


# ---- show ----


def test_show_says_what_is_in_a_state(e, place):
    file = rwkv.read_state(place / "a.state")
    found = json.loads(state("show", place / "a.state", "--json", "--parts"))
    assert (found["format"], found["dtype"], found["digest"]) == ("rwkv-state 1", "fp32", "ok")
    assert found["bytes"] == os.path.getsize(place / "a.state") and found["fingerprint"] == e.fingerprint
    for name in ("version", "n_layer", "n_embd", "n_head", "head_size", "n_vocab"):
        assert found[name] == getattr(e.config, name)
    assert (found["tokens_seen"], found["last_token"], found["sampler"]) == (file.tokens_seen, file.last_token, None)
    assert found["last_logits"] is True
    for part, (name, numbers) in zip(found["parts"], file.parts.items(), strict=True):
        assert (part["name"], part["dtype"], tuple(part["shape"])) == (name, "f32", numbers.shape)
        assert part["bytes"] == numbers.nbytes
        for layer, one in zip(part["layers"], numbers, strict=True):
            assert (layer["min"], layer["max"]) == (one.min(), one.max())
            assert layer["norm"] == pytest.approx(np.sqrt((one.astype(np.float64) ** 2).sum()), rel=1e-12)


def test_show_as_text(e, place):
    text = state("show", place / "a.state")
    for word in (f"RWKV-{e.config.version} after 5 tokens", "rwkv-state 1", "fp32", e.fingerprint, "att.wkv  f32  (4, 2, 64, 64)"):
        assert word in text
    assert "norm" not in text and "layer   3  norm" in state("show", place / "a.state", "--parts")


def test_show_of_a_text(tmp_path):
    path = tmp_path / "a.state"
    e = rwkv.Engine("demo", threads=1)
    e.generate(PROMPT, rwkv.SamplingParams(seed=3, presence_penalty=0.5, max_tokens=9)).state.save(path)
    found = json.loads(state("show", path, "--json"))
    assert found["sampler"]["seed"] == 3 and found["sampler"]["weights"]
    assert "seed 3, penalties in the style of rwkv" in state("show", path)


# ---- verify ----


def test_verify_takes_many_files(place):
    blob = (place / "a.state").read_bytes()
    assert state("verify", place / "a.state", place / "b.state").count(": ok, RWKV-7 after") == 2
    (place / "bad.state").write_bytes(blob[:-1] + b"\x7f")
    (place / "short.state").write_bytes(blob[:-1])
    done = run("state", "verify", place / "bad.state", place / "a.state", place / "short.state", place / "absent")
    assert done.returncode == 1 and done.stdout.decode().splitlines() == [f"{place / 'a.state'}: ok, RWKV-7 after 5 tokens"]
    bad, short, absent = done.stderr.decode().splitlines()
    assert "bad.state: state: damaged: expected the digest" in bad and "short.state" in short and "absent" in absent


def test_verify_against_a_model(place, tmp_path):
    other = engine(**SMALL)
    foreign = other.new_state()
    other.forward([1, 2], foreign)
    foreign.save(tmp_path / "foreign.state")
    state("verify", place / "a.state", "--model", "demo")
    state("verify", tmp_path / "foreign.state", "--model", model(**SMALL).path())
    for file, whose in ((place / "a.state", model(**SMALL).path()), (tmp_path / "foreign.state", "demo")):
        assert_one_sentence(*failure("verify", file, "--model", whose), "state of other weights: expected the fingerprint")


# ---- convert ----


def test_convert_to_fp16_and_back(place):
    state("convert", place / "a.state", place / "h.state", "--dtype", "fp16")
    e = rwkv.Engine("demo", threads=1)
    assert (place / "h.state").read_bytes() == e.load_state(place / "a.state").to_bytes("fp16")
    assert json.loads(state("show", place / "h.state", "--json"))["dtype"] == "fp16"
    state("convert", place / "h.state", place / "w.state", "--dtype", "fp32")
    state("convert", place / "w.state", place / "n.state", "--dtype", "fp16", "--model", "demo")
    assert (place / "n.state").read_bytes() == (place / "h.state").read_bytes()
    state("convert", place / "h.state", place / "same.state")
    assert (place / "same.state").read_bytes() == (place / "h.state").read_bytes()


def test_convert_to_the_packages_list_and_back(e, place):
    state("convert", place / "a.state", place / "a.pth")
    state("convert", place / "a.pth", place / "c.state", "--model", "demo")
    back, before = e.load_state(place / "c.state"), e.load_state(place / "a.state")
    assert [bits(x) for x in back.to_rwkv()] == [bits(x) for x in before.to_rwkv()] and back.tokens_seen == 0
    state("convert", place / "a.pth", place / "d.state", "--model", "demo", "--dtype", "fp16")
    assert rwkv.read_state(place / "d.state").dtype == "fp16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.state", "b.state"), "expected a new file, found"),
        (("a.state", "a.state", "--overwrite"), "expected another file than the source"),
        (("list.pth", "c.state"), "list.pth: expected --model"),
        (("list.pth", "c.pth", "--model", "demo"), "expected a state as the target"),
        (("a.state", "c.pth", "--dtype", "fp16"), "--dtype: expected a state as the target"),
        (("absent.state", "c.state"), "absent.state"),
        (("bad.state", "c.state"), "bad.state"),
        (("bad.state", "c.pth"), "bad.state"),
        (("large.state", "c.state", "--dtype", "fp16"), "att.wkv: expected numbers"),
        (("a.state", "absent/c.state"), "absent"),
    ],
)
def test_convert_that_fails_writes_nothing(e, place, words, said):
    before = (place / "b.state").read_bytes()
    e.load_state(place / "a.state").save_rwkv(place / "list.pth")
    (place / "bad.state").write_bytes(before[:-1])
    parts = e.load_state(place / "a.state").to_numpy()
    parts["att.wkv"].flat[0] = 1e9
    e.state_from_numpy(parts).save(place / "large.state")
    files = sorted(place.iterdir())
    given = [word if word.startswith("-") or word in ("demo", "fp16") else place / word for word in words]
    assert_one_sentence(*failure("convert", *given), said)
    assert sorted(place.iterdir()) == files and (place / "b.state").read_bytes() == before


def test_convert_overwrites_on_request(place):
    state("convert", place / "a.state", place / "b.state", "--overwrite")
    assert (place / "a.state").read_bytes() == (place / "b.state").read_bytes()


# ---- diff ----


def test_diff_of_equal_states(place):
    assert state("diff", place / "a.state", place / "a.state") == "equal\n"
    assert json.loads(state("diff", place / "a.state", place / "a.state", "--json"))["equal"] is True


def test_diff_finds_what_differs(e, place):
    a, b = (rwkv.read_state(place / name) for name in ("a.state", "b.state"))
    found = json.loads(state("diff", place / "a.state", place / "b.state", "--json", status=1))
    assert found["equal"] is False and found["fields"]["tokens_seen"] == [5, 6] and found["last_logits"] is False
    assert len(found["parts"]) == 3 * e.config.n_layer
    for row in found["parts"]:
        x, y = (file.parts[row["part"]][row["layer"]].astype(np.float64) for file in (a, b))
        assert row["absolute"] == np.abs(x - y).max()
        assert row["relative"] == row["absolute"] / max(np.abs(x).max(), np.abs(y).max())


def test_diff_of_one_number(e, place):
    parts = rwkv.read_state(place / "a.state").parts
    changed = {name: part.copy() for name, part in parts.items()}
    changed["att.wkv"][2, 0, 0, 0] += 0.5
    e.state_from_numpy(parts).save(place / "x.state")
    e.state_from_numpy(changed).save(place / "y.state")
    text = state("diff", place / "x.state", place / "y.state", status=1)
    assert text.startswith("att.wkv  layer   2  largest difference 0.5, relative") and text.count("\n") == 1
    # Rounding is a difference of the numbers, the type of the file is none.
    state("convert", place / "x.state", place / "h.state", "--dtype", "fp16")
    state("convert", place / "h.state", place / "w.state", "--dtype", "fp32")
    assert "relative" in state("diff", place / "x.state", place / "h.state", status=1)
    assert state("diff", place / "h.state", place / "w.state") == "equal\n"


def test_diff_of_states_of_other_models(place):
    other = engine(**SMALL)
    other.new_state().save(place / "other.state")
    text = state("diff", place / "a.state", place / "other.state", status=1)
    assert "fingerprint:" in text and "n_layer: 4 and 2" in text and "the parts have other shapes" in text


def test_wrong_usage():
    for words in ((), ("show",), ("verify",), ("diff", "a"), ("convert", "a", "b", "--dtype", "bf16"), ("melt", "a")):
        assert run("state", *words).returncode == 2


def complaint(action, words, *files):
    status, error = failure(action, *files)
    assert status == (2 if action == "diff" else 1)  # where 1 says that they differ
    assert_one_sentence(1, error, words)


@pytest.mark.parametrize("action", ["show", "verify", "diff"])
def test_damaged_and_strange_files(place, action):
    blob = (place / "a.state").read_bytes()
    for content in (b"", blob[:50], blob[:3000], blob[:-1], b"PK" + blob, bytes(500)):
        (place / "bad.state").write_bytes(content)
        more = [place / "a.state"] if action == "diff" else []
        complaint(action, "bad.state", place / "bad.state", *more)
    complaint(action, "expected a regular file", place, *more)
    complaint(action, "absent", place / "absent", *more)


def test_names_can_do_nothing_to_a_terminal(place):
    name = place / "a\x1b[31m.state"
    name.write_bytes((place / "a.state").read_bytes())
    for action in ("show", "verify"):
        assert "\x1b" not in state(action, name)
