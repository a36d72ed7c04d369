"""Discriminative learning: the log-probability of the class (Larochelle & Bengio 2008; MATH 2, 5)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from training.errors import RecipeError
from training.objective import Batch, Draws, Memory, Objective, slopes


class Discriminative(Objective):
    """The mean of log p(y | v) over the minibatch, its gradient by back-propagation.

    Through free energies in an RBM: exact. Through the recognition net in a DBM that has one: discriminative
    fine-tuning (Salakhutdinov & Hinton 2009). Beside a generative objective, as a term with a small weight for the
    latter: hybrid learning. Not for a DBN, whose p(y | v) is a sum over draws or states that it keeps.
    """

    name: ClassVar[str] = "discriminative"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines with label units."""
        return isinstance(model, LayeredModel) and model.class_count > 0

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
        """Of every parameter that log p(y | v) depends on."""
        assert isinstance(model, LayeredModel)
        if batch.labels is None:
            raise RecipeError("discriminative learning needs labelled data")
        labels = batch.labels[:, None]
        return slopes(model.tensors(), lambda: model.class_log_probs(batch.visible).gather(1, labels).mean()), memory
