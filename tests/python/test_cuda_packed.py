"""Quantised files on a GPU: the numbers and scales that it makes of the original itself, whatever the stages."""

import numpy as np
import pytest
from helpers import DEEP, OLDER, SMALL, TINY, bits, model, save, snapshot
from test_quantize import parts, quantised, rewrite

import rwkv_engine as rwkv

SHAPES = {**OLDER, "7": SMALL, "7a": DEEP, "7 with heads of 64": dict(L=2, C=128, N=64, F=192, V=100, ranks=(5, 6, 7, 9))}
PRECISIONS = ("int8", "int4", "fp16", "bf16", "fp32")


@pytest.fixture(params=["0", "1"], ids=["read", "mapped"])
def use(request, monkeypatch):
    """What a stage on the CPU does with the file."""
    monkeypatch.setenv("RWKV_MAP", request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_has_the_bits_of_the_original(device, tmp_path, shape, precision):
    tokens = model(**shape).tokens(5)
    for dtype in ("f32", "bf16"):
        source, target = quantised(tmp_path, precision, dtype, **shape)
        original, engine = (rwkv.Engine(path, f"cuda {precision}") for path in (source, target))
        assert engine.fingerprint == original.fingerprint and engine.config == original.config
        assert snapshot(engine, tokens, [4, 1]) == snapshot(original, tokens, [4, 1])
        target.unlink()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["6", "7", "7a"])
def test_activations_may_have_another_precision(device, tmp_path, name, precision):
    """fp16i8: the low-rank pairs of the file, which are as they were, become halves."""
    shape = SHAPES[name]
    tokens = model(**shape).tokens(4)
    source, target = quantised(tmp_path, precision, "f32", **shape)
    for activations in ("fp16", "bf16"):
        strategy = f"cuda {activations}{precision.replace('int', 'i')}"
        assert snapshot(rwkv.Engine(target, strategy), tokens) == snapshot(rwkv.Engine(source, strategy), tokens)


@pytest.mark.parametrize(
    "strategy",
    [
        "cuda int8 *1 -> cpu int8",
        "cpu int8 *1 -> cuda int8",
        "cuda:0 int8 *1 -> cuda:1 int8",
        "cuda fp16i8 *1 -> cpu int8 *1 -> cuda bf16i8 state16",
        "cuda int8 *0+",
        "cuda int8 *2+",
        "cpu int8 *1 -> cuda int8 *1+",
    ],
)
@pytest.mark.parametrize("name", ["6", "7", "7a"])
def test_layers_on_several_devices(device, use, tmp_path, name, strategy):
    if "cuda:1" in strategy:
        device("devices:2")
    shape = {**SHAPES[name], "L": 4}
    tokens = model(**shape).tokens(4)
    source, target = quantised(tmp_path, **shape)
    original, engine = (rwkv.Engine(path, strategy, threads=2) for path in (source, target))
    assert snapshot(engine, tokens, [3, 1]) == snapshot(original, tokens, [3, 1])


def test_auto_takes_the_device(device, tmp_path):
    source, target = quantised(tmp_path, **TINY)
    engine, same = rwkv.Engine(target), rwkv.Engine(source, "cuda int8")
    assert engine.description == same.description and engine.description.startswith("cuda:0 ")
    assert snapshot(engine, [1, 2, 3]) == snapshot(same, [1, 2, 3])


def test_other_precisions_are_refused_by_name(device, tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    for strategy, word in {
        "cuda fp16": "fp16",
        "cuda fp16i4": "int4",
        "cuda int8 *1 -> cuda fp32": "fp32",
        "cuda int8 *1 -> cpu bf16": "bf16",
    }.items():
        with pytest.raises(rwkv.StrategyError, match=f"quantised to, int8, found {word}"):
            rwkv.Engine(target, strategy)
    _, target = quantised(tmp_path, "fp16", **SMALL)
    with pytest.raises(rwkv.StrategyError, match="quantised to, fp16, found int8"):
        rwkv.Engine(target, "cuda fp16i8")


def test_numbers_that_fp16_cannot_hold(device, tmp_path):
    m = model(**SMALL)
    weights = {name: t.copy() for name, t in m.weights.items()}
    weights["blocks.1.att.w1"][3, 2] = 70_000
    rwkv.quantize(save(tmp_path / "a.pth", weights), tmp_path / "a.safetensors", "int8")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        with pytest.raises(rwkv.StrategyError, match=rf"{path.name}: blocks.1.att.w1: expected numbers that fp16 can hold"):
            rwkv.Engine(path, "cuda fp16i8")
        rwkv.Engine(path, "cuda bf16i8")


# ---- memory, progress, damage ----


def test_it_takes_the_memory_of_the_original(cpp_build, monkeypatch, tmp_path):
    """On the device: matrices alone, nothing beside them but what rows pass through."""
    noted = tmp_path / "allocations"
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", f"stream:late,allocations:{noted}")
    shape = dict(L=2, C=256, N=64, F=1024, V=3000, ranks=(5, 6, 7, 9))
    source, target = quantised(tmp_path, dtype="bf16", **shape)

    def taken(path):
        noted.unlink(missing_ok=True)
        rwkv.Engine(path, "cuda int8", threads=1)
        return sum(int(line) for line in noted.read_text().split())

    through = 2 * 3000 * 256 * 4  # rows of float32 on their way, up to 4 MB on the host and on the device
    assert taken(target) <= taken(source) + through


def test_out_of_memory_leaves_nothing_behind(device, tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    device("memory:100000")
    with pytest.raises(rwkv.DeviceError, match="expected .* MB of memory, found"):
        rwkv.Engine(target, "cuda int8")
    device("memory:300000000")
    engines = [rwkv.Engine(target, "cuda int8") for _ in range(2)]
    assert snapshot(engines[0], [1, 2]) == snapshot(engines[1], [1, 2])


def test_progress_reaches_its_end_and_may_end_the_work(device, tmp_path):
    rwkv.quantize("demo", tmp_path / "a.safetensors", "int8")
    seen = []
    rwkv.Engine(tmp_path / "a.safetensors", "cuda int8", progress=lambda *at: seen.append(at))
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rwkv.Engine(tmp_path / "a.safetensors", "cuda int8", progress=stop)
    engine = rwkv.Engine(tmp_path / "a.safetensors", "cuda int8")
    assert np.isfinite(engine.forward([1], engine.new_state())).all()


def test_damage_in_the_numbers_crashes_nothing(device, tmp_path):
    """Scales that are not finite are found, and numbers that no quantiser makes are numbers."""
    _, target = quantised(tmp_path, **SMALL)
    header, data = parts(target)
    begin, end = header["head.weight"]["data_offsets"]
    for seed in range(4):
        random = np.random.default_rng(seed)
        noise = random.integers(0, 256, end - begin, np.uint8)
        if seed == 0:  # with scales of one
            noise.reshape(-1, 32 * 66)[:, :64].view(np.uint16)[:] = 0x3F80
        damaged = data[:begin] + noise.tobytes() + data[end:]
        engine = rwkv.Engine(rewrite(target, header, damaged), "cuda int8")
        try:
            assert np.isfinite(engine.forward([1, 2], engine.new_state())).all()
        except rwkv.NonFiniteError:
            assert seed > 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_matrices_of_a_few_bytes_too_many_are_refused(device, tmp_path, precision):
    _, target = quantised(tmp_path, precision, **SMALL)
    header, data = parts(target)
    _, end = header["blocks.1.ffn.key.weight"]["data_offsets"]
    for name, values in header.items():
        if name != "__metadata__":
            values["data_offsets"] = [at + 64 * (at >= end and (at, name) != (end, "blocks.1.ffn.key.weight")) for at in values["data_offsets"]]
    header["blocks.1.ffn.key.weight"]["data_offsets"][1] = end + 64
    header["blocks.1.ffn.key.weight"]["shape"][0] += 64
    with pytest.raises(rwkv.ModelFormatError, match=r"key.weight: expected \d+ bytes for \(192, 64\)"):
        rwkv.Engine(rewrite(target, header, data[:end] + bytes(64) + data[end:]), f"cuda {precision}")


def test_states_go_from_one_to_the_other(device, tmp_path):
    source, target = quantised(tmp_path, **SMALL)
    cpu, engine = rwkv.Engine(source, "cpu fp32"), rwkv.Engine(target, "cuda int8")
    state = cpu.new_state()
    cpu.forward([1, 2, 3], state)
    there = engine.state_from_bytes(state.to_bytes())
    assert there.tokens_seen == 3 and bits(there.last_logits) == bits(state.last_logits)
    engine.forward([4], there)
    assert cpu.state_from_bytes(there.to_bytes()).tokens_seen == 4
