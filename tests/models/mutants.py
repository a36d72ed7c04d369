"""Samplers and models with one named defect each: what the tests of laws must be able to reject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from models.conditionals import Conditional, Gaussian
from models.families.dbm import DBM
from models.families.grbm import GRBM
from models.families.rbm import RBM
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo
from models.samplers.gibbs import Gibbs
from tests.models.kernels import Delegating, Space

# --- models ---


class PartFrom(Delegating):
    """One part's conditional is taken from another model."""

    def __init__(self, model: HasConditionals, part: str, other: HasConditionals) -> None:
        super().__init__(model)
        self.part, self.other = part, other

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return (self.other if part == self.part else self.model).conditional(part, states, beta)


class PartBlindTo(Delegating):
    """One part's conditional does not see another block."""

    def __init__(self, model: HasConditionals, part: str, block: str) -> None:
        super().__init__(model)
        self.part, self.block = part, block

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        seen = states if part != self.part else {**states, self.block: torch.zeros_like(states[self.block])}
        return self.model.conditional(part, seen, beta)


class TemperedOnlyIn(Delegating):
    """Inverse temperatures reach one part only."""

    def __init__(self, model: HasConditionals, part: str) -> None:
        super().__init__(model)
        self.part = part

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return self.model.conditional(part, states, beta if part == self.part else None)


class VisiblesOf(Delegating):
    """A GRBM whose visibles are drawn with another scale of their mean or another standard deviation."""

    def __init__(self, model: GRBM, pull: Tensor, std: Tensor) -> None:
        super().__init__(model)
        self.grbm, self.pull, self.std = model, pull, std

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        if part != "visible":
            return self.model.conditional(part, states, beta)
        mean = self.grbm.b + self.pull * (states["hidden"] @ self.grbm.W.T)
        return Gaussian(mean, self.std.expand_as(mean))


def hidden_bias_ignored(model: RBM) -> HasConditionals:
    return PartFrom(model, "hidden", replace(model, c=torch.zeros_like(model.c)))


def weights_shrunk_on_the_way_down(model: RBM) -> HasConditionals:
    return PartFrom(model, "visible", replace(model, W=0.9 * model.W))


def labels_unseen_by_hidden(model: RBM) -> HasConditionals:
    return PartBlindTo(model, "hidden", "label")


def label_bias_ignored(model: RBM) -> HasConditionals:
    assert model.d is not None
    return PartFrom(model, "label", replace(model, d=torch.zeros_like(model.d)))


def tempered_in_visible_only(model: HasConditionals) -> HasConditionals:
    return TemperedOnlyIn(model, "visible")


def layer_above_ignored(model: DBM) -> HasConditionals:
    return PartBlindTo(model, "hidden1", "hidden2")


def layer_below_ignored(model: DBM) -> HasConditionals:
    return PartBlindTo(model, "hidden2", "hidden1")


def input_doubled_in_the_top_layer(model: DBM) -> HasConditionals:
    """As if the doubling of pre-training's lowest machine stayed, and in the wrong layer."""
    top = f"W{model.depth}"
    doubled = replace(model, parameters={**model.parameters, top: 2.0 * model.parameters[top]})
    return PartFrom(model, model.layers[-1], doubled)


def pull_not_scaled_by_sigma(model: GRBM) -> HasConditionals:
    """Visible means b + W h, without s."""
    sigma = torch.exp(model.log_sigma)
    return VisiblesOf(model, torch.ones_like(sigma), sigma)


def unit_variance(model: GRBM) -> HasConditionals:
    """Visibles of the right mean and of variance 1."""
    sigma = torch.exp(model.log_sigma)
    return VisiblesOf(model, sigma, torch.ones_like(sigma))


def one_for_the_hidden_bias(model: GRBM) -> HasConditionals:
    """The lecture's misprint: 1 in the place of c_j."""
    return PartFrom(model, "hidden", replace(model, c=torch.ones_like(model.c)))


def inputs_not_divided_by_sigma(model: GRBM) -> HasConditionals:
    """Hidden inputs c + W'v, without 1 / s."""
    return PartFrom(model, "hidden", replace(model, W=model.W * torch.exp(model.log_sigma)[:, None]))


# --- samplers ---


class _Mutant(Sampler):
    name: ClassVar[str] = "mutant"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        return True

    def init(self, model: EnergyModel, keys: ChainKeys, start: Tensor | None, clamp: Clamp | None) -> ChainState:
        return Gibbs().init(model, keys, start, clamp)


def _info(state: ChainState) -> SweepInfo:
    return SweepInfo(lambda: state.visible)


class StaleInputs(_Mutant):
    """Every part is drawn given the states before the sweep."""

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
        after = ChainState({b: law.sample(keys, sweep, i) for i, (b, law) in enumerate(laws.items())}, sweep)
        return after, _info(after)


class LabelsFromStaleHidden(_Mutant):
    """Labels are drawn given the hidden units before the sweep, all else as it should be."""

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
        for stream, block in enumerate(model.blocks):
            given = {**state.blocks, "visible": blocks["visible"]} if block == "label" else blocks
            blocks[block] = model.conditional(block, given, beta).sample(keys, sweep, stream)
        after = ChainState(blocks, sweep)
        return after, _info(after)


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
        after = ChainState(blocks, sweep)
        return after, _info(after)


def transitions_with_stream_reused(space: Space) -> Tensor:
    """The law of a `StreamReused` step of an RBM: u_i decides h_i, and v_i by what h_i leaves of (0, 1) for it."""
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


class LabelClampIgnored(_Mutant):
    """Visibles are held, the label is not."""

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Tensor | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        return Gibbs().step(model, state, keys, None if clamp is None else replace(clamp, label=None), beta)


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
        return Gibbs().step(model, ChainState({**state.blocks, "visible": free}, state.sweep), keys, clamp, beta)
