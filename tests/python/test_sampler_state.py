"""A saved state says how its text is sampled; what it says there is checked like everything else in the file."""

import json
import struct

import numpy as np
import pytest
from helpers import rwkv, sign_state

PARAMS = rwkv.SamplingParams(seed=3, max_tokens=12, presence_penalty=0.5, frequency_penalty=0.25, ignore_eos=True)


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=1)


@pytest.fixture(scope="module")
def blob(e):
    return e.generate("import ", PARAMS).state.to_bytes()


def parts(blob):
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), bytearray(blob[8 + length :])


def packed(tree, data):
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    return sign_state(struct.pack("<Q", len(text)) + text + bytes(data))


def test_what_the_file_says(e, blob):
    tree, data = parts(blob)
    meta = tree["__metadata__"]
    assert (meta["sampler_seed"], meta["sampler_style"], meta["sampler_pending"], meta["sampler_tail"]) == ("3", "rwkv", "", "")
    arrays = {
        name: np.frombuffer(data[slice(*tree[name]["data_offsets"])], dtype)
        for name, dtype in (("sampler.tokens", "<i4"), ("sampler.weights", "<f8"))
    }
    tokens = e.generate("import ", PARAMS).tokens
    assert arrays["sampler.tokens"].tolist() == sorted(set(tokens)) and len(arrays["sampler.weights"]) == len(set(tokens))
    assert e.state_from_bytes(packed(tree, data)).to_bytes() == blob


def test_a_state_that_was_only_read_says_nothing(e):
    state = e.new_state()
    e.forward([1, 2], state)
    assert not any("sampler" in key for key in [*parts(state.to_bytes())[0]["__metadata__"], *parts(state.to_bytes())[0]])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("sampler_seed", value) for value in ("", "-1", "x", str(2**64), "1.5")),
        *(("sampler_style", value) for value in ("", "RWKV", "none")),
        *(("sampler_pending", value) for value in ("e", "61", "e2829", "zz", "E2", "ff", "e282ac", "e282" * 40)),
        ("sampler_tail", "x" * 65537),
        *((key, None) for key in ("sampler_style", "sampler_pending", "sampler_tail")),
    ],
)
def test_fields_that_cannot_be(e, blob, key, value):
    tree, data = parts(blob)
    if value is None:
        del tree["__metadata__"][key]
    else:
        tree["__metadata__"][key] = value
    with pytest.raises(rwkv.StateError, match=key):
        e.state_from_bytes(packed(tree, data))


def test_fields_that_can_be(e, blob):
    for key, value in [("sampler_pending", "e282"), ("sampler_pending", "f0"), ("sampler_tail", "\u20ac\nUser"), ("sampler_tail", "x" * 65536)]:
        tree, data = parts(blob)
        tree["__metadata__"][key] = value
        state = e.state_from_bytes(packed(tree, data))
        again, _ = parts(state.to_bytes())
        assert again["__metadata__"][key] == value


@pytest.mark.parametrize(
    ("name", "dtype", "at", "value"),
    [
        ("sampler.tokens", "<i4", 0, -1),
        ("sampler.tokens", "<i4", -1, 1024),
        ("sampler.tokens", "<i4", 1, 0),
        ("sampler.weights", "<f8", 0, np.nan),
        ("sampler.weights", "<f8", -1, np.inf),
    ],
)
def test_numbers_that_cannot_be(e, blob, name, dtype, at, value):
    tree, data = parts(blob)
    begin, end = tree[name]["data_offsets"]
    values = np.frombuffer(data[begin:end], dtype).copy()
    if name == "sampler.tokens" and at == 1:
        values[0] = 5
        value = 5
    values[at] = value
    data[begin:end] = values.tobytes()
    with pytest.raises(rwkv.StateError, match=name):
        e.state_from_bytes(packed(tree, data))


def test_lists_that_do_not_fit(e, blob):
    tree, data = parts(blob)
    (begin, _), count = tree["sampler.tokens"]["data_offsets"], tree["sampler.tokens"]["shape"][0]
    for shape in ([count - 1], [1, count], [2**40], []):
        wrong = json.loads(json.dumps(tree))
        wrong["sampler.tokens"]["shape"] = shape
        with pytest.raises(rwkv.StateError):
            e.state_from_bytes(packed(wrong, data))
    # Without the seed the state is in no text, and has no use for weights.
    wrong = json.loads(json.dumps(tree))
    del wrong["__metadata__"]["sampler_seed"]
    with pytest.raises(rwkv.StateError, match="tensors"):
        e.state_from_bytes(packed(wrong, data))
    # More weights than tokens in the vocabulary.
    many = json.loads(json.dumps(tree))
    more = bytes(data[:begin]) + np.arange(1025, dtype="<i4").tobytes() + np.zeros(1025).tobytes()
    many["sampler.tokens"].update(shape=[1025], data_offsets=[begin, begin + 4100])
    many["sampler.weights"].update(shape=[1025], data_offsets=[begin + 4100, begin + 12300])
    with pytest.raises(rwkv.StateError, match="sampler.tokens: expected 1 to 1024 tokens, found"):
        e.state_from_bytes(packed(many, more))


def test_every_damaged_byte_is_refused(e, blob):
    for at in [*range(0, 1200), *range(len(blob) - 300, len(blob))]:
        damaged = bytearray(blob)
        damaged[at] ^= 0x10
        with pytest.raises(rwkv.StateError):
            e.state_from_bytes(bytes(damaged))
