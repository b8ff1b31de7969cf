"""Written GGUF files: the model they were made of again, read by this package and by the format's own."""

import subprocess
import sys

import numpy as np
import pytest
from gguf_files import WORDS, rwkv7_tensors, with_vocabulary
from helpers import TINY, bits, model, save

import rwkv_engine as rwkv

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
