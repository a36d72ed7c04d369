"""Training against a generator: its entropy's slope against the exact one, and the laws that it leads to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog
from models.family import HasGenerator
from models.generator import LOG_STD
from models.manifest import Manifest, Visible
from models.rng import ChainKeys
from models.samplers.generator import FromGenerator
from tests.models.cases import case
from training.errors import DivergenceError, RecipeError
from training.objective import Batch, Draws, Objective, build
from training.objectives.adversarial import entropy_slope, followed

STD = 0.6
MIX = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)


def linear() -> HasGenerator:
    """x = A z + s e in the plane, and E(x) = |x - MEAN|^2 / 2 but for a number: leaky units of a number and of its
    opposite differ by 1.2 times the number."""
    how = {"name": "mlp", "hidden": [4], "activation": "leaky_relu"}
    config = {"latent": 2, "architecture": {"energy": how, "generator": how}, "prior_std": 1.0}
    plane = Visible(shape=[2], domain="real")
    manifest = Manifest(name="linear", version=1, family="adversarial", visible=plane, config=config)

    def network(part: str, matrix: Tensor) -> dict[str, Tensor]:
        weights = {"body.1.weight": torch.eye(2).repeat(2, 1) * torch.tensor([[1], [1], [-1], [-1]])}
        weights |= {"head.weight": torch.cat((matrix, -matrix), 1) / 1.2, "head.bias": torch.zeros(len(matrix))}
        return {f"{part}.{name}": t.double() for name, t in (weights | {"body.1.bias": torch.zeros(4)}).items()}

    tensors = network("energy", -MEAN[None]) | network("generator", MIX)
    model = catalog.build(manifest, tensors | {LOG_STD: torch.tensor(math.log(STD)).double()})
    assert isinstance(model, HasGenerator)
    return model


def adversarial(**settings: Any) -> Objective:
    return build({"name": "adversarial", "largest_std": 10.0, **settings})


# --- the entropy's slope ---


@pytest.mark.parametrize("eta", [0.6, 0.8])
def test_the_slope_of_the_entropy_is_that_of_the_gaussian_law_of_a_linear_generator(eta: float) -> None:
    model, n, samples = linear(), 60, 2000
    x, z = torch.tensor([0.9, -1.1], dtype=torch.float64), torch.tensor([0.2, -0.7], dtype=torch.float64)
    etas = torch.full((2,), eta, dtype=torch.float64)
    found = entropy_slope(model, x.expand(n, 2), z.expand(n, 2), etas, samples, Draws(5, 1))
    exact = torch.linalg.solve(MIX @ MIX.T + STD**2 * torch.eye(2).double(), x)
    stderr = found.std(0) / math.sqrt(n)
    # |t| > 5.3 with 59 degrees of freedom at either of two numbers: a false alarm less often than once in 10^5 seeds.
    assert float(((found.mean(0) - exact) / stderr).abs().max()) < 5.3
    assert float(stderr.max()) < 0.02
    # The named defect, draws that are not weighed: off by far more than the threshold.
    plain = (x - MIX @ z) / STD**2
    assert float(((plain - exact) / stderr).abs().max()) > 50


def test_the_widths_follow_the_curvature_of_the_posterior() -> None:
    # Of a linear generator -d^2 log q(x, z) / dz_i^2 is 1 + |A_i|^2 / s^2 everywhere.
    model, precision, seen = linear(), torch.full((2,), 20.0, dtype=torch.float64), list[Tensor]()
    for step in range(600):
        draws = Draws(3, step)
        z = draws.normals(torch.zeros(300, 2).double(), 0, 7)
        x = model.generate(z) + STD * draws.normals(z, 0, 8)
        precision = followed(model, x, z, precision, draws)
        seen.append(precision)
    exact = 1 + MIX.square().sum(0) / STD**2
    # Each of 400 steps has the mean of 300 terms whose standard deviation is about 10: 0.03 of about 4 in the end.
    np.testing.assert_allclose(torch.stack(seen[200:]).mean(0), exact, rtol=0.05)


# --- the laws that training leads to ---


@pytest.mark.parametrize(("weight", "posterior_std"), [(1.0, None), (0.25, 0.7)])
def test_a_generator_alone_comes_to_the_law_of_a_gaussian_energy(weight: float, posterior_std: float | None) -> None:
    # The energy held, the generator's best law is N(MEAN, weight I): the entropy's weight is a temperature.
    model, objective = linear(), adversarial(entropy_weight=weight, posterior_std=posterior_std, posterior_samples=12)
    tensors, memory, steps = model.tensors(), objective.start(model, {}, 1), 250
    for step in range(steps):
        data = Batch(torch.zeros(150, 2).double())
        gradient, memory = objective.gradient(model, data, Draws(2, step), memory)
        for name, change in gradient.items():
            if name.startswith("generator."):
                tensors[name].add_(change, alpha=0.1 * (1 - step / steps))
    x = FromGenerator().init(model, ChainKeys.of(3, 20_000), None, None).visible
    # Draws' own errors are 0.01 at most; the minibatches' and the estimate's bias take the rest.
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.08)
    np.testing.assert_allclose(x.T.cov(), weight * torch.eye(2), atol=0.1 * weight)


def test_the_energy_climbs_from_data_to_draws_less_the_penalty_on_its_slope() -> None:
    model, data = linear(), torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    draws = Draws(7, 3)
    gradient, _ = adversarial(gradient_penalty=0.4).gradient(model, Batch(data), draws, _memory())
    x = model.generate(draws.normals(data, 3, 0)) + STD * draws.normals(data, 3, 1)
    tensor = model.tensors()["energy.head.weight"]
    step, name = 1e-6, "energy.head.weight"

    def climbed() -> float:
        at = data.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.energy(at).sum(), at)
        return float(model.energy(x).mean() - model.energy(data).mean() - 0.2 * slope.square().sum(1).mean())

    for k in range(4):
        ends = []
        for sign in (1, -1):
            tensor[0, k] += sign * step
            ends.append(climbed())
            tensor[0, k] -= sign * step
        assert float(gradient[name][0, k]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def _memory() -> dict[str, Tensor]:
    return {"precision": torch.full((2,), 4.0, dtype=torch.float64)}


@pytest.mark.parametrize(("limits", "moves"), [((0.01, 0.3), -1), ((0.9, 1.0), 1), ((0.01, 10.0), None)])
def test_the_noise_stays_within_its_limits(limits: tuple[float, float], moves: int | None) -> None:
    model, batch, found = linear(), Batch(torch.zeros(50, 2).double()), list[float]()
    objective = adversarial(smallest_std=limits[0], largest_std=limits[1])
    for step in range(40):
        gradient, _ = objective.gradient(model, batch, Draws(1, step), _memory())
        found.append(float(gradient[LOG_STD]))
    # It is now led back alone, never further away.
    assert all(g * moves >= 0 for g in found) if moves else min(found) < 0 < max(found)
    assert any(found)


# --- what is refused ---


def test_energies_that_run_apart_stop_training_with_advice() -> None:
    batch = Batch(torch.ones(9, 2).double())
    with pytest.raises(DivergenceError, match=r"at step 4 the mean energies of data .* and generator .* are more than"):
        adversarial(largest_gap=1e-9).gradient(linear(), batch, Draws(1, 4), _memory())


def test_limits_that_cross_are_refused() -> None:
    with pytest.raises(RecipeError, match="smallest_std: above"):
        adversarial(smallest_std=20.0).start(linear(), {}, 1)


def test_a_model_without_a_generator_is_not_trained_so() -> None:
    assert adversarial().applies_to(linear())
    assert not adversarial().applies_to(case("mlp_energy").model)
