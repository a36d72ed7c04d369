"""Scores and their slopes of models whose energy is smooth, differentiable by the parameters (MATH 6, 7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.family import EnergyModel, HasGradient, HasNoiseScales
from models.layered_family import LayeredModel
from models.network_family import ScalarEnergy


def is_smooth(model: EnergyModel) -> bool:
    """Whether the visibles are continuous and the energy, not a sum over many states, can be differentiated twice."""
    if isinstance(model, LayeredModel):
        return model.machine.log_sigma is not None and model.machine.depth == 1
    return isinstance(model, HasGradient)


def is_unbounded(model: EnergyModel) -> bool:
    """Whether the energy is smooth on the whole space: integrals by parts have no terms at borders."""
    return is_smooth(model) and bounds(model) is None


def bounds(model: EnergyModel) -> tuple[float, float] | None:
    """The interval of each visible unit, or None: the whole line."""
    return model.bounds if isinstance(model, HasGradient) else None


def drift(model: EnergyModel, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
    """s(x) = -grad E(x), a number: nothing is differentiated through it."""
    at = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(at).sum(), at)
    return -slope


def score(model: EnergyModel, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
    """s(x) = -grad E(x), differentiable by the parameters, and by x where it is a leaf that says so."""
    at = x if x.requires_grad else x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(at).sum(), at, create_graph=True)
    return -slope


def score_along(
    model: EnergyModel, x: Float[Tensor, "n visible"], v: Float[Tensor, "n visible"]
) -> tuple[Float[Tensor, "n visible"], Float[Tensor, "n visible"]]:
    """s(x) and (ds/dx) v, reverse over reverse: a product with the Hessian costs as much in any dimension.

    Examples of a batch have nothing to do with each other, so that one product serves all.
    """
    at = x.detach().requires_grad_()
    s = score(model, at)
    return s, product(s, at, v)


def product(
    slope: Float[Tensor, "n visible"], x: Float[Tensor, "n visible"], v: Float[Tensor, "n visible"]
) -> Float[Tensor, "n visible"]:
    """The derivative of a slope along v; the slope can be differentiated by x."""
    (found,) = torch.autograd.grad((slope * v).sum(), x, create_graph=True, materialize_grads=True)
    return found


def score_matching(
    model: EnergyModel, x: Float[Tensor, "n visible"], v: Float[Tensor, "n visible"], whole: bool = True
) -> Float[Tensor, " n"]:
    """1/2 |s(x)|^2 + v' (ds/dx) v: its mean over data and v is the Fisher divergence from the data's law, halved, but
    for a number that the model has no part in (Hyvarinen 2005; Song et al. 2019). The less, the better.

    Unless `whole`, 1/2 (v' s(x))^2 stands for the first term.
    """
    found = model.along(x, v) if isinstance(model, ScalarEnergy) else None
    if found is not None:
        squared = found.slope().square().sum(1) if whole else found.first.square()
        return 0.5 * squared - found.second
    s, along = score_along(model, x, v)
    squared = s.square().sum(1) if whole else (v * s).sum(1).square()
    return 0.5 * squared + (v * along).sum(1)


def denoising(
    model: HasNoiseScales,
    x: Float[Tensor, "n visible"],
    sigma: Float[Tensor, "n 1"],
    z: Float[Tensor, "n visible"],
) -> Float[Tensor, " n"]:
    """1/2 |sigma s(x + sigma z, sigma) + z|^2 (Vincent 2011; Song & Ermon 2019): its mean over data and z is sigma^2
    times the halved Fisher divergence from the law of the blurred data, but for a number that the model has no part in.
    Nothing learned: half of the visibles. The less, the better."""
    return 0.5 * (sigma * model.learned_score(x + sigma * z, sigma[:, 0]) + z).square().sum(1)
