"""Damaged GGUF files are refused with a message that says what was expected and what was found."""

import functools
import random

import numpy as np
import pytest
from gguf_files import (
    WORDS,
    gguf_bytes,
    rwkv7_tensors,
    rwkv7_values,
    vocabulary,
    with_vocabulary,
    write_gguf,
)
from helpers import TINY, model, refusal

import rwkv_engine as rwkv


def tiny_parts():
    base = model(**TINY).weights
    return rwkv7_values(base), rwkv7_tensors(base)


def change(**fields):
    """Changes the description of one tensor."""
    return lambda name, found: found.update(fields) if name == "output.weight" else None


def overlapping(name, found):
    if name == "output.weight":
        found["offset"] = 0


WRAPPING = {
    "2^32 x 2^32": (2**32, 2**32),
    "2^62 x 4": (2**62, 4),
    "2^64 - 1": (2**64 - 1,),
    "2^63": (2**63, 1),
    "2^61 x 8 x 0": (2**61, 8, 0),
    "(2^64 + 192) / 192": (2**64 // 192 + 1, 192),
}
BAD_DESCRIPTIONS = {
    **{f"shape {name}": (change(shape=shape), "output.weight") for name, shape in WRAPPING.items()},
    "no dimensions": (change(shape=()), "1 to 4 dimensions, found 0"),
    "5 dimensions": (change(shape=(1, 1, 1, 1, 192)), "1 to 4 dimensions, found 5"),
    "offset past the end": (change(offset=1 << 40), "bytes of data"),
    "offset of 2^64 - 32": (change(offset=2**64 - 32), "output.weight"),
    "offset not aligned": (change(offset=4), "multiple of 32, found 4"),
    "overlap": (overlapping, "overlaps"),
    "larger than the file": (change(shape=(1 << 30, 16)), "bytes of data"),
    "type 5": (change(type=5), "number 5"),
    "type 2^32 - 1": (change(type=2**32 - 1), "number 4294967295"),
    "type Q2_K": (change(type=10), "Q2_K"),
    "rows of half a block": (change(type=8, shape=(16, 12)), "whole q8_0 blocks of 32"),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_a_bad_description_is_refused(tmp_path, case):
    describe, *words = BAD_DESCRIPTIONS[case]
    path = tmp_path / "a.gguf"
    refusal(write_gguf(path, *tiny_parts(), describe=describe), *words)


BAD_COUNTS = [
    (2**64 - 1, 3),
    (3, 2**64 - 1),
    (2**63, 2**63),
    (100_001, 3),
    (30, 100_001),
    (30, 99_999),
    (99_999, 7),
]


@pytest.mark.parametrize("counts", BAD_COUNTS)
def test_bad_counts_are_refused(tmp_path, counts):
    refusal(write_gguf(tmp_path / "a.gguf", *tiny_parts(), counts=counts))


@pytest.mark.parametrize("alignment", [0, 1 << 21, 13, 3, 1 << 31, 2**32 - 1])
def test_bad_alignments_are_refused(tmp_path, alignment):
    values, tensors = tiny_parts()
    refusal(
        write_gguf(tmp_path / "a.gguf", values | {"general.alignment": alignment}, tensors),
        "general.alignment",
        str(alignment),
    )


BAD_VALUES = {
    "a key twice": ([("general.name", "a")], "each key once", "general.name"),
    "an array twice": ([("a", ("array", ("u8", [])))] * 2, "each key once"),
    "an array and a number": ([("a", 1), ("a", ("array", ("u8", [])))], "each key once"),
    "an empty key": ([("", 1)], "a name in UTF-8"),
    "a key that is not text": ([(b"\xff\xfe", 1)], "a name in UTF-8"),
    "a value that is not text": ([("a", b"\xff\xfe")], "expected UTF-8"),
    "a long key": ([("a" * 65536, 1)], "at most 65535 bytes"),
    "a bool of 2": ([("a", ("bool", 2))], "0 or 1, found 2"),
    "an alignment of another type": ([("general.alignment", ("u64", 32))], "uint32"),
    "tokens that are numbers": (
        [("tokenizer.ggml.tokens", ("array", ("i32", [1, -1])))],
        "array of string",
    ),
    "types that are text": (
        [("tokenizer.ggml.token_type", ("array", ("str", ["a"])))],
        "array of int32",
    ),
    "arrays without end": (
        [
            (
                "a",
                functools.reduce(
                    lambda a, _: ("array", ("array", [a[1]])), range(9), ("array", ("u8", []))
                ),
            )
        ],
        "nested",
    ),
    "another architecture": ([("general.architecture", "llama")], "each key once"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused(tmp_path, case):
    more, *words = BAD_VALUES[case]
    values, tensors = tiny_parts()
    refusal(write_gguf(tmp_path / "a.gguf", [*values.items(), *more], tensors), *words)


def raw_value(kind, payload):
    """A file whose last key-value is these bytes."""
    values, tensors = tiny_parts()
    file = gguf_bytes([*values.items(), ("zz", ("str", "@@@@@@@@"))], tensors)
    at = file.index(b"zz") + 2
    return file[:at] + kind + payload + file[at + 20 :]


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 1 << 25])
@pytest.mark.parametrize("inner", [None, 0, 8, 9, 10, 99])
def test_lengths_past_the_end_are_refused(tmp_path, length, inner):
    kind = (
        (8).to_bytes(4, "little")
        if inner is None
        else (9).to_bytes(4, "little") + inner.to_bytes(4, "little")
    )
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_value(kind, length.to_bytes(8, "little")))
    refusal(path, "zz")


def test_a_name_twice_is_refused(tmp_path):
    values, tensors = tiny_parts()
    again = [*tensors.items(), ("output.weight", tensors["output.weight"])]
    refusal(write_gguf(tmp_path / "a.gguf", values, again), "each tensor once", "output.weight")
    again[-1] = ("blocks.0.ln1.bias", tensors["blk.0.attn_norm.bias"])
    refusal(write_gguf(tmp_path / "a.gguf", values, again), "each tensor once", "blocks.0.ln1.bias")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"general.architecture": "arwkv7"}, ["this is arwkv7"]),
        ({"general.architecture": "rwkv6qwen2"}, ["this is rwkv6qwen2"]),
        ({"general.architecture": "llama"}, ["rwkv6 or rwkv7", "'llama'"]),
        ({"general.architecture": "\x1b[31m"}, ["\\x1b[31m"]),
        ({"rwkv7.wkv.head_size": 0}, ["wkv.head_size", "'0'"]),
        ({"rwkv7.wkv.head_size": ("i32", -16)}, ["wkv.head_size", "'-16'"]),
        ({"rwkv7.wkv.head_size": 7}, ["head size 7"]),
        ({"rwkv7.wkv.head_size": "x"}, ["wkv.head_size", "'x'"]),
        ({"split.count": ("u16", 2)}, ["in one piece", "one of 2"]),
    ],
)
def test_what_is_no_model_of_ours_is_refused(tmp_path, values, words):
    base, tensors = tiny_parts()
    refusal(write_gguf(tmp_path / "a.gguf", base | values, tensors), *words)


def test_no_architecture_is_refused(tmp_path):
    _, tensors = tiny_parts()
    refusal(write_gguf(tmp_path / "a.gguf", {}, tensors), "rwkv6 or rwkv7", "''")


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000, 2**32 - 1])
def test_other_versions_are_refused(tmp_path, version):
    word = "big-endian" if version == 0x03000000 else f"version {version}"
    refusal(write_gguf(tmp_path / "a.gguf", *tiny_parts(), version=version), "version 2 or 3", word)


def test_a_tensor_that_nobody_knows_is_refused(tmp_path):
    values, tensors = tiny_parts()
    refusal(
        write_gguf(tmp_path / "a.gguf", values, tensors | {"blk.0.extra.weight": np.ones(3)}),
        "blk.0.extra.weight",
    )
    missing = {name: t for name, t in tensors.items() if "lerp_fused" not in name}
    refusal(write_gguf(tmp_path / "a.gguf", values, missing), "blocks.0.att.x_r")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("block_count", 3, ["expected 1", "found 3"]),
        ("embedding_length", 17, ["expected 16", "found 17"]),
        ("feed_forward_length", 1, ["expected 32", "found 1"]),
        ("attention.layer_norm_epsilon", 1e-2, ["expected 1e-05", "found 0.01"]),
    ],
)
def test_a_header_that_says_something_else(tmp_path, key, value, words):
    values, tensors = tiny_parts()
    values = dict(values) | {"rwkv7." + key: value}
    refusal(write_gguf(tmp_path / "a.gguf", values, tensors), key, *words)


@pytest.mark.parametrize("length", [4, 7, 8, 15, 23, 24, 40, 200, 1000, -1])
def test_a_file_cut_short_is_refused(tmp_path, length):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(*tiny_parts())[:length])
    refusal(path)


def test_ten_thousand_mutations(tmp_path):
    """Any byte of the header may be anything: an error or a model, nothing else."""
    path = tmp_path / "a.gguf"
    base = model(**TINY | {"V": 20}).weights
    found = vocabulary([b"<s>", b"a", b"b", b"\xff"])
    file = gguf_bytes(rwkv7_values(base) | found, rwkv7_tensors(base))
    header = file.index(b"time_mix_w0") * 2
    rng = random.Random(20)
    interesting = [
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\xff" * 4,
        b"\xff" * 8,
        b"\0" * 8,
        b"\0" * 7 + b"\x80",
    ]
    opened = 0
    for _ in range(10_000):
        damaged = bytearray(file)
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
            at = rng.randrange(min(header, len(damaged)))
            how = rng.random()
            if how < 0.4:
                damaged[at] ^= 1 << rng.randrange(8)
            elif how < 0.8:
                piece = rng.choice(interesting)
                damaged[at : at + len(piece)] = piece
            elif how < 0.9:
                del damaged[at : at + rng.randrange(1, 9)]
            else:
                other = rng.randrange(header)
                damaged[at : at + 8] = file[other : other + 8]
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.05 else damaged)
        try:
            rwkv.Engine(str(path), "cpu fp32", threads=1)
            opened += 1
        except rwkv.Error as error:
            assert str(error)
    assert 0 < opened < 9_000


# ---- vocabulary ----

BAD_VOCABULARIES = {
    "negative type": (dict(tokens=WORDS, types=[-1] * len(WORDS)), "type from 0 to 6", "-1"),
    "type of 7": (dict(tokens=WORDS, types=[7] * len(WORDS)), "type from 0 to 6", "found 7"),
    "types missing": (dict(tokens=WORDS, types=[1]), "token_type", "found 1"),
    "no tokens": (dict(tokens=[]), "expected the tokens, found none"),
    "only padding": (dict(tokens=["a", "b"], types=[5, 5]), "tokens with text"),
    "empty token": (dict(tokens=["a", ""]), "token 1", "1 to 1024 bytes, found 0"),
    "too long": (dict(tokens=["a", "b" * 1025]), "token 1", "found 1025"),
    "the same twice": (dict(tokens=["a", "b", "\\x61"]), "a byte string of its own"),
    "half an escape": (dict(tokens=["a", "\\x6"]), "token 1", "two hexadecimal digits"),
    "no escape": (dict(tokens=["a", "\\q"]), "token 1", "after \\"),
    "a backslash": (dict(tokens=["a", "\\"]), "token 1", "after \\"),
    "more than the model has": (dict(tokens=[str(i) for i in range(301)]), "below the model's 300"),
}


@pytest.mark.parametrize("case", BAD_VOCABULARIES)
def test_a_bad_vocabulary_is_refused(tmp_path, case):
    found, *words = BAD_VOCABULARIES[case]
    kind = rwkv.Error if case == "more than the model has" else rwkv.ModelFormatError
    refusal(
        with_vocabulary(tmp_path / "a.gguf", model(**TINY | {"V": 300}).weights, **found),
        *words,
        kind=kind,
    )
