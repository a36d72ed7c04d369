"""The contract of an objective: what a training run climbs, one minibatch at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int, Num
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from models import rng
from models.discovery import discover
from models.estimator import LogPartition
from models.family import Base, EnergyModel
from models.rng import ChainKeys
from training.errors import DivergenceError, RecipeError
from training.products import Gradient

Memory = Mapping[str, Tensor]
"""What an objective keeps from step to step: chains, running means. Saved with the run."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch: visibles, and the positions of their classes where the model has labels."""

    visible: Float[Tensor, "n visible"]
    labels: Int[Tensor, " n"] | None = None


class Law(Protocol):
    """What can be drawn from."""

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each row."""


@dataclass(frozen=True)
class Draws:
    """The randomness of one training step: a function of (seed, step) and of nothing else.

    A step's sweeps are numbered by the objective, from 0; states are float32.
    """

    seed: int
    step: int

    def bernoulli(self, logits: Float[Tensor, "n units"], sweep: int, stream: int) -> Float[Tensor, "n units"]:
        """0 or 1 with P(1) = sigmoid(logits)."""
        return rng.bernoulli(logits, *self._rows(logits, sweep), stream)

    def normals(self, like: Float[Tensor, "n units"], sweep: int, stream: int) -> Float[Tensor, "n units"]:
        """Standard normal numbers in the shape of `like`."""
        return rng.normals(*self._rows(like, sweep), stream, like.shape[1]).to(like)

    def categorical(self, logits: Float[Tensor, "n units"], sweep: int, stream: int) -> Float[Tensor, "n units"]:
        """One-hot with P(k) = softmax(logits)_k."""
        return rng.categorical(logits.double(), *self._rows(logits, sweep), stream).to(logits)

    def accept(self, log_ratio: Float[Tensor, " n"], sweep: int, stream: int) -> Tensor:
        """True with probability min(1, exp(log_ratio))."""
        return rng.accept(log_ratio.double(), *self._rows(log_ratio, sweep), stream)

    def signs(self, like: Float[Tensor, "n units"], sweep: int, stream: int) -> Float[Tensor, "n units"]:
        """+1 or -1, each half of the time."""
        bits = rng.random_bits(*self._rows(like, sweep), stream, like.shape[1])
        return torch.where(bits < 1 << 31, 1.0, -1.0).to(like.dtype)

    def noise(self, law: Law, like: Float[Tensor, "n units"], sweep: int, stream: int) -> Tensor:
        """A draw of a law of n rows."""
        return law.sample(*self._rows(like, sweep), stream).to(like)

    def choice(self, count: int, among: Tensor, sweep: int, stream: int) -> Int[Tensor, " count"]:
        """Positions of so many different rows."""
        keys, at = self._rows(among[:1], sweep)
        return torch.argsort(rng.random_bits(keys, at, stream, len(among))[0], stable=True)[:count]

    def _rows(self, like: Tensor, sweep: int) -> tuple[ChainKeys, Tensor]:
        keys = _keys(self.seed, len(like), like.device)
        return keys, torch.full_like(keys.chain, sweep)


@lru_cache(maxsize=64)
def _keys(seed: int, rows: int, device: torch.device) -> ChainKeys:
    """The same from step to step: making them anew takes as long as a small draw."""
    return ChainKeys.of(seed, rows, device)


class Objective(BaseModel, ABC):
    """What is climbed. Its settings are its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Whether the model has what the objective needs."""

    @abstractmethod
    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Memory before the first step. `base` has the biases of independent units with the training data's means."""

    def noted(self, memory: Memory, examples: Num[Tensor, "n visible"]) -> Memory:  # noqa: ARG002
        """The first memory with what it is to say of all training examples: for most objectives nothing."""
        return memory

    @abstractmethod
    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """An estimate of what is climbed's gradient, nats, by parameter name; and the memory after it.

        Parameters that it leaves alone are absent. The tensors are the caller's to change.
        """

    def factored(self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory) -> tuple[Gradient, Memory]:
        """The same, in which products of matrices may be left undone."""
        gradient, memory = self.gradient(model, batch, draws, memory)
        return {**gradient}, memory

    def log_partition(self, model: EnergyModel, memory: Memory) -> LogPartition | None:  # noqa: ARG002
        """log Z of the model, where the memory tells it."""
        return None

    def ended(self, memory: Memory) -> Float[Tensor, "n visible"] | None:  # noqa: ARG002
        """Where chains of visibles are that go on from step to step, if it is for pictures to show them."""
        return None


def check_gap(data: float, other: float, whose: str, largest: float, step: int, remedy: str) -> None:
    """Check that what the model makes is still near the data, by mean energies, nats.

    Raises:
        DivergenceError: these are further apart than `objective.largest_gap`, or no numbers.
    """
    if not abs(data - other) <= largest:  # NaN too
        raise DivergenceError(
            f"training diverged: at step {step} the mean energies of data ({data:.4g}) and {whose} ({other:.4g}) "
            f"are more than objective.largest_gap = {largest:g} nats apart. {remedy}"
        )


def contrast(
    model: EnergyModel,
    tensors: Mapping[str, Tensor],
    positive: Float[Tensor, "n visible"],
    negative: Float[Tensor, "m visible"],
    penalty: float,
    largest_gap: float,
    step: int,
) -> dict[str, Tensor]:
    """The slopes of E[E-] - E[E+] - penalty (E[E+^2] + E[E-^2]): E+ of data, E- of states of the model.

    Raises:
        DivergenceError: the mean energies are more than `largest_gap` apart, or no numbers.
    """
    means: list[float] = []

    def figure() -> Tensor:
        energy = model.energy(torch.cat((positive, negative)))
        up, down = energy[: len(positive)], energy[len(positive) :]
        means.extend((float(up.detach().mean()), float(down.detach().mean())))
        squares = penalty * (up.square().mean() + down.square().mean()) if penalty else 0.0
        return down.mean() - up.mean() - squares

    found = slopes(tensors, figure)
    remedy = (
        "Lower fit.learning_rate, or make chains better (objective.steps, step_size), or set fit.clip or "
        "objective.energy_penalty"
    )
    check_gap(means[0], means[1], "chains", largest_gap, step, remedy)
    return found


def slopes(tensors: Mapping[str, Tensor], figure: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of a figure by a model's own tensors, of those that it depends on. They are left as they were."""
    try:
        for tensor in tensors.values():
            tensor.requires_grad_()
        found = torch.autograd.grad(figure(), list(tensors.values()), allow_unused=True)
    finally:
        for tensor in tensors.values():
            tensor.requires_grad_(False)
    return {name: g for name, g in zip(tensors, found, strict=True) if g is not None}


class Sum(Objective):
    """A weighted sum of objectives: hybrid learning (Larochelle & Bengio 2008)."""

    name: ClassVar[str] = "sum"

    terms: tuple[Objective, ...]
    weights: tuple[float, ...]

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:  # noqa: ARG003
        """Each term says so for itself."""
        return True

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Every term's memory, under its number."""
        return {
            f"{i}.{key}": tensor
            for i, term in enumerate(self.terms)
            for key, tensor in term.start(model, base, seed).items()
        }

    def noted(self, memory: Memory, examples: Num[Tensor, "n visible"]) -> Memory:
        """What every term notes."""
        return {
            f"{i}.{key}": tensor
            for i, term in enumerate(self.terms)
            for key, tensor in term.noted(_own(memory, i), examples).items()
        }

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """The weighted sum of the terms' gradients."""
        total: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        for i, (term, weight) in enumerate(zip(self.terms, self.weights, strict=True)):
            gradient, after = term.gradient(model, batch, draws, _own(memory, i))
            kept |= {f"{i}.{key}": tensor for key, tensor in after.items()}
            for name, tensor in gradient.items():
                total[name] = tensor * weight if name not in total else total[name].add_(tensor, alpha=weight)
        return total, kept

    def log_partition(self, model: EnergyModel, memory: Memory) -> LogPartition | None:
        """As the first term says that knows it."""
        found = (term.log_partition(model, _own(memory, i)) for i, term in enumerate(self.terms))
        return next((estimate for estimate in found if estimate is not None), None)

    def ended(self, memory: Memory) -> Float[Tensor, "n visible"] | None:
        """Those of the first term that has some."""
        found = (term.ended(_own(memory, i)) for i, term in enumerate(self.terms))
        return next((states for states in found if states is not None), None)


def _own(memory: Memory, i: int) -> Memory:
    return {key.removeprefix(f"{i}."): t for key, t in memory.items() if key.startswith(f"{i}.")}


@cache
def objectives() -> dict[str, type[Objective]]:
    """Every objective by name."""
    return discover("training.objectives", Objective)  # type: ignore[type-abstract]


def build(settings: Mapping[str, Any]) -> Objective:
    """The objective that a recipe's section describes: `name` with its settings, or `terms`, each with its `weight`.

    Raises:
        RecipeError: unknown name, or settings that it does not have; the valid ones are named.
    """
    if "terms" in settings:
        return _sum(settings)
    name = settings.get("name")
    if name not in objectives():
        raise RecipeError(f"objective.name: {name!r} is unknown; expected one of {', '.join(objectives())}")
    kind = objectives()[name]
    try:
        return kind.model_validate({key: value for key, value in settings.items() if key != "name"})
    except ValidationError as error:
        faults = "; ".join(f"objective.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise RecipeError(f"{faults}; settings of {name}: {', '.join(kind.model_fields)}") from error


def _sum(settings: Mapping[str, Any]) -> Sum:
    terms = settings["terms"]
    if set(settings) != {"terms"}:
        others = ", ".join(sorted(set(settings) - {"terms"}))
        raise RecipeError(f"objective: {others} beside terms; each term has its own settings")
    if not isinstance(terms, list | tuple) or not terms or not all(isinstance(term, Mapping) for term in terms):
        raise RecipeError(f"objective.terms: expected a list of objectives, each with its name; found {terms!r}")
    weights = [term.get("weight", 1.0) for term in terms]
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise RecipeError(f"objective.terms: expected a number as weight; found {weight!r}")
    inner = [build({key: value for key, value in term.items() if key != "weight"}) for term in terms]
    return Sum(terms=tuple(inner), weights=tuple(map(float, weights)))
