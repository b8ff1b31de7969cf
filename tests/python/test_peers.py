"""llama.cpp loads the GGUF files that are written here and computes the same. Run with --peers and llama-cpp-python."""

import numpy as np
import pytest
from helpers import model, relative

import rwkv_engine as rwkv

pytestmark = pytest.mark.peers

SHAPE = dict(L=3, C=256, N=64, F=1024, V=65536, dtype="f16")
TEXT = "The state of an RNN — 状态 — has a size of its own.\n\n\tfor i in range(3):  print('✿')\n"
# The matrices' type -> how far logits may be from ours in float32 on the same numbers. llama.cpp rounds activations too.
TOLERANCES = {"f32": 1e-5, "f16": 1e-5, "bf16": 3e-2, "q8_0": 5e-2, "q4_0": 5e-2}
LOSSLESS = ("f32", "f16")  # for these models; then the numbers are those of the checkpoint itself


@pytest.fixture(scope="module", params=["6", "7"])
def checkpoint(request):
    ranks = {"6": (32, 64), "7": (32, 32, 32, 64)}[request.param]
    return model(version=request.param, ranks=ranks, **SHAPE).path("f32")


def llama(path):
    import llama_cpp

    return llama_cpp.Llama(
        str(path), n_ctx=256, n_batch=64, n_threads=2, logits_all=True, verbose=False
    )


def logits_of(peer, tokens):
    peer.reset()
    peer.eval(tokens)
    return np.array(peer.scores[: len(tokens)])


@pytest.mark.parametrize("kind", TOLERANCES)
def test_llama_cpp_computes_the_same(tmp_path, checkpoint, kind):
    rwkv.convert(checkpoint, tmp_path / "a.gguf", kind)
    source = checkpoint if kind in LOSSLESS else tmp_path / "a.gguf"
    engine = rwkv.Engine(source, "cpu fp32", threads=2)
    tokens = np.random.default_rng(3).integers(1, 65000, 100).tolist()
    ours = engine.forward(tokens, engine.new_state(), output="all")
    theirs = logits_of(llama(tmp_path / "a.gguf"), tokens)
    assert relative(theirs, ours) < TOLERANCES[kind]
    if kind in LOSSLESS:
        assert (theirs.argmax(1) == ours.argmax(1)).all()
        state = engine.new_state()
        engine.forward(tokens[:-1], state)  # and once more as a continuation
        assert relative(theirs[-1], engine.forward(tokens[-1:], state)) < TOLERANCES[kind]


@pytest.mark.parametrize("version", ["6", "7"])
def test_models_of_other_vocabularies(tmp_path, version):
    """One that is not known to us is left out; the demo model's goes along."""
    source = model(version=version, L=1, C=64, N=64, V=300, ranks=(32,) * (4 if version == "7" else 2)).path("f32")
    for path, kind in ((source, "unknown"), ("demo", "own")):
        rwkv.convert(path, tmp_path / f"{kind}.gguf", "f32")
        engine, peer = rwkv.Engine(path, "cpu fp32", threads=2), llama(tmp_path / f"{kind}.gguf")
        tokens = list(range(1, 60))
        ours = engine.forward(tokens, engine.new_state(), output="all")
        assert relative(logits_of(peer, tokens), ours) < 1e-3
    assert peer.tokenize(b"def main(self):\n", False, False) == engine.tokenizer.encode("def main(self):\n")


def test_llama_cpp_has_the_vocabulary(tmp_path, checkpoint):
    rwkv.convert(checkpoint, tmp_path / "a.gguf", "q8_0")
    peer, world = llama(tmp_path / "a.gguf"), rwkv.Tokenizer.world()
    data = TEXT.encode()
    assert peer.tokenize(data, add_bos=False, special=False) == world.encode(data)
    assert peer.detokenize(world.encode(data)) == data
    assert peer.token_bos() == peer.token_eos() == 0 and peer.n_vocab() == 65536
