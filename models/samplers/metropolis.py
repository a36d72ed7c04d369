"""Metropolis-corrected sweeps of models with directed layers (Metropolis et al. 1953; Hastings 1970; MATH 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models import rng, sweeping
from models.conditionals import Bernoulli
from models.errors import CapabilityError, InputError
from models.family import Clamp, EnergyModel, HasRecognition
from models.numerics import invariant_sum
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

_FIRST, _MOST = 1 << 14, 1 << 15
"""Each decision of a sweep has a stream of its own, from `_FIRST` on, at most so many; the parts' count from 0."""


@dataclass(frozen=True)
class Metropolis(Sampler):
    """A sweep whose stationary law is the exact posterior of whatever visibles and label are held.

    Parts that are full conditionals are drawn as in Gibbs sampling. A directed layer's units are proposed from the
    recognition law given the layer below, `units` of them at a time, and each time the proposal is accepted with
    probability min(1, p(new) q(old) / (p(old) q(new))): the fewer at a time, the more are accepted, and the slower the
    sweep. Chains start from a recognition pass up. Rows that hold nothing are swept in the same way: exact too, but
    Gibbs sampling mixes faster there.
    """

    name: ClassVar[str] = "metropolis"

    units: int = 32
    """Units of a layer that one proposal changes; at least 1."""

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            ValueError: it is out of range.
        """
        if type(self.units) is not int or self.units < 1:
            raise ValueError(f"units must be a whole number from 1; got {self.units!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with directed layers: where Gibbs sampling with held visibles is approximate."""
        return isinstance(model, HasRecognition) and not model.exact_when_clamped

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block from noise, visibles from `start` where given; then directed layers from the recognition law."""
        model = self._directed(model)
        blocks = sweeping.begin(model, keys, start, clamp)
        sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        for stream, part in enumerate(model.parts, start=len(model.blocks)):
            if part.when_clamped:
                blocks[part.block] = Bernoulli(model.recognition(part.block, blocks)).sample(keys, sweep, stream)
        return ChainState(blocks, sweep)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every chain; its acceptance rate is the share of the proposals."""
        model = self._directed(model)
        number, blocks = state.sweep + 1, dict(state.blocks)
        directed = {part.block for part in model.parts if part.when_clamped}
        decisions: list[Bool[Tensor, " n"]] = []
        for stream, part in enumerate(model.parts):
            if part.when_clamped:
                continue
            if part.block in directed:
                self._correct(model, part.block, blocks, keys, number, stream, beta, decisions)
                continue
            law = model.conditional(part.name, blocks, beta)
            drawn = law.sample(keys, number, stream)
            blocks[part.block] = drawn if clamp is None else clamp.hold(part, drawn)
        # A sweep ends with the visibles: `law` is theirs.
        return ChainState(blocks, number), SweepInfo(law.mean, torch.stack(decisions, 1).double().mean(1))

    def _correct(
        self,
        model: HasRecognition,
        block: str,
        blocks: dict[str, Float[Tensor, "n _"]],
        keys: ChainKeys,
        number: Int[Tensor, " n"],
        stream: int,
        beta: Float[Tensor, " n"] | None,
        decisions: list[Bool[Tensor, " n"]],
    ) -> None:
        """Propose a layer's units anew, some at a time; `blocks` and `decisions` take in what comes of it."""
        log_odds = model.recognition(block, blocks)  # the layer's own units do not enter: one draw serves all proposals
        proposed = Bernoulli(log_odds).sample(keys, number, stream)
        log_p = model.log_given_rest(block, blocks, beta)
        for begin in range(0, proposed.shape[1], self.units):
            some, old = slice(begin, begin + self.units), blocks[block]
            new = old.clone()
            new[:, some] = proposed[:, some]
            log_p_new = model.log_given_rest(block, {**blocks, block: new}, beta)
            log_q = invariant_sum((old - new)[:, some] * log_odds[:, some])  # log q(old) - log q(new)
            taken = rng.accept(log_p_new - log_p + log_q, keys, number, _FIRST + len(decisions))
            blocks[block] = torch.where(taken[:, None], new, old)
            log_p = torch.where(taken, log_p_new, log_p)
            decisions.append(taken)

    def _directed(self, model: EnergyModel) -> HasRecognition:
        if not isinstance(model, HasRecognition) or model.exact_when_clamped:
            raise CapabilityError(
                f"{self.name} needs directed layers with a recognition law, which {model.name} has not",
                model.capabilities(),
            )
        widths = [model.block_units(part.block) for part in model.parts if part.when_clamped]
        if sum(math.ceil(width / self.units) for width in widths) > _MOST:
            raise InputError(f"units must be above {sum(widths) // _MOST} for this model's {sum(widths)}", "sampler")
        return model
