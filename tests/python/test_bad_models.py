"""Files that are sound and hold the wrong model, files in places that are no files, and files damaged byte by byte."""

import os
import re
import resource
import struct
import sys
import zipfile

import numpy as np
import pytest
from helpers import TINY, random_model, refusal, rwkv, save


@pytest.fixture(scope="module")
def tiny():
    return random_model(**TINY)


# ---- the wrong tensors ----


def without(weights, *names):
    return {name: t for name, t in weights.items() if name not in names}


def test_every_missing_tensor_is_named(tmp_path):
    weights = random_model(**{**TINY, "L": 2})
    for name in weights:
        message = refusal(save(tmp_path / "a.pth", without(weights, name)))
        # Without its r_k a block is no block of RWKV-7, or the last block of a smaller model.
        assert name in message or name.endswith("att.r_k"), (name, message)


def test_a_surplus_tensor_is_named(tmp_path, tiny):
    for name in (
        "blocks.0.att.extra",
        "blocks.1.att.w1",
        "blocks.7.ln1.weight",
        "something",
        "blocks.0.att.time_state",
    ):
        refusal(save(tmp_path / "a.pth", {**tiny, name: np.zeros((3, 4), np.float32)}), name)


def test_every_wrong_shape_is_named_with_both_shapes(tmp_path):
    weights = random_model(**{**TINY, "L": 2, "C": 32})
    for name, t in weights.items():
        if name in ("emb.weight", "blocks.0.att.r_k"):
            continue  # they say what the others should be
        wrong = np.zeros((*t.shape[:-1], t.shape[-1] + 1), np.float32)
        message = refusal(save(tmp_path / "a.pth", {**weights, name: wrong}))
        # The width of one tensor of a low-rank pair, or of the two in the channel mix, is what the other should have.
        pair = (
            re.sub(r"([wavg])[12]$", r"\g<1>[12]", re.escape(name))
            if re.search(r"[wavg][12]$", name)
            else re.escape(name)
        )
        assert re.search(pair, message), (name, message)
        assert "expected" in message and "found" in message, message
    wrong = np.zeros((32, 5), np.float32)
    message = refusal(
        save(tmp_path / "a.pth", {**weights, "blocks.1.att.receptance.weight": wrong})
    )
    assert "blocks.1.att.receptance.weight: expected (32, 32), found (32, 5)" in message
    for name, shape in {
        "emb.weight": (12, 33),
        "blocks.0.att.r_k": (2, 15),
        "head.weight": (13, 32),
    }.items():
        refusal(save(tmp_path / "a.pth", {**weights, name: np.zeros(shape, np.float32)}))
    for shape in ((0, 32), (12, 0), (12,), ()):
        refusal(
            save(tmp_path / "a.pth", {**weights, "emb.weight": np.zeros(shape, np.float32)}),
            "emb.weight",
        )
    refusal(
        save(
            tmp_path / "a.pth", {**weights, "blocks.0.att.w1": weights["blocks.0.att.w1"].T.copy()}
        ),
        "blocks.0.att.w1",
    )


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_integers_instead_of_numbers_with_a_point(tmp_path, tiny, kind, suffix):
    for name in ("emb.weight", "blocks.0.att.w0", "blocks.0.ffn.key.weight"):
        refusal(
            save(tmp_path / f"a{suffix}", {**tiny, name: tiny[name].astype(kind)}),
            name,
            "expected",
            "found",
        )


OTHER_VERSIONS = {
    "6a": ["att.time_maa_x", "att.time_decay[2]", "att.gate_w1", "att.ln_x.weight"],
    "6b/6c": ["att.time_maa_x", "att.time_maa_rkvw_w1", "att.time_decay[2]", "att.ln_x.weight"],
    "7a": ["att.r_k", "att.x_r", "ffn.s_emb.weight", "ffn.s_emb_x.weight", "att.ln_x.weight"],
    "7b": ["att.r_k", "att.x_r", "ffn.s_emb.weight", "qkv.k1", "qkv.qq.weight", "att.ln_x.weight"],
    "8 (rc00)": ["att.r_k", "att.x_r", "ffn.enn.weight", "att.ln_x.weight"],
    "8 (rc00-hybrid)": ["att.r_k", "att.x_r", "ffn.enn.weight", "qkv.kk.weight"],
    "8 (ROSA)": ["rosa.x_q", "rosa.rosa_qkv.emb", "ffn.key.weight"],
}


@pytest.mark.parametrize("version", OTHER_VERSIONS)
@pytest.mark.parametrize("order", [1, -1])
def test_other_versions_are_named(tmp_path, version, order):
    names = [
        "emb.weight",
        "head.weight",
        *(f"blocks.0.{name}" for name in OTHER_VERSIONS[version]),
    ][::order]
    weights = {
        name.removesuffix("[2]"): np.zeros(
            (4, 4) if "[2]" in name or "weight" in name else (4,), np.float32
        )
        for name in names
    }
    refusal(save(tmp_path / "a.pth", weights), f"RWKV-{version}")


# ---- places ----


def test_places_that_are_no_files(tmp_path):
    kinds = (rwkv.Error, OSError)
    refusal(tmp_path / "absent.pth", "absent.pth", kind=kinds)
    refusal(tmp_path / "absent" / "a.pth", kind=kinds)
    refusal(tmp_path, "folder with a model", kind=kinds)
    refusal("", kind=kinds)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refusal(tmp_path / "loop", kind=kinds)
    with pytest.raises((rwkv.Error, OSError, ValueError)):
        rwkv.Engine("a\0b", "cpu fp32", threads=1)
    refusal("/dev/zero", kind=kinds)
    refusal("/dev/null", kind=kinds)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no fifos here")
def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refusal(tmp_path / "fifo", "fifo", kind=(rwkv.Error, OSError))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_a_file_that_may_not_be_read(tmp_path, tiny):
    path = save(tmp_path / "a.pth", tiny)
    path.chmod(0)
    refusal(path, "a.pth", kind=(rwkv.Error, OSError))


def test_a_sparse_terabyte(tmp_path):
    for suffix, start in (("pth", b"PK\3\4"), ("safetensors", struct.pack("<Q", 2**39))):
        path = tmp_path / f"a.{suffix}"
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        refusal(path)


# ---- every byte ----


def survives(path, blob):
    """The blob is refused, or it is a model that can be used. Returns whether it loaded."""
    path.write_bytes(blob)
    try:
        engine = rwkv.Engine(str(path), "cpu fp32", threads=1)
    except rwkv.Error:
        return False
    try:
        engine.forward([1], engine.new_state())
    except rwkv.Error:
        pass
    return True


def structure(path):
    """The bytes of a file that are not numbers."""
    blob = path.read_bytes()
    if path.suffix == ".safetensors":
        return range(8 + struct.unpack("<Q", blob[:8])[0])
    numbers = set()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/data/" in entry.filename:
                name_length, extra_length = struct.unpack_from(
                    "<HH", blob, entry.header_offset + 26
                )
                begin = entry.header_offset + 30 + name_length + extra_length
                numbers.update(range(begin, begin + entry.file_size))
    return [at for at in range(len(blob)) if at not in numbers]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_byte_of_the_structure_turned(tmp_path, tiny, suffix):
    path = save(tmp_path / f"good{suffix}", tiny)
    blob, peak = path.read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert survives(tmp_path / "a", blob)
    loaded = 0
    for i, at in enumerate(structure(path)):
        damaged = bytearray(blob)
        damaged[at] ^= (0x01, 0x80, 0xFF, 0x20)[i % 4]
        loaded += survives(tmp_path / "a", bytes(damaged))
    assert loaded < len(structure(path)) * (0.8 if suffix == ".pth" else 0.05)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000 * (
        1024 if sys.platform == "darwin" else 1
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_truncation(tmp_path, tiny, suffix):
    path = save(tmp_path / f"good{suffix}", tiny)
    blob = path.read_bytes()
    assert [n for n in range(len(blob)) if survives(tmp_path / "a", blob[:n])] == []


def test_runs_of_bytes_overwritten(tmp_path, tiny):
    for suffix in (".pth", ".safetensors"):
        path = save(tmp_path / f"good{suffix}", tiny)
        blob, rng, places = path.read_bytes(), np.random.default_rng(0), list(structure(path))
        for _ in range(1000):
            damaged = bytearray(blob)
            at = int(rng.choice(places))
            value = [b"\xff" * 8, b"\0" * 8, struct.pack("<q", -1 << 62), rng.bytes(4), b"9" * 6][
                rng.integers(5)
            ]
            damaged[at : at + len(value)] = value
            survives(tmp_path / "a", bytes(damaged))
