"""Sums of exponentials, enumeration of states, and the grid on which sums are exact."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from models.numerics import (
    ExactMatrix,
    all_binary_states,
    exact_grid,
    invariant_sum,
    log_mean_exp,
    log_odds,
    snap,
    softplus,
)


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


def test_log_odds_have_one_pseudo_observation_and_are_finite() -> None:
    found = log_odds(torch.tensor([0.0, 50.0, 100.0]), 100)
    np.testing.assert_allclose(found, np.log([0.5 / 100.5, 1, 100.5 / 0.5]))


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e6, 1e300])
def test_an_invariant_sum_is_the_same_in_every_order_and_company_and_nearly_exact(scale: float) -> None:
    terms = scale * torch.randn(50, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = invariant_sum(terms)
    for order in range(5):
        shuffled = terms[:, torch.randperm(31, generator=torch.Generator().manual_seed(order))]
        assert torch.equal(invariant_sum(shuffled), found)
    for rows in (slice(0, 1), slice(7, 9), slice(20, 50)):
        assert torch.equal(invariant_sum(terms[rows]), found[rows])
    exact = [math.fsum(row) for row in terms.tolist()]
    np.testing.assert_allclose(found, exact, atol=31 * 31 * 2.0**-53 * float(terms.abs().max()), rtol=0)


def test_an_invariant_sum_of_nothing_and_of_zeros_is_zero() -> None:
    assert invariant_sum(torch.zeros(3, 0)).tolist() == [0.0] * 3
    assert invariant_sum(torch.zeros(2, 5)).tolist() == [0.0] * 2


@pytest.mark.parametrize(("step", "bound"), [(1.0, 1.0), (2.0**-16, 1.0), (2.0**-20, 2.0**10)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_products_of_an_exact_matrix_do_not_round(step: float, bound: float, scale: float) -> None:
    # Against fractions: every multiple of `step` within the bound times the planes, in any order of summation.
    generator = torch.Generator().manual_seed(2)
    matrix = scale * torch.randn(23, 5, generator=generator, dtype=torch.float64)
    held = ExactMatrix.of(matrix, step, bound)
    x = bound * (2 * torch.rand(4, 23, generator=generator, dtype=torch.float64) - 1)
    x = torch.randint(0, 2, (4, 23), generator=generator).double() if step == bound else snap(x, step)
    for plane in held.planes:
        found = x @ plane
        for row, column in itertools.product(range(4), range(5)):
            terms = zip(x[row].tolist(), plane[:, column].tolist(), strict=True)
            assert Fraction(float(found[row, column])) == sum(Fraction(a) * Fraction(b) for a, b in terms)
    order = torch.randperm(23, generator=generator)
    shuffled = ExactMatrix(tuple(plane[order] for plane in held.planes))
    assert torch.equal(held(x), shuffled(x[:, order]))
    assert torch.equal(held.T.value, held.value.T)
    # One plane or two: to 2^-40 of the largest sum for each row that is summed, or better, whatever the step.
    assert float((held.value - matrix).abs().max()) <= 23 * 2.0**-40 * max(1.0, float(matrix.abs().sum(0).max()))


def test_an_exact_matrix_of_nothing_is_zero() -> None:
    assert ExactMatrix.of(torch.zeros(3, 2))(torch.ones(1, 3).double()).tolist() == [[0.0, 0.0]]
    assert ExactMatrix.of(torch.zeros(3, 2), 2.0**-20, 2.0**10)(torch.ones(1, 3).double()).tolist() == [[0.0, 0.0]]
