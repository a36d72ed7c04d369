"""A pull of hidden units' mean activations towards a target (Lee, Ekanadham & Ng 2008; Hinton 2010, section 11)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from training.objective import Batch, Draws, Memory, Objective
from training.phases import Phases


class Sparsity(Objective):
    """Minus the cross-entropy between the target and a unit's mean over the minibatch, climbed by hidden biases alone.

    A term beside another objective, not one by itself.
    """

    name: ClassVar[str] = "sparsity"

    target: float = Field(0.1, gt=0, lt=1)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines."""
        return isinstance(model, LayeredModel)

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
        """target - mean activation, for each hidden bias."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model)
        data = phases.data(batch)
        return {phases.names[f"bias of {b}"]: self.target - data[b].mean(0) for b in model.layers}, memory
