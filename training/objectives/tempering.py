"""Persistent contrastive divergence with parallel tempering (Desjardins et al. 2010; Cho, Raiko & Ilin 2010)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from training.objective import Batch, Draws, Memory, Objective
from training.phases import Centring, Phases, expected

_EXCHANGES = 96
"""Stream of the exchanges' draws, after those of the chains."""


class Tempering(Objective):
    """PCD-k whose chains each have replicas at falling inverse temperatures, that change places with their neighbours.

    Replica r has the law f_beta_r of the annealing path (MATH 12): couplings and odd layers' biases times beta, even
    layers' biases on the way from those of the base-rate model of the data, beta falling evenly from 1 to `lowest`. Up
    to what does not depend on the state, log f_beta is linear in beta: neighbours change places with probability
    min(1, exp((beta_r - beta_s)(G_s - G_r))), G being what beta multiplies. The replica at beta = 1 is the model's;
    the hot ones, which forget where they were, bring it from mode to mode.
    """

    name: ClassVar[str] = "tempering"

    steps: int = Field(1, ge=1, description="k.")
    chains: int = Field(100, ge=1)
    replicas: int = Field(10, ge=2, le=64, description="Of each chain; a step costs so many times one of PCD.")
    lowest: float = Field(0.0, ge=0, lt=1, description="Inverse temperature of the last; at 0 it is the base rates.")
    centring: Centring = "none"
    mean_field_sweeps: int = Field(10, ge=1, description="For more than one hidden layer.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines."""
        return isinstance(model, LayeredModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Odd layers of all replicas, (replicas * chains, units), the model's own first; base rates; the offsets."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model)
        machine = phases.machine
        memory = {f"chains.{b}": s for b, s in phases.first(base, self.replicas * self.chains, seed).items()}
        for block in machine.side(False):
            biases = base[block] if block in base else torch.zeros(machine.units(block))
            memory[f"base.{block}"] = biases.to(machine.weights[0])
        return memory | dict(phases.offsets(base, self.centring))

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the replicas at beta = 1, after the last sweep's exchanges."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model, self.mean_field_sweeps)
        machine = phases.machine
        data = phases.data(batch)
        base = {b: memory[f"base.{b}"] for b in machine.side(False)}
        odd = {b: memory[f"chains.{b}"] for b in machine.side(True)}
        betas = torch.linspace(1.0, self.lowest, self.replicas, device=machine.device, dtype=torch.float64)
        beta = betas.to(machine.weights[0]).repeat_interleave(self.chains)[:, None]
        for k in range(self.steps):
            sweep = draws.step * self.steps + k
            even = phases.up({b: torch.lerp(base[b], machine.inputs(b, odd), beta) for b in base}, draws, sweep)
            inputs = {b: machine.inputs(b, even) for b in odd}
            odd = phases.up({b: beta * x for b, x in inputs.items()}, draws, sweep)
            gains = self._gains(phases, base, even, odd, inputs)
            source = self._exchanged(betas, gains.view(self.replicas, self.chains), draws, sweep)
            odd = {b: x[source] for b, x in odd.items()}
        own = source[: self.chains]
        chains = {b: x[own] for b, x in even.items()} | expected({b: x[own] for b, x in inputs.items()})
        gradient, kept = phases.contrast(data, chains, memory, self.centring)
        return gradient, {**kept, **{f"chains.{b}": s for b, s in odd.items()}}

    def _gains(
        self,
        phases: Phases,
        base: Mapping[str, Tensor],
        even: Mapping[str, Tensor],
        odd: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
    ) -> Float[Tensor, " rows"]:
        """What beta multiplies in log f_beta(even, odd), float64."""
        machine = phases.machine
        biases = dict(zip(machine.layers, machine.biases, strict=True)) | (
            {} if machine.d is None else {"label": machine.d}
        )
        total = sum(((odd[b] * x).sum(1, dtype=torch.float64) for b, x in inputs.items()), torch.zeros(()))
        for block, states in even.items():
            pull = biases[block] - base[block]
            if block == "visible" and machine.log_sigma is not None:
                pull = pull * torch.exp(-2 * machine.log_sigma)
            total = total + (states @ pull).double()
        return total

    def _exchanged(
        self, betas: Float[Tensor, " r"], gains: Float[Tensor, "r n"], draws: Draws, sweep: int
    ) -> Int[Tensor, " rows"]:
        """The row whose state each row goes on with: pairs (0, 1), (2, 3), .. after even sweeps, (1, 2), .. after odd
        ones; of two replicas the only pair after every sweep."""
        accepted = draws.accept(self._log_ratios(betas, gains).reshape(-1), sweep, _EXCHANGES)
        lower = torch.arange(self.replicas - 1, device=betas.device)[:, None]
        swap = accepted.view(self.replicas - 1, -1) & (((lower + sweep) % 2 == 0) | (self.replicas == 2))
        source = torch.arange(self.replicas, device=betas.device)[:, None].repeat(1, self.chains)
        source[:-1] += swap.long()
        source[1:] -= swap.long()
        return (source * self.chains + torch.arange(self.chains, device=betas.device)).reshape(-1)

    def _log_ratios(self, betas: Float[Tensor, " r"], gains: Float[Tensor, "r n"]) -> Float[Tensor, "r-1 n"]:
        """log of the product of two neighbours' laws after they changed places, less that before."""
        return (betas[:-1] - betas[1:])[:, None] * (gains[1:] - gains[:-1])
