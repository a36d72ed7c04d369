"""The RBM against scikit-learn's BernoulliRBM with the same weights, where the two define the same thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.neural_network import BernoulliRBM

from models.families.rbm import RBM
from tests.models.cases import rbm


def theirs(model: RBM) -> BernoulliRBM:
    other = BernoulliRBM(n_components=model.W.shape[1])
    other.components_ = model.W.numpy().T
    other.intercept_hidden_ = model.c.numpy()
    other.intercept_visible_ = model.b.numpy()
    other.n_features_in_ = model.W.shape[0]
    return other


def binary(n: int, d: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, d), generator=torch.Generator().manual_seed(d)).double()


@pytest.mark.parametrize("size", [(10, 6), (64, 32), (784, 100)])
def test_free_energies_and_features_are_the_same(size: tuple[int, int]) -> None:
    model, x = rbm(*size, seed=3, scale=0.3), binary(50, size[0])
    other = theirs(model)
    np.testing.assert_allclose(model.energy(x), other._free_energy(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(model.features(x), other.transform(x.numpy()), atol=1e-14)


@pytest.mark.parametrize("size", [(10, 6), (64, 32)])
def test_their_scores_are_our_energy_differences(size: tuple[int, int]) -> None:
    # score_samples is the pseudo-likelihood D log sigmoid(F(v with one unit flipped) - F(v)), the unit drawn at random.
    model, x = rbm(*size, seed=3, scale=0.3), binary(50, size[0])
    other = theirs(model)
    other.random_state = 7
    flipped = np.random.RandomState(7).randint(0, size[0], len(x))
    y = x.clone()
    y[torch.arange(len(x)), torch.from_numpy(flipped)] = 1 - y[torch.arange(len(x)), torch.from_numpy(flipped)]
    ours = size[0] * np.log(expit((model.energy(y) - model.energy(x)).numpy()))
    np.testing.assert_allclose(other.score_samples(x.numpy()), ours, rtol=1e-9)


def test_their_pseudo_likelihood_is_our_conditional() -> None:
    # log p(v_i | rest) from energies is what the score of a flip estimates: here for every unit, against the exact law.
    model = rbm(6, 4, seed=3)
    x = binary(20, 6)
    for unit in range(6):
        y = x.clone()
        y[:, unit] = 1 - y[:, unit]
        log_p = -torch.logaddexp(torch.zeros(20).double(), model.energy(x) - model.energy(y))
        joint = torch.stack((-model.energy(x), -model.energy(y)))
        np.testing.assert_allclose(log_p, joint[0] - joint.logsumexp(0), atol=1e-12)
