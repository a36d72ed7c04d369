"""The stages of a run: greedy pre-training layer by layer, joint training, fine-tuning (MATH 4, 5).

Hinton, Osindero & Teh 2006 (DBN), Salakhutdinov & Hinton 2009 (DBM). A stage is a training run of its own whose
parameters begin where earlier stages ended; most recipes have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from models.family import HasFeatures
from models.manifest import Manifest, Visible
from training.config import ModelSettings, MonitorSettings, Recipe, StageSettings
from training.data import Dataset
from training.errors import RecipeError
from training.fit import DEEP, FitState, begin, manifest, model_of, steps_per_epoch
from training.objective import Objective, Sum, build, objectives
from training.team import ALONE, Team

_CHUNK = 4096
Finished = Sequence[Mapping[str, Tensor]]
"""Parameters that the stages so far ended with."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage: what is trained on what, and how."""

    name: str
    recipe: Recipe
    data: Dataset
    structure: Manifest
    objective: Objective
    first: Mapping[str, Tensor]
    """Parameters to begin with, in place of those that `begin` draws."""

    def begin(self, team: Team = ALONE) -> FitState:
        """The state before the first step.

        Raises:
            RecipeError: see `fit.begin`.
        """
        return begin(self.recipe, self.data, self.objective, self.first, team)


def names(recipe: Recipe) -> list[str]:
    """The stages of a recipe, in their order.

    Raises:
        RecipeError: pre-training is asked for of a model without layers.
    """
    found = []
    if recipe.pretraining is not None:
        if recipe.model.family not in DEEP:
            raise RecipeError(f"pretraining: {recipe.model.family} has no layers to be trained one after the other")
        found = [f"layer {n}" for n in range(1, len(recipe.model.layers) + 1)]
    found.append("training")
    return [*found, "fine-tuning"] if recipe.finetuning is not None else found


def stage(recipe: Recipe, data: Dataset, finished: Finished) -> Stage:
    """The stage that comes after the `finished` ones."""
    name = names(recipe)[len(finished)]
    if name.startswith("layer"):
        assert recipe.pretraining is not None
        return _layer(recipe, recipe.pretraining, data, finished)
    first: Mapping[str, Tensor] = {}
    if name == "fine-tuning":
        assert recipe.finetuning is not None
        first = finished[-1]
        recipe = recipe.model_copy(update={"objective": recipe.finetuning.objective, "fit": recipe.finetuning.fit})
    elif finished:
        first = _dbn(finished) if recipe.model.family == "dbn" else _dbm(finished, data)
    return Stage(name, recipe, data, manifest(recipe, data), build(recipe.objective), first)


def check(recipe: Recipe, data: Dataset, team: Team = ALONE) -> None:
    """Go through all stages with two examples and no training: what is wrong with the last is said before the first.

    Raises:
        RecipeError: see `names` and `fit.begin`; or a team whose shares of a batch are not alike.
        DataError: a batch is larger than the data.
    """
    held = {field.name: getattr(data, field.name) for field in fields(data)}
    parts = {name: t for name, t in held.items() if isinstance(t, Tensor) and name != "train_means"}
    two: dict[str, Any] = {name: t[:2] for name, t in parts.items()}
    few, finished = replace(data, **two), list[Mapping[str, Tensor]]()
    for _ in names(recipe):
        following = stage(recipe, few, finished)
        steps_per_epoch(data, following.recipe.fit)
        if following.recipe.fit.batch_size % team.size:
            raise RecipeError(
                f"fit.batch_size: {following.recipe.fit.batch_size} examples do not divide evenly among "
                f"{team.size} processes"
            )
        finished.append(following.begin().parameters)


def _layer(recipe: Recipe, how: StageSettings, data: Dataset, finished: Finished) -> Stage:
    number, layers = len(finished), recipe.model.layers
    below, deep = data, recipe.model.family == "dbm" and len(layers) > 1
    for n, parameters in enumerate(finished):
        below = raised(below, parameters, doubled=deep and n == 0)
    top = number == len(layers) - 1
    side = "below" if number == 0 else "above" if top else "none"
    objective = _doubled(how.objective, side) if deep else dict(how.objective)
    one = Recipe(
        name=recipe.name,
        seed=recipe.seed,
        data=recipe.data,
        model=ModelSettings(
            family="grbm" if below.domain == "real" else "rbm",
            hidden=layers[number],
            labels=recipe.model.labels and top,
            weight_std=recipe.model.weight_std,
            log_sigma=recipe.model.log_sigma,
        ),
        objective=objective,
        fit=how.fit,
        monitor=MonitorSettings(every=recipe.monitor.every, examples=recipe.monitor.examples),
    )
    return Stage(f"layer {number + 1}", one, below, manifest(one, below), build(objective), {})


def _doubled(objective: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The objective's settings, every term that can doubles the inputs from that side."""
    whole = build(objective)
    terms = list(objective["terms"]) if isinstance(whole, Sum) else [objective]
    able = [n for n, term in enumerate(terms) if "doubled" in objectives()[term["name"]].model_fields]
    if not able and side != "none":
        raise RecipeError("pretraining.objective: the lowest and the topmost layer of a dbm need one of cd, pcd")
    for n in able:
        terms[n] = {**terms[n], "doubled": side}
    return {"terms": terms} if isinstance(whole, Sum) else dict(terms[0])


def raised(data: Dataset, parameters: Mapping[str, Tensor], doubled: bool = False) -> Dataset:
    """The data as the hidden units of an RBM see them: their means, drawn afresh each epoch.

    `doubled`: of one that was trained with its inputs from below doubled.
    """
    kind = "grbm" if "log_sigma" in parameters else "rbm"
    units = len(parameters["c"])
    visible = Visible(shape=[data.units], domain=data.domain)
    below = Manifest(name="below", version=1, family=kind, visible=visible)
    kept = {name: t for name, t in parameters.items() if name not in ("U", "d")}
    model = model_of(below, kept | {"W": 2 * kept["W"]} if doubled else kept)
    assert isinstance(model, HasFeatures)

    def up(examples: Tensor, white: float = 1.0) -> Tensor:
        starts = range(0, len(examples), _CHUNK)
        return torch.cat([model.features(examples[k : k + _CHUNK].float() / white) for k in starts])

    means = up(data.train) if data.grey is None else up(data.grey, data.white)
    others: dict[str, Any] = {part: up(getattr(data, part)) for part in ("validation", "test")}
    return replace(
        data,
        shape=(units,),
        domain="binary",
        binarization="stochastic",
        preprocessing=None,
        train=(means > 0.5).byte(),
        grey=means,
        white=1.0,
        train_means=means.mean(0, dtype=torch.float64),
        **{part: (values > 0.5).byte() for part, values in others.items()},
    )


def _dbn(finished: Finished) -> dict[str, Tensor]:
    """Generative and recognition weights alike at first; each layer's generative bias is that of the RBM above it."""
    found: dict[str, Tensor] = {}
    for n, rbm in enumerate(finished, start=1):
        found |= {f"W{n}": rbm["W"], f"b{n - 1}": rbm["b"], f"V{n}": rbm["W"], f"a{n}": rbm["c"]}
    top = len(finished)
    found[f"b{top}"] = found.pop(f"a{top}")
    del found[f"V{top}"]
    return found | {name: finished[-1][name] for name in ("U", "d") if "U" in finished[-1]}


def _dbm(finished: Finished, data: Dataset) -> dict[str, Tensor]:
    """The RBMs' weights, those of the middle ones halved; a middle layer's bias is the mean of its two.

    A recognition net begins as the pass up that starts mean-field: inputs from below doubled, but into the top layer.
    """
    found, top = {"b0": finished[0]["b"]}, len(finished)
    for n, rbm in enumerate(finished, start=1):
        found[f"W{n}"] = rbm["W"] if n in (1, top) else rbm["W"] / 2
        found[f"b{n}"] = rbm["c"] if n == top else (rbm["c"] + finished[n]["b"]) / 2
    if data.domain == "real":
        found["log_sigma"] = finished[0]["log_sigma"]
    for n in range(1, top + 1):
        found |= {f"V{n}": found[f"W{n}"] * (1 if n == top else 2), f"a{n}": found[f"b{n}"]}
    if data.domain == "real":  # the net takes values, the machine standard deviations
        found["V1"] = found["V1"] * torch.exp(-found["log_sigma"])[:, None]
    return found | {name: finished[-1][name] for name in ("U", "d") if "U" in finished[-1]}
