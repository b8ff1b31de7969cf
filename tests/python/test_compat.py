"""The `rwkv` package's `RWKV` and its modules' names: its scripts run unchanged."""

import importlib.util
import pathlib
import pickle

import numpy as np
import pytest
from helpers import SMALL, bits, model, python, rwkv

from rwkv_engine import compat
from rwkv_engine.compat import PIPELINE, RWKV

DEMO_WORDS = pathlib.Path(rwkv.__file__).parent / "data" / "demo-vocab.txt"


@pytest.fixture(scope="module")
def m():
    return RWKV(str(model(**SMALL).path()), "cpu fp32")


def test_forward_has_the_bits_of_the_engine_however_it_is_called(m):
    tokens = model(**SMALL).tokens(20)
    expected = m.engine.forward(tokens, m.engine.new_state(), output="all")
    whole, end = m.forward(tokens, None, full_output=True)
    assert type(whole) is compat.Tensor and bits(whole.numpy()) == bits(expected)
    state = None
    for at in range(0, 20, 7):
        out, state = m.forward(tokens[at : at + 7], state)
    assert bits(out) == bits(expected[-1])
    state = m.generate_zero_state()
    for t, row in zip(tokens, expected):
        out, state = m.forward(t if t % 2 else np.int64(t), state)
        assert bits(out) == bits(row)
    assert all((a == b).all() for a, b in zip(state, end))
    assert bits(m.forward(None, state)[0]) == bits(expected[-1])
    assert m.forward(tokens[:1], None, full_output=True)[0].shape == (SMALL["V"],)
    assert bits(m.forward(np.array(tokens), None)[0]) == bits(m(tuple(tokens), None)[0]) == bits(expected[-1])


def test_logits_answer_as_tensors(m):
    out, state = m.forward([1, 2], None)
    assert out.detach() is out and out.cpu() is out and out.float() is out
    assert type(out.numpy()) is np.ndarray and np.shares_memory(out.numpy(), out)
    copied = out.clone()
    assert type(copied) is compat.Tensor and not np.shares_memory(copied, out)
    out[3] -= 0.5
    out[0] = -float("inf")
    assert out[3] == copied[3] - np.float32(0.5) and out.argmin() == 0 and out.tolist()[0] == -np.inf
    assert float(out[1]) == copied[1] and (out * 2)[1] == copied[1] * 2
    assert bits(m.forward(None, state)[0]) == bits(copied), "the state's logits are its own"
    assert bits(pickle.loads(pickle.dumps(copied))) == bits(copied)
    assert copied.argmax(dim=-1) == copied.argmax() == copied.numpy().argmax() == copied.argmax(0).item()
    assert copied.device == "cpu" == copied.device.type and copied.to(copied.device) is copied
    assert copied.to("cpu:0", non_blocking=True) is copied.to(device="cpu", dtype="torch.float32") is copied
    for elsewhere in ("cuda", "cuda:1", "torch.float16", 0):
        with pytest.raises(rwkv.DeviceError, match=r"found (cuda|float16|0)"):
            copied.to(elsewhere)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_functions_of_torch_take_logits_and_elements(m):
    import torch

    out, state = m.forward([1, 2], None)
    probs = torch.softmax(out.float(), dim=-1)
    assert type(probs) is torch.Tensor and abs(float(probs.sum()) - 1) < 1e-6
    assert int(torch.argmax(out)) == out.argmax() and len(torch.stack([out, out])) == 2
    expected = m.forward([3], state)[0]
    tensors = [torch.tensor(x) for x in state]
    assert bits(m.forward([3], tensors)[0]) == bits(expected)
    state[1] = tensors[1].to(torch.float64)
    assert bits(m.forward([3], state)[0]) == bits(expected)
    assert isinstance(PIPELINE(m, "rwkv_vocab_v20230424").sample_logits(torch.tensor(out)), int)


def test_arguments_that_make_no_sense(m):
    for call, words in [
        (lambda: m.forward([], None), "at least one token"),
        (lambda: m.forward([SMALL["V"]], None), str(SMALL["V"])),
        (lambda: m.forward(None, None), "without logits"),
        (lambda: m.forward([1], [np.zeros(3, np.float32)]), "expected 6 arrays (3 a layer), found 1"),
        (lambda: m.forward([1], [np.zeros(3, np.float32)] * 6), "(att.shift of layer 0), found (3,)"),
        (lambda: RWKV("demo", "cpu fp32", convert_and_save_and_exit="x"), "convert_and_save"),
        (lambda: PIPELINE(m, "20B_tokenizer.json"), "20B_tokenizer.json"),
        (lambda: PIPELINE(m, "cl100k_base"), "rwkv_vocab_v20230424"),
    ]:
        with pytest.raises(rwkv.Error) as error:
            call()
        assert words in str(error.value)
    with pytest.raises(TypeError):
        m.forward([1], "state")


def test_strategies_that_this_build_lacks():
    with pytest.raises(rwkv.DeviceError, match="cuda"):
        RWKV("demo", "cuda fp16")
    with pytest.raises(rwkv.DeviceError, match="cuda"):
        RWKV("demo", "cuda fp16i8 *10+")
    with pytest.raises(rwkv.StrategyError, match="found 'fp16i8'"):
        RWKV("demo", "cpu fp16i8")
    assert RWKV("demo", "cpu fp16").args.n_layer == 4
    assert RWKV("demo", "cpu bf16 *2 -> cpu fp32").args.n_layer == 4


def test_path_without_its_suffix_and_attributes():
    path = str(model(**SMALL).path())
    m = RWKV(path.removesuffix(".pth"), strategy="cpu fp32", verbose=False)
    assert m.engine.fingerprint == RWKV(pathlib.Path(path), "cpu fp32").engine.fingerprint
    a = m.args
    assert (a.n_layer, a.n_embd, a.vocab_size, a.n_head, a.head_size) == (2, 64, 40, 4, 16)
    assert a.MODEL_NAME == path.removesuffix(".pth") and (m.n_layer, m.n_embd) == (2, 64)
    assert (m.version, a.n_att, a.n_ffn, a.strategy_string) == (7, 64, 192, "cpu fp32")
    with pytest.raises(rwkv.Error, match="nowhere"):
        RWKV("nowhere", "cpu fp32")


def test_there_is_no_dictionary_of_weights(m):
    for name in ("w", "z"):
        assert not hasattr(m, name)
        with pytest.raises(rwkv.Error, match=f"RWKV.{name}: expected a script that needs no dictionary"):
            getattr(m, name)


SCRIPT = """
import copy, os, sys
import rwkv_engine.compat
rwkv_engine.compat.install()
rwkv_engine.compat.install()
os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "1"
os.environ["RWKV_CUDA_ON"] = "0"

from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS

model = RWKV(model=sys.argv[1], strategy="cpu fp32")

out, state = model.forward([18, 51, 31, 23], None)
print(out.detach().cpu().numpy())
out, state = model.forward([18, 51], None)
out, state = model.forward([31], state)
saved = copy.deepcopy(state)
out, state = model.forward([23], state)
first = out.detach().cpu().numpy()
out, state = model.forward([18, 51, 31, 23], None)
assert (out.detach().cpu().numpy() == first).all()
out, _ = model.forward([23], saved)
assert (out.detach().cpu().numpy() == first).all()

pipeline = PIPELINE(model, sys.argv[2])
ctx = "def main("
print(ctx, end="")
def my_print(s):
    print(s, end="", flush=True)
args = PIPELINE_ARGS(temperature=1.0, top_p=0.7, top_k=100, alpha_frequency=0.25, alpha_presence=0.25,
                     alpha_decay=0.996, token_ban=[0], token_stop=[], chunk_len=256)
pipeline.generate(ctx, token_count=20, args=args, callback=my_print)

occurrence, out_last, all_tokens = {}, 0, []
out, state = model.forward(pipeline.encode(ctx), None)
for i in range(20):
    for n in occurrence:
        out[n] -= 0.2 + occurrence[n] * 0.2
    token = pipeline.sample_logits(out, temperature=1.0, top_p=0.5)
    all_tokens += [token]
    occurrence[token] = 1 + occurrence.get(token, 0)
    out, state = model.forward([token], state)
print(pipeline.decode(all_tokens))
import importlib.util
import rwkv
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
assert isinstance(pipeline.tokenizer, TRIE_TOKENIZER)
assert all(importlib.util.find_spec(name) for name in ("rwkv", "rwkv.model", "rwkv.utils"))
assert rwkv.model.RWKV is RWKV and "torch" not in sys.modules
rwkv_engine.compat.uninstall()
assert not [name for name in sys.modules if name.split(".")[0] == "rwkv"]
"""


def test_scripts_for_the_package_run_unchanged():
    data = DEMO_WORDS.parent
    assert "def main(" in python(SCRIPT, data / "demo-rwkv7-1.2M", DEMO_WORDS)


def test_install_after_the_package_was_imported_is_refused(tmp_path):
    (tmp_path / "rwkv.py").write_text("")
    python(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import rwkv, rwkv_engine\nfrom rwkv_engine import compat\n"
        "try: compat.install()\n"
        "except rwkv_engine.Error as error: assert 'rwkv.py' in str(error) and 'before' in str(error)\n"
        "else: raise SystemExit('not refused')\n"
        "del sys.modules['rwkv']; compat.install()\nfrom rwkv.model import RWKV\n"
        "assert RWKV is compat.RWKV\n",
        tmp_path,
    )
