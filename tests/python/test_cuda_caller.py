"""Which context a thread has is its own business: of NVIDIA's driver, as cuda_seam_test.cpp is of one that notes calls."""

import os

import pytest
from conftest import gpu, why_no_gpu
from helpers import python


@pytest.mark.gpu
def test_a_thread_keeps_the_context_that_it_had(monkeypatch):
    """None in front of the first call of all, and one beside that of the device."""
    gpu(monkeypatch)
    if why_no_gpu():
        (pytest.fail if os.environ.get("RWKV_GPU_TESTS") else pytest.skip)(why_no_gpu())
    code = """
import ctypes
from helpers import *
cuda = ctypes.CDLL("libcuda.so.1")
def current():
    found = ctypes.c_void_p()
    assert cuda.cuCtxGetCurrent(ctypes.byref(found)) == 0
    return found.value
e = engine("cuda fp32", **TINY)
print(current())
states = [e.new_state() for _ in range(2)]
first = bits(e.forward([1], states[0]))
print(current())
own = ctypes.c_void_p()
assert cuda.cuCtxCreate_v2(ctypes.byref(own), 0, 0) == 0
print(bits(e.forward([1], states[1])) == first, current() == own.value)
del e, states
print(current() == own.value)
"""
    assert python(code).split() == ["None", "None", "True", "True", "True"]
