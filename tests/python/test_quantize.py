"""Quantised files: the bits of the original in that precision, used where they lie; damage is refused."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers import DEEP_32, OLDER, SMALL, WIDE, bits, model, python, refusal, save, snapshot

import rwkv_engine as rwkv
from rwkv_engine.compat import RWKV
from rwkv_engine.inspection import inspect

ALL = {**OLDER, "7": SMALL, "7a": DEEP_32}
KEY = "rwkv_packed"


def quantised(folder, precision="int8", dtype="f32", **options):
    """(the original, the quantised file)"""
    source, target = model(**options).path(dtype), folder / f"{precision}.safetensors"
    rwkv.quantize(source, target, precision)
    return source, target


def parts(path):
    """(header as a dictionary, everything behind it)"""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def rewrite(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# ---- the same bits ----


@pytest.fixture(params=["0", "1"], ids=["read", "mapped"])
def use(request, monkeypatch):
    """Into memory or where the matrices lie: otherwise that depends on the pages which the system gives."""
    monkeypatch.setenv("RWKV_MAP", request.param)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("version", ALL)
def test_every_version_has_the_bits_of_the_original(tmp_path, use, version, dtype):
    source, target = quantised(tmp_path, dtype=dtype, **ALL[version])
    original = rwkv.Engine(source, "cpu int8", threads=2)
    tokens = model(**ALL[version]).tokens(50)
    expected = bits(original.forward(tokens, original.new_state(), output="all"))
    run = snapshot(original, tokens, [7, 1, 42])
    for strategy, threads in [("auto", 1), ("cpu int8", 2), ("cpu int8 *1 -> cpu int8", 3)]:
        engine = rwkv.Engine(target, strategy, threads=threads)
        assert engine.fingerprint == original.fingerprint and engine.config == original.config
        assert bits(engine.forward(tokens, engine.new_state(), output="all")) == expected
        assert snapshot(engine, tokens, [20, 30]) == run


@pytest.mark.parametrize("precision", ["int4", "fp16", "bf16", "fp32"])
@pytest.mark.parametrize("version", ["4", "6", "7", "7a"])
def test_other_precisions(tmp_path, use, version, precision):
    source, target = quantised(tmp_path, precision, **ALL[version])
    tokens = model(**ALL[version]).tokens(40)
    expected = snapshot(rwkv.Engine(source, f"cpu {precision}", threads=1), tokens)
    for sparse in (None, True):
        engine = rwkv.Engine(target, sparse=sparse)
        assert (engine._core.column_bytes > 0) == (sparse is True and precision != "int4")
        assert snapshot(engine, tokens) == snapshot(engine, tokens, [1] * 40) == expected


def test_in_another_process_and_with_every_instruction_set(tmp_path):
    source, target = quantised(tmp_path, dtype="bf16", **WIDE)
    tokens = model(**WIDE).tokens(40)
    code = """
import hashlib, sys
from helpers import snapshot
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]))
logits, state = snapshot(engine, eval(sys.argv[4]))
print(hashlib.sha256(logits[1] + state).hexdigest())
"""
    found = {
        python(code, path, strategy, threads, tokens, **environment)
        for path, strategy in [(source, "cpu int8"), (target, "auto")]
        for threads, environment in [
            (1, {}),
            (2, {"RWKV_MAP": "1"}),
            (3, {"RWKV_ISA": "avx2", "RWKV_MAP": "0"}),
        ]
    }
    assert len(found) == 1


def test_states_go_from_one_to_the_other(tmp_path):
    source, target = quantised(tmp_path, **SMALL)
    original, engine = rwkv.Engine(source, "cpu fp32"), rwkv.Engine(target)
    tokens = model(**SMALL).tokens(20)
    state = original.new_state()
    original.forward(tokens, state)
    state.save(tmp_path / "a.state")
    loaded = engine.load_state(tmp_path / "a.state")
    assert loaded.tokens_seen == 20 and bits(loaded.last_logits) == bits(state.last_logits)
    engine.forward(tokens, loaded)
    assert original.state_from_bytes(loaded.to_bytes()).tokens_seen == 40


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_of_every_container_and_order_of_numbers(tmp_path, suffix):
    m = model(**WIDE)
    turned = {name for name, t in m.weights.items() if t.ndim == 2 and "ffn" in name}
    options = {"transposed": turned} if suffix == ".pth" else {}
    source = save(tmp_path / f"a{suffix}", m.weights, "f32", **options)
    rwkv.quantize(source, tmp_path / "b.safetensors", "int8")
    rwkv.quantize(m.path(), tmp_path / "c.safetensors", "int8")
    (first, a), (second, b) = parts(tmp_path / "b.safetensors"), parts(tmp_path / "c.safetensors")
    assert first["__metadata__"] == second["__metadata__"]
    for name in first.keys() - {"__metadata__"}:
        (i, j), (k, n) = first[name].pop("data_offsets"), second[name].pop("data_offsets")
        assert first[name] == second[name] and a[i:j] == b[k:n], name


def test_the_demo_and_compat(tmp_path):
    rwkv.quantize("demo", tmp_path / "a.safetensors", "int8")
    expected = rwkv.Engine("demo", "cpu int8", threads=1)
    logits, _ = RWKV(str(tmp_path / "a.safetensors"), strategy="cpu int8").forward([1, 2, 3], None)
    assert np.array_equal(logits, expected.forward([1, 2, 3], expected.new_state()))


# ---- the file ----


def test_matrices_lie_where_vectors_can_be_read(tmp_path):
    _, target = quantised(tmp_path, dtype="bf16", **SMALL)
    header, data = parts(target)
    start = target.stat().st_size - len(data)
    said = header.pop("__metadata__")
    described = json.loads(said[KEY])
    assert described["layout"] == 1 and described["precision"] == "int8"
    matrices = described["matrices"]
    assert matrices["head.weight"] == {"format": "int8", "shape": [40, 64]}
    assert matrices["blocks.1.att.w1"] == {"format": "bf16", "shape": [64, 5]}
    assert len(matrices) == 14 * SMALL["L"] + 1 - 2
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        if name in matrices:
            assert entry["dtype"] == "U8" and begin % 64 == 0 and end % 64 == 0
        else:
            assert entry["dtype"] == "BF16" and begin % 2 == 0
            values = model(**SMALL).weights[name].view(np.uint32) >> 16
            assert data[begin - start : end - start] == values.astype(np.uint16).tobytes(), name


def test_the_matrices_take_no_memory_of_the_process(tmp_path):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux's /proc")
    options = dict(L=2, C=512, N=64, F=2048, V=40_000, ranks=(16, 16, 8, 32))
    source, target = quantised(tmp_path, dtype="bf16", **options)
    code = """
import sys
import rwkv_engine as rwkv
engine = rwkv.Engine(sys.argv[1], "cpu int8", threads=1)
engine.forward([1, 2], engine.new_state())
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon")))
"""
    weights = model(**options).weights
    matrices = sum(t.size for name, t in weights.items() if t.ndim == 2 and name.endswith("weight"))
    loaded = int(python(code, source))
    in_memory, mapped = (int(python(code, target, RWKV_MAP=use)) for use in "01")
    table = weights["emb.weight"].size  # of two bytes each, which stays in the file in any case
    assert loaded - in_memory > 0.9 * 2 * table
    assert loaded - mapped > 0.9 * (matrices + table)


def test_other_precisions_are_refused_by_name(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    for strategy in ["cpu bf16", "cpu fp32", "cpu int8 *1 -> cpu fp32"]:
        with pytest.raises(rwkv.StrategyError, match=r"quantised to, int8, found (bf16|fp32)"):
            rwkv.Engine(target, strategy)


def test_it_is_no_source_for_anything_else(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    for write in [
        lambda: rwkv.convert(target, tmp_path / "b.safetensors"),
        lambda: rwkv.convert(target, tmp_path / "b.gguf"),
        lambda: rwkv.quantize(target, tmp_path / "b.safetensors", "int8"),
    ]:
        with pytest.raises(rwkv.ModelFormatError, match="expected the original weights"):
            write()
    assert not list(tmp_path.glob("b.*"))


def test_arguments(tmp_path):
    source, target = quantised(tmp_path, **SMALL)
    before = target.read_bytes()
    for path, precision, said in [
        (tmp_path / "a.pth", "int8", "ends in .safetensors"),
        (tmp_path / "a.safetensors", "int3", "one of int8"),
        (target, "bf16", "expected a new file"),
        (tmp_path / "absent" / "a.safetensors", "int8", "cannot create a file"),
    ]:
        with pytest.raises(rwkv.Error, match=said):
            rwkv.quantize(source, path, precision)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == before
    rwkv.quantize(source, target, "bf16", overwrite=True)
    assert rwkv.Engine(target, "cpu bf16").config.n_layer == SMALL["L"]


def test_progress_reaches_its_end_and_may_end_the_work(tmp_path):
    seen = []
    rwkv.quantize("demo", tmp_path / "a.safetensors", "int8", progress=lambda *at: seen.append(at))
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0

    for last in [1, 4]:  # how many there are depends on which thread reads what
        calls = iter(range(last))

        def stop(done, total, calls=calls):
            next(calls)

        with pytest.raises(StopIteration):
            rwkv.quantize("demo", tmp_path / "b.safetensors", "int8", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_inspect_and_the_command(tmp_path):
    target = tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "rwkv_engine"]
    done = subprocess.run([*command, "quantize", "demo", target, "int8"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    found, original = inspect(target, tensors=True), inspect("demo")
    assert (found["packed"], original["packed"]) == ("int8", None)
    assert found["parameters"] == original["parameters"]
    core = rwkv.Engine(target)._core
    assert core.column_bytes == 0  # kept once, the original twice
    once = found["n_layer"] * found["n_embd"] * found["n_ffn"] // 64 * 66
    assert found["memory_bytes"] == {"cpu int8": original["memory_bytes"]["cpu int8"] - once}
    assert found["bytes"] <= target.stat().st_size < found["bytes"] + 20_000
    head = {"name": "head.weight", "dtype": "int8", "shape": [1024, 128], "bytes": 1024 * 2 * 66}
    assert head in found["tensors"]
    text = subprocess.run([*command, "inspect", target], capture_output=True, text=True).stdout
    assert "packed as int8" in text and '"cpu int8" maps' in text and "cpu bf16" not in text


# ---- damage ----

MATRIX = "blocks.1.ffn.key.weight"


def lie(**values):
    """An edit of what the file says of its matrices."""

    def edit(header):
        said = json.loads(header["__metadata__"][KEY])
        for path, value in values.items():
            *above, last = path.split("__")
            place = said
            for key in above:
                place = place["matrices"][MATRIX] if key == "matrix" else place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        header["__metadata__"][KEY] = json.dumps(said)

    return edit


def metadata(key, value):
    def edit(header):
        header["__metadata__"][key] = value
        if value is None:
            del header["__metadata__"][key]

    return edit


def entry(name, **values):
    return lambda header: header[name].update(values)


LIES = {
    "a later layout": (lie(layout=2), ["packed layout 1", "found 2"]),
    "no layout": (lie(layout=None), ["packed layout 1"]),
    "another precision": (lie(precision="bf16"), ["expected it as bf16, found int8"]),
    "an unknown precision": (lie(precision="int3"), ["int3"]),
    "an unknown small format": (lie(small="int3"), ["int3"]),
    "an unknown format": (lie(matrix__format="int3"), [MATRIX, "int3"]),
    "another format": (lie(matrix__format="fp32"), [MATRIX, "fp32"]),
    "no format": (lie(matrix__format=None), [MATRIX]),
    "no shape": (lie(matrix__shape=None), [MATRIX]),
    "one dimension": (lie(matrix__shape=[64]), [MATRIX]),
    "four dimensions": (lie(matrix__shape=[192, 64, 1, 1]), [MATRIX]),
    "dimensions that multiply to 2^72": (lie(matrix__shape=[2**24] * 3), [MATRIX]),
    "more rows": (lie(matrix__shape=[225, 64]), [MATRIX, "(225, 64)"]),
    "more columns": (lie(matrix__shape=[192, 65]), [MATRIX]),
    "turned": (lie(matrix__shape=[64, 192]), [MATRIX]),
    "no rows": (lie(matrix__shape=[0, 64]), [MATRIX]),
    "rows of 2^24 + 1": (lie(matrix__shape=[2**24 + 1, 64]), [MATRIX]),
    "rows of 2^62": (lie(matrix__shape=[2**62, 4]), [MATRIX]),
    "rows of 2^70": (lie(matrix__shape=[2**70, 64]), []),
    "negative rows": (lie(matrix__shape=[-192, 64]), []),
    "rows as text": (lie(matrix__shape=["192", 64]), []),
    "an entry that is a number": (lie(matrices__x=3), ["x"]),
    "no JSON": (metadata(KEY, "{"), [KEY]),
    "an empty text": (metadata(KEY, ""), [KEY]),
    "a list": (metadata(KEY, "[]"), [KEY]),
    "deep": (metadata(KEY, "[" * 50_000), [KEY]),
    "no matrices": (lie(matrices={}), ["blocks.0.ffn.key.weight", "2 dimensions"]),
    "not said to be packed": (metadata(KEY, None), ["blocks.0.ffn.key.weight"]),
    "no fingerprint": (metadata("rwkv_fingerprint", None), ["rwkv_fingerprint"]),
    "another fingerprint": (metadata("rwkv_fingerprint", "A" * 64), ["64 hex digits"]),
    "bytes that are numbers": (entry(MATRIX, dtype="I8"), [MATRIX, "found i8"]),
    "a vector that is packed": (
        lie(**{"matrices": {"ln_out.weight": {"format": "int8", "shape": [8, 8]}}}),
        ["ln_out.weight"],
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_description_that_lies(tmp_path, case):
    _, target = quantised(tmp_path, **SMALL)
    header, data = parts(target)
    edit, words = LIES[case]
    edit(header)
    rewrite(target, header, data)
    with pytest.raises(rwkv.ModelFormatError) as error:
        rwkv.Engine(target, threads=1)
    for word in [target.name, *words]:
        assert word in str(error.value), error.value


def test_a_shape_that_the_rest_of_the_model_does_not_have(tmp_path):
    """As many bytes: 192 rows are six panels, 161 would be too."""
    _, target = quantised(tmp_path, **SMALL)
    header, data = parts(target)
    lie(matrix__shape=[161, 64])(header)
    refusal_of = rewrite(target, header, data)
    with pytest.raises(rwkv.ModelFormatError, match=r"expected \(192, 64\), found \(161, 64\)"):
        rwkv.Engine(refusal_of)


def test_a_matrix_of_too_few_bytes(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    header, data = parts(target)
    _, end = header[MATRIX]["data_offsets"]
    behind = next(t for t in header.values() if t.get("data_offsets", [0])[0] == end)
    header[MATRIX]["data_offsets"][1] = behind["data_offsets"][0] = end - 64
    header[MATRIX]["shape"], behind["shape"] = (
        [header[MATRIX]["shape"][0] - 64],
        [behind["shape"][0] + 64],
    )
    with pytest.raises(
        rwkv.ModelFormatError, match=r"key.weight: expected \d+ bytes for \(192, 64\)"
    ):
        rwkv.Engine(rewrite(target, header, data))


def test_matrices_at_an_odd_place(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    header, data = parts(target)
    for name, values in header.items():
        if name != "__metadata__":
            values["data_offsets"] = [at + 2 for at in values["data_offsets"]]
    header["blocks.0.spare"] = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    with pytest.raises(rwkv.ModelFormatError, match="multiple of 64 bytes"):
        rwkv.Engine(rewrite(target, header, b"\0\0" + data))


def test_a_file_that_was_cut_short(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    blob = target.read_bytes()
    for length in [0, 7, 8, 100, 2000, len(blob) // 2, len(blob) - 1]:
        target.write_bytes(blob[:length])
        refusal(target, target.name)


def test_damage_in_the_header_is_an_error_or_harmless(tmp_path):
    _, target = quantised(tmp_path, **SMALL)
    blob = bytearray(target.read_bytes())
    (length,) = struct.unpack("<Q", blob[:8])
    random = np.random.default_rng(0)
    refused = 0
    for at in random.integers(0, 8 + length, 400):
        old, blob[at] = blob[at], int(random.integers(0, 256))
        target.write_bytes(blob)
        try:
            engine = rwkv.Engine(target, threads=1)
            engine.forward([1, 2], engine.new_state())
        except rwkv.Error:
            refused += 1
        blob[at] = old
    assert refused > 200


def test_damage_in_the_numbers_crashes_nothing(tmp_path, use):
    _, target = quantised(tmp_path, **WIDE)
    header, data = parts(target)
    start = target.stat().st_size - len(data)
    begin, end = header["head.weight"]["data_offsets"]
    for seed in range(8):
        noise = np.random.default_rng(seed).integers(0, 256, end - begin, np.uint8).tobytes()
        with target.open("r+b") as file:
            file.seek(start + begin)
            file.write(noise)
        engine = rwkv.Engine(target, threads=2)
        for tokens in ([1], list(range(30))):
            with pytest.raises(rwkv.NonFiniteError):  # among so many scales some are
                engine.forward(tokens, engine.new_state())
