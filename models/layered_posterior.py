"""log p~(v) of a layered machine with several hidden layers: AIS over what is hidden, v held (MATH 5, 12).

The path goes from the mean-field law q to the posterior, geometrically: f_beta(h) = q~(h)^(1 - beta) p~(v, h)^beta, so
that each block's inputs are (1 - beta) times those that mean-field ended with plus beta times those that its neighbours
put in. Salakhutdinov & Hinton (2009) anneal from independent units instead; from q the weights begin at the variational
bound and rise to log p~(v).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.layered import Layered
from models.numerics import softplus
from models.rng import ChainKeys

Progress = Callable[[int, int], None]


def annealed(
    machine: Layered,
    x: Float[Tensor, "n visible"],
    runs: int,
    temperatures: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Estimates of log p~(v) = log sum_h,y exp(-E(v, h, y)) and their standard errors (delta method); nats.

    exp of an estimate, the mean over `runs` chains, is unbiased for p~(v): the estimate is on average too low, and with
    the number of temperatures it rises from near the bound to the exact value. In the machine's precision.
    """
    path = _Path.of(machine, x, runs)
    keys = ChainKeys.of(seed, len(path.visible), x.device)
    sweep = torch.zeros(len(keys), dtype=torch.int64, device=x.device)
    log_weight = path.log_base()
    kept = path.drawn(path.even, {}, 0.0, keys, sweep)
    for k in range(1, temperatures + 1):
        beta, pulls = k / temperatures, path.pulls(kept)
        log_weight = log_weight + path.log_density(kept, pulls, beta)
        log_weight = log_weight - path.log_density(kept, pulls, (k - 1) / temperatures)
        if k < temperatures:
            odd = path.drawn(path.odd, pulls, beta, keys, sweep + k)
            kept = path.drawn(path.even, path.inputs(path.even, odd), beta, keys, sweep + k)
        if progress:
            progress(k, temperatures)
    weights = log_weight.view(len(x), runs)
    log_p = weights.logsumexp(1) - math.log(runs)
    spread = torch.exp(weights - log_p[:, None]).std(1) if runs > 1 else torch.full_like(log_p, math.inf)
    return log_p, spread / math.sqrt(runs)


@dataclass(frozen=True, eq=False)
class _Path:
    """f_beta over the even hidden blocks, the odd ones summed out, for the visibles of each chain."""

    machine: Layered
    visible: Float[Tensor, "n visible"]
    start: Mapping[str, Float[Tensor, "n _"]]
    """Inputs of the hidden blocks (and labels) at beta = 0: those whose means are mean-field's."""

    @classmethod
    def of(cls, machine: Layered, x: Tensor, runs: int) -> _Path:
        means = machine.mean_field(x)
        held = {"visible": x, **means}
        return cls(
            machine,
            x.repeat_interleave(runs, 0),
            {block: machine.inputs(block, held).repeat_interleave(runs, 0) for block in means},
        )

    @property
    def odd(self) -> tuple[str, ...]:
        return self.machine.side(True)

    @property
    def even(self) -> tuple[str, ...]:
        return tuple(block for block in self.machine.side(False) if block != "visible")

    @cached_property
    def _own(self) -> dict[str, Tensor]:
        first = self.machine.layers[1]
        return {first: self.machine.inputs(first, {"visible": self.visible})}

    def inputs(self, blocks: tuple[str, ...], states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """At beta = 1."""
        return {block: self.machine.inputs(block, states, self._own.get(block)) for block in blocks}

    def pulls(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inputs(self.odd, kept)

    def drawn(
        self,
        blocks: tuple[str, ...],
        inputs: Mapping[str, Tensor],
        beta: float,
        keys: ChainKeys,
        sweep: Int[Tensor, " n"],
    ) -> dict[str, Tensor]:
        found = {}
        for block in blocks:
            mixed = torch.lerp(self.start[block], inputs[block], beta) if block in inputs else self.start[block]
            law = self.machine.law(block, mixed)
            found[block] = law.sample(keys, sweep, self.machine.blocks.index(block)).to(self.visible)
        return found

    def log_base(self) -> Float[Tensor, " n"]:
        """log of the sum of q~ over all hidden states."""
        return sum((_log_sum(b, inputs) for b, inputs in self.start.items()), self.visible.new_zeros(len(self.visible)))

    def log_density(self, kept: Mapping[str, Tensor], pulls: Mapping[str, Tensor], beta: float) -> Float[Tensor, " n"]:
        total = beta * self.machine.visible_term(self.visible)
        for block, states in kept.items():
            bias = self.machine.wide_bias(block).to(states).expand_as(states)
            total = total + (states * torch.lerp(self.start[block], bias, beta)).sum(1)
        for block, pull in pulls.items():
            total = total + _log_sum(block, torch.lerp(self.start[block], pull, beta))
        return total


def _log_sum(block: str, inputs: Tensor) -> Tensor:
    return inputs.logsumexp(1) if block == "label" else softplus(inputs).sum(1)
