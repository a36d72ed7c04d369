"""Parallel tempering, replica exchange (Swendsen & Wang 1986; Geyer 1991; in RBMs Desjardins et al. 2010)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import rng, sweeping
from models.errors import InputError
from models.family import Clamp, EnergyModel, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

LARGEST = 64
DEFAULT_LOWEST = 0.1


@dataclass(frozen=True)
class Tempering(Sampler):
    """Each chain is a ladder of replicas at falling inverse temperatures, the first of which is the chain itself.

    A step is one sweep of every replica, then an exchange between neighbours: pairs (0, 1), (2, 3), .. after even
    sweeps, pairs (1, 2), (3, 4), .. after odd ones; of two replicas the only pair after every sweep. Replicas i and j
    change places with probability min(1, exp((beta_i - beta_j)(E_i - E_j))), E being what beta multiplies, so that the
    product of the tempered laws is stationary. What is clamped is clamped in every replica.

    The states of replica r > 0 are the blocks `visible@r` and so on; they start from noise. All of a chain's draws are
    those of its key, replica r's with replica number r.
    """

    name: ClassVar[str] = "tempering"

    replicas: int = 10
    """2..64."""
    lowest: float | None = None
    """Inverse temperature of the last replica, as a fraction of the chain's own, below 1. By default 0 (independent
    fair units) in a linear ladder of a model with discrete units alone, else 0.1. Real units refuse 0."""
    spacing: str = "linear"
    """Of the inverse temperatures: `linear`, or `geometric` (each the same multiple of the one before)."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.replicas) is not int or not 2 <= self.replicas <= LARGEST:
            raise ValueError(f"replicas must be a whole number from 2 to {LARGEST}; got {self.replicas!r}")
        if self.spacing not in ("linear", "geometric"):
            raise ValueError(f"spacing must be 'linear' or 'geometric'; got {self.spacing!r}")
        if self.lowest is None:
            return
        if type(self.lowest) not in (int, float) or not 0 <= self.lowest < 1:
            raise ValueError(f"lowest must be a number from 0 to below 1; got {self.lowest!r}")
        if self.lowest == 0 and self.spacing == "geometric":
            raise ValueError("lowest must be above 0 where spacing is 'geometric'")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with conditionals."""
        return isinstance(model, HasConditionals)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:
        """Where the model's sweeps are so once visibles are held."""
        return clamped and not sweeping.sweepable(model, self.name).exact_when_clamped

    def ladder(self, model: HasConditionals) -> list[float]:
        """The replicas' inverse temperatures as fractions of the chain's own, falling from 1 to `lowest`.

        Raises:
            InputError: `lowest` is 0 and the model has real units.
        """
        lowest = self.lowest
        if lowest is None:
            lowest = DEFAULT_LOWEST if self.spacing == "geometric" or sweeping.has_real(model) else 0.0
        elif lowest == 0 and sweeping.has_real(model):
            raise InputError("lowest must be above 0 for a model with real units", "sampler")
        shares = [r / (self.replicas - 1) for r in range(self.replicas)]
        if self.spacing == "geometric":
            return [math.exp(share * math.log(lowest)) for share in shares]
        return [1.0 - share * (1.0 - lowest) for share in shares]

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Every block of every replica from noise; the chain's own visibles from `start` where given."""
        model = sweeping.sweepable(model, self.name)
        self.ladder(model)  # refuses what it cannot do before the first sweep
        blocks = sweeping.begin(model, keys, start, clamp)
        for r in range(1, self.replicas):
            replica = ChainKeys(keys.seed, keys.chain, torch.full_like(keys.chain, r))
            blocks |= {f"{block}@{r}": s for block, s in sweeping.begin(model, replica, None, clamp).items()}
        return ChainState(blocks, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One sweep of every replica and one round of exchanges.

        The expected visibles are those of the chain's own replica before the exchange.
        """
        model = sweeping.sweepable(model, self.name)
        number, n = state.sweep + 1, len(keys)
        ladder = torch.tensor(self.ladder(model), dtype=torch.float64, device=model.device)
        betas = ladder[:, None] * (torch.ones_like(ladder[:1]) if beta is None else beta.double())
        betas = betas.expand(self.replicas, n)
        swept = sweeping.sweep(
            model,
            self._stacked(model, state.blocks),
            _copies(keys, self.replicas),
            number.repeat(self.replicas),
            None if clamp is None else clamp.rows(torch.arange(n, device=model.device).repeat(self.replicas)),
            betas.reshape(-1),
        )
        energies = model.thermal_energy(swept.blocks).reshape(self.replicas, n)
        source, rate = _exchange(betas, energies, keys, number)
        blocks: dict[str, Tensor] = {}
        for block in model.blocks:
            every = swept.blocks[block].reshape(self.replicas, n, -1)
            moved = every.gather(0, source[:, :, None].expand_as(every))
            blocks |= {_at(block, r): moved[r] for r in range(self.replicas)}
        return ChainState(blocks, number), SweepInfo(lambda: swept.expected_visible()[:n], rate)

    def _stacked(self, model: HasConditionals, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {b: torch.cat([blocks[_at(b, r)] for r in range(self.replicas)]) for b in model.blocks}


def _at(block: str, replica: int) -> str:
    return f"{block}@{replica}" if replica else block


def _copies(keys: ChainKeys, count: int) -> ChainKeys:
    """The keys of replicas 0..count-1 of every chain, replica by replica."""
    numbers = torch.arange(count, device=keys.chain.device).repeat_interleave(len(keys))
    return ChainKeys(keys.seed.repeat(count), keys.chain.repeat(count), numbers)


def _exchange(
    betas: Float[Tensor, "r n"], energies: Float[Tensor, "r n"], keys: ChainKeys, number: Int[Tensor, " n"]
) -> tuple[Int[Tensor, "r n"], Float[Tensor, " n"]]:
    """Which replica's state each replica goes on with, and the share of proposed exchanges that took place."""
    pairs, n = len(betas) - 1, len(keys)
    log_ratio = (betas[:-1] - betas[1:]) * (energies[:-1] - energies[1:])
    accepted = rng.accept(log_ratio.reshape(-1), _copies(keys, pairs), number.repeat(pairs), sweeping.DECISIONS)
    lower = torch.arange(pairs, device=betas.device)[:, None]
    proposed = ((lower + number) % 2 == 0) | (pairs == 1)
    swap = accepted.reshape(pairs, n) & proposed
    source = torch.arange(len(betas), device=betas.device)[:, None].repeat(1, n)
    source[:-1] += swap.long()
    source[1:] -= swap.long()
    return source, swap.sum(0).double() / proposed.sum(0).double()
