"""The contract of an estimator of log Z."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from models.family import EnergyModel

Progress = Callable[[int, int], None]
"""Called with (work done, work in all)."""


@dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z in nats, with its standard error (0 where exact) and the method that made it."""

    value: float
    stderr: float
    method: str


@dataclass(frozen=True)
class Effort:
    """How much an estimate may cost; the same effort and seed give the same bits."""

    chains: int = 100
    temperatures: int = 1000
    seed: int = 0


class Estimator(ABC):
    """Estimates log Z of a model that has the needed capability."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Whether the model has what the estimator needs."""

    @abstractmethod
    def estimate(self, model: EnergyModel, effort: Effort, progress: Progress | None = None) -> LogPartition:
        """log Z, its standard error and method.

        Raises:
            CapabilityError: the model lacks what the estimator needs.
        """
