"""Moves along the slope of an energy: what Langevin dynamics, MALA, HMC and their annealing are made of (MATH 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models import rng, sweeping
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasClasses, HasGradient
from models.numerics import invariant_sum
from models.rng import ChainKeys

Slope = Callable[[Float[Tensor, "n visible"]], tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]]
"""U(x) and grad U(x) of chains, nats, float64: U is what the chains' law is proportional to exp(-U) of."""
Bounds = tuple[float, float] | None

MOMENTA = 0
"""The stream that momenta and Langevin noise are drawn from."""


def differentiable(model: EnergyModel, sampler: str) -> HasGradient:
    """The model as one that has a gradient.

    Raises:
        CapabilityError: it has none.
    """
    if not isinstance(model, HasGradient):
        raise CapabilityError(
            f"{sampler} needs an energy with a gradient, which {model.name} has not", model.capabilities()
        )
    return model


def slope_of(model: HasGradient, clamp: Clamp | None = None, beta: Float[Tensor, " n"] | None = None) -> Slope:
    """beta E(x), or beta E(x, y) where the clamp says y, and its gradient: 0 for units that are held."""
    labelled = isinstance(model, HasClasses) and model.class_count > 0
    label = clamp.label if clamp is not None and labelled else None

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = model.energy_and_gradient(x, label)
        if beta is not None:
            energy, gradient = beta * energy, beta[:, None] * gradient
        return energy, gradient if clamp is None else torch.where(clamp.mask, 0.0, gradient)

    return slope


def free_units(x: Float[Tensor, "n visible"], clamp: Clamp | None) -> Bool[Tensor, "n visible"]:
    """Which units are not held."""
    return torch.ones_like(x, dtype=torch.bool) if clamp is None else ~clamp.mask


def reflect(
    x: Float[Tensor, "n visible"], bounds: Bounds
) -> tuple[Float[Tensor, "n visible"], Bool[Tensor, "n visible"]]:
    """Where points that went on straight ahead are once walls throw them back, and which move the other way now."""
    if bounds is None:
        return x, torch.zeros_like(x, dtype=torch.bool)
    low, high = bounds
    width = high - low
    along = torch.remainder(x - low, 2 * width)
    turned = along > width
    folded = (low + torch.where(turned, 2 * width - along, along)).clamp(low, high)
    inside = (x >= low) & (x <= high)
    return torch.where(inside, x, folded), turned & ~inside


@dataclass(frozen=True)
class Point:
    """Chains in phase space, with the energy and its gradient where they are."""

    x: Float[Tensor, "n visible"]
    momentum: Float[Tensor, "n visible"]
    energy: Float[Tensor, " n"]
    gradient: Float[Tensor, "n visible"]


def leapfrog(
    slope: Slope, start: Point, step: Float[Tensor, " n"], steps: int, bounds: Bounds, free: Bool[Tensor, "n visible"]
) -> Point:
    """`steps` leapfrog steps of each chain's own size (Neal 2011, "MCMC using Hamiltonian dynamics", 2.3 and 5.1).

    Walls turn the momentum of a unit that comes to them. The map keeps volumes, and with the momentum negated it is its
    own inverse; held units, which have neither momentum nor slope, stay where they are.
    """
    e = step[:, None]
    x, momentum, gradient = start.x, start.momentum, start.gradient
    for k in range(steps):
        momentum = momentum - (0.5 * e if k == 0 else e) * gradient
        moved, turned = reflect(x + e * momentum, bounds)
        x = torch.where(free, moved, x)
        momentum = torch.where(turned & free, -momentum, momentum)
        energy, gradient = slope(x)
    return Point(x, momentum - 0.5 * e * gradient, energy, gradient)


@dataclass(frozen=True)
class Moved:
    """Chains after a proposal."""

    x: Float[Tensor, "n visible"]
    accepted: Bool[Tensor, " n"]
    chance: Float[Tensor, " n"]
    """That the proposal had of being accepted: min(1, exp(H before - H after))."""


def transition(
    slope: Slope,
    x: Float[Tensor, "n visible"],
    keys: ChainKeys,
    number: Int[Tensor, " n"],
    step: Float[Tensor, " n"],
    steps: int,
    bounds: Bounds,
    free: Bool[Tensor, "n visible"],
) -> Moved:
    """One proposal of Hamiltonian Monte Carlo (Duane et al. 1987), accepted or refused; exp(-U) stays as it is.

    With one leapfrog step it is the Metropolis-adjusted Langevin algorithm: the proposal is
    x - (e^2 / 2) grad U(x) + e z, and the ratio of Metropolis and Hastings is exp(H before - H after). A proposal whose
    energy is not finite is refused.
    """
    momentum = torch.where(free, rng.normals(keys, number, MOMENTA, x.shape[1]), 0.0)
    start = Point(x, momentum, *slope(x))
    end = leapfrog(slope, start, step, steps, bounds, free)
    kinetic = 0.5 * invariant_sum(start.momentum.square() - end.momentum.square())
    log_ratio = start.energy - end.energy + kinetic
    sound = torch.isfinite(log_ratio) & torch.isfinite(end.x).all(1)
    log_ratio = torch.where(sound, log_ratio, -torch.inf)
    accepted = rng.accept(log_ratio, keys, number, sweeping.DECISIONS)
    chance = torch.where(sound, rng.exp_minus_abs(log_ratio.clamp(max=0.0)), 0.0)
    return Moved(torch.where(accepted[:, None], end.x, x), accepted, chance)


def unadjusted(
    slope: Slope,
    x: Float[Tensor, "n visible"],
    keys: ChainKeys,
    number: Int[Tensor, " n"],
    step: float,
    bounds: Bounds,
    free: Bool[Tensor, "n visible"],
) -> Float[Tensor, "n visible"]:
    """x - (e^2 / 2) grad U(x) + e z, z standard normal, reflected at walls; where that is no finite place, x itself.

    exp(-U) stays as it is but for an error of order e^2 (Roberts & Tweedie 1996).
    """
    _, gradient = slope(x)
    proposal = x - 0.5 * step**2 * gradient + step * rng.normals(keys, number, MOMENTA, x.shape[1])
    moved, _ = reflect(proposal, bounds)
    sound = (torch.isfinite(moved) | ~free).all(1, keepdim=True)
    return torch.where(free & sound, moved, x)


def check_step_size(step_size: float) -> None:
    """Check that a step size is one.

    Raises:
        ValueError: it is not.
    """
    if type(step_size) not in (int, float) or not 0 < step_size <= 1e6:
        raise ValueError(f"step_size must be a number above 0, at most 1000000; got {step_size!r}")
