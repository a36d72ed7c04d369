from __future__ import annotations

from pathlib import Path

import pytest

from training.config import load, shipped
from training.errors import RecipeError
from training.objective import build


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_are_named_as_their_file_and_their_objective_exists(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert build(recipe.objective).name == recipe.objective["name"]
    assert recipe.expected
    assert recipe.description


def test_overrides_take_toml_values_and_bare_words() -> None:
    recipe = load("rbm-digits", ["fit.epochs=7", "fit.learning_rate=1e-3", "data.binarization=stochastic", "seed=5"])
    assert (recipe.fit.epochs, recipe.fit.learning_rate) == (7, 1e-3)
    assert (recipe.data.binarization, recipe.seed) == ("stochastic", 5)


def test_another_objective_comes_without_the_settings_of_the_recipes_own() -> None:
    recipe = load("rbm-digits", ["objective.steps=3", "objective.name=cd"])
    assert recipe.objective == {"steps": 3, "name": "cd"}
    assert load("rbm-digits", ["objective.name=pcd"]) == load("rbm-digits")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fit.epoch=3", r"unknown key fit\.epoch \(did you mean epochs\?\); keys here: epochs, batch_size"),
        ("fitt.epochs=3", r"unknown key fitt \(did you mean fit\?\); keys here: name, "),
        ("fit.epochs=0", r"fit\.epochs: Input should be greater than or equal to 1"),
        ("fit.learning_rate=nan", r"fit\.learning_rate: Input should be a finite number"),
        ("fit.epochs", r"expected key=value"),
        ("fit=3", r"fit is a section; its keys: epochs"),
        ("seed.x=3", r"seed is a value, not a section"),
        ("data.binarization=gray", r"data\.binarization: Input should be 'threshold', 'stochastic' or"),
    ],
)
def test_a_wrong_override_is_refused_with_what_was_expected(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load("rbm-digits", [override])


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'rbm-digit' \(did you mean rbm-digits\?\); shipped recipes: "):
        load("rbm-digit")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "cdd"}, r"objective\.name: 'cdd' is unknown; expected one of cd, pcd"),
        ({}, r"objective\.name: None is unknown"),
        ({"name": "cd", "chains": 3}, r"objective\.chains: .*settings of cd: steps, centring"),
        ({"name": "pcd", "steps": 0}, r"objective\.steps: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_an_objective_are_refused_with_its_own(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        build(settings)


_TOML = """
[data]
dataset = "digits"
validation = 10
test = 10
[model]
hidden = 3
[objective]
name = "cd"
[fit]
epochs = 1
batch_size = 10
learning_rate = 0.1
"""
_YAML = """
data: {dataset: digits, validation: 10, test: 10}
model: {hidden: 3}
objective: {name: cd}
fit: {epochs: 1, batch_size: 10, learning_rate: 0.1}
"""


def test_a_recipe_reads_the_same_from_toml_and_yaml_and_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(_TOML)
    (tmp_path / "mine.yaml").write_text(_YAML)
    assert load(str(tmp_path / "mine.toml")) == load(str(tmp_path / "mine.yaml"))
    assert load(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.toml", "[data", "is not valid TOML"),
        ("a.yaml", "a: [", "is not valid YAML"),
        ("a.yaml", "- a", "expected a mapping"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a.toml", "", "data: Field required; model: Field required"),
    ],
)
def test_a_malformed_recipe_file_is_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError, match=expected):
        load(str(tmp_path / name))


def test_a_recipe_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        load(str(tmp_path / "none.toml"))
