from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models import checkpoint
from models.family import HasClasses
from tests.models.cases import case, normal
from training import config
from training.cli import app
from training.compose import compose, find, shipped
from training.config import DataSettings
from training.data import load
from training.errors import DataError, RecipeError

TERMS = """terms = [
  { recipe = "jem-mnist" },
  { recipe = "thick-mnist", weight = 2.0 },
  { recipe = "jem-mnist", label = "owl", weight = -0.5 },
]
"""


def _put(folder: Path, name: str, of: str, seed: int = 0, **keys: Any) -> Path:
    made = case(of, 4, 3, seed=seed)
    return checkpoint.write(folder, made.manifest.model_copy(update={"name": name, **keys}), made.model)


def _pets(folder: Path, seed: int) -> Path:
    return _put(folder, "jem-mnist", "jem", seed, classes=["cat", "dog", "owl"])


def test_a_composition_sums_the_newest_models_and_has_those_trained_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "sum.toml").write_text(TERMS)
    models, asked = tmp_path / "models", []
    _pets(models, 1)
    pets = checkpoint.read(_pets(models, 2)).model

    def trained(name: str) -> Path:
        asked.append(name)
        return _put(models, name, "mlp_energy unit")

    recipe = find(str(tmp_path / "sum.toml"))
    assert recipe is not None
    found = checkpoint.read(compose(recipe, models, trained))
    assert asked == ["thick-mnist"]
    assert found.folder == models / "sum" / "1"
    assert [term["version"] for term in found.manifest.config["terms"]] == [2, 1, 2]
    x = normal((20, 4), 5).sigmoid()
    thick = checkpoint.read(models / "thick-mnist" / "1").model
    assert isinstance(pets, HasClasses)
    owls = pets.class_energy(x, torch.full((20,), 2))
    np.testing.assert_allclose(found.model.energy(x), pets.energy(x) + 2 * thick.energy(x) - 0.5 * owls, rtol=1e-12)


def test_the_command_composes_what_is_there_and_refuses_settings(tmp_path: Path) -> None:
    (tmp_path / "sum.toml").write_text(TERMS)
    _pets(tmp_path, 1)
    _put(tmp_path, "thick-mnist", "mlp_energy unit")
    given = ["train", str(tmp_path / "sum.toml"), "--out", str(tmp_path), "--name", "other"]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.output
    assert checkpoint.versions(tmp_path)["other"] == [1]
    refused = CliRunner().invoke(app, [*given, "--set", "fit.epochs=1"])
    assert refused.exit_code == 2
    assert "--set is for training these" in refused.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms = []", "terms: List should have at least 1 item"),
        ('terms = [{ recipe = "a", wieght = 1 }]', "unknown key terms.0.wieght .did you mean weight"),
        ("terms = [{}]", "terms.0.recipe: Field required"),
        ('terms = [{ recipe = "a" }]\n[fit]\nepochs = 1', "unknown key fit; keys here: name, description"),
    ],
)
def test_faults_of_a_composition_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        find(str(path))


def test_shipped_compositions_add_up_models_of_shipped_recipes_and_are_listed() -> None:
    assert {term.recipe for recipe in shipped().values() for term in recipe.terms} <= set(config.shipped())
    assert not set(shipped()) & set(config.shipped())
    listed = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "400"}).output
    for name, recipe in shipped().items():
        assert name in listed
        assert recipe.description
        assert recipe.expected
    assert find("rings") is None


def test_thick_and_thin_halves_are_told_by_the_median_of_the_training_part(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, x_train=x[:60], y_train=np.arange(60) % 3, x_test=x[60:], y_test=np.arange(40) % 3)
    whole, thick, thin = (
        load(DataSettings(dataset=str(path), domain="unit", validation=20, ink=ink)) for ink in (None, "thick", "thin")
    )
    median = np.median(whole.train.double().mean(1))
    means = {name: x.train.double().mean(1) for name, x in (("thick", thick), ("thin", thin))}
    assert means["thick"].min() > median > means["thin"].max()
    assert len(thick.train) == len(thin.train) == len(whole.train) // 2
    assert len(thick.test) == int((whole.test.double().mean(1) > median).sum())
    assert thick.train_labels is not None
    assert len(thick.train_labels) == len(thick.train)
    np.savez(path, x_train=np.full((60, 4, 4), 7, np.uint8), x_test=x[60:])
    with pytest.raises(DataError, match="leaves nothing of a part"):
        load(DataSettings(dataset=str(path), domain="unit", validation=20, ink="thick"))
