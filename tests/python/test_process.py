"""The engine in a process that is limited, forked or about to end."""

import os

import pytest
from helpers import TINY, model, python

LIMITED = """
import resource, sys
import rwkv_engine as rwkv
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    rwkv.Engine(sys.argv[1], threads=1024)
except rwkv.DeviceError as error:
    print("expected 1024, the system gave" in str(error))
"""

LEAVING = """
import sys, threading, time
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], threads=1)
threading.Thread(target=engine.forward, args=([1] * 3_000_000, engine.new_state()), daemon=True).start()
time.sleep(0.3)
"""

FORKED = """
import os, sys
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], threads=1)
state = engine.new_state()
engine.forward([1], state)
refused = 0
if os.fork() == 0:
    for call in (state.fork, state.to_bytes, state.to_numpy, lambda: state.last_logits, lambda: state.tokens_seen):
        try:
            call()
        except rwkv.DeviceError:
            refused += 1
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""

ONE_CORE = """
import os, sys
import rwkv_engine as rwkv
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(rwkv.Engine(sys.argv[1]).description.split(", ")[1])
"""


def test_threads_that_the_system_does_not_give_are_an_error():
    assert python(LIMITED, model(**TINY).path()).split() == ["True"]


def test_a_call_in_a_thread_does_not_keep_the_interpreter_or_take_it_down():
    assert python(LEAVING, model(**TINY).path(), timeout=20) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork() here")
def test_states_are_refused_after_fork():
    assert python(FORKED, model(**TINY).path(), PYTHONWARNINGS="ignore").split() == ["5"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_thread_for_each_core_that_may_be_used():
    assert python(ONE_CORE, model(**TINY).path()) == "1 thread\n"
