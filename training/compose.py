"""Recipes of compositions: which models are added up, and by which recipes those that are not there yet are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from models.manifest import Manifest
from training.config import SUFFIXES, Section, faults, read, shipped_files
from training.errors import RecipeError


class TermSettings(Section):
    """A summand w E(x), or w E(x, y)."""

    recipe: str = Field(description="A shipped recipe; its model has the same name.")
    weight: float = 1.0
    label: int | str | None = Field(None, description="The class y.")


class CompositionRecipe(Section):
    """A weighted sum of the energies of other recipes' models (MATH 11)."""

    name: str
    description: str = ""
    expected: str = Field("", description="What it yields, in words.")
    terms: list[TermSettings] = Field(min_length=1)


def shipped() -> dict[str, CompositionRecipe]:
    """Those that come with the package, by name."""
    found = [_validated(tree, file) for file, tree in shipped_files().items() if "terms" in tree]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda r: r.name)}


def find(recipe: str) -> CompositionRecipe | None:
    """The shipped composition of that name, or the one in a TOML or YAML file; None: it is no composition.

    Raises:
        RecipeError: it is one, but not a right one; every fault is named.
    """
    path = Path(recipe)
    if path.suffix not in SUFFIXES:
        return shipped().get(recipe)
    tree = read(path)
    return _validated({"name": path.stem, **tree}, recipe) if "terms" in tree else None


def compose(recipe: CompositionRecipe, models_dir: Path, trained: Callable[[str], Path]) -> Path:
    """Write a checkpoint of the sum, each model at its newest version; returns its folder.

    `trained` trains and writes the model of a recipe: it is asked for those that the models directory does not have.

    Raises:
        TrainingError: as in training.
        CheckpointError: the models do not go together.
    """
    from models import checkpoint  # noqa: PLC0415 - torch, which a list of recipes does without

    newest: dict[str, Path] = {}
    for name in dict.fromkeys(term.recipe for term in recipe.terms):
        known = checkpoint.versions(models_dir).get(name)
        newest[name] = models_dir / name / str(max(known)) if known else trained(name)
    first = checkpoint.read_manifest(newest[recipe.terms[0].recipe])
    terms = [
        {"model": t.recipe, "version": int(newest[t.recipe].name), "weight": t.weight, "label": t.label}
        for t in recipe.terms
    ]
    manifest = Manifest(
        name=recipe.name,
        version=1,  # set when written
        family="composition",
        visible=first.visible,
        config={"terms": terms},
        preprocessing=first.preprocessing,
    )
    return checkpoint.write(models_dir, manifest, checkpoint.assemble(models_dir, manifest, {}))


def _validated(tree: dict[str, object], source: str) -> CompositionRecipe:
    try:
        return CompositionRecipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{source}: " + "; ".join(faults(error, CompositionRecipe))) from error
