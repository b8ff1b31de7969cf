"""Strategy cpu int8: against the definition with quantised products, and what trained models lose by it.

That splits, batches, threads and instruction sets change no bit is in test_exact.py.
"""

import numpy as np
import pytest
from helpers import DEEP_32, OLDER, SMALL, engine, model, models_folder, relative, round_to

import rwkv_engine as rwkv

FULL = dict(L=2, C=192, A=128, N=64, F=512, V=100)
SHAPES = {
    **{"rwkv-" + version: options | FULL for version, options in OLDER.items()},
    **{"odd rwkv-" + version: options for version, options in OLDER.items()},
    "rwkv-7": SMALL,
    "odd rwkv-7": dict(L=2, C=35, N=5, F=91, V=13, ranks=(3, 5, 7, 9)),
    "rwkv-7a": DEEP_32,
}
LARGE = ("receptance", "key", "value", "gate", "output", "head")


def quantised(t, scale_type=None):
    """Groups of 64 along the last axis, each in 127 steps to either side."""
    width = t.shape[-1]
    padded = np.pad(t, [(0, 0)] * (t.ndim - 1) + [(0, -width % 64)])
    groups = padded.reshape(*t.shape[:-1], -1, 64)
    scale = np.abs(groups).max(-1, keepdims=True) / 127
    if scale_type:
        scale = round_to(scale.astype(np.float32), scale_type).astype(np.float64)
    steps = np.round(groups / np.where(scale == 0, 1, scale))
    return (steps * scale).reshape(padded.shape)[..., :width]


class Rounding:
    """For both sides of a product, the matrix first: of the large matrices only."""

    def __init__(self, weights):
        large = (t for name, t in weights.items() if name.split(".")[-2] in LARGE)
        self.weights = {id(t): quantised(t, "bf16") for t in large}
        self.quantises = False

    def __call__(self, t):
        if t.ndim == 2:
            self.quantises = id(t) in self.weights
            return self.weights.get(id(t), t)
        return quantised(t) if self.quantises else t


@pytest.mark.parametrize("shape", SHAPES)
def test_it_matches_the_definition_with_quantised_products(shape):
    options = SHAPES[shape]
    m, e, exact = model(**options), engine("cpu int8", **options), engine(**options)
    tokens = m.tokens(40)
    rounding = Rounding(m.exact)
    expected, _ = m.reference(tokens, round=rounding)
    found = e.forward(tokens, e.new_state(), output="all")
    fp32 = exact.forward(tokens, exact.new_state(), output="all")
    # Steps that float32 takes the other way than float64 are few, and what they change is small.
    assert relative(found, expected) <= 1e-2
    assert 5e-4 < relative(found, fp32) <= 0.1
    assert relative(found[:3], expected[:3]) < 0.5 * relative(found[:3], fp32[:3])
    assert len(rounding.weights) > 6 * options["L"]


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ["demo", "tiny-rwkv4-660K", "tiny-rwkv6-3M", "tiny-rwkv7-834K"])
def test_trained_models_lose_little(name):
    path = name if name == "demo" else models_folder() / (name + ".pth")
    if name != "demo" and not path.exists():
        pytest.skip(f"{path} is absent")
    with open(__file__, "rb") as file:
        text = file.read()
    full, quantised_ = (rwkv.Engine(str(path), s, threads=2) for s in ("cpu fp32", "cpu int8"))
    tokens = full.tokenizer.encode(text.decode()) if name == "demo" else list(text)
    p, q = (
        log_softmax(e.forward(tokens[:500], e.new_state(), output="all"))
        for e in (full, quantised_)
    )
    divergence = (np.exp(p) * (p - q)).sum(-1)
    assert 1e-7 < divergence.mean() < 2e-3
    assert (p.argmax(-1) == q.argmax(-1)).mean() > 0.97
