"""Transition matrices, exact: the code's own step runs from every state, with every outcome of its draws.

Within `scripted` the laws of discrete units draw what is written down for them, one draw after the other, and note its
probability. One step over all (state, outcomes) pairs is the whole matrix, whatever the step draws and in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from models.conditionals import Bernoulli, Categorical, Conditional, Gaussian, Spin
from models.family import Clamp, HasConditionals, Part
from models.manifest import Manifest
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo
from tests.models.cases import ONE_HOT, Values, joint_states, product, states

OUTCOMES: Mapping[type[Conditional], Values] = {
    Bernoulli: (0.0, 1.0),
    Spin: (-1.0, 1.0),
    Categorical: ONE_HOT,
    Gaussian: None,
}


class Delegating(HasConditionals):
    """A model that answers with another's conditionals; subclasses change what they change."""

    name: ClassVar[str] = "delegating"
    domains: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: HasConditionals) -> None:
        self.model = model

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

    @property
    def blocks(self) -> tuple[str, ...]:
        return self.model.blocks

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.model.parts

    def block_units(self, block: str) -> int:
        return self.model.block_units(block)

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        return self.model.conditional(part, states, beta)

    def joint_energy(self, states: Mapping[str, Tensor]) -> Tensor:
        return self.model.joint_energy(states)

    def thermal_energy(self, states: Mapping[str, Tensor]) -> Tensor:
        return self.model.thermal_energy(states)

    def noise(self, block: str, chains: int) -> Conditional:
        return self.model.noise(block, chains)

    @property
    def rounding_error(self) -> float:
        return self.model.rounding_error


@dataclass
class Script:
    """What was drawn: the law of each draw in turn, and the log-probability of its outcome."""

    outcomes: list[Tensor] | None
    laws: list[Conditional] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)

    @property
    def log_prob(self) -> Tensor:
        """Of all outcomes together."""
        return torch.stack(self.log_probs).sum(0)

    def draw(self, law: Conditional, drawn: Callable[[], Tensor]) -> Tensor:
        outcome = drawn() if self.outcomes is None else self.outcomes[len(self.laws)]
        self.laws.append(law)
        self.log_probs.append(law.log_prob(outcome))
        return outcome

    def every_outcome(self) -> list[Tensor]:
        """All combinations of what the draws could have given, a row each."""
        each = [states(OUTCOMES[type(law)], law.mean().shape[1]) for law in self.laws]
        return list(product({str(at): outcomes for at, outcomes in enumerate(each)}).values())


@contextmanager
def scripted(outcomes: list[Tensor] | None) -> Iterator[Script]:
    """Draws give `outcomes`, in this order; None: what they would have given anyway."""
    script = Script(outcomes)

    def of(kind: type[Conditional]) -> Callable[..., Tensor]:
        real = kind.sample

        def sample(law: Conditional, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
            return script.draw(law, lambda: real(law, keys, sweep, stream))

        return sample

    patches = [patch.object(kind, "sample", of(kind)) for kind in OUTCOMES]
    for one in patches:
        one.start()
    try:
        yield script
    finally:
        for one in patches:
            one.stop()
        assert outcomes is None or len(script.laws) == len(outcomes)


Result = TypeVar("Result")


def every_step(n: int, step: Callable[[Tensor], Result]) -> tuple[Tensor, Tensor, Result]:
    """`step` from states 0..n-1 with every outcome of its draws: numbers before, log-probabilities, results."""
    with scripted(None) as rehearsal:
        step(torch.zeros(1, dtype=torch.int64))
    outcomes = rehearsal.every_outcome()
    before = torch.arange(n).repeat_interleave(len(outcomes[0]))
    with scripted([outcome.repeat(n, 1) for outcome in outcomes]) as script:
        result = step(before)
    return before, script.log_prob, result


def matrix(n: int, before: Tensor, log_prob: Tensor, after: Tensor) -> Tensor:
    """K[s, t] = p(t | s)."""
    return torch.zeros(n, n, dtype=torch.float64).index_put_((before, after), log_prob.exp(), accumulate=True)


def number(blocks: Mapping[str, Tensor], values: Mapping[str, Values]) -> Tensor:
    """The number of each row's state among `joint_states`: the first block of `values` is the slowest."""
    total = torch.zeros((), dtype=torch.int64)
    for block, of in values.items():
        assert of is not None
        if of == ONE_HOT:
            total = total * blocks[block].shape[1] + blocks[block].argmax(1)
            continue
        digits = (blocks[block][:, :, None] - torch.tensor(of, dtype=torch.float64)).abs().argmin(2)
        for unit in range(digits.shape[1]):
            total = total * len(of) + digits[:, unit]
    return total


@dataclass(frozen=True)
class Space:
    """All joint states of a small model, numbered."""

    model: HasConditionals
    values: Mapping[str, Values]
    states: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", joint_states(self.model, self.values))

    def __len__(self) -> int:
        return len(self.states["visible"])

    def number(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """The numbers of the states in `blocks`, a row each."""
        return number(blocks, {block: self.values[block] for block in self.model.blocks})

    def allowed(self, clamp: Clamp | None) -> Tensor:
        """Which states agree with a clamp of one row."""
        if clamp is None:
            return torch.ones(len(self), dtype=torch.bool)
        return self.number(held(self.states, clamp)) == torch.arange(len(self))

    def law(self, beta: float = 1.0, clamp: Clamp | None = None) -> Tensor:
        """p(state), of which only the thermal energy is tempered, given the clamped units."""
        thermal, joint = self.model.thermal_energy(self.states), self.model.joint_energy(self.states)
        log_p = -beta * thermal - (joint - thermal)
        return torch.softmax(torch.where(self.allowed(clamp), log_p, -torch.inf), 0)

    def steps(
        self,
        sampler: Sampler,
        model: HasConditionals | None = None,
        beta: float | None = None,
        clamp: Clamp | None = None,
    ) -> tuple[Tensor, Tensor, ChainState, SweepInfo]:
        """One step from every state with every outcome: (number before, log-probability, state after, info)."""

        def step(before: Tensor) -> tuple[ChainState, SweepInfo]:
            n = len(before)
            start = ChainState({b: s[before] for b, s in self.states.items()}, torch.zeros(n, dtype=torch.int64))
            betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
            wide = None if clamp is None else widen(clamp, n)
            return sampler.step(model or self.model, start, ChainKeys.of(0, n), wide, betas)

        before, log_prob, (after, info) = every_step(len(self), step)
        return before, log_prob, after, info

    def transitions(
        self,
        sampler: Sampler,
        model: HasConditionals | None = None,
        beta: float | None = None,
        clamp: Clamp | None = None,
    ) -> Tensor:
        """K[s, t] = p(t after one step | s)."""
        before, log_prob, after, _ = self.steps(sampler, model, beta, clamp)
        return matrix(len(self), before, log_prob, self.number(after.blocks))


def clamp_row(units: int, known: Mapping[int, float], label: int | None = None) -> Clamp:
    """A clamp of one row that holds the units in `known`; the others' values are not to be used, so they are NaN."""
    mask = torch.zeros(1, units, dtype=torch.bool)
    value = torch.full((1, units), torch.nan, dtype=torch.float64)
    for unit, state in known.items():
        mask[0, unit], value[0, unit] = True, state
    return Clamp(mask, value, None if label is None else torch.tensor([label]))


def widen(clamp: Clamp, n: int) -> Clamp:
    """A clamp of one row for n rows."""
    return clamp.rows(torch.zeros(n, dtype=torch.int64))


def held(blocks: Mapping[str, Tensor], clamp: Clamp) -> dict[str, Tensor]:
    """States with what a clamp of one row holds put in, written without `Clamp`'s own methods."""
    changed = {block: state.clone() for block, state in blocks.items()}
    changed["visible"][:, clamp.mask[0]] = clamp.value[0, clamp.mask[0]]
    if clamp.label is not None and int(clamp.label[0]) >= 0:
        changed["label"].zero_()[:, int(clamp.label[0])] = 1.0
    return changed
