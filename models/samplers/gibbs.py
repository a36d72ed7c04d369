"""Gibbs sampling (Geman & Geman 1984): every part in turn from its exact conditional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import sweeping
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo


@dataclass(frozen=True)
class Gibbs(Sampler):
    """A sweep draws each part of the model's units once, new values used at once. No hyper-parameters.

    Two blocks in an RBM, odd and even layers in a DBM, one colour of the graph after the other (in a dense graph: one
    unit after the other) in a Boltzmann machine, the top pair and then one pass down in a DBN. Part number i draws from
    stream i; block number i starts from stream i of sweep 0; the first sweep is sweep 1.
    """

    name: ClassVar[str] = "gibbs"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with conditionals."""
        return isinstance(model, HasConditionals)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:
        """Where the model's sweeps are so once visibles are held."""
        return clamped and not sweeping.sweepable(model, self.name).exact_when_clamped

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block from noise; visibles from `start` where given."""
        blocks = sweeping.begin(sweeping.sweepable(model, self.name), keys, start, clamp)
        return ChainState(blocks, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every chain."""
        number = state.sweep + 1
        swept = sweeping.sweep(sweeping.sweepable(model, self.name), state.blocks, keys, number, clamp, beta)
        return ChainState(swept.blocks, number), SweepInfo(swept.expected_visible)
