"""The laws that blocks of units are drawn from: normalised, with their means, and drawn from as `models.rng` draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, softmax

from models import rng
from models.conditionals import Bernoulli, Categorical, Conditional, Gaussian, Spin
from models.rng import ChainKeys
from tests.models.cases import normal, states
from tests.models.kernels import OUTCOMES

LOGITS = 3.0 * normal((40, 3), 1)
KEYS, SWEEP = ChainKeys.of(3, 40), torch.arange(40)


@pytest.mark.parametrize("kind", [Bernoulli, Spin, Categorical])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_discrete_laws_sum_to_one_and_have_their_mean(kind: type[Bernoulli], scale: float) -> None:
    law = kind(scale * LOGITS)
    everything = states(OUTCOMES[kind], 3)
    p = torch.stack([law.log_prob(outcome.expand(40, -1)) for outcome in everything], 1).exp()
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(law.mean(), p @ everything, atol=1e-12)


def test_the_log_odds_are_those_given() -> None:
    a = LOGITS[:, :1]
    one, zero, minus = (torch.full((40, 1), value, dtype=torch.float64) for value in (1.0, 0.0, -1.0))
    np.testing.assert_allclose(Bernoulli(a).log_prob(one) - Bernoulli(a).log_prob(zero), a[:, 0], atol=1e-12)
    np.testing.assert_allclose(Spin(a).log_prob(one) - Spin(a).log_prob(minus), a[:, 0], atol=1e-12)
    np.testing.assert_allclose(Bernoulli(a).mean(), expit(a.numpy()), atol=1e-14)
    np.testing.assert_allclose(Spin(a).mean(), np.tanh(a.numpy() / 2), atol=1e-14)
    np.testing.assert_allclose(Categorical(LOGITS).mean(), softmax(LOGITS.numpy(), axis=1), atol=1e-14)


def test_the_gaussian_law_is_scipys() -> None:
    location, std, x = LOGITS, normal((40, 3), 2).exp(), normal((40, 3), 3)
    law = Gaussian(location, std)
    np.testing.assert_allclose(
        law.log_prob(x), np.sum(stats.norm.logpdf(x.numpy(), location.numpy(), std.numpy()), axis=1), atol=1e-12
    )
    assert torch.equal(law.mean(), location)


@pytest.mark.parametrize("stream", [0, 7])
def test_draws_are_those_of_the_generator(stream: int) -> None:
    coins = rng.bernoulli(LOGITS, KEYS, SWEEP, stream)
    assert torch.equal(Bernoulli(LOGITS).sample(KEYS, SWEEP, stream), coins)
    assert torch.equal(Spin(LOGITS).sample(KEYS, SWEEP, stream), 2 * coins - 1)
    assert torch.equal(Categorical(LOGITS).sample(KEYS, SWEEP, stream), rng.categorical(LOGITS, KEYS, SWEEP, stream))
    z = (Gaussian(LOGITS, 0.5 * torch.ones_like(LOGITS)).sample(KEYS, SWEEP, stream) - LOGITS) / 0.5
    np.testing.assert_allclose(z, rng.normals(KEYS, SWEEP, stream, 3), atol=1e-13)


@pytest.mark.parametrize("kind", [Bernoulli, Spin, Categorical])
def test_draws_follow_the_law(kind: type[Bernoulli]) -> None:
    # Chi-square at 1e-6.
    n, logits = 20_000, torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    law: Conditional = kind(logits.expand(n, -1))
    drawn = law.sample(ChainKeys.of(5, n), torch.zeros(n, dtype=torch.int64), 0)
    everything = states(OUTCOMES[kind], 3)
    counts = np.array([int((drawn == outcome).all(1).sum()) for outcome in everything])
    p = np.array([math.exp(float(kind(logits).log_prob(outcome[None]))) for outcome in everything])
    assert counts.sum() == n
    assert stats.chisquare(counts, n * p / p.sum()).pvalue > 1e-6
