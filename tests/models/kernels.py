"""Transition matrices of samplers, exact: the sampler's own code runs on every state, with every outcome of its draws.

`Scripted` stands in for a model: its conditionals are the model's own, but a draw returns the outcome that was written
down for it, and its probability is noted. One step over all (state, outcome) pairs is the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from models.conditionals import Conditional
from models.family import Clamp, HasConditionals
from models.manifest import Manifest
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler
from tests.models.cases import joint_states

Values = Mapping[str, tuple[float, ...]]


class Delegating(HasConditionals):
    """A model that answers with another's conditionals; subclasses change what they change."""

    name: ClassVar[str] = "delegating"
    domains: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: HasConditionals) -> None:
        self.model = model
        self.blocks = model.blocks  # type: ignore[misc]

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Delegating:
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return self.model.tensors()

    def energy(self, x: Tensor) -> Tensor:
        return self.model.energy(x)

    def block_units(self, block: str) -> int:
        return self.model.block_units(block)

    def conditional(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return self.model.conditional(block, states, beta)

    def joint_energy(self, states: Mapping[str, Tensor]) -> Tensor:
        return self.model.joint_energy(states)

    def noise(self, block: str, chains: int) -> Conditional:
        return self.model.noise(block, chains)

    @property
    def rounding_error(self) -> float:
        return self.model.rounding_error


@dataclass(frozen=True)
class ScriptedDraw(Conditional):
    """A conditional whose draw is decided beforehand; its log-probability goes to `noted`."""

    conditional: Conditional
    outcome: Tensor
    noted: list[Tensor]

    def sample(self, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
        self.noted.append(self.conditional.log_prob(self.outcome))
        return self.outcome

    def mean(self) -> Tensor:
        return self.conditional.mean()

    def log_prob(self, state: Tensor) -> Tensor:
        return self.conditional.log_prob(state)


class Scripted(Delegating):
    """The model, with draws of each block replaced by `outcomes`."""

    def __init__(self, model: HasConditionals, outcomes: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.outcomes = outcomes
        self.noted: list[Tensor] = []

    def conditional(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return ScriptedDraw(self.model.conditional(block, states, beta), self.outcomes[block], self.noted)


@dataclass(frozen=True)
class Space:
    """All joint states of a small model, numbered."""

    model: HasConditionals
    values: Values
    states: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", joint_states(self.model, self.values))

    def __len__(self) -> int:
        return len(self.states["visible"])

    def number(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """The numbers of the states in `blocks`, a row each."""
        total = torch.zeros(len(blocks["visible"]), dtype=torch.int64)
        for block in self.model.blocks:
            values = torch.tensor(self.values[block], dtype=torch.float64)
            digits = (blocks[block][:, :, None] - values).abs().argmin(2)
            for unit in range(digits.shape[1]):
                total = total * len(values) + digits[:, unit]
        return total

    def allowed(self, clamp: Clamp | None) -> Tensor:
        """Which states agree with a clamp of one row."""
        if clamp is None:
            return torch.ones(len(self), dtype=torch.bool)
        visible = self.states["visible"]
        return (visible == clamp.apply(visible)).all(1)

    def law(self, beta: float = 1.0, clamp: Clamp | None = None) -> Tensor:
        """p(state) proportional to exp(-beta E), given the clamped units."""
        log_p = -beta * self.model.joint_energy(self.states).double()
        return torch.softmax(torch.where(self.allowed(clamp), log_p, -torch.inf), 0)

    def transitions(
        self,
        sampler: Sampler,
        model: HasConditionals | None = None,
        beta: float | None = None,
        clamp: Clamp | None = None,
    ) -> Tensor:
        """K[s, t] = p(t after one step | s), for a sampler that draws each block once and nothing else."""
        n = len(self)
        before, drawn = (torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n))
        scripted = Scripted(model or self.model, {b: s[drawn] for b, s in self.states.items()})
        start = ChainState({b: s[before] for b, s in self.states.items()}, torch.zeros(n * n, dtype=torch.int64))
        keys = ChainKeys.of(0, n * n)
        wide = None if clamp is None else Clamp(clamp.mask.expand(n * n, -1), clamp.value.expand(n * n, -1))
        betas = None if beta is None else torch.full((n * n,), beta, dtype=torch.float64)
        after, _ = sampler.step(scripted, start, keys, wide, betas)
        assert len(scripted.noted) == len(self.model.blocks)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        return matrix.index_put_((before, self.number(after.blocks)), sum(scripted.noted).exp(), accumulate=True)  # type: ignore[union-attr]


def clamp_row(units: int, known: Mapping[int, float]) -> Clamp:
    """A clamp of one row that holds the units in `known`; the others' values are not to be used, so they are NaN."""
    mask = torch.zeros(1, units, dtype=torch.bool)
    value = torch.full((1, units), torch.nan, dtype=torch.float64)
    for unit, state in known.items():
        mask[0, unit], value[0, unit] = True, state
    return Clamp(mask, value)
