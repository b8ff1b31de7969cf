"""The compatibility layer against the `rwkv` package itself: the same script in both, for every version.

The package decides at its import which versions it serves, so it runs once for RWKV-7 and once for the others.
"""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
from compat_models import VERSIONS, of_version
from helpers import child_environment, relative

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
ours, words, result, paths = sys.argv[1] == "ours", sys.argv[2], sys.argv[3], sys.argv[4:]
os.environ.update(RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
if ours:
    import rwkv_engine.compat
    rwkv_engine.compat.install()
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

as_numpy = lambda x: x.detach().cpu().numpy().copy()
all_of = lambda state: [as_numpy(x) for x in state]

def run(path):
    model = RWKV(path, "cpu fp32")
    pipeline = PIPELINE(model, "rwkv_vocab_v20230424")
    pipeline.tokenizer = TRIE_TOKENIZER(words)
    found = {"args": vars(model.args), "version": getattr(model, "version", 7)}
    rows, states, identity, texts = [], [], [], []

    def step(tokens, state, **options):
        before = None if state is None else copy.deepcopy(state)
        items = None if state is None else [state[i] for i in range(len(state))]
        out, after = model.forward(tokens, state, **options)
        rows.extend(np.atleast_2d(as_numpy(out)))
        states.append(all_of(after))
        if state is not None:  # what has become of the list that was passed, and of its elements
            states.append(all_of(state))
            states.append(all_of(items))
            identity.append((after is state, len(after), out.shape))
        return out, after, before

    out, state, _ = step([18, 51, 31], None, full_output=True)
    saved = copy.deepcopy(state)
    for token in [7, 8, 9]:
        out, state, _ = step([token], state)
    out, other, before = step([7, 8, 9], saved)
    step([3], saved)  # advanced or not, by version
    step([7], before, full_output=True)
    again = [x.clone() for x in before]
    step([5, 6], again)  # a plain list
    edited = copy.deepcopy(before)
    for i in range(len(edited)):
        edited[i] = edited[i].clone()
    edited[1] *= 0.5
    edited[0][3] = 0.25
    step([7, 8], edited)
    kept = pickle.loads(pickle.dumps(other))
    step([9], kept)
    short = copy.copy(kept)
    step([9, 4], short)
    step([9, 4], kept)
    for seed in range(3):
        for settings in [dict(temperature=0), dict(temperature=1.3, top_p=0.9, top_k=30)]:
            pieces = []
            np.random.seed(seed)
            args = PIPELINE_ARGS(**settings, token_ban=[0, 5], token_stop=[60], chunk_len=4)
            given = None if seed == 0 else copy.deepcopy(kept)
            whole = pipeline.generate("some 12 words, seed %d" % seed, 40, args=args, callback=pieces.append, state=given)
            texts.append((whole, pieces))
            if given is not None:
                states.append(all_of(given))
    return dict(found, rows=rows, states=states, identity=identity, texts=texts)

found = [run(path) for path in paths]
pipeline = PIPELINE(None, "rwkv_vocab_v20230424")
tokenizer = TRIE_TOKENIZER(words)
text = "Hello, \\u4e16\\u754c 123\\r\\n\\n"
ids = pipeline.encode(text)
tokens = (ids, pipeline.decode(ids), tokenizer.encodeBytes(b"ab"), tokenizer.decodeBytes([97, 98]),
          tokenizer.idx2token, tokenizer.token2idx, pipeline.refine_context(" a \\n\\n b\\u3000\\r\\n\\nc "),
          pipeline.tokenizer.idx2token[33155], vars(PIPELINE_ARGS(token_stop=[1])))
logits = np.random.RandomState(1).normal(0, 2, 128).astype(np.float32)
if not ours:
    import torch
    logits = torch.tensor(logits)
draws = {}
for case in [(1.0, 0.85, 0), (0.6, 0.7, 0), (1.8, 0.95, 6)] * int(os.environ["RWKV_V7_ON"]):  # once is enough
    np.random.seed(11)
    draws[case] = [pipeline.sample_logits(logits, *case) for _ in range(10000)]
pickle.dump((found, tokens, draws), open(result, "wb"))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """({version: what its script found}, tokens, draws) of ours and of the package."""
    folder = tmp_path_factory.mktemp("compat")
    words = folder / "words.txt"
    words.write_text("".join(f"{i} {chr(i)!r} 1\n" for i in range(1, 128)))
    answers = {}
    for who in ("ours", "package"):
        by_version = {}
        for versions in (VERSIONS[:-1], VERSIONS[-1:]):
            result = folder / f"{who}.pickle"
            paths = [str(of_version(version).path()).removesuffix(".pth") for version in versions]
            environment = {**child_environment(), "RWKV_V7_ON": str(int(versions == ["7"])), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, who, words, result, *paths],
                env=environment, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            found, tokens, draws = pickle.loads(result.read_bytes())
            by_version.update(zip(versions, found, strict=True))
        answers[who] = by_version, tokens, draws
    return answers["ours"], answers["package"]


@pytest.mark.parametrize("version", VERSIONS)
def test_one_script_gives_the_same_with_both(both, version):
    (ours, *_), (package, *_) = both
    a, b = ours[version], package[version]
    assert relative(np.stack(a["rows"]), np.stack(b["rows"])) <= 1e-4
    assert a["identity"] == b["identity"], "the list that comes back, and the shapes"
    assert a["texts"] == b["texts"]
    assert sum(len(whole) > 10 for whole, _ in a["texts"]) >= 2, "not all end with the stop token at once"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_state_is_the_packages_element_by_element(both, version):
    """Those that come back, those that were passed, and the elements that were taken out before a step."""
    (ours, *_), (package, *_) = both
    a, b = ours[version]["states"], package[version]["states"]
    assert len(a) == len(b) > 30
    for mine, theirs in zip(a, b, strict=True):
        assert [(x.shape, x.dtype) for x in mine] == [(x.shape, x.dtype) for x in theirs]
        assert all(relative(x, y) <= 1e-4 for x, y in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_attributes_are_the_packages(both, version):
    (ours, *_), (package, *_) = both
    mine, theirs = ours[version]["args"], package[version]["args"]
    assert {name: mine.get(name) for name in theirs} == theirs
    assert ours[version]["version"] == package[version]["version"] == float(version)
    assert type(ours[version]["version"]) is type(package[version]["version"])


def test_tokens_and_texts_are_the_packages(both):
    (_, ours, _), (_, package, _) = both
    assert ours == package


@pytest.mark.parametrize("case", [(1.0, 0.85, 0), (0.6, 0.7, 0), (1.8, 0.95, 6)])
def test_draws_are_the_packages(both, case):
    (*_, ours), (*_, package) = both
    a, b = (np.bincount(d[case], minlength=128) for d in (ours, package))
    seen = a + b > 0
    chi2 = ((a - b)[seen] ** 2 / (a + b)[seen]).sum()
    assert chi2 <= seen.sum() + 4 * np.sqrt(2 * seen.sum()) + 8
    assert np.mean(np.array(ours[case]) == package[case]) > 0.99, "the same seed draws the same"
