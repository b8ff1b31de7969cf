"""Snapshots in fp16: half the bytes, numbers within half a unit of the last place, all else as in fp32."""

import json
import os
import pathlib
import stat

import numpy as np
import pytest
from compat_models import VERSIONS, begun
from helpers import SMALL, TINY, bits, engine, file_of_state, model, rwkv, sign_state

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


def halves_of(parts):
    """The parts as halves hold them; RWKV-4's att.pp begins at -1e30 and stays as it is."""
    return {k: p if k == "att.pp" else p.astype(np.float16).astype(np.float32) for k, p in parts.items()}


def same(a, b):
    return {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}


@pytest.fixture(scope="module", params=VERSIONS)
def each(request):
    return begun(request.param)


def test_parts_are_rounded_to_nearest_and_nothing_else_changes(each):
    e, state = each
    blob = state.to_bytes("fp16")
    again = e.state_from_bytes(blob)
    assert same(again.to_numpy(), halves_of(state.to_numpy()))
    assert (again.tokens_seen, again.last_token) == (4, 4)
    assert bits(again.last_logits) == bits(state.last_logits)
    assert again.to_bytes("fp16") == blob, "halves are rounded once"
    narrow, wide = file_of_state(blob), file_of_state(state.to_bytes())
    wide_metadata = {**wide[0], "format": "rwkv-state 2", "digest": narrow[0]["digest"]}
    assert narrow[0] == wide_metadata and list(narrow[1]) == list(wide[1])
    for name, entry in narrow[1].items():
        wanted = "F32" if name in ("att.pp", "last_logits") else "F16"
        assert (entry["dtype"], entry["shape"]) == (wanted, wide[1][name]["shape"]), name
    logits = e.forward([5], again)
    assert np.abs(logits - e.forward([5], state.fork())).max() < 2e-3 * np.abs(logits).max()


def test_states_before_any_token_fit_too(each):
    e, _ = each
    state = e.new_state()
    assert same(e.state_from_bytes(state.to_bytes("fp16")).to_numpy(), state.to_numpy())


def test_files_are_the_bytes(each, tmp_path):
    e, state = each
    state.save(tmp_path / "a.state", "fp16")
    assert (tmp_path / "a.state").read_bytes() == state.to_bytes("fp16")
    assert stat.S_IMODE(os.stat(tmp_path / "a.state").st_mode) == 0o600
    assert same(e.load_state(tmp_path / "a.state").to_numpy(), halves_of(state.to_numpy()))


def test_fp32_is_what_it_always_was(each):
    _, state = each
    assert state.to_bytes("fp32") == state.to_bytes()
    metadata, header, _ = file_of_state(state.to_bytes())
    assert metadata["format"] == "rwkv-state 1" and {entry["dtype"] for entry in header.values()} == {"F32"}


@pytest.fixture(scope="module")
def tiny():
    e = engine(threads=1, **TINY)
    state = e.new_state()
    e.forward([1, 2, 3], state)
    return e, state


@pytest.mark.parametrize("dtype", ["bf16", "FP16", "", "float16", "fp16\x00"])
def test_other_types_are_refused(tiny, dtype, tmp_path):
    _, state = tiny
    for write in (state.to_bytes, lambda d: state.save(tmp_path / "a", d)):
        with pytest.raises(rwkv.Error, match="dtype: expected 'fp32' or 'fp16', found"):
            write(dtype)
    assert list(tmp_path.iterdir()) == []
    for write in (state.to_bytes, lambda d: state.save(tmp_path / "a", d)):
        with pytest.raises(TypeError, match="dtype: expected a str, found type"):
            write(np.float16)


@pytest.mark.parametrize("value, fits", [(65504, True), (65519.9, True), (65520, False), (-65520, False), (1e30, False)])
def test_numbers_beyond_a_half_are_an_error_that_names_the_part(tiny, value, fits, tmp_path):
    e, state = tiny
    for name in state.to_numpy():
        parts = state.to_numpy()
        parts[name].flat[-1] = value
        changed = e.state_from_numpy(parts)
        if fits:
            found = e.state_from_bytes(changed.to_bytes("fp16")).to_numpy()[name].flat[-1]
            assert found == np.sign(value) * 65504
            continue
        (tmp_path / "a").write_bytes(b"as it was")
        for write in (lambda d, s=changed: s.to_bytes(d), lambda d, s=changed: s.save(tmp_path / "a", d)):
            with pytest.raises(rwkv.StateError, match=f"{name}: expected numbers .*fp16 holds, found"):
                write("fp16")
        assert (tmp_path / "a").read_bytes() == b"as it was"
        assert same(e.state_from_bytes(changed.to_bytes()).to_numpy(), parts), "fp32 holds it"


def test_small_numbers_become_the_nearest_half(tiny):
    e, state = tiny
    parts = state.to_numpy()
    small = np.array([6e-8, 2e-8, -2.9e-8, 6.1e-5, 1e-20, -0.0, 0.0, 5.9604645e-08], np.float32)
    parts["att.wkv"].flat[: len(small)] = small
    found = e.state_from_bytes(e.state_from_numpy(parts).to_bytes("fp16")).to_numpy()
    assert bits(found["att.wkv"]) == bits(parts["att.wkv"].astype(np.float16).astype(np.float32))


def refused(read, blob):
    try:
        read(blob)
    except rwkv.StateError:
        return True
    return False


@pytest.fixture(params=["engine", "file"])
def reader(request, tiny, tmp_path):
    """An engine's reader, and the one that needs no engine."""
    if request.param == "engine":
        return tiny[0].state_from_bytes

    def read(blob):
        return rwkv._core.StateFile.parse(bytes(blob))

    return read


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_every_damaged_byte_and_truncation_is_refused(tiny, reader, dtype):
    blob = tiny[1].to_bytes(dtype)
    assert not refused(reader, blob)
    accepted = []
    for at in range(len(blob)):
        for flip in (0x01, 0x80):
            damaged = bytearray(blob)
            damaged[at] ^= flip
            if not refused(reader, bytes(damaged)):
                accepted.append((at, flip))
        if not refused(reader, blob[:at]):
            accepted.append(at)
    assert accepted == [] and refused(reader, blob + b"\0")


def edited(blob, change):
    """The blob with a header that `change` has edited, and a right digest."""
    length = int.from_bytes(blob[:8], "little")
    tree = json.loads(blob[8 : 8 + length])
    change(tree)
    text = json.dumps(tree, separators=(",", ":")).encode()
    return sign_state(len(text).to_bytes(8, "little") + text + blob[8 + length :])


def test_a_right_digest_does_not_excuse_the_rest(tiny, reader):
    narrow, wide = tiny[1].to_bytes("fp16"), tiny[1].to_bytes()

    def put(*path, value):
        def change(tree):
            for key in path[:-1]:
                tree = tree[key]
            tree[path[-1]] = value

        return change

    assert not refused(reader, edited(narrow, lambda tree: None))
    # The format says what the parts are stored as, and halves are never taken for other types of two bytes.
    assert refused(reader, edited(narrow, put("__metadata__", "format", value="rwkv-state 1")))
    assert refused(reader, edited(wide, put("__metadata__", "format", value="rwkv-state 2")))
    assert refused(reader, edited(narrow, put("__metadata__", "format", value="rwkv-state 3")))
    for name in ("att.shift", "att.wkv", "ffn.shift"):
        for dtype in ("BF16", "I16"):
            assert refused(reader, edited(narrow, put(name, "dtype", value=dtype)))
    for key, value in {"model_version": "9", "n_layer": "0", "n_embd": "-1", "n_vocab": "x", "n_head": "0"}.items():
        assert refused(reader, edited(narrow, put("__metadata__", key, value=value))), key
    assert refused(reader, edited(narrow, put("__metadata__", "fingerprint", value="x" * 64)))
    assert refused(reader, edited(narrow, put("__metadata__", "n_layer", value="99")))
    header_end = 8 + int.from_bytes(narrow[:8], "little")
    for bad in (0x7C00, 0xFC00, 0x7E01):
        damaged = narrow[:header_end] + bad.to_bytes(2, "little") + narrow[header_end + 2 :]
        with pytest.raises(rwkv.StateError, match="att.shift: expected finite"):
            reader(sign_state(damaged))


# ---- files without their model ----


def test_read_state_has_what_was_saved(each, tmp_path):
    e, state = each
    for dtype in ("fp32", "fp16"):
        state.save(tmp_path / "a.state", dtype)
        file = rwkv.read_state(tmp_path / "a.state")
        expected = halves_of(state.to_numpy()) if dtype == "fp16" else state.to_numpy()
        assert file.dtype == dtype and same(file.parts, expected)
        for name in ("version", "n_layer", "n_embd", "n_head", "head_size", "n_vocab"):
            assert getattr(file, name) == getattr(e.config, name)
        assert (file.fingerprint, file.tokens_seen, file.last_token) == (e.fingerprint, 4, 4)
        assert bits(file.last_logits) == bits(state.last_logits) and file.sampler is None
        assert file.to_bytes() == file.to_bytes(dtype) == state.to_bytes(dtype)
        with pytest.raises(ValueError, match="read-only"):
            file.parts["att.shift"][0, 0] = 1
    assert same(e.state_from_bytes(file.to_bytes("fp32")).to_numpy(), halves_of(state.to_numpy()))
    rwkv.read_state(tmp_path / "a.state").save(tmp_path / "b.state", "fp32")
    assert rwkv.read_state(tmp_path / "b.state").to_bytes("fp16") == state.to_bytes("fp16")


def test_conversion_keeps_how_a_text_is_sampled(tmp_path):
    e = rwkv.Engine("demo", threads=1)
    params = rwkv.SamplingParams(seed=3, presence_penalty=0.5, max_tokens=12, stop=["zz)q"])
    state = e.generate("def main(", params).state
    state.save(tmp_path / "a.state")
    file = rwkv.read_state(tmp_path / "a.state")
    assert (file.sampler.seed, file.sampler.penalty_style) == (3, "rwkv") and len(file.sampler.weights) > 3
    (tmp_path / "b.state").write_bytes(file.to_bytes("fp16"))
    narrow = rwkv.read_state(tmp_path / "b.state")
    assert narrow.sampler == file.sampler and narrow.to_bytes() == state.to_bytes("fp16")
    (tmp_path / "c.state").write_bytes(rwkv.read_state(tmp_path / "b.state").to_bytes("fp32"))
    assert e.load_state(tmp_path / "c.state").tokens_seen == state.tokens_seen


@pytest.mark.parametrize("path", sorted(DATA.glob("*/*.state")), ids=lambda path: path.stem)
def test_states_of_all_releases_are_read_and_written_again(path, tmp_path):
    file = rwkv.read_state(path)
    assert file.to_bytes() == path.read_bytes(), "bit for bit, whoever wrote it"
    assert len(file.to_bytes("fp16")) < 0.6 * len(file.to_bytes("fp32"))


def test_read_state_refuses_what_is_none(tmp_path):
    for content in (b"", b"PK\3\4", b"x" * 4096, bytes(200)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(rwkv.StateError, match=str(tmp_path / "a")):
            rwkv.read_state(tmp_path / "a")
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(rwkv.Error):
            rwkv.read_state(absent)
    with pytest.raises(TypeError):
        rwkv.read_state(3)
    with pytest.raises(rwkv.StateError):
        rwkv.read_state(model(**SMALL).path())


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    e = engine(threads=1, **TINY)
    blob = e.new_state().to_bytes()
    with (tmp_path / "a").open("wb") as file:
        file.write(blob)
        file.truncate(1 << 42)
    with pytest.raises(rwkv.StateError, match="at most 1073741824 bytes, found 4398046511104"):
        rwkv.read_state(tmp_path / "a")
