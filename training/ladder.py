"""A ladder of saved models with chains of their own, which exchange states and tell the ratios of their Zs.

Parallel trajectory tempering: Bereux, Decelle, Furtlehner & Seoane (2024, arXiv 2405.15376; 2026, arXiv 2607.27077).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.layered import Layered
from models.numerics import softplus
from training.objective import Draws, Memory
from training.phases import Phases, States

_EXCHANGES = 96
"""Stream of the exchanges' draws, after those of the chains."""
_ITERATIONS = 30
_FORGET = 0.02
"""Least weight of a new estimate in the running means."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The saved models, first the base-rate model: parameters (m, ..), odd layers of their chains (m, n, units).

    Entry k of the rest, float64 (m,), is of the pair k - 1, k: the running estimate of log(Z_k / Z_(k-1)), the variance
    of one exchange's estimate, the number of estimates, the acceptance. Entry 0: log Z of the base-rate model; 1.
    """

    parameters: dict[str, Tensor]
    chains: dict[str, Tensor]
    log_ratio: Tensor
    variance: Tensor
    estimates: Tensor
    acceptance: Tensor

    @classmethod
    def of(cls, memory: Memory) -> Ladder:
        """As `memory` keeps it."""
        groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "chains": {}}
        rest = {}
        for key, tensor in memory.items():
            first, _, key_in = key.removeprefix("ladder.").partition(".")
            if key.startswith("ladder.") and key_in:
                groups[first][key_in] = tensor
            elif key.startswith("ladder."):
                rest[first] = tensor
        return cls(**groups, **rest)  # type: ignore[arg-type]

    def memory(self) -> dict[str, Tensor]:
        """What `of` reads."""
        kept = {f"ladder.parameters.{name}": t for name, t in self.parameters.items()}
        kept |= {f"ladder.chains.{block}": t for block, t in self.chains.items()}
        return kept | {f"ladder.{f.name}": getattr(self, f.name) for f in fields(self)[2:]}

    def __len__(self) -> int:
        return len(self.log_ratio)

    def chains_of(self, k: int) -> dict[str, Tensor]:
        """Odd layers of one rung's chains."""
        return {block: t[k] for block, t in self.chains.items()}

    @property
    def total(self) -> tuple[float, float]:
        """log Z of the last model saved, and its standard error; exchanges count as independent."""
        share = torch.clamp(4 / (3 * self.estimates.clamp(min=4 / 3)), min=_FORGET / 2)  # sum of the squared weights
        return float(self.log_ratio.sum()), math.sqrt(float((self.variance * share).sum()))

    def rungs(self, phases: Phases) -> list[Phases]:
        """The saved models' sweeps."""
        return [Rung(phases.model, own={n: t[k] for n, t in self.parameters.items()}) for k in range(len(self))]

    def noted(self, k: int, estimate: float, acceptance: float) -> Ladder:
        """With one more estimate of entry k in the running means: early ones, of chains on their way, are forgotten."""
        seen = float(self.estimates[k])
        weight, slower = max(2.0 / (seen + 2.0), _FORGET), max(2.0 / (seen + 3.0), _FORGET)
        new = replace(self, **{f.name: getattr(self, f.name).clone() for f in fields(self)[2:]})
        off = estimate - float(self.log_ratio[k])
        new.log_ratio[k] += weight * off
        new.variance[k] = (1 - slower) * (self.variance[k] + slower * off**2)
        new.estimates[k] += 1
        new.acceptance[k] += weight * (acceptance - new.acceptance[k])
        return new

    def grown(
        self, at: int, parameters: Mapping[str, Tensor], chains: Mapping[str, Tensor], log_ratio: float, stderr: float
    ) -> Ladder:
        """With another rung, of this number; the log ratio is to the one below it."""

        def insert(t: Tensor, new: Tensor) -> Tensor:
            return torch.cat((t[:at], new[None].to(t), t[at:]))

        rest = {"log_ratio": log_ratio, "variance": stderr**2, "estimates": 0.0, "acceptance": 1.0}
        new = Ladder(
            {name: insert(t, parameters[name]) for name, t in self.parameters.items()},
            {block: insert(t, chains[block]) for block, t in self.chains.items()},
            **{name: insert(getattr(self, name), torch.tensor(x)) for name, x in rest.items()},
        )
        if at < len(self):
            new.log_ratio[at + 1] -= log_ratio
            new.estimates[at + 1] = 0.0
        return new

    def thinned(self) -> Ladder:
        """Without the rung, not the first or last, whose two neighbours exchange with it most easily."""
        k = 1 + int((self.acceptance[1:-1] * self.acceptance[2:]).argmax())
        keep = torch.arange(len(self), device=self.log_ratio.device) != k
        log_ratio, variance = self.log_ratio.clone(), self.variance.clone()
        log_ratio[k + 1] += log_ratio[k]
        variance[k + 1] += variance[k]
        estimates, acceptance = self.estimates.clone(), self.acceptance.clone()
        estimates[k + 1] = torch.minimum(estimates[k], estimates[k + 1])
        acceptance[k + 1] *= acceptance[k]
        return Ladder(
            {name: t[keep] for name, t in self.parameters.items()},
            {block: t[keep] for block, t in self.chains.items()},
            *(t[keep] for t in (log_ratio, variance, estimates, acceptance)),
        )


@dataclass(frozen=True, eq=False)
class Rung(Phases):
    """The chains of a saved model: those parameters in place of the model's own."""

    own: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def machine(self) -> Layered:
        """The saved model's arithmetic."""
        current, names = self.model.machine, Phases(self.model).names
        own = {role: self.own[name] for role, name in names.items()}
        return replace(
            current,
            weights=tuple(own[f"weights {n}"] for n in range(current.depth)),
            biases=tuple(own[f"bias of {block}"] for block in current.layers),
            log_sigma=own.get("log_sigma"),
            U=own.get("U"),
            d=own.get("bias of label"),
        )


@dataclass(frozen=True, eq=False)
class Crowd:
    """One model's chains in the middle of a sweep: even layers, and the inputs that these give the odd ones."""

    phases: Phases
    even: States
    inputs: States

    @classmethod
    def at(cls, phases: Phases, even: States) -> Crowd:
        """These even layers as this model's."""
        return cls(phases, even, {b: phases.machine.inputs(b, even) for b in phases.machine.side(True)})

    def log_density(self) -> Float[Tensor, " n"]:
        """log of the sum of exp(-E) over the odd layers, float64."""
        machine = self.phases.machine
        total = machine.visible_term(self.even["visible"]).double()
        for block, states in self.even.items():
            if block != "visible":
                bias = machine.d if block == "label" else machine.biases[machine.layers.index(block)]
                assert bias is not None
                total = total + (states @ bias).double()
        for block, x in self.inputs.items():
            total = total + (x.double().logsumexp(1) if block == "label" else softplus(x).sum(1, dtype=torch.float64))
        return total

    def where(self, swap: Tensor, other: Crowd) -> Crowd:
        """With the other's rows where `swap`."""
        rows = swap[:, None]
        even = {b: torch.where(rows, other.even[b], x) for b, x in self.even.items()}
        return Crowd(self.phases, even, {b: torch.where(rows, other.inputs[b], x) for b, x in self.inputs.items()})


@dataclass(frozen=True, eq=False)
class Meeting:
    """Two models' chains beside each other: x the lower one's, y the upper one's.

    `gain_x` is log f_upper - log f_lower at x, `gain_y` at y, so that exp(gain_x - gain_y) is what the product of both
    laws is multiplied by when x and y change places.
    """

    x: Crowd
    y: Crowd

    @cached_property
    def crossed(self) -> tuple[Crowd, Crowd]:
        """y as the lower one's, x as the upper one's."""
        return Crowd.at(self.x.phases, self.y.even), Crowd.at(self.y.phases, self.x.even)

    @cached_property
    def gains(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """gain_x and gain_y."""
        lower, upper = self.crossed
        return upper.log_density() - self.x.log_density(), self.y.log_density() - lower.log_density()

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """log of what an exchange multiplies the product of both laws by."""
        gain_x, gain_y = self.gains
        return gain_x - gain_y

    @property
    def acceptance(self) -> float:
        """Mean probability of an exchange."""
        return float(self.log_ratio.clamp(max=0.0).exp().mean())

    def exchanged(self, draws: Draws, sweep: int) -> tuple[Crowd, Crowd]:
        """Both after the exchange of what is accepted: the lower one, the upper one."""
        swap = draws.accept(self.log_ratio, sweep, _EXCHANGES)
        lower, upper = self.crossed
        return self.x.where(swap, lower), self.y.where(swap, upper)


def bridge(gain_x: Tensor, gain_y: Tensor, at: float) -> float:
    """An estimate of log(Z_upper / Z_lower), consistent whatever `at` is, and best where that is the value itself
    (Bennett 1976)."""
    above, below = logsigmoid(gain_x - at), logsigmoid(at - gain_y)
    return at + float(above.logsumexp(0) - below.logsumexp(0)) + math.log(len(gain_y) / len(gain_x))


def bennett(gain_x: Float[Tensor, "sweeps n"], gain_y: Float[Tensor, "sweeps n"]) -> tuple[float, float]:
    """log(Z_upper / Z_lower) from chains of both that hardly move, and its standard error; chains are independent."""
    ratio = float(gain_x.mean() + gain_y.mean()) / 2
    for _ in range(_ITERATIONS):
        ratio = bridge(gain_x.reshape(-1), gain_y.reshape(-1), ratio)
    sides = (torch.sigmoid(gain_x - ratio), torch.sigmoid(ratio - gain_y))
    return ratio, math.sqrt(sum(float(p.mean(0).var() / p.mean().square()) / p.shape[1] for p in sides))


def overlap(gain: Float[Tensor, " n"]) -> float:
    """How likely an exchange with the model that is so much likelier at these states of another would be: the mean of
    min(r, r') over pairs of states, r = exp(gain), over the mean of r."""
    r = torch.exp(gain - gain.max()).sort().values
    pairs = torch.arange(2 * len(r) - 1, 0, -2, dtype=r.dtype, device=r.device)  # in which each is the smaller
    return float((r * pairs).sum() / (len(r) * r.sum()))
