"""log Z by enumeration."""

from __future__ import annotations

from typing import ClassVar

from models.errors import CapabilityError
from models.estimator import Effort, Estimator, LogPartition, Progress
from models.family import EnergyModel, HasEnumeration


class Exact(Estimator):
    """Sums every state of the smaller side, at most 2^25, in float64."""

    name: ClassVar[str] = "exact"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models that can be enumerated."""
        return isinstance(model, HasEnumeration)

    def estimate(self, model: EnergyModel, effort: Effort, progress: Progress | None = None) -> LogPartition:  # noqa: ARG002
        """log Z with standard error 0; the effort does not matter."""
        if not isinstance(model, HasEnumeration):
            raise CapabilityError(f"family {model.name} cannot be enumerated", model.capabilities())
        return LogPartition(model.log_partition(), 0.0, self.name)
