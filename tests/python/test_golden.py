"""What stays the same from release to release: the demo's greedy text, its fingerprint, and saved states that once were."""

import pathlib

import numpy as np
import pytest

import rwkv_engine as rwkv

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
PROMPT = "def main("
TEXT = (DATA / "demo-greedy.txt").read_text()


@pytest.fixture(scope="module")
def engine():
    return rwkv.Engine("demo", "cpu fp32", threads=2)


def test_the_greedy_text(engine):
    params = rwkv.SamplingParams(temperature=0, max_tokens=40)
    assert engine.generate(PROMPT, params).text == TEXT


def test_the_fingerprint(engine):
    assert engine.fingerprint == "bfd4e928bc3aed801ab50cb1da024b0a1221e283b487ede436d516e5254ae80a"


@pytest.mark.parametrize("path", sorted((DATA / "states").iterdir()), ids=lambda path: path.stem)
def test_states_of_all_releases_load(engine, path):
    """Each was saved after PROMPT with strategy cpu fp32; bits may differ from build to build, numbers may not.

    Those with fp16 in their names were saved as halves.
    """
    state = engine.load_state(path)
    again = engine.new_state()
    ids = engine.tokenizer.encode(PROMPT)
    engine.forward(ids, again)
    assert (state.tokens_seen, state.last_token) == (len(ids), ids[-1])
    np.testing.assert_allclose(state.last_logits, again.last_logits, rtol=0, atol=1e-4)
    relative = 2**-11 if "fp16" in path.stem else 0
    for name, part in again.to_numpy().items():
        np.testing.assert_allclose(state.to_numpy()[name], part, rtol=relative, atol=1e-4, err_msg=name)
    params = rwkv.SamplingParams(temperature=0, max_tokens=40)
    assert engine.generate("", params, state=state).text == TEXT


@pytest.mark.parametrize("path", sorted((DATA / "texts").iterdir()), ids=lambda path: path.stem)
def test_texts_of_all_releases_go_on(engine, path):
    """Each was saved after 12 tokens; its penalties are what keeps the text from repeating itself."""
    params = rwkv.SamplingParams(temperature=0, max_tokens=12, presence_penalty=1.0, frequency_penalty=0.5)
    whole = engine.generate(PROMPT, rwkv.SamplingParams(temperature=0, max_tokens=24, presence_penalty=1.0, frequency_penalty=0.5))
    rest = engine.generate("", params, state=engine.load_state(path))
    assert rest.tokens == whole.tokens[12:]
    unpunished = engine.generate("", rwkv.SamplingParams(temperature=0, max_tokens=12), state=engine.load_state(path))
    assert unpunished.tokens != rest.tokens
