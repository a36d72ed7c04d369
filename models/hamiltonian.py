"""What MALA and HMC have in common: a proposal along the Hamiltonian, and each chain's own step size (MATH 6)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import dynamics, rng, sweeping
from models.family import Clamp, EnergyModel, HasGradient
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

_FARTHEST = 30.0
"""Step sizes are adapted from exp(-30) to exp(30)."""
_SMALL_VARIANCE = 1e-3
_FEWEST = 40
"""Sweeps of an adaptation that can tell scales."""
_MOST_STEPS = 1000


@dataclass(frozen=True)
class StepSize:
    """Each chain's own step size: found by dual averaging in its first sweeps, then kept (Hoffman & Gelman 2014, 3.2).

    In sweep m <= sweeps, after a proposal with the chance a of being accepted,

        error <- (1 - 1 / (m + 10)) error + (target - a) / (m + 10)
        log step <- log(10 initial) - sqrt(m) / 0.05 error
        mean <- m^-0.75 log step + (1 - m^-0.75) mean

    and sweeps after the last of these make steps of exp(mean). All that is needed to go on is in the blocks, (n, 1)
    each, and in the sweep number.
    """

    initial: float
    target: float
    sweeps: int
    """0: the step size is `initial` throughout, and there are no blocks."""
    again: tuple[int, ...] = ()
    """Sweeps after which all this begins anew."""

    def blocks(self, chains: int, device: torch.device) -> dict[str, Float[Tensor, "n 1"]]:
        """Before the first sweep."""
        if not self.sweeps:
            return {}
        zeros = torch.zeros(chains, 1, dtype=torch.float64, device=device)
        start = zeros + math.log(self.initial)
        return {"log_step": start, "log_step_mean": start.clone(), "step_error": zeros}

    def at(self, blocks: Mapping[str, Float[Tensor, "n _"]], number: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of the proposal in sweep `number`."""
        if not self.sweeps:
            return torch.full(number.shape, self.initial, dtype=torch.float64, device=number.device)
        log_step = torch.where(number <= self.sweeps, blocks["log_step"][:, 0], blocks["log_step_mean"][:, 0])
        small = rng.exp_minus_abs(log_step)  # torch's own exponential has other bits at other places of a batch
        return torch.where(log_step <= 0, small, 1.0 / small)

    def after(
        self, blocks: Mapping[str, Float[Tensor, "n _"]], number: Int[Tensor, " n"], chance: Float[Tensor, " n"]
    ) -> dict[str, Float[Tensor, "n 1"]]:
        """The blocks once the proposal of sweep `number` is known to have had this chance."""
        if not self.sweeps:
            return {}
        m = (number - _before(number, self.again)).double()[:, None]
        share, weight = 1.0 / (m + 10.0), 1.0 / (m.sqrt() * m.sqrt().sqrt())
        so_far = torch.where(m > 1, blocks["step_error"], 0.0)
        error = (1.0 - share) * so_far + share * (self.target - chance[:, None])
        log_step = math.log(10 * self.initial) - m.sqrt() / 0.05 * error
        log_step = log_step.clamp(-_FARTHEST, _FARTHEST)
        mean = weight * log_step + (1.0 - weight) * blocks["log_step_mean"]
        found = {"log_step": log_step, "log_step_mean": mean, "step_error": error}
        return {name: torch.where(number[:, None] <= self.sweeps, new, blocks[name]) for name, new in found.items()}


def _before(number: Int[Tensor, " n"], sweeps: tuple[int, ...]) -> Int[Tensor, " n"]:
    """The last of these sweeps before each number, or 0."""
    found = torch.zeros_like(number)
    for sweep in sweeps:
        found = torch.where(number > sweep, sweep, found)
    return found


@dataclass(frozen=True)
class Scales:
    """Each chain's own scale of each unit, a diagonal metric: it is found anew thrice in the adaptation's sweeps.

    From the eighth of them to the quarter, from there to the half, and from there to the third quarter each unit's
    variance is taken (Welford 1962), shrunk towards 10^-3 by n / (n + 5) for n sweeps, as Stan does; from then on the
    unit's steps are as many times longer as its standard deviation says.
    """

    sweeps: int
    """Of the adaptation; 0: all scales are 1, and there are no blocks."""

    @property
    def edges(self) -> tuple[int, ...]:
        """The sweep after which states count, and those after which new scales do."""
        return (self.sweeps // 8, self.sweeps // 4, self.sweeps // 2, self.sweeps * 3 // 4) if self.sweeps else ()

    def blocks(self, chains: int, units: int, device: torch.device) -> dict[str, Float[Tensor, "n units"]]:
        """Before the first sweep."""
        if not self.sweeps:
            return {}
        zeros = torch.zeros(chains, units, dtype=torch.float64, device=device)
        return {"scale": zeros + 1.0, "scale_mean": zeros, "scale_squares": zeros.clone()}

    def at(self, blocks: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n _"] | float:
        """Of the next proposal."""
        return blocks["scale"] if self.sweeps else 1.0

    def after(
        self, blocks: Mapping[str, Float[Tensor, "n _"]], number: Int[Tensor, " n"], x: Float[Tensor, "n units"]
    ) -> dict[str, Float[Tensor, "n units"]]:
        """The blocks once sweep `number` has led to x."""
        if not self.sweeps:
            return {}
        count = (number - _before(number, self.edges)).double()[:, None]
        first = count == 1
        mean, squares = (torch.where(first, 0.0, blocks[name]) for name in ("scale_mean", "scale_squares"))
        apart = x - mean
        mean = mean + apart / count
        squares = squares + apart * (x - mean)
        scale = (squares / (count + 5.0) + _SMALL_VARIANCE * 5.0 / (count + 5.0)).sqrt()
        ends = torch.zeros_like(number, dtype=torch.bool)
        for edge in self.edges[1:]:
            ends |= number == edge
        return {
            "scale": torch.where(ends[:, None], scale, blocks["scale"]),
            "scale_mean": mean,
            "scale_squares": squares,
        }


class HamiltonianSampler(Sampler):
    """A sweep is one proposal of so many leapfrog steps. A subclass says how many, and of which size."""

    @property
    @abstractmethod
    def leaps(self) -> int:
        """Leapfrog steps of a proposal."""

    @property
    @abstractmethod
    def step_sizes(self) -> StepSize:
        """What becomes of the chains' step sizes."""

    @property
    @abstractmethod
    def scales(self) -> Scales:
        """What becomes of the units' scales."""

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with a gradient."""
        return isinstance(model, HasGradient)

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Visibles from noise, or from `start` where given; blocks of what adapts."""
        x = sweeping.begin(dynamics.differentiable(model, self.name), keys, start, clamp)["visible"]
        adapting = self.step_sizes.blocks(len(keys), model.device) | self.scales.blocks(
            len(x), x.shape[1], model.device
        )
        blocks = {"visible": x, **adapting}
        return ChainState(blocks, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One proposal for every chain."""
        model = dynamics.differentiable(model, self.name)
        number, x, sizes, scales = state.sweep + 1, state.visible, self.step_sizes, self.scales
        moved = dynamics.transition(
            dynamics.slope_of(model, clamp, beta),
            x,
            keys,
            number,
            sizes.at(state.blocks, number)[:, None] * scales.at(state.blocks),
            self.leaps,
            model.bounds,
            dynamics.free_units(x, clamp),
        )
        adapted = sizes.after(state.blocks, number, moved.chance) | scales.after(state.blocks, number, moved.x)
        blocks = {"visible": moved.x, **adapted}
        return ChainState(blocks, number), SweepInfo(lambda: moved.x, moved.accepted.double())


def check_leapfrog_steps(steps: int) -> None:
    """Check how many leapfrog steps a proposal has.

    Raises:
        ValueError: too few or too many.
    """
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"leapfrog_steps must be a whole number from 1 to {_MOST_STEPS}; got {steps!r}")


def check_adaptation(target: float, adaptation: int, precondition: bool) -> None:
    """Check the settings of a step size's adaptation.

    Raises:
        ValueError: one is out of range.
    """
    if type(target) not in (int, float) or not 0 < target < 1:
        raise ValueError(f"target must be a number above 0 and below 1; got {target!r}")
    if type(adaptation) is not int or not 0 <= adaptation <= 1_000_000:
        raise ValueError(f"adaptation must be a whole number from 0 to 1000000; got {adaptation!r}")
    if type(precondition) is not bool:
        raise ValueError(f"precondition must be true or false; got {precondition!r}")
    if precondition and adaptation < _FEWEST:
        raise ValueError(f"precondition needs an adaptation of {_FEWEST} sweeps or more; got {adaptation!r}")
