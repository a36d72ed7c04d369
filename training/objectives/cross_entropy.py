"""The log-probability of the class, of any model that has classes (MATH 10; Grathwohl et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from models.family import Base, EnergyModel, HasClasses, HasRecognition
from training.errors import RecipeError
from training.objective import Batch, Draws, Memory, Objective, slopes


class CrossEntropy(Objective):
    """The mean of log p(y | x) over the minibatch, its gradient by back-propagation.

    With `langevin` as a second term it is log p(x, y) = log p(y | x) + log p(x) of a joint energy-based model. Not for
    models with directed layers, whose p(y | x) is a sum over draws or states that they keep.
    """

    name: ClassVar[str] = "cross_entropy"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with classes, but those with directed layers."""
        return isinstance(model, HasClasses) and model.class_count > 0 and not isinstance(model, HasRecognition)

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
        """Of every parameter that log p(y | x) depends on."""
        assert isinstance(model, HasClasses)
        if batch.labels is None:
            raise RecipeError("cross-entropy needs labelled data")
        labels = batch.labels[:, None]
        return slopes(model.tensors(), lambda: model.class_log_probs(batch.visible).gather(1, labels).mean()), memory
