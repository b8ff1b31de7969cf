"""The `rwkv` package's state lists: to arrays and .pth files and back, without torch."""

import importlib.util
import os
import pathlib
import pickle
import stat
import subprocess
import sys
import zipfile

import checkpoint_files
import numpy as np
import pytest
from checkpoint_files import write_list
from compat_models import VERSIONS, begun, of_version
from helpers import TINY, bits, child_environment, engine, relative, rwkv

from rwkv_engine.compat import RWKV


def same(a, b):
    return [bits(x) for x in a] == [bits(x) for x in b]


@pytest.fixture(scope="module", params=VERSIONS)
def each(request):
    return begun(request.param)


def test_the_list_is_the_compatibility_layers(each):
    e, state = each
    _, listed = RWKV(str(of_version(e.config.version).path()), "cpu fp32").forward([1, 2, 3, 4], None)
    assert same(state.to_rwkv(), [item.numpy() for item in listed])
    for source in (state.to_rwkv(), tuple(state.to_rwkv()), listed):
        again = e.state_from_rwkv(source)
        assert bits(e.forward([5, 6], again)) == bits(e.forward([5, 6], state.fork()))
        assert again.tokens_seen == 2


def test_files_go_on_with_the_same_bits(each, tmp_path):
    e, state = each
    state.save_rwkv(tmp_path / "a.pth")
    again = e.state_from_rwkv(tmp_path / "a.pth")
    assert (again.tokens_seen, again.last_token, again.last_logits) == (0, None, None)
    assert same(again.to_rwkv(), state.to_rwkv())
    assert bits(e.forward([5, 6], e.state_from_rwkv(str(tmp_path / "a.pth")))) == bits(e.forward([5, 6], state.fork()))
    assert stat.S_IMODE(os.stat(tmp_path / "a.pth").st_mode) == 0o600
    state.save(tmp_path / "a.state")
    file = rwkv.read_state(tmp_path / "a.state")
    file.save_rwkv(tmp_path / "b.pth")
    assert same(file.to_rwkv(), state.to_rwkv()) and (tmp_path / "b.pth").read_bytes() == (tmp_path / "a.pth").read_bytes()


def test_the_file_is_laid_out_as_torch_lays_it_out(each, tmp_path):
    """By zipfile and pickle alone: stored entries at multiples of 64 bytes, and a pickle that names nothing else."""
    e, state = each
    state.save_rwkv(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        whole = (tmp_path / "a.pth").read_bytes()
        for entry in archive.infolist():
            name, extra = (int.from_bytes(whole[entry.header_offset + at :][:2], "little") for at in (26, 28))
            assert entry.compress_type == zipfile.ZIP_STORED and (entry.header_offset + 30 + name + extra) % 64 == 0
    assert content["archive/byteorder"] == b"little" and content["archive/version"] == b"3\n"

    named = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            named.append(f"{module}.{name}")
            if name == "_rebuild_tensor_v2":
                return lambda storage, offset, shape, stride, grad, hooks: (storage, offset, shape, stride, grad, hooks)
            return dict if name == "OrderedDict" else name

        def persistent_load(self, id):
            return id

    import io

    found = Unpickler(io.BytesIO(content["archive/data.pkl"])).load()
    assert set(named) == {"torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"}
    items = state.to_rwkv()
    assert type(found) is list and len(found) == len(items)
    for i, (storage, offset, shape, stride, grad, hooks) in enumerate(found):
        assert storage == ("storage", "FloatStorage", str(i), "cpu", items[i].size)
        assert (offset, shape, grad, hooks) == (0, items[i].shape, False, {})
        assert stride == tuple(s // 4 for s in items[i].strides)
        assert content[f"archive/data/{i}"] == items[i].tobytes()


# ---- what torch.save may write ----


@pytest.fixture(scope="module")
def tiny():
    e = engine(threads=1, **TINY)
    state = e.new_state()
    e.forward([1, 2, 3], state)
    return e, state.to_rwkv()


def test_lists_tuples_and_views_are_read(tiny, tmp_path):
    e, items = tiny
    for options in ({}, {"as_tuple": True}, {"views": True}):
        assert same(e.state_from_rwkv(write_list(tmp_path / "a.pth", items, **options)).to_rwkv(), items)


def test_narrow_types_are_widened_exactly(tiny, tmp_path):
    e, items = tiny
    narrow = [item.astype(np.float16) for item in items]
    expected = [item.astype(np.float32) for item in narrow]
    assert same(e.state_from_rwkv(write_list(tmp_path / "a.pth", narrow, "f16")).to_rwkv(), expected)
    assert same(e.state_from_rwkv(narrow).to_rwkv(), expected)
    wide = [checkpoint_files.from_bf16(checkpoint_files.to_bf16(item)) for item in items]
    assert same(e.state_from_rwkv(write_list(tmp_path / "a.pth", items, "bf16")).to_rwkv(), wide)


def refusal(e, source, *words):
    with pytest.raises(rwkv.StateError) as error:
        e.state_from_rwkv(source)
    for word in words:
        assert word in str(error.value), error.value


def test_lists_that_do_not_fit_are_refused(tiny, tmp_path):
    e, items = tiny
    both = [lambda given: given, lambda given: write_list(tmp_path / "a.pth", given)]
    for of in both:
        refusal(e, of(items[:-1]), f"expected {len(items)} arrays (3 a layer), found {len(items) - 1}")
        refusal(e, of([*items, items[0]]), f"found {len(items) + 1}")
        refusal(e, of([items[1], *items[1:]]), "state[0]: expected shape", "att.shift of layer 0")
        refusal(e, of([items[0], items[1][:, 1:], *items[2:]]), "state[1]: expected shape")
        for bad in (np.nan, np.inf):
            damaged = [item.copy() for item in items]
            damaged[1].flat[-1] = bad
            refusal(e, of(damaged), "att.wkv: expected finite")
    for dtype, name in (("f64", "float64"), ("i32", "i32"), ("i64", "i64")):
        path = write_list(tmp_path / "a.pth", [np.round(item).astype(checkpoint_files._DTYPES[dtype][2]) for item in items], dtype)
        refusal(e, path, "state[0]: expected float32, float16, bfloat16, found", name, str(path))
    refusal(e, [item.astype(np.float64) for item in items], "state[0]: expected float32, float16, bfloat16, found float64")
    refusal(e, [items[0].tolist(), *items[1:]], "found list")
    refusal(e, write_list(tmp_path / "a.pth", items, extra=[None]), "nothing but tensors")
    refusal(e, write_list(tmp_path / "a.pth", items, extra=["text"], as_tuple=True), "nothing but tensors")
    refusal(e, write_list(tmp_path / "a.pth", []), "found no tensor")
    for source in (3, None):
        with pytest.raises(TypeError):
            e.state_from_rwkv(source)


def test_models_and_lists_are_not_each_other(tiny, tmp_path):
    e, items = tiny
    checkpoint_files.write_pth(tmp_path / "model.pth", {"emb.weight": items[1]})
    refusal(e, tmp_path / "model.pth", "expected a list of tensors")
    with pytest.raises(rwkv.StateError, match="found a zip archive: state_from_rwkv"):
        e.load_state(write_list(tmp_path / "list.pth", items))
    with pytest.raises(rwkv.ModelFormatError, match="expected a dict of tensors"):
        rwkv.Engine(write_list(tmp_path / "list.pth", items))
    refusal(e, write_list(tmp_path / "a.pth", items * 400), "at most 512 tensors")


def test_states_of_another_model_are_refused(each, tmp_path):
    e, state = each
    other = engine(threads=1, **TINY)
    state.save_rwkv(tmp_path / "a.pth")
    refusal(other, tmp_path / "a.pth", "expected", "found", "a.pth")
    refusal(other, state.to_rwkv(), "expected", "found")


def test_damage_is_refused_or_read_and_nothing_else(tiny, tmp_path):
    """A .pth has no digest that anybody checks: bytes of numbers may change, and no byte may crash or hang."""
    e, items = tiny
    for name, path in {"ours": None, "torch's": write_list(tmp_path / "b.pth", items, views=True)}.items():
        if path is None:
            path = tmp_path / "a.pth"
            e.state_from_rwkv(items).save_rwkv(path)
        whole, refused = path.read_bytes(), 0
        place = tmp_path / "damaged.pth"
        for at in range(0, len(whole)):
            place.write_bytes(whole[:at] + bytes([whole[at] ^ (0x01, 0x80, 0xFF)[at % 3]]) + whole[at + 1 :])
            try:
                found = e.state_from_rwkv(place).to_rwkv()
            except rwkv.StateError:
                refused += 1
            else:
                assert [x.shape for x in found] == [x.shape for x in items] and all(np.isfinite(x).all() for x in found)
        assert refused > 400, name
        for at in range(0, len(whole), 3):
            place.write_bytes(whole[:at])
            refusal(e, place)


def test_other_files_are_refused(tiny, tmp_path):
    e, items = tiny
    for content in (b"", b"PK", pickle.dumps(items), b"x" * 1000):
        (tmp_path / "a.pth").write_bytes(content)
        refusal(e, tmp_path / "a.pth", "a.pth")
    for place in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(rwkv.Error):
            e.state_from_rwkv(place)
    evil = checkpoint_files.pickled([checkpoint_files.Call(checkpoint_files.Global("os", "getcwd"))])
    checkpoint_files.write_zip(tmp_path / "a.pth", checkpoint_files.pth_entries(evil, []))
    refusal(e, tmp_path / "a.pth", "os.getcwd, which is not allowed")


# ---- against the package itself ----


def oracle():
    """An interpreter with torch and the package: this one, or RWKV_PYTHON."""
    if importlib.util.find_spec("torch") and importlib.util.find_spec("rwkv"):
        return sys.executable
    return os.environ.get("RWKV_PYTHON")


ORACLE = """
import os, sys
import numpy as np
os.environ.update(RWKV_V7_ON=sys.argv[5], RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
import torch
from rwkv.model import RWKV
path, ours, theirs, result = sys.argv[1:5]
model = RWKV(path.removesuffix(".pth"), "cpu fp32")
first, second = list(range(1, 40)), [5, 9, 2, 60, 7]
logits, state = model.forward(first, None)
torch.save(state, theirs)
rows = []
for token in second:
    logits, state = model.forward([token], state)
    rows.append(logits.numpy())
given = torch.load(ours, weights_only=True)
assert type(given) is list and all(x.dtype == torch.float32 for x in given)
for token in second:
    logits, given = model.forward([token], given)
    rows.append(logits.numpy())
np.save(result, np.stack(rows))
"""


@pytest.mark.oracle
@pytest.mark.skipif(not oracle(), reason="torch or rwkv is not installed")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_text_goes_on_in_the_other_program(version, tmp_path):
    """A state that the package's forward made and torch.save wrote goes on here, and ours goes on there."""
    path = of_version(version).path()
    e = rwkv.Engine(path, "cpu fp32", threads=1)
    first, second = list(range(1, 40)), [5, 9, 2, 60, 7]
    state = e.new_state()
    e.forward(first, state)
    ours, theirs, result = tmp_path / "ours.pth", tmp_path / "theirs.pth", tmp_path / "rows.npy"
    state.save_rwkv(ours)
    subprocess.run(
        [oracle(), "-c", ORACLE, *map(str, (path, ours, theirs, result)), str(int(version == "7"))],
        check=True, timeout=600, stdout=subprocess.DEVNULL, env=child_environment(),
    )  # fmt: skip
    there, back = np.load(result).reshape(2, len(second), -1)
    here = e.forward(second, e.state_from_rwkv(pathlib.Path(theirs)), output="all")
    whole = e.forward(second, state, output="all")
    for found in (here, back, there):
        assert relative(found, whole) <= 1e-4 and (found.argmax(1) == whole.argmax(1)).all()
