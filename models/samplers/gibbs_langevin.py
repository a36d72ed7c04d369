"""Gibbs-Langevin sampling of models with real visibles (Liao et al. 2022, "Gaussian-Bernoulli RBMs Without Tears")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import rng, sweeping
from models.conditionals import Conditional, Gaussian
from models.family import Clamp, EnergyModel, HasConditionals, Part
from models.numerics import invariant_sum
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

MOST_STEPS = 1000


@dataclass(frozen=True)
class GibbsLangevin(Sampler):
    """A sweep draws hidden units and labels from their conditionals, and moves real visibles by Langevin steps.

    A step of size e goes from v to v - (e^2 / 2)(v - m) + e s z, where p(v | h) = N(m, s^2) at the chain's inverse
    temperature and z is standard normal: e is in units of the conditional standard deviations. With `adjust` the step
    of all visibles of a chain is accepted or refused by Metropolis and Hastings, and the model's law is stationary;
    without, variances given h come out by 1 / (1 - e^2 / 4) too large. What is clamped takes part in neither.

    Langevin step k of a sweep draws with replica number k.
    """

    name: ClassVar[str] = "gibbs_langevin"

    steps: int = 10
    """Langevin steps in a sweep, 1..1000."""
    step_size: float = 0.5
    """e, above 0 and below 2."""
    adjust: bool = True
    """Whether steps are accepted or refused."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {MOST_STEPS}; got {self.steps!r}")
        if type(self.step_size) not in (int, float) or not 0 < self.step_size < 2:
            raise ValueError(f"step_size must be a number above 0 and below 2; got {self.step_size!r}")
        if type(self.adjust) is not bool:
            raise ValueError(f"adjust must be true or false; got {self.adjust!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with real visibles, each part of which is drawn from its full conditional.

        Where layers are directed a sweep draws h anew without regard to v: steps that begin at the old v will not do.
        """
        return isinstance(model, HasConditionals) and model.exact_when_clamped and sweeping.has_real(model, "visible")

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Where steps are not adjusted."""
        return not self.adjust

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block from noise; visibles from `start` where given."""
        blocks = sweeping.begin(sweeping.sweepable(model, self.name), keys, start, clamp)
        return ChainState(blocks, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every chain. The expected visibles are those of p(v | h), towards which the steps go."""
        number, rates = state.sweep + 1, []

        def draw(part: Part, law: Conditional, before: Tensor, stream: int) -> Tensor:
            if not isinstance(law, Gaussian) or part.block != "visible":
                return law.sample(keys, number, stream)
            moved, rate = self._langevin(law, before, _free(part, before, clamp), keys, number, stream)
            rates.append(rate)
            return moved

        swept = sweeping.sweep(sweeping.sweepable(model, self.name), state.blocks, keys, number, clamp, beta, draw=draw)
        rate = torch.stack(rates).mean(0) if self.adjust else None
        return ChainState(swept.blocks, number), SweepInfo(swept.expected_visible, rate)

    def _langevin(
        self,
        law: Gaussian,
        visible: Float[Tensor, "n m"],
        free: Float[Tensor, "n m"],
        keys: ChainKeys,
        number: Int[Tensor, " n"],
        stream: int,
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, " n"]]:
        """Visibles after `steps` steps, and the share of these that was accepted. `free`: 1, and 0 where clamped."""
        # In z = (v - m) / s the law is N(0, 1) and a step goes to (1 - e^2 / 2) z + e noise, which makes the ratio of
        # Metropolis and Hastings exp((e^2 / 8) sum(z^2 - z'^2)).
        z = torch.where(free > 0, (visible - law.location) / law.std, 0.0)
        count = torch.zeros(len(visible), dtype=torch.float64, device=visible.device)
        for k in range(self.steps):
            own = ChainKeys(keys.seed, keys.chain, torch.full_like(keys.chain, k))
            noise = rng.normals(own, number, stream, visible.shape[1])
            proposal = free * ((1.0 - 0.5 * self.step_size**2) * z + self.step_size * noise)
            if self.adjust:
                log_ratio = 0.125 * self.step_size**2 * invariant_sum(z.square() - proposal.square())
                accepted = rng.accept(log_ratio, own, number, sweeping.DECISIONS)
                count += accepted
                proposal = torch.where(accepted[:, None], proposal, z)
            else:
                count += 1
            z = proposal
        moved = (free > 0) & (count > 0)[:, None]  # the others keep their bits
        return torch.where(moved, law.location + law.std * z, visible), count / self.steps


def _free(part: Part, visible: Tensor, clamp: Clamp | None) -> Tensor:
    if clamp is None:
        return torch.ones_like(visible)
    held = clamp.mask if part.units is None else clamp.mask[:, part.units]
    return (~held).to(visible)
