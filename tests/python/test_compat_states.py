"""The `rwkv` package's list of state tensors, for every version."""

import copy
import pickle

import numpy as np
import pytest
from compat_models import VERSIONS, of_version
from helpers import SMALL, bits, model, rwkv

from rwkv_engine import compat
from rwkv_engine.compat import RWKV


@pytest.fixture(scope="module")
def m():
    return RWKV(str(model(**SMALL).path()), "cpu fp32")


@pytest.fixture(scope="module", params=VERSIONS)
def each(request):
    """A model of every version: three layers, C = 64, four heads of 16."""
    return RWKV(str(of_version(request.param).path()), "cpu fp32")


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
        w = {name: t.squeeze() for name, t in of_version(version).exact.items()}

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
        _, state = RWKV(str(of_version(version).path()), "cpu fp32").forward([9], None)
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
