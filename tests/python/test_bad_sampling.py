"""Sampling parameters and logits that make no sense are refused, by name and before anything happens."""

import math

import numpy as np
import pytest
from helpers import rwkv


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=2)


def params(**options):
    return rwkv.SamplingParams(**options)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "options",
    [
        *(dict(temperature=x) for x in (-1, -1e-9, NAN, INF, 1e300)),
        *({name: x} for name in ("top_p", "min_p", "penalty_decay") for x in (-0.1, 1.0001, NAN, INF)),
        *({name: x} for name in ("presence_penalty", "frequency_penalty") for x in (NAN, INF, -INF, 1e300)),
        *(dict(top_k=x) for x in (-1, 2**31, 1 << 70)),
        *(dict(seed=x) for x in (-1, 2**64)),
        *(dict(max_tokens=x) for x in (-1, 2**63)),
        *(dict(top_logprobs=x) for x in (-1, 2**40)),
        *(dict(penalty_style=x) for x in ("", "RWKV", "other")),
        *(dict(logit_bias=x) for x in ({-1: 0.0}, {2**31: 0.0}, {3: NAN}, {3: INF}, {3: 1e300})),
        *(dict(stop_tokens=x) for x in ([-1], [2**31])),
        *(dict(stop=x) for x in ("", ["a", ""], "\ud800")),
    ],
    ids=str,
)
def test_numbers_out_of_range_name_the_parameter(options):
    (name,) = options
    with pytest.raises(rwkv.Error, match=rf"^{name}.*expected .*found "):
        params(**options)


@pytest.mark.parametrize(
    "options",
    [
        *({name: x} for name in ("temperature", "top_p", "min_p", "presence_penalty", "penalty_decay") for x in ("1", None, [1], 1j)),
        *({name: x} for name in ("top_k", "max_tokens", "top_logprobs") for x in (1.0, "1", None)),
        *(dict(seed=x) for x in (1.5, "x")),
        *(dict(logit_bias=x) for x in ([1], "x", {1.5: 1}, {"1": 1}, {1: "x"}, {1: None})),
        *(dict(stop_tokens=x) for x in (5, "ab", [1.5], None)),
        *(dict(stop=x) for x in (5, b"x", [1], None)),
        *(dict(ignore_eos=x) for x in (1, "yes", None)),
        *(dict(logits_processor=x) for x in (1, "f")),
    ],
    ids=str,
)
def test_other_types_name_the_parameter(options):
    (name,) = options
    with pytest.raises(TypeError, match=name):
        params(**options)
    with pytest.raises(TypeError):
        params(unknown=1)
    with pytest.raises(TypeError):
        rwkv.SamplingParams(0.5)


def test_tokens_beyond_the_vocabulary_are_refused(e):
    V = e.config.n_vocab
    row = np.zeros(V, np.float32)
    bias = params(logit_bias={V: 1.0})
    for call in (lambda: e.sample(row, bias), lambda: e.generate("a", bias), lambda: next(e.stream("a", bias))):
        with pytest.raises(rwkv.Error, match="logit_bias"):
            call()


def test_logits_that_cannot_be_sampled(e):
    V = e.config.n_vocab
    row = np.zeros(V, np.float32)
    for wrong in (row[:-1], row[None], row.astype(np.float64), row.tolist(), None, "text"):
        with pytest.raises((rwkv.Error, TypeError)):
            e.sample(wrong)
    for at, value in ((0, NAN), (V - 1, INF), (7, -NAN)):
        bad = row.copy()
        bad[at] = value
        for p in (params(), params(temperature=0), params(top_k=3)):
            with pytest.raises(rwkv.NonFiniteError, match=f"logit of token {at}: expected a finite number or -inf"):
                e.sample(bad, p)
    with pytest.raises(rwkv.NonFiniteError, match=f"expected one above -inf among {V}, found none"):
        e.sample(np.full(V, -np.inf, np.float32))
    for position, kind in ((-1, rwkv.Error), (2**64, rwkv.Error), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(kind, match="position"):
            e.sample(row, params(), position)
    for wrong in (dict(top_p=1), 3, "x"):
        with pytest.raises(TypeError, match="params"):
            e.sample(row, wrong)
    assert e.sample(row[::-1], params(temperature=0)) == 0  # any strides
