"""A call either happens whole or not at all: wrong arguments, exceptions, Ctrl-C, threads and os.fork()."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import SMALL, child_environment, engine, model, python, rwkv, snapshot

REFUSED = (rwkv.Error, ValueError, TypeError, OverflowError, IndexError)


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


# ---- arguments ----


@pytest.mark.parametrize(
    "tokens",
    [
        [-1],
        [40],
        [2**31],
        [2**32],
        [2**32 + 1],
        [2**63],
        [-(2**63)],
        [2**64],
        [2**100],
        [1, 2, 40],
        [],
    ],
    ids=str,
)
def test_tokens_outside_the_vocabulary_are_refused(e, state, tokens):
    before = state.to_bytes()
    with pytest.raises(REFUSED) as error:
        e.forward(tokens, state)
    if tokens and abs(tokens[-1]) < 2**31:
        assert str(tokens[-1]) in str(error.value), "the message names the token"
    with pytest.raises(REFUSED):
        e.forward_batch([[1], tokens], [e.new_state(), state])
    if tokens:
        with pytest.raises(REFUSED):
            e.forward(np.array(tokens), state)
    assert state.to_bytes() == before and state.tokens_seen == 9


@pytest.mark.parametrize(
    "tokens",
    [
        [1.5],
        [1.0],
        ["1"],
        "abc",
        None,
        3,
        [None],
        [[1, 2], [3, 4]],
        {1: 2},
        np.array([1.0]),
        np.array([[1, 2]]),
        np.array(["a"]),
        pytest.param(object(), id="object()"),  # ids are the same in every process
    ],
    ids=repr,
)
def test_things_that_are_not_tokens_are_refused(e, state, tokens):
    before = state.to_bytes()
    with pytest.raises(REFUSED):
        e.forward(tokens, state)
    assert state.to_bytes() == before


def test_batches_that_do_not_fit_are_refused(e, state):
    before = state.to_bytes()
    for rows, states in (
        ([[1]], [state, e.new_state()]),
        ([[1], [2]], [state]),
        ([[1], [2]], [state, state]),
        ([[1], [2], [3]], [state, e.new_state(), state]),
        ([[1], []], [state, e.new_state()]),
        ([[1], [2]], [state, None]),
        ([[1], [2]], [state, "state"]),
    ):
        with pytest.raises(REFUSED):
            e.forward_batch(rows, states)
    with pytest.raises(REFUSED):
        e.forward([1], None)
    assert state.to_bytes() == before and state.tokens_seen == 9
    e.forward([1], state)


def test_an_empty_batch_is_empty_or_refused(e):
    try:
        assert e.forward_batch([], []).shape == (0, 40)
    except REFUSED:
        pass


@pytest.mark.parametrize(
    "strategy, word",
    [
        ("cpu fp99", "fp99"),
        ("gpu fp32", "gpu"),
        ("cpu", "cpu"),
        ("", ""),
        ("fp32", "fp32"),
        ("cpu fp32 fp32", "fp32"),
        ("cpu fp32 *0", "*0"),
        ("cpu fp32 *-1", "*-1"),
        ("cpu fp32 *x", "*x"),
        ("cpu fp32 *99999999999999999999", "*99999999999999999999"),
        ("cpu fp32 ->", ""),
        ("-> cpu fp32", ""),
        ("cpu fp32 -> cpu fp32", "->"),
        ("cpu fp32 *1 -> cpu fp32 *5", ""),
        ("cpu fp32 *3", ""),
        ("auto auto", "auto"),
        ("CPU fp32", "CPU"),
        ("cpu fp32\0", ""),
        ("cpu é", "é"),
        ("x" * 100_000, "x"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_strategies_name_the_word(strategy, word):
    with pytest.raises(rwkv.StrategyError) as error:
        rwkv.Engine(str(model(**SMALL).path()), strategy)
    assert word in str(error.value)


@pytest.mark.parametrize("strategy", [None, 3, b"cpu fp32", ["cpu", "fp32"]], ids=repr)
def test_strategies_of_another_type_are_refused(strategy):
    with pytest.raises(REFUSED):
        rwkv.Engine(str(model(**SMALL).path()), strategy)


@pytest.mark.parametrize("threads", [-1, 10**6, 2**40, "2", 1.5], ids=repr)
def test_bad_thread_counts_are_refused(threads):
    with pytest.raises(REFUSED):
        rwkv.Engine(str(model(**SMALL).path()), "cpu fp32", threads=threads)


def test_a_device_that_is_absent_is_named():
    try:
        rwkv.Engine(str(model(**SMALL).path()), "cuda:77 fp16")
    except (rwkv.DeviceError, rwkv.StrategyError) as error:
        assert "cuda" in str(error)
    else:
        pytest.fail("there is no GPU 77")


def test_the_errors_are_one_family():
    for kind in (
        rwkv.ModelFormatError,
        rwkv.StateError,
        rwkv.StrategyError,
        rwkv.DeviceError,
        rwkv.NonFiniteError,
        rwkv.ConcurrentUseError,
    ):
        assert issubclass(kind, rwkv.Error) and issubclass(kind, Exception)


# ---- all or nothing ----


class Stop(Exception):
    pass


def test_an_exception_in_a_callback_changes_nothing(e, m, state):
    before, calls = state.to_bytes(), []

    def progress(done, total):
        calls.append((done, total))
        raise Stop

    tokens = m.tokens(5000)
    with pytest.raises(Stop):
        e.forward(tokens, state, progress=progress)
    assert len(calls) == 1 and 0 <= calls[0][0] <= calls[0][1] == 5000
    assert state.to_bytes() == before and state.tokens_seen == 9
    assert snapshot(e, tokens, state=state.fork()) == snapshot(e, tokens, [1, 4999], state=state)


def test_an_exception_in_the_very_last_callback_changes_nothing(e, m, state):
    before = state.to_bytes()

    def progress(done, total):
        if done == total:
            raise Stop

    other = e.new_state()
    with pytest.raises(Stop):
        e.forward_batch([m.tokens(700), m.tokens(5)], [state, other], progress=progress)
    assert state.to_bytes() == before and other.tokens_seen == 0


CALL_WITHIN_A_CALL = """
import sys
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
outer, inner = engine.new_state(), engine.new_state()
def progress(done, total):
    try:
        engine.forward([1, 2], inner)
        print("ran")
    except rwkv.ConcurrentUseError:
        print("refused")
engine.forward([1] * 100, outer, progress=progress)
print(outer.tokens_seen)
"""


def test_a_callback_that_calls_the_engine_does_not_hang():
    said = python(CALL_WITHIN_A_CALL, model(**SMALL).path(), timeout=20).split()
    assert said in (["refused", "100"], ["ran", "100"])


def test_progress_counts_up_to_the_end(e, m):
    calls = []
    e.forward(
        m.tokens(3000), e.new_state(), progress=lambda done, total: calls.append((done, total))
    )
    done = [d for d, _ in calls]
    assert (
        len(calls) > 1
        and done == sorted(done)
        and done[-1] == 3000
        and {t for _, t in calls} == {3000}
    )


def test_loading_reports_progress_and_can_be_stopped():
    calls = []
    path = str(model(**SMALL).path())
    rwkv.Engine(path, "cpu fp32", progress=lambda done, total: calls.append((done, total)))
    assert calls and calls[-1][0] == calls[-1][1] and calls == sorted(calls)

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        rwkv.Engine(path, "cpu fp32", progress=stop)


INTERRUPTED = """
import sys, time
import numpy as np
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], sys.argv[2], threads=2)
state = engine.new_state()
engine.forward([1, 2, 3], state)
before = state.to_bytes()
tokens = np.random.default_rng(0).integers(0, 40, 4_000_000)
print("started", flush=True)
try:
    engine.forward(tokens, state, output="none")
except KeyboardInterrupt:
    print("interrupted", state.to_bytes() == before, flush=True)
else:
    print("finished")
engine.forward([1, 2, 3], state)
print("goes on", state.tokens_seen, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
def test_ctrl_c_stops_a_long_prefill_and_changes_nothing():
    arguments = [sys.executable, "-c", INTERRUPTED, str(model(**SMALL).path()), "cpu fp32"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as child:
        watchdog = threading.Timer(20, child.kill)
        watchdog.start()
        try:
            assert child.stdout.readline() == "started\n"
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            sent = time.monotonic()
            assert child.stdout.readline() == "interrupted True\n"
            assert time.monotonic() - sent < 1
            assert child.stdout.readline() == "goes on 6\n"
            assert child.wait(timeout=10) == 0
        finally:
            watchdog.cancel()
            child.kill()
