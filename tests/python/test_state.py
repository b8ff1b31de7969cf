"""A state is the whole context of a sequence: forks, copies, and the portable form."""

import gc
import hashlib

import numpy as np
import pytest
from helpers import (
    SMALL,
    TINY,
    bits,
    engine,
    file_of_state,
    model,
    relative,
    rwkv,
    sign_state,
    snapshot,
)


@pytest.fixture(scope="module")
def e():
    return engine(**SMALL)


@pytest.fixture(scope="module")
def m():
    return model(**SMALL)


@pytest.fixture
def state(e, m):
    state = e.new_state()
    e.forward(m.tokens(9), state)
    return state


# ---- handles ----


def test_a_new_state_has_seen_nothing(e):
    state = e.new_state()
    assert state.tokens_seen == 0 and state.last_logits is None and state.nbytes > 0
    assert state.equals(e.new_state()) and state.equals(state)
    assert all(not part.any() for part in state.to_numpy().values())


def test_tokens_seen_and_last_logits(e, m):
    state = e.new_state()
    logits = e.forward(m.tokens(5), state)
    assert state.tokens_seen == 5 and bits(state.last_logits) == bits(logits)
    every = e.forward(m.tokens(3), state, output="all")
    assert state.tokens_seen == 8 and bits(state.last_logits) == bits(every[-1])
    e.forward(m.tokens(2), state, output="none")
    assert state.tokens_seen == 10 and state.last_logits is None
    logits = e.forward_batch([m.tokens(2), m.tokens(1)], [state, e.new_state()])
    assert state.tokens_seen == 12 and bits(state.last_logits) == bits(logits[0])


def test_a_fork_is_independent(e, m, state):
    before = state.to_bytes()
    branch = state.fork()
    assert (
        branch.to_bytes() == before
        and branch.equals(state)
        and branch.tokens_seen == state.tokens_seen
    )
    e.forward(m.tokens(4, seed=1), branch)
    assert state.to_bytes() == before and not branch.equals(state)
    kept = branch.to_bytes()
    e.forward(m.tokens(4, seed=2), state)
    assert branch.to_bytes() == kept


def test_many_forks(e, m, state):
    branches = state.fork(16)
    assert len(branches) == 16 and all(b.equals(state) for b in branches)
    found = e.forward_batch([[t % m.V] for t in range(16)], branches)
    for t, branch in enumerate(branches):
        alone = state.fork()
        assert bits(e.forward([t % m.V], alone)) == bits(found[t]) and alone.equals(branch)
    assert state.fork(0) == []
    with pytest.raises((rwkv.Error, ValueError, OverflowError)):
        state.fork(-1)


def test_a_fork_outlives_its_origin(e, m, state):
    before = state.to_bytes()
    branch = state.fork().fork()
    del state
    gc.collect()
    others = [e.new_state() for _ in range(4)]
    e.forward_batch([m.tokens(3)] * 4, others)
    assert branch.to_bytes() == before


def test_states_outlive_the_engine():
    e = engine(**TINY)
    state = e.new_state()
    e.forward([1, 2, 3], state)
    before, numbers = state.to_bytes(), state.to_numpy()
    branch = state.fork()
    del e
    gc.collect()
    assert state.to_bytes() == before and branch.equals(state)
    del state, branch
    gc.collect()
    assert np.isfinite(numbers["att.wkv"]).all()


def test_equals_sees_every_difference(e, m, state):
    assert not state.equals(e.new_state())
    unlogged = e.new_state()
    e.forward(m.tokens(9), unlogged, output="none")
    assert not unlogged.equals(state)
    parts = state.to_numpy()
    again = e.state_from_numpy(parts)
    for name in parts:
        changed = {key: value.copy() for key, value in parts.items()}
        changed[name].flat[-1] = np.nextafter(changed[name].flat[-1], np.float32(9))
        assert not e.state_from_numpy(changed).equals(again), name


def test_states_belong_to_their_engine(e, m, state):
    other = engine(**SMALL)
    before = state.to_bytes()
    with pytest.raises(rwkv.Error, match="engine"):
        other.forward(m.tokens(1), state)
    with pytest.raises(rwkv.Error, match="engine"):
        other.forward_batch([m.tokens(1), m.tokens(1)], [other.new_state(), state])
    assert state.to_bytes() == before
    assert other.state_from_bytes(before).to_bytes() == before


# ---- the portable form ----


def test_round_trips_keep_every_bit(e, m, state, tmp_path):
    blob = state.to_bytes()
    assert e.state_from_bytes(blob).to_bytes() == blob
    assert e.state_from_bytes(bytearray(blob)).equals(state) and e.state_from_bytes(
        memoryview(blob)
    ).equals(state)
    state.save(tmp_path / "a.state")
    assert (tmp_path / "a.state").read_bytes() == blob
    assert e.load_state(tmp_path / "a.state").equals(state)
    state.save(str(tmp_path / "b.state"))
    assert e.load_state(str(tmp_path / "b.state")).equals(state)
    rest = m.tokens(6, seed=5)
    assert snapshot(e, rest, state=e.state_from_bytes(blob)) == snapshot(e, rest, state=state)


def test_numpy_round_trip(e, m, state):
    parts = state.to_numpy()
    again = e.state_from_numpy(parts)
    assert {k: bits(v) for k, v in again.to_numpy().items()} == {
        k: bits(v) for k, v in parts.items()
    }
    rest = m.tokens(6, seed=5)
    assert bits(e.forward(rest, again)) == bits(e.forward(rest, state.fork()))
    parts["att.wkv"][:] = 0
    assert state.to_numpy()["att.wkv"].any(), "to_numpy must copy"
    strided = {k: np.asfortranarray(v) for k, v in state.to_numpy().items()}
    assert bits(e.forward(rest, e.state_from_numpy(strided))) == bits(e.forward(rest, state))


def test_numpy_parts_are_the_definitions(e, m, state):
    _, exact = m.reference(m.tokens(9))
    parts = state.to_numpy()
    assert parts["att.wkv"].shape == (2, 4, 16, 16) == exact.wkv.shape
    assert relative(parts["att.wkv"], exact.wkv) <= 1e-5
    assert relative(parts["att.wkv"], exact.wkv.swapaxes(2, 3)) > 1e-2, (
        "[value, key], not [key, value]"
    )
    assert relative(parts["att.shift"], exact.att_shift) <= 1e-5
    assert relative(parts["ffn.shift"], exact.ffn_shift) <= 1e-5
    assert len(parts) == 3


@pytest.mark.parametrize(
    "damage", ["missing", "surplus", "shape", "dtype", "nan", "inf", "not arrays"]
)
def test_wrong_arrays_are_refused(e, state, damage):
    parts = state.to_numpy()
    if damage == "missing":
        del parts["att.wkv"]
    elif damage == "surplus":
        parts["kv_cache"] = np.zeros(3, np.float32)
    elif damage == "shape":
        parts["att.wkv"] = parts["att.wkv"][:, :, :, 1:]
    elif damage == "dtype":
        parts["att.wkv"] = parts["att.wkv"].astype(np.complex64)
    elif damage == "not arrays":
        parts["att.wkv"] = "hello"
    else:
        parts["att.wkv"][-1, -1, -1, -1] = float(damage)
    with pytest.raises((rwkv.StateError, TypeError)):
        e.state_from_numpy(parts)


def test_the_file_is_safetensors_with_the_digest_first(state, e, m):
    blob = state.to_bytes()
    metadata, header, data = file_of_state(blob)
    key, digest = next(iter(metadata.items()))
    assert "digest" in key and len(digest) == 64
    assert blob.index(digest.encode()) < 200
    at = blob.index(digest.encode())
    assert hashlib.sha256(blob[:at] + b"0" * 64 + blob[at + 64 :]).hexdigest() == digest
    assert sign_state(blob) == blob
    assert all(isinstance(v, str) for v in metadata.values())
    assert e.fingerprint in metadata.values() and str(state.tokens_seen) in metadata.values()
    end = 0
    for entry in header.values():
        begin, stop = entry["data_offsets"]
        assert (
            begin == end
            and stop - begin == 4 * int(np.prod(entry["shape"]))
            and entry["dtype"] == "F32"
        )
        end = stop
    assert end == len(data)
    parts = state.to_numpy()
    for name, part in parts.items():
        begin, stop = header[name]["data_offsets"]
        assert (tuple(header[name]["shape"]), data[begin:stop]) == bits(part)


def test_the_form_does_not_depend_on_the_strategy():
    a, b = engine("cpu fp32", **SMALL), engine("cpu bf16", **SMALL)
    state = a.new_state()
    a.forward([1, 2, 3], state)
    blob = state.to_bytes()
    assert b.state_from_bytes(blob).to_bytes() == blob
