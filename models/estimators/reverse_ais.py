"""Reverse annealed importance sampling: log Z from the other side (Burda et al. 2015; Grosse et al. 2015; MATH 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import annealing
from models.errors import CapabilityError
from models.estimator import Effort, Estimator, LogPartition, Progress
from models.family import EnergyModel, HasAnnealing, HasConditionals
from models.numerics import log_mean_exp
from models.rng import ChainKeys, uniforms

_RESAMPLING = 0xFF00
"""Stream of the resampling; those of the parts count from 0."""


class ReverseAIS(Estimator):
    """Anneals from samples of the model down to the base-rate model.

    The mean of exp(-w) is unbiased for 1/Z where the samples are exact, so the estimate is then on average too high:
    a stochastic upper bound on log Z. The samples here are the particles of a forward run, resampled by their weights:
    approximate, so where that run misses a mode the bound can fail.
    """

    name: ClassVar[str] = "reverse_ais"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with an annealing path and block conditionals."""
        return isinstance(model, HasAnnealing) and isinstance(model, HasConditionals)

    def estimate(self, model: EnergyModel, effort: Effort, progress: Progress | None = None) -> LogPartition:
        """-log of the mean inverse weight, with its standard error."""
        if not (isinstance(model, HasAnnealing) and isinstance(model, HasConditionals)):
            raise CapabilityError(f"family {model.name} has no annealing path", model.capabilities())
        chains, device = effort.chains, model.device
        base = annealing.base_rates(model, ChainKeys.of(effort.seed, 100, device, first=2 * chains))
        betas = annealing.temperatures(effort.temperatures)
        up = ChainKeys.of(effort.seed, chains, device)
        down = ChainKeys.of(effort.seed, chains, device, first=chains)
        particles, log_weights = annealing.forward(model, base, up, betas, _half(progress, 0))
        start = _resample(particles, log_weights, down)
        log_weights = annealing.backward(model, base, down, betas, start, _half(progress, 1))
        minus, stderr = log_mean_exp(-log_weights)
        return LogPartition(-minus, stderr, self.name)


def _resample(
    particles: Mapping[str, Float[Tensor, "n _"]], log_weights: Float[Tensor, " n"], keys: ChainKeys
) -> dict[str, Float[Tensor, "n _"]]:
    n = len(log_weights)
    first = torch.zeros(1, dtype=torch.int64, device=log_weights.device)
    u = uniforms(keys.rows(first), first, _RESAMPLING, 1)[0, 0]
    edges = torch.cumsum(torch.softmax(log_weights, 0), 0)
    points = (torch.arange(n, device=edges.device, dtype=torch.float64) + u) / n
    chosen = torch.searchsorted(edges, points).clamp(max=n - 1)
    return {block: states[chosen] for block, states in particles.items()}


def _half(progress: Progress | None, part: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(part * total + done, 2 * total)
