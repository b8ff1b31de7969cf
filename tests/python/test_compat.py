"""The `rwkv` package's surface: its scripts run unchanged, and its rules hold where no torch is."""

import copy
import importlib.util
import pathlib
import pickle

import numpy as np
import pytest
from compat_models import VERSIONS, path_of, weights_of
from helpers import SMALL, bits, model, python, rwkv

from rwkv_engine import compat
from rwkv_engine.compat import PIPELINE, PIPELINE_ARGS, RWKV, TRIE_TOKENIZER

DEMO_WORDS = pathlib.Path(rwkv.__file__).parent / "data" / "demo-vocab.txt"


@pytest.fixture(scope="module")
def m():
    return RWKV(str(model(**SMALL).path()), "cpu fp32")


@pytest.fixture(scope="module", params=VERSIONS)
def each(request):
    """A model of every version: three layers, C = 64, four heads of 16."""
    return RWKV(str(path_of(request.param)), "cpu fp32")


@pytest.fixture(scope="module")
def demo():
    return PIPELINE(RWKV("demo", "cpu fp32"), DEMO_WORDS)


def words_file(folder, words, n_first=1):
    path = folder / "words.txt"
    lines = [f"{i} {w!r} {len(w if isinstance(w, bytes) else w.encode())}" for i, w in enumerate(words, n_first)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Scripted:
    """A model that writes given tokens, whatever it reads."""

    def __init__(self, tokens, V=16):
        self.answers, self.V, self.calls = tokens, V, []

    def forward(self, tokens, state, full_output=False):
        self.calls.append(None if tokens is None else list(tokens))
        at = state or 0
        out = np.full(self.V, -50, np.float32)
        out[self.answers[min(at, len(self.answers) - 1)]] = 50
        return out.view(compat.Tensor), at + 1


# ---- forward ----


def test_forward_has_the_bits_of_the_engine_however_it_is_called(m):
    tokens = model(**SMALL).tokens(20)
    expected = m.engine.forward(tokens, m.engine.new_state(), output="all")
    whole, end = m.forward(tokens, None, full_output=True)
    assert type(whole) is compat.Tensor and bits(whole.numpy()) == bits(expected)
    state = None
    for at in range(0, 20, 7):
        out, state = m.forward(tokens[at : at + 7], state)
    assert bits(out) == bits(expected[-1])
    state = m.generate_zero_state()
    for t, row in zip(tokens, expected):
        out, state = m.forward(t if t % 2 else np.int64(t), state)
        assert bits(out) == bits(row)
    assert all((a == b).all() for a, b in zip(state, end))
    assert bits(m.forward(None, state)[0]) == bits(expected[-1])
    assert m.forward(tokens[:1], None, full_output=True)[0].shape == (SMALL["V"],)
    assert bits(m.forward(np.array(tokens), None)[0]) == bits(m(tuple(tokens), None)[0]) == bits(expected[-1])


def test_logits_answer_as_tensors(m):
    out, state = m.forward([1, 2], None)
    assert out.detach() is out and out.cpu() is out and out.float() is out
    assert type(out.numpy()) is np.ndarray and np.shares_memory(out.numpy(), out)
    copied = out.clone()
    assert type(copied) is compat.Tensor and not np.shares_memory(copied, out)
    out[3] -= 0.5
    out[0] = -float("inf")
    assert out[3] == copied[3] - np.float32(0.5) and out.argmin() == 0 and out.tolist()[0] == -np.inf
    assert float(out[1]) == copied[1] and (out * 2)[1] == copied[1] * 2
    assert bits(m.forward(None, state)[0]) == bits(copied), "the state's logits are its own"
    assert bits(pickle.loads(pickle.dumps(copied))) == bits(copied)
    assert copied.argmax(dim=-1) == copied.argmax() == copied.numpy().argmax() == copied.argmax(0).item()
    assert copied.device == "cpu" == copied.device.type and copied.to(copied.device) is copied
    assert copied.to("cpu:0", non_blocking=True) is copied.to(device="cpu", dtype="torch.float32") is copied
    for elsewhere in ("cuda", "cuda:1", "torch.float16", 0):
        with pytest.raises(rwkv.DeviceError, match=r"found (cuda|float16|0)"):
            copied.to(elsewhere)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_functions_of_torch_take_logits_and_elements(m):
    import torch

    out, state = m.forward([1, 2], None)
    probs = torch.softmax(out.float(), dim=-1)
    assert type(probs) is torch.Tensor and abs(float(probs.sum()) - 1) < 1e-6
    assert int(torch.argmax(out)) == out.argmax() and len(torch.stack([out, out])) == 2
    expected = m.forward([3], state)[0]
    tensors = [torch.tensor(x) for x in state]
    assert bits(m.forward([3], tensors)[0]) == bits(expected)
    state[1] = tensors[1].to(torch.float64)
    assert bits(m.forward([3], state)[0]) == bits(expected)
    assert isinstance(PIPELINE(m, "rwkv_vocab_v20230424").sample_logits(torch.tensor(out)), int)


def test_arguments_that_make_no_sense(m):
    for call, words in [
        (lambda: m.forward([], None), "at least one token"),
        (lambda: m.forward([SMALL["V"]], None), str(SMALL["V"])),
        (lambda: m.forward(None, None), "without logits"),
        (lambda: m.forward([1], [np.zeros(3, np.float32)]), "expected 6 arrays (3 a layer), found 1"),
        (lambda: m.forward([1], [np.zeros(3, np.float32)] * 6), "(att.shift of layer 0), found (3,)"),
        (lambda: RWKV("demo", "cpu fp32", convert_and_save_and_exit="x"), "convert_and_save"),
        (lambda: PIPELINE(m, "20B_tokenizer.json"), "20B_tokenizer.json"),
        (lambda: PIPELINE(m, "cl100k_base"), "rwkv_vocab_v20230424"),
    ]:
        with pytest.raises(rwkv.Error) as error:
            call()
        assert words in str(error.value)
    with pytest.raises(TypeError):
        m.forward([1], "state")


def test_strategies_that_this_build_lacks():
    with pytest.raises(rwkv.DeviceError, match="cuda"):
        RWKV("demo", "cuda fp16")
    with pytest.raises(rwkv.DeviceError, match="cuda"):
        RWKV("demo", "cuda fp16i8 *10+")
    with pytest.raises(rwkv.StrategyError, match="fp16"):
        RWKV("demo", "cpu fp16")
    assert RWKV("demo", "cpu bf16 *2 -> cpu fp32").args.n_layer == 4


def test_path_without_its_suffix_and_attributes():
    path = str(model(**SMALL).path())
    m = RWKV(path.removesuffix(".pth"), strategy="cpu fp32", verbose=False)
    assert m.engine.fingerprint == RWKV(pathlib.Path(path), "cpu fp32").engine.fingerprint
    a = m.args
    assert (a.n_layer, a.n_embd, a.vocab_size, a.n_head, a.head_size) == (2, 64, 40, 4, 16)
    assert a.MODEL_NAME == path.removesuffix(".pth") and (m.n_layer, m.n_embd) == (2, 64)
    assert (m.version, a.n_att, a.n_ffn, a.strategy_string) == (7, 64, 192, "cpu fp32")
    with pytest.raises(rwkv.Error, match="nowhere"):
        RWKV("nowhere", "cpu fp32")


def test_there_is_no_dictionary_of_weights(m):
    for name in ("w", "z"):
        assert not hasattr(m, name)
        with pytest.raises(rwkv.Error, match=f"RWKV.{name}: expected a script that needs no dictionary"):
            getattr(m, name)


# ---- states ----


def test_a_state_is_a_list_of_arrays_in_the_packages_order(m):
    out, state = m.forward([1, 2, 3], None)
    assert [a.shape for a in state] == [(64,), (4, 16, 16), (64,)] * 2 and len(state) == 6
    parts = state.handle(m.engine).to_numpy()
    for layer in range(2):
        for at, name in enumerate(("att.shift", "att.wkv", "ffn.shift")):
            assert bits(state[3 * layer + at]) == bits(parts[name][layer])
    assert len(state[0:2]) == 2 and (state[-1] == state[5]).all()
    assert all(not a.any() for a in m.generate_zero_state())


def test_a_state_never_changes_under_its_owner(m):
    _, state = m.forward([1, 2, 3], None)
    first, after = m.forward([4, 5], state)
    for looked in (False, True):
        if looked:
            state[1].sum()
        again, _ = m.forward([4, 5], state)
        assert bits(again) == bits(first)
    assert after is not state and m.forward(None, state)[0].tobytes() != first.tobytes()


def numbers(state):
    return [bits(item) for item in state]


SHAPES = {"4": [(64,)] * 5}


def test_states_of_every_version_begin_as_the_packages(each):
    version = each.engine.config.version
    zero = each.generate_zero_state()
    assert [a.shape for a in zero] == 3 * SHAPES.get(version, [(64,), (4, 16, 16), (64,)]) and len(zero) == len(list(zero))
    assert all((a == (-1e30 if version == "4" and at % 5 == 3 else 0)).all() for at, a in enumerate(zero))
    expected = numbers(each.forward([1, 2], None)[1])
    assert numbers(each.forward([1, 2], zero)[1]) == expected == numbers(each.forward([1, 2], list(each.generate_zero_state()))[1])


def test_matrices_lie_as_the_packages():
    """After one token they are the outer product of key and value, in the order of the version."""
    for version, equation in (("5.2", "hi,hj->hij"), ("7", "hi,hj->hji")):
        w = {name: t.astype(np.float64).squeeze() for name, t in weights_of(version).items()}

        def norm(x, name):
            return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

        x = norm(norm(w["emb.weight"][9], "blocks.0.ln0"), "blocks.0.ln1")
        att = "blocks.0.att."
        if version == "7":
            a = 1 / (1 + np.exp(-(w[att + "a0"] + x * (1 - w[att + "x_a"]) @ w[att + "a1"] @ w[att + "a2"])))
            k = w[att + "key.weight"] @ (x * (1 - w[att + "x_k"])) * (1 + (a - 1) * w[att + "k_a"])
            v = w[att + "value.weight"] @ (x * (1 - w[att + "x_v"]))
        else:
            k, v = (w[att + name + ".weight"] @ (x * w[att + "time_mix_" + name[0]]) for name in ("key", "value"))
        _, state = RWKV(str(path_of(version)), "cpu fp32").forward([9], None)
        expected = np.einsum(equation, k.reshape(4, 16), v.reshape(4, 16))
        assert np.abs(state[1] - expected).max() < 1e-5 * np.abs(expected).max()
        assert np.abs(state[0] - x).max() < 1e-5


def test_who_is_changed_by_forward_depends_on_the_version(each):
    """RWKV-4 to 6 fill the list that they are passed; RWKV-7 returns a new one."""
    fills = each.version < 7
    _, start = each.forward([1, 2, 3], None)
    begun = numbers(start)
    expected = each.forward([4, 5], copy.deepcopy(start))
    for given in (copy.deepcopy(start), copy.copy(start), list(start), start[:]):
        elements = list(given)
        out, after = each.forward([4, 5], given)
        assert bits(out) == bits(expected[0]) and numbers(after) == numbers(expected[1])
        assert (after is given) == fills and numbers(given) == (numbers(after) if fills else begun)
        assert numbers(elements) == begun, "the elements are replaced, not overwritten"
        if isinstance(after, compat.State):
            assert bits(each.forward(None, after)[0]) == bits(out)
    assert numbers(start) == begun, "copies have lists of their own"
    for given in (copy.copy(start), list(start)):
        with pytest.raises(rwkv.Error):
            each.forward([4, 10_000], given)
        assert numbers(given) == begun, "a call that raises changes nothing"


def test_states_of_every_version_are_copied_pickled_and_edited(each):
    out, state = each.forward([1, 2, 3], None)
    expected = bits(each.forward([4], copy.deepcopy(state))[0])
    pickled = pickle.dumps(state)
    for twin in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickled), pickle.loads(pickle.dumps(pickle.loads(pickled)))):
        assert bits(each.forward(None, twin)[0]) == bits(out) and bits(each.forward([4], twin)[0]) == expected
    edits = []
    for twin in (copy.deepcopy(state), pickle.loads(pickled), [a.clone() for a in state]):
        twin[1][..., 0] *= 0.5
        twin[2] = twin[2] * 2
        again = copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))
        edits += [bits(each.forward([4], one)[0]) for one in (twin, *again)]
    assert len(set(edits)) == 1 and edits[0] != expected


def test_a_shallow_copy_shares_its_arrays_as_lists_do(m):
    _, state = m.forward([1, 2, 3], None)
    twin = state.copy()
    twin[1][0] = 0
    assert not state[1][0].any() and bits(m.forward([4], state)[0]) == bits(m.forward([4], twin)[0])
    twin[0] = np.ones(64)
    assert (state[0] != 1).any()


def test_slices_are_assigned_whole_or_not_at_all(m):
    _, state = m.forward([1, 2, 3], None)
    other = list(m.forward([4], None)[1])
    before = numbers(state)
    for bad in (other[:1], [*other[:1], np.zeros(3)]):
        with pytest.raises(rwkv.StateError):
            state[:2] = bad
        assert numbers(state) == before
    state[:2] = other[:2]
    state[-1] = other[-1]
    assert numbers(state) == numbers([*other[:2], *[a for a in m.forward([1, 2, 3], None)[1]][2:5], other[-1]])
    with pytest.raises(IndexError):
        state[6] = other[0]


def test_asking_for_the_length_makes_no_arrays(m):
    _, state = m.forward([1, 2, 3], None)
    assert len(state) == 6 and state and state is not None and state != None  # noqa: E711
    assert state._items is None and repr(state) == "<State of 6 arrays>"


def test_elements_may_be_replaced_and_edited(m):
    _, state = m.forward([1, 2, 3], None)
    expected = m.forward([4], state)[0]
    as_list = [a.clone() for a in state]
    assert bits(m.forward([4], as_list)[0]) == bits(expected)
    edited = copy.deepcopy(state)
    edited[1][0] = 0
    assert state[1][0].any() and bits(m.forward([4], state)[0]) == bits(expected)
    as_list[1][0] = 0
    changed = m.forward([4], as_list)[0]
    assert bits(changed) != bits(expected) and bits(m.forward([4], edited)[0]) == bits(changed)
    assert bits(m.forward([4], copy.deepcopy(edited))[0]) == bits(changed)
    assert bits(m.forward([4], pickle.loads(pickle.dumps(edited)))[0]) == bits(changed)
    replaced = state.copy()
    replaced[1] = edited[1].numpy().astype(np.float64)
    assert bits(m.forward([4], replaced)[0]) == bits(changed)
    assert bits(m.forward([4], state)[0]) == bits(expected)
    with pytest.raises(rwkv.StateError, match="expected shape"):
        replaced[1] = np.zeros(3)
    with pytest.raises(rwkv.StateError, match="without logits"):
        m.forward(None, edited)


def test_copies_and_pickles_go_on_with_the_same_bits(m):
    out, state = m.forward([1, 2, 3], None)
    expected = m.forward([4], state)[0]
    for twin in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert bits(m.forward(None, twin)[0]) == bits(out) and bits(m.forward([4], twin)[0]) == bits(expected)
    unread = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(state))))
    assert all(bits(a) == bits(b) for a, b in zip(unread, state))
    assert bits(m.forward(None, unread)[0]) == bits(out)
    other = RWKV(str(model(**SMALL).path()), "cpu fp32")
    assert bits(other.forward([4], state)[0]) == bits(expected)
    assert bits(other.forward([4], unread)[0]) == bits(expected)


# ---- sampling ----


def package_rule(logits, temperature, top_p, top_k):
    """The distribution that the package draws from, in float64 but for the comparisons."""
    if temperature == 0:
        temperature, top_p = 1.0, 0
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    ids = sorted(range(len(p)), key=lambda i: -p[i])
    total = 0.0
    for i in ids:
        total += p[i]
        if total >= top_p:
            break
    kept = {j for j in ids if p[j] >= p[i]}
    if 0 < top_k < len(p):
        kept &= set(ids[:top_k])
    q = np.array([p[j] ** (1 / temperature) if j in kept else 0 for j in range(len(p))])
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 0.85, 0), (0.7, 0.6, 0), (2.0, 0.95, 5), (1.0, 0.3, 3), (1.5, 1.0, 0), (0, 0.85, 0), (1.0, 0.0, 0)],
)
def test_the_distribution_is_the_packages(demo, temperature, top_p, top_k):
    logits = np.random.default_rng(5).normal(0, 1.5, 24).astype(np.float32)
    logits[[3, 9]] = logits.max() + 0.2 if top_k != 3 else logits[[3, 9]]  # a tie at the top
    expected = package_rule(logits, temperature, top_p, top_k)
    np.random.seed(7)
    draws = [demo.sample_logits(logits, temperature, top_p, top_k) for _ in range(10_000)]
    counts = np.bincount(draws, minlength=24)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    chi2 = ((counts - expected * 1e4)[seen] ** 2 / (expected * 1e4)[seen]).sum()
    freedom = seen.sum() - 1
    assert chi2 <= freedom + 4 * np.sqrt(2 * freedom) + 8, (chi2, freedom)


def test_sampling_takes_lists_and_arrays(demo):
    for logits in ([0, 9, 1], (0, 9, 1), np.array([0, 9, 1]), np.array([0, 9, 1], np.float64), np.float32([0, 9, 1]).view(compat.Tensor)):
        assert demo.sample_logits(logits, top_p=0.5) == 1
    with pytest.raises(rwkv.Error, match=r"expected shape \(V,\), found \(1, 2\)"):
        demo.sample_logits([[1, 2]])


def test_sampling_at_the_edges(demo):
    logits = np.array([1, 5, 2, -np.inf], np.float32)
    before = logits.copy()
    assert {demo.sample_logits(logits, temperature=0) for _ in range(20)} == {1}
    assert {demo.sample_logits(logits, temperature=0.001, top_p=1) for _ in range(20)} == {1}, "no underflow"
    assert (logits == before).all()
    flat = np.zeros(60_000, np.float32)
    flat[0] = 0.1  # alone at the top
    for top_p in (1.0, 1.5):  # rounding may keep the sum from 1; nothing reaches 1.5
        assert len({demo.sample_logits(flat, top_p=top_p) for _ in range(30)}) > 20
    for bad in (np.full(4, -np.inf), np.array([0, np.nan]), np.array([np.inf, 0])):
        with pytest.raises(rwkv.NonFiniteError):
            demo.sample_logits(bad)
    np.random.seed(3)
    first = [demo.sample_logits(flat) for _ in range(5)]
    np.random.seed(3)
    assert [demo.sample_logits(flat) for _ in range(5)] == first


# ---- generation ----


def test_defaults_are_the_packages():
    assert vars(PIPELINE_ARGS()) == dict(
        temperature=1.0, top_p=0.85, top_k=0, alpha_frequency=0.2, alpha_presence=0.2, alpha_decay=0.996,
        token_ban=[], token_stop=[], chunk_len=256,
    )  # fmt: skip


def test_generate_is_the_packages_loop(demo, monkeypatch):
    """Against the loop's definition over the engine's logits, with a sampler that records what it is given."""
    engine = demo.model.engine
    prompt, steps, ban = "def add(a, b):\n    return ", 40, [5, 77]
    args = PIPELINE_ARGS(alpha_presence=0.7, alpha_frequency=0.9, alpha_decay=0.9, token_ban=ban, chunk_len=3)
    blank = {i for i in range(1024) if demo.decode([i]) and demo.decode([i]) in " \t0123456789"}

    state, tokens, seen, weights, expected = engine.new_state(), demo.encode(prompt), [], {}, []
    for _ in range(steps):
        row = engine.forward(tokens, state)
        row[ban] = -np.inf
        for t in seen:
            row[t] -= args.alpha_presence + weights[t] * args.alpha_frequency
        expected.append(row)
        token = int(row.argmax())
        weights = {t: w * args.alpha_decay for t, w in weights.items()}
        weights[token] = weights.get(token, 0) + (token not in blank)
        seen, tokens = list(weights), [token]
    written = [int(row.argmax()) for row in expected]
    assert blank & set(written), "a token without weight is among them"

    rows, calls, pieces = [], [], []

    def sampler(logits, **settings):
        rows.append(logits.copy())
        calls.append(settings)
        return int(logits.argmax())

    monkeypatch.setattr(demo, "sample_logits", sampler)
    text = demo.generate(prompt, token_count=steps, args=args, callback=pieces.append)
    assert [int(r.argmax()) for r in rows] == written
    assert all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(rows, expected))
    assert text == "".join(pieces) == demo.decode(written)
    assert calls[0] == dict(temperature=1.0, top_p=0.85, top_k=0)
    args.token_stop = [written[10]]
    end = written.index(written[10])
    assert demo.generate(prompt, steps, args) == demo.decode(written[:end])


def test_generate_goes_on_from_a_state(demo):
    args = PIPELINE_ARGS(temperature=0, alpha_presence=0, alpha_frequency=0)
    whole = demo.generate("import os\ndef main(", 20, args)
    _, state = demo.model.forward(demo.encode("import os\ndef"), None)
    for _ in range(2):
        rest = demo.encode("import os\ndef main(")[len(demo.encode("import os\ndef")) :]
        assert demo.generate(demo.decode(rest), 20, args, state=state) == whole
    _, state = demo.model.forward(demo.encode("import os\ndef main("), None)
    assert demo.generate("", 20, args, state=state) == whole
    assert demo.generate("x", 0) == ""
    with pytest.raises(rwkv.Error, match="without logits"):
        demo.generate("")
    with pytest.raises(rwkv.Error, match="chunk_len"):
        demo.generate("x", 5, PIPELINE_ARGS(chunk_len=0))


GREEDY = dict(temperature=0, alpha_presence=0, alpha_frequency=0)


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        ([1, 2, 3, 1], ["a", "é", "a"]),  # whole characters only
        ([1, 2, 4, 1], ["a", "\ufffdb", "a"]),  # broken for certain: the package is silent from here on
        ([1, 2], ["a", "\ufffd"]),  # cut at the end: the package drops it
        ([1, 0, 4, 1], ["a", "b", "a"]),  # an id without a token: the package is silent from here on
    ],
)
def test_text_comes_in_whole_characters_and_none_is_lost(tmp_path, tokens, pieces):
    words = words_file(tmp_path, ["a", b"\xc3", b"\xa9", "b"])
    model_ = Scripted(tokens)
    found = []
    text = PIPELINE(model_, words).generate("b", len(tokens), PIPELINE_ARGS(**GREEDY), callback=found.append)
    assert found == pieces and text == "".join(pieces)
    assert model_.calls == [[4], *[[t] for t in tokens[:-1]]]


def test_prompts_are_read_in_chunks_and_a_stop_is_not_fed(tmp_path):
    words = words_file(tmp_path, ["a", "b", "c"])
    model_ = Scripted([1, 1, 1, 1, 2, 3])
    text = PIPELINE(model_, words).generate(
        "abcabca", 9, PIPELINE_ARGS(**GREEDY, chunk_len=3, token_stop=[3])
    )
    # Each call moves the script on by one answer, so the third call is the first to be sampled from.
    assert text == "aab" and model_.calls == [[1, 2, 3], [1, 2, 3], [1], [1], [1], [2]]


def test_a_vocabulary_of_the_tokenizers_library(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    built = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.save(str(tmp_path / "20B_tokenizer.json"))
    ids = built.encode("xé").ids
    model_ = Scripted([*ids, ids[1]], V=256)
    pipeline = PIPELINE(model_, str(tmp_path / "20B_tokenizer.json"))
    assert pipeline.encode("xé") == ids and pipeline.decode(ids) == "xé"
    found = []
    assert pipeline.generate("x", 4, PIPELINE_ARGS(**GREEDY), callback=found.append) == "xé\ufffd"
    assert found == ["x", "é", "\ufffd"]
    (tmp_path / "bad.json").write_text('{"no": "tokenizer"}')
    with pytest.raises(rwkv.Error, match="bad.json"):
        PIPELINE(model_, tmp_path / "bad.json")


def test_the_world_tokenizer_has_the_packages_names(tmp_path, capsys):
    tokenizer = TRIE_TOKENIZER(words_file(tmp_path, ["a", b"\xc3", b"\xa9", "ab"]))
    assert tokenizer.encode("aab\u00e9") == tokenizer.encodeBytes("aab\u00e9".encode()) == [1, 4, 2, 3]
    assert tokenizer.decode([1, 4, 2, 3]) == "aab\u00e9" and tokenizer.decodeBytes([2, 1]) == b"\xc3a"
    assert tokenizer.decode([4, 2, 1, 0]) == "ab\ufffda", "the package gives one U+FFFD for all of it"
    assert tokenizer.idx2token == {1: b"a", 2: b"\xc3", 3: b"\xa9", 4: b"ab"}
    assert tokenizer.token2idx == {word: i for i, word in tokenizer.idx2token.items()}
    tokenizer.printTokens([4, 2])
    assert capsys.readouterr().out == "'ab'4 b'\\xc3'2 \n"


def test_refine_context(demo):
    assert demo.refine_context("  a \n\n\u3000b\u3000\r\n \n c") == "\na\nb\nc"
    assert demo.refine_context(" \n ") == "\n"


# ---- the package's name ----

SCRIPT = """
import copy, os, sys
import rwkv_engine.compat
rwkv_engine.compat.install()
rwkv_engine.compat.install()
os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "1"
os.environ["RWKV_CUDA_ON"] = "0"

from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS

model = RWKV(model=sys.argv[1], strategy="cpu fp32")

out, state = model.forward([18, 51, 31, 23], None)
print(out.detach().cpu().numpy())
out, state = model.forward([18, 51], None)
out, state = model.forward([31], state)
saved = copy.deepcopy(state)
out, state = model.forward([23], state)
first = out.detach().cpu().numpy()
out, state = model.forward([18, 51, 31, 23], None)
assert (out.detach().cpu().numpy() == first).all()
out, _ = model.forward([23], saved)
assert (out.detach().cpu().numpy() == first).all()

pipeline = PIPELINE(model, sys.argv[2])
ctx = "def main("
print(ctx, end="")
def my_print(s):
    print(s, end="", flush=True)
args = PIPELINE_ARGS(temperature=1.0, top_p=0.7, top_k=100, alpha_frequency=0.25, alpha_presence=0.25,
                     alpha_decay=0.996, token_ban=[0], token_stop=[], chunk_len=256)
pipeline.generate(ctx, token_count=20, args=args, callback=my_print)

occurrence, out_last, all_tokens = {}, 0, []
out, state = model.forward(pipeline.encode(ctx), None)
for i in range(20):
    for n in occurrence:
        out[n] -= 0.2 + occurrence[n] * 0.2
    token = pipeline.sample_logits(out, temperature=1.0, top_p=0.5)
    all_tokens += [token]
    occurrence[token] = 1 + occurrence.get(token, 0)
    out, state = model.forward([token], state)
print(pipeline.decode(all_tokens))
import importlib.util
import rwkv
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
assert isinstance(pipeline.tokenizer, TRIE_TOKENIZER)
assert all(importlib.util.find_spec(name) for name in ("rwkv", "rwkv.model", "rwkv.utils"))
assert rwkv.model.RWKV is RWKV and "torch" not in sys.modules
rwkv_engine.compat.uninstall()
assert not [name for name in sys.modules if name.split(".")[0] == "rwkv"]
"""


def test_scripts_for_the_package_run_unchanged():
    data = DEMO_WORDS.parent
    assert "def main(" in python(SCRIPT, data / "demo-rwkv7-1.2M", DEMO_WORDS)


def test_install_after_the_package_was_imported_is_refused(tmp_path):
    (tmp_path / "rwkv.py").write_text("")
    python(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import rwkv, rwkv_engine\nfrom rwkv_engine import compat\n"
        "try: compat.install()\n"
        "except rwkv_engine.Error as error: assert 'rwkv.py' in str(error) and 'before' in str(error)\n"
        "else: raise SystemExit('not refused')\n"
        "del sys.modules['rwkv']; compat.install()\nfrom rwkv.model import RWKV\n"
        "assert RWKV is compat.RWKV\n",
        tmp_path,
    )
