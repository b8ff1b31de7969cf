"""Written safetensors files: every version again, bit for bit, under the official names."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import from_bf16
from container_files import write_folder
from gguf_files import rwkv7_tensors, rwkv7_values, write_gguf
from helpers import OLDER, SMALL, TINY, bits, model, python, random_model, round_to, save

import rwkv_engine as rwkv

ALL = {**OLDER, "7": SMALL}


def weights_of(version, dtype="f16"):
    return model(**ALL[version], dtype=dtype).weights


def run(path):
    engine = rwkv.Engine(str(path), "cpu fp32", threads=1)
    tokens = [id % engine.config.n_vocab for id in range(40)]
    logits = engine.forward(tokens, engine.new_state(), output="all")
    return bits(logits), engine.fingerprint, engine.config


def read(path):
    """name -> (dtype, float32 values), and the metadata, as the format's own package reads them."""
    safetensors = pytest.importorskip("safetensors")
    found = {}
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    for name, entry in safetensors.deserialize(path.read_bytes()):
        kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[entry["dtype"]]
        array = np.frombuffer(bytes(entry["data"]), kind).reshape(entry["shape"])
        values = from_bf16(array) if entry["dtype"] == "BF16" else array.astype(np.float32)
        found[name] = entry["dtype"], values
    return found, metadata


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("version", ALL)
def test_every_version_again(tmp_path, version, dtype):
    weights = weights_of(version, dtype)
    # Views with reversed strides are what torch saves for transposed tensors.
    turned = {name for name, t in weights.items() if t.ndim == 2 and "ffn" in name}
    source = save(tmp_path / "a.pth", weights, dtype, transposed=turned)
    rwkv.convert(source, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors") == run(source)
    found, metadata = read(tmp_path / "a.safetensors")
    assert found.keys() == weights.keys()
    for name, (kind, values) in found.items():
        assert kind == dtype.upper() and bits(values) == bits(weights[name]), name
    assert metadata["rwkv_fingerprint"] == rwkv.Engine(source, "cpu fp32", threads=1).fingerprint
    rwkv.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_tensors_of_several_types_keep_them(tmp_path):
    weights = weights_of("7")
    mixed = {
        name: (t.view(np.uint32) >> 16).astype(np.uint16) if t.ndim == 2 else t
        for name, t in weights.items()
    }
    rwkv.convert(save(tmp_path / "a.pth", mixed, "f32"), tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors") == run(tmp_path / "a.pth")
    for name, (kind, _) in read(tmp_path / "a.safetensors")[0].items():
        assert kind == ("BF16" if weights[name].ndim == 2 else "F32")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("version", ["4", "7"])
def test_a_type_for_all(tmp_path, version, kind):
    weights = weights_of(version, "f32")
    rwkv.convert(save(tmp_path / "a.pth", weights), tmp_path / "a.safetensors", kind)
    found, metadata = read(tmp_path / "a.safetensors")
    for name, (dtype, values) in found.items():
        assert dtype == kind.upper() and bits(values) == bits(round_to(weights[name], kind)), name
    # The fingerprint in the file is of what is written; opening it compares the two.
    assert rwkv.Engine(tmp_path / "a.safetensors").fingerprint == metadata["rwkv_fingerprint"]


@pytest.mark.parametrize("version", ["6", "7"])
def test_gguf_becomes_official_again(tmp_path, version):
    weights = model(version=version, L=2, C=64, N=16, V=50, dtype="f16").weights
    source = save(tmp_path / "a.pth", weights)
    rwkv.convert(source, tmp_path / "a.gguf", "f16")
    rwkv.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors", "f32")
    assert run(tmp_path / "a.safetensors") == run(source)
    found, _ = read(tmp_path / "a.safetensors")
    assert {name: bits(t) for name, (_, t) in found.items()} == {
        name: bits(t) for name, t in weights.items()
    }


def test_quantised_tensors_become_float32(tmp_path):
    source = model(L=1, C=64, N=16, F=64, V=40, ranks=(4, 4, 4, 4)).path("f32")
    rwkv.convert(source, tmp_path / "a.gguf", "q8_0")
    rwkv.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors") == run(tmp_path / "a.gguf")
    assert {kind for kind, _ in read(tmp_path / "a.safetensors")[0].values()} == {"F32"}


def test_the_unused_tensors_of_the_first_layer_go_along(tmp_path):
    weights = random_model(**SMALL, layer0_v=True)
    source = save(tmp_path / "a.pth", weights)
    rwkv.convert(source, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors")[0].keys() == weights.keys()
    assert run(tmp_path / "a.safetensors") == run(source)


@pytest.mark.parametrize(("kind", "value"), [("f16", 65520), ("bf16", 3.4e38), ("f32", np.nan)])
def test_numbers_that_do_not_fit_are_refused(tmp_path, kind, value):
    weights = {name: array.copy() for name, array in model(**TINY).weights.items()}
    weights["blocks.0.ffn.key.weight"][3, 5] = value
    source = save(tmp_path / "a.pth", weights)
    with pytest.raises(rwkv.ModelFormatError, match=r"ffn\.key\.weight: expected .* found"):
        rwkv.convert(source, tmp_path / "a.safetensors", kind)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_what_fits_barely_is_kept(tmp_path):
    weights = {name: array.copy() for name, array in model(**TINY).weights.items()}
    weights["head.weight"][0, :4] = 65519, -65519, 2**-24, 2**-25
    rwkv.convert(save(tmp_path / "a.pth", weights), tmp_path / "a.safetensors", "f16")
    found = read(tmp_path / "a.safetensors")[0]["head.weight"][1]
    assert found[0, :4].tolist() == [65504, -65504, 2**-24, 0]


def test_other_weights_than_were_written_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    rwkv.convert(model(**TINY).path("f32"), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(rwkv.ModelFormatError, match="fingerprint that the file names"):
        rwkv.Engine(path)


def test_models_that_do_not_open_are_not_written(tmp_path):
    weights = model(**TINY).weights
    target = tmp_path / "a.safetensors"
    for name, other, message in (
        ("blocks.0.att.w1", None, "expected the tensor .*w1"),
        ("blocks.0.att.w1", np.zeros((16, 4), np.float32), r"w2: expected \(4, 16\)"),
        ("more", np.zeros(3, np.float32), "found more"),
        ("emb.weight", None, "emb.weight"),
    ):
        changed = {**weights, name: other}
        source = save(tmp_path / "a.pth", {k: t for k, t in changed.items() if t is not None})
        for path in (target, tmp_path / "a.gguf"):
            with pytest.raises(rwkv.ModelFormatError, match=message):
                rwkv.convert(source, path)
            assert not path.exists()


# ---- the call ----


def test_targets_are_new_unless_asked(tmp_path):
    source = save(tmp_path / "a.safetensors", model(**TINY).weights, "f32")
    other = tmp_path / "b.safetensors"
    other.write_bytes(b"mine")
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "none")
    (tmp_path / "folder.gguf").mkdir()
    before = source.read_bytes()
    for name, message in (
        ("b.safetensors", "expected a new file"),
        ("a.safetensors", "another file than the source"),
        ("link.safetensors", "another file than the source"),
        ("dangling.gguf", "expected a new file"),
        ("folder.gguf", "found the folder"),
        ("c.pth", r"ends in \.gguf or \.safetensors"),
    ):
        with pytest.raises(rwkv.Error, match=f"target: .*{message}"):
            rwkv.convert(source, tmp_path / name)
    for name in ("a.safetensors", "link.safetensors", "folder.gguf"):
        with pytest.raises(rwkv.Error, match="target"):
            rwkv.convert(source, tmp_path / name, overwrite=True)
    assert source.read_bytes() == before and other.read_bytes() == b"mine"
    rwkv.convert(source, other, overwrite=True)
    assert run(other) == run(source)


def test_a_folder_is_never_written_into(tmp_path):
    source = write_folder(tmp_path / "a", model(**TINY).weights, shards=2)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for name in ("model-00001-of-00002.safetensors", "config.json"):
        with pytest.raises(rwkv.Error, match="outside the source|ends in"):
            rwkv.convert(source, source / name, overwrite=True)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    rwkv.convert(source, source / "new.safetensors")
    assert run(source / "new.safetensors") == run(source)


def test_who_may_read_a_converted_model(tmp_path):
    mask = os.umask(0o022)
    try:
        for name in ("a.safetensors", "a.gguf"):
            rwkv.convert("demo", tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_what_a_safetensors_file_does_not_take(tmp_path):
    source, target = model(**TINY).path("f32"), tmp_path / "a.safetensors"
    for options, message in (
        ({"type": "q8_0"}, "type: expected one of f32, f16, bf16"),
        ({"tokenizer": rwkv.Tokenizer.world()}, r"tokenizer: expected a target .* \.gguf"),
        ({"modelfile": True}, "modelfile: expected a target"),
    ):
        with pytest.raises(rwkv.Error, match=message):
            rwkv.convert(source, target, **options)
    assert not target.exists()


def test_progress_and_its_errors(tmp_path):
    source, seen = model(**SMALL).path("f32"), []
    target = tmp_path / "a.safetensors"
    rwkv.convert(source, target, progress=lambda *step: seen.append(step))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert 0 < target.stat().st_size - seen[-1][1] < 20_000
    with pytest.raises(ZeroDivisionError):
        rwkv.convert(source, tmp_path / "b.safetensors", progress=lambda *_: 1 / 0)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_command(tmp_path):
    source, target = model(**TINY).path("f32"), tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "rwkv_engine", "convert", source, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run(target)[1] == rwkv.Engine(source).fingerprint
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode != 0 and re.fullmatch(r"rwkv-engine: target: .*\n", again.stderr)
    done = subprocess.run([*command, "--overwrite", "--type", "bf16"], timeout=60)
    assert done.returncode == 0 and {kind for kind, _ in read(target)[0].values()} == {"BF16"}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_little_memory_is_needed(tmp_path, suffix):
    shape = dict(L=1, C=512, N=64, V=30_000, ranks=(8, 8, 8, 8))
    code = """
import re, sys
import rwkv_engine as rwkv
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
before, peak = anonymous(), 0
def sample(done, total):
    global peak
    peak = max(peak, anonymous() - before)
rwkv.convert(sys.argv[1], sys.argv[2], "f16", progress=sample)
print(peak)
"""
    source = save(tmp_path / "a.pth", random_model(**shape), "f32")
    peak = int(python(code, source, tmp_path / f"a{suffix}"))
    assert peak < 32 << 20 < source.stat().st_size / 3


def test_vectors_stored_flat_become_official(tmp_path):
    weights = model(**SMALL, dtype="f16").weights
    flat = write_gguf(tmp_path / "a.gguf", rwkv7_values(weights), rwkv7_tensors(weights))
    rwkv.convert(flat, tmp_path / "a.safetensors")
    found, _ = read(tmp_path / "a.safetensors")
    assert {name: t.shape for name, (_, t) in found.items()} == {
        name: t.shape for name, t in weights.items()
    }
