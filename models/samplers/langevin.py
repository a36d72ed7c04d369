"""Langevin dynamics without correction (MATH 6; Welling & Teh 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import rng
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasGradient
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo


@dataclass(frozen=True)
class Langevin(Sampler):
    """A sweep is one step x <- x - (e^2 / 2) beta grad E(x) + e z, reflected at the bounds, clamped units put back."""

    name: ClassVar[str] = "langevin"

    step_size: float = 0.1
    """e, above 0."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.step_size) not in (int, float) or not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size must be a number above 0; got {self.step_size!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with a gradient."""
        return isinstance(model, HasGradient)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Yes: steps of finite size are not corrected."""
        return True

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Visibles from noise, or from `start` where given."""
        sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        visible = _smooth(model).noise("visible", len(keys)).sample(keys, sweep, 0) if start is None else start.double()
        return ChainState({"visible": visible if clamp is None else clamp.apply(visible)}, sweep)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One step of every chain."""
        smooth, x, number = _smooth(model), state.visible, state.sweep + 1
        _, gradient = smooth.energy_and_gradient(x, None if clamp is None else clamp.label)
        pull = gradient if beta is None else beta[:, None] * gradient
        moved = x - 0.5 * self.step_size**2 * pull + self.step_size * rng.normals(keys, number, 0, x.shape[1])
        if smooth.bounds is not None:
            low, high = smooth.bounds
            phase = torch.remainder(moved - low, 2 * (high - low))
            moved = low + torch.minimum(phase, 2 * (high - low) - phase)
        if clamp is not None:
            moved = clamp.apply(moved)
        return ChainState({"visible": moved}, number), SweepInfo(lambda: moved)


def _smooth(model: EnergyModel) -> HasGradient:
    if not isinstance(model, HasGradient):
        raise CapabilityError(f"langevin needs a gradient, which {model.name} has not", model.capabilities())
    return model
