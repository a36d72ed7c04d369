"""The loop: minibatch gradient ascent whose every step is a function of (recipe, data, seed, step number)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.architecture import Network, read
from models.catalog import families
from models.errors import CapabilityError, CheckpointError
from models.family import Base, EnergyModel, HasClasses, HasGenerator
from models.generator import PREFIX, architecture_of
from models.manifest import Manifest, Visible
from models.network_family import NetworkEnergy
from models.numerics import log_odds
from models.rng import ChainKeys, normals
from training.config import FitSettings, Recipe
from training.data import Dataset
from training.errors import DataError, DivergenceError, RecipeError
from training.objective import Batch, Draws, Memory, Objective, Sum
from training.team import ALONE, Team

DEEP = ("dbn", "dbm")
"""Families of several hidden layers, whose manifests say how large each is."""
_HEAD = "head.bias"
"""A parameter that all networks have, as long as there are outputs."""
_WEIGHTS = 24
"""First stream of the first weights' draws, apart from those of chains and data."""


@dataclass
class FitState:
    """All that training needs to go on. The tensors are changed in place."""

    step: int
    parameters: dict[str, Tensor]
    velocity: dict[str, Tensor]
    memory: Memory
    finished: list[dict[str, Tensor]] = field(default_factory=list)
    """What the stages before this one ended with."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The parameters with the best validation figure so far, where the recipe waits for one."""
    watched: list[float] = field(default_factory=list)
    """That figure at each record."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The parameters' running mean, where the recipe has `fit.ema`."""

    @property
    def shown(self) -> dict[str, Tensor]:
        """The parameters that are judged on the way: the running mean where there is one."""
        return self.average or self.parameters

    @property
    def result(self) -> dict[str, Tensor]:
        """What the stage ends with."""
        return self.best or self.shown


def manifest(recipe: Recipe, data: Dataset) -> Manifest:
    """What a checkpoint of this recipe's model says of its structure.

    Raises:
        RecipeError: unknown family, or one without that domain, or labels that the data do not have.
    """
    settings = recipe.model
    if settings.family not in families():
        raise RecipeError(f"model.family: {settings.family!r} is unknown; expected one of {', '.join(families())}")
    family = families()[settings.family]
    if data.domain not in family.domains:
        raise RecipeError(
            f"model.family: {settings.family} has visible units that are {' or '.join(sorted(family.domains))}; "
            f"data.domain is {data.domain}"
        )
    if settings.labels and not issubclass(family, HasClasses):
        raise RecipeError(f"model.labels: {settings.family} has no label units")
    if settings.labels and data.classes is None:
        raise RecipeError(f"model.labels: {data.name} has no labels")
    config: dict[str, Any] = {"layers": [data.units, *settings.layers]} if settings.family in DEEP else {}
    if settings.architecture is not None:
        config["architecture"] = _architecture(family, settings.architecture)
    if settings.latent is not None:
        config["latent"] = settings.latent
    if settings.prior_std is not None:
        config["prior_std"] = settings.prior_std
    if settings.noise_scales is not None:
        config["sigmas"] = settings.noise_scales
    return Manifest(
        name=recipe.name,
        version=1,  # set when written
        family=settings.family,
        visible=Visible(shape=list(data.shape), domain=data.domain),
        classes=data.classes if settings.labels else None,
        config=config,
        preprocessing=data.preprocessing,
    )


def _architecture(family: type[EnergyModel] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings, defaults filled in; of a family with a generator those of each network, by its name."""
    if family is not None and issubclass(family, HasGenerator) and "name" not in given:
        return {part: _architecture(None, own) if isinstance(own, dict) else own for part, own in given.items()}
    try:
        kinds = family.kinds() if family is not None and issubclass(family, NetworkEnergy) else None
        architecture = read({"architecture": given}, kinds)
    except CheckpointError as error:
        raise RecipeError(f"model: {error}") from error
    return {"name": architecture.name, **architecture.model_dump()}


def model_of(of: Manifest, parameters: Mapping[str, Tensor]) -> EnergyModel:
    """The model with these parameters, its tensors theirs."""
    return families()[of.family].from_tensors(of, parameters)


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


def base_of(data: Dataset) -> Base:
    """Independent units with the training data's means: log-odds (binary), half of them (spin), means (real)."""
    n, means = len(data.train), data.train_means
    match data.domain:
        case "real":
            base = {"visible": means}
        case "spin":
            base = {"visible": log_odds((means + 1) / 2 * n, n) / 2}
        case _:
            base = {"visible": log_odds(means * n, n)}
    if data.train_labels is not None and data.classes is not None:
        counts = torch.bincount(data.train_labels, minlength=len(data.classes)).double()
        base["label"] = torch.log((counts + 0.5) / n)
    return base


def begin(
    recipe: Recipe,
    data: Dataset,
    objective: Objective,
    first: Mapping[str, Tensor] | None = None,
    team: Team = ALONE,
) -> FitState:
    """Weights ~ N(0, weight_std^2), visible and label biases those of independent units, all else 0 (Hinton 2010).

    A network begins as PyTorch makes it, from the seed of the recipe. `first`: parameters that earlier stages of the
    run found, in place of those. Each of a team has its own chains.

    Raises:
        RecipeError: a size is missing or is one too many, the objective is not for this model, or `fit.rates` names a
            parameter that there is not.
    """
    of, base = manifest(recipe, data), base_of(data)
    known = dict(first or {})
    parameters = _first_parameters(recipe, of, base, data.train.device, known)
    parameters |= {name: known[name].clone() for name in parameters if name in known}
    model = model_of(of, parameters)
    for term in objective.terms if isinstance(objective, Sum) else (objective,):
        if not term.applies_to(model):
            raise RecipeError(f"objective.name: {term.name} does not train {_in_words(of)}")
    if unknown := sorted(set(recipe.fit.rates) - set(parameters)):
        raise RecipeError(f"fit.rates: {of.family} has no {', '.join(unknown)}; it has {', '.join(parameters)}")
    memory = objective.noted(objective.start(model, base, team.seed(recipe.seed)), data.train)
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    if recipe.fit.optimizer == "adam":
        velocity |= {f"{name}.square": torch.zeros_like(p) for name, p in parameters.items()}
    average = {} if recipe.fit.ema is None else {name: p.clone() for name, p in parameters.items()}
    return FitState(0, parameters, velocity, memory, average=average)


def _first_parameters(
    recipe: Recipe, of: Manifest, base: Base, device: torch.device, known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    layers, family = recipe.model.layers, families()[of.family]
    found = {name: tuple(t.shape) for name, t in known.items() if recipe.model.recognition or of.family != "dbm"}
    if len(layers) == 1:
        found["c"] = (layers[0],)
    if recipe.model.recognition:
        found["V1"] = (of.visible.units, layers[0])
    try:
        shapes = family.tensor_shapes(of, found)
    except CheckpointError as error:
        raise RecipeError(f"model{'.hidden' if of.family in DEEP else ''}: {error}") from error
    if recipe.model.latent is not None and not issubclass(family, HasGenerator):
        raise RecipeError(f"model.latent: {of.family} has no generator")
    if any(name.endswith(_HEAD) for name in shapes):
        return _networks(recipe, of, shapes, device)
    for name in ("architecture", "prior_std", "sigmas"):
        if getattr(recipe.model, name) is not None:
            raise RecipeError(f"model.{name}: {of.family} is no network")
    _check_layers(of, layers, shapes)
    parameters = {}
    for number, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 2:
            keys, at = ChainKeys.of(recipe.seed, shape[0], device), torch.zeros(shape[0], dtype=torch.int64).to(device)
            drawn = normals(keys, at, _WEIGHTS + number, shape[1]) * recipe.model.weight_std
            parameters[name] = _symmetric(drawn) if name in {"R", "S"} or _couples_itself(name, shapes) else drawn
        elif name == "log_sigma":
            parameters[name] = torch.full(shape, recipe.model.log_sigma, device=device)
        else:
            bias = base["visible"] if name in {"b", "b0"} else base["label"] if name == "d" else torch.zeros(shape)
            parameters[name] = bias.to(device)
    return {name: tensor.float().contiguous() for name, tensor in parameters.items()}


def _check_layers(of: Manifest, layers: list[int], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if "c" in shapes and not layers:
        raise RecipeError("model.hidden: say how many hidden units there are")
    if "c" in shapes and len(layers) > 1:
        raise RecipeError(f"model.hidden: {of.family} has one hidden layer; found {layers}")
    if layers and "c" not in shapes and "b0" not in shapes:
        raise RecipeError(f"model.hidden: {of.family} has no hidden units")


def _networks(
    recipe: Recipe, of: Manifest, shapes: Mapping[str, tuple[int, ...]], device: torch.device
) -> dict[str, Tensor]:
    """PyTorch's own first weights: made on the CPU, they are the same on every device."""
    if recipe.model.layers:
        raise RecipeError(f"model.hidden: {of.family} is a network; say how it is made in model.architecture")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        made = {
            head.removesuffix(_HEAD): _network(of, head.removesuffix(_HEAD), shape[0])
            for head, shape in shapes.items()
            if head.endswith(_HEAD)
        }
    return {f"{part}{name}": p.detach().to(device) for part, n in made.items() for name, p in n.named_parameters()}


def _network(of: Manifest, part: str, outputs: int) -> Network:
    """The network whose parameters' names begin so: of examples, or of latents where it is a generator."""
    inputs = (of.config["latent"],) if part == PREFIX else tuple(of.visible.shape)
    config = architecture_of(of, part.removesuffix(".")) if part else of.config
    return read(config).network(inputs, outputs)


def _in_words(of: Manifest) -> str:
    return f"models of family {of.family}" + (" with labels" if of.classes else " without labels")


def _couples_itself(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return name == "W" and "c" not in shapes


def _symmetric(drawn: Tensor) -> Tensor:
    upper = drawn.triu(1)
    return upper + upper.T


def train(
    recipe: Recipe,
    data: Dataset,
    objective: Objective,
    state: FitState,
    after_step: Callable[[FitState], None],
    team: Team = ALONE,
) -> None:
    """Advance `state` to the last step of the recipe; `after_step` may look at it, save it, or raise to stop.

    The processes of a team share each minibatch among them and take the same step.

    Raises:
        DivergenceError: a parameter became infinite or NaN.
    """
    settings = recipe.fit
    in_epoch = steps_per_epoch(data, settings)
    total = in_epoch * settings.epochs
    model = model_of(manifest(recipe, data), state.parameters)  # shares the tensors that are changed in place
    order, ordered = data.order(state.step // in_epoch, recipe.seed), state.step // in_epoch
    while state.step < total and not out_of_patience(state, recipe):
        epoch, k = divmod(state.step, in_epoch)
        if epoch != ordered:
            order, ordered = data.order(epoch, recipe.seed), epoch
        rows = team.share(order[k * settings.batch_size : (k + 1) * settings.batch_size])
        labels = data.labels_of(rows) if recipe.model.labels else None
        batch = Batch(data.batch(rows, epoch, recipe.seed), labels)
        try:
            draws = Draws(team.seed(recipe.seed), state.step)
            gradient, state.memory = objective.gradient(model, batch, draws, state.memory)
        except CapabilityError as error:
            raise RecipeError(f"objective.name: {error}") from error
        _ascend(state, team.mean(gradient), settings, _rate(settings, state.step, total))
        for name, mean in state.average.items():
            mean.lerp_(state.parameters[name], 1 - (settings.ema or 0.0))
        state.step += 1
        if state.step % in_epoch == 0:
            _check_finite(state, settings)
        after_step(state)


def watch(state: FitState, recipe: Recipe, figure: float) -> None:
    """Note the figure that the recipe waits for; keep the parameters where it is the best so far."""
    if not state.watched or _merit(recipe, figure) > max(_merit(recipe, f) for f in state.watched):
        state.best = {name: tensor.clone() for name, tensor in state.shown.items()}
    state.watched.append(figure)


def out_of_patience(state: FitState, recipe: Recipe) -> bool:
    """Whether as many records as the recipe's patience have gone by since the best one."""
    if recipe.fit.patience is None or not state.watched:
        return False
    figures = [_merit(recipe, f) for f in state.watched]
    return len(figures) - 1 - figures.index(max(figures)) >= recipe.fit.patience


def _merit(recipe: Recipe, figure: float) -> float:
    """The watched figure, greater where better."""
    return -figure if recipe.monitor.watch.endswith(("error_validation", "matching_validation")) else figure


def _rate(settings: FitSettings, step: int, total: int) -> float:
    return settings.learning_rate * (1 - step / total if settings.schedule == "linear" else 1.0)


def _ascend(state: FitState, gradient: dict[str, Tensor], settings: FitSettings, rate: float) -> None:
    if settings.clip is not None:
        norm = torch.sqrt(sum((g.square().sum() for g in gradient.values()), torch.zeros(())))
        if norm > settings.clip:
            gradient = {name: g.mul_(settings.clip / norm) for name, g in gradient.items()}
    for name, change in gradient.items():
        parameter, step = state.parameters[name], rate * settings.rates.get(name, 1.0)
        if settings.weight_decay and parameter.ndim >= 2:
            change.sub_(parameter, alpha=settings.weight_decay)
        if settings.optimizer == "adam":
            _adam(state, name, change, settings, step)
        elif settings.momentum:
            parameter.add_(state.velocity[name].mul_(settings.momentum).add_(change, alpha=step))
        else:  # the same, without passing over memory twice more
            parameter.add_(change, alpha=step)


def _adam(state: FitState, name: str, change: Tensor, settings: FitSettings, rate: float) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1), upwards."""
    beta1, beta2, step = settings.momentum or 0.9, 0.999, state.step + 1
    mean, square = state.velocity[name], state.velocity[f"{name}.square"]
    mean.lerp_(change, 1 - beta1)
    square.lerp_(change.square(), 1 - beta2)
    spread = square.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(1e-8)
    state.parameters[name].addcdiv_(mean, spread, value=rate / (1 - beta1**step))


def _check_finite(state: FitState, settings: FitSettings) -> None:
    for name, parameter in state.parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"training diverged: {name} is no longer finite after step {state.step}. "
                f"Lower fit.learning_rate (now {settings.learning_rate:g})"
                + (f" or fit.momentum (now {settings.momentum:g})" if settings.momentum else "")
            )
