"""Adapters that do not fit the model, that say too little, that are of another kind, or that are damaged."""

import json
import resource

import adapter_files
import numpy as np
import pytest
from adapter_files import PEFT
from helpers import OLDER, SMALL, engine, model, refusal, rwkv, save

from rwkv_engine import Adapter

KEY = "blocks.0.att.key"
ALPHA = 6.0


def refused(adapters, *words, of=SMALL, path=None, kind=rwkv.ModelFormatError):
    with pytest.raises(kind) as error:
        rwkv.Engine(path or model(**of).path(), "cpu fp32", threads=1, adapters=adapters)
    message = str(error.value)
    assert len(message) < 1000
    for word in ("expected", "found", *words):
        assert word in message, message


def zeros(*shape):
    return np.zeros(shape, np.float32)


def file_of(tmp_path, tensors, dtype="f32"):
    return Adapter(save(tmp_path / "a.pth", tensors, dtype), alpha=ALPHA)


@pytest.fixture
def lora():
    return adapter_files.Adapter(model(**SMALL), "lora")


def pair(module=KEY, rows=64, cols=64, rank=4):
    return {module + ".lora_A": zeros(rank, cols), module + ".lora_B": zeros(rows, rank)}


# ---- names and shapes ----


def test_shapes_and_ranks(tmp_path):
    A, B = KEY + ".lora_A", KEY + ".lora_B"
    for tensors, words in (
        ({**pair(), A: zeros(5, 64)}, (B, "(64, 5)", "(64, 4)")),
        ({**pair(), A: zeros(4, 63)}, (A, "(rank, 64)", "(4, 63)")),
        ({**pair(), A: zeros(64, 4)}, (A, "(rank, 64)", "(64, 4)")),  # turned around
        ({**pair(), B: zeros(4, 64)}, (B, "(64, 4)", "(4, 64)")),
        ({A: zeros(64, 4), B: zeros(4, 64)}, (A, "(rank, 64)", "(64, 4)")),  # both, so that they fit each other
        (pair(rows=128, cols=128), (A, "(rank, 64)", "(4, 128)")),  # another model's
        (pair("blocks.0.ffn.value", 192, 64), ("blocks.0.ffn.value", "(rank, 192)", "(4, 64)")),
        (pair("blocks.0.ffn.key", 64, 192), ("blocks.0.ffn.key", "(rank, 64)", "(4, 192)")),
        ({**pair(), A: zeros(4, 64, 1)}, (A,)),
        ({**pair(), A: zeros(256)}, (A,)),
        (pair(rank=65), ("rank from 1 to 64", "65")),
        (pair(rank=0), ("rank", "0")),
        ({A: zeros(4, 64)}, (A, "A and B", "one of them")),
        ({B: zeros(64, 4)}, (B, "A and B", "one of them")),
        ({KEY + ".disha": zeros(4, 64), **pair()}, (KEY, "another kind")),
        ({A: zeros(4, 64), KEY + ".disha": zeros(4, 64)}, (KEY, "one of them")),
    ):
        refused(file_of(tmp_path, tensors), *words)
    for tensors, words in (
        ({KEY + ".disha": zeros(4, 64), KEY + ".miss_block": zeros(4, 64)}, (KEY, "one kind")),
        ({KEY + ".disha": zeros(4, 63)}, (KEY, "(rank, 64)", "(4, 63)")),
        ({KEY + ".disha": zeros(65, 64)}, (KEY, "65")),
        ({KEY + ".disha": zeros(64)}, (KEY, "(64)")),
        ({KEY + ".disha": zeros(13, 5, 5)}, (KEY, "side", "(13, 5, 5)")),
        ({KEY + ".disha": zeros(4, 8, 8)}, (KEY, "(8, 8, 8)", "(4, 8, 8)")),
        ({KEY + ".disha": zeros(8, 4, 8)}, (KEY, "(8, 8, 8)", "(8, 4, 8)")),
        ({KEY + ".disha": zeros(8, 0, 0)}, (KEY, "(8, 0, 0)")),
        ({"blocks.0.ffn.key.miss_block": zeros(8, 8, 8)}, ("(24, 8, 8)", "(8, 8, 8)")),
        ({"blocks.0.ffn.key.disha": zeros(24, 8, 8)}, ("(8, 8, 8)", "(24, 8, 8)")),
    ):
        refused(save(tmp_path / "a.pth", tensors), *words)


def test_weights_that_the_model_has_not(tmp_path):
    for module, words in (
        ("blocks.2.att.key", ("blocks.2.att.key.weight", "RWKV-7 model of 2 layers", "has not")),
        ("blocks.0.att.gate", ("blocks.0.att.gate.weight", "has not")),  # RWKV-6's
        ("blocks.0.ffn.receptance", ("blocks.0.ffn.receptance.weight",)),
        ("blocks.0.ln1", ("blocks.0.ln1.weight", "matrix")),
        ("blocks.0.att.k_proj", ("k_proj",)),
        ("", ()),
    ):
        refused(file_of(tmp_path, pair(module)), *words)
    for name in ("blocks.0.att.time_maa_x", "something", "blocks.2.ln1.weight", "lm_head.weight"):
        refused(file_of(tmp_path, {**pair(), name: zeros(64)}), name, "RWKV-7 model of 2 layers")
    full = {"blocks.0.ln1.weight": zeros(63), "head.weight": zeros(64, 40), "emb.weight": zeros(64)}
    for name, t in full.items():
        refused(file_of(tmp_path, {**pair(), name: t}), name)
    half = {"blocks.0.att.time_state": zeros(4, 16, 16)}
    refused(file_of(tmp_path, {**pair(), **half}), "blocks.1.att.time_state")
    old = {"blocks.0.att.time_state": zeros(9, 5, 5)}
    refused(file_of(tmp_path, {**pair(cols=35, rows=45), **old}), "RWKV-4", of=OLDER["4"])


def test_numbers(tmp_path, lora):
    for value in (np.nan, np.inf, -np.inf):
        for name in (KEY + ".lora_A", KEY + ".lora_B", "blocks.1.ln1.weight", "head.weight"):
            odd = {**lora.parts, "blocks.1.ln1.weight": zeros(64), "head.weight": zeros(40, 64)}
            odd[name] = odd[name].copy()
            odd[name].flat[7] = value
            refused(file_of(tmp_path, odd), name, "finite")
    refused(file_of(tmp_path, lora.parts, "f64"), "f64", ".lora_A")
    refused(file_of(tmp_path, {**pair(), KEY + ".lora_A": np.zeros((4, 64), np.int8)}), "i8")
    refused(file_of(tmp_path, {**pair(), "base_model.model." + KEY + ".lora_A": zeros(4, 64)}), KEY)


# ---- what the files do not say, or say ----


def test_alpha(tmp_path, lora):
    path = lora.pth(tmp_path / "a.pth")
    refused(path, "alpha", "Adapter(path, alpha=32)", "PiSSA", "init_pissa.pth")
    folder = lora.peft(tmp_path / "peft", {"lora_alpha": 8})
    refused(Adapter(folder, alpha=8), "no alpha", "adapter_config.json", "scale")
    miss = adapter_files.Adapter(model(**SMALL), "miss").pth(tmp_path / "miss.pth")
    refused(Adapter(miss, alpha=8), "no alpha", "only LoRA")


def test_configurations(tmp_path, lora):
    for config, words in (
        ({"peft_type": "IA3"}, ("peft_type", "IA3")),
        ({"peft_type": None}, ("peft_type",)),
        ({"peft_type": "MISS"}, ("MISS",)),
        ({"r": 5}, ("rank 5", "4")),
        ({"rank_pattern": {"att.key": 2}}, ("rank 2", "4", KEY)),
        ({"rank_pattern": {".*key": 4}}, ("rank_pattern", ".*key")),
        ({"alpha_pattern": {"key": "x"}}, ("alpha_pattern", "x")),
        ({"use_dora": True}, ("use_dora", "DoRA")),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"fan_in_fan_out": True}, ("fan_in_fan_out",)),
        ({"alora_invocation_tokens": [1]}, ("activated",)),
        ({"layer_replication": [[0, 1]]}, ("layer_replication",)),
        ({"use_qalora": True}, ("QALoRA",)),
        ({"init_lora_weights": "pissa"}, ("pissa", "path_initial_model_for_weight_conversion")),
        ({"init_lora_weights": "pissa_niter_16"}, ("pissa_niter_16", "convert")),
        ({"init_lora_weights": "olora"}, ("olora",)),
        ({"init_lora_weights": "corda"}, ("corda",)),
        ({"init_lora_weights": "loftq"}, ("loftq",)),
        ({"lora_alpha": "many"}, ("lora_alpha", "many")),
        ({"lora_alpha": None}, ("lora_alpha",)),
        ({"lora_alpha": 1e300}, ("strength", "1e+09")),
        ({"use_rslora": "false"}, ("use_rslora", "true or false")),
        ({"use_rslora": 0}, ("use_rslora", "true or false", "0")),
        ({"mini_r": 1.5}, ("mini_r", "integer", "1.5")),
        ({"mini_r": -1e300}, ("mini_r", "integer")),
        ({"r": [4]}, ("r:",)),
    ):
        refused(lora.peft(tmp_path / "peft", {"lora_alpha": 8, **config}), *words)
    miss = adapter_files.Adapter(model(**SMALL), "miss")
    for config, words in (
        ({"init_weights": "bat"}, ("three dimensions",)),
        ({"init_weights": "mini", "mini_r": 7}, ("mini_r",)),
        ({"init_weights": "mini", "mini_r": 16}, ("(rank, 16)",)),
        ({"init_weights": "mini", "mini_r": 0}, ("mini_r",)),
        ({"init_weights": "mini", "mini_r": -1e300}, ("mini_r",)),
        ({"init_weights": "other"}, ("init_weights", "other")),
        ({"peft_type": "LORA", "lora_alpha": 2}, ("LORA",)),
    ):
        refused(miss.peft(tmp_path / "miss", config), *words)
    bat = adapter_files.Adapter(model(**SMALL), "bat of peft", 8)
    refused(bat.peft(tmp_path / "bat", {"init_weights": True, "r": 8}), "two dimensions")


def test_folders(tmp_path, lora):
    folder = lora.peft(tmp_path / "peft", {"lora_alpha": 8})
    config = folder / "adapter_config.json"
    for text in ("", "{", "[]", "{}", '{"r": 1, "r": 2}', "\ufeff{}", "{" * 1000):
        config.write_text(text)
        refused(folder, "adapter_config.json")
    config.write_bytes(b" " * (1 << 20) + b"{}")
    refused(folder, "1048576")
    config.unlink()
    refused(folder, "adapter_config.json")
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "adapter_model.safetensors", "adapter_model.bin")
    with pytest.raises((rwkv.Error, OSError), match="absent"):
        rwkv.Engine("demo", adapters=tmp_path / "absent")


def test_other_kinds_of_adapters(tmp_path):
    for name, words in (
        (KEY + ".init_lora_A", ("PiSSA",)),
        (PEFT + KEY + ".lora_magnitude_vector.weight", ("DoRA",)),
        (PEFT + KEY + ".lora_magnitude_vector", ("DoRA",)),
        (KEY + ".hada_w1_a", ("LoHa",)),
        (KEY + ".lokr_w1", ("LoKr",)),
        (PEFT + KEY + ".base_layer.weight", ("save the adapter alone",)),
        (KEY + ".lora_C", ("unknown form of LoRA",)),
        (KEY + ".lora_A.default.weight", ("unknown form of LoRA",)),
    ):
        refused(file_of(tmp_path, {**pair(), name: zeros(4, 64)}), name.removeprefix(PEFT), *words)


def test_what_is_no_adapter(tmp_path, lora):
    m = model(**SMALL)
    refused(m.path(), "an adapter", "other names")
    tuned = {f"blocks.{i}.att.time_state": zeros(4, 16, 16) for i in (0, 1)}
    refused(save(tmp_path / "a.pth", tuned), "tuned state", "new_state(init=...)")
    engine(**SMALL).new_state().save(tmp_path / "a.state")
    refused(tmp_path / "a.state")
    rwkv.convert(m.path(), tmp_path / "a.gguf", "f32")
    refused(tmp_path / "a.gguf", "GGUF")
    adapter = Adapter(lora.pth(tmp_path / "lora.pth"), alpha=8)
    refused([adapter, adapter], "once", "twice")
    rwkv.quantize(m.path(), tmp_path / "packed.safetensors", "int8")
    refused(adapter, "quantised", "merge first", path=tmp_path / "packed.safetensors")
    other = adapter_files.Adapter(model(**OLDER["6"]), "lora").pth(tmp_path / "six.pth")
    refused(Adapter(other, alpha=8))
    refused(adapter, of=OLDER["6"])


def test_as_a_model_it_says_what_it_is(tmp_path, lora):
    full = {"blocks.0.att.ln_x.weight": zeros(64), "blocks.0.att.r_k": zeros(4, 16)}
    refusal(lora.pth(tmp_path / "a.pth", **full), "adapter", "adapters=")
    refusal(lora.peft(tmp_path / "peft") / "adapter_model.safetensors", "adapter", "adapters=")
    tuned = {f"blocks.{i}.att.time_state": zeros(4, 16, 16) for i in (0, 1)}
    refusal(save(tmp_path / "b.pth", tuned), "tuned state", "init=")


def test_arguments(tmp_path, lora):
    path = lora.pth(tmp_path / "a.pth")
    for wrong in (5, 1.5, {path}, [5], [None], object()):
        with pytest.raises(TypeError, match="adapters"):
            rwkv.Engine("demo", adapters=wrong)
    for options in ({"alpha": "8"}, {"scale": None}, {"alpha": True}):
        with pytest.raises(TypeError, match="alpha|scale"):
            Adapter(path, **options)
    for options in ({"alpha": np.nan}, {"scale": np.inf}, {"alpha": 1e9}):
        with pytest.raises(rwkv.Error, match="alpha|scale"):
            Adapter(path, **options)
    with pytest.raises(TypeError, match="path"):
        Adapter(5)


# ---- damage ----


def survives(folder_or_path, tokens=(1, 2)):
    """The adapter is refused, or makes a model that can be used. Returns whether it loaded."""
    try:
        e = rwkv.Engine(model(**SMALL).path(), "cpu fp32", threads=1, adapters=folder_or_path)
    except rwkv.Error:
        return False
    try:
        e.forward(tokens, e.new_state())
    except rwkv.NonFiniteError:
        pass
    return True


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path, lora, suffix):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = save(tmp_path / f"good{suffix}", pair_of(lora))
    blob, rng = good.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "damaged"

    def opens(data):
        path.write_bytes(data)
        return survives(Adapter(path, alpha=ALPHA))

    assert opens(blob)
    assert not any(opens(blob[:cut]) for cut in rng.integers(0, len(blob) - 1, 150))
    ends = [*rng.integers(0, 400, 250), *(len(blob) - rng.integers(1, 400, 250))]
    for at in ends:
        damaged = bytearray(blob)
        value = [b"\xff" * 8, b"\0" * 8, rng.bytes(4), b"9" * 6, bytes([blob[at] ^ 1])][rng.integers(5)]
        damaged[at : at + len(value)] = value
        opens(bytes(damaged))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000


def pair_of(lora):
    return {name: t for name, t in lora.parts.items() if name.startswith(KEY)}


def test_damaged_configurations(tmp_path, lora):
    config = {"lora_alpha": 8, "rank_pattern": {"key": 4}, "alpha_pattern": {"att.key": 8}}
    folder = lora.peft(tmp_path / "peft", config)
    path = folder / "adapter_config.json"
    blob, rng = path.read_bytes(), np.random.default_rng(0)
    assert survives(folder)
    for at in range(len(blob)):
        for value in (b"\xff", b"0", b'"', b"}", b"9" * 400, rng.bytes(1)):
            damaged = bytearray(blob)
            damaged[at : at + 1] = value
            path.write_bytes(damaged)
            survives(folder)
        path.write_bytes(blob[:at])
        assert not survives(folder)


def test_a_scale_that_is_far_too_large_is_seen_in_the_numbers(tmp_path, lora):
    e = rwkv.Engine(
        model(**SMALL).path(),
        "cpu fp32",
        threads=1,
        adapters=Adapter(file_of(tmp_path, {n: t * 1e30 for n, t in lora.parts.items()}).path, 8),
    )
    with pytest.raises(rwkv.NonFiniteError):
        e.forward([1, 2], e.new_state())
