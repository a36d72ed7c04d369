"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) with step sizes by dual averaging (Hoffman & Gelman 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.dynamics import check_step_size
from models.hamiltonian import HamiltonianSampler, Scales, StepSize, check_adaptation, check_leapfrog_steps


@dataclass(frozen=True)
class HMC(HamiltonianSampler):
    """A sweep draws momenta, follows the Hamiltonian for some leapfrog steps, and accepts or refuses the end (MATH 6).

    Walls throw the visibles back. Each chain's step size adapts in its first sweeps: burn-in should be longer than
    these, for only later sweeps leave the model's law unchanged.
    """

    name: ClassVar[str] = "hmc"

    step_size: float = 0.1
    """e, above 0: where adaptation starts from, or throughout where there is none."""
    leapfrog_steps: int = 10
    """Steps of a proposal, 1..1000; each takes one gradient."""
    target: float = 0.8
    """The acceptance rate to adapt to, above 0 and below 1."""
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
        check_leapfrog_steps(self.leapfrog_steps)

    @property
    def leaps(self) -> int:
        """`leapfrog_steps`."""
        return self.leapfrog_steps

    @property
    def step_sizes(self) -> StepSize:
        """From `step_size`, by `adaptation` sweeps."""
        return StepSize(self.step_size, self.target, self.adaptation, self.scales.edges[1:])

    @property
    def scales(self) -> Scales:
        """Those of `precondition`."""
        return Scales(self.adaptation if self.precondition else 0)
