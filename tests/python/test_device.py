"""Arrays that stay where they lie: DLPack and __cuda_array_interface__, out and in."""

import ctypes
import gc
import pathlib
import re

import numpy as np
import pytest
from helpers import OLDER, SMALL, TINY, bits, engine, model, relative

import rwkv_engine as rwkv

SHAPES = {**OLDER, "7": SMALL}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def simulated(cpp_build, monkeypatch):
    """Strategies "cuda ..." open the simulator, whose memory this process can look at."""
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(cpp_build / "librwkv_cusim.so"))
    monkeypatch.setenv("RWKV_CUSIM", "stream:late")


def looked_at(array):
    """The numbers of an array on a (simulated) GPU, as a library that takes its pointer sees them."""
    interface = array.__cuda_array_interface__
    assert interface["typestr"] == "<f4" and interface["version"] == 3 and interface["stream"] is None
    pointer, read_only = interface["data"]
    assert read_only
    shape, strides = interface["shape"], interface["strides"]
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) // 4 + 1
    flat = np.ctypeslib.as_array((ctypes.c_float * span).from_address(pointer))
    return np.lib.stride_tricks.as_strided(flat, shape, strides).copy()


def test_parts_are_seen_without_a_copy(shape):
    m, e = model(**shape), engine(**shape)
    state = e.new_state()
    e.forward(m.tokens(9), state)
    expected, views = state.to_numpy(), state.views()
    seen = {name: np.from_dlpack(view) for name, view in views.items()}
    assert list(seen) == list(expected)
    for name, part in expected.items():
        assert bits(seen[name].copy()) == bits(part), name
        assert views[name].__dlpack_device__() == (1, 0) and not hasattr(views[name], "__cuda_array_interface__")
        assert not seen[name].flags.writeable
    # Two looks are at the same memory, which stays when the state moves on and when nobody has it any more.
    again = np.from_dlpack(state.views()[name])
    assert again.ctypes.data == seen[name].ctypes.data
    e.forward(m.tokens(5), state)
    assert bits(seen[name].copy()) == bits(expected[name])
    del e, state, views, again
    gc.collect()
    for name, part in expected.items():
        assert bits(seen[name].copy()) == bits(part), name


@pytest.mark.parametrize("output", ["last", "all", "hidden"])
def test_rows_stay_on_the_cpu(output):
    m, e = model(**SMALL), engine(**SMALL)
    tokens = m.tokens(60)
    state, other = e.new_state(), e.new_state()
    expected = e.forward(tokens, other, output=output)
    rows = e.forward(tokens, state, output=output, device=True)
    found = np.from_dlpack(rows)
    assert rows.shape == found.shape == ((1, *expected.shape) if output == "last" else expected.shape)
    assert bits(found.reshape(expected.shape).copy()) == bits(expected)
    assert state.equals(other)
    # Each has memory of its own while somebody looks at it.
    more = e.forward(tokens[:30], e.new_state(), output=output, device=True)
    assert bits(found.reshape(expected.shape).copy()) == bits(expected)
    del found, more
    with pytest.raises(rwkv.Error, match="expected rows for device=True"):
        e.forward([1], e.new_state(), output="none", device=True)


def test_a_simulated_gpu_shows_its_numbers(simulated, shape):
    m, e = model(**shape), engine("cuda fp32", **shape)
    tokens, state, other = m.tokens(6), e.new_state(), e.new_state()
    expected = e.forward(tokens, other, output="all")
    rows = e.forward(tokens, state, output="all", device=True)
    assert rows.__dlpack_device__() == (2, 0) and repr(rows) == f"<DeviceArray {expected.shape} on cuda:0>"
    assert bits(looked_at(rows)) == bits(expected)
    for name, part in state.to_numpy().items():
        assert bits(looked_at(state.views()[name])) == bits(part), name
    # As another library would have them on the device, with strides from layer to layer.
    copy = e.state_from_dlpack(state.views())
    assert {k: bits(v) for k, v in copy.to_numpy().items()} == {k: bits(v) for k, v in state.to_numpy().items()}
    class Other:
        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __dlpack__(self, **_):
            return self.array.__dlpack__()

    parts = {name: Other(view) for name, view in state.views().items()}
    assert {k: bits(v) for k, v in e.state_from_dlpack(parts).to_numpy().items()} == {
        k: bits(v) for k, v in state.to_numpy().items()
    }
    names = list(parts)
    with pytest.raises(rwkv.StateError, match=f"state: {names[0]}: expected .*, found "):
        e.state_from_dlpack({**parts, names[0]: rows})
    with pytest.raises(rwkv.StateError, match="expected the parts of this model, found"):
        e.state_from_dlpack({**parts, "more": rows})
    with pytest.raises(rwkv.DeviceError, match=r"expected arrays on a device of cpu .*, found device 0 of kind 2"):
        engine(**shape).state_from_dlpack(state.views())


def test_states_of_arrays_of_other_libraries():
    m, e = model(**SMALL), engine(**SMALL)
    state = e.new_state()
    e.forward(m.tokens(9), state)
    copy = e.state_from_dlpack(state.views())
    assert {k: bits(v) for k, v in copy.to_numpy().items()} == {k: bits(v) for k, v in state.to_numpy().items()}
    wrong = {**state.to_numpy()}
    wrong["att.shift"] = wrong["att.shift"].astype(np.float64)
    with pytest.raises(rwkv.StateError, match=r"att.shift: expected float32, found float64"):
        e.state_from_dlpack(wrong)


def test_layers_on_several_devices_are_not_one_array():
    e = engine("cpu fp32 *1 -> cpu bf16", **SMALL)
    with pytest.raises(rwkv.DeviceError, match=r"expected all layers in one stage of the strategy, found 2 on .* to_numpy\(\) brings them together"):
        e.new_state().views()


def test_capsules_are_taken_over_or_freed():
    e = engine(**TINY)
    rows = e.forward([1, 2], e.new_state(), output="all", device=True)
    for version in (None, (1, 0)):
        capsule = rows.__dlpack__(max_version=version)
        assert ("dltensor_versioned" if version else "dltensor") in repr(capsule)
        del capsule
    gc.collect()
    assert np.from_dlpack(rows).shape == rows.shape == (2, 12)
    with pytest.raises(BufferError, match="copy"):
        rows.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="dl_device"):
        rows.__dlpack__(dl_device=(2, 0))
    with pytest.raises(TypeError, match="made by"):
        rwkv.DeviceArray(None)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_of_results_does_not_pile_up():
    """Of results that get longer and longer only the last is kept for the next."""

    def resident():
        return int(re.search(r"VmRSS:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1e3

    e = engine(**{**TINY, "V": 4000})
    e.forward([1] * 1000, e.new_state())
    before = resident()
    for length in range(100, 1000, 30):
        e.forward([1] * length, e.new_state(), output="all", device=True)
    assert resident() - before < 80  # the largest has 16 MB, all together 264


def test_memory_of_results_is_used_again():
    e = engine(**TINY)
    places = set()
    for i in range(20):
        rows = e.forward([i % 12], e.new_state(), output="all", device=True)
        places.add(np.from_dlpack(rows).ctypes.data)
        del rows
    assert len(places) == 1


@pytest.mark.oracle
def test_torch_takes_them():
    torch = pytest.importorskip("torch")
    e = engine(**SMALL)
    state = e.new_state()
    rows = e.forward(model(**SMALL).tokens(5), state, output="all", device=True)
    assert relative(torch.from_dlpack(rows).numpy(), np.from_dlpack(rows)) == 0
    for name, view in state.views().items():
        assert bits(torch.from_dlpack(view).numpy().copy()) == bits(state.to_numpy()[name])
