"""The contract of an objective: an estimate of the log-likelihood's gradient, one minibatch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from models.discovery import discover
from models.families.rbm import RBM
from models.rng import ChainKeys, bernoulli
from training.errors import RecipeError

Memory = Mapping[str, Tensor]
"""What an objective keeps from step to step: chains, running means. Saved with the run."""


@dataclass(frozen=True)
class Draws:
    """The randomness of one training step: a function of (seed, step) and of nothing else."""

    seed: int
    step: int

    def bernoulli(self, logits: Float[Tensor, "n units"], sweep: int, stream: int) -> Float[Tensor, "n units"]:
        """float32 states with P(1) = sigmoid(logits); a step's sweeps are numbered by the objective, from 0."""
        keys = ChainKeys.of(self.seed, len(logits), logits.device)
        at = torch.full((len(logits),), sweep, dtype=torch.int64, device=logits.device)
        return bernoulli(logits.double(), keys, at, stream).float()


class Objective(BaseModel, ABC):
    """What is climbed. Its settings are its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]

    @abstractmethod
    def start(self, model: RBM, means: Float[Tensor, " visible"], seed: int) -> Memory:
        """Memory before the first step. `means` are the training data's."""

    @abstractmethod
    def gradient(
        self, model: RBM, batch: Float[Tensor, "n visible"], draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """An estimate of the gradient of the mean log-likelihood, nats, by parameter name; and the memory after it."""


@cache
def objectives() -> dict[str, type[Objective]]:
    """Every objective by name."""
    return discover("training.objectives", Objective)  # type: ignore[type-abstract]


def build(settings: Mapping[str, Any]) -> Objective:
    """The objective that a recipe's section describes.

    Raises:
        RecipeError: unknown name, or settings that it does not have; the valid ones are named.
    """
    name = settings.get("name")
    if name not in objectives():
        raise RecipeError(f"objective.name: {name!r} is unknown; expected one of {', '.join(objectives())}")
    kind = objectives()[name]
    try:
        return kind.model_validate({key: value for key, value in settings.items() if key != "name"})
    except ValidationError as error:
        faults = "; ".join(f"objective.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise RecipeError(f"{faults}; settings of {name}: {', '.join(kind.model_fields)}") from error
