"""Unadjusted Langevin dynamics (Roberts & Tweedie 1996; for deep energies Nijkamp et al. 2019, Du & Mordatch 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import dynamics, sweeping
from models.family import Clamp, EnergyModel, HasGradient
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

_ROWS, _NUMBERS = 256, 1 << 17
"""Chains that are moved at once: what a step makes of them stays in a core's cache."""


@dataclass(frozen=True)
class Langevin(Sampler):
    """A sweep is a step from x to x - (e^2 / 2) beta grad E(x) + e z, z standard normal, reflected at walls (MATH 6).

    Its stationary law is the model's but for an error of order e^2: where E has the second derivative k, variances come
    out by 1 / (1 - e^2 k / 4) too large. A step that leads to no finite place is not made.
    """

    name: ClassVar[str] = "langevin"

    step_size: float = 0.1
    """e, above 0."""
    clip: bool = False
    """Whether the slope takes units to walls at most, as in training (Du & Mordatch 2019); else it is reflected there
    like the noise. The law is another one near the walls."""

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            ValueError: it is out of range.
        """
        dynamics.check_step_size(self.step_size)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with a gradient."""
        return isinstance(model, HasGradient)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Visibles from noise, or from `start` where given."""
        begun = sweeping.begin(dynamics.differentiable(model, self.name), keys, start, clamp)
        return ChainState({"visible": begun["visible"]}, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One step of every chain."""
        model = dynamics.differentiable(model, self.name)
        number, x = state.sweep + 1, state.visible
        together = max(_ROWS, _NUMBERS // x.shape[1] // _ROWS * _ROWS)
        pieces = []
        for at in range(0, max(len(x), 1), together):
            rows = slice(at, at + together)
            held = None if clamp is None else clamp.rows(rows)
            slope = dynamics.slope_of(model, held, None if beta is None else beta[rows])
            mask = None if held is None else held.mask
            pieces.append(
                dynamics.langevin_step(
                    slope,
                    x[rows],
                    keys.rows(rows),
                    number[rows],
                    self.step_size,
                    model.bounds,
                    mask,
                    clip=self.clip,
                )
            )
        after = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return ChainState({"visible": after}, number), SweepInfo(lambda: after)
