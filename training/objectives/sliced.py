"""Sliced score matching (MATH 7; Song, Garg, Shi & Ermon 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.smooth import is_unbounded, score_matching


class Sliced(Objective):
    """-J, J = E[v' (ds/dx) v + 1/2 (v's)^2] (equation 8); `variance_reduced`: 1/2 |s|^2 is its last term.

    v has independent entries of mean 0 and variance 1, so both agree with implicit score matching in expectation. A
    projection costs a Hessian-vector product, in any dimension.
    """

    name: ClassVar[str] = "sliced"

    projections: int = Field(1, ge=1, description="M, for each example.")
    variance_reduced: bool = True
    directions: Literal["signs", "normal"] = Field("signs", description="The law of v's entries.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies on the whole space."""
        return is_unbounded(model)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation through the products; all projections of an example in one batch."""
        x = batch.visible.repeat(self.projections, 1)
        v = draws.signs(x, draws.step, 0) if self.directions == "signs" else draws.normals(x, draws.step, 0)

        def figure() -> Tensor:
            return -score_matching(model, x, v, whole=self.variance_reduced).mean()

        return slopes(model.tensors(), figure), memory
