"""The annealing path of a layered Boltzmann machine: even layers kept, odd layers summed out (MATH 5, 12).

f_beta has the couplings times beta, and all biases on the way from those of the base-rate model to the model's: for
real visibles their means, at the model's own variances. Salakhutdinov & Murray (2008, eq. 15) and Salakhutdinov &
Hinton (2009, eq. 18) have the odd layers' biases times beta: they begin at fair coins, whatever those units' means.
Where biases balance couplings, as they do after centred learning, that path leaves the region that the model lives in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.layered import Layered
from models.numerics import log_odds, softplus
from models.rng import ChainKeys


def base_of(machine: Layered, totals: Mapping[str, Float[Tensor, " _"]], n: int) -> dict[str, Float[Tensor, " _"]]:
    """Biases of independent units with the means of n states that add up to `totals`, by block; all finite.

    Log-odds of binary units, log-probabilities of the classes, means of real units.
    """
    found = {}
    for block, total in totals.items():
        if block == "visible" and machine.log_sigma is not None:
            found[block] = total.double() / n
        else:
            found[block] = torch.log((total.double() + 0.5) / n) if block == "label" else log_odds(total, n)
    return found


@dataclass(frozen=True, eq=False)
class LayeredPath:
    """f_beta of one machine from one base: biases by block, fair coins and dice for odd blocks without. float64."""

    machine: Layered
    base: Mapping[str, Float[Tensor, " _"]]

    def biases(self, block: str, beta: float) -> Float[Tensor, " units"]:
        """The even block's biases at beta."""
        return (1.0 - beta) * self.base[block].double() + beta * self.machine.wide_bias(block)

    def log_base(self) -> float:
        """log Z of f_0."""
        machine, total = self.machine, torch.zeros((), dtype=torch.float64, device=self.machine.device)
        for block in machine.side(False):
            biases = self.base[block].double()
            if block == "visible" and machine.log_sigma is not None:
                total += (0.5 * math.log(2 * math.pi) + machine.log_sigma.double()).sum()
            else:
                total += biases.logsumexp(0) if block == "label" else softplus(biases).sum()
        for block in machine.side(True):
            biases = self._at_zero(block)
            total += biases.logsumexp(0) if block == "label" else softplus(biases).sum()
        return float(total)

    def _at_zero(self, block: str) -> Float[Tensor, " units"]:
        """An odd block's biases in f_0."""
        if block in self.base:
            return self.base[block].double()
        return torch.zeros(self.machine.units(block), dtype=torch.float64, device=self.machine.device)

    def _mixed(self, block: str, inputs: Float[Tensor, "n units"], beta: float) -> Float[Tensor, "n units"]:
        """An odd block's inputs at beta, where these are the ones at 1."""
        return beta * inputs + (1.0 - beta) * self._at_zero(block)

    def start(self, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> dict[str, Float[Tensor, "n _"]]:
        """Even blocks drawn from f_0."""
        machine = self.machine
        return {
            block: machine.law(block, self.base[block].double().expand(len(keys), -1)).sample(
                keys, sweep, machine.blocks.index(block)
            )
            for block in machine.side(False)
        }

    def activations(self, kept: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Float[Tensor, "n _"]]:
        """Inputs of the odd blocks at beta = 1."""
        return {block: self.machine.exact_inputs(block, kept) for block in self.machine.side(True)}

    def log_density(
        self, kept: Mapping[str, Float[Tensor, "n _"]], activations: Mapping[str, Float[Tensor, "n _"]], beta: float
    ) -> Float[Tensor, " n"]:
        """log f_beta(even blocks), the odd ones summed out."""
        machine = self.machine
        total = torch.zeros(len(kept["visible"]), dtype=torch.float64, device=machine.device)
        for block, states in kept.items():
            biases = self.biases(block, beta)
            if block == "visible" and machine.log_sigma is not None:
                total -= 0.5 * ((states - biases) / machine.sigma).square().sum(1)
            else:
                total += states @ biases
        for block, inputs in activations.items():
            mixed = self._mixed(block, inputs, beta)
            total += mixed.logsumexp(1) if block == "label" else softplus(mixed).sum(1)
        return total

    def transition(
        self,
        activations: Mapping[str, Float[Tensor, "n _"]],
        beta: float,
        keys: ChainKeys,
        sweep: Int[Tensor, " n"],
    ) -> dict[str, Float[Tensor, "n _"]]:
        """Odd blocks given even ones, then even ones given odd ones, at beta."""
        machine, stream = self.machine, self.machine.blocks.index
        odd = {
            b: machine.law(b, self._mixed(b, a, beta)).sample(keys, sweep, stream(b)) for b, a in activations.items()
        }
        even = {}
        for block in machine.side(False):
            pull = machine.exact_inputs(block, odd) - machine.wide_bias(block)
            even[block] = machine.law(block, self.biases(block, beta) + beta * pull).sample(keys, sweep, stream(block))
        return even
