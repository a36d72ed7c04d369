"""The RBM against scikit-learn's BernoulliRBM with the same weights, where the two define the same thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
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


@pytest.mark.parametrize("domain", ["binary", "unit"])
def test_label_units_are_further_visible_units(domain: str) -> None:
    # With one-hot labels joined to v, theirs is an RBM over both: F(v, y), and p(y | v) = softmax of -F(v, y).
    model = rbm(12, 5, seed=4, domain=domain, classes=3)
    assert model.U is not None
    assert model.d is not None
    both = RBM(torch.cat((model.W, model.U)), torch.cat((model.b, model.d)), model.c)
    x = (
        binary(30, 12)
        if domain == "binary"
        else torch.rand(30, 12, generator=torch.Generator().manual_seed(1)).double()
    )
    every = np.stack(
        [theirs(both)._free_energy(np.hstack((x.numpy(), np.tile(np.eye(3)[k], (30, 1))))) for k in range(3)], 1
    )
    for k in range(3):
        np.testing.assert_allclose(model.class_energy(x, torch.full((30,), k)), every[:, k], rtol=1e-12)
    np.testing.assert_allclose(model.energy(x), -logsumexp(-every, axis=1), rtol=1e-12)
    posterior = -every - logsumexp(-every, axis=1, keepdims=True)
    np.testing.assert_allclose(model.class_log_probs(x), posterior, atol=1e-12)
    expected = sum(
        np.exp(posterior[:, k : k + 1]) * theirs(both).transform(np.hstack((x.numpy(), np.tile(np.eye(3)[k], (30, 1)))))
        for k in range(3)
    )
    np.testing.assert_allclose(model.features(x), expected, atol=1e-12)
