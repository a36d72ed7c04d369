"""The Bernoulli RBM with 10 visible and 6 hidden units against sums over all of its 65,536 states, written as loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.families.rbm import RBM
from models.family import Clamp
from models.rng import ChainKeys
from models.samplers.gibbs import Gibbs
from tests.models.cases import rbm, states

D, F = 10, 6
MODEL = rbm(D, F, seed=42)


@pytest.fixture(scope="module")
def joint() -> np.ndarray:
    """exp(-E(v, h)) for every v and h, (2^10, 2^6), from E(v, h) = -v'Wh - b'v - c'h."""
    w, b, c = MODEL.W.numpy(), MODEL.b.numpy(), MODEL.c.numpy()
    weights = np.empty((1 << D, 1 << F))
    for i, v in enumerate(itertools.product((0, 1), repeat=D)):
        for j, h in enumerate(itertools.product((0, 1), repeat=F)):
            on_v, on_h = [u for u in range(D) if v[u]], [u for u in range(F) if h[u]]
            weights[i, j] = w[np.ix_(on_v, on_h)].sum() + b[on_v].sum() + c[on_h].sum()
    return np.exp(weights)


VISIBLE, HIDDEN = states((0.0, 1.0), D), states((0.0, 1.0), F)


def test_joint_and_free_energies(joint: np.ndarray) -> None:
    v = VISIBLE.repeat_interleave(1 << F, 0)
    h = HIDDEN.repeat(1 << D, 1)
    energies = MODEL.joint_energy({"visible": v, "hidden": h}).numpy()
    np.testing.assert_allclose(energies, -np.log(joint).ravel(), atol=1e-9)
    np.testing.assert_allclose(MODEL.energy(VISIBLE), -np.log(joint.sum(1)), atol=1e-9)


def test_log_z_and_marginals(joint: np.ndarray) -> None:
    assert MODEL.log_partition() == pytest.approx(np.log(joint.sum()), abs=1e-9)
    p = np.exp(-MODEL.energy(VISIBLE).numpy() - MODEL.log_partition())
    assert p.sum() == pytest.approx(1.0, abs=1e-9)
    marginals = (joint / joint.sum()).sum(1) @ VISIBLE.numpy()
    np.testing.assert_allclose(p @ VISIBLE.numpy(), marginals, atol=1e-9)


def test_conditionals_of_both_blocks(joint: np.ndarray) -> None:
    hidden = MODEL.conditional("hidden", {"visible": VISIBLE, "hidden": HIDDEN[:1].expand(1 << D, -1)}).mean()
    np.testing.assert_allclose(hidden, joint @ HIDDEN.numpy() / joint.sum(1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(MODEL.features(VISIBLE), hidden, atol=1e-9)
    visible = MODEL.conditional("visible", {"visible": VISIBLE[:1].expand(1 << F, -1), "hidden": HIDDEN}).mean()
    np.testing.assert_allclose(visible, (joint.T @ VISIBLE.numpy()) / joint.sum(0)[:, None], atol=1e-9)


def test_completion_posterior(joint: np.ndarray) -> None:
    known = {0: 1.0, 3: 0.0, 7: 1.0, 8: 1.0}
    fits = np.array([all(v[i] == value for i, value in known.items()) for v in VISIBLE.numpy()])
    exact = joint[fits].sum(1) / joint[fits].sum()
    posterior = torch.softmax(-MODEL.energy(VISIBLE[torch.from_numpy(fits)]), 0)
    np.testing.assert_allclose(posterior, exact, atol=1e-9)
    # And a clamped chain's conditionals are those of the joint law given what is known, for each hidden state.
    visible = MODEL.conditional("visible", {"visible": torch.zeros(1 << F, D).double(), "hidden": HIDDEN})
    free = [i for i in range(D) if i not in known]
    given = (joint[fits].T @ VISIBLE.numpy()[fits]) / joint[fits].sum(0)[:, None]
    np.testing.assert_allclose(visible.mean()[:, free], given[:, free], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_agree(dtype: torch.dtype, joint: np.ndarray) -> None:
    model = rbm(D, F, seed=42, dtype=dtype)
    error = 1e-4 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(model.energy(VISIBLE.to(dtype)), -np.log(joint.sum(1)), atol=error)
    hidden = model.conditional("hidden", {"visible": VISIBLE, "hidden": HIDDEN[:1].expand(1 << D, -1)}).mean()
    np.testing.assert_allclose(hidden, joint @ HIDDEN.numpy() / joint.sum(1, keepdims=True), atol=error)
    assert model.log_partition() == pytest.approx(np.log(joint.sum()), abs=error)


def test_the_rounding_of_sampled_parameters_is_what_the_model_says() -> None:
    error = float((MODEL.W - MODEL.machine._matrices[0].value).abs().max())
    assert MODEL.rounding_error == error
    assert 0.0 < error < 1e-12
    assert rbm(784, 500, dtype=torch.float32).rounding_error < 1e-12
    assert rbm(784, 500, dtype=torch.float32, domain="unit").rounding_error < 1e-7


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4, 1e12])
def test_no_sum_of_parameters_as_sampled_rounds(scale: float) -> None:
    # Summed in float64 in two orders: the same number; the bias, which is not on the grid, is added last.
    model = rbm(301, 67, seed=1, scale=scale)
    w, b = model.machine._matrices[0].value, model.b
    h = torch.randint(0, 2, (67,), generator=torch.Generator().manual_seed(0)).bool()
    forwards, backwards = torch.zeros_like(b), torch.zeros_like(b)
    for j in range(67):
        forwards = forwards + w[:, j] * h[j]
        backwards = backwards + w[:, 66 - j] * h[66 - j]
    logits = model.conditional("visible", {"visible": torch.zeros(1, 301).double(), "hidden": h[None].double()})
    assert torch.equal(forwards, backwards)
    assert torch.equal(logits.logits[0], b + forwards)  # type: ignore[attr-defined]


def test_intensities_count_in_conditionals_without_breaking_the_bits() -> None:
    # In the domain `unit` a chain may be clamped at 0.3: the hidden logits are then c + v'W to 16 bits of v, and still
    # the same in every batch.
    model = rbm(61, 37, seed=2, dtype=torch.float32, domain="unit")
    v = torch.rand(45, 61, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = {"visible": v, "hidden": torch.zeros(45, 37).double()}
    logits = model.conditional("hidden", batch).logits  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        logits, model.c.double() + v @ model.W.double(), atol=61 * 2.0**-17 * float(model.W.abs().max())
    )
    for i in range(45):
        one = {name: block[i : i + 1] for name, block in batch.items()}
        assert torch.equal(model.conditional("hidden", one).logits[0], logits[i])  # type: ignore[attr-defined]
    mask = torch.ones(45, 61, dtype=torch.bool)
    clamp = Clamp(mask, v)
    keys = ChainKeys.of(1, 45)
    state, _ = Gibbs().step(model, Gibbs().init(model, keys, None, clamp), keys, clamp)
    assert torch.equal(state.visible, v)


def test_an_rbm_of_spins_is_not_offered() -> None:
    assert RBM.domains == {"binary", "unit"}
    assert rbm(3, 2).score_is_relaxed
    assert not rbm(3, 2, domain="unit").score_is_relaxed
