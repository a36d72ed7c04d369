"""Sums of exponentials, enumeration of states, and the grid on which sums are exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from models.numerics import all_binary_states, exact_grid, log_mean_exp, snap, softplus


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_log_mean_exp_and_its_standard_error(offset: float) -> None:
    w = np.random.default_rng(0).normal(size=50)
    value, stderr = log_mean_exp(torch.from_numpy(w + offset))
    assert value == pytest.approx(logsumexp(w) - math.log(50) + offset, rel=1e-12)
    weights = np.exp(w)
    assert stderr == pytest.approx(weights.std(ddof=1) / weights.mean() / math.sqrt(50), rel=1e-9)


def test_equal_weights_have_no_spread_and_a_single_one_no_known_spread() -> None:
    value, stderr = log_mean_exp(torch.full((7,), -3.0))
    assert value == pytest.approx(-3.0)
    assert stderr == 0.0
    assert log_mean_exp(torch.tensor([2.0])) == (2.0, math.inf)


def test_single_precision_weights_are_summed_in_double() -> None:
    w = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    assert log_mean_exp(w) == log_mean_exp(w.double())


def test_softplus_is_log_one_plus_exp_to_rounding() -> None:
    x = torch.linspace(-60, 60, 4801, dtype=torch.float64)
    exact = np.logaddexp(0.0, x.numpy())
    np.testing.assert_allclose(softplus(x), exact, rtol=1e-15)
    assert softplus(torch.tensor([1e4, 1e300], dtype=torch.float64)).tolist() == [1e4, 1e300]
    assert bool(torch.isfinite(softplus(torch.tensor([-1e30, 39.9, 40.1, 1e30]))).all())


@pytest.mark.parametrize("units", [1, 2, 5])
def test_all_binary_states_are_counted_with_the_first_unit_fastest(units: int) -> None:
    states = all_binary_states(units, 0, 1 << units, torch.device("cpu"))
    assert states.dtype == torch.float64
    assert [tuple(reversed(row)) for row in states.tolist()] == list(itertools.product((0.0, 1.0), repeat=units))
    assert torch.equal(all_binary_states(units, 1, 2, torch.device("cpu")), states[1:2])


@pytest.mark.parametrize("bound", [0.0, 1e-300, 1e-5, 0.75, 1.0, 1.0000001, 3.7, 4096.0, 1e5, 1e12, 1e300])
def test_the_exact_grid_is_the_finest_power_of_two_that_holds_the_bound_in_53_bits(bound: float) -> None:
    grid = exact_grid(bound)
    assert math.frexp(grid)[0] == 0.5
    assert grid >= 2.0**-40
    assert bound <= 2.0**52 * grid
    assert grid == 2.0**-40 or bound > 2.0**51 * grid


@pytest.mark.parametrize("bound", [math.inf, math.nan])
def test_no_grid_holds_an_infinite_bound(bound: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        exact_grid(bound)


def test_snapping_rounds_to_the_nearest_multiple() -> None:
    values = torch.tensor([0.1, -0.1, 0.124, 0.126, 3.0])
    assert snap(values, 0.25).tolist() == [0.0, 0.0, 0.0, 0.25, 3.0]
    fine = snap(values, 2.0**-40)
    assert float((fine - values.double()).abs().max()) <= 2.0**-41
    assert torch.equal(fine / 2.0**-40, torch.round(fine / 2.0**-40))
