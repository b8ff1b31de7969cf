"""What torch and peft train, against the engine that opens it: tuned states, LoRA by hand, and every kind by peft."""

import importlib.util
import json

import numpy as np
import pytest
from adapter_files import targets
from helpers import engine, model, relative, rwkv

from rwkv_engine import Adapter

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed"),
]
needs_peft = pytest.mark.skipif(
    not importlib.util.find_spec("peft"), reason="peft is not installed"
)

SHAPE = dict(L=3, C=64, N=16, F=192, V=40, ranks=(5, 6, 7, 9))
STEPS = 12


@pytest.fixture
def tuning():
    """(torch, its reference module, the model, a torch module of it, tokens)"""
    import torch
    import torch_rwkv7

    torch.manual_seed(0)
    m = model(**SHAPE)
    tokens = torch.tensor(m.tokens(24))
    return torch, torch_rwkv7, m, torch_rwkv7.Model(m.weights), tokens


def expected(net, tokens):
    return net(tokens).detach().numpy()


def logits(e, tokens, state=None):
    return e.forward(tokens.numpy(), state or e.new_state(), output="all")


def test_the_module_is_the_model(tuning):
    torch, _, m, net, tokens = tuning
    assert relative(logits(engine(**SHAPE), tokens), expected(net, tokens)) <= 1e-5
    assert set(net.state_dict()) == set(m.weights)


def test_a_tuned_state(tuning, tmp_path):
    torch, reference, m, net, tokens = tuning
    plain = expected(net, tokens)
    for block in net.blocks:
        block.att.time_state = torch.nn.Parameter(torch.zeros(4, 16, 16))
    states = [block.att.time_state for block in net.blocks]
    first = reference.train(net, states, tokens, 1, 0.1)
    assert reference.train(net, states, tokens, STEPS, 0.1) < first
    trained = {n: t for n, t in net.state_dict().items() if n.endswith("time_state")}
    torch.save(trained, tmp_path / "state.pth")
    torch.save(net.state_dict(), tmp_path / "whole.pth")
    e, whole = engine(**SHAPE), rwkv.Engine(tmp_path / "whole.pth", "cpu fp32", threads=2)
    want = expected(net, tokens)
    for init in (tmp_path / "state.pth", {n: t.numpy() for n, t in trained.items()}):
        assert relative(logits(e, tokens, e.new_state(init=init)), want) <= 1e-5
    assert relative(logits(whole, tokens), want) <= 1e-5
    assert relative(plain, want) > 1e-2
    turned = {n: t.numpy().swapaxes(1, 2) for n, t in trained.items()}
    assert relative(logits(e, tokens, e.new_state(init=turned)), want) > 1e-3


def test_lora_by_hand(tuning, tmp_path):
    torch, reference, m, net, tokens = tuning
    alpha, rank = 8, 4
    parts = {}
    for name in targets(m):
        layer = net.get_submodule(name)
        A = torch.nn.Parameter(0.1 * torch.randn(rank, layer.in_features))
        B = torch.nn.Parameter(torch.zeros(layer.out_features, rank))
        parts |= {name + ".lora_A": A, name + ".lora_B": B}
        layer.register_forward_hook(
            lambda _, x, y, A=A, B=B: y + alpha / rank * (x[0] @ A.T) @ B.T
        )
    plain = expected(net, tokens)
    reference.train(net, list(parts.values()), tokens, STEPS, 0.02)
    torch.save({name: t.detach() for name, t in parts.items()}, tmp_path / "lora.pth")
    e = rwkv.Engine(
        m.path(), "cpu fp32", threads=2, adapters=Adapter(tmp_path / "lora.pth", alpha=alpha)
    )
    want = expected(net, tokens)
    assert relative(logits(e, tokens), want) <= 1e-5
    assert relative(plain, want) > 1e-2
    beside = engine(**SHAPE)
    handle = beside.load_adapter(Adapter(tmp_path / "lora.pth", alpha=alpha))
    assert relative(logits(beside, tokens, beside.new_state(adapter=handle)), want) <= 1e-5
    assert relative(logits(beside, tokens), plain) <= 1e-5


def configurations(peft):
    """name -> the configuration of each kind of adapter that is merged."""
    modules = ["receptance", "key", "value", "output"]
    lora = dict(r=4, lora_alpha=8, target_modules=modules)
    miss = dict(r=8, target_modules=modules)
    return {
        "lora": peft.LoraConfig(**lora),
        "rslora": peft.LoraConfig(**lora, use_rslora=True),
        "patterns": peft.LoraConfig(
            **lora, rank_pattern={"ffn.key": 6}, alpha_pattern={"att.key": 3, "^blocks.0.att.value": 5}
        ),
        "with the head, the embedding and a norm": peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=[*modules, "head", "emb"], modules_to_save=["ln_out"]
        ),
        "orthogonal": peft.LoraConfig(**lora, init_lora_weights="orthogonal"),
        "miss": peft.MissConfig(**miss),
        "miss, odd rank": peft.MissConfig(r=6, target_modules=modules),
        "bat": peft.MissConfig(**miss, init_weights="bat"),
        "mini": peft.MissConfig(**miss, init_weights="mini", mini_r=16),
    }


@needs_peft
@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "rslora",
        "patterns",
        "with the head, the embedding and a norm",
        "orthogonal",
        "miss",
        "miss, odd rank",
        "bat",
        "mini",
    ],
)
def test_what_peft_trains_and_merges(kind, tuning, tmp_path):
    import peft

    torch, reference, m, net, tokens = tuning
    plain = expected(net, tokens)
    tuned = peft.get_peft_model(net, configurations(peft)[kind])
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    reference.train(tuned, parameters, tokens, STEPS, 0.02)
    tuned.save_pretrained(tmp_path / "adapter")
    e = rwkv.Engine(m.path(), "cpu fp32", threads=2, adapters=tmp_path / "adapter")
    beside = engine(**SHAPE)
    if kind in ("bat", "with the head, the embedding and a norm"):  # no products of a low rank alone
        with pytest.raises(rwkv.ModelFormatError, match="merge"):
            beside.load_adapter(tmp_path / "adapter")
        unmerged = None
    else:
        state = beside.new_state(adapter=beside.load_adapter(tmp_path / "adapter"))
        unmerged = expected(tuned, tokens)
        assert relative(logits(beside, tokens, state), unmerged) <= 1e-5
    want = expected(tuned.merge_and_unload(), tokens)
    assert relative(logits(e, tokens), want) <= 1e-5
    assert unmerged is None or relative(unmerged, want) <= 1e-5
    assert relative(plain, want) > 1e-2


@needs_peft
@pytest.mark.filterwarnings("ignore:PiSSA changes")
def test_pissa_converted_and_not(tuning, tmp_path):
    import peft

    torch, reference, m, net, tokens = tuning
    modules = ["receptance", "key", "value", "output"]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=modules, init_lora_weights="pissa")
    tuned = peft.get_peft_model(net, config)
    tuned.peft_config["default"].init_lora_weights = True  # peft wants its beginning called so
    tuned.save_pretrained(tmp_path / "init")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    reference.train(tuned, parameters, tokens, STEPS, 0.02)
    tuned.save_pretrained(tmp_path / "raw")
    tuned.save_pretrained(
        tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "init")
    )
    said = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (said["r"], said["init_lora_weights"]) == (8, True)
    e = rwkv.Engine(m.path(), "cpu fp32", threads=2, adapters=tmp_path / "lora")
    assert relative(logits(e, tokens), expected(tuned.merge_and_unload(), tokens)) <= 1e-4
    with pytest.raises(rwkv.ModelFormatError, match="pissa"):
        rwkv.Engine(m.path(), adapters=tmp_path / "raw")


@needs_peft
@pytest.mark.parametrize("kind", ["DoRA", "IA3", "LoHa"])
def test_other_kinds_of_peft_are_named(kind, tuning, tmp_path):
    import peft

    _, _, m, net, _ = tuning
    config = {
        "DoRA": lambda: peft.LoraConfig(r=4, target_modules=["key"], use_dora=True),
        "IA3": lambda: peft.IA3Config(target_modules=["att.key"], feedforward_modules=[]),
        "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=["key"]),
    }[kind]()
    peft.get_peft_model(net, config).save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        with pytest.raises(rwkv.ModelFormatError, match=f"(?i){kind}"):
            rwkv.Engine(m.path(), adapters=path)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    path = Adapter(tmp_path / "adapter" / "adapter_model.safetensors", alpha=8)
    with pytest.raises(rwkv.ModelFormatError, match="expected"):
        rwkv.Engine(m.path(), adapters=path)


@needs_peft
def test_numbers_of_rwkv_pefts_own_forms(tuning, tmp_path):
    """Its Bat takes the block of the square's column, peft's that of its row: one file, two meanings, told by name."""
    torch, _, m, _, _ = tuning
    rng = np.random.default_rng(0)
    D = rng.normal(0, 0.1, (8, 8, 8)).astype(np.float32)
    torch.save({"blocks.0.att.key.disha": torch.tensor(D)}, tmp_path / "disha.pth")
    torch.save({"blocks.0.att.key.miss_block": torch.tensor(D)}, tmp_path / "miss.pth")
    prints = {
        rwkv.Engine(m.path(), "cpu fp32", threads=1, adapters=tmp_path / name).fingerprint
        for name in ("disha.pth", "miss.pth")
    }
    assert len(prints) == 2
