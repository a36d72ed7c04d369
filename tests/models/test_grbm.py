"""The slope of a Gaussian-Bernoulli RBM's free energy, whose law is an exact mixture of Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import CapabilityError
from models.family import HasGradient
from tests.models.cases import Case, grbm, manifest_of, normal
from tests.models.layered_reference import Reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_is_that_of_the_sum_over_hidden_states(dtype: torch.dtype) -> None:
    model, x, step = grbm(5, 4, seed=3, dtype=dtype), normal((9, 5), 4, 2.0), 1e-4
    reference = Reference.of(Case(model, manifest_of("grbm", 5, "real"), {}))
    energy, gradient = model.energy_and_gradient(x)
    assert isinstance(model, HasGradient)
    assert model.bounds is None
    assert energy.dtype == gradient.dtype == torch.float64
    np.testing.assert_allclose(energy, reference.energy(x), rtol=1e-12, atol=1e-12)
    for unit in range(5):
        moved = torch.zeros_like(x)
        moved[:, unit] = step
        # Three points: truncation h^2 E''' / 6 and rounding 1e-15 |E| / h are each below 1e-7.
        slope = (reference.energy(x + moved) - reference.energy(x - moved)) / (2 * step)
        np.testing.assert_allclose(gradient[:, unit], slope, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_of_a_row_do_not_depend_on_its_batch(threads: int) -> None:
    model, x, before = grbm(61, 37, dtype=torch.float32), normal((150, 61), 3, 2.0), torch.get_num_threads()
    energy, gradient = model.energy_and_gradient(x)
    try:
        torch.set_num_threads(threads)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
        for rows in (order, order[:1], order[3:70], order[60:129]):
            some_energy, some_gradient = model.energy_and_gradient(x[rows])
            assert torch.equal(some_energy, energy[rows])
            assert torch.equal(some_gradient, gradient[rows])
    finally:
        torch.set_num_threads(before)
    assert [len(t) for t in model.energy_and_gradient(x[:0])] == [0, 0]


def test_labels_are_refused() -> None:
    with pytest.raises(CapabilityError, match="no classes"):
        grbm(3, 2).energy_and_gradient(torch.zeros(2, 3).double(), torch.zeros(2, dtype=torch.int64))
