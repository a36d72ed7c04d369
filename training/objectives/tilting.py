"""Maximum likelihood of the tilt of a generator's law (MATH 11; Xiao, Yan & Amit 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from models.latent_family import LatentModel
from training.objective import Batch, Draws, Memory, Objective, contrast

_START, _WALK = range(2)
"""Streams."""


class Tilting(Objective):
    """-E_data[E(x)] - log E_g[exp(-E(G(z)))]: the mean log-ratio of the model to its generator, which is held.

    The expectation under the model comes from chains of `steps` steps of Langevin dynamics in latent space each, from z
    to z - (step_size^2 / 2) grad U(z) + step_size n, U(z) = -log N(z; 0, 1) + E(G(z)); the law of the model is
    stationary but for an error of the order of step_size^2.

    Chains begin `noise`: at noise, each step, as many as examples; or `persistent`: where they ended (Tieleman 2008).
    """

    name: ClassVar[str] = "tilting"

    start_at: Literal["noise", "persistent"] = "persistent"
    steps: int = Field(20, ge=1)
    step_size: float = Field(0.1, gt=0)
    chains: int = Field(100, ge=1, description="Of `persistent`.")
    energy_penalty: float = Field(0.0, ge=0, description="alpha of -alpha (E[E+^2] + E[E-^2]).")
    largest_gap: float = Field(1000.0, gt=0, description="Nats between data and chains at which training stops.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models that tilt a generator's law."""
        return isinstance(model, LatentModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Persistent chains at noise, where there are any."""
        assert isinstance(model, LatentModel)
        return {"chains": _noise(model, self.chains, Draws(seed, 0), _START)} if self.start_at == "persistent" else {}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Minus the mean slope of E at the data, plus that at the chains, and that of the penalty; of E's parameters.

        Raises:
            DivergenceError: the mean energies of data and chains are more than `largest_gap` apart, or no numbers.
        """
        assert isinstance(model, LatentModel)
        z = memory["chains"] if "chains" in memory else _noise(model, len(batch.visible), draws, _START)
        z = self.walk(model, z, draws)
        gradient = contrast(
            model,
            model.tilt_tensors(),
            batch.visible,
            model.generate(z).detach(),
            self.energy_penalty,
            self.largest_gap,
            draws.step,
        )
        return gradient, {"chains": z} if "chains" in memory else memory

    def walk(self, model: LatentModel, z: Float[Tensor, "n latent"], draws: Draws) -> Float[Tensor, "n latent"]:
        """The latents after `steps` steps."""
        for sweep in range(draws.step * self.steps, (draws.step + 1) * self.steps):
            slope = model.latent_energy_and_gradient(z)[1].to(z)
            z = z - 0.5 * self.step_size**2 * slope + self.step_size * draws.normals(z, sweep, _WALK)
        return z


def _noise(model: LatentModel, count: int, draws: Draws, stream: int) -> Tensor:
    like = torch.empty(count, model.latent_units, dtype=model.dtype, device=model.device)
    return draws.normals(like, draws.step, stream)
