"""How a token is chosen, against definitions of a few lines in numpy and float64: the candidates, the distribution, the
penalties, what a bias or a function does to the logits, and the probabilities that are reported."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from helpers import rwkv

PROMPT = "def main():\n"


@pytest.fixture(scope="module")
def e():
    return rwkv.Engine("demo", threads=2)


@pytest.fixture(scope="module")
def logits(e):
    """Logits of the model's, and made up ones with many ties."""
    real = e.forward(e.tokenizer.encode(PROMPT), e.new_state())
    random = np.random.default_rng(1)
    coarse = np.full(e.config.n_vocab, -20, np.float32)
    coarse[random.choice(len(coarse), 60, replace=False)] = random.integers(-4, 5, 60) / 2
    return {"real": real, "coarse": coarse}


def params(**options):
    return rwkv.SamplingParams(**options)


# ---- definitions ----


def single(x):
    """The float64 that a number is after it was a float32."""
    return float(np.float32(x))


def log_softmax(logits):
    x = logits.astype(np.float64) - logits.max()
    return x - np.log(np.exp(x).sum())


def ranking(logits):
    """Ids, the most likely first and of equals the lower."""
    return np.argsort(-logits.astype(np.float64), kind="stable")


def distribution(logits, p):
    """The probability of each token to be drawn. Logits are float32 with all bias added."""
    order = ranking(logits)
    if p.temperature == 0 or p.top_p == 0:
        kept = order[:1]
    else:
        prob = np.exp(log_softmax(logits))[order]
        keep = np.ones(len(order), bool)
        if p.top_p < 1:
            last = np.flatnonzero(np.cumsum(prob) >= single(p.top_p))[0]
            keep &= logits[order] >= logits[order[last]]
        if p.top_k:
            keep &= np.arange(len(order)) < p.top_k
        keep &= prob >= single(p.min_p) * prob[0]
        kept = order[keep]
    scale = 1 / (single(p.temperature) or 1)
    weights = np.zeros(len(logits))
    weights[kept] = np.exp((logits[kept].astype(np.float64) - logits.max()) * scale)
    return weights / weights.sum()


def uniform(seed, counter):
    """Philox4x32-10, the first two words."""
    c = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        even, odd = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [odd >> 32 ^ c[1] ^ k[0], odd & 0xFFFFFFFF, even >> 32 ^ c[3] ^ k[1], even & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return ((c[0] << 32 | c[1]) >> 11) * 2.0**-53


def drawn(logits, p, seed, position):
    """The token at which the cumulative distribution passes the uniform number."""
    sums = np.cumsum(distribution(logits, p))
    return int(np.searchsorted(sums, uniform(seed, position) * sums[-1], side="right"))


class Penalties:
    """What the tokens of a text have cost its next token."""

    def __init__(self, e, p):
        self.e, self.p, self.weight = e, p, {}

    def write(self, token):
        p, weight = self.p, self.weight
        if p.penalty_style != "openai":
            for t in weight:
                weight[t] *= p.penalty_decay
        old = weight.get(token, 0.0)
        if p.penalty_style == "rwkv":
            weight[token] = old + (0 if self.e.tokenizer.decode([token]) in " \t0123456789" else 1)
        elif p.penalty_style == "rapid":
            weight[token] = old + (p.presence_penalty if old == 0 else p.frequency_penalty)
        else:
            weight[token] = old + 1

    def apply(self, logits):
        p = self.p
        change = dict(p.logit_bias or {})
        for t, w in self.weight.items():
            cost = w if p.penalty_style == "rapid" else p.presence_penalty + w * p.frequency_penalty
            change[t] = change.get(t, 0.0) - cost
        logits = logits.copy()
        for t, amount in change.items():
            logits[t] += np.float32(amount)
        return logits


def by_hand(e, prompt, p):
    """generate(), from forward() and the definitions above."""
    state = e.new_state()
    logits = e.forward(e.tokenizer.encode(prompt), state)
    penalties, tokens = Penalties(e, p), []
    while len(tokens) < p.max_tokens:
        changed = penalties.apply(logits)
        token = int(ranking(changed)[0]) if p.temperature == 0 else drawn(changed, p, p.seed, state.tokens_seen)
        tokens.append(token)
        penalties.write(token)
        logits = e.forward([token], state)
    return tokens


def test_the_random_numbers_are_philox():
    """Known answers of the paper's authors, as words of the uniform number."""
    assert uniform(0, 0) == (0x6627E8D5E169C58D >> 11) * 2.0**-53
    assert uniform(2**64 - 1, 2**64 - 1) != uniform(2**64 - 1, 2**32 - 1)


# ---- draws ----

SETTINGS = [
    dict(temperature=1.0, top_p=1.0),
    dict(temperature=0.6, top_p=1.0),
    dict(temperature=2.0, top_p=0.9),
    dict(top_p=0.85),
    dict(top_p=0.3),
    dict(top_p=1.0, top_k=5),
    dict(top_p=1.0, top_k=30, temperature=1.5),
    dict(top_p=1.0, min_p=0.1),
    dict(top_p=1.0, min_p=0.02, temperature=3.0),
    dict(top_p=0.9, top_k=12, min_p=0.01, temperature=1.3),
    dict(top_p=0.95, top_k=3),
    dict(top_p=0.7, min_p=0.3, temperature=0.8),
]


@pytest.mark.parametrize("kind", ["real", "coarse"])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_frequencies_are_those_of_the_distribution(e, logits, kind, options):
    """Chi-square over 10,000 positions; the seed is fixed, so this passes always or never."""
    p, row, draws = params(seed=12345, **options), logits[kind], 10_000
    exact = distribution(row, p)
    count = np.bincount([e.sample(row, p, i) for i in range(draws)], minlength=len(row))
    assert count.sum() == draws and count[exact == 0].sum() == 0
    common = exact * draws >= 5
    expected = np.append(exact[common], exact[~common].sum()) * draws
    found = np.append(count[common], count[~common].sum())
    expected, found = expected[expected >= 1], found[expected >= 1]
    chi2, degrees = ((found - expected) ** 2 / expected).sum(), len(expected) - 1
    assert degrees >= 1 or len(np.flatnonzero(exact)) == 1
    assert chi2 <= degrees + 3 * math.sqrt(2 * degrees) + 2


@pytest.mark.parametrize("kind", ["real", "coarse"])
def test_every_draw_is_that_of_the_definition(e, logits, kind):
    row = logits[kind]
    position = 0
    for temperature, top_p, top_k, min_p in itertools.product((0.5, 1, 2.5), (0.2, 0.9, 1), (0, 1, 2, 7, 70_000), (0, 0.05, 1)):
        for seed in (0, 2**63 + 5):
            position += 2**29
            p = params(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
            assert e.sample(row, p, position) == drawn(row, p, seed, position), p


def test_the_likely_ones(e, logits):
    for row in logits.values():
        best = int(ranking(row)[0])
        for options in (dict(temperature=0), dict(top_p=0), dict(top_k=1), dict(temperature=1e-30, top_p=0.1, top_k=1)):
            assert {e.sample(row, params(**options), i) for i in range(20)} == {best}
    flat = np.zeros(e.config.n_vocab, np.float32)
    assert e.sample(flat, params(temperature=0)) == 0
    # Equals: top_k takes the lower ids, top_p and min_p take all.
    assert {e.sample(flat, params(top_p=1, top_k=3, seed=1), i) for i in range(100)} == {0, 1, 2}
    for options in (dict(top_p=1e-6), dict(top_p=1, min_p=1)):
        assert len({e.sample(flat, params(seed=1, **options), i) for i in range(50)}) > 40


def test_a_draw_depends_on_seed_and_position(e, logits):
    row = logits["real"]
    p = params(temperature=3.0, top_p=1, seed=9)
    draws = [e.sample(row, p, i) for i in range(40)]
    assert draws == [e.sample(row, p, i) for i in range(40)] and len(set(draws)) > 5
    assert draws != [e.sample(row, dataclasses.replace(p, seed=10), i) for i in range(40)]
    free = dataclasses.replace(p, seed=None)
    assert len({e.sample(row, free) for _ in range(40)}) > 5


# ---- penalties ----

STRONG = [
    dict(penalty_style="rwkv", presence_penalty=1.5, frequency_penalty=0.7, penalty_decay=0.9),
    dict(penalty_style="rwkv", presence_penalty=0.0, frequency_penalty=2.5),
    dict(penalty_style="rwkv", presence_penalty=3.0),
    dict(penalty_style="rapid", presence_penalty=2.0, frequency_penalty=0.7, penalty_decay=0.97),
    dict(penalty_style="rapid", presence_penalty=0.1, frequency_penalty=1.1, penalty_decay=0.95),
    dict(penalty_style="openai", presence_penalty=1.1, frequency_penalty=0.3),
    dict(penalty_style="openai", presence_penalty=-0.4, frequency_penalty=-0.1),
    dict(penalty_style="rwkv", presence_penalty=1.0, frequency_penalty=0.5, penalty_decay=0.0),
]


def name_of(options):
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("options", STRONG, ids=name_of)
def test_greedy_with_penalties_is_the_definition(e, options):
    p = params(temperature=0, max_tokens=200, ignore_eos=True, **options)
    tokens = e.generate(PROMPT, p).tokens
    assert tokens == by_hand(e, PROMPT, p)
    plain = e.generate(PROMPT, params(temperature=0, max_tokens=200, ignore_eos=True)).tokens
    assert tokens != plain


@pytest.mark.parametrize("options", STRONG, ids=name_of)
def test_sampled_with_penalties_is_the_definition(e, options):
    p = params(
        temperature=1.2, top_p=0.92, top_k=50, min_p=0.01, seed=77, max_tokens=100, ignore_eos=True,
        logit_bias={10: 0.75, 33: -math.inf, 300: 2.5}, **options,
    )  # fmt: skip
    assert e.generate(PROMPT, p).tokens == by_hand(e, PROMPT, p)


def test_the_styles_differ(e):
    texts = set()
    for style in ("rwkv", "rapid", "openai"):
        p = params(temperature=0, max_tokens=60, ignore_eos=True, penalty_style=style, presence_penalty=0.8, frequency_penalty=0.6, penalty_decay=0.9)
        texts.add(tuple(e.generate(PROMPT, p).tokens))
    assert len(texts) == 3


def test_blanks_and_digits_do_not_add_up_in_the_packages_style(e):
    """A digit written again and again loses the presence penalty once; with "openai" every time counts."""
    digit = e.tokenizer.encode("7")[0]
    force = params(max_tokens=6, logit_bias={digit: 100.0}, frequency_penalty=30.0, temperature=0, ignore_eos=True)
    assert e.generate(PROMPT, force).tokens == [digit] * 6
    others = e.generate(PROMPT, dataclasses.replace(force, penalty_style="openai")).tokens
    assert others[:3] == [digit] * 3 and others[-1] != digit


def test_the_prompt_is_not_penalized(e):
    prompt = PROMPT * 3
    base = params(temperature=0, max_tokens=1, ignore_eos=True)
    for style in ("rwkv", "rapid", "openai"):
        strong = dataclasses.replace(base, presence_penalty=50.0, frequency_penalty=50.0, penalty_style=style)
        first = e.generate(prompt, strong)
        assert first.tokens == e.generate(prompt, base).tokens
        # It is the text that counts, over calls too, until a new prompt begins another.
        (token,) = first.tokens
        assert e.generate("", strong, state=first.state).tokens != [token]
        again = e.generate("", dataclasses.replace(base, logit_bias={token: 20.0}), state=first.state.fork())
        assert again.tokens == [token]
        fresh = first.state.fork()
        anew = e.generate(PROMPT, strong, state=fresh)
        bare = first.state.fork()
        assert anew.tokens == e.generate(PROMPT, base, state=bare).tokens


# ---- bias and processors ----


def test_logit_bias_in_a_draw(e, logits):
    for row in logits.values():
        ids = [int(i) for i in ranking(row)[:6]]
        biases = {ids[0]: -math.inf, ids[1]: -1.25, ids[4]: 3.5, 5: 0.1, e.config.n_vocab - 1: 1}
        changed = row.copy()
        for token, amount in biases.items():
            changed[token] += np.float32(amount)
        for options in (dict(top_p=1.0), dict(top_p=0.9), dict(top_p=1.0, top_k=4), dict(top_p=1.0, min_p=0.1), dict(temperature=0)):
            p = params(seed=3, logit_bias=biases, **options)
            for i in range(50):
                expected = int(ranking(changed)[0]) if p.temperature == 0 else drawn(changed, p, 3, i)
                assert e.sample(row, p, i) == expected


def test_banned_tokens_are_never_written(e):
    p = params(temperature=0, max_tokens=30, ignore_eos=True)
    banned = set(e.generate(PROMPT, p).tokens)
    p = dataclasses.replace(p, logit_bias=dict.fromkeys(banned, -math.inf))
    assert not banned & set(e.generate(PROMPT, p).tokens)
    p = dataclasses.replace(p, temperature=2.0, top_p=1.0, seed=1)
    assert not banned & set(e.generate(PROMPT, p).tokens)


def test_a_bias_can_force_and_can_ban_all(e):
    V = e.config.n_vocab
    only = params(logit_bias={t: -math.inf for t in range(V) if t != 42}, max_tokens=5, ignore_eos=True)
    result = e.generate(PROMPT, only)
    assert result.tokens == [42] * 5
    state = e.new_state()
    nothing = params(logit_bias=dict.fromkeys(range(V), -math.inf))
    with pytest.raises(rwkv.Error, match=rf"bias: expected one of {V} tokens .* found all banned"):
        e.generate(PROMPT, nothing, state=state)
    assert state.tokens_seen == 0
    with pytest.raises(rwkv.Error, match="banned"):
        e.sample(np.zeros(V, np.float32), nothing)


def test_a_processor_changes_the_logits(e):
    seen = []

    def in_place(tokens, logits):
        assert logits.dtype == np.float32 and logits.shape == (e.config.n_vocab,)
        seen.append(list(tokens))
        logits[:] = -10
        logits[50 + len(tokens)] = 10

    p = params(temperature=0, max_tokens=4, logits_processor=in_place)
    assert e.generate(PROMPT, p).tokens == [50, 51, 52, 53]
    assert seen == [[], [50], [50, 51], [50, 51, 52]]

    def returned(tokens, logits):
        return -np.abs(np.arange(len(logits)) - 70.0)  # float64

    assert e.generate(PROMPT, dataclasses.replace(p, logits_processor=returned)).tokens == [70] * 4
    for options in (dict(temperature=0), dict(seed=4, top_p=0.95)):
        p = params(max_tokens=30, ignore_eos=True, **options)
        nothing = dataclasses.replace(p, logits_processor=lambda tokens, logits: None)
        assert e.generate(PROMPT, nothing).tokens == e.generate(PROMPT, p).tokens


def test_processors_come_before_penalties_and_bias(e):
    def flat(tokens, logits):
        logits[:] = 0

    p = params(
        temperature=0, max_tokens=4, logits_processor=flat, ignore_eos=True, presence_penalty=1.0,
        logit_bias={90: 0.5, 91: 0.25, 92: -math.inf},
    )  # fmt: skip
    assert e.generate(PROMPT, p).tokens == [90, 91, 0, 1]


def test_what_a_processor_raises_reaches_the_caller(e):
    class Mine(Exception):
        pass

    def fail(tokens, logits):
        if len(tokens) == 3:
            raise Mine("here")

    p = params(temperature=0, max_tokens=10, ignore_eos=True)
    state = e.new_state()
    with pytest.raises(Mine, match="here"):
        e.generate(PROMPT, dataclasses.replace(p, logits_processor=fail), state=state)
    assert state.tokens_seen == 0
    for wrong, kind in (
        (lambda tokens, logits: logits[:-1], rwkv.Error),
        (lambda tokens, logits: logits[None], rwkv.Error),
        (lambda tokens, logits: "text", (TypeError, ValueError, rwkv.Error)),
        (lambda tokens, logits: logits * np.nan, rwkv.NonFiniteError),
        (lambda tokens, logits: np.full_like(logits, -np.inf), rwkv.NonFiniteError),
    ):
        with pytest.raises(kind):
            e.generate(PROMPT, dataclasses.replace(p, logits_processor=wrong))
    assert len(e.generate(PROMPT, p).tokens) == 10


# ---- logprobs ----


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_logprobs_are_those_of_the_raw_logits(e, count):
    p = params(
        temperature=1.5, top_p=0.9, top_k=30, seed=5, max_tokens=25, ignore_eos=True, presence_penalty=1.0,
        logit_bias={20: -math.inf, 21: 3.0}, top_logprobs=count,
    )  # fmt: skip
    result = e.generate(PROMPT, p)
    assert len(result.logprobs) == len(result.top_logprobs) == len(result.tokens) == 25
    state = e.new_state()
    logits = e.forward(e.tokenizer.encode(PROMPT), state)
    for token, logprob, top in zip(result.tokens, result.logprobs, result.top_logprobs, strict=True):
        exact = log_softmax(logits)
        assert logprob == pytest.approx(exact[token], rel=1e-6, abs=1e-7)
        assert logprob == single(logprob)
        order = ranking(logits)[:count]
        assert [t for t, _ in top] == order.tolist()
        np.testing.assert_allclose([x for _, x in top], exact[order], rtol=1e-6, atol=1e-7)
        assert dict(top).get(token, logprob) == logprob
        logits = e.forward([token], state)


def test_a_stream_has_the_same_logprobs(e):
    p = params(temperature=0, max_tokens=12, top_logprobs=3, ignore_eos=True)
    result = e.generate(PROMPT, p)
    pieces = [piece for piece in e.stream(PROMPT, p) if piece.token is not None]
    assert [piece.logprob for piece in pieces] == result.logprobs
    assert [piece.top_logprobs for piece in pieces] == result.top_logprobs
    # Greedy: the first of the list is the token.
    assert all(top[0] == (token, logprob) for token, logprob, top in zip(result.tokens, result.logprobs, result.top_logprobs, strict=True))


def test_all_tokens_may_be_listed(e):
    V = e.config.n_vocab
    result = e.generate(PROMPT, params(max_tokens=1, top_logprobs=V, ignore_eos=True))
    (top,) = result.top_logprobs
    assert sorted(t for t, _ in top) == list(range(V))
    assert sum(math.exp(x) for _, x in top) == pytest.approx(1, abs=1e-5)
    with pytest.raises(rwkv.Error, match=f"top_logprobs: expected 0 to {V}, found {V + 1}"):
        e.generate(PROMPT, params(max_tokens=1, top_logprobs=V + 1))
