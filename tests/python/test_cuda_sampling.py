"""Tokens of many texts at once are drawn on the device by few launches, and are those of the CPU."""

import os

import pytest
from helpers import TINY, model

import rwkv_engine as rwkv

COUNT = 70
# Launches for three tokens: of rows with biases 64 fit into one, and penalties begin with the second token.
LAUNCHES = [({}, 3), ({"logit_bias": {3: 1.5}}, 6), ({"top_logprobs": 2, "frequency_penalty": 0.5}, 5)]


@pytest.mark.parametrize(("options", "launches"), LAUNCHES)
def test_tokens_of_many_texts(device, tmp_path, options, launches, monkeypatch):
    words, trace = tmp_path / "words.txt", tmp_path / "trace"
    words.write_text("".join(f"{i} '{chr(96 + i)}' 1\n" for i in range(1, TINY["V"])))
    prompts = [[1 + i % 11, 1 + i // 11] for i in range(COUNT)]
    params = [
        rwkv.SamplingParams(temperature=1 + i % 2, top_p=0.8, seed=i, max_tokens=3, ignore_eos=True, **options)
        for i in range(COUNT)
    ]

    def drawn(strategy):
        e = rwkv.Engine(model(**TINY).path(), strategy, threads=2, tokenizer=words)
        return [result.tokens for result in e.generate_batch(prompts, params)]

    expected = drawn("cpu fp32")
    assert len({tuple(tokens) for tokens in expected}) > 20
    monkeypatch.setenv("RWKV_CUSIM", f"stream:late,trace:{trace}")
    assert drawn("cuda fp32") == expected
    if "cusim" in os.environ.get("RWKV_CUDA_LIBRARY", ""):  # a GPU writes none
        assert trace.read_text().split().count("sample") == launches
