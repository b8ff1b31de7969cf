"""Against the `rwkv` package from PyPI, which is how most people run these models."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from helpers import child_environment, engine, model, relative, rwkv, save

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not (importlib.util.find_spec("torch") and importlib.util.find_spec("rwkv")),
        reason="torch or rwkv is not installed",
    ),
]

# The package chooses its model class from the environment when it is imported, so it gets a process of its own. It
# wants the path without ".pth" and tensors in the layout and the order of the official files.
ORACLE = """
import os, sys
import numpy as np
os.environ.update(RWKV_V7_ON=sys.argv[5], RWKV_DE_VERSION=sys.argv[7], RWKV_JIT_ON=sys.argv[4], RWKV_CUDA_ON="0")
from rwkv.model import RWKV
model = RWKV(sys.argv[1].removesuffix(".pth"), "cpu fp32")
tokens = np.load(sys.argv[2]).tolist()
logits, state = model.forward(tokens, None, full_output=True)
rows = [logits.numpy()]
for token in tokens[:8]:
    logits, state = model.forward([token], state)
    rows.append(logits.numpy()[None])
np.savez(sys.argv[3], logits=np.concatenate(rows), wkv=np.stack([s.numpy() for s in state[1::int(sys.argv[6])]]))
"""

_FOUR = dict(L=4, C=256, N=64, V=1000)
CASES = {
    "4": dict(version="4", **_FOUR),
    "5.0": dict(version="5.0", **_FOUR),
    "5.1": dict(version="5.1", **_FOUR),
    "5.1-log": dict(version="5.1", log_bonus=True, **_FOUR),
    "5.2": dict(version="5.2", **_FOUR),
    "6": dict(version="6", ranks=(32, 64), **_FOUR),
    "7": dict(ranks=(32, 32, 16, 64), layer0_v=True, **_FOUR),
    "7a": dict(version="7a", ranks=(32, 32, 16, 64), D=32, layer0_v=True, **_FOUR),
    "7, 12 layers of 768": dict(L=12, C=768, N=64, V=4000, ranks=(64, 64, 32, 128), layer0_v=True),
}


def ask_the_package(tmp_path, tokens, path, *arguments):
    """What ORACLE saves: the logits after each of the tokens, and the matrices of the state."""
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = [path, tmp_path / "tokens.npy", tmp_path / "expected.npz", *arguments]
    subprocess.run(
        [sys.executable, "-c", ORACLE, *map(str, arguments)],
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
        env=child_environment(),
    )
    return np.load(tmp_path / "expected.npz")


@pytest.mark.parametrize("case, jit", [("7", "0"), *((case, "1") for case in CASES)])
def test_same_logits_as_the_rwkv_package(case, jit, tmp_path):
    version = case.split(",")[0].split("-")[0]
    m = model(**CASES[case])
    tokens = m.tokens(256)
    # Before RWKV-7 the package norms the embedding in the file's precision.
    dtype = "bf16" if version[0] == "7" else "f32"
    arguments = [jit, int(version[0] == "7"), 5 if version == "4" else 3, int(version == "7a")]
    expected = ask_the_package(tmp_path, tokens, m.path(dtype), *arguments)
    e = engine("cpu fp32", dtype=dtype, **CASES[case])
    assert e.config.version == version
    state = e.new_state()
    found = [e.forward(tokens, state, output="all")]
    found += [e.forward([token], state)[None] for token in tokens[:8]]
    found = np.concatenate(found)
    assert (found.argmax(1) == expected["logits"].argmax(1)).all()
    assert relative(found, expected["logits"]) <= 1e-4
    if version == "4":
        return assert_same(state.to_numpy()["att.aa"], expected["wkv"])
    wkv = state.to_numpy()["att.wkv"]  # [value, key]; the package has [key, value] before RWKV-7
    assert_same(wkv if version[0] == "7" else wkv.swapaxes(-1, -2), expected["wkv"])


def assert_same(found, expected):
    assert relative(found, expected.reshape(found.shape)) <= 1e-4


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6"])
def test_a_tuned_state_lies_as_the_rwkv_package_takes_it(version, tmp_path):
    """It has no such thing for RWKV-7."""
    m = model(**CASES[version])
    rng = np.random.default_rng(2)
    tuned = {
        f"blocks.{i}.att.time_state": rng.normal(0, 0.5, (4, 64, 64)).astype(np.float32)
        for i in range(4)
    }
    path = save(tmp_path / "tuned.pth", {**m.weights, **tuned})
    tokens = m.tokens(16)
    expected = ask_the_package(tmp_path, tokens, path, 1, 0, 3, 0)["logits"][: len(tokens)]
    inside = rwkv.Engine(path, "cpu fp32", threads=2)
    plain = engine("cpu fp32", **CASES[version])
    found = inside.forward(tokens, inside.new_state(), output="all")
    assert relative(found, expected) <= 1e-4
    assert (plain.forward(tokens, plain.new_state(init=tuned), output="all") == found).all()
    assert relative(plain.forward(tokens, plain.new_state(), output="all"), expected) > 1e-2
