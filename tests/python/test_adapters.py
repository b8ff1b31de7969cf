"""Adapters merged when a model is opened: what comes of every kind and file, and that it is the same everywhere."""

import adapter_files
import container_files
import numpy as np
import pytest
from adapter_files import PEFT, targets
from helpers import DEEP, OLDER, SMALL, bits, engine, model, relative, rwkv, save

from rwkv_engine import Adapter
from rwkv_engine.inspection import inspect

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
CASES = {"7": SMALL, "7a": DEEP, **OLDER}
ALPHA = 6.0


def opened(adapters, of=SMALL, strategy="cpu fp32", path=None, threads=2):
    path = path or model(**of).path()
    return rwkv.Engine(path, strategy, threads=threads, adapters=adapters)


def logits(e, tokens=TOKENS):
    return e.forward([t % e.config.n_vocab for t in tokens], e.new_state(), output="all")


def expect_merged(e, m, weights):
    """The engine computes what the definition does with these weights, and not what it does with the model's."""
    tokens = [t % m.V for t in TOKENS]
    exact = {name: t.astype(np.float64) for name, t in weights.items()}
    expected = m.definition.forward(exact, tokens, m.definition.State(exact))
    assert relative(logits(e), expected) <= 1e-5
    assert relative(m.reference(tokens)[0], expected) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_lora_of_every_version(case, tmp_path):
    m = model(**CASES[case])
    lora = adapter_files.Adapter(m, "lora")
    merged = lora.merge(m.weights, ALPHA)
    of_pth = opened(Adapter(lora.pth(tmp_path / "a.pth"), alpha=ALPHA), CASES[case])
    of_peft = opened(lora.peft(tmp_path / "peft", {"lora_alpha": ALPHA}), CASES[case])
    expect_merged(of_pth, m, merged)
    assert bits(logits(of_pth)) == bits(logits(of_peft))
    assert of_pth.fingerprint == of_peft.fingerprint != engine(**CASES[case]).fingerprint


@pytest.mark.parametrize("case", ["7", "4", "6"])
@pytest.mark.parametrize("rank", [4, 6, 7])  # not all of them divide the inputs
def test_miss(case, rank, tmp_path):
    m = model(**CASES[case])
    miss = adapter_files.Adapter(m, "miss", rank)
    e = opened(miss.pth(tmp_path / "a.pth"), CASES[case])
    expect_merged(e, m, miss.merge(m.weights))
    named = {name.replace("disha", "bone"): t for name, t in miss.parts.items()}
    for other in (miss.peft(tmp_path / "peft"), save(tmp_path / "bone.pth", named)):
        assert opened(other, CASES[case]).fingerprint == e.fingerprint


def test_mini(tmp_path):
    m = model(**SMALL)
    mini = adapter_files.Adapter(m, "miss", 4, width=16)
    folder = mini.peft(tmp_path / "peft", {"init_weights": "mini", "mini_r": 16})
    expect_merged(opened(folder), m, mini.merge(m.weights))


@pytest.mark.parametrize("kind", ["bat", "bat of peft"])
def test_bat(kind, tmp_path):
    m = model(**SMALL)
    bat = adapter_files.Adapter(m, kind, 8)
    if kind == "bat":
        e = opened(bat.pth(tmp_path / "a.pth"))
    else:
        e = opened(bat.peft(tmp_path / "peft", {"init_weights": "bat", "r": 8}))
    expect_merged(e, m, bat.merge(m.weights))


def test_what_configurations_say(tmp_path):
    m = model(**SMALL)
    lora = adapter_files.Adapter(m, "lora")
    folder = lora.peft(tmp_path / "root", {"lora_alpha": ALPHA, "use_rslora": True})
    expect_merged(opened(folder), m, lora.merge(m.weights, ALPHA * 2))
    assert opened(folder / "adapter_model.safetensors").fingerprint == opened(folder).fingerprint
    binary = lora.peft(tmp_path / "b", {"lora_alpha": ALPHA, "use_rslora": True}, suffix=".bin")
    assert opened(binary).fingerprint == opened(folder).fingerprint

    # Modules with a rank and an alpha of their own, by the ends of their names.
    keys = [name for name in targets(m) if name.endswith("att.key")]
    others = [name for name in targets(m) if name not in keys]
    first = adapter_files.Adapter(m, "lora", 2, modules=keys)
    second = adapter_files.Adapter(m, "lora", 4, modules=others)
    config = {
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"att.key": 2},
        "alpha_pattern": {"^blocks.0.att.key": 8, "key": 5},
    }
    first.parts |= second.parts
    expected = second.merge(m.weights, 3)
    for i, alpha in ((0, 8), (1, 5)):
        name = f"blocks.{i}.att.key.weight"
        expected[name] = first.merge(m.weights, alpha)[name]
        name = f"blocks.{i}.ffn.key.weight"
        expected[name] = second.merge(m.weights, 5)[name]
    expect_merged(opened(first.peft(tmp_path / "patterns", config)), m, expected)


def test_head_and_embedding(tmp_path):
    m = model(**SMALL)
    head = adapter_files.Adapter(m, "lora", modules=["head"])
    rng = np.random.default_rng(1)
    A, B = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((4, m.V), (64, 4)))
    table = {PEFT + "emb.lora_embedding_A": A, PEFT + "emb.lora_embedding_B": B}
    folder = head.peft(tmp_path / "peft", {"lora_alpha": ALPHA}, **table)
    expected = head.merge(m.weights, ALPHA)
    expected["emb.weight"] = m.weights["emb.weight"] + ALPHA / 4 * (B.astype(np.float64) @ A).T
    expect_merged(opened(folder), m, expected)


def test_weights_trained_in_full_replace_the_models(tmp_path):
    m = model(**SMALL)
    lora = adapter_files.Adapter(m, "lora")
    rng = np.random.default_rng(1)
    full = {
        name: (m.weights[name] + rng.normal(0, 0.2, m.weights[name].shape)).astype(np.float32)
        for name in ("blocks.1.ln1.weight", "blocks.0.att.x_k", "head.weight", "blocks.0.att.key.weight")
    }
    e = opened(Adapter(lora.pth(tmp_path / "a.pth", **full), alpha=ALPHA))
    expect_merged(e, m, lora.merge({**m.weights, **full}, ALPHA))
    named = {PEFT + name: t for name, t in full.items()}
    folder = lora.peft(tmp_path / "peft", {"lora_alpha": ALPHA}, **named)
    assert opened(folder).fingerprint == e.fingerprint


def test_a_tuned_state_beside_an_adapter(tmp_path):
    m = model(**SMALL)
    lora = adapter_files.Adapter(m, "lora")
    tuned = {
        f"blocks.{i}.att.time_state": np.full((4, 16, 16), 0.1 * i + 0.1, np.float32) for i in (0, 1)
    }
    both = opened(Adapter(lora.pth(tmp_path / "a.pth", **tuned), alpha=ALPHA))
    plain = opened(Adapter(lora.pth(tmp_path / "b.pth"), alpha=ALPHA))
    state = plain.new_state(init=tuned)
    assert bits(logits(both)) == bits(plain.forward(TOKENS, state, output="all"))
    assert both.fingerprint != plain.fingerprint


def test_pissa_of_rwkv_peft_once_converted(tmp_path):
    """As the message for a file without alpha says it: W - B0 A0 + B A."""
    m = model(**SMALL)
    trained, init = (adapter_files.Adapter(m, "lora", seed=seed) for seed in (1, 2))
    parts, expected = {}, dict(m.weights)
    for name in targets(m):
        A, B, A0, B0 = (a.parts[f"{name}.lora_{q}"] for a in (trained, init) for q in "AB")
        parts |= {name + ".lora_A": np.vstack([A, A0]), name + ".lora_B": np.hstack([B, -B0])}
        W = m.weights[name + ".weight"].astype(np.float64)
        expected[name + ".weight"] = W - B0.astype(np.float64) @ A0 + B.astype(np.float64) @ A
    expect_merged(opened(Adapter(save(tmp_path / "a.pth", parts), alpha=2 * 4)), m, expected)


def test_several_in_order_and_scaled(tmp_path):
    m = model(**SMALL)
    lora = adapter_files.Adapter(m, "lora", seed=1)
    bat = adapter_files.Adapter(m, "bat", 8, seed=2)
    first = Adapter(lora.pth(tmp_path / "a.pth"), alpha=ALPHA, scale=0.5)
    second = Adapter(bat.pth(tmp_path / "b.pth"), scale=2.0)
    merged = bat.merge(lora.merge(m.weights, ALPHA, 0.5), scale=2.0)
    expect_merged(opened([first, second]), m, merged)
    prints = {opened(a).fingerprint for a in ([first, second], [second, first], [first], second)}
    assert len(prints) == 4
    assert opened(Adapter(first.path, alpha=ALPHA / 2)).fingerprint in prints
    assert opened([]).fingerprint == opened(None).fingerprint == engine(**SMALL).fingerprint
    assert opened(Adapter(first.path, alpha=ALPHA, scale=0)).fingerprint == engine(**SMALL).fingerprint


# ---- the same everywhere ----


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """(of SMALL in bf16, the adapter's file)"""
    m = model(**SMALL)
    path = adapter_files.Adapter(m, "lora").pth(tmp_path_factory.mktemp("lora") / "a.pth", "bf16")
    return m, Adapter(path, alpha=ALPHA)


def test_a_file_of_the_merged_weights_is_the_same_model(lora, tmp_path):
    m, adapter = lora
    path = m.path("bf16")
    rwkv.convert(path, tmp_path / "merged.safetensors", adapters=adapter)
    for strategy in ("cpu fp32", "cpu bf16", "cpu int8", "cpu int4", "cpu fp32 *1 -> cpu int8"):
        merged = rwkv.Engine(tmp_path / "merged.safetensors", strategy, threads=2)
        e = opened(adapter, strategy=strategy, path=path)
        if "int" not in strategy:  # what is small beside int8 is as wide as the file
            assert bits(logits(e)) == bits(logits(merged))
        assert relative(logits(e), logits(merged)) < 0.05
        assert e.fingerprint == merged.fingerprint
    rwkv.quantize(path, tmp_path / "packed.safetensors", "int8", adapters=adapter)
    packed = rwkv.Engine(tmp_path / "packed.safetensors", threads=2)
    e = opened(adapter, strategy="cpu int8", path=path)
    assert packed.fingerprint == e.fingerprint
    assert bits(logits(packed)) == bits(logits(e))
    rwkv.convert(path, tmp_path / "merged.gguf", "f32", adapters=adapter)
    assert rwkv.Engine(tmp_path / "merged.gguf", "cpu fp32").fingerprint == e.fingerprint
    # What has been merged can be merged into again.
    again = opened(adapter, path=tmp_path / "merged.safetensors")
    twice = [Adapter(adapter.path, ALPHA), Adapter(adapter.path.with_name("b.pth"), ALPHA)]
    twice[1].path.write_bytes(adapter.path.read_bytes())
    assert again.fingerprint == opened(twice, path=path).fingerprint


def test_auto_keeps_the_precision_of_the_models_file(lora):
    m, adapter = lora
    e, bf16 = (opened(adapter, strategy=s, path=m.path("bf16")) for s in ("auto", "cpu bf16"))
    assert bits(logits(e)) == bits(logits(bf16)) != bits(logits(opened(adapter)))


def test_every_container_of_the_model(lora, tmp_path):
    m, adapter = lora
    e = opened(adapter)
    found = {
        "safetensors": m.path(suffix=".safetensors"),
        "st": save(tmp_path / "a.st.safetensors", container_files.to_st(m.weights)),
        "fla": container_files.write_folder(tmp_path / "fla", container_files.to_fla7(m.weights)),
        "shards": container_files.write_folder(tmp_path / "shards", m.weights, shards=3),
    }
    rwkv.convert(m.path(), tmp_path / "a.gguf", "f32")
    found["gguf"] = tmp_path / "a.gguf"
    for path in found.values():
        other = opened(adapter, path=path)
        assert other.fingerprint == e.fingerprint
        assert bits(logits(other)) == bits(logits(e))
    rwkv.convert(m.path(), tmp_path / "q.gguf", "q8_0")
    assert relative(logits(opened(adapter, path=tmp_path / "q.gguf")), logits(e)) < 0.05


def test_threads_change_nothing(lora):
    m, adapter = lora
    first = opened(adapter, threads=1)
    for threads in (2, 5):
        e = opened(adapter, threads=threads)
        assert e.fingerprint == first.fingerprint
        assert bits(logits(e)) == bits(logits(first))


def test_states_of_the_plain_model_are_refused(lora):
    m, adapter = lora
    plain, e = engine(**SMALL), opened(adapter)
    state = plain.new_state()
    plain.forward(TOKENS, state)
    with pytest.raises(rwkv.StateError, match="fingerprint"):
        e.state_from_bytes(state.to_bytes())
    assert e.state_from_bytes(state.to_bytes(), check_weights=False).tokens_seen == len(TOKENS)


def test_inspect_shows_the_merged_model(lora):
    m, adapter = lora
    found = inspect(m.path("bf16"), tensors=True, adapters=adapter)
    kinds = {t["name"]: t["dtype"] for t in found["tensors"]}
    assert kinds["blocks.0.att.key.weight"] == "f32" and kinds["blocks.0.att.w1"] == "bf16"
    assert found["parameters"] == inspect(m.path())["parameters"]
