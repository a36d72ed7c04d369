"""The law of one block of units given all others: what Gibbs sampling draws from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from models import rng
from models.numerics import softplus
from models.rng import ChainKeys


class Conditional(ABC):
    """Independent units given the rest, for each chain of a batch."""

    @abstractmethod
    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, decided by (key, chain, sweep, stream) alone."""

    @abstractmethod
    def mean(self) -> Float[Tensor, "n units"]:
        """Expected state."""

    @abstractmethod
    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """log p(state | rest), nats."""


@dataclass(frozen=True)
class Bernoulli(Conditional):
    """Units in {0, 1} with P(1) = sigmoid(logits)."""

    logits: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64 0.0 or 1.0."""
        return rng.bernoulli(self.logits, keys, sweep, stream)

    def mean(self) -> Float[Tensor, "n units"]:
        """sigmoid(logits)."""
        return rng.logistic(self.logits)

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Sum over units of x a - softplus(a)."""
        return (state * self.logits - softplus(self.logits)).sum(1)
