"""RWKV-7a: against its definition, and its tables, which stay in the file.

That splits, batches, threads and instruction sets change no bit of it is in test_exact.py.
"""

import numpy as np
import pytest
from helpers import DEEP, DEEP_32, bits, engine, model, python, refusal, relative, round_to, save

import rwkv_engine as rwkv

SIZES = {
    "odd": DEEP,
    "32": DEEP_32,
    "small": dict(version="7a", L=2, C=64, N=16, F=192, V=40, ranks=(8, 8, 8, 8), D=4),
    "one": dict(version="7a", L=1, C=16, N=16, F=31, V=12, ranks=(3, 3, 3, 3), D=1),
}


@pytest.mark.parametrize("size", SIZES)
def test_fp32_matches_the_definition(size):
    m, e = model(**SIZES[size]), engine(**SIZES[size])
    assert e.config.version == "7a"
    tokens, state = m.tokens(40), e.new_state()
    expected, exact = m.reference(tokens)
    assert relative(e.forward(tokens, state, output="all"), expected) <= 1e-5
    for name, part in exact.parts().items():
        assert relative(state.to_numpy()[name], part) <= 1e-5, name


def test_bf16_matches_the_definition_with_rounded_products():
    m, e, exact = model(**DEEP_32), engine("cpu bf16", **DEEP_32), engine(**DEEP_32)
    tokens = m.tokens(40)
    rounded, _ = m.reference(tokens, round=lambda t: round_to(t, "bf16").astype(np.float64))
    found = e.forward(tokens, e.new_state(), output="all")
    assert relative(found, rounded) <= 2e-2
    assert 1e-4 < relative(found, exact.forward(tokens, exact.new_state(), output="all")) <= 5e-2


@pytest.mark.parametrize("name", ["s_emb.weight", "s_emb_x.weight", "s0", "s1", "s2"])
def test_every_part_counts(name, tmp_path):
    m, e = model(**DEEP), engine(**DEEP)
    tokens = m.tokens(20)
    changed = {
        k: t * np.float32(0.5) if k.endswith("ffn." + name) else t for k, t in m.weights.items()
    }
    other = rwkv.Engine(save(tmp_path / "a.pth", changed), "cpu fp32", threads=1)
    found, before = (x.forward(tokens, x.new_state(), output="all") for x in (other, e))
    exact = {k: t.astype(np.float64) for k, t in changed.items()}
    expected = m.definition.forward(exact, tokens, m.definition.State(exact))
    assert relative(found, before) > 1e-4 and relative(found, expected) <= 1e-5


def test_every_way_a_table_may_lie(tmp_path):
    """In the file as it is, in other formats, and column by column, where it is loaded instead of mapped."""
    m, expected = model(**DEEP), engine(**DEEP)
    tokens = m.tokens(30)
    logits = bits(expected.forward(tokens, expected.new_state(), output="all"))
    table = "blocks.1.ffn.s_emb.weight"
    for path in (
        m.path("f32", ".safetensors"),
        m.path("bf16"),
        m.path("bf16", ".safetensors"),
        save(tmp_path / "a.pth", m.weights, transposed={table}),
    ):
        e = rwkv.Engine(str(path), "cpu fp32", threads=2)
        assert bits(e.forward(tokens, e.new_state(), output="all")) == logits, path
        assert e.fingerprint == expected.fingerprint
    other = m.weights | {table: m.weights[table] + np.float32(1)}
    assert (
        rwkv.Engine(str(save(tmp_path / "b.pth", other)), "cpu fp32").fingerprint
        != expected.fingerprint
    )


MEMORY = """
import sys
import rwkv_engine as rwkv
def anonymous():
    lines = open("/proc/self/status").read().split("\\n")
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = anonymous()
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=1)
engine.forward(list(range(100)), engine.new_state(), output="none")
print(anonymous() - before)
"""


def test_tables_stay_in_the_file(tmp_path):
    shape = dict(version="7a", L=4, C=32, N=16, F=64, ranks=(4, 4, 4, 4), D=32, V=8000)
    path = model(**shape).path("bf16")
    tables = 4 * 8000 * 32 * 32 * 2
    assert path.stat().st_size > tables
    assert int(python(MEMORY, path)) < tables / 2


def test_wrong_shapes_are_named(tmp_path):
    weights = model(**DEEP).weights
    ffn = "blocks.1.ffn."
    for name, shape, words in (
        ("s_emb.weight", (17, 26), ["expected (17, 25), found (17, 26)"]),
        ("s_emb.weight", (16, 25), ["expected (17, 25), found (16, 25)"]),
        ("s_emb_x.weight", (25, 36), ["expected (25, 35), found (25, 36)"]),
        ("s0", (1, 1, 90), ["expected (91), found (1, 1, 90)"]),
        ("s2", (5, 90), ["expected (5, 91), found (5, 90)"]),
        ("s1", (35, 2000), ["rank of at most 1024", "2000"]),
    ):
        wrong = weights | {ffn + name: np.zeros(shape, np.float32)}
        refusal(save(tmp_path / "a.pth", wrong), ffn + name.split(".")[0], *words)
    for name in ("s_emb_x.weight", "s0", "s1", "s2"):
        missing = {k: t for k, t in weights.items() if k != ffn + name}
        refusal(save(tmp_path / "a.pth", missing), ffn + name)


def test_7b_is_refused_by_name(tmp_path):
    surplus = {"blocks.0.qkv.k1": np.zeros((35, 32), np.float32)}
    refusal(
        save(tmp_path / "a.pth", model(**DEEP).weights | surplus), "RWKV-7b (DeepEmbed attention)"
    )


def test_a_state_of_7_is_refused():
    plain = {k: v for k, v in DEEP.items() if k not in ("version", "D")}
    blob = engine(**plain).new_state().to_bytes()
    with pytest.raises(rwkv.StateError, match="7a"):
        engine(**DEEP).state_from_bytes(blob, check_weights=False)
