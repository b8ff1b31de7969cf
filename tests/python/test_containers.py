"""The same model in the files of other projects: the same bits, the same fingerprint, states that fit."""

import functools
import json
import random

import numpy as np
import pytest
from checkpoint_files import write_pth, write_safetensors
from container_files import (
    to_fla6,
    to_fla7,
    to_rwkv_rs,
    to_st,
    to_st_turned,
    to_transformers,
    write_folder,
)
from gguf_files import rwkv6_tensors, rwkv6_values, rwkv7_tensors, rwkv7_values, stored, write_gguf
from helpers import SMALL, bits, model, refusal, save
from random_model import random_model

import rwkv_engine as rwkv
from rwkv_engine.inspection import inspect

SEVEN = SMALL | {"dtype": "f16"}
SIX = dict(version="6", L=2, C=64, N=16, F=192, V=40, dtype="f16")


def run(path, strategy="cpu fp32", count=30):
    engine = rwkv.Engine(str(path), strategy, threads=2)
    state = engine.new_state()
    tokens = np.random.default_rng(1).integers(0, engine.config.n_vocab, count).tolist()
    return bits(engine.forward(tokens, state, output="all")), engine.fingerprint, state.to_bytes()


def older(version):
    return dict(version=version, L=2, C=64, N=16, F=192, V=40, dtype="f16")


def weights_of(options):
    return model(**options).weights


@functools.cache
def _expected(options, strategy):
    return run(model(**dict(options)).path("f32"), strategy)


def expected(options, strategy="cpu fp32"):
    return _expected(tuple(sorted(options.items())), strategy)


# ---- one model in every container ----


def as_st(convert):
    return lambda folder, weights: save(folder / "a.st.safetensors", convert(weights), "f16")


def as_folder(convert, **options):
    return lambda folder, weights: write_folder(
        folder / "model", convert(weights), "f16", **options
    )


def as_gguf(kind, rescale_every=0):
    def write(folder, weights):
        tensors = rwkv6_tensors(weights, rescale_every)
        values = rwkv6_values(weights, **{"rwkv6.rescale_every_n_layers": rescale_every})
        return write_gguf(
            folder / "a.gguf", values, {name: stored(t, kind) for name, t in tensors.items()}
        )

    return write


FILES = {
    "7-st": (SEVEN, as_st(to_st)),
    "7-fla": (SEVEN, as_folder(to_fla7)),
    "7-fla-sharded": (SEVEN, as_folder(to_fla7, shards=3)),
    "7-fla-fused": (SEVEN, as_folder(functools.partial(to_fla7, fused_lerps=True))),
    "7-rwkv-rs": (SEVEN, as_folder(to_rwkv_rs)),
    "7-rwkv-rs-up-down": (
        SEVEN,
        as_folder(functools.partial(to_rwkv_rs, projections=("up_proj", "down_proj")), shards=2),
    ),
    "7-canonical-folder": (
        SEVEN,
        as_folder(lambda weights: {"model." + name: t for name, t in weights.items()}),
    ),
    "6-st": (SIX, as_st(to_st)),
    "6-st-turned": (SIX, as_st(to_st_turned)),
    "6-fla": (SIX, as_folder(to_fla6)),
    "6-fla-sharded": (SIX, as_folder(to_fla6, shards=4, binary=True)),
    "6-gguf-f32": (SIX, as_gguf("f32")),
    "6-gguf-f16": (SIX, as_gguf("f16")),
    "6-gguf-rescaled": (SIX, as_gguf("f32", rescale_every=1)),
    "6-transformers": (SIX, as_folder(to_transformers, shards=2)),
    "5.2-st": (older("5.2"), as_st(to_st)),
    "5.2-transformers": (older("5.2"), as_folder(to_transformers)),
    "5.0-transformers": (older("5.0"), as_folder(to_transformers, binary=True)),
    "4-st": (older("4"), as_st(to_st)),
    "4-transformers": (older("4"), as_folder(to_transformers, binary=True)),
}


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16"])
@pytest.mark.parametrize("file", FILES)
def test_the_same_bits_as_the_pth(tmp_path, file, strategy):
    options, write = FILES[file]
    assert run(write(tmp_path, weights_of(options)), strategy) == expected(options, strategy)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
@pytest.mark.parametrize("file", FILES)
def test_the_same_bits_once_converted(tmp_path, file, suffix):
    options, write = FILES[file]
    if suffix == "gguf" and file[0] not in "67":
        pytest.skip("llama.cpp runs RWKV-6 and 7")
    rwkv.convert(write(tmp_path, weights_of(options)), tmp_path / f"out.{suffix}", "f32")
    assert run(tmp_path / f"out.{suffix}") == expected(options)
    if suffix == "safetensors":
        shapes = {
            t["name"]: t["shape"] for t in inspect(tmp_path / "out.safetensors", True)["tensors"]
        }
        assert shapes == {name: list(t.shape) for name, t in weights_of(options).items()}


def test_the_st_file_of_5_1_gives_the_same_logits(tmp_path):
    """Its converter repeats a head's decay for every channel: the file is one of 5.2."""
    weights = weights_of(older("5.1"))
    found = run(save(tmp_path / "a.safetensors", to_st(weights)))
    assert found[0] == expected(older("5.1"))[0]


@pytest.mark.parametrize("size", [dict(L=2, V=4096), pytest.param(dict(L=12, V=65536), marks=pytest.mark.slow)], ids=["layers", "whole"])
@pytest.mark.parametrize("version", ["7", "6"])
def test_the_shape_of_the_smallest_world_model(tmp_path, version, size):
    """As .pth, safetensors, .st, fla folder and GGUF: 768 channels, the whole with 12 layers and the World vocabulary."""
    shape = dict(version=version, C=768, N=64, F=3072 if version == "7" else 2688, **size)
    shape |= dict(dtype="f16", seed=1)
    if version == "7":
        shape["ranks"] = (64, 64, 32, 128)
    weights = random_model(**shape)
    gguf_tensors, gguf_values = (
        (rwkv7_tensors, rwkv7_values) if version == "7" else (rwkv6_tensors, rwkv6_values)
    )
    write = {
        "pth": lambda to: save(to / "a.pth", weights, "f16"),
        "safetensors": lambda to: save(to / "a.safetensors", weights, "f16"),
        "st": lambda to: save(to / "st.safetensors", to_st(weights), "f16"),
        "fla": lambda to: write_folder(
            to / "fla", (to_fla7 if version == "7" else to_fla6)(weights), "f16"
        ),
        "gguf": lambda to: write_gguf(
            to / "a.gguf",
            gguf_values(weights),
            {name: stored(t, "f32") for name, t in gguf_tensors(weights).items()},
        ),
    }
    first = None
    for name, make in write.items():
        path = make(tmp_path)
        found = run(path, count=8)
        first = first or found
        assert found == first, name
        (next(path.glob("*.safetensors")) if path.is_dir() else path).unlink()


# ---- what training tools put around a state dict ----


@pytest.mark.parametrize(
    "prefix", ["model.", "_orig_mod.", "module.", "_forward_module.model.", "model._orig_mod."]
)
def test_prefixes(tmp_path, prefix):
    wrapped = {prefix + name: t for name, t in weights_of(SEVEN).items()}
    assert run(save(tmp_path / "a.pth", wrapped)) == expected(SEVEN)


def test_modules_compiled_one_by_one(tmp_path):
    wrapped = {name.replace(".att.", ".att._orig_mod."): t for name, t in weights_of(SIX).items()}
    assert run(save(tmp_path / "a.pth", wrapped)) == expected(SIX)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_state_dict_inside_a_checkpoint(tmp_path, prefix):
    path = tmp_path / "a.pth"
    wrapped = {prefix + name: t for name, t in weights_of(SEVEN).items()}
    write_pth(path, wrapped, "f32", wrap="state_dict")
    assert run(path) == expected(SEVEN)


def test_two_names_for_one_tensor(tmp_path):
    weights = dict(weights_of(SEVEN))
    weights["module.emb.weight"] = weights["emb.weight"]
    refusal(save(tmp_path / "a.pth", weights), "each tensor once", "two that are emb.weight")


def test_a_low_rank_as_wide_as_the_embedding(tmp_path):
    """Square matrices lie as the file's other matrices do, and without others as in official files."""
    options = SEVEN | {"ranks": (64, 64, 64, 9)}
    weights = weights_of(options)
    assert run(save(tmp_path / "a.safetensors", to_st(weights))) == expected(options)
    assert run(save(tmp_path / "b.safetensors", weights)) == expected(options)


def test_only_square_matrices(tmp_path):
    """Nothing tells which way round they lie, unless the file is one of ours."""
    square = SEVEN | {"ranks": (64, 64, 64, 64)}
    for convert in (dict, to_st):
        refusal(save(tmp_path / "a.safetensors", convert(weights_of(square))), "not square", ".pth")
    rwkv.convert(model(**square).path("f32"), tmp_path / "b.safetensors")
    assert run(tmp_path / "b.safetensors") == expected(square)


# ---- what is refused by name ----


def test_a_file_that_the_rwkv_package_converted(tmp_path):
    path = tmp_path / "a.pth"
    write_pth(path, weights_of(SEVEN), "f32", extra={"_strategy": "cuda fp16i8", "_version": "0.7"})
    refusal(path, "original checkpoint", "rwkv package has converted", "'cuda fp16i8'")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("num_hidden_layers", 3, ["expected 2", "layers", "found 3"]),
        ("hidden_size", 128, ["expected 64", "found 128"]),
        ("vocab_size", 41, ["expected 40", "found 41"]),
        ("norm_eps", 1e-6, ["expected 1e-05", "found 1e-06"]),
        ("head_dim", 128, ["expected 64", "flash-linear-attention", "found 128"]),
        ("norm_first", False, ["expected true", "found false"]),
    ],
)
def test_a_folder_that_says_something_else(tmp_path, key, value, words):
    path = write_folder(tmp_path / "a", to_fla7(weights_of(SEVEN)))
    right = dict(num_hidden_layers=2, hidden_size=64, vocab_size=40, norm_eps=1e-5, head_dim=64)
    right |= dict(norm_first=True, intermediate_size=None, architectures=["RWKV7ForCausalLM"])
    (path / "config.json").write_text(json.dumps(right))
    assert run(path) == expected(SEVEN)
    (path / "config.json").write_text(json.dumps(right | {key: value}))
    refusal(path, key, *words)


def test_a_broken_config(tmp_path):
    path = write_folder(tmp_path / "a", to_fla7(weights_of(SEVEN)))
    (path / "config.json").write_text("{")
    refusal(path, "config.json", "byte 1")


def test_another_model_in_a_folder(tmp_path):
    weights = {"model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4), np.float32)}
    refusal(write_folder(tmp_path / "a", weights), "an RWKV model", "1 tensors of other names")


# ---- folders ----


def test_the_only_model_in_a_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    save(tmp_path / "rwkv.pth", weights_of(SEVEN))
    assert run(tmp_path) == expected(SEVEN)
    save(tmp_path / "other.pth", weights_of(SEVEN))
    refusal(tmp_path, "one model in the folder", "found 2", "other.pth, rwkv.pth")


def test_a_folder_without_a_model(tmp_path):
    refusal(tmp_path, "a folder with a model", "found none")


def test_the_name_of_a_folder(tmp_path):
    path = write_folder(tmp_path / "rwkv7-0.1B", to_fla7(weights_of(SEVEN)))
    assert rwkv.Engine(path, "cpu fp32", threads=1).name == "rwkv7-0.1B"
    assert inspect(path)["container"] == "safetensors"


def test_the_vocabulary_of_a_folder(tmp_path):
    path = write_folder(tmp_path / "a", to_fla7(weights_of(SEVEN)))
    (path / "rwkv_vocab_v20230424.txt").write_text("1 'a' 1\n2 'b' 1\n3 'ab' 2\n")
    assert rwkv.Engine(path, "cpu fp32", threads=1).tokenizer.encode("aab") == [1, 3]


def sharded(tmp_path):
    path = write_folder(tmp_path / "a", to_fla7(weights_of(SEVEN)), shards=2)
    index = path / "model.safetensors.index.json"
    return path, index, json.loads(index.read_text())


def test_a_shard_that_is_missing(tmp_path):
    path, _, _ = sharded(tmp_path)
    (path / "model-00002-of-00002.safetensors").unlink()
    refusal(path, "model-00002-of-00002.safetensors", "no such file", kind=rwkv.Error)


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path):
    path, index, found = sharded(tmp_path)
    found["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(found))
    refusal(path, "model.norm.weight", "as the index says", "model-00002-of-00002.safetensors")
    found["weight_map"]["model.nothing"] = "model-00001-of-00002.safetensors"
    del found["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(found))
    refusal(path, "model.nothing", "found it nowhere")


def test_a_tensor_in_two_shards(tmp_path):
    path, _, found = sharded(tmp_path)
    second = path / "model-00002-of-00002.safetensors"
    names = [name for name, file in found["weight_map"].items() if file == second.name]
    tensors = {
        name: to_fla7(weights_of(SEVEN))[name] for name in [*names, "model.embeddings.weight"]
    }
    write_safetensors(second, tensors, "f32")
    refusal(path, "each tensor once", "model.embeddings.weight", "model-00001-of-00002.safetensors")


def test_shards_of_two_containers(tmp_path):
    path, _, found = sharded(tmp_path)
    second = path / "model-00002-of-00002.safetensors"
    names = [name for name, file in found["weight_map"].items() if file == second.name]
    write_pth(second, {name: to_fla7(weights_of(SEVEN))[name] for name in names}, "f32")
    refusal(path, "expected a safetensors file like the one before it", "found pth")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["byte 0"]),
        ("{}", ["a weight_map"]),
        ('{"weight_map": {}}', ["a weight_map"]),
        ('{"weight_map": {"a": 1}}', ["a string"]),
        ('{"weight_map": {"a": "../b.safetensors"}}', ["a file beside it", "../b.safetensors"]),
        ('{"weight_map": {"a": "/etc/passwd"}}', ["a file beside it"]),
        ('{"weight_map": {"a": ""}}', ["a file beside it"]),
        ('{"weight_map": {"a": "..", "b": "c"}}', ["a file beside it"]),
        ('{"weight_map": {"a": "x\\u0000y"}}', ["a file beside it"]),
    ],
)
def test_a_broken_index(tmp_path, text, words):
    path, index, _ = sharded(tmp_path)
    index.write_text(text)
    refusal(path, "model.safetensors.index.json", *words)


def test_ten_thousand_mutations_of_an_index(tmp_path):
    """Whatever the index says: an error or a model, nothing else."""
    path, index, _ = sharded(tmp_path)
    text = index.read_bytes()
    pieces = [b"{", b"}", b'"', b"[", b",", b"\\", b"\0", b"..", b"/", b"\xff", b"1e999", b'"":']
    rng = random.Random(3)
    opened = 0
    for _ in range(10_000):
        damaged = bytearray(text)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(damaged))
            how = rng.random()
            if how < 0.4:
                damaged[at] ^= 1 << rng.randrange(8)
            elif how < 0.7:
                damaged[at : at + rng.randrange(3)] = rng.choice(pieces)
            elif how < 0.9:
                other = rng.randrange(len(text))
                damaged[at:at] = text[other : other + 40]
            else:
                del damaged[at : at + rng.randrange(1, 60)]
        index.write_bytes(damaged)
        try:
            inspect(path)
            opened += 1
        except rwkv.Error as error:
            assert str(error)
    assert 0 < opened < 9_000
