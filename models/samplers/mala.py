"""The Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie 1996)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.dynamics import check_step_size
from models.hamiltonian import HamiltonianSampler, Scales, StepSize, check_adaptation


@dataclass(frozen=True)
class MALA(HamiltonianSampler):
    """A sweep proposes a Langevin step, x - (e^2 / 2) beta grad E(x) + e z, and accepts or refuses it (MATH 6).

    The proposal is a single leapfrog step, of which the ratio of Metropolis and Hastings is the ratio of Hamiltonians;
    that it is reflected at walls changes nothing in this. Each chain's step size adapts in its first sweeps: burn-in
    should be longer than these, for only later sweeps leave the model's law unchanged.
    """

    name: ClassVar[str] = "mala"

    step_size: float = 0.1
    """e, above 0: where adaptation starts from, or throughout where there is none."""
    target: float = 0.574
    """The acceptance rate to adapt to, above 0 and below 1 (Roberts & Rosenthal 1998)."""
    adaptation: int = 200
    """Sweeps in which a chain adapts, 0..1000000."""
    precondition: bool = False
    """Whether each unit has a scale of its own, found in the first three quarters of `adaptation`."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        check_step_size(self.step_size)
        check_adaptation(self.target, self.adaptation, self.precondition)

    @property
    def leaps(self) -> int:
        """One."""
        return 1

    @property
    def step_sizes(self) -> StepSize:
        """From `step_size`, by `adaptation` sweeps."""
        return StepSize(self.step_size, self.target, self.adaptation, self.scales.edges[1:])

    @property
    def scales(self) -> Scales:
        """Those of `precondition`."""
        return Scales(self.adaptation if self.precondition else 0)
