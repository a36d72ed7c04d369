"""Persistent contrastive divergence (Tieleman 2008), also known as stochastic maximum likelihood (Younes 1989)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from models.pairwise_family import PairwiseModel
from training.objective import Batch, Draws, Memory, Objective
from training.pairwise_phases import PairwisePhases
from training.phases import Centring, Doubled, Phases
from training.products import Gradient, Products, dense, multiplying

_BEFORE = 1 << 31
"""Number of the burn-in's first sweep, which no sweep of training has."""


class PCD(Objective):
    """PCD-k: the model's expectations from chains that go on from step to step, k sweeps each.

    Close to the log-likelihood's gradient while the parameters move slowly compared with the chains. For a DBM the
    data's expectations are mean-field: variational PCD (Salakhutdinov & Hinton 2009).
    """

    name: ClassVar[str] = "pcd"

    steps: int = Field(1, ge=1, description="k.")
    chains: int = Field(100, ge=1)
    centring: Centring = "none"
    products: Products = Field("float32", description="Precision of matrix products.")
    doubled: Doubled = Field("none", description="For a layer that will be an end of a DBM.")
    mean_field_sweeps: int = Field(10, ge=1, description="For more than one hidden layer.")
    burn_in: int = Field(0, ge=0, description="Sweeps before the first step, for a model that is trained already.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines, and those with any couplings of pairs."""
        return isinstance(model, LayeredModel | PairwiseModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Chains from independent visibles with the data's means, after the burn-in; and the offsets."""
        phases = self._phases(model)
        with multiplying(self.products):
            chains = phases.first(base, self.chains, seed)
            if self.burn_in:
                _, chains = phases.advance(chains, Draws(seed, 0), _BEFORE, self.burn_in)
        return {f"chains.{b}": s for b, s in chains.items()} | dict(phases.offsets(base, self.centring))

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the chains."""
        gradient, memory = self.factored(model, batch, draws, memory)
        return dense(gradient), memory

    def factored(self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory) -> tuple[Gradient, Memory]:
        """The same."""
        phases = self._phases(model)
        chains = {name.removeprefix("chains."): t for name, t in memory.items() if name.startswith("chains.")}
        with multiplying(self.products):
            data, seen, chains = phases.both(batch, chains, draws, draws.step * self.steps, self.steps)
            gradient, kept = phases.factored(data, seen, memory, self.centring)
        return gradient, {**kept, **{f"chains.{b}": s for b, s in chains.items()}}

    def _phases(self, model: EnergyModel) -> Phases | PairwisePhases:
        if isinstance(model, PairwiseModel):
            return PairwisePhases(model)
        assert isinstance(model, LayeredModel)
        return Phases(model, self.mean_field_sweeps, self.doubled, self.products)
