"""Hamiltonian Monte Carlo in a generator's latent space (MATH 11; Che et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.dynamics import check_step_size
from models.hamiltonian import StepSize, check_adaptation, check_leapfrog_steps
from models.latent_chains import LatentSampler


@dataclass(frozen=True)
class LatentHMC(LatentSampler):
    """A sweep follows the Hamiltonian of -log N(z; 0, 1) + beta E(G(z)) in z, and accepts or refuses the end.

    Each chain's step size adapts in its first sweeps: burn-in should be longer than these, for only later sweeps leave
    the model's law unchanged.
    """

    name: ClassVar[str] = "latent_hmc"

    step_size: float = 0.1
    """e, above 0: where adaptation starts from, or throughout where there is none."""
    leapfrog_steps: int = 10
    """Steps of a proposal, 1..1000; each takes one gradient."""
    target: float = 0.8
    """The acceptance rate to adapt to, above 0 and below 1."""
    adaptation: int = 200
    """Sweeps in which a chain's step size adapts, 0..1000000."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        check_step_size(self.step_size)
        check_adaptation(self.target, self.adaptation, precondition=False)
        check_leapfrog_steps(self.leapfrog_steps)

    @property
    def leaps(self) -> int:
        """`leapfrog_steps`."""
        return self.leapfrog_steps

    @property
    def step_sizes(self) -> StepSize:
        """From `step_size`, by `adaptation` sweeps."""
        return StepSize(self.step_size, self.target, self.adaptation)
