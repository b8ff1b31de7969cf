"""No file may crash the process, hang it, run code in it or make it allocate beyond reason: what is not a model is
refused with a message that says what was expected and what was found."""

import json
import struct
import zipfile

import numpy as np
import pytest
from checkpoint_files import (
    Global,
    Persistent,
    pickled,
    pickled_call,
    tensor,
    write_raw_safetensors,
    write_zip,
)
from helpers import TINY, random_model, refusal, save


def archive(path, data_pkl, storage=bytes(64)):
    """What torch.save writes, with any pickle and one storage of any bytes."""
    write_zip(path, {"data.pkl": data_pkl, "data/0": storage, "version": b"3\n"})
    return path


@pytest.fixture(scope="module")
def tiny():
    return random_model(**TINY)


# ---- pickles that are programs ----


@pytest.mark.parametrize(
    "module, attribute",
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("torch", "load"),
    ],
)
def test_a_pickle_never_runs(tmp_path, module, attribute):
    witness = tmp_path / "witness"
    evil = pickled_call(module, attribute, f"touch {witness}")
    refusal(archive(tmp_path / "a.pth", evil), f"{module}.{attribute}")
    (tmp_path / "bare.pth").write_bytes(evil)
    refusal(tmp_path / "bare.pth")
    assert not witness.exists()


PICKLES = {
    "empty": b"",
    "only a protocol": b"\x80\x02",
    "no stop": b"\x80\x02}",
    "stop on an empty stack": b"\x80\x02.",
    "a number": b"\x80\x02K\x05.",
    "a list": b"\x80\x02].",
    "protocol 99": b"\x80\x63}.",
    "underflow": b"\x80\x02RRRR.",
    "tuple without a mark": b"\x80\x02t.",
    "items without a mark": b"\x80\x02}u.",
    "odd number of items": b"\x80\x02}(K\x01u.",
    "keys that are numbers": b"\x80\x02}(K\x01K\x02u.",
    "memo never put": b"\x80\x02h\x05.",
    "memo of 2^32": b"\x80\x02}r\xff\xff\xff\xff.",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
    "text of 2^63": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc.",
    "frame of 2^64": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
    "number of 255 bytes": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "number of -1 bytes": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a global without an end": b"\x80\x02cos",
    "not utf-8": b"\x80\x02}(X\x02\x00\x00\x00\xff\xfeK\x01u.",
    "marks without end": b"\x80\x02" + b"(" * 3_000_000,
    "tuples in tuples": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "duplicates without end": b"\x80\x02]" + b"2" * 3_000_000 + b".",
    "a list inside itself": b"\x80\x02]q\x00h\x00a.",
    "doubling tuples": b"\x80\x02)" + b"2\x86" * 60 + b".",
    "persistent id of a number": b"\x80\x02K\x05Q.",
    "persistent id as text": b"\x80\x02Pstorage\n.",
    "rebuild of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "build": b"\x80\x02}}b.",
    "instance": b"\x80\x02(ios\nsystem\n.",
    "object": b"\x80\x02(cos\nsystem\no.",
    "newobj": b"\x80\x02cos\nsystem\n)\x81.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_that_are_no_state_dict(tmp_path, case):
    assert "RWKV model" not in refusal(archive(tmp_path / "a.pth", PICKLES[case])), (
        "found by the reader"
    )


# ---- numbers that lie ----

LIES = {
    "outside the storage": dict(shape=(4, 5), stride=(5, 1), numel=16),
    "offset outside": dict(shape=(4,), stride=(1,), numel=16, offset=13),
    "offset 2^63": dict(shape=(4,), stride=(1,), numel=16, offset=2**63),
    "negative offset": dict(shape=(4,), stride=(1,), numel=16, offset=-1),
    "storage outside its entry": dict(shape=(4, 4), stride=(4, 1), numel=17),
    "storage of 2^62": dict(shape=(4, 4), stride=(4, 1), numel=2**62),
    "storage of 2^63 - 1": dict(shape=(4, 4), stride=(4, 1), numel=2**63 - 1),
    "negative storage": dict(shape=(4, 4), stride=(4, 1), numel=-16),
    "product wraps to 0": dict(shape=(2**32, 2**32), stride=(1, 1), numel=16),
    "product wraps to 16": dict(shape=(2**32 + 1, 2**32 + 16), stride=(1, 1), numel=16),
    "product wraps in bytes": dict(shape=(2**31, 2**31), stride=(0, 0), numel=16),
    "stride wraps": dict(shape=(2, 2), stride=(2**63 - 1, 1), numel=16),
    "stride times shape wraps": dict(shape=(3, 2), stride=(2**63, 1), numel=16),
    "negative stride": dict(shape=(4, 4), stride=(-4, 1), numel=16),
    "negative shape": dict(shape=(-4, -4), stride=(4, 1), numel=16),
    "shape 2^200": dict(shape=(2**200,), stride=(1,), numel=16),
    "more strides than shapes": dict(shape=(4, 4), stride=(4, 1, 1), numel=16),
    "a thousand dimensions": dict(shape=(1,) * 1000, stride=(1,) * 1000, numel=16),
    "zeros repeated for ever": dict(shape=(2**40, 4), stride=(0, 1), numel=16),
    "no such entry": dict(shape=(4, 4), stride=(4, 1), numel=16, key="7"),
    "a key with a path": dict(shape=(4, 4), stride=(4, 1), numel=16, key="../data.pkl"),
    "no such type": dict(shape=(4, 4), stride=(4, 1), numel=16, kind="QuantumStorage"),
}


@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_lie_about_their_size(tmp_path, lie):
    case = {"offset": 0, "key": "0", "kind": "FloatStorage", **LIES[lie]}
    storage = Persistent(
        ("storage", Global("torch", case["kind"]), case["key"], "cpu", case["numel"])
    )
    for name in ("emb.weight", "blocks.0.att.r_k", "surplus"):
        value = pickled({name: tensor(storage, case["offset"], case["shape"], case["stride"])})
        refusal(
            archive(tmp_path / "a.pth", value),
            "QuantumStorage" if lie == "no such type" else name + ":",
        )


HEADERS = {
    "no json": b"hello",
    "a list": [],
    "no end": b'{"a":',
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 200_000,
    "outside": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "past the end": {"a": {"dtype": "F32", "shape": [17], "data_offsets": [0, 68]}},
    "hole": {"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}},
    "hole before": {"a": {"dtype": "F32", "shape": [12], "data_offsets": [16, 64]}},
    "overlap": {
        "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [48, 64]},
    },
    "backwards": {"a": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
    "negative": {"a": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}},
    "negative offset": {"a": {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]}},
    "shape wraps": {"a": {"dtype": "F32", "shape": [2**32, 2**32, 16], "data_offsets": [0, 64]}},
    "shape wraps in bytes": {"a": {"dtype": "F32", "shape": [2**62 + 16], "data_offsets": [0, 64]}},
    "offset 2^64": {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 2**64 + 64]}},
    "shape 2^64": {"a": {"dtype": "F32", "shape": [2**64 + 16], "data_offsets": [0, 64]}},
    "fraction": {"a": {"dtype": "F32", "shape": [16.0], "data_offsets": [0, 64]}},
    "exponent": b'{"a":{"dtype":"F32","shape":[1e1],"data_offsets":[0,64]}}',
    "shape is text": {"a": {"dtype": "F32", "shape": "16", "data_offsets": [0, 64]}},
    "shape is null": {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 64]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 64]}},
    "no dtype": {"a": {"shape": [16], "data_offsets": [0, 64]}},
    "one offset": {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0]}},
    "unknown dtype": {"a": {"dtype": "F128", "shape": [16], "data_offsets": [0, 64]}},
    "twice": b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
    b'"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}}',
    "metadata is a number": {"__metadata__": 3, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}},
    "metadata of numbers": {"__metadata__": {"a": 3}, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}},
    "trailing text": b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}x',
    "a name that is no utf-8": b'{"\xff":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "half a surrogate": b'{"\\ud800":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "a long name": {"a" * 1_000_000: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}},
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_lie(tmp_path, header):
    text = HEADERS[header]
    write_raw_safetensors(
        tmp_path / "a.safetensors", text if isinstance(text, bytes) else json.dumps(text), bytes(64)
    )
    message = refusal(tmp_path / "a.safetensors")
    assert "RWKV model" not in message or header == "a long name", "found by the reader"


@pytest.mark.parametrize(
    "length", [0, 1, 7, 2**20, 100 << 20, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
)
def test_header_lengths_that_lie(tmp_path, length):
    write_raw_safetensors(tmp_path / "a.safetensors", "{}", bytes(64), length)
    refusal(tmp_path / "a.safetensors")


# ---- archives ----


def test_archives_that_are_not_torchs(tmp_path, tiny):
    good = save(tmp_path / "good.pth", tiny)
    with zipfile.ZipFile(good) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    pickled = next(data for entry, data in entries if entry.endswith("/data.pkl"))

    with zipfile.ZipFile(tmp_path / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    refusal(tmp_path / "compressed.pth")

    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        for entry, data in entries:
            archive.writestr(entry, b"big" if entry.endswith("/byteorder") else data)
        if not any(entry.endswith("/byteorder") for entry, _ in entries):
            archive.writestr(entries[0][0].split("/")[0] + "/byteorder", b"big")
    refusal(tmp_path / "big.pth", "big")

    with zipfile.ZipFile(tmp_path / "two.pth", "w") as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
        archive.writestr("other/data.pkl", pickled)
    refusal(tmp_path / "two.pth")

    with zipfile.ZipFile(tmp_path / "none.pth", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    refusal(tmp_path / "none.pth", "data.pkl")

    with zipfile.ZipFile(tmp_path / "empty.pth", "w"):
        pass
    refusal(tmp_path / "empty.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_one_name_twice(tmp_path, tiny):
    good = save(tmp_path / "good.pth", tiny)
    with zipfile.ZipFile(good) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(tmp_path / "twice.pth", "w") as archive:
        for entry, data in [*entries, entries[-1], next(e for e in entries if "/data/" in e[0])]:
            archive.writestr(entry, data)
    refusal(tmp_path / "twice.pth")


def test_a_file_of_an_old_torch_is_named(tmp_path):
    (tmp_path / "a.pth").write_bytes(
        bytes.fromhex("80028a0a6cfc9c46f9206aa850192e8002") + bytes(1000)
    )
    refusal(tmp_path / "a.pth", "1.6")


def test_gguf_is_named(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(1000))
    refusal(tmp_path / "a.gguf", "GGUF")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"P",
        b"PK\3\4",
        b"\0" * 8,
        b"\0" * 100,
        b"\xff" * 100,
        b"PK\5\6" + bytes(18),
        b"hello world",
        b"<html>not found</html>",
    ],
    ids=repr,
)
def test_files_of_something_else(tmp_path, content):
    for suffix in ("pth", "safetensors"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content)
        refusal(path)


# ---- names without end ----


def recalled(name, value, times):
    """One long text, and then a few bytes for each time that it is used again."""
    first = pickled(value)[2:-1]
    key = b"X" + struct.pack("<I", len(name)) + name + b"r" + struct.pack("<I", 3000)
    again = b"j" + struct.pack("<I", 3000) + b"j" + struct.pack("<I", 3001)
    return b"\x80\x02}(" + key + first + b"r" + struct.pack("<I", 3001) + again * times + b"u."


def test_a_long_name_used_again_takes_no_memory(tmp_path):
    value = tensor(
        Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4)), 0, (4,), (1,)
    )
    for name, words in ((b"n" * 1_000_000, "at most 1024 bytes"), (b"name", "found name twice")):
        path = archive(tmp_path / "a.pth", recalled(name, value, 5000))
        refusal(path, words)
    key = "k" * 1_000_000
    value = tensor(
        Persistent(("storage", Global("torch", "FloatStorage"), key, "cpu", 4)), 0, (4,), (1,)
    )
    refusal(archive(tmp_path / "a.pth", recalled(b"name", value, 3)), "key of at most 64 bytes")


def test_a_long_name_takes_no_time(tmp_path):
    name = "_orig_mod." * 100_000 + "emb.weight"
    refusal(save(tmp_path / "a.pth", {name: np.ones((2, 2), np.float32)}), "at most 1024 bytes")
    refusal(
        save(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float32)}), "at most 1024 bytes"
    )
