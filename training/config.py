"""Recipes: everything that decides a training run but the data themselves. Imports no torch."""

from __future__ import annotations

import difflib
import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.manifest import Domain
from training.errors import RecipeError

Binarization = Literal["threshold", "stochastic", "fixed-stochastic", "fixed"]


class Section(BaseModel):
    """Settings: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Section):
    """What is learned from."""

    dataset: str = Field(description="The name of a data set (`digits`, `mnist`, `nltcs`, ...), or a path.")
    place: str | None = Field(None, description="Folder in which that name is looked for; decides nothing else.")
    domain: Domain = Field("binary", description="What the visible units are: 0/1, -1/+1, in [0, 1], or real.")
    binarization: Binarization = Field(
        "threshold", description="How grey levels become two states (binary, spin). `fixed`: the data have only two."
    )
    preprocessing: Literal["none", "standardise", "centre"] = Field(
        "standardise", description="What is done to real values, with the statistics of the training part."
    )
    statistics: Literal["per-unit", "global"] = Field(
        "per-unit", description="Whether each unit has a mean and standard deviation of its own, or all have one."
    )
    validation: int | None = Field(
        None, ge=1, description="Examples held out from training for monitors, where the data have no such part."
    )
    test: int | None = Field(None, ge=1, description="Examples held out for the figures, where the data come unsplit.")
    anomaly: int | str | None = Field(
        None, description="The class of anomalies: kept from training and validation; test examples are told by energy."
    )
    ink: Literal["thick", "thin"] | None = Field(
        None, description="Keep images whose mean grey level is above (thick) or below the training part's median."
    )
    grey: bool = Field(False, description="Make RGB images grey (luma of ITU-R BT.601).")
    patch: int | None = Field(
        None, ge=1, description="Learn from square patches of images, of this many pixels a side."
    )
    patches: int | None = Field(
        None, ge=1, description="Patches in the training part; held-out parts in proportion. None: 10 for each image."
    )
    patch_seed: int = Field(0, ge=0, lt=2**32, description="Seed of the places that patches are cut from.")

    @model_validator(mode="after")
    def _of_images(self) -> DataSettings:
        if self.dataset == "cifar10_patches" and self.patch is None:
            raise ValueError("cifar10_patches needs patch, the number of pixels a side")
        if self.patches is not None and self.patch is None:
            raise ValueError("patches needs patch, the number of pixels a side")
        return self


class ModelSettings(Section):
    """What is learned."""

    family: str = Field("rbm", description="A family of energy-based models.")
    recognition: bool = Field(False, description="Whether a DBM has a recognition net.")
    hidden: int | list[int] | None = Field(
        None, description="Hidden units; of each layer, lowest first, for a family that has several."
    )
    labels: bool = Field(False, description="Whether there are label units, for the classes of the data.")
    weight_std: float = Field(0.01, gt=0, description="Standard deviation of the first weights.")
    log_sigma: float = Field(
        0.0, description="First log standard deviation of visibles given the hidden units, or given a generator's."
    )
    architecture: dict[str, Any] | None = Field(
        None,
        description="Of a network: `name` of a kind in models/architectures, and its own settings; of several, "
        "`generator` and `energy` or `discriminator`, each with these.",
    )
    latent: int | None = Field(None, ge=1, le=65_536, description="Numbers that a generator makes an example of.")
    prior_std: float | None = Field(
        None, gt=0, description="s of the term |x|^2 / (2 s^2) in a network's energy; None: no such term."
    )
    sigmas: list[float] | dict[str, float] | None = Field(
        None, description="Scales of noise, the largest first; or `largest`, `smallest`, `number`: a geometric series."
    )

    @property
    def noise_scales(self) -> list[float] | None:
        """The scales of noise one by one."""
        if not isinstance(self.sigmas, dict):
            return self.sigmas
        low, high, number = math.log(self.sigmas["smallest"]), math.log(self.sigmas["largest"]), self.sigmas["number"]
        return [math.exp(high + k * (low - high) / (number - 1)) for k in range(int(number))]

    @field_validator("sigmas")
    @classmethod
    def _falling(cls, sigmas: list[float] | dict[str, float] | None) -> list[float] | dict[str, float] | None:
        if isinstance(sigmas, dict):
            if set(sigmas) != {"largest", "smallest", "number"}:
                raise ValueError("a geometric series has largest, smallest and number")
            if sigmas["number"] < 2 or sigmas["number"] != int(sigmas["number"]):
                raise ValueError("number must be a whole number from 2 up")
            ends = [sigmas["largest"], sigmas["smallest"]]
        else:
            ends = sigmas or []
        if sigmas is not None and (not ends or ends[-1] <= 0 or any(b >= a for a, b in itertools.pairwise(ends))):
            raise ValueError("standard deviations above 0, the largest first")
        return sigmas

    @property
    def layers(self) -> list[int]:
        """Hidden units of each layer."""
        return [] if self.hidden is None else [self.hidden] if isinstance(self.hidden, int) else self.hidden

    @field_validator("hidden")
    @classmethod
    def _sizes(cls, hidden: int | list[int] | None) -> int | list[int] | None:
        sizes = hidden if isinstance(hidden, list) else [] if hidden is None else [hidden]
        if any(not 1 <= size <= 1_000_000 for size in sizes) or hidden == []:
            raise ValueError("from 1 to 1,000,000 units a layer")
        return hidden


class FitSettings(Section):
    """Stochastic gradient ascent."""

    epochs: int = Field(ge=0, description="0: the stage is passed over.")
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear"] = Field("linear", description="`linear`: down to 0 at the end.")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="`adam`: Kingma & Ba 2015, with beta2 0.999.")
    momentum: float = Field(0.0, ge=0, lt=1, description="For `adam` its beta1, 0.9 where 0 is given.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights; its gradient is -weight_decay W.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the whole gradient; longer ones are cut.")
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of the parameters' running mean, which is what is judged and written."
    )
    spectral_norm: Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Largest spectral norm of weights: one for all, or by parameter as in `rates`."
    )
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Factors on the learning rate, by parameter or by the part of a model before the dot; 0 holds it "
        "fixed.",
    )
    patience: int | None = Field(
        None, ge=1, description="Records without a better validation figure after which to stop; the best is kept."
    )


class StageSettings(Section):
    """A stage of training before or after the joint one: its own objective and fit."""

    objective: dict[str, Any]
    fit: FitSettings


class MonitorSettings(Section):
    """What is looked at on the way."""

    every: int = Field(1, ge=1, description="Epochs between two records.")
    examples: int = Field(1000, ge=1, description="Training and validation examples that are looked at.")
    ais_chains: int = Field(50, ge=2)
    ais_temperatures: int = Field(0, ge=0, description="0: no running estimate of the log-likelihood.")
    watch: Literal[
        "log_likelihood_validation",
        "pseudo_log_likelihood",
        "classification_error_validation",
        "score_matching_validation",
        "denoising_validation",
    ] = Field("log_likelihood_validation", description="The figure that `fit.patience` waits for to improve.")


class LikelihoodSettings(Section):
    """How the test log-likelihood is bracketed at the end."""

    chains: int = Field(100, ge=2)
    temperatures: int = Field(1000, ge=10)
    estimated_examples: int = Field(
        1000, ge=2, description="Test examples, drawn at random, where the energy is an estimate; else it is all."
    )
    raise_examples: Literal[0] | Annotated[int, Field(ge=2)] = Field(
        100, description="Test examples, drawn at random, for RAISE; 0: none."
    )
    raise_runs: int = Field(10, ge=1, description="Backward runs for each of them.")
    annealed_examples: Literal[0] | Annotated[int, Field(ge=2)] = Field(
        100, description="Test examples, drawn at random, to anneal given v where the energy is a bound; 0: none."
    )
    annealed_runs: int = Field(10, ge=1, description="Runs for each of them.")


class Recipe(Section):
    """One training run."""

    name: str
    description: str = ""
    expected: str = Field("", description="What it yields, in words.")
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataSettings
    model: ModelSettings
    objective: dict[str, Any] = Field(
        description="`name` of an objective, and its own settings; or `terms`, a list of such, each with its `weight`."
    )
    fit: FitSettings
    pretraining: StageSettings | None = Field(
        None, description="Greedy training of each layer before (dbn, dbm); the joint fit then goes on from there."
    )
    finetuning: StageSettings | None = Field(None, description="A stage after the joint fit.")
    monitor: MonitorSettings = MonitorSettings()
    likelihood: LikelihoodSettings = LikelihoodSettings()


SUFFIXES = frozenset({".toml", ".yaml", ".yml"})
"""Of files that hold recipes."""


def shipped() -> dict[str, Recipe]:
    """The recipes that come with the package, by name."""
    recipes = [validated(tree, name) for name, tree in shipped_files().items() if "terms" not in tree]
    return {recipe.name: recipe for recipe in sorted(recipes, key=lambda r: r.name)}


@cache
def shipped_files() -> dict[str, dict[str, Any]]:
    """What the files that come with the package hold, by file name."""
    files = (f for f in resources.files("training.recipes").iterdir() if f.name.endswith(".toml"))
    return {f.name: _toml(f.read_text(encoding="utf-8"), f.name) for f in files}


def load(recipe: str, overrides: Iterable[str] = ()) -> Recipe:
    """The shipped recipe of that name, or the one in a TOML or YAML file, with `key=value` overrides (dotted keys).

    Raises:
        RecipeError: no such recipe, or a key or value that the recipe cannot have; the valid ones are named.
    """
    path = Path(recipe)
    if path.suffix in SUFFIXES:
        tree = read(path)
        tree.setdefault("name", path.stem)
    else:
        known = shipped()
        if recipe not in known:
            raise RecipeError(
                f"no recipe {recipe!r}{_nearest(recipe, known)}; shipped recipes: {', '.join(known)}; "
                "or give a .toml or .yaml file"
            )
        tree = known[recipe].model_dump()
    # Another objective has other settings: naming one, or terms, clears those of the recipe, and so comes first.
    for text in sorted(overrides, key=lambda text: not text.startswith(("objective.name=", "objective.terms="))):
        _override(tree, text)
    return validated(tree, recipe)


def validated(tree: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that `tree` describes.

    Raises:
        RecipeError: every fault, with its dotted key.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{source}: " + "; ".join(faults(error, Recipe))) from error


def faults(error: ValidationError, of: type[BaseModel]) -> Iterable[str]:
    """Each of them, with its dotted key."""
    for fault in error.errors():
        *section, key = map(str, fault["loc"]) or ("",)
        if fault["type"] == "extra_forbidden":
            valid = _keys(of, section)
            yield f"unknown key {'.'.join([*section, key])}{_nearest(key, valid)}; keys here: {', '.join(valid)}"
        else:
            yield f"{'.'.join([*section, key])}: {fault['msg']}"


def _keys(kind: type[BaseModel], section: list[str]) -> list[str]:
    for part in section:
        if part.isdigit():  # a place in a list
            continue
        annotation = kind.model_fields[part].annotation  # a section, or a section or None
        kinds = (annotation, *get_args(annotation))
        kind = next(found for found in kinds if isinstance(found, type) and issubclass(found, BaseModel))
    return list(kind.model_fields)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r}: expected key=value, for example fit.epochs=5")
    *sections, last = key.strip().split(".")
    branch: Any = tree
    for section in sections:
        if branch.get(section) is None:
            branch[section] = {}
        branch = branch[section]
        if not isinstance(branch, dict):
            raise RecipeError(f"--set {text!r}: {section} is a value, not a section")
    if isinstance(branch.get(last), dict):
        raise RecipeError(f"--set {text!r}: {key} is a section; its keys: {', '.join(branch[last])}")
    if key.strip() in ("objective.name", "objective.terms") and branch.get(last) != value.strip():
        branch.clear()
    branch[last] = _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, as in data.binarization=stochastic


def read(path: Path) -> dict[str, Any]:
    """What a TOML or YAML file holds.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    return _toml(text, str(path)) if path.suffix == ".toml" else _yaml(text, str(path))


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source} is not valid TOML: {error}") from error


def _yaml(text: str, source: str) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError:
        raise RecipeError(f"{source}: reading YAML needs the package pyyaml; or write the recipe as TOML") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{source}: expected a mapping of sections")
    return tree


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
