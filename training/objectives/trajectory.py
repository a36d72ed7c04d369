"""Parallel trajectory tempering: replica exchange with earlier models of the same run, and log Z along training.

Bereux, Decelle, Furtlehner & Seoane (2024, arXiv 2405.15376; 2026, arXiv 2607.27077).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.estimator import LogPartition
from models.family import Base, EnergyModel
from models.layered_family import LayeredModel
from models.numerics import log_mean_exp
from training.ladder import Crowd, Ladder, Meeting, Rung, bennett, bridge, overlap
from training.objective import Batch, Draws, Memory, Objective
from training.phases import Centring, Phases, expected

# Draws of the saved models' chains, and of an estimate, are those of seeds that no recipe has.
_RUNG_SEED, _ESTIMATE_SEED = 8 << 32, 4 << 32
_ESTIMATE_SWEEPS, _HALVINGS = 20, 10
_BROKEN = 0.02
"""Acceptance below which neighbours tell nothing of each other."""
_WEAK, _SEEN = 0.4, 5
"""Share of the acceptance below which, after so many exchanges, there is a model put between two saved ones."""


class Trajectory(Objective):
    """PCD-k whose chains are kept at the model's law by exchanges with the chains of earlier models of the run.

    The ladder of saved models begins with independent units of the data's means, whose chains are independent and whose
    log Z is known. Every `exchange_every` steps all saved models' chains make a sweep, and every other pair of
    neighbours, the model itself above the last, exchanges states: the even layers, the odd ones summed out. Where fewer
    than `acceptance` of the model's own exchanges take place, the model is saved; where training moved too far for it,
    a model between the last one saved and it; where two saved ones hardly overlap, one between them. The same exchanges
    give log Z of each saved model relative to the one before, and so that of the model: `log_partition`.
    """

    name: ClassVar[str] = "trajectory"

    steps: int = Field(1, ge=1, description="k.")
    chains: int = Field(100, ge=2, description="Of the model, and of each saved model.")
    exchange_every: int = Field(10, ge=1, description="Steps; a ladder of so many models doubles the sweeps' cost.")
    acceptance: float = Field(0.25, gt=0, lt=1, description="Of exchanges, below which a model is saved.")
    most: int = Field(32, ge=3, description="Saved models; beyond it the one that is needed least is dropped.")
    centring: Centring = "none"
    mean_field_sweeps: int = Field(10, ge=1, description="For more than one hidden layer.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines."""
        return isinstance(model, LayeredModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Chains as those of PCD; the ladder with its first rung, which forgets its chains' states in each sweep."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model)
        machine, names, tensors = phases.machine, phases.names, model.tensors()
        even = {b: base[b] if b in base else torch.zeros(machine.units(b)) for b in machine.side(False)}
        first = {name: torch.zeros_like(tensors[name]) for name in names.values()}
        first |= {names[f"bias of {block}"]: biases.to(machine.weights[0]) for block, biases in even.items()}
        if machine.log_sigma is not None:
            first[names["log_sigma"]] = machine.log_sigma.clone()
        entries = torch.tensor([[model.annealed_base(even)], [0.0], [0.0], [1.0]], dtype=torch.float64)
        ladder = Ladder(
            {name: tensor[None] for name, tensor in first.items()},
            {b: machine.weights[0].new_zeros(1, self.chains, machine.units(b)) for b in machine.side(True)},
            *(entry.clone() for entry in entries.to(machine.device)),
        )
        chains = {f"chains.{b}": s for b, s in phases.first(base, self.chains, seed).items()}
        return chains | ladder.memory() | dict(phases.offsets(base, self.centring))

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the chains, after their exchanges where there are any in this step."""
        assert isinstance(model, LayeredModel)
        phases = Phases(model, self.mean_field_sweeps)
        odd = {b: memory[f"chains.{b}"] for b in phases.machine.side(True)}
        first, last = draws.step * self.steps, (draws.step + 1) * self.steps - 1
        if first < last:
            _, odd = phases.advance(odd, draws, first, last - first)
        crowd = Crowd(phases, *phases.down(odd, draws, last))
        if draws.step % self.exchange_every == 0:
            crowd, memory = self._exchange(crowd, draws, memory)
        odd = phases.up(crowd.inputs, draws, last)
        seen = crowd.even | expected(crowd.inputs)
        gradient, kept = phases.contrast(phases.data(batch), seen, memory, self.centring)
        return gradient, {**kept, **{f"chains.{b}": s for b, s in odd.items()}}

    def _exchange(self, crowd: Crowd, draws: Draws, memory: Memory) -> tuple[Crowd, Memory]:
        """One sweep of the saved models' chains with its exchanges; the pair on top is one of every other."""
        ladder, step = Ladder.of(memory), draws.step
        rungs = ladder.rungs(crowd.phases)
        own = [Draws(draws.seed + _RUNG_SEED + (k << 32), step) for k in range(len(rungs) + 1)]
        crowds = [
            *(Crowd(rung, *rung.down(ladder.chains_of(k), own[k], step)) for k, rung in enumerate(rungs)),
            crowd,
        ]
        top = len(rungs) - 1
        pairs = range((top + step // self.exchange_every) % 2 if top else 0, top + 1, 2)
        for k in pairs:
            meeting = Meeting(crowds[k], crowds[k + 1])
            if k < top:
                estimate = bridge(*meeting.gains, float(ladder.log_ratio[k + 1]))
                ladder = ladder.noted(k + 1, estimate, meeting.acceptance)
            crowds[k], crowds[k + 1] = meeting.exchanged(own[k], step)
        drawn = [rung.up(c.inputs, o, step) for rung, c, o in zip(rungs, crowds[:-1], own[:-1], strict=True)]
        ladder = replace(ladder, chains={b: torch.stack([d[b] for d in drawn]) for b in drawn[0]})
        if top in pairs and meeting.acceptance < self.acceptance:
            ladder = self._extended(ladder, meeting, own[-1])
        elif len(weak := ((ladder.acceptance < _WEAK * self.acceptance) & (ladder.estimates >= _SEEN)).nonzero()):
            ladder = self._mended(ladder, int(weak[0]), crowds, own[-1])
        if len(ladder) > self.most:
            ladder = ladder.thinned()
        return crowds[-1], {**memory, **ladder.memory()}

    def _extended(self, ladder: Ladder, meeting: Meeting, draws: Draws) -> Ladder:
        """With the model saved, or one on the way to it that the last one saved reaches."""
        lower, upper, ends = meeting.x, meeting.y, [0.0, 1.0]
        last = {name: t[-1] for name, t in ladder.parameters.items()}
        now, share = upper.phases.model.tensors(), 1.0
        for _ in range(_HALVINGS):
            parameters = {name: torch.lerp(t, now[name], share) for name, t in last.items()}
            rung = Rung(upper.phases.model, own=parameters)
            gain = Crowd.at(rung, lower.even).log_density() - lower.log_density()
            reached = overlap(gain) / self.acceptance
            if reached >= 0.75 and (share == 1.0 or reached <= 1.25):
                break
            ends[reached < 1.0] = share
            share = sum(ends) / 2
        begun = Crowd.at(rung, upper.even if share == 1.0 else lower.even)
        chains = rung.up(begun.inputs, draws, draws.step)
        return ladder.grown(len(ladder), parameters, chains, *log_mean_exp(gain))

    def _mended(self, ladder: Ladder, k: int, crowds: list[Crowd], draws: Draws) -> Ladder:
        """With a model halfway between the saved ones k - 1 and k, its chains from those of both."""
        lower, upper = crowds[k - 1], crowds[k]
        parameters = {name: torch.lerp(t[k - 1], t[k], 0.5) for name, t in ladder.parameters.items()}
        rung = Rung(lower.phases.model, own=parameters)
        gain = Crowd.at(rung, lower.even).log_density() - lower.log_density()
        half = torch.arange(self.chains, device=gain.device)[:, None] % 2 == 0
        begun = Crowd.at(rung, {b: torch.where(half, x, upper.even[b]) for b, x in lower.even.items()})
        return ladder.grown(k, parameters, rung.up(begun.inputs, draws, draws.step), *log_mean_exp(gain))

    def log_partition(self, model: EnergyModel, memory: Memory) -> LogPartition | None:
        """log Z of the base-rate model, the running estimates of the ratios from each saved model to the next, and the
        ratio to the model itself by some sweeps and exchanges of its chains and the last saved model's.

        The standard error takes exchanges for independent and chains to be where they belong; the faster the model
        moves, the more it says too little. None: somewhere neighbours do not overlap.
        """
        assert isinstance(model, LayeredModel)
        ladder, phases = Ladder.of(memory), Phases(model)
        rung, (one, other) = ladder.rungs(phases)[-1], (Draws(_ESTIMATE_SEED + side, 0) for side in (0, 1))
        low, high = ladder.chains_of(-1), {b: memory[f"chains.{b}"] for b in ladder.chains}
        meetings = []
        for sweep in range(_ESTIMATE_SWEEPS):
            x, y = Crowd(rung, *rung.down(low, one, sweep)), Crowd(phases, *phases.down(high, other, sweep))
            meetings.append(Meeting(x, y))
            x, y = meetings[-1].exchanged(one, sweep)
            low, high = rung.up(x.inputs, one, sweep), phases.up(y.inputs, other, sweep)
        meetings = meetings[_ESTIMATE_SWEEPS // 2 :]  # the first ones let the model's chains catch up with it
        if min(float(ladder.acceptance.min()), *(m.acceptance for m in meetings)) < _BROKEN:
            return None
        value, stderr = ladder.total
        ratio, error = bennett(*(torch.stack([m.gains[side] for m in meetings]) for side in (0, 1)))
        return LogPartition(value + ratio, math.hypot(stderr, error), "trajectory")
