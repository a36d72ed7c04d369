"""The contract of a sampler: two pure functions over a frozen state.

A trajectory depends on (model, sampler, keys, clamp, beta) alone; a chain's checkpoint is its blocks and
its sweep number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from models.family import Clamp, EnergyModel
from models.rng import ChainKeys

__all__ = ["ChainState", "Clamp", "Sampler", "SweepInfo"]


@dataclass(frozen=True)
class ChainState:
    """Chains between two sweeps: the state of every block, and how many sweeps each chain has made."""

    blocks: Mapping[str, Float[Tensor, "n _"]]
    sweep: Int[Tensor, " n"]

    @property
    def visible(self) -> Float[Tensor, "n visible"]:
        """The visible units."""
        return self.blocks["visible"]


@dataclass(frozen=True)
class SweepInfo:
    """What a sweep can tell and no next sweep needs."""

    expected_visible: Callable[[], Float[Tensor, "n visible"]]
    """Expected visibles under the law they were drawn from, clamped ones not put back: their average over sweeps
    estimates the mean with less variance than that of the states. Where a sampler has no such law, the states."""
    acceptance_rate: Float[Tensor, " n"] | None = None
    """Share of accepted proposals; None for samplers that propose nothing."""


class Sampler(ABC):
    """A Markov chain kernel that leaves the model's law unchanged. Its hyper-parameters are frozen fields."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Whether the model has what the sampler needs."""

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Whether even the stationary law is not the model's, or not its posterior where visibles are clamped."""
        return False

    def schedule(self, model: EnergyModel) -> int:  # noqa: ARG002
        """Sweeps before which its states are those of something on the way to the model; 0: there is no such time."""
        return 0

    @abstractmethod
    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Chains before their first sweep: from `start`, or from noise; clamped units at their values."""

    @abstractmethod
    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every chain, at inverse temperatures `beta` (1 where None)."""
