"""What the CUDA backend allocates, as the simulator has noted it: nothing in a step, nothing that is not used."""

import numpy as np
import pytest
from helpers import DEEP, OLDER, SMALL, engine, model

import rwkv_engine as rwkv

SHAPES = {"4": OLDER["4"], "6": OLDER["6"], "7": SMALL, "7a": DEEP}
HEADS_OF_64 = dict(L=2, C=128, N=64, F=192, V=100, ranks=(5, 6, 7, 9))


@pytest.fixture
def allocations(cpp_build, monkeypatch, tmp_path):
    """A function that returns the sizes of all allocations since it was last called."""
    path = tmp_path / "allocations"
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", f"stream:late,devices:2,allocations:{path}")

    def taken():
        sizes = [int(line) for line in path.read_text().split()] if path.exists() else []
        path.unlink(missing_ok=True)
        return sizes

    return taken


@pytest.mark.parametrize(
    "strategy",
    [
        "cuda fp16",
        "cuda fp32",
        "cuda fp16 *1 -> cpu fp32",
        "cpu fp32 *1 -> cuda fp16",
        "cuda:0 fp16 *1 -> cuda:1 bf16 state16",
        "cuda fp16 *0+",
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_a_step_allocates_nothing(allocations, strategy, name):
    """However wide it is and whatever is read from it; states, of which there were as many before, have their room."""
    shape = SHAPES[name]
    m, e = model(**shape), engine(strategy, **shape)
    states = [e.new_state() for _ in range(4)]
    e.forward_batch([[1]] * 4, states)
    assert sum(allocations()) > 0
    e.forward(m.tokens(70), states[0], output="all")
    for output in ("none", "hidden", "last"):
        e.forward_batch([m.tokens(1 + 4 * i) for i in range(4)], states, output=output)
    assert allocations() == []


@pytest.mark.parametrize("strategy", ["cuda fp16", "cuda fp16 *1 -> cpu fp32", "cpu fp32 *1 -> cuda fp16"])
def test_sampling_allocates_nothing(allocations, strategy, tmp_path):
    """Drawn from rows of the device and of the host, with the longest lists there may be, more rows than at a time."""
    m = model(**SMALL)
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("".join(f"{i} {chr(64 + i)!r} 1\n" for i in range(1, m.V)))
    e = rwkv.Engine(str(m.path()), strategy, tokenizer=vocabulary)
    states = [e.new_state() for _ in range(150)]
    e.forward_batch([[1]] * 150, states)
    del states
    assert sum(allocations()) > 0
    everything = {token: 0.5 for token in range(m.V)}
    for params in (
        rwkv.SamplingParams(temperature=0, max_tokens=2),
        rwkv.SamplingParams(seed=1, top_k=5, presence_penalty=0.2, max_tokens=3, logit_bias=everything, top_logprobs=20),
    ):
        e.generate_batch([m.tokens(3, seed=i) for i in range(70)], params)
    e.sample(np.zeros(m.V, np.float32), rwkv.SamplingParams(seed=1))
    e.score(m.tokens(20))
    assert allocations() == []


def test_results_wider_than_what_is_read_at_a_time(allocations):
    """More than 4 MB of logits, in pieces."""
    shape = dict(L=2, C=16, N=16, F=32, V=5000, ranks=(3, 3, 3, 3))
    m, cpu, e = model(**shape), engine("cpu fp32", **shape), engine("cuda fp32", **shape)
    tokens = m.tokens(300)
    state = e.new_state()
    e.forward([1], state)
    allocations()
    found = e.forward(tokens, e.new_state(), output="all")
    assert allocations() == []
    np.testing.assert_allclose(found, cpu.forward(tokens, cpu.new_state(), output="all"), atol=1e-5)


def test_room_for_chunks_only_where_there_are_some(allocations):
    """RWKV-7 reads long prompts in chunks, but not with float32, nor with heads that are not of 64."""

    def largest(strategy, **shape):
        allocations()
        e = engine(strategy, **shape)
        sizes = allocations()
        del e
        return sizes

    with_chunks, without = (largest(f"cuda {precision}", **HEADS_OF_64) for precision in ("fp16", "fp32"))
    assert len(with_chunks) == len(without) + 1
    assert len(largest("cuda fp16", **{**HEADS_OF_64, "N": 32})) == len(without)
