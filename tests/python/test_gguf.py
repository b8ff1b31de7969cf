"""GGUF files: the same model as the checkpoint they were made of, their vocabulary, and the damage they are refused
for."""

import functools
import random

import numpy as np
import pytest
from gguf_files import Raw, gguf_bytes, rwkv7_tensors, rwkv7_values, stored, vocabulary, write_gguf
from helpers import TINY, bits, model, refusal, save

import rwkv_engine as rwkv

MODEL = dict(L=3, C=256, N=64, F=512, V=96, ranks=(32, 32, 32, 64), dtype="f16")
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
BIG = ("receptance", "key", "value", "output", "token_embd.weight")


def run(path, strategy="cpu fp32"):
    engine = rwkv.Engine(str(path), strategy, threads=2)
    state = engine.new_state()
    tokens = np.random.default_rng(1).integers(0, engine.config.n_vocab, 40).tolist()
    return bits(engine.forward(tokens, state, output="all")), engine.fingerprint, state.to_bytes()


@functools.cache
def weights():
    return model(**MODEL).weights


@functools.cache
def from_pth(strategy):
    return run(model(**MODEL).path("f32"), strategy)


# ---- the same model ----


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_the_same_bits_as_the_pth(tmp_path, kind, strategy):
    tensors = {name: stored(t, kind) for name, t in rwkv7_tensors(weights()).items()}
    path = write_gguf(tmp_path / "a.gguf", rwkv7_values(weights()), tensors)
    assert run(path, strategy) == from_pth(strategy)


def test_bf16_is_kept(tmp_path):
    options = MODEL | {"dtype": "bf16"}
    tensors = {
        name: stored(t, "bf16") for name, t in rwkv7_tensors(model(**options).weights).items()
    }
    path = write_gguf(tmp_path / "a.gguf", rwkv7_values(model(**options).weights), tensors)
    assert run(path, "auto") == run(model(**options).path("bf16"), "auto")
    assert run(path, "auto")[1] == run(model(**options).path("f32"))[1]


@pytest.mark.parametrize("alignment", [8, 32, 4096, 1 << 20])
@pytest.mark.parametrize("version", [2, 3])
def test_versions_and_alignments(tmp_path, version, alignment):
    tiny = model(**TINY)
    values = rwkv7_values(tiny.weights) | {"general.alignment": alignment}
    tensors = rwkv7_tensors(tiny.weights)
    path = write_gguf(tmp_path / "a.gguf", values, tensors, version=version, alignment=alignment)
    assert run(path) == run(tiny.path("f32"))


def test_every_kind_of_value_is_passed_over(tmp_path):
    values = {
        f"a.{kind}": (kind, number)
        for kind, number in {
            "u8": 1,
            "i8": -1,
            "u16": 2,
            "i16": -2,
            "u32": 3,
            "i32": -3,
            "f32": 0.5,
        }.items()
    }
    values |= {
        "a.u64": ("u64", 2**63),
        "a.i64": ("i64", -(2**62)),
        "a.f64": ("f64", 0.25),
        "a.bool": True,
    }
    values |= {"a.str": "tëxt", "a.empty": "", "a.long": "x" * 100_000}
    for kind, items in {
        "u8": [1, 2],
        "f64": [0.5],
        "bool": [1, 0],
        "str": ["a", ""],
        "i64": [],
    }.items():
        values["array." + kind] = ("array", (kind, items))
    nested = ("array", [("str", ["a"]), ("array", [("u8", [1]), ("u8", [])])])
    values["array.array"] = ("array", nested)
    tiny = model(**TINY)
    path = write_gguf(
        tmp_path / "a.gguf", values | rwkv7_values(tiny.weights), rwkv7_tensors(tiny.weights)
    )
    assert run(path) == run(tiny.path("f32"))


# ---- blocks ----


def random_blocks(kind, shape, seed):
    """Random bytes with scales that keep the values of order one."""
    gguf = pytest.importorskip("gguf")
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (np.prod(shape) // elements, size), np.uint8)
    scales = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(
        kind, (0,)
    )
    reach = {"Q8_0": 128, "Q6_K": 4096, "Q4_K": 950, "Q5_K": 1900}.get(kind, 16)
    for at in scales:
        values = rng.uniform(-0.1, 0.1, len(blocks)) / reach
        blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    blocks = blocks.reshape(*shape[:-1], -1)
    return Raw(kind.lower(), shape, blocks.tobytes()), gguf.dequantize(
        blocks, gguf.GGMLQuantizationType[kind]
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_decoded_to_the_bits_of_the_gguf_package(tmp_path, kind):
    """All of a small table counts for the fingerprint; the logits depend on every element of the matrices."""
    plain, packed = rwkv7_tensors(weights()), {}
    for index, (name, tensor) in enumerate(plain.items()):
        if any(part in name for part in BIG) and tensor.ndim == 2:
            packed[name], plain[name] = random_blocks(kind, tensor.shape, index)
    assert len(packed) >= 13
    values = rwkv7_values(weights())
    expected = run(write_gguf(tmp_path / "plain.gguf", values, plain))
    assert run(write_gguf(tmp_path / "packed.gguf", values, plain | packed)) == expected


@pytest.mark.parametrize("kind", BLOCKS)
def test_transposed_blocks(tmp_path, kind):
    """The low-rank factors are read against the grain of their blocks."""
    options = MODEL | {"ranks": (256,) * 4, "L": 2}
    base = model(**options).weights
    plain, packed = rwkv7_tensors(base), {}
    for index, name in enumerate(
        name for name in plain if name[-9:-7] in {"w1", "w2", "a2", "g1", "v1"}
    ):
        packed[name], plain[name] = random_blocks(kind, plain[name].shape, index)
    assert len(packed) == 10
    values = rwkv7_values(base)
    expected = run(write_gguf(tmp_path / "plain.gguf", values, plain))
    assert run(write_gguf(tmp_path / "packed.gguf", values, plain | packed)) == expected


@pytest.mark.parametrize("quantised", [None, "Q8_0"])
def test_files_of_the_gguf_package(tmp_path, quantised):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "rwkv7")
    writer.add_wkv_head_size(MODEL["N"])
    writer.add_block_count(MODEL["L"])
    plain = dict(rwkv7_tensors(weights()))
    for name, tensor in plain.items():
        if quantised and tensor.ndim == 2 and "receptance" in name:
            kind = gguf.GGMLQuantizationType[quantised]
            packed = gguf.quantize(tensor, kind)
            plain[name] = gguf.dequantize(packed, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert run(tmp_path / "a.gguf") == run(
        write_gguf(tmp_path / "b.gguf", rwkv7_values(weights()), plain)
    )
    if not quantised:
        assert run(tmp_path / "a.gguf") == from_pth("cpu fp32")


# ---- vocabulary ----

WORDS = [
    b"<s>",
    *(bytes([i]) for i in range(256)),
    b"hello",
    b" world",
    "é€".encode(),
    b"it's",
    b"\"'\\x41\n",
    b"a\0b",
]


def with_vocabulary(path, **found):
    options = TINY | {"V": 300}
    base = model(**options).weights
    return write_gguf(path, rwkv7_values(base) | vocabulary(**found), rwkv7_tensors(base))


@pytest.mark.parametrize("typed", [True, False])
def test_the_vocabulary_of_the_file(tmp_path, typed):
    padded = [f"[PAD{i}]" for i in range(len(WORDS), 300)]
    words = WORDS + padded if typed else WORDS
    types = [3] + [1] * (len(WORDS) - 1) + [5] * len(padded)
    path = with_vocabulary(tmp_path / "a.gguf", tokens=words, types=types if typed else None)
    tokenizer = rwkv.Engine(str(path), "cpu fp32", threads=1).tokenizer
    for id, token in enumerate(WORDS):
        if id > 0:
            assert tokenizer.encode(token) == [id]
            assert tokenizer.decode_bytes([id]) == token
    assert tokenizer.decode_bytes([0]) == b""
    assert tokenizer.encode("<s>[PAD280]") == [1 + byte for byte in b"<s>[PAD280]"]
    assert tokenizer.vocab_size == len(WORDS)
    assert tokenizer.encode("hello world é€") == [257, 258, 33, 259]


def test_the_world_vocabulary_in_a_file(tmp_path):
    world = rwkv.Tokenizer.world()
    tokens = [world.decode_bytes([id]) or b"<s>" for id in range(world.vocab_size)]
    types = [3] + [1] * (len(tokens) - 1)
    padding = 65536 - len(tokens)
    tokens += [f"[PAD{i}]".encode() for i in range(padding)]
    base = model(**TINY | {"V": 65536}).weights
    values = rwkv7_values(base) | vocabulary(tokens, types + [5] * padding)
    path = write_gguf(tmp_path / "a.gguf", values, rwkv7_tensors(base))
    tokenizer = rwkv.Engine(str(path), "cpu fp32", threads=1).tokenizer
    text = 'Hello world, 你好, "it\'s" \\ \x00\xff\u20ac\n\n\t  ' * 10
    assert tokenizer.encode(text) == world.encode(text)
    assert all(
        tokenizer.decode_bytes([id]) == world.decode_bytes([id]) for id in range(world.vocab_size)
    )


def test_another_kind_of_vocabulary_is_left_alone(tmp_path):
    path = with_vocabulary(tmp_path / "a.gguf", tokens=["a", "b"], model="gpt2")
    engine = rwkv.Engine(str(path), "cpu fp32", threads=1)
    with pytest.raises(rwkv.Error, match="tokenizer="):
        _ = engine.tokenizer


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
    refusal(with_vocabulary(tmp_path / "a.gguf", **found), *words, kind=kind)


# ---- damage ----


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


def test_a_pth_beside_it_still_opens(tmp_path):
    """A file is what it begins with, not what it is called."""
    tiny = model(**TINY)
    assert run(save(tmp_path / "a.pth", tiny.weights)) == run(tiny.path("f32"))
    path = tmp_path / "model.pth"
    path.write_bytes(gguf_bytes(*tiny_parts()))
    assert run(path) == run(tiny.path("f32"))
