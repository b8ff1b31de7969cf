"""Several threads on one engine, several engines, and os.fork()."""

import os
import threading
import time

import pytest
from helpers import SMALL, TINY, bits, engine, model, python, rwkv, snapshot


@pytest.fixture(scope="module")
def e():
    return engine(**SMALL)


@pytest.fixture(scope="module")
def m():
    return model(**SMALL)


def test_one_handle_in_two_threads_is_an_error(e, m):
    """The callback holds the first call in its middle until the second has been tried."""
    state = e.new_state()
    before = state.to_bytes()
    tokens = m.tokens(20_000)
    in_the_middle, tried = threading.Event(), threading.Event()

    def hold(done, total):
        if not in_the_middle.is_set():
            in_the_middle.set()
            tried.wait(20)

    results = []
    long_call = threading.Thread(
        target=lambda: results.append(e.forward(tokens, state, progress=hold))
    )
    long_call.start()
    try:
        assert in_the_middle.wait(20)
        for use in (
            lambda: e.forward([1], state),
            lambda: e.forward_batch([[1], [1]], [e.new_state(), state]),
            state.fork,
            state.to_bytes,
            state.to_numpy,
        ):
            start = time.monotonic()
            with pytest.raises(rwkv.ConcurrentUseError):
                use()
            assert time.monotonic() - start < 5, "refused at once, not after the other call"
    finally:
        tried.set()
        long_call.join()
    fresh = e.state_from_bytes(before)
    assert bits(results[0]) == bits(e.forward(tokens, fresh)) and fresh.equals(state)


def affinities():
    """The cores that each thread of this process may use, by thread."""
    return {thread: os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
def test_threads_stay_on_cores_of_their_own_when_asked(m):
    path, cores, before = m.path(), os.sched_getaffinity(0), affinities()
    for threads in range(1, len(cores) + 1):
        plain, pinned = (rwkv.Engine(path, "cpu fp32", threads=threads, pin=pin) for pin in (False, True))
        found = [affinity for thread, affinity in affinities().items() if thread not in before]
        alone = [affinity for affinity in found if len(affinity) == 1]
        if len(cores) > 1:
            assert len(found) == 2 * (threads - 1) and found.count(cores) == threads - 1
            assert len(alone) == len(set().union(*alone)) == threads - 1 and set().union(*alone) <= cores
        assert affinities()[str(threading.get_native_id())] == cores, "the caller's thread is the caller's"
        assert snapshot(pinned, m.tokens(30), [1] * 10 + [20]) == snapshot(plain, m.tokens(30))
        del plain, pinned
    with pytest.raises(rwkv.DeviceError, match=f"may use, {len(cores)}, found {len(cores) + 1}"):
        rwkv.Engine(path, "cpu fp32", threads=len(cores) + 1, pin=True)
    assert affinities() == before, "no thread is left"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_pinned_threads_stay_on_the_cores_of_the_process(m):
    code = """
import os, sys
import rwkv_engine as rwkv
core = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
rwkv.Engine(sys.argv[1], "cpu fp32", pin=True)
try:
    rwkv.Engine(sys.argv[1], "cpu fp32", threads=2, pin=True)
except rwkv.DeviceError as error:
    print(error)
for pin in (1, "yes", None):
    try:
        rwkv.Engine(sys.argv[1], "cpu fp32", pin=pin)
    except TypeError as error:
        print(error)
"""
    said = python(code, m.path()).splitlines()
    assert said[0].startswith("pin: expected no more threads than cores") and said[0].endswith("1, found 2") and len(said) == 4
    assert all(line.startswith("pin: expected a bool") for line in said[1:])


def test_the_interpreter_runs_while_the_engine_computes(e, m):
    tokens, done = m.tokens(60_000), threading.Event()

    def compute():
        e.forward(tokens, e.new_state(), output="none")
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    turns = 0
    while not done.is_set():
        turns += 1
        time.sleep(0.001)
    thread.join()
    assert turns > 10


def test_many_threads_on_one_engine_give_the_bits_of_one(e, m):
    rows = [m.tokens(200, seed=i) for i in range(6)]
    alone = [snapshot(e, row, [50] * 4) for row in rows]
    found = [None] * len(rows)

    def run(i):
        for _ in range(3):
            found[i] = snapshot(e, rows[i], [50] * 4)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_two_engines_at_once(m):
    engines = [engine(strategy, **SMALL) for strategy in ("cpu fp32", "cpu bf16")]
    tokens = m.tokens(400)
    alone, found = [snapshot(x, tokens) for x in engines], {}
    threads = [
        threading.Thread(target=lambda x=x: found.__setitem__(x, snapshot(x, tokens, [100] * 4)))
        for x in engines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[x] for x in engines] == alone


AFTER_FORK = """
import os, signal, sys, time
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
state = engine.new_state()
engine.forward([1, 2, 3], state)
before = state.to_bytes()
child = os.fork()
if child == 0:
    signal.alarm(10)  # a child that hangs ends by this signal, whatever it waits for
    status = 1
    start = time.monotonic()
    uses = lambda: engine.forward([1], state), engine.new_state, lambda: engine.forward_batch([[1]], [state])
    for use in uses:
        try:
            use()
        except rwkv.DeviceError as error:
            status = 0 if "fork" in str(error) and time.monotonic() - start < 1 else 2
        except BaseException:
            status = 3
        else:
            status = 4
        if status:
            break
    if status == 0:
        fresh = rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
        again = fresh.new_state()
        fresh.forward([1, 2, 3], again)
        status = 0 if again.to_bytes() == before else 5
    os._exit(status)
start = time.monotonic()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), time.monotonic() - start < 5)
engine.forward([4], state)
print(state.tokens_seen)
"""

LEAVE_AFTER_FORK = """
import os, signal, sys
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
state = engine.new_state()
engine.forward([1, 2, 3], state)
child = os.fork()
if child == 0:
    signal.alarm(10)
else:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork() here")
def test_an_engine_is_refused_after_fork():
    assert python(
        AFTER_FORK, model(**TINY).path(), timeout=30, PYTHONWARNINGS="ignore"
    ).split() == ["0", "True", "4"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork() here")
def test_a_forked_child_ends_in_the_ordinary_way():
    """Destructors run in the child too, where the threads they would join do not exist."""
    assert python(
        LEAVE_AFTER_FORK, model(**TINY).path(), timeout=30, PYTHONWARNINGS="ignore"
    ).split() == ["0"]
