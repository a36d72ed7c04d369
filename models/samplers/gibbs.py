"""Block Gibbs sampling (Geman & Geman 1984): every block in turn from its exact conditional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo


@dataclass(frozen=True)
class Gibbs(Sampler):
    """A sweep draws each of the model's blocks once, new values used at once. No hyper-parameters.

    Block number i draws from stream i; the start values are those of sweep 0, the first sweep is sweep 1.
    """

    name: ClassVar[str] = "gibbs"

    @classmethod
    def applies_to(cls, family: type[EnergyModel]) -> bool:
        """Families with block conditionals."""
        return issubclass(family, HasConditionals)

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block from noise; visibles from `start` where given."""
        model = _blocked(model)
        sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        blocks = {
            block: model.noise(block, len(keys)).sample(keys, sweep, stream)
            for stream, block in enumerate(model.blocks)
        }
        if start is not None:
            blocks["visible"] = start.to(blocks["visible"])
        if clamp is not None:
            blocks["visible"] = clamp.apply(blocks["visible"])
        return ChainState(blocks, sweep)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every chain."""
        model = _blocked(model)
        sweep = state.sweep + 1
        blocks = dict(state.blocks)
        conditionals = {}
        for stream, block in enumerate(model.blocks):
            conditionals[block] = model.conditional(block, blocks, beta)
            blocks[block] = conditionals[block].sample(keys, sweep, stream)
            if block == "visible" and clamp is not None:
                blocks[block] = clamp.apply(blocks[block])
        return ChainState(blocks, sweep), SweepInfo(conditionals)


def _blocked(model: EnergyModel) -> HasConditionals:
    if not isinstance(model, HasConditionals):
        raise CapabilityError(
            f"Gibbs sampling needs block conditionals, which {model.name} has not", model.capabilities()
        )
    return model
