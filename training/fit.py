"""The loop: minibatch gradient ascent whose every step is a function of (recipe, data, seed, step number)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.annealing import log_odds
from models.families.rbm import RBM
from models.rng import ChainKeys, uniforms
from training.config import FitSettings, Recipe
from training.data import Dataset
from training.errors import DataError, DivergenceError
from training.objective import Draws, Memory, Objective

_WEIGHTS = 24
"""Stream of the first weights' draws, apart from those of chains and data."""


@dataclass
class FitState:
    """All that training needs to go on. The tensors are changed in place."""

    step: int
    parameters: dict[str, Tensor]
    velocity: dict[str, Tensor]
    memory: Memory

    def model(self) -> RBM:
        """The model as it stands now, its tensors its own."""
        return _rbm({name: tensor.clone() for name, tensor in self.parameters.items()})


def steps_per_epoch(data: Dataset, settings: FitSettings) -> int:
    """Whole minibatches in an epoch; the examples left over differ from epoch to epoch.

    Raises:
        DataError: not even one.
    """
    steps = len(data.train) // settings.batch_size
    if steps == 0:
        raise DataError(
            f"fit.batch_size = {settings.batch_size}, but there are only {len(data.train)} training examples"
        )
    return steps


def begin(recipe: Recipe, data: Dataset, objective: Objective) -> FitState:
    """W ~ N(0, weight_std^2), visible biases at the log-odds of the data's means, hidden biases 0 (Hinton 2010)."""
    n, device = len(data.train), data.train.device
    shape = (data.units, recipe.model.hidden)
    parameters = {
        "W": (_normal(recipe.seed, *shape, device) * recipe.model.weight_std).float(),
        "b": log_odds(data.train_means * n, n).float(),
        "c": torch.zeros(shape[1], device=device),
    }
    memory = objective.start(_rbm(parameters), data.train_means, recipe.seed)
    return FitState(0, parameters, {name: torch.zeros_like(p) for name, p in parameters.items()}, memory)


def train(
    recipe: Recipe,
    data: Dataset,
    objective: Objective,
    state: FitState,
    after_step: Callable[[FitState], None],
) -> None:
    """Advance `state` to the last step of the recipe; `after_step` may look at it, save it, or raise to stop.

    Raises:
        DivergenceError: a parameter became infinite or NaN.
    """
    settings = recipe.fit
    in_epoch = steps_per_epoch(data, settings)
    total = in_epoch * settings.epochs
    model = _rbm(state.parameters)  # shares the tensors that are changed in place
    order, ordered = data.order(state.step // in_epoch, recipe.seed), state.step // in_epoch
    while state.step < total:
        epoch, k = divmod(state.step, in_epoch)
        if epoch != ordered:
            order, ordered = data.order(epoch, recipe.seed), epoch
        rows = order[k * settings.batch_size : (k + 1) * settings.batch_size]
        batch = data.batch(rows, epoch, recipe.seed)
        gradient, state.memory = objective.gradient(model, batch, Draws(recipe.seed, state.step), state.memory)
        _ascend(state, gradient, settings, _rate(settings, state.step, total))
        state.step += 1
        if state.step % in_epoch == 0:
            _check_finite(state, settings)
        after_step(state)


def _rbm(parameters: dict[str, Tensor]) -> RBM:
    return RBM(parameters["W"], parameters["b"], parameters["c"])


def _rate(settings: FitSettings, step: int, total: int) -> float:
    return settings.learning_rate * (1 - step / total if settings.schedule == "linear" else 1.0)


def _ascend(state: FitState, gradient: dict[str, Tensor], settings: FitSettings, rate: float) -> None:
    if settings.weight_decay:
        gradient["W"].sub_(state.parameters["W"], alpha=settings.weight_decay)
    for name, parameter in state.parameters.items():
        if settings.momentum:
            parameter.add_(state.velocity[name].mul_(settings.momentum).add_(gradient[name], alpha=rate))
        else:  # the same, without passing over memory twice more
            parameter.add_(gradient[name], alpha=rate)


def _check_finite(state: FitState, settings: FitSettings) -> None:
    for name, parameter in state.parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"training diverged: {name} is no longer finite after step {state.step}. "
                f"Lower fit.learning_rate (now {settings.learning_rate:g})"
                + (f" or fit.momentum (now {settings.momentum:g})" if settings.momentum else "")
            )


def _normal(seed: int, rows: int, columns: int, device: torch.device) -> Float[Tensor, "rows columns"]:
    """Standard normal numbers (Box & Muller 1958), float64: row r is chain r of the seed."""
    keys, at = ChainKeys.of(seed, rows, device), torch.zeros(rows, dtype=torch.int64, device=device)
    radius = torch.sqrt(-2 * torch.log(uniforms(keys, at, _WEIGHTS, columns)))
    return radius * torch.cos(2 * math.pi * uniforms(keys, at, _WEIGHTS + 1, columns))
