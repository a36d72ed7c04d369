"""Samplers and models with one named defect each: what the tests of laws must be able to reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from models.conditionals import Conditional
from models.families.rbm import RBM
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo
from models.samplers.gibbs import Gibbs
from tests.models.kernels import Delegating, Space


class BlockFrom(Delegating):
    """One block's conditional is taken from another model."""

    def __init__(self, model: HasConditionals, block: str, other: HasConditionals) -> None:
        super().__init__(model)
        self.block, self.other = block, other

    def conditional(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return (self.other if block == self.block else self.model).conditional(block, states, beta)


class TemperedOnlyIn(Delegating):
    """Inverse temperatures reach one block only."""

    def __init__(self, model: HasConditionals, block: str) -> None:
        super().__init__(model)
        self.block = block

    def conditional(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return self.model.conditional(block, states, beta if block == self.block else None)


def hidden_bias_ignored(model: RBM) -> HasConditionals:
    return BlockFrom(model, "hidden", RBM(model.W, model.b, torch.zeros_like(model.c)))


def weights_shrunk_on_the_way_down(model: RBM) -> HasConditionals:
    return BlockFrom(model, "visible", RBM(0.9 * model.W, model.b, model.c))


def tempered_in_visible_only(model: RBM) -> HasConditionals:
    return TemperedOnlyIn(model, "visible")


class _Mutant(Sampler):
    name: ClassVar[str] = "mutant"

    @classmethod
    def applies_to(cls, family: type[EnergyModel]) -> bool:
        return True

    def init(self, model: EnergyModel, keys: ChainKeys, start: Tensor | None, clamp: Clamp | None) -> ChainState:
        return Gibbs().init(model, keys, start, clamp)


class StaleHidden(_Mutant):
    """Every block is drawn given the states before the sweep."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        assert isinstance(model, HasConditionals)
        sweep = state.sweep + 1
        laws = {block: model.conditional(block, state.blocks, beta) for block in model.blocks}
        return ChainState({b: law.sample(keys, sweep, i) for i, (b, law) in enumerate(laws.items())}, sweep), SweepInfo(
            laws
        )


class StreamReused(_Mutant):
    """Both blocks draw from stream 0: unit i of either block sees the same random number."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        assert isinstance(model, HasConditionals)
        sweep, blocks = state.sweep + 1, dict(state.blocks)
        for block in model.blocks:
            blocks[block] = model.conditional(block, blocks, beta).sample(keys, sweep, 0)
        return ChainState(blocks, sweep), SweepInfo({})


def transitions_with_stream_reused(space: Space) -> Tensor:
    """The law of a `StreamReused` step: u_i decides h_i, and v_i by what h_i leaves of (0, 1) for it."""
    model, everything = space.model, space.states
    up = model.conditional("hidden", everything).mean().numpy()
    down = model.conditional("visible", everything).mean().numpy()
    hidden, visible = everything["hidden"].numpy(), everything["visible"].numpy()
    matrix = np.empty((len(space), len(space)))
    for s, t in np.ndindex(*matrix.shape):
        # h_i = 1 for u in (0, p), else (p, 1); v_i = 1 for u in (0, q), else (q, 1); q depends on all of h.
        p, q, h, v = up[s], down[t], hidden[t], visible[t]
        low = np.maximum(np.where(h == 1, 0.0, p), np.where(v == 1, 0.0, q))
        high = np.minimum(np.where(h == 1, p, 1.0), np.where(v == 1, q, 1.0))
        matrix[s, t] = np.prod(np.maximum(high - low, 0.0))
    return torch.from_numpy(matrix)


class TemperatureIgnored(_Mutant):
    """Inverse temperatures are taken and not used."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        return Gibbs().step(model, state, keys, clamp, None)


class ClampedOnlyAtTheStart(_Mutant):
    """The clamp is applied in `init` and forgotten in `step`."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        return Gibbs().step(model, state, keys, None, beta)


class ClampedAfterTheHiddenDraw(_Mutant):
    """Clamped units are put back only in what is handed out: hidden units never see them."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        # What a chain would have been without the clamp is drawn anew here, from the same law: given the hidden units.
        assert isinstance(model, HasConditionals)
        free = model.conditional("visible", state.blocks, beta).sample(keys, state.sweep, len(model.blocks))
        after, info = Gibbs().step(model, ChainState({**state.blocks, "visible": free}, state.sweep), keys, clamp, beta)
        return after, info
