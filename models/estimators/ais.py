"""Annealed importance sampling (Neal 2001; Salakhutdinov & Murray 2008; MATH 12)."""

from __future__ import annotations

from typing import ClassVar

from models import annealing
from models.errors import CapabilityError
from models.estimator import Effort, Estimator, LogPartition, Progress
from models.family import EnergyModel, HasAnnealing, HasConditionals
from models.numerics import log_mean_exp
from models.rng import ChainKeys


class AIS(Estimator):
    """Anneals from the base-rate model to the model.

    The mean of the weights is unbiased for Z, so its log is on average too low: a stochastic lower bound on log Z.
    """

    name: ClassVar[str] = "ais"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with an annealing path and block conditionals."""
        return isinstance(model, HasAnnealing) and isinstance(model, HasConditionals)

    def estimate(self, model: EnergyModel, effort: Effort, progress: Progress | None = None) -> LogPartition:
        """log of the mean weight, with its standard error."""
        if not (isinstance(model, HasAnnealing) and isinstance(model, HasConditionals)):
            raise CapabilityError(f"family {model.name} has no annealing path", model.capabilities())
        # The chains that set the base rates are numbered after those that are weighted: no draw is used twice.
        rates = ChainKeys.of(effort.seed, 100, model.device, first=effort.chains)
        base = annealing.base_rates(model, rates)
        keys = ChainKeys.of(effort.seed, effort.chains, model.device)
        betas = annealing.temperatures(effort.temperatures)
        _, log_weights = annealing.forward(model, base, keys, betas, progress)
        return LogPartition(*log_mean_exp(log_weights), self.name)
