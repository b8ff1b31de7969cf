"""What the engine keeps in memory: the packed weights while loading, nothing more with every token."""

import pathlib

import numpy as np
import pytest
from helpers import SMALL, folder, model, python, random_model, save

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)

RSS = """
import sys
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
import numpy as np
import rwkv_engine as rwkv
"""

LOADING = (
    RSS
    + """
before = anonymous()
peak = before
calls = 0
def sample(done, total):
    global peak, calls
    peak, calls = max(peak, anonymous()), calls + 1
sparse = {"kept twice": None, "kept once": False}[sys.argv[3]]
options = {"threads": 2, "progress": sample, "sparse": sparse}
options["adapters"] = [rwkv.Adapter(path, alpha=8) for path in sys.argv[4:]]
engine = rwkv.Engine(sys.argv[1], sys.argv[2], **options)
sample(0, 0)
state = engine.new_state()
engine.forward(list(range(200)), state)
print(calls, peak - before, anonymous() - before)
"""
)


@pytest.fixture(scope="module")
def large():
    """About 230 MB in bf16. Every layer repeats the second one's numbers: what they are does not matter here."""
    weights = random_model(L=2, C=1024, N=64, V=20_000, ranks=(64, 64, 32, 128))
    for i in range(2, 6):
        weights |= {
            name.replace("blocks.1.", f"blocks.{i}."): t
            for name, t in weights.items()
            if "blocks.1." in name
        }
    halves = {
        name: (t.view(np.uint32) >> 16).astype(np.uint16) for name, t in weights.items()
    }  # bf16 as its bits
    return save(folder() / "large.pth", halves), weights


@pytest.mark.parametrize("values", ["kept twice", "kept once"])  # of the ffn, to skip zeros
@pytest.mark.parametrize("strategy", ["cpu bf16", "cpu fp32"])
def test_loading_needs_the_packed_weights_and_little_more(large, strategy, values):
    path, weights = large
    matrix_bytes = 2 if strategy == "cpu bf16" else 4
    packed = sum(
        t.size
        * (matrix_bytes if t.ndim == 2 and name != "emb.weight" else 2)
        * (2 if name.endswith("ffn.value.weight") and values == "kept twice" else 1)
        for name, t in weights.items()
    )
    calls, peak, after = map(int, python(LOADING, path, strategy, values).split())
    allowed = packed * 1.1 + 16e6
    assert calls > 10
    assert peak <= allowed, (
        f"peak while loading {peak / 1e6:.0f} MB, packed weights {packed / 1e6:.0f} MB"
    )
    assert after <= allowed, (
        f"{after / 1e6:.0f} MB after 200 tokens, packed weights {packed / 1e6:.0f} MB"
    )


def test_merging_needs_the_adapter_besides(large, tmp_path):
    path, weights = large
    parts, rng = {}, np.random.default_rng(0)
    for name, t in weights.items():
        if name.startswith("blocks.") and name.endswith(".weight") and t.ndim == 2:
            for part, shape in (("A", (16, t.shape[1])), ("B", (t.shape[0], 16))):
                parts[name.replace("weight", "lora_" + part)] = rng.normal(0, 0.01, shape)
    adapter = save(tmp_path / "lora.pth", parts)
    arguments = (path, "cpu bf16", "kept once")
    _, plain, plain_after = map(int, python(LOADING, *arguments).split())
    _, peak, after = map(int, python(LOADING, *arguments, adapter).split())
    floats = sum(4 * t.size for t in parts.values())
    assert peak <= plain + 2 * floats + 16e6, f"{(peak - plain) / 1e6:.0f} MB more than without"
    assert after <= plain_after + floats + 16e6


STREAM = (
    RSS
    + """
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
tokens = np.random.default_rng(0).integers(0, 40, 10_000)
state = engine.new_state()
sizes = []
for i in range(int(sys.argv[2])):
    engine.forward(tokens, state, output="none")
    for branch in state.fork(8):
        engine.forward(tokens[:3], branch)
    engine.state_from_bytes(state.to_bytes())
    for token in tokens[:200]:
        engine.forward([token], state)
    sizes.append(anonymous())
print(max(sizes[len(sizes) // 4:]) - sizes[len(sizes) // 4], state.tokens_seen)
"""
)


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_long_stream_keeps_nothing(rounds):
    growth, seen = map(int, python(STREAM, model(**SMALL).path(), rounds, timeout=600).split())
    assert seen == rounds * 10_200
    assert growth < 2e6, f"{growth} bytes more after {seen} tokens"


STEPS = (
    RSS
    + """
import resource
engine = rwkv.Engine(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]))
state, token = engine.new_state(), 1
def steps(count):
    global token
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(count):
        token = int(engine.forward([token], state).argmax())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
steps(50)
print(min(steps(200) for _ in range(5)))
"""
)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu int8", "cpu int4"])
def test_tokens_one_by_one_touch_no_new_page(strategy, threads):
    """With logits of 256 KB, for which the C library likes to ask the system each time."""
    path = model(L=2, C=64, N=16, V=65_536).path("bf16")
    # The system itself may take a page away now and then, but not in every round.
    assert int(python(STEPS, path, strategy, threads)) == 0


FAILED = (
    RSS
    + """
sizes = []
for i in range(60):
    try:
        rwkv.Engine(sys.argv[1], "cpu fp32", threads=2)
    except rwkv.ModelFormatError:
        pass
    else:
        sys.exit("loaded")
    sizes.append(anonymous())
print(sizes[-1] - sizes[10])
"""
)


def test_failed_loads_keep_nothing(tmp_path):
    """The last tensor in the file's order is wrong, so most of the work has been done when it is found."""
    weights = random_model(L=2, C=256, N=64, V=2000, ranks=(8, 8, 8, 8))
    weights["head.weight"] = weights["head.weight"][:, :-1]
    assert int(python(FAILED, save(tmp_path / "bad.pth", weights))) < 2e6


def test_a_state_costs_what_it_holds():
    code = (
        RSS
        + """
engine = rwkv.Engine(sys.argv[1], "cpu fp32", threads=1)
states = [engine.new_state() for _ in range(64)]
for state in states:
    engine.forward([1], state, output="none")
before = anonymous()
branches = [branch for state in states for branch in state.fork(200)]
print(anonymous() - before, sum(b.nbytes for b in branches))
"""
    )
    grown, held = map(int, python(code, model(**SMALL).path()).split())
    assert held > 100e6 and grown < held / 10, "forks share until they step"
