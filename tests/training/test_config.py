from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from training.config import FitSettings, LikelihoodSettings, ModelSettings, MonitorSettings, load, shipped
from training.errors import RecipeError
from training.objective import Sum, build, objectives


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_are_named_as_their_file_and_their_objective_exists(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    for objective in (recipe.objective, *(s.objective for s in (recipe.pretraining, recipe.finetuning) if s)):
        assert build(objective).name == objective.get("name", "sum")
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
    terms = load("rbm-digits", ['objective.terms=[{name="cd", steps=2}, {name="sparsity", weight=0.1}]'])
    assert terms.objective == {"terms": [{"name": "cd", "steps": 2}, {"name": "sparsity", "weight": 0.1}]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fit.epoch=3", r"unknown key fit\.epoch \(did you mean epochs\?\); keys here: epochs, batch_size"),
        ("fitt.epochs=3", r"unknown key fitt \(did you mean fit\?\); keys here: name, "),
        ("fit.batch_size=0", r"fit\.batch_size: Input should be greater than or equal to 1"),
        ("fit.epochs=-1", r"fit\.epochs: Input should be greater than or equal to 0"),
        ("fit.clip=0", r"fit\.clip: Input should be greater than 0"),
        ("fit.patience=0", r"fit\.patience: Input should be greater than or equal to 1"),
        ("fit.rates=3", r"fit\.rates is a section"),
        ("fit.rates.W=-1", r"fit\.rates\.W: Input should be greater than or equal to 0"),
        ("fit.rates.W=big", r"fit\.rates\.W: Input should be a valid number"),
        ("monitor.watch=energy", r"monitor\.watch: Input should be 'log_likelihood_validation', 'pseudo_log_l"),
        ("model.hidden=0", r"model\.hidden: .*from 1 to 1,000,000 units a layer"),
        ("model.sigmas=[1.0, 2.0]", r"model\.sigmas: .*standard deviations above 0, the largest first"),
        ("model.sigmas=[1.0, 0.0]", r"model\.sigmas: .*standard deviations above 0, the largest first"),
        ("model.sigmas={largest=1.0, number=3}", r"model\.sigmas: .*largest, smallest and number"),
        ("model.sigmas={largest=1.0, smallest=0.1, number=1}", r"model\.sigmas: .*whole number from 2 up"),
        ("model.prior_std=0", r"model\.prior_std: Input should be greater than 0"),
        ("fit.ema=1", r"fit\.ema: Input should be less than 1"),
        ("model.hidden=[]", r"model\.hidden: .*from 1 to 1,000,000 units a layer"),
        ("model.hidden=[5, 0]", r"model\.hidden: .*from 1 to 1,000,000 units a layer"),
        ("data.domain=spins", r"data\.domain: Input should be 'binary', 'spin', 'real' or 'unit'"),
        ("fit.learning_rate=nan", r"fit\.learning_rate: Input should be a finite number"),
        ("fit.epochs", r"expected key=value"),
        ("fit=3", r"fit is a section; its keys: epochs"),
        ("seed.x=3", r"seed is a value, not a section"),
        (
            "data.binarization=gray",
            r"data\.binarization: Input should be 'threshold', 'stochastic', 'fixed-stochastic' or",
        ),
    ],
)
def test_a_wrong_override_is_refused_with_what_was_expected(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load("rbm-digits", [override])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["finetuning.fit.epoch=3"],
            r"unknown key finetuning\.fit\.epoch \(did you mean epochs\?\); keys here: epochs",
        ),
        (["pretraining.fits=3"], r"unknown key pretraining\.fits \(did you mean fit\?\); keys here: objective, fit"),
        (["finetuning.fit.epochs=3"], r"finetuning\.objective: Field required"),
    ],
)
def test_a_wrong_override_of_a_stage_is_refused_with_what_was_expected(overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load("rbm-digits", overrides)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'rbm-digit' \(did you mean rbm-digits\?\); shipped recipes: "):
        load("rbm-digit")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "cdd"}, r"objective\.name: 'cdd' is unknown; expected one of .*cd, .*pcd"),
        ({}, r"objective\.name: None is unknown"),
        ({"name": "cd", "chains": 3}, r"objective\.chains: .*settings of cd: steps, centring"),
        ({"terms": []}, r"objective\.terms: expected a list of objectives, each with its name; found \[\]"),
        ({"terms": "cd"}, r"objective\.terms: expected a list of objectives, each with its name; found 'cd'"),
        ({"terms": ["cd"]}, r"objective\.terms: expected a list of objectives, each with its name; found \['cd'\]"),
        ({"terms": [{"weight": 1.0}]}, r"objective\.name: None is unknown"),
        ({"terms": [{"name": "cd", "weight": "all"}]}, r"objective\.terms: expected a number as weight; found 'all'"),
        ({"terms": [{"name": "cd", "chains": 3}]}, r"objective\.chains: .*settings of cd: steps, centring"),
        ({"terms": [{"name": "cd"}], "steps": 3}, r"objective: steps beside terms; each term has its own settings"),
        ({"name": "pcd", "steps": 0}, r"objective\.steps: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_an_objective_are_refused_with_its_own(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        build(settings)


def test_terms_have_their_weights_or_1() -> None:
    whole = build({"terms": [{"name": "cd", "steps": 2}, {"name": "sparsity", "target": 0.2, "weight": 0.5}]})
    assert isinstance(whole, Sum)
    assert [(term.name, term.model_dump()["steps" if k == 0 else "target"]) for k, term in enumerate(whole.terms)] == [
        ("cd", 2),
        ("sparsity", 0.2),
    ]
    assert whole.weights == (1.0, 0.5)


def test_hidden_units_are_one_number_or_one_for_each_layer() -> None:
    assert load("rbm-digits", ["model.hidden=7"]).model.layers == [7]
    assert load("rbm-digits", ["model.hidden=[7, 3]"]).model.layers == [7, 3]


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


# --- the documentation ---

_DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
_SECTIONS = {"model": ModelSettings, "fit": FitSettings, "monitor": MonitorSettings, "likelihood": LikelihoodSettings}


@pytest.mark.parametrize("section", _SECTIONS)
def test_every_setting_is_in_the_documentations_table_with_its_default(section: str) -> None:
    rows = _DOCUMENTATION.split("| setting | default | |")[1].split("\n\n")[0].splitlines()
    table = {key: row for row in rows for key in row.partition(" | ")[0].split("`")[1::2]}
    for name, field in _SECTIONS[section].model_fields.items():
        assert f"{section}.{name}" in table
        default = field.default
        cells = [cell.strip().strip("`") for cell in table[f"{section}.{name}"].split("|")]
        if isinstance(default, bool):
            assert cells[2] == str(default).lower()
        elif isinstance(default, int | float):
            assert f"{default:g}" in cells[2].split(", ")
        elif isinstance(default, str):
            assert cells[2] == default


@pytest.mark.parametrize("name", sorted(objectives()))
def test_every_objective_is_in_the_documentation_with_its_settings(name: str) -> None:
    assert f"| `{name}` | " in _DOCUMENTATION
    for setting in set(objectives()[name].model_fields) - {"acceptance", "most"}:
        assert f"`{setting}`" in _DOCUMENTATION or f"`{setting} = " in _DOCUMENTATION


@pytest.mark.parametrize("number", range(_DOCUMENTATION.count("```toml")))
def test_the_documentations_recipes_can_be_read(tmp_path: Path, number: int) -> None:
    text = _DOCUMENTATION.split("```toml\n")[number + 1].split("```")[0]
    if "[data]" in text:
        (tmp_path / "a.toml").write_text(text)
        recipe = load(str(tmp_path / "a.toml"))
        stages = (recipe, *(stage for stage in (recipe.pretraining, recipe.finetuning) if stage))
        assert all(build(stage.objective) for stage in stages)
    else:
        assert build(tomllib.loads(text)["objective"])
