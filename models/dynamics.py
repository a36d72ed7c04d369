"""Moves along the slope of an energy: what Langevin dynamics, MALA, HMC and their annealing are made of (MATH 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models import rng, sweeping
from models.compiled import jit
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


def langevin_step(
    slope: Slope,
    x: Float[Tensor, "n visible"],
    keys: ChainKeys,
    number: Int[Tensor, " n"],
    step: float,
    bounds: Bounds,
    held: Bool[Tensor, "n visible"] | None,
    stream: int = MOMENTA,
    clip: bool = False,
) -> Float[Tensor, "n visible"]:
    """x - (e^2 / 2) grad U(x) + e z, reflected at walls; chains that this leads to no finite place stay where they are.

    z, of that stream, has single precision (`rng.single_normals`): what it lacks is far below the step's own error, of
    order e^2. `clip`: the slope takes units to the walls at most; what the noise adds is reflected.
    """
    gradient = slope(x)[1]
    noise = rng.single_normals(keys, number, stream, x.shape[1])
    drift = 0.5 * step**2
    if x.device.type != "cpu":
        led = x - drift * gradient
        led = led.clamp(*bounds) if clip and bounds is not None else led
        moved, _ = reflect(led + step * noise.double(), bounds)
        free = torch.ones_like(x, dtype=torch.bool) if held is None else ~held
        sound = (torch.isfinite(moved) | ~free).all(1, keepdim=True)
        return torch.where(free & sound, moved, x)
    low, high = bounds or (-math.inf, math.inf)
    after, fixed = torch.empty_like(x), torch.zeros((0, 0), dtype=torch.bool) if held is None else held
    arrays = [tensor.contiguous().numpy() for tensor in (x, gradient, noise, fixed)]
    _langevin_kernel(*arrays, drift, float(step), float(low), float(high), clip and bounds is not None, after.numpy())
    return after


@jit
@no_type_check
def _langevin_kernel(  # noqa: PLR0912 - one pass
    x: Any, gradient: Any, noise: Any, held: Any, drift: Any, step: Any, low: Any, high: Any, clip: Any, out: Any
) -> None:  # pragma: no cover - compiled
    # The same operations as above and in `reflect`, in one pass over what is in memory.
    units, some_held, width = x.shape[1], held.shape[0] > 0, high - low
    for row in range(x.shape[0]):
        lost, outside = 0, 0
        for unit in range(units):
            to = x[row, unit] - drift * gradient[row, unit]
            if clip:
                to = min(max(to, low), high)
            to = to + step * np.float64(noise[row, unit])
            lost += 0 if abs(to) < np.inf else 1
            outside += 0 if low <= to <= high else 1
            out[row, unit] = to
        if some_held and (lost or outside):
            lost = 0
            for unit in range(units):
                lost += 0 if held[row, unit] or abs(out[row, unit]) < np.inf else 1
        if lost:
            for unit in range(units):
                out[row, unit] = x[row, unit]
            continue
        if outside:
            for unit in range(units):
                to = out[row, unit]
                if not low <= to <= high:
                    along = (to - low) % (2.0 * width)
                    to = low + (2.0 * width - along if along > width else along)
                    out[row, unit] = min(max(to, low), high)
        if some_held:
            for unit in range(units):
                if held[row, unit]:
                    out[row, unit] = x[row, unit]


@dataclass(frozen=True)
class Point:
    """Chains in phase space, with the energy and its gradient where they are."""

    x: Float[Tensor, "n visible"]
    momentum: Float[Tensor, "n visible"]
    energy: Float[Tensor, " n"]
    gradient: Float[Tensor, "n visible"]


def leapfrog(
    slope: Slope, start: Point, step: Float[Tensor, "n _"], steps: int, bounds: Bounds, free: Bool[Tensor, "n visible"]
) -> Point:
    """`steps` leapfrog steps of each chain's own size (Neal 2011, "MCMC using Hamiltonian dynamics", 2.3, 4.1, 5.1).

    `step` has one column, or one for each unit: the steps of a diagonal metric, in whose units each momentum is
    standard normal. Walls turn the momentum of a unit that comes to them. The map keeps volumes, and with the momentum
    negated it is its own inverse; held units, which have neither momentum nor slope, stay where they are.
    """
    e = step
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
    step: Float[Tensor, "n _"],
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


def check_step_size(step_size: float) -> None:
    """Check that a step size is one.

    Raises:
        ValueError: it is not.
    """
    if type(step_size) not in (int, float) or not 0 < step_size <= 1e6:
        raise ValueError(f"step_size must be a number above 0, at most 1000000; got {step_size!r}")
