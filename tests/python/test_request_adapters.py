"""Adapters that single states are made with: what they compute, beside whom, and what of them outlives what."""

import gc
import threading

import adapter_files
import numpy as np
import pytest
from adapter_files import PEFT
from helpers import (
    DEEP,
    OLDER,
    SMALL,
    WIDE,
    bits,
    engine,
    instruction_sets,
    model,
    pieces_of,
    python,
    relative,
    rwkv,
    save,
)

from rwkv_engine import Adapter

ALPHA = 6.0
CASES = {"7": SMALL, "7a": DEEP, **OLDER}
STRATEGIES = ["cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4"]


def modules_of(m):
    """All that are multiplied with activations: trainers leave the head alone, but it may be adapted."""
    return [t for t in adapter_files.targets(m) if not t.endswith("s_emb")] + ["head"]


def lora_of(m, rank=4, seed=0, modules=None, kind="lora"):
    return adapter_files.Adapter(m, kind, rank, seed=seed, modules=modules or modules_of(m))


def loaded(e, lora, path):
    """Of an engine, from a file that is not there any more afterwards."""
    lora.pth(path)
    found = e.load_adapter(Adapter(path, alpha=ALPHA if lora.kind == "lora" else None))
    path.unlink()
    return found


@pytest.fixture
def make(tmp_path):
    return lambda e, lora: loaded(e, lora, tmp_path / "made.pth")


def three(m, make, e):
    """Three adapters: of everything, of some matrices with another rank, and of the second layer's."""
    return [
        make(e, lora_of(m)),
        make(e, lora_of(m, 7, 1, modules_of(m)[::2])),
        make(e, lora_of(m, 3, 2, [t for t in modules_of(m) if t.startswith("blocks.1.")])),
    ]


# ---- what is computed ----


@pytest.mark.parametrize("case", CASES)
def test_as_the_definition_of_the_merged_model(case, make, tmp_path):
    m = model(**CASES[case])
    lora, e = lora_of(m), engine(**CASES[case])
    exact = {n: t.astype(np.float64) for n, t in lora.merge(m.weights, ALPHA).items()}
    tokens = m.tokens(40)
    expected = m.definition.forward(exact, tokens, m.definition.State(exact))
    found = e.forward(tokens, e.new_state(adapter=make(e, lora)), output="all")
    assert relative(found, expected) <= 1e-5
    assert relative(m.reference(tokens)[0], expected) > 1e-2
    merged = rwkv.Engine(
        m.path(), "cpu fp32", adapters=Adapter(lora.pth(tmp_path / "a.pth"), alpha=ALPHA)
    )
    assert relative(found, merged.forward(tokens, merged.new_state(), output="all")) <= 1e-5


@pytest.mark.parametrize(("kind", "rank"), [("miss", 4), ("miss", 7), ("mini", 4), ("lora", 64)])
def test_other_kinds(kind, rank, tmp_path):
    m, e = model(**SMALL), engine(**SMALL)
    if kind == "mini":
        adapter = adapter_files.Adapter(m, "miss", rank, width=16)
        spec = adapter.peft(tmp_path / "peft", {"init_weights": "mini", "mini_r": 16})
    else:
        adapter = lora_of(m, rank, kind=kind)
        config = {"lora_alpha": ALPHA} if kind == "lora" else {}
        spec = adapter.peft(tmp_path / "peft", config)
    exact = adapter.merge(m.weights, ALPHA)
    tokens = m.tokens(20)
    expected = m.definition.forward(exact, tokens, m.definition.State(exact))
    found = e.forward(tokens, e.new_state(adapter=e.load_adapter(spec)), output="all")
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES[2:])
def test_narrow_weights(strategy, tmp_path):
    """No further from the merged model in float32 than the merged model is that was rounded to that precision."""
    m = model(**WIDE)
    spec, tokens = Adapter(lora_of(m).pth(tmp_path / "a.pth"), alpha=ALPHA), m.tokens(60)
    exact, rounded = (rwkv.Engine(m.path(), s, adapters=spec) for s in ("cpu fp32", strategy))
    e = engine(strategy, **WIDE)
    want, merged = (x.forward(tokens, x.new_state(), output="all") for x in (exact, rounded))
    found = e.forward(tokens, e.new_state(adapter=e.load_adapter(spec)), output="all")
    assert relative(found, want) <= 1.2 * relative(merged, want) < 1
    assert relative(e.forward(tokens, e.new_state(), output="all"), want) > 0.5


def test_beside_the_weights_of_a_quantised_file(make, tmp_path):
    m = model(**WIDE)
    rwkv.quantize(m.path(), tmp_path / "q.safetensors", "int8")
    packed, e = rwkv.Engine(tmp_path / "q.safetensors", threads=2), engine("cpu int8", **WIDE)
    a, b = (make(x, lora_of(m)) for x in (packed, e))
    assert a.fingerprint == b.fingerprint
    tokens = m.tokens(30)
    rows = [x.forward(tokens, x.new_state(adapter=h)) for x, h in ((packed, a), (e, b))]
    assert bits(rows[0]) == bits(rows[1])


def test_layers_of_several_precisions(make):
    m = model(**SMALL)
    e = engine("cpu fp32 *1 -> cpu bf16", **SMALL)
    handles = three(m, make, e)
    tokens = m.tokens(30)
    alone = [e.forward(tokens, e.new_state(adapter=h)) for h in handles]
    together = e.forward_batch([tokens] * 3, [e.new_state(adapter=h) for h in handles])
    assert bits(together) == bits(np.stack(alone)) and len({bits(row) for row in together}) == 3


# ---- beside whom ----


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [*CASES, "wide"])
def test_any_neighbours_and_any_pieces(strategy, case, make):
    options = WIDE if case == "wide" else CASES[case]
    m, e = model(**options), engine(strategy, **options)
    handles = [*three(m, make, e), None]
    rows = [m.tokens(1 + i * 13 % 29, seed=i) for i in range(11)]
    of = [handles[i * 5 % 4] for i in range(11)]
    alone, expected = [e.new_state(adapter=h) for h in of], []
    for state, tokens in zip(alone, rows, strict=True):
        expected.append([e.forward([t], state) for t in tokens])
    together = [e.new_state(adapter=h) for h in of]
    for found, wanted in zip(e.forward_batch(rows, together, output="all"), expected, strict=True):
        assert bits(found) == bits(np.stack(wanted))
    pieces = [e.new_state(adapter=h) for h in of]
    for at in range(0, 29, 4):
        some = [i for i in range(11) if rows[i][at : at + 4]]
        last = e.forward_batch([rows[i][at : at + 4] for i in some], [pieces[i] for i in some])
        for i, row in zip(some, last, strict=True):
            assert bits(row) == bits(expected[i][min(at + 4, len(rows[i])) - 1])
    for a, b, c in zip(alone, together, pieces, strict=True):
        assert a.to_bytes() == b.to_bytes() == c.to_bytes()
    # Who has none is what it is where there are no adapters at all.
    plain = engine(strategy, **options)
    for i in (i for i in range(11) if of[i] is None):
        state = plain.new_state()
        plain.forward(rows[i], state)
        assert state.to_bytes() == together[i].to_bytes()


def test_long_texts_beside_short_ones(make):
    m, e = model(**SMALL), engine("cpu int8", **SMALL)
    handles = [*three(m, make, e), None, None]
    rows = [m.tokens(n, seed=n) for n in (700, 1, 333, 60, 2)]
    together = [e.new_state(adapter=h) for h in handles]
    found = e.forward_batch(rows, together)
    for i, (tokens, handle) in enumerate(zip(rows, handles, strict=True)):
        state = e.new_state(adapter=handle)
        for n in pieces_of(len(tokens), 50):
            row = e.forward(tokens[:n], state)
            tokens = tokens[n:]
        assert bits(row) == bits(found[i]) and state.to_bytes() == together[i].to_bytes()


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8"])
def test_skipping_zeros_changes_nothing(strategy, make):
    m = model(**WIDE)
    found = []
    for sparse in (True, False, None):
        e = rwkv.Engine(m.path(), strategy, threads=2, sparse=sparse)
        state = e.new_state(adapter=make(e, lora_of(m)))
        rows = np.stack([e.forward([t], state) for t in m.tokens(12)])
        found.append((bits(rows), state.to_bytes()))
    assert found[0] == found[1] == found[2]


OTHERWISE = """
import sys, rwkv_engine as rwkv, hashlib
model, strategy, threads, path = sys.argv[1:]
e = rwkv.Engine(model, strategy, threads=int(threads))
a = e.load_adapter(rwkv.Adapter(path, alpha=6))
states = [e.new_state(adapter=a if i % 3 else None) for i in range(20)]
e.forward_batch([list(range(1, 2 + 7 * i % 31)) for i in range(20)], states)
for t in range(3):
    e.forward_batch([[t + i] for i in range(20)], states)
print(hashlib.sha256(b"".join(s.to_bytes() for s in states)).hexdigest())
"""


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8"])
def test_threads_and_instruction_sets(strategy, tmp_path):
    m = model(**WIDE)
    path = lora_of(m, 7).pth(tmp_path / "a.pth")
    arguments = (OTHERWISE, m.path(), strategy)
    found = {python(*arguments, threads, path) for threads in (1, 2, 5)}
    for isa in instruction_sets():
        if isa != "generic":
            found.add(python(*arguments, 2, path, RWKV_ISA=isa))
    assert len(found) == 1


def test_all_calls_take_such_states(make):
    e, m = engine(**WIDE), model(**WIDE)
    handle, tokens = make(e, lora_of(m)), m.tokens(20)
    logits = e.forward(tokens, e.new_state(adapter=handle), output="all")
    fork = (state := e.new_state(adapter=handle)).fork()
    assert fork.adapter == state.adapter == handle and e.new_state().adapter is None
    assert bits(e.forward(tokens, fork)) == bits(logits[-1])
    hidden = e.forward(tokens, e.new_state(adapter=handle), output="hidden")
    plain = e.forward(tokens, e.new_state(), output="hidden")
    assert relative(hidden, plain) > 1e-2
    layers = e.layer_outputs(tokens, e.new_state(adapter=handle))
    assert relative(layers[0], e.layer_outputs(tokens, e.new_state())[0]) > 1e-2
    device = e.forward(tokens, e.new_state(adapter=handle), device=True, output="all")
    assert bits(np.from_dlpack(device)) == bits(logits)
    states = [e.new_state(adapter=h) for h in (handle, None, handle)]
    vectors = e.forward_batch([tokens] * 3, states, output="hidden")
    assert bits(vectors[0]) == bits(vectors[2]) == bits(hidden) and bits(vectors[1]) == bits(plain)
    rows = logits.astype(np.float64)
    norms = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    want = [rows[i, t] - norms[i] for i, t in enumerate(tokens[1:])]
    found = e.score(tokens, state=e.new_state(adapter=handle))
    np.testing.assert_allclose(found[-19:], want, atol=1e-4)


def test_texts(make, demo_lora):
    e, handle = demo_lora
    params = rwkv.SamplingParams(temperature=0, max_tokens=12)
    prompts = ["def main(", "The "]
    alone = [e.generate(p, params, state=e.new_state(adapter=handle)).tokens for p in prompts]
    states = [e.new_state(adapter=h) for h in (handle, None, handle)]
    both = e.generate_batch([prompts[0], prompts[0], prompts[1]], params, states=states)
    assert [both[0].tokens, both[2].tokens] == alone
    assert both[1].tokens == e.generate(prompts[0], params).tokens != alone[0]
    assert both[0].state.adapter == handle


@pytest.fixture
def demo_lora(tmp_path):
    e = rwkv.Engine("demo", "cpu fp32", threads=2)
    rng, parts = np.random.default_rng(0), {}
    c, f = e.config.n_embd, e.config.n_ffn
    for i in range(e.config.n_layer):
        parts[f"blocks.{i}.ffn.key.lora_A"] = rng.normal(0, 0.3, (8, c)).astype(np.float32)
        parts[f"blocks.{i}.ffn.key.lora_B"] = rng.normal(0, 0.3, (f, 8)).astype(np.float32)
    return e, e.load_adapter(Adapter(save(tmp_path / "demo.pth", parts), alpha=8))


def test_a_tuned_state_with_an_adapter(make):
    m, e = model(**SMALL), engine(**SMALL)
    tuned = {
        f"blocks.{i}.att.time_state": np.full((4, 16, 16), 0.1 * i + 0.1, np.float32) for i in (0, 1)
    }
    handle, tokens = make(e, lora_of(m)), m.tokens(9)
    rows = [
        e.forward(tokens, e.new_state(init=init, adapter=h))
        for init in (None, tuned)
        for h in (None, handle)
    ]
    assert len({bits(row) for row in rows}) == 4


# ---- fingerprints and lifetimes ----


def test_snapshots_find_their_adapter(make, tmp_path):
    m, e = model(**SMALL), engine(**SMALL)
    lora, tokens = lora_of(m), m.tokens(9)
    handle, other = make(e, lora), make(e, lora_of(m, seed=1))
    state = e.new_state(adapter=handle)
    e.forward(tokens, state)
    blob = state.to_bytes()
    state.save(tmp_path / "a.state")
    for again in (e.state_from_bytes(blob), e.load_state(tmp_path / "a.state")):
        assert again.adapter == handle and again.equals(state)
        assert bits(e.forward([1], again)) == bits(e.forward([1], state.fork()))
    assert rwkv.read_state(tmp_path / "a.state").fingerprint == handle.fingerprint
    assert len({e.fingerprint, handle.fingerprint, other.fingerprint}) == 3

    # An engine without it, or with another; without weights being looked at, it goes on without an adapter.
    fresh = rwkv.Engine(m.path(), "cpu fp32", threads=2)
    for others in ("", "or one of 1 loaded adapters"):
        with pytest.raises(rwkv.StateError) as error:
            fresh.state_from_bytes(blob)
        words = (fresh.fingerprint, handle.fingerprint, "load_adapter", others)
        assert all(word in str(error.value) for word in words)
        kept = make(fresh, lora_of(m, seed=1))
    assert fresh.state_from_bytes(blob, check_weights=False).adapter is None
    again = make(fresh, lora)
    assert again == handle and fresh.state_from_bytes(blob).adapter == again != kept
    # A merged one is another model.
    path = lora.pth(tmp_path / "a.pth")
    merged = rwkv.Engine(m.path(), "cpu fp32", adapters=Adapter(path, alpha=ALPHA))
    with pytest.raises(rwkv.StateError, match="fingerprint"):
        merged.state_from_bytes(blob)
    # The same numbers in another file, alpha and scale are the same adapter.
    folder = lora.peft(tmp_path / "peft", {"lora_alpha": ALPHA})
    assert e.load_adapter(folder) == handle
    assert e.load_adapter(Adapter(path, alpha=2 * ALPHA, scale=0.5)) == handle
    assert e.load_adapter(Adapter(path, alpha=2 * ALPHA)) != handle
    assert not e.new_state(adapter=handle).equals(e.new_state())


def test_parts_go_on_with_the_adapter_that_is_named(make, tmp_path):
    """Bytes know theirs, and parts do not; a saved state goes on as it would have, by whatever way it comes back."""
    m, e = model(**SMALL), engine(**SMALL)
    handle, other = make(e, lora_of(m)), make(e, lora_of(m, seed=1))
    state = e.new_state(adapter=handle)
    e.forward(m.tokens(9), state)
    blob = state.to_bytes()
    state.save(tmp_path / "a.state")
    state.save_rwkv(tmp_path / "a.pth")
    ways = [
        lambda x, **a: x.state_from_bytes(blob, **a),
        lambda x, **a: x.load_state(tmp_path / "a.state", **a),
        lambda x, **a: x.state_from_numpy(state.to_numpy(), **a),
        lambda x, **a: x.state_from_dlpack(state.views(), **a),
        lambda x, **a: x.state_from_rwkv(state.to_rwkv(), **a),
        lambda x, **a: x.state_from_rwkv(tmp_path / "a.pth", **a),
    ]
    ahead, alien = state.fork(), rwkv.Engine(m.path(), "cpu fp32", threads=1)
    expected = bits(e.forward([1, 2], ahead))
    for i, way in enumerate(ways):
        again = way(e, adapter=handle)
        assert again.adapter == handle and bits(e.forward([1, 2], again)) == expected
        assert again.fork().adapter == handle
        assert way(e).adapter == (handle if i < 2 else None)
        with pytest.raises(rwkv.StateError, match="^expected an adapter that load_adapter.. of this engine gave, found one of another"):
            way(alien, adapter=handle)
        with pytest.raises(TypeError, match="adapter: expected what load_adapter"):
            way(e, adapter="a.pth")
        if i >= 2:
            assert bits(e.forward([1, 2], way(e, adapter=other))) != expected
            assert bits(e.forward([1, 2], way(e))) != expected
    for way in ways[:2]:
        with pytest.raises(rwkv.StateError) as error:
            way(e, adapter=other)
        assert all(fingerprint in str(error.value) for fingerprint in (other.fingerprint, handle.fingerprint))
        plain = way(e, adapter=other, check_weights=False)
        assert plain.adapter == other and bits(e.forward([1, 2], plain)) != expected
    own = e.new_state()
    e.forward([1], own)
    with pytest.raises(rwkv.StateError, match="of other weights"):
        e.state_from_bytes(own.to_bytes(), adapter=handle)


def test_every_number_counts(tmp_path):
    """Also between those that fingerprints of models look at: an adapter with another's is taken for it."""
    m, e = model(**WIDE), engine(**WIDE)
    lora = lora_of(m, 60)
    kept = [loaded(e, lora, tmp_path / "a.pth")]
    for end in ("lora_A", "lora_B"):
        numbers = max((t for n, t in lora.parts.items() if n.endswith(end)), key=np.size).reshape(-1)
        assert len(numbers) > 2 * 4096
        for at in (1, len(numbers) // 2 + 1, -2):
            numbers[at] += 1
            kept.append(loaded(e, lora, tmp_path / "b.pth"))
    assert len({handle.fingerprint for handle in kept}) == len(kept) == 7


def test_memory_goes_with_the_last_state(make):
    m, e = model(**SMALL), engine(**SMALL)
    handle = make(e, lora_of(m))
    state = e.new_state(adapter=handle)
    e.forward([1], state)
    blob = state.to_bytes()
    fork = state.fork()
    del handle, state
    gc.collect()
    assert e.state_from_bytes(blob).adapter == fork.adapter
    del fork
    gc.collect()
    with pytest.raises(rwkv.StateError, match="fingerprint"):
        e.state_from_bytes(blob)


def test_handles_without_their_engine(make):
    m = model(**SMALL)
    e = rwkv.Engine(m.path(), "cpu fp32", threads=1)
    handle = make(e, lora_of(m))
    state = e.new_state(adapter=handle)
    e.forward([1, 2], state)
    expected = bits(state.last_logits)
    del e
    gc.collect()
    assert bits(state.last_logits) == expected and len(handle.fingerprint) == 64
    del state
    gc.collect()
    assert handle.nbytes > 0 and repr(handle).startswith("<LoadedAdapter")
    with pytest.raises(rwkv.StateError, match="adapter.*found one of another"):
        engine(**SMALL).new_state(adapter=handle)


def test_loading_while_others_compute(make, tmp_path):
    m, e = model(**SMALL), rwkv.Engine(model(**SMALL).path(), "cpu fp32", threads=2)
    paths = [lora_of(m, seed=i).pth(tmp_path / f"{i}.pth") for i in range(4)]
    tokens, found = m.tokens(300), []
    expected = bits(e.forward(tokens, e.new_state()))

    def compute():
        found.extend(bits(e.forward(tokens, e.new_state())) for _ in range(10))

    worker = threading.Thread(target=compute)
    worker.start()
    handles = [e.load_adapter(Adapter(path, alpha=ALPHA)) for path in paths * 3]
    worker.join()
    assert set(found) == {expected} and len(set(handles)) == 4


# ---- what is refused ----


def refused(e, spec, *words, kind=rwkv.ModelFormatError):
    with pytest.raises(kind) as error:
        e.load_adapter(spec)
    message = str(error.value)
    assert len(message) < 1000
    for word in ("expected", "found", *words):
        assert word in message, message


def test_what_can_only_be_merged(tmp_path):
    m, e = model(**SMALL), engine(**SMALL)
    lora = adapter_files.Adapter(m, "lora")
    merge = "Engine(model, adapters=...)"
    full = {
        "blocks.1.ln1.weight": np.zeros(64, np.float32),
        "head.weight": np.zeros((40, 64), np.float32),
        "blocks.0.att.time_state": np.zeros((4, 16, 16), np.float32),
    }
    for name, t in full.items():
        refused(e, Adapter(lora.pth(tmp_path / "a.pth", **{name: t}), alpha=ALPHA), name, merge)
    refused(e, adapter_files.Adapter(m, "bat", 8).pth(tmp_path / "b.pth"), "Bat", ".disha", merge)
    table = {
        PEFT + "emb.lora_embedding_A": np.zeros((4, 40), np.float32),
        PEFT + "emb.lora_embedding_B": np.zeros((64, 4), np.float32),
    }
    refused(e, lora.peft(tmp_path / "peft", {"lora_alpha": 6}, **table), "emb", merge)
    # Of a rank with which it would be as large as the model, from a file that need not be.
    wide = model(**WIDE)
    many = adapter_files.Adapter(wide, "miss", 129, width=1, modules=["blocks.0.att.key"])
    folder = many.peft(tmp_path / "mini", {"init_weights": "mini", "mini_r": 1})
    refused(engine(**WIDE), folder, "rank of at most 128", "129", merge)


def test_what_merging_refuses_too(tmp_path):
    e = engine(**SMALL)
    key = "blocks.0.att.key"
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    pair = {key + ".lora_A": zeros(4, 64), key + ".lora_B": zeros(64, 4)}
    for parts, words in (
        ({**pair, key + ".lora_A": zeros(5, 64)}, (".lora_B", "(64, 5)", "(64, 4)")),
        ({key + ".lora_A": zeros(4, 64)}, ("A and B", "one of them")),
        ({**pair, "blocks.2.att.key.lora_A": zeros(4, 64)}, ("blocks.2.att.key.weight", "2 layers")),
        ({k.replace("att.key", "ln1"): t for k, t in pair.items()}, ("blocks.0.ln1.weight",)),
        ({k.replace("att.key", "att.w1"): t for k, t in pair.items()}, ("blocks.0.att.w1.weight",)),
        ({**pair, key + ".lora_B": np.full((64, 4), np.nan, np.float32)}, ("finite", ".lora_B")),
        ({**pair, key + ".lora_B": np.full((64, 4), 3e38, np.float32)}, ("finite",)),
    ):
        refused(e, Adapter(save(tmp_path / "a.pth", parts), alpha=ALPHA * 1e3), *words)
    path = save(tmp_path / "a.pth", pair)
    refused(e, path, "alpha", "Adapter(path, alpha=32)")
    with pytest.raises(rwkv.Error, match=r"none\.pth"):
        e.load_adapter(tmp_path / "none.pth")
    for damage in (path.read_bytes()[:200], b"", b"{}" * 50):
        (tmp_path / "bad.pth").write_bytes(damage)
        with pytest.raises(rwkv.ModelFormatError, match=r"bad\.pth"):
            e.load_adapter(Adapter(tmp_path / "bad.pth", alpha=1))


def test_arguments_of_other_types(make):
    m, e = model(**SMALL), engine(**SMALL)
    handle = make(e, lora_of(m))
    for wrong in (3, None, [handle], handle):
        with pytest.raises(TypeError, match="expected"):
            e.load_adapter(wrong)
    for wrong in ("a.pth", 3, Adapter("a.pth")):
        with pytest.raises(TypeError, match="load_adapter"):
            e.new_state(adapter=wrong)
    with pytest.raises(TypeError, match="load_adapter"):
        rwkv.LoadedAdapter(None)
