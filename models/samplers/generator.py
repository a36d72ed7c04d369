"""Draws from a generator, refined by Langevin dynamics (MATH 9; Grathwohl et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import dynamics, rng, sweeping
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasGenerator, HasGradient
from models.numerics import ROWS, by_rows
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

_LATENT, _NOISE, _WALK = 0, 1, 2
"""Streams; Langevin step number k has the stream _WALK + k."""


@dataclass(frozen=True)
class FromGenerator(Sampler):
    """A sweep draws every chain afresh, x = G(z) + s e, and goes `steps` Langevin steps from there.

    Draws of a chain are thus independent, and need no burn-in; where a chain stood before, or was told to start, has no
    part in its next sweep. Without steps the law is the generator's own, whatever the temperature, and units that are
    held know nothing of the others; each step takes the law nearer to that of the energy, at its temperature and given
    the units that are held. Models without a gradient have no steps. Noise and steps are reflected at walls.
    """

    name: ClassVar[str] = "generator"

    steps: int = 0
    """Langevin steps from each draw, 0..10000."""
    step_size: float = 0.01
    """Their e, above 0: x - (e^2 / 2) beta grad E(x) + e z."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.steps) is not int or not 0 <= self.steps <= 10_000:
            raise ValueError(f"steps must be a whole number from 0 to 10000; got {self.steps!r}")
        dynamics.check_step_size(self.step_size)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with a generator."""
        return isinstance(model, HasGenerator)

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
        """Draws of the generator, or `start` where given.

        Raises:
            CapabilityError: visibles are given, to start from or to hold, and the model has no slope in them.
        """
        if not isinstance(model, HasGradient):
            sweeping.only_from_noise(model, start, clamp)
        sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        x = self._draw(model, keys, sweep) if start is None else start.double()
        return ChainState({"visible": x if clamp is None else clamp.apply(x)}, sweep)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """A new draw of every chain, refined."""
        if not isinstance(model, HasGradient):
            sweeping.only_from_noise(model, clamp=clamp)
        number = state.sweep + 1
        x = self._draw(model, keys, number)
        if clamp is not None:
            x = clamp.apply(x)
        if isinstance(model, HasGradient) and self.steps:
            slope, held = dynamics.slope_of(model, clamp, beta), None if clamp is None else clamp.mask
            for k in range(self.steps):
                x = dynamics.langevin_step(slope, x, keys, number, self.step_size, model.bounds, held, _WALK + k)
        return ChainState({"visible": x}, number), SweepInfo(lambda: x)

    def _draw(self, model: EnergyModel, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> Float[Tensor, "n visible"]:
        if not isinstance(model, HasGenerator):
            raise CapabilityError(f"{self.name} needs a generator, which {model.name} has not", model.capabilities())
        z = rng.normals(keys, sweep, _LATENT, model.latent_units).to(model.dtype)
        x = by_rows(lambda rows: (model.generate(rows),), ROWS, z)[0].double()
        if model.generator_std:
            x = x + model.generator_std * rng.normals(keys, sweep, _NOISE, x.shape[1])
        return dynamics.reflect(x, model.bounds if isinstance(model, HasGradient) else None)[0]
