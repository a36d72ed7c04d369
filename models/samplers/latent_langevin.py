"""Langevin dynamics in a generator's latent space, by default corrected by Metropolis (MATH 11; Che et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.dynamics import check_step_size
from models.hamiltonian import StepSize, check_adaptation
from models.latent_chains import LatentSampler


@dataclass(frozen=True)
class LatentLangevin(LatentSampler):
    """A sweep proposes z - (e^2 / 2) grad U(z) + e n, n standard normal, U(z) = -log N(z; 0, 1) + beta E(G(z)).

    The proposal is accepted or refused (MALA), and each chain's step size adapts in its first sweeps: burn-in should be
    longer than these. Without `adjust` every step is made, all of `step_size`, and the stationary law is the model's
    but for an error of order e^2 (Che et al. 2020 sample so).
    """

    name: ClassVar[str] = "latent_langevin"

    step_size: float = 0.1
    """e, above 0: where adaptation starts from, or throughout where there is none."""
    adjust: bool = True
    """Whether proposals are accepted or refused; if not, samples are approximate."""
    target: float = 0.574
    """The acceptance rate to adapt to, above 0 and below 1 (Roberts & Rosenthal 1998)."""
    adaptation: int = 200
    """Sweeps in which a chain's step size adapts, 0..1000000; none without `adjust`."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        check_step_size(self.step_size)
        check_adaptation(self.target, self.adaptation, precondition=False)

    @property
    def adjusted(self) -> bool:
        """`adjust`."""
        return self.adjust

    @property
    def leaps(self) -> int:
        """One."""
        return 1

    @property
    def step_sizes(self) -> StepSize:
        """From `step_size`, by `adaptation` sweeps where proposals are judged."""
        return StepSize(self.step_size, self.target, self.adaptation if self.adjust else 0)
