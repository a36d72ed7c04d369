"""Denoising score matching (MATH 7; Vincent 2011; Song & Ermon 2019, 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel, HasNoiseScales
from training.errors import RecipeError
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.smooth import denoising, is_unbounded, score

_NOISE, _SCALES = 0, 1
"""Streams."""


class Denoising(Objective):
    """-E[sigma^2 / 2 |s(x + sigma z) + z / sigma|^2]: what is learned is the score of the data blurred by sigma.

    Of a model with noise scales of its own each example has one of them, drawn uniformly, with weight sigma^2 (Song &
    Ermon 2019, equation 6); `sigma` is then not given. `control_variate` adds sigma z's(x), whose mean is 0 and which
    cancels most of the term in z / sigma where sigma is small (Wang et al. 2020; Song & Kingma 2021, section 3.3).
    """

    name: ClassVar[str] = "denoising"

    sigma: float = Field(0.1, gt=0, description="For a model without noise scales of its own.")
    control_variate: bool = False

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with noise scales, and smooth energies on the whole space."""
        return isinstance(model, HasNoiseScales) or is_unbounded(model)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept.

        Raises:
            RecipeError: `sigma` is given to a model that has scales.
        """
        if "sigma" in self.model_fields_set and isinstance(model, HasNoiseScales):
            raise RecipeError("objective.sigma: the model has noise scales of its own, model.sigmas")
        return {}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation through the score."""
        x = batch.visible
        sigma, z = self._scales(model, x, draws), draws.normals(x, draws.step, _NOISE)

        def figure() -> Tensor:
            if isinstance(model, HasNoiseScales):
                figure = -denoising(model, x, sigma, z)
            else:
                figure = -0.5 * (sigma * score(model, x + sigma * z) + z).square().sum(1)
            if self.control_variate:
                at_data = model.learned_score(x, sigma[:, 0]) if isinstance(model, HasNoiseScales) else score(model, x)
                figure = figure + (sigma * z * at_data).sum(1)
            return figure.mean()

        return slopes(model.tensors(), figure), memory

    def _scales(self, model: EnergyModel, x: Tensor, draws: Draws) -> Tensor:
        if not isinstance(model, HasNoiseScales):
            return torch.full_like(x[:, :1], self.sigma)
        scales = torch.tensor(model.sigmas, dtype=x.dtype, device=x.device)
        fair = torch.zeros(len(x), len(scales), dtype=x.dtype, device=x.device)
        return (draws.categorical(fair, draws.step, _SCALES) @ scales)[:, None]
