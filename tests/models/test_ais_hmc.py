"""Annealed importance sampling by Hamiltonian Monte Carlo against log Z that is known, exactly or by quadrature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats

from models import dynamics
from models.estimator import Effort
from models.estimators import ais_hmc
from models.estimators.ais_hmc import AISHMC, TARGET, _Path, temperatures
from models.family import HasEnumeration, HasGradient
from models.rng import ChainKeys
from tests.models.cases import case, normal, rbm
from tests.models.plane import Normal, Slope, fast_rows

FALSE_ALARM = 1e-6
Z_SCORE = float(stats.norm.isf(FALSE_ALARM / 2))


def gaussian(units: int) -> Normal:
    """Correlated, off the origin, narrower than the law that chains start from."""
    A = normal((units, units), 5, 0.3)
    model = Normal(normal((units,), 6), A @ A.T + 0.2 * torch.eye(units).double())
    model.spread = 1.5
    return model


def by_quadrature(name: str, seed: int = 5) -> tuple[HasGradient, float]:
    """A network of two units and log of the integral of exp(-E) over a grid of cells."""
    model = case(name, 2, 3, seed=seed).model
    assert isinstance(model, HasGradient)
    low, high = model.bounds or (-14.0, 14.0)
    axis = low + (high - low) * (torch.arange(600).double() + 0.5) / 600
    with fast_rows():
        energy = model.energy_and_gradient(torch.cartesian_prod(axis, axis))[0]
    return model, float((-energy).logsumexp(0)) + 2 * math.log((high - low) / 600)


def known(name: str) -> tuple[HasGradient, float]:
    if name == "gaussian":
        return gaussian(5), gaussian(5).log_z
    if name == "box":
        slope = Slope([3.0, -2.0], (0.0, 1.0))
        return slope, sum(math.log((1 - math.exp(-a)) / a) for a in (3.0, -2.0))
    if name == "grbm":
        model = case("grbm", 6, 4, seed=2, scale=0.7).model
        assert isinstance(model, HasGradient)
        assert isinstance(model, HasEnumeration)
        return model, model.log_partition()
    return by_quadrature(name)


@pytest.mark.parametrize("name", ["gaussian", "box", "grbm", "mlp_energy", "mlp_energy unit", "jem"])
def test_the_estimate_is_within_its_standard_error_of_the_truth(name: str) -> None:
    model, exact = known(name)
    with fast_rows():
        found = AISHMC().estimate(model, Effort(chains=500, temperatures=120, seed=3))
    assert found.method == "ais_hmc"
    assert found.stderr < 0.1
    # The delta method's bias, -stderr^2 / 2, is far below.
    assert abs(found.value - exact) < Z_SCORE * found.stderr + 1e-6


@pytest.mark.parametrize("name", ["gaussian", "grbm"])
def test_errors_are_those_of_the_estimates(name: str) -> None:
    # The squares of 30 errors, in standard errors, are a chi-square of 30 degrees of freedom: two-sided at 1e-6.
    model, exact = known(name)
    with fast_rows():
        path, keys = _Path(model), ChainKeys.of(11, 30 * 60)
        betas = temperatures(80)
        steps = path.step_sizes(ChainKeys.of(1, 50), betas, lambda _: None)
        _, log_weights = path.walk(keys, betas, lambda k, _: steps[k], lambda _: None)
    groups = (log_weights - exact).exp().reshape(30, 60)
    z = (groups.mean(1) - 1) / (groups.std(1) / math.sqrt(60))
    assert float(groups.std()) > 0.05
    assert float(stats.chi2.ppf(FALSE_ALARM, 30)) < float(z.square().sum()) < float(stats.chi2.isf(FALSE_ALARM, 30))


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_temperatures_rise_from_0_to_1_slowly_at_both_ends(count: int) -> None:
    steps = np.diff(temperatures(count))
    assert temperatures(count)[0] == 0.0
    assert temperatures(count)[-1] == 1.0
    assert bool((steps > 0).all())
    np.testing.assert_allclose(steps, steps[::-1], atol=1e-12)
    assert count < 100 or steps[50] > 10 * steps[0]


@contextmanager
def never_refused() -> Iterator[None]:
    real = dynamics.transition

    def transition(*of: object) -> dynamics.Moved:
        with patch.object(dynamics.rng, "accept", lambda ratio, *_: torch.isfinite(ratio)):
            return real(*of)  # type: ignore[arg-type]

    with patch.object(dynamics, "transition", transition):
        yield


@contextmanager
def base_forgotten() -> Iterator[None]:
    """As if the law that chains start from had Z = 1 where it is exp(-x^2 / 2 s^2) without its constant."""
    real = ais_hmc.Gaussian.log_prob

    def log_prob(law: ais_hmc.Gaussian, x: torch.Tensor) -> torch.Tensor:
        return real(law, x) + (torch.log(law.std) + 0.5 * math.log(2 * math.pi)).sum(1)

    with patch.object(ais_hmc.Gaussian, "log_prob", log_prob):
        yield


def z_of(model: HasGradient, exact: float, n: int = 4000, count: int = 30, steps: float = 1.3) -> float:
    """Standard errors between the mean of weight / Z and 1; few temperatures and large steps show defects the more."""
    with fast_rows():
        _, log_weights = _Path(model).walk(ChainKeys.of(4, n), temperatures(count), lambda *_: steps, lambda _: None)
    ratio = (log_weights - exact).exp()
    return float((ratio.mean() - 1) / (ratio.std() / math.sqrt(n)))


def test_defects_are_seen() -> None:
    model, exact = known("grbm")
    assert abs(z_of(model, exact)) < Z_SCORE
    # Beyond 8: another seed would be taken for right with a probability of 1e-3.
    with base_forgotten():
        assert abs(z_of(model, exact)) > 8
    with never_refused():
        assert abs(z_of(model, exact)) > 8


def test_pilots_find_steps_that_are_accepted_as_often_as_meant() -> None:
    model, _ = known("gaussian")
    betas, rates = temperatures(200), []
    path = _Path(model)
    steps = path.step_sizes(ChainKeys.of(1, 50), betas, lambda _: None)

    def size(k: int, rate: float) -> float:
        rates.append(rate)
        return steps[k]

    path.walk(ChainKeys.of(2, 400), betas, size, lambda _: None)
    assert len(steps) == 200
    assert abs(np.mean(rates[100:]) - TARGET) < 0.1


def test_it_applies_to_models_with_gradients() -> None:
    assert AISHMC.applies_to(case("grbm").model)
    assert AISHMC.applies_to(case("score_energy unit").model)
    assert not AISHMC.applies_to(rbm(3, 2))
    assert not AISHMC.applies_to(case("score_network").model)
