"""The compatibility layer against the `rwkv` package itself, the same script in both."""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import child_environment, model, relative

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not (importlib.util.find_spec("torch") and importlib.util.find_spec("rwkv")),
        reason="torch or rwkv is not installed",
    ),
]

SCRIPT = """
import copy, os, pickle, sys
import numpy as np
ours, path, words, result = sys.argv[1] == "ours", *sys.argv[2:]
os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
if ours:
    import rwkv_engine.compat
    rwkv_engine.compat.install()
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS
if not ours:
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
model = RWKV(path, "cpu fp32")
pipeline = PIPELINE(model, words if ours else "rwkv_vocab_v20230424")
if not ours:
    pipeline.tokenizer = TRIE_TOKENIZER(words)
as_numpy = lambda x: x.detach().cpu().numpy().copy()
rows, texts = [], []
out, state = model.forward([18, 51, 31], None, full_output=True)
rows += list(as_numpy(out))
saved = copy.deepcopy(state)
for token in [7, 8, 9]:
    out, state = model.forward(token, state)
    rows.append(as_numpy(out))
out, _ = model.forward([7, 8, 9], saved)
rows.append(as_numpy(out))
out, _ = model.forward([7], saved, full_output=True)
rows.append(as_numpy(out))
for i in range(len(saved)):
    saved[i] = saved[i].clone()
saved[1] *= 0.5
out, _ = model.forward([7], saved)
rows.append(as_numpy(out))
for seed in range(4):
    for settings in [dict(temperature=0), dict(temperature=1.3, top_p=0.9, top_k=30)]:
        pieces = []
        np.random.seed(seed)
        args = PIPELINE_ARGS(**settings, token_ban=[0, 5], token_stop=[60], chunk_len=4)
        whole = pipeline.generate("some 12 words, seed %d" % seed, 60, args=args, callback=pieces.append)
        texts.append((whole, pieces))
logits = np.random.RandomState(1).normal(0, 2, 128).astype(np.float32)
if not ours:
    import torch
    logits = torch.tensor(logits)
draws = {}
for case in [(1.0, 0.85, 0), (0.6, 0.7, 0), (1.8, 0.95, 6)]:
    np.random.seed(11)
    draws[case] = [pipeline.sample_logits(logits, *case) for _ in range(10000)]
pickle.dump((rows, [as_numpy(x) for x in state], texts, draws), open(result, "wb"))
"""


def test_one_script_gives_the_same_with_both(tmp_path):
    m = model(L=4, C=256, N=64, V=128, ranks=(32, 32, 16, 64), layer0_v=True)
    words = tmp_path / "words.txt"
    words.write_text("".join(f"{i} {chr(i)!r} 1\n" for i in range(1, 128)))
    found = {}
    for who in ("ours", "package"):
        result = tmp_path / f"{who}.pickle"
        path = str(m.path("bf16")).removesuffix(".pth")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, who, path, words, result],
            env=child_environment(), capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[who] = pickle.loads(result.read_bytes())
    (rows, state, texts, draws), (rows2, state2, texts2, draws2) = found["ours"], found["package"]
    assert relative(np.stack(rows), np.stack(rows2)) <= 1e-4
    assert len(state) == len(state2)
    assert all(relative(a, b) <= 1e-4 for a, b in zip(state, state2))
    assert texts == texts2 and all(whole for whole, _ in texts)
    for case, drawn in draws.items():
        a, b = (np.bincount(d, minlength=128) for d in (drawn, draws2[case]))
        seen = a + b > 0
        chi2 = ((a - b)[seen] ** 2 / (a + b)[seen]).sum()
        assert chi2 <= seen.sum() + 4 * np.sqrt(2 * seen.sum()) + 8
        assert np.mean(np.array(drawn) == draws2[case]) > 0.99, "the same seed draws the same"
