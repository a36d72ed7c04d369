"""Tempered transitions (Neal 1996, "Sampling from multimodal distributions"; in RBMs Salakhutdinov 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models import rng, sweeping
from models.errors import InputError
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

LARGEST = 1000


@dataclass(frozen=True)
class TemperedTransitions(Sampler):
    """A Gibbs sweep, then a proposal by heating and cooling, which is accepted or refused as a whole.

    Heating sweeps once at each of `rungs` falling inverse temperatures; cooling sweeps at the same ones in reverse
    order, parts in reverse order too, so that each sweep down is the reversal of the one up. Models with directed
    layers have no such reversals: the sampler does not apply to them.

    A step costs 1 + 2 `rungs` sweeps; sweep s of them draws with replica number s.
    """

    name: ClassVar[str] = "tempered_transitions"

    rungs: int = 20
    """1..1000. The more, the likelier is a proposal to be accepted."""
    lowest: float = 0.5
    """The lowest inverse temperature as a fraction of the chain's own, below 1; the rungs are evenly spaced. 0 (with
    discrete units alone) forgets everything; the larger a model, the nearer to 1 it must be to accept anything."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.rungs) is not int or not 1 <= self.rungs <= LARGEST:
            raise ValueError(f"rungs must be a whole number from 1 to {LARGEST}; got {self.rungs!r}")
        if type(self.lowest) not in (int, float) or not 0 <= self.lowest < 1:
            raise ValueError(f"lowest must be a number from 0 to below 1; got {self.lowest!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models each part of which is drawn from its full conditional; then held visibles change nothing."""
        return isinstance(model, HasConditionals) and model.exact_when_clamped

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block from noise; visibles from `start` where given.

        Raises:
            InputError: `lowest` is 0 and the model has real units.
        """
        model = sweeping.sweepable(model, self.name)
        if self.lowest == 0 and sweeping.has_real(model):
            raise InputError("lowest must be above 0 for a model with real units", "sampler")
        blocks = sweeping.begin(model, keys, start, clamp)
        return ChainState(blocks, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """A sweep and a proposal for every chain. The expected visibles are those of the sweep."""
        model = sweeping.sweepable(model, self.name)
        number = state.sweep + 1
        own = torch.ones(len(keys), dtype=torch.float64, device=model.device) if beta is None else beta.double()
        swept = sweeping.sweep(model, state.blocks, keys, number, clamp, own)
        proposal, accepted = self.excursion(model, swept.blocks, keys, number, clamp, own)
        blocks = {block: torch.where(accepted[:, None], proposal[block], s) for block, s in swept.blocks.items()}
        return ChainState(blocks, number), SweepInfo(swept.expected_visible, accepted.double())

    def excursion(
        self,
        model: HasConditionals,
        blocks: Mapping[str, Float[Tensor, "n _"]],
        keys: ChainKeys,
        number: Int[Tensor, " n"],
        clamp: Clamp | None,
        beta: Float[Tensor, " n"],
    ) -> tuple[dict[str, Float[Tensor, "n _"]], Bool[Tensor, " n"]]:
        """Where chains are after heating and cooling, and which of them are to stay there (Neal 1996, eq. 3).

        The log of the ratio is the sum over rungs k of (beta_(k-1) - beta_k)(E before the sweep up at rung k - E after
        the sweep down from it), E being what beta multiplies.
        """
        fractions = [1.0 - (1.0 - self.lowest) * k / self.rungs for k in range(self.rungs + 1)]
        states, log_ratio = dict(blocks), torch.zeros_like(beta)

        def swept(at: int, visit: int, backwards: bool) -> dict[str, Tensor]:
            own = ChainKeys(keys.seed, keys.chain, torch.full_like(keys.chain, visit))
            heated = beta * fractions[at]
            return sweeping.sweep(model, states, own, number, clamp, heated, backwards=backwards).blocks

        for k in range(1, self.rungs + 1):
            log_ratio += beta * (fractions[k - 1] - fractions[k]) * model.thermal_energy(states)
            states = swept(k, k, backwards=False)
        for k in range(self.rungs, 0, -1):
            states = swept(k, 2 * self.rungs + 1 - k, backwards=True)
            log_ratio -= beta * (fractions[k - 1] - fractions[k]) * model.thermal_energy(states)
        return states, rng.accept(log_ratio, keys, number, sweeping.DECISIONS)
