"""GGUF files: the same model as the checkpoint they were made of, and their vocabulary."""

import functools

import numpy as np
import pytest
from gguf_files import (
    WORDS,
    Raw,
    gguf_bytes,
    rwkv7_tensors,
    rwkv7_values,
    stored,
    vocabulary,
    with_vocabulary,
    write_gguf,
)
from helpers import TINY, bits, model, save

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


def weights_300():
    return model(**TINY | {"V": 300}).weights


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


@pytest.mark.parametrize("typed", [True, False])
def test_the_vocabulary_of_the_file(tmp_path, typed):
    padded = [f"[PAD{i}]" for i in range(len(WORDS), 300)]
    words = WORDS + padded if typed else WORDS
    types = [3] + [1] * (len(WORDS) - 1) + [5] * len(padded)
    path = with_vocabulary(
        tmp_path / "a.gguf", weights_300(), tokens=words, types=types if typed else None
    )
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
    path = with_vocabulary(tmp_path / "a.gguf", weights_300(), tokens=["a", "b"], model="gpt2")
    engine = rwkv.Engine(str(path), "cpu fp32", threads=1)
    with pytest.raises(rwkv.Error, match="tokenizer="):
        _ = engine.tokenizer


# ---- containers ----


def test_a_pth_beside_it_still_opens(tmp_path):
    """A file is what it begins with, not what it is called."""
    tiny = model(**TINY)
    assert run(save(tmp_path / "a.pth", tiny.weights)) == run(tiny.path("f32"))
    path = tmp_path / "model.pth"
    path.write_bytes(gguf_bytes(rwkv7_values(tiny.weights), rwkv7_tensors(tiny.weights)))
    assert run(path) == run(tiny.path("f32"))
