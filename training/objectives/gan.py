"""A generator and what tells it from the data, trained against each other (Goodfellow et al. 2014; MATH 11)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.family import Base, EnergyModel
from models.generator import PREFIX
from models.latent_family import LatentModel
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.smooth import score

_DISCRIMINATOR, _GENERATOR = range(2)
"""Streams of the latents that each learns from."""


class GAN(Objective):
    """E climbs E_data[log sigmoid(-E(x))] + E[log sigmoid(E(G(z)))] - r1 / 2 E_data[|grad E(x)|^2], the generator
    E[log sigmoid(-E(G(z)))], which does not saturate: -E is the logit of a discriminator.

    For the generator as it is, the optimum without penalty is E = -log p_data / p_g, that of `tilting` too. `r1` keeps
    the slope small at the data (Mescheder, Geiger & Nowozin 2018), and so E flatter than that.
    """

    name: ClassVar[str] = "gan"

    r1: float = Field(1.0, ge=0, description="Weight of the gradient penalty at the data.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models that tilt a generator's law."""
        return isinstance(model, LatentModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Of both at once, each by what it climbs itself, as the other is."""
        assert isinstance(model, LatentModel)
        x = batch.visible
        like = torch.empty(len(x), model.latent_units, dtype=model.dtype, device=x.device)
        made = model.generate(draws.normals(like, draws.step, _DISCRIMINATOR))
        z = draws.normals(like, draws.step, _GENERATOR)

        def told_apart() -> Tensor:
            energy = model.energy(torch.cat((x, made)))
            figure = logsigmoid(-energy[: len(x)]).mean() + logsigmoid(energy[len(x) :]).mean()
            return figure - 0.5 * self.r1 * score(model, x).square().sum(1).mean() if self.r1 else figure

        generator = {name: t for name, t in model.tensors().items() if name.startswith(PREFIX)}
        gradient = slopes(model.tilt_tensors(), told_apart)
        return gradient | slopes(generator, lambda: logsigmoid(-model.energy(model.generate(z))).mean()), memory
