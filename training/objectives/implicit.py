"""Implicit score matching with the exact trace (MATH 7; Hyvarinen 2005, theorem 1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models.family import Base, EnergyModel
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.smooth import is_unbounded, product, score


class Implicit(Objective):
    """-J, J = E[1/2 |s(x)|^2 + tr(ds/dx)], s = -grad E, without a normalising constant.

    The trace costs a product with the Hessian for each visible unit: for few of them.
    """

    name: ClassVar[str] = "implicit"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies on the whole space."""
        return is_unbounded(model)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def gradient(
        self,
        model: EnergyModel,
        batch: Batch,
        draws: Draws,  # noqa: ARG002
        memory: Memory,
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation through the Hessian's diagonal."""
        x = batch.visible

        def figure() -> Tensor:
            at = x.detach().requires_grad_()
            s = score(model, at)
            total = -0.5 * s.square().sum(1).mean()
            for unit in range(x.shape[1]):
                v = torch.zeros_like(x)
                v[:, unit] = 1
                total = total - product(s, at, v)[:, unit].mean()
            return total

        return slopes(model.tensors(), figure), memory
