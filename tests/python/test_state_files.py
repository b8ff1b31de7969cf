"""Saved states: whatever is damaged, foreign or of another shape is refused; saving is all or nothing."""

import json
import struct

import numpy as np
import pytest
from helpers import (
    SMALL,
    TINY,
    bits,
    engine,
    file_of_state,
    folder,
    model,
    python,
    rwkv,
    save,
    sign_state,
)


@pytest.fixture(scope="module")
def e():
    return engine(**SMALL)


@pytest.fixture(scope="module")
def m():
    return model(**SMALL)


@pytest.fixture
def state(e, m):
    state = e.new_state()
    e.forward(m.tokens(9), state)
    return state


def test_a_state_of_other_weights_is_refused(e, m, tmp_path):
    other = engine(**SMALL, seed=7)
    foreign = other.new_state()
    other.forward(m.tokens(4), foreign)
    assert other.fingerprint != e.fingerprint
    foreign.save(tmp_path / "a.state")
    for load in (
        lambda **o: e.state_from_bytes(foreign.to_bytes(), **o),
        lambda **o: e.load_state(tmp_path / "a.state", **o),
    ):
        with pytest.raises(rwkv.StateError) as error:
            load()
        assert e.fingerprint[:12] in str(error.value) and other.fingerprint[:12] in str(error.value)
        loaded = load(check_weights=False)
        assert {k: bits(v) for k, v in loaded.to_numpy().items()} == {
            k: bits(v) for k, v in foreign.to_numpy().items()
        }


def test_one_changed_weight_is_another_model(e, m):
    for name in ("blocks.1.att.k_a", "head.weight", "blocks.0.att.w1"):
        weights = {**m.weights, name: m.weights[name].copy()}
        weights[name].flat[0] += 1
        other = rwkv.Engine(
            str(save(folder() / f"changed-{name}.pth", weights)), "cpu fp32", threads=1
        )
        assert other.fingerprint != e.fingerprint, name


@pytest.mark.parametrize("change", [dict(L=3), dict(C=80), dict(N=32), dict(V=41)], ids=str)
def test_a_state_of_another_shape_is_refused(e, change):
    other = engine(**{**SMALL, **change})
    state = other.new_state()
    other.forward([1, 2], state)
    for options in ({}, {"check_weights": False}):
        with pytest.raises(rwkv.StateError):
            e.state_from_bytes(state.to_bytes(), **options)


@pytest.fixture(scope="module")
def tiny():
    e = engine(threads=1, **TINY)
    state = e.new_state()
    e.forward([1, 2, 3], state)
    return e, state.to_bytes()


def refused(e, blob):
    try:
        e.state_from_bytes(blob)
    except rwkv.StateError:
        return True
    return False


def test_every_damaged_byte_is_refused(tiny):
    e, blob = tiny
    assert not refused(e, blob)
    accepted = []
    for at in range(len(blob)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(blob)
            damaged[at] ^= flip
            if not refused(e, bytes(damaged)):
                accepted.append((at, flip))
    assert accepted == []


def test_every_truncation_is_refused(tiny):
    e, blob = tiny
    assert [n for n in range(len(blob)) if not refused(e, blob[:n])] == []
    assert refused(e, blob + b"\0") and refused(e, b"\0" + blob) and refused(e, blob + blob)


def header_of(blob):
    (length,) = struct.unpack("<Q", blob[:8])
    return blob[8 : 8 + length].decode(), blob[8 + length :]


def with_header(text, data):
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def edited(blob, *path, value=None):
    """The blob with one place of its header removed or replaced, and a right digest."""
    text, data = header_of(blob)
    tree = json.loads(text)
    place = tree
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return sign_state(with_header(json.dumps(tree, separators=(",", ":")), data))


def test_a_right_digest_does_not_excuse_numbers(tiny):
    e, blob = tiny
    text, data = header_of(blob)
    assert not refused(e, sign_state(with_header(text, data)))
    for value in (np.nan, np.inf, -np.inf):
        for name, entry in file_of_state(blob)[1].items():
            begin, end = entry["data_offsets"]
            for at in (begin, end - 4):
                bad = data[:at] + struct.pack("<f", value) + data[at + 4 :]
                assert refused(e, sign_state(with_header(text, bad))), (value, name)
    assert refused(e, sign_state(with_header(text, data[:-4])))
    assert refused(e, sign_state(with_header(text, data + bytes(4))))


def test_a_right_digest_does_not_excuse_the_tensors(tiny):
    e, blob = tiny
    assert not refused(e, edited(blob, "__metadata__", "note", value="hello")), (
        "later releases may say more"
    )
    for name, entry in file_of_state(blob)[1].items():
        assert refused(e, edited(blob, name)), name
        for shape in (
            [],
            [1],
            [2, *entry["shape"][1:]],
            [*entry["shape"], 1],
            [-1],
            [2**63],
            "x",
            [1.5],
        ):
            assert refused(e, edited(blob, name, "shape", value=shape)), (name, shape)
        for dtype in ("I32", "F16", "F64", "", 3):
            assert refused(e, edited(blob, name, "dtype", value=dtype)), (name, dtype)
        for offsets in ([0, 2**63], [2**64, 2**64 + 4], [-4, 0], [4, 0], [0], "x"):
            assert refused(e, edited(blob, name, "data_offsets", value=offsets)), (name, offsets)


def test_a_right_digest_does_not_excuse_the_metadata(tiny):
    e, blob = tiny
    for key, value in list(file_of_state(blob)[0].items())[1:]:
        bad_values = ["nonsense", "", 5]
        if value.isdigit():
            bad_values += ["-7", "99999999999999999999", "1e3", " 1", "0x1", value + " "]
        for bad in bad_values:
            assert refused(e, edited(blob, "__metadata__", key, value=bad)), (key, bad)
        assert refused(e, edited(blob, "__metadata__", key)), key


def test_a_version_from_the_future_is_named(tiny):
    e, blob = tiny
    text, data = header_of(blob)
    tree = json.loads(text)
    key = next(k for k in tree["__metadata__"] if "version" in k or "format" in k)
    tree["__metadata__"][key] = (
        "999" if tree["__metadata__"][key].isdigit() else tree["__metadata__"][key] + "999"
    )
    with pytest.raises(rwkv.StateError, match="999"):
        e.state_from_bytes(sign_state(with_header(json.dumps(tree, separators=(",", ":")), data)))


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_header_length_is_never_trusted(tiny, length):
    e, blob = tiny
    assert refused(e, struct.pack("<Q", length) + blob[8:])


def test_states_are_not_models_and_models_are_not_states(e, state, m, tmp_path):
    state.save(tmp_path / "a.safetensors")
    with pytest.raises(rwkv.ModelFormatError):
        rwkv.Engine(str(tmp_path / "a.safetensors"), "cpu fp32")
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(rwkv.StateError):
            e.load_state(m.path(suffix=suffix))


# ---- files ----


def test_saving_replaces_the_file_whole(e, m, state, tmp_path):
    path = tmp_path / "a.state"
    path.write_bytes(b"old" * 100_000)
    state.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]
    first = path.stat().st_ino
    e.forward(m.tokens(1), state)
    with open(path, "rb") as reader:
        state.save(path)
        assert reader.read() != path.read_bytes(), "one who reads the old file keeps the old file"
    assert path.stat().st_ino != first and e.load_state(path).equals(state)


def test_places_that_cannot_be_written(state, tmp_path):
    with pytest.raises((rwkv.Error, OSError), match="missing"):
        state.save(tmp_path / "missing" / "a.state")
    (tmp_path / "folder").mkdir()
    with pytest.raises((rwkv.Error, OSError), match="folder"):
        state.save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and not list(
        (tmp_path / "folder").iterdir()
    )


def test_absent_and_empty_files(e, tmp_path):
    with pytest.raises((rwkv.Error, OSError), match="absent"):
        e.load_state(tmp_path / "absent")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(rwkv.StateError):
        e.load_state(tmp_path / "empty")
    with pytest.raises((rwkv.Error, OSError)):
        e.load_state(tmp_path)


READ_AND_WRITE = """
import sys
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=1)
print(engine.state_from_bytes(bytes.fromhex(sys.argv[2])).to_bytes().hex())
"""


def test_another_process_reads_the_same_state(tiny):
    _, blob = tiny
    assert python(READ_AND_WRITE, model(**TINY).path(), blob.hex()).strip() == blob.hex()
