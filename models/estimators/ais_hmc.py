"""Annealed importance sampling by Hamiltonian Monte Carlo (Neal 2001, 2011; Wu et al. 2017; MATH 12)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import dynamics
from models.conditionals import Conditional, Gaussian, Uniform
from models.dynamics import Bounds, Slope
from models.errors import CapabilityError
from models.estimator import Effort, Estimator, LogPartition, Progress
from models.family import EnergyModel, HasGradient
from models.latent_family import LATENT, VISIBLE, LatentModel
from models.numerics import log_mean_exp
from models.rng import ChainKeys

PILOTS, LEAPS, TARGET, GAIN = 50, 10, 0.8, 0.3
"""Chains that find the step sizes; leapfrog steps; the acceptance rate aimed at; log step gained per rate above it."""
STEEPNESS = 4.0
_FIRST_STEP = 0.3
"""In units of the noise law's smallest standard deviation."""


class AISHMC(Estimator):
    """Anneals from the law that chains start from to the model: f_b = p_0^(1 - b) exp(-b E), p_0 normal or uniform.

    Each temperature has one proposal of HMC. A pilot run of other chains finds its step size: while they walk the same
    path, each of their acceptance rates moves the next step size towards a rate of 0.8. The weighted chains take these
    step sizes as they are, so that each of their transitions leaves its f_b unchanged, and the mean of the weights is
    unbiased for Z; its log is on average too low. Where real visibles spread further than the law that chains start
    from does, the weights are carried by a few chains and the standard error is too small.

    Of a tilted generator the latents are annealed, from N(0, 1), and Z is relative to the generator's law.
    """

    name: ClassVar[str] = "ais_hmc"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with a gradient, whose chains start from a normal or a uniform law; and tilted generators."""
        if not isinstance(model, HasGradient | LatentModel):
            return False
        return isinstance(_Path(model).noise(1), Gaussian | Uniform)

    def estimate(self, model: EnergyModel, effort: Effort, progress: Progress | None = None) -> LogPartition:
        """log of the mean weight, with its standard error."""
        if not self.applies_to(model) or not isinstance(model, HasGradient | LatentModel):
            raise CapabilityError(f"family {model.name} has no energy with a gradient", model.capabilities())
        betas, path = temperatures(effort.temperatures), _Path(model)

        def told(offset: int) -> Callable[[int], None]:
            return lambda done: progress(offset + done, 2 * effort.temperatures) if progress else None

        # The pilots are numbered after the chains that are weighted: no draw is used twice.
        steps = path.step_sizes(ChainKeys.of(effort.seed, PILOTS, model.device, first=effort.chains), betas, told(0))
        keys = ChainKeys.of(effort.seed, effort.chains, model.device)
        _, log_weights = path.walk(keys, betas, lambda k, _: steps[k], told(effort.temperatures))
        return LogPartition(*log_mean_exp(log_weights), self.name)


def temperatures(count: int) -> list[float]:
    """`count` + 1 inverse temperatures from 0 to 1, denser towards both ends: a logistic curve from -4 to 4.

    As Wu et al. (2017) spaced them. Where the model is much narrower than the law that chains start from most is gained
    close to 0, where it has modes close to 1.
    """
    curve = [1.0 / (1.0 + math.exp(-STEEPNESS * (2.0 * k / count - 1.0))) for k in range(count + 1)]
    betas = [(at - curve[0]) / (curve[-1] - curve[0]) for at in curve]
    return [*betas[:-1], 1.0]


@dataclass(frozen=True)
class _Path:
    """The densities between the law that chains start from and the model."""

    model: HasGradient | LatentModel

    def noise(self, chains: int) -> Conditional:
        """What so many chains start from."""
        return self.model.noise(LATENT if isinstance(self.model, LatentModel) else VISIBLE, chains)

    @property
    def slope(self) -> Slope:
        """The model's."""
        if isinstance(self.model, LatentModel):
            return self.model.latent_energy_and_gradient
        return self.model.energy_and_gradient

    @property
    def bounds(self) -> Bounds:
        """The model's; latents have none."""
        return None if isinstance(self.model, LatentModel) else self.model.bounds

    def walk(
        self,
        keys: ChainKeys,
        betas: Sequence[float],
        step_size: Callable[[int, float], float],
        told: Callable[[int], None],
    ) -> tuple[Float[Tensor, "n visible"], Float[Tensor, " n"]]:
        """Where chains end, and their log weights. `step_size`: of transition k, given the acceptance rate before."""
        number = torch.zeros(len(keys), dtype=torch.int64, device=self.model.device)
        noise = self.noise(len(keys))
        x = noise.sample(keys, number, 0)
        log_weight = torch.zeros(len(keys), dtype=torch.float64, device=self.model.device)
        free, rate = torch.ones_like(x, dtype=torch.bool), TARGET
        for k in range(1, len(betas)):
            energy = self.slope(x)[0]
            gained = (betas[k] - betas[k - 1]) * (-energy - noise.log_prob(x))
            log_weight += torch.where(torch.isfinite(gained), gained, -torch.inf)  # no energy, no weight
            if k < len(betas) - 1:
                size = torch.full((len(keys), 1), step_size(k, rate), dtype=torch.float64, device=x.device)
                slope = self._between(noise, betas[k])
                moved = dynamics.transition(slope, x, keys, number + k, size, LEAPS, self.bounds, free)
                x, rate = moved.x, float(moved.chance.mean())
            told(k)
        return x, log_weight

    def step_sizes(self, keys: ChainKeys, betas: Sequence[float], told: Callable[[int], None]) -> dict[int, float]:
        """Of each transition, as a walk of other chains finds them."""
        noise = self.noise(1)
        width = noise.std if isinstance(noise, Gaussian) else noise.high - noise.low  # type: ignore[attr-defined]
        found = {0: _FIRST_STEP * float(width.min())}

        def next_size(k: int, rate: float) -> float:
            found[k] = found[k - 1] * math.exp(GAIN * (rate - TARGET))
            return found[k]

        self.walk(keys, betas, next_size, told)
        return found

    def _between(self, noise: Conditional, beta: float) -> Slope:
        def slope(x: Tensor) -> tuple[Tensor, Tensor]:
            energy, gradient = self.slope(x)
            energy = beta * energy - (1.0 - beta) * noise.log_prob(x)
            if isinstance(noise, Gaussian):
                gradient = beta * gradient + (1.0 - beta) * (x - noise.location) / noise.std.square()
                return energy, gradient
            return energy, beta * gradient

        return slope
