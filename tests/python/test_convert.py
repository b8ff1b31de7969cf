"""Written GGUF files: the model they were made of again, read by this package and by the format's own."""

import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from gguf_files import (
    WORDS,
    Raw,
    rwkv6_tensors,
    rwkv7_tensors,
    rwkv7_values,
    vocabulary,
    with_vocabulary,
    write_gguf,
)
from helpers import OLDER, TINY, WIDE, bits, model, save

import rwkv_engine as rwkv
from rwkv_engine.inspection import inspect, report

MODEL = dict(L=2, C=64, N=16, F=160, V=300, ranks=(5, 6, 7, 9), dtype="f16")
KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
MATRICES = (
    "token_embd",
    "output.weight",
    "receptance",
    "time_mix_key",
    "time_mix_value",
    "channel_mix_key",
)


def run(path):
    engine = rwkv.Engine(str(path), "cpu fp32", threads=1)
    logits = engine.forward(list(range(40)), engine.new_state(), output="all")
    return bits(logits), engine.fingerprint


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_nothing_is_lost(tmp_path, kind):
    rwkv.convert(model(**MODEL).path("f32"), tmp_path / "a.gguf", kind)
    assert run(tmp_path / "a.gguf") == run(model(**MODEL).path("f32"))
    rwkv.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", kind)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_bf16_is_kept(tmp_path):
    bf16 = model(**MODEL | {"dtype": "bf16"})
    rwkv.convert(bf16.path("bf16"), tmp_path / "a.gguf", "bf16")
    assert run(tmp_path / "a.gguf") == run(bf16.path("bf16"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_gguf_package_reads(tmp_path, kind):
    """Its values are those it would have made itself."""
    gguf = pytest.importorskip("gguf")
    rwkv.convert(model(**MODEL).path("f32"), tmp_path / "a.gguf", kind)
    read = gguf.GGUFReader(tmp_path / "a.gguf")
    expected = rwkv7_tensors(model(**MODEL).weights)
    assert {t.name for t in read.tensors} == set(expected)
    for tensor in read.tensors:
        values = np.ascontiguousarray(expected[tensor.name], np.float32)
        assert tuple(tensor.shape) == values.shape[::-1]
        wanted = gguf.GGMLQuantizationType.F32
        if values.ndim == 2 and (name := tensor.name) and name[-9:-8] not in set("wavg"):
            wanted = gguf.GGMLQuantizationType[KINDS[kind]]
        assert tensor.tensor_type == wanted, tensor.name
        assert tensor.data.tobytes() == gguf.quantize(values, wanted).tobytes(), tensor.name
    fields = {key: field.contents() for key, field in read.fields.items()}
    assert fields["general.architecture"] == "rwkv7"
    assert fields["rwkv7.block_count"] == 2 and fields["rwkv7.embedding_length"] == 64
    assert fields["rwkv7.feed_forward_length"] == 160 and fields["rwkv7.wkv.head_size"] == 16
    names = ("decay", "iclr", "value_residual_mix", "gate")
    assert [fields[f"rwkv7.attention.{name}_lora_rank"] for name in names] == [5, 6, 7, 9]


MODEL6 = dict(version="6", L=3, C=64, N=16, F=160, V=300, ranks=(5, 7), dtype="f16")


@pytest.mark.parametrize("kind", KINDS)
def test_rwkv6_as_the_gguf_package_reads_it(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    weights = model(**MODEL6).weights
    rwkv.convert(model(**MODEL6).path("f32"), tmp_path / "a.gguf", kind)
    read = gguf.GGUFReader(tmp_path / "a.gguf")
    expected = rwkv6_tensors(weights)
    for i in range(MODEL6["L"]):  # as llama.cpp wants it
        expected[f"blk.{i}.time_mix_first.weight"] = weights[f"blocks.{i}.att.time_faaaa"]
    assert {t.name for t in read.tensors} == set(expected)
    for tensor in read.tensors:
        values = np.ascontiguousarray(expected[tensor.name], np.float32)
        assert tuple(tensor.shape) == values.shape[::-1], tensor.name
        small = values.ndim != 2 or tensor.name.removesuffix(".weight").endswith(
            ("1", "2", "first")
        )
        wanted = gguf.GGMLQuantizationType["F32" if small else KINDS[kind]]
        assert tensor.tensor_type == wanted, tensor.name
        assert tensor.data.tobytes() == gguf.quantize(values, wanted).tobytes(), tensor.name
    fields = {key: field.contents() for key, field in read.fields.items()}
    assert fields["general.architecture"] == "rwkv6"
    sizes = (
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "wkv.head_size",
        "time_mix_extra_dim",
        "time_decay_extra_dim",
        "rescale_every_n_layers",
    )
    assert [fields[f"rwkv6.{name}"] for name in sizes] == [3, 64, 160, 16, 5, 7, 0]


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_nothing_of_rwkv6_is_lost(tmp_path, kind):
    source = model(**MODEL6).path("f32")
    rwkv.convert(source, tmp_path / "a.gguf", kind)
    assert run(tmp_path / "a.gguf") == run(source)
    rwkv.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", kind)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2"])
def test_versions_that_llama_cpp_does_not_know(tmp_path, version):
    source = model(**OLDER[version]).path("f32")
    with pytest.raises(rwkv.ModelFormatError, match=f"this is RWKV-{version}; .*safetensors"):
        rwkv.convert(source, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_what_llama_cpp_takes_for_granted(tmp_path):
    """One rank for all layers, and as many channels in the recurrence as in the embedding."""
    weights = model(**MODEL).weights
    weights = weights | {
        f"blocks.1.att.w{n}": np.zeros(shape, np.float32)
        for n, shape in ((1, (64, 8)), (2, (8, 64)))
    }
    uneven = save(tmp_path / "a.pth", weights)
    wide = model(**OLDER["6"]).path("f32")
    for source, message in (
        (uneven, r"blocks\.1\.att\.w1: expected the rank 5"),
        (wide, "35, .*45"),
    ):
        rwkv.Engine(source, "cpu fp32", threads=1)
        with pytest.raises(rwkv.ModelFormatError, match=message):
            rwkv.convert(source, tmp_path / "a.gguf")


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path):
    rwkv.convert(model(**TINY).path("f32"), tmp_path / "a.gguf", "q8_0")
    found = rwkv.Engine(tmp_path / "a.gguf", "cpu fp32", threads=1)
    assert found.config == rwkv.Engine(model(**TINY).path("f32"), "cpu fp32", threads=1).config


def test_the_vocabulary_goes_along(tmp_path):
    source = with_vocabulary(tmp_path / "a.gguf", model(**MODEL).weights, tokens=WORDS)
    rwkv.convert(source, tmp_path / "b.gguf", "f32")
    tokenizer = rwkv.Engine(tmp_path / "b.gguf", "cpu fp32", threads=1).tokenizer
    for id, token in enumerate(WORDS[1:], 1):
        assert tokenizer.decode_bytes([id]) == token and tokenizer.encode(token) == [id]
    assert tokenizer.vocab_size == len(WORDS)


def test_a_vocabulary_that_gguf_cannot_hold(tmp_path):
    """Byte-level BPE has merges, which a greedy vocabulary lacks: refused if asked for, else left out."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.save(str(tmp_path / "bpe.json"))
    source = model(**TINY).path()
    with pytest.raises(rwkv.Error, match="World vocabulary, found a byte-level BPE"):
        rwkv.convert(source, tmp_path / "a.gguf", tokenizer=tmp_path / "bpe.json")
    assert not (tmp_path / "a.gguf").exists()


def test_a_vocabulary_that_does_not_open_is_not_left_out(tmp_path):
    weights = model(**TINY).weights
    words = vocabulary([b"<s>", b"a", b"a"])
    source = write_gguf(tmp_path / "a.gguf", rwkv7_values(weights) | words, rwkv7_tensors(weights))
    with pytest.raises(rwkv.ModelFormatError, match="byte string of its own"):
        rwkv.convert(source, tmp_path / "b.gguf")


def test_the_world_vocabulary_as_llama_cpp_writes_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    rwkv.convert(model(**TINY | {"V": 65536}).path("f32"), tmp_path / "a.gguf", "f16")
    read = gguf.GGUFReader(tmp_path / "a.gguf")
    texts = read.fields["tokenizer.ggml.tokens"].contents()
    types = read.fields["tokenizer.ggml.token_type"].contents()
    world = rwkv.Tokenizer.world()
    assert len(texts) == len(types) == 65536 and texts[0] == "<s>" and types[0] == 3
    for id in range(1, world.vocab_size):
        written = texts[id].encode().decode("unicode_escape").encode("latin-1")
        assert written == world.decode_bytes([id]) and types[id] == 1
    assert set(types[world.vocab_size :]) == {5}


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_shows_what_is_in_the_file(tmp_path, kind):
    path = tmp_path / "a.gguf"
    shape = dict(L=1, C=256, N=64, F=512, V=1024, ranks=(32, 32, 32, 64))  # not padded in memory
    rwkv.convert(model(**shape).path("f32"), path, kind)
    found = inspect(path, tensors=True)
    tensors = {t["name"]: t for t in found["tensors"]}
    block = {"q8_0": 34 / 32, "q4_0": 18 / 32, "f32": 4}.get(kind, 2)
    assert tensors["emb.weight"]["dtype"] == tensors["head.weight"]["dtype"] == kind
    assert tensors["emb.weight"]["bytes"] == 1024 * 256 * block
    lerp = tensors["blocks.0.att.x_w"]
    assert lerp == {"name": lerp["name"], "dtype": "f32", "shape": [1, 1, 256], "bytes": 1024}
    assert found["bytes"] == sum(t["bytes"] for t in tensors.values())
    filled = (2 * 32 + 1) * 256 * 4  # what llama.cpp wants in the first layer and nobody uses
    assert filled < path.stat().st_size - found["bytes"] < filled + 5000
    loaded = rwkv.Engine(path, "cpu fp32", threads=1)
    assert abs(found["memory_bytes"]["cpu fp32"] / loaded._core.weight_bytes - 1) < 0.01
    assert f"emb.weight  {kind}  (1024, 256)" in report(found)


def test_inspect_names_types_that_only_others_write(tmp_path):
    tensors = rwkv7_tensors(model(**WIDE).weights)
    tensors["output.weight"] = Raw("q4_k", (100, 256), bytes(100 * 144))
    path = write_gguf(tmp_path / "a.gguf", rwkv7_values(model(**WIDE).weights), tensors)
    (head,) = (t for t in inspect(path, tensors=True)["tensors"] if t["name"] == "head.weight")
    assert head == {"name": "head.weight", "dtype": "q4_K", "shape": [100, 256], "bytes": 14400}


def test_progress_and_refusals(tmp_path):
    seen = []
    source = model(**TINY).path("f32")
    rwkv.convert(source, tmp_path / "a.gguf", "f32", progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    with pytest.raises(rwkv.Error, match="ends in .gguf"):
        rwkv.convert(source, tmp_path / "a.bin")
    with pytest.raises(rwkv.Error, match="q8_0"):
        rwkv.convert(source, tmp_path / "b.gguf", "q5_0")
    with pytest.raises(ZeroDivisionError):
        rwkv.convert(source, tmp_path / "b.gguf", progress=lambda *_: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_numbers_that_do_not_fit_are_refused(tmp_path, value):
    weights = {name: array.copy() for name, array in model(**TINY).weights.items()}
    weights["head.weight"][3, 5] = value
    save(tmp_path / "a.pth", weights)
    with pytest.raises(rwkv.ModelFormatError, match=r"head\.weight: expected"):
        rwkv.convert(tmp_path / "a.pth", tmp_path / "a.gguf", "f16")
    assert not (tmp_path / "a.gguf").exists()


def test_the_command(tmp_path):
    source, target = model(**TINY).path("f32"), tmp_path / "a.gguf"
    command = [sys.executable, "-m", "rwkv_engine", "convert", source, target, "--type", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run_tiny(target) == run_tiny(source)


def run_tiny(path):
    return rwkv.Engine(path, "cpu fp32", threads=1).fingerprint
