"""The loop: minibatch gradient ascent whose every step is a function of (recipe, data, seed, step number)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.architecture import Network, read
from models.catalog import families
from models.errors import CapabilityError, CheckpointError
from models.families.score_network import ScoreNetwork
from models.family import Base, EnergyModel, HasClasses, HasGenerator
from models.generator import LOG_STD, PREFIX, architecture_of
from models.manifest import Manifest, Visible
from models.network_family import NetworkEnergy
from models.numerics import log_odds
from models.rng import ChainKeys, normals
from training import adam
from training.config import FitSettings, Recipe
from training.data import Dataset
from training.errors import DataError, DivergenceError, RecipeError
from training.objective import Batch, Draws, Memory, Objective, Sum
from training.products import Gradient, Outer, dense
from training.team import ALONE, Team

DEEP = ("dbn", "dbm")
"""Families of several hidden layers, whose manifests say how large each is."""
_WEIGHTS = 24
"""First stream of the first weights' draws, apart from those of chains and data."""
_SPECTRA = 0xFF20
"""Stream of the vectors that power iterations begin with."""


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
    spectra: dict[str, Tensor] = field(default_factory=dict)
    """Where power iterations for the spectral norms of weights are, where the recipe has `fit.spectral_norm`."""

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
        kinds = family.kinds() if issubclass(family, NetworkEnergy) else None
        if issubclass(family, HasGenerator):
            parts = settings.architecture.items()
            config["architecture"] = {part: _described(x, kinds) if isinstance(x, dict) else x for part, x in parts}
        else:
            config["architecture"] = _described(settings.architecture, kinds)
    if settings.latent is not None:
        if not issubclass(family, HasGenerator):
            raise RecipeError(f"model.latent: {settings.family} has no generator")
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


def _described(architecture: object, kinds: tuple[str, ...] | None) -> dict[str, Any]:
    """An architecture with all of its settings."""
    try:
        found = read({"architecture": architecture}, kinds)
    except CheckpointError as error:
        raise RecipeError(f"model: {error}") from error
    return {"name": found.name, **found.model_dump()}


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
        RecipeError: a size is missing or is one too many, the objective is not for this model, or `fit.rates` or
            `fit.spectral_norm` names a parameter that there is not.
    """
    of, base = manifest(recipe, data), base_of(data)
    known = dict(first or {})
    parameters = _first_parameters(recipe, of, base, data.train.device, known)
    parameters |= {name: known[name].clone() for name in parameters if name in known}
    model = model_of(of, parameters)
    for term in objective.terms if isinstance(objective, Sum) else (objective,):
        if not term.applies_to(model):
            raise RecipeError(f"objective.name: {term.name} does not train {_in_words(of)}")
    limits = recipe.fit.spectral_norm if isinstance(recipe.fit.spectral_norm, dict) else {}
    for setting, named in {"rates": recipe.fit.rates, "spectral_norm": limits}.items():
        if unknown := [key for key in sorted(named) if not any(_is_of(key, name) for name in parameters)]:
            raise RecipeError(f"fit.{setting}: {of.family} has no {', '.join(unknown)}; it has {', '.join(parameters)}")
    memory = objective.noted(objective.start(model, base, team.seed(recipe.seed)), data.train)
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    if recipe.fit.optimizer == "adam":
        velocity |= {f"{name}.square": torch.zeros_like(p) for name, p in parameters.items()}
    average = {} if recipe.fit.ema is None else {name: p.clone() for name, p in parameters.items()}
    return FitState(0, parameters, velocity, memory, average=average, spectra=_spectra(recipe, parameters))


def _spectra(recipe: Recipe, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A random vector of as many numbers as a weight has rows, for each weight whose spectral norm has a limit."""
    found = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        if parameter.ndim >= 2 and _limit(recipe.fit, name) is not None:
            keys = ChainKeys.of(recipe.seed, 1, parameter.device, first=number)
            drawn = normals(keys, torch.zeros_like(keys.chain), _SPECTRA, len(parameter))[0]
            found[name] = normalize(drawn, dim=0).to(parameter)
    return found


def _is_of(key: str, parameter: str) -> bool:
    """Whether the key of a setting is the parameter's name or that of a part of the model that it belongs to."""
    return parameter == key or parameter.startswith(f"{key}.")


def _setting(by_parameter: Mapping[str, float], parameter: str) -> float | None:
    """What is set for the parameter: the longest key says it."""
    keys = [key for key in by_parameter if _is_of(key, parameter)]
    return by_parameter[max(keys, key=len)] if keys else None


def _limit(settings: FitSettings, parameter: str) -> float | None:
    """The largest spectral norm that the parameter may have."""
    limits = settings.spectral_norm
    return _setting(limits, parameter) if isinstance(limits, dict) else limits


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
    if issubclass(family, NetworkEnergy | ScoreNetwork | HasGenerator):
        return _first_networks(recipe, of, shapes, device)
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


def _first_networks(
    recipe: Recipe, of: Manifest, shapes: Mapping[str, tuple[int, ...]], device: torch.device
) -> dict[str, Tensor]:
    """PyTorch's own first weights: made on the CPU, they are the same on every device."""
    if recipe.model.layers:
        raise RecipeError(f"model.hidden: {of.family} is a network; say how it is made in model.architecture")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        networks = _networks(of, shapes)
    found = {f"{part}{name}": p.detach() for part, own in networks.items() for name, p in own.named_parameters()}
    if LOG_STD in shapes:
        found[LOG_STD] = torch.tensor(recipe.model.log_sigma)
    return {name: found[name].to(device) for name in shapes}


def _networks(of: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Network]:
    """By what the names of their parameters begin with: that of the model, or those of its parts."""
    shape, family = tuple(of.visible.shape), families()[of.family]
    if not issubclass(family, HasGenerator):
        assert issubclass(family, NetworkEnergy | ScoreNetwork)
        return {"": read(of.config).network(shape, family.outputs_of(of))}
    found = {}
    for part in of.config["architecture"]:
        if not any(_is_of(part, name) for name in shapes):
            raise RecipeError(f"model.architecture: {of.family} has no {part}")
        made, takes = read(architecture_of(of, part)), ((of.config["latent"],), of.visible.units)
        found[f"{part}."] = made.network(*takes) if f"{part}." == PREFIX else made.network(shape, 1)
    return found


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
            gradient, state.memory = objective.factored(model, batch, draws, state.memory)
        except CapabilityError as error:
            raise RecipeError(f"objective.name: {error}") from error
        if team.size > 1:
            gradient = {**team.mean(dense(gradient))}
        _ascend(state, gradient, settings, _rate(settings, state.step, total))
        _shrink(state, settings)
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
    return (
        -figure
        if recipe.monitor.watch.endswith(("error_validation", "matching_validation", "denoising_validation"))
        else figure
    )


def _rate(settings: FitSettings, step: int, total: int) -> float:
    return settings.learning_rate * (1 - step / total if settings.schedule == "linear" else 1.0)


def _ascend(state: FitState, gradient: Gradient, settings: FitSettings, rate: float) -> None:
    if settings.clip is not None:
        changes = dense(gradient)
        norm = torch.sqrt(sum((g.square().sum() for g in changes.values()), torch.zeros(())))
        gradient = {name: g.mul_(settings.clip / norm) if norm > settings.clip else g for name, g in changes.items()}
    for name, change in gradient.items():
        factor = _setting(settings.rates, name)
        parameter, step = state.parameters[name], rate * (1.0 if factor is None else factor)
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        if settings.optimizer == "adam":
            own = change.dense() if isinstance(change, Outer) else change
            if decay:
                own.sub_(parameter, alpha=decay)
            mean, square = state.velocity[name], state.velocity[f"{name}.square"]
            adam.ascend(parameter, mean, square, own, step, state.step + 1, settings.momentum or adam.BETA1)
            continue
        # Without momentum it is the parameter itself that the step is added to: one pass over memory less.
        total = state.velocity[name].mul_(settings.momentum) if settings.momentum else parameter
        if decay:
            total.sub_(parameter, alpha=step * decay)
        if isinstance(change, Outer):
            change.add_to(total, step)
        else:
            total.add_(change, alpha=step)
        if settings.momentum:
            parameter.add_(total)


def _shrink(state: FitState, settings: FitSettings) -> None:
    """Scale weights whose spectral norm is above its limit down to it (Yoshida & Miyato 2017, Miyato et al. 2018).

    The norm of a weight, as a matrix of its first dimension by all others, is that of power iteration: one step each
    time, from where the last one ended.
    """
    for name, left in state.spectra.items():
        matrix, limit = state.parameters[name].flatten(1), _limit(settings, name)
        stretched = matrix @ normalize(left @ matrix, dim=0)
        norm = stretched.norm()
        if norm > 0:
            left.copy_(stretched / norm)
        if limit is not None and norm > limit:
            state.parameters[name].mul_(limit / norm)


def _check_finite(state: FitState, settings: FitSettings) -> None:
    for name, parameter in state.parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"training diverged: {name} is no longer finite after step {state.step}. "
                f"Lower fit.learning_rate (now {settings.learning_rate:g})"
                + (f" or fit.momentum (now {settings.momentum:g})" if settings.momentum else "")
            )
