"""Contrastive divergence (Hinton 2002)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from training.objective import Batch, Draws, Memory, Objective
from training.phases import Centring, Doubled, Phases, expected
from training.products import Gradient, Products, dense, multiplying


class CD(Objective):
    """CD-k: the model's expectations from chains that start at the minibatch and make k sweeps.

    Biased for the log-likelihood's gradient; the bias falls with k.
    """

    name: ClassVar[str] = "cd"

    steps: int = Field(1, ge=1, description="k.")
    centring: Centring = "none"
    products: Products = Field("float32", description="Precision of matrix products.")
    doubled: Doubled = Field("none", description="For a layer that will be an end of a DBM.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines."""
        return isinstance(model, LayeredModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """The offsets alone."""
        assert isinstance(model, LayeredModel)
        return Phases(model).offsets(base, self.centring)

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the k-th reconstruction, its odd layers at their means."""
        gradient, memory = self.factored(model, batch, draws, memory)
        return dense(gradient), memory

    def factored(self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory) -> tuple[Gradient, Memory]:
        """The same."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model, doubled=self.doubled, products=self.products)
        first, last = draws.step * self.steps, (draws.step + 1) * self.steps - 1
        with multiplying(self.products):
            data, odd = phases.from_data(batch, draws, first)
            if first < last:
                _, odd = phases.advance(odd, draws, first, last - first)
            even, inputs = phases.down(odd, draws, last)  # nothing goes on from here: odd layers need not be drawn
            return phases.factored(data, even | expected(inputs), memory, self.centring)
