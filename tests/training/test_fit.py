from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.family import EnergyModel, HasClasses, HasEnumeration
from tests.training.toys import bars, clouds, dataset, grbm, labelled_bars
from training import state as states
from training.config import Recipe
from training.data import Dataset
from training.errors import DataError, DivergenceError, RecipeError
from training.fit import FitState, begin, manifest, model_of, out_of_patience, steps_per_epoch, train, watch
from training.likelihood import classification_error, energies, wide
from training.objective import Batch, Draws, build
from training.products import dense
from training.state import Origin

MakeRecipe = Callable[..., Recipe]
_ENTROPY = -(12 * math.log(1 / 16) + 4 * math.log(2 / 16)) / 16


def _model(recipe: Recipe, data: Dataset, state: FitState) -> EnergyModel:
    """What was trained, in float64."""
    of = manifest(recipe, data)
    return wide(of, model_of(of, state.parameters))


def _log_likelihood(model: EnergyModel, examples: Tensor) -> float:
    assert isinstance(model, HasEnumeration)
    assert model.energy_kind == "exact"
    return -float(energies(model, examples).mean()) - model.log_partition()


def _fitted(recipe: Recipe, data: Dataset) -> FitState:
    objective = build(recipe.objective)
    state = begin(recipe, data, objective)
    train(recipe, data, objective, state, lambda _state: None)
    return state


# --- learning ---


@pytest.mark.parametrize(("centring", "close"), [("none", 1.0), ("centred", 0.4), ("enhanced", 0.4)])
@pytest.mark.parametrize("name", ["cd", "pcd"])
def test_training_takes_the_exact_log_likelihood_close_to_the_datas_entropy(
    make_recipe: MakeRecipe, name: str, centring: str, close: float
) -> None:
    recipe = make_recipe(model={"hidden": 12}, fit={"epochs": 800, "batch_size": 16, "learning_rate": 1.0})
    data, objective = dataset(bars()), build({"name": name, "centring": centring, "steps": 5})
    state = begin(recipe, data, objective)
    before = _log_likelihood(_model(recipe, data, state), bars())
    train(recipe, data, objective, state, lambda _state: None)
    after = _log_likelihood(_model(recipe, data, state), bars())
    # Independent units, where training starts, are at -9 log 2 = -6.2; the bound is -entropy = -2.6. The plain gradient
    # is slower: units that are 1 half of the time are where centring pays.
    assert before < -6
    assert -_ENTROPY - close < after < -_ENTROPY


def test_a_deep_machine_learns_too(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        model={"family": "dbm", "hidden": [10, 4], "weight_std": 0.1},
        objective={"name": "pcd", "centring": "centred", "steps": 5, "chains": 50, "mean_field_sweeps": 5},
        fit={"epochs": 800, "batch_size": 16, "learning_rate": 0.5},
    )
    data = dataset(bars())
    after = _log_likelihood(_model(recipe, data, _fitted(recipe, data)), bars())
    assert -_ENTROPY - 0.6 < after < -_ENTROPY


def test_label_units_are_learned_with_the_visible_ones(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        model={"hidden": 16, "labels": True},
        objective={"name": "pcd", "centring": "centred", "steps": 5, "chains": 100},
        fit={"epochs": 400, "batch_size": 16, "learning_rate": 1.0},
    )
    data = labelled_bars()
    model = _model(recipe, data, _fitted(recipe, data))
    assert isinstance(model, HasClasses)
    assert data.test_labels is not None
    assert -_ENTROPY - 0.6 < _log_likelihood(model, bars()) < -_ENTROPY
    assert classification_error(model, data.test, data.test_labels) == 0


def test_a_hybrid_of_terms_learns_the_classes(make_recipe: MakeRecipe) -> None:
    terms = [{"name": "discriminative"}, {"name": "cd", "weight": 0.1}]
    recipe = make_recipe(
        model={"hidden": 16, "labels": True}, fit={"epochs": 300, "batch_size": 16, "learning_rate": 0.5}
    )
    recipe = recipe.model_copy(update={"objective": {"terms": terms}})
    data = labelled_bars()
    model = _model(recipe, data, _fitted(recipe, data))
    assert isinstance(model, HasClasses)
    assert data.test_labels is not None
    assert classification_error(model, data.test, data.test_labels) == 0


def test_real_visibles_learn_means_and_variances(make_recipe: MakeRecipe) -> None:
    data, truth = clouds(), grbm()
    recipe = make_recipe(
        model={"family": "grbm", "hidden": 4, "weight_std": 0.1},
        objective={"name": "pcd", "steps": 2, "chains": 100, "centring": "centred"},
        fit={"epochs": 150, "batch_size": 100, "learning_rate": 0.3, "rates": {"log_sigma": 0.1}},
    )
    state = _fitted(recipe, data)
    best, after = _log_likelihood(truth, data.train), _log_likelihood(_model(recipe, data, state), data.train)
    independent = -sum(0.5 * math.log(2 * math.pi * math.e * float(v)) for v in data.train.double().var(0))
    # The law that the data are drawn of is below what fits them best, by about half its 13 parameters per n = 1000.
    assert best - 0.03 < after < best + 0.03
    assert best > independent + 0.25
    torch.testing.assert_close(state.parameters["log_sigma"].double(), truth.log_sigma, rtol=0, atol=0.2)


def test_sparsity_pulls_mean_activations_to_the_target(make_recipe: MakeRecipe) -> None:
    means = {}
    for weight in (0.0, 5.0):
        terms = [{"name": "cd"}, {"name": "sparsity", "target": 0.15, "weight": weight}]
        recipe = make_recipe(model={"hidden": 12}, fit={"epochs": 400, "batch_size": 16, "learning_rate": 0.2})
        recipe = recipe.model_copy(update={"objective": {"terms": terms}})
        data = dataset(bars())
        model = _model(recipe, data, _fitted(recipe, data))
        means[weight] = torch.sigmoid(model.tensors()["c"] + bars().double() @ model.tensors()["W"]).mean(0)
    assert float((means[5.0] - 0.15).abs().max()) < 0.02
    assert float((means[0.0] - 0.15).abs().max()) > 0.2


# --- the first parameters ---


def test_training_begins_at_the_datas_means(make_recipe: MakeRecipe) -> None:
    data = dataset(bars()[:5])
    recipe = make_recipe(model={"hidden": 4000, "weight_std": 0.02})
    state = begin(recipe, data, build(recipe.objective))
    means = torch.sigmoid(state.parameters["b"].double())
    torch.testing.assert_close(means, (data.train_means * 5 + 0.5) / 6, rtol=0, atol=1e-6)
    assert not bool(state.parameters["c"].any())
    # Mean and mean square of 36,000 normal numbers: |z| < 5.2, a false alarm once in five million.
    w = state.parameters["W"].double() / 0.02
    assert abs(float(w.mean())) * math.sqrt(w.numel()) < 5.2
    assert abs(float(w.square().mean()) - 1) * math.sqrt(w.numel() / 2) < 5.2


def test_real_visibles_begin_at_their_means_with_the_standard_deviation_asked_for(make_recipe: MakeRecipe) -> None:
    data = clouds(100)
    recipe = make_recipe(model={"family": "dbm", "hidden": [3, 2], "log_sigma": -0.5})
    found = begin(recipe, data, build(recipe.objective)).parameters
    torch.testing.assert_close(found["b0"], data.train_means.float())
    assert found["log_sigma"].tolist() == [-0.5] * 3
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        **{"b0": (3,), "W1": (3, 3), "b1": (3,), "W2": (3, 2), "b2": (2,)},
        "log_sigma": (3,),
    }


def test_labels_begin_at_their_shares(make_recipe: MakeRecipe) -> None:
    data = dataset(bars(), labels=(torch.arange(16) >= 4).long())
    recipe = make_recipe(model={"labels": True})
    found = begin(recipe, data, build(recipe.objective)).parameters
    torch.testing.assert_close(torch.softmax(found["d"].double(), 0), torch.tensor([4.5, 12.5]).double() / 17)
    assert found["U"].shape == (2, 8)


# --- same bits ---


_CENTRED = {"name": "pcd", "chains": 20, "centring": "centred"}
_MLP: dict[str, Any] = {
    "family": "mlp_energy",
    "hidden": None,
    "architecture": {"name": "mlp", "hidden": [6, 5], "activation": "tanh"},
    "prior_std": 2.0,
}
_SMALL = {"name": "mlp", "hidden": [4]}
_PARTS = _MLP | {"family": "adversarial", "latent": 2, "architecture": {"energy": _SMALL, "generator": _SMALL}}
_FAMILIES: dict[str, tuple[Callable[[], Dataset], dict[str, Any], dict[str, Any]]] = {
    "rbm": (lambda: dataset(bars()), {"hidden": 8}, _CENTRED),
    "rbm labelled": (
        labelled_bars,
        {"hidden": 8, "labels": True},
        {"terms": [_CENTRED, {"name": "discriminative", "weight": 0.5}, {"name": "sparsity"}]},
    ),
    "grbm": (lambda: clouds(20), {"family": "grbm", "hidden": 4}, _CENTRED),
    "dbm labelled": (labelled_bars, {"family": "dbm", "hidden": [6, 4], "labels": True}, _CENTRED),
    "dbm real": (lambda: clouds(20), {"family": "dbm", "hidden": [6, 4, 2]}, {"name": "cd", "centring": "enhanced"}),
    "rbm by Adam": (lambda: dataset(bars()), {"hidden": 8}, _CENTRED),
    "mlp by replay": (lambda: clouds(20), _MLP, {"name": "langevin", "steps": 3, "buffer": 30, "data_noise": 0.1}),
    "mlp by persistent chains": (lambda: clouds(20), _MLP, {"name": "langevin", "steps": 3, "start_at": "persistent"}),
    "mlp by nce": (lambda: clouds(20), _MLP, {"name": "nce", "noise": "mixture", "components": 2}),
    "mlp by a flow": (
        lambda: clouds(20),
        _MLP,
        {"name": "flow_contrastive", "flow_layers": 2, "flow_hidden": 3, "flow_steps": 5},
    ),
    "mlp by sliced": (lambda: clouds(20), _MLP, {"name": "sliced"}),
    "grbm by denoising": (lambda: clouds(20), {"family": "grbm", "hidden": 4}, {"name": "denoising"}),
    "mlp against a generator by Adam": (
        lambda: clouds(20),
        _PARTS,
        {"name": "adversarial", "posterior_samples": 3},
    ),
    "jem": (
        lambda: dataset(bars().float() / 2, "unit", labelled_bars().train_labels),
        _MLP | {"family": "jem", "labels": True},
        {"terms": [{"name": "cross_entropy"}, {"name": "langevin", "steps": 2, "buffer": 30, "weight": 0.5}]},
    ),
}


class _CutError(Exception):
    pass


@pytest.mark.parametrize("name", _FAMILIES)
def test_a_run_cut_in_two_ends_with_the_same_bits(make_recipe: MakeRecipe, tmp_path: Path, name: str) -> None:
    make, model, objective_settings = _FAMILIES[name]
    fit: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 5,
        "momentum": 0.5,
        "weight_decay": 1e-3,
        "clip": 0.5,
        "patience": 3,
        "ema": 0.9,
        "spectral_norm": 0.3,
    }
    fit |= {"optimizer": "adam", "learning_rate": 0.01} if "Adam" in name else {}
    recipe = make_recipe(model=model, fit=fit).model_copy(update={"objective": objective_settings})
    data, objective = make(), build(recipe.objective)
    in_epoch = steps_per_epoch(data, recipe.fit)

    def watching(state: FitState) -> None:
        if state.step % in_epoch == 0:
            watch(state, recipe, 1.0 - abs(state.step / in_epoch - 2))  # the best is the second record

    def cut(state: FitState) -> None:
        watching(state)
        if state.step == 2 * in_epoch + 1:  # in the middle of an epoch, after the best record
            raise _CutError

    whole = begin(recipe, data, objective)
    train(recipe, data, objective, whole, watching)
    part = begin(recipe, data, objective)
    with pytest.raises(_CutError):
        train(recipe, data, objective, part, cut)
    states.save(tmp_path, Origin(recipe=recipe, data="", device="cpu", threads=1), part, 1.0)
    again = states.read(tmp_path).fit
    train(recipe, data, objective, again, watching)
    assert again.step == whole.step == 5 * in_epoch  # out of patience
    assert again.watched == whole.watched == [0, 1, 0, -1, -2]
    assert whole.spectra
    for group in ("parameters", "velocity", "memory", "best", "average", "spectra"):
        ours, theirs = getattr(again, group), getattr(whole, group)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), group
    assert set(whole.average) == set(whole.parameters)
    assert whole.result is whole.best
    assert any(not torch.equal(best, whole.shown[name]) for name, best in whole.best.items())


# --- settings of the ascent ---


def test_weight_decay_shrinks_weights_and_leaves_biases(make_recipe: MakeRecipe) -> None:
    norms = []
    for decay in (0.0, 0.5):
        recipe = make_recipe(fit={"epochs": 300, "batch_size": 16, "weight_decay": decay})
        norms.append(float(_fitted(recipe, dataset(bars())).parameters["W"].norm()))
    assert norms[1] < norms[0] / 2


def _first_step(make_recipe: MakeRecipe, **fit: Any) -> dict[str, Tensor]:
    """How far the first step, at learning rate 1, takes each parameter."""
    recipe = make_recipe(fit={"epochs": 1, "batch_size": 16, "learning_rate": 1.0, "schedule": "constant", **fit})
    data = dataset(bars())
    before = begin(recipe, data, build(recipe.objective)).parameters
    return {name: t - before[name] for name, t in _fitted(recipe, data).parameters.items()}


def test_a_gradient_that_is_too_long_is_cut_to_its_largest_norm(make_recipe: MakeRecipe) -> None:
    free = torch.cat([t.flatten() for t in _first_step(make_recipe).values()])
    assert float(free.norm()) > 0.5
    cut = torch.cat([t.flatten() for t in _first_step(make_recipe, clip=0.01).values()])
    torch.testing.assert_close(cut, free * (0.01 / free.norm()), rtol=0, atol=1e-6)
    wide_enough = torch.cat([t.flatten() for t in _first_step(make_recipe, clip=100.0).values()])
    assert torch.equal(wide_enough, free)


@pytest.mark.parametrize(
    "fit",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"clip": 0.01, "weight_decay": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1},
    ],
)
def test_products_left_undone_make_the_same_steps(make_recipe: MakeRecipe, fit: dict[str, Any]) -> None:
    recipe = make_recipe(model={"hidden": 5}, fit={"epochs": 3, "batch_size": 16, "learning_rate": 0.5, **fit})
    data, objective = dataset(bars()), build({"name": "cd", "centring": "centred"})

    class MultipliedOut(type(objective)):  # type: ignore[misc]
        def factored(self, *given: Any) -> Any:
            gradient, memory = super().factored(*given)
            return dense(gradient), memory

    ends = []
    for each in (objective, MultipliedOut(**objective.model_dump())):
        state = begin(recipe, data, each)
        train(recipe, data, each, state, lambda _state: None)
        ends.append(state.parameters)
    for name, parameter in ends[0].items():
        torch.testing.assert_close(parameter, ends[1][name], rtol=1e-4, atol=1e-6)


def _norms(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Spectral norms of weights as matrices."""
    return {name: float(torch.linalg.matrix_norm(t.flatten(1), 2)) for name, t in parameters.items() if t.ndim > 1}


@pytest.mark.parametrize(
    ("limit", "limits"),
    [
        (0.4, {"body.1.weight": 0.4, "body.3.weight": 0.4, "head.weight": 0.4}),
        ({"body": 0.4, "body.3.weight": 0.3}, {"body.1.weight": 0.4, "body.3.weight": 0.3}),
    ],
)
def test_spectral_norms_stay_within_their_limits(
    make_recipe: MakeRecipe, limit: float | dict[str, float], limits: dict[str, float]
) -> None:
    fit = {"epochs": 20, "batch_size": 10, "learning_rate": 0.02, "optimizer": "adam"}
    architecture = {"name": "conv", "channels": [4, 3]}
    images = dataset(bars().float(), "unit")
    model = {"family": "conv_energy", "hidden": None, "architecture": architecture}
    settings = {"name": "langevin", "steps": 1, "start_at": "noise"}
    ends = []
    for own in (None, limit):
        recipe = make_recipe(model=model, fit=fit | {"spectral_norm": own}).model_copy(update={"objective": settings})
        ends.append(_norms(_fitted(recipe, images).parameters))
    free, held = ends
    for name, most in limits.items():
        assert free[name] > 1.2 * most
        assert 0.95 * most < held[name] < 1.01 * most  # the iteration has converged
    assert all(held[name] > 0.5 for name in set(held) - set(limits))


def test_a_weight_within_its_limit_is_left_as_it_is(make_recipe: MakeRecipe) -> None:
    free, held = _first_step(make_recipe), _first_step(make_recipe, spectral_norm=1e3)
    assert all(torch.equal(free[name], held[name]) for name in free)


def test_rates_are_factors_and_0_holds_a_parameter_fixed(make_recipe: MakeRecipe) -> None:
    free, own = _first_step(make_recipe), _first_step(make_recipe, rates={"W": 0.0, "b": 0.5}, weight_decay=0.1)
    assert not bool(own["W"].any())
    torch.testing.assert_close(own["b"], free["b"] / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(own["c"], free["c"])
    recipe = make_recipe(fit={"epochs": 5, "batch_size": 16, "rates": {"c": 0.0}, "momentum": 0.9})
    assert not bool(_fitted(recipe, dataset(bars())).parameters["c"].any())


def test_a_rate_is_that_of_a_part_of_the_model_unless_a_parameter_has_its_own(make_recipe: MakeRecipe) -> None:
    def moved(rates: dict[str, float]) -> dict[str, Tensor]:
        recipe = _network_recipe(
            make_recipe,
            {"name": "sliced"},
            fit={"epochs": 1, "batch_size": 20, "learning_rate": 0.1, "schedule": "constant", "rates": rates},
        )
        data, objective = clouds(20), build(recipe.objective)
        before = begin(recipe, data, objective).parameters
        return {name: t - before[name] for name, t in _fitted(recipe, data).parameters.items()}

    free, own = moved({}), moved({"body": 0.0, "body.1.weight": 0.5})
    torch.testing.assert_close(own["body.1.weight"], free["body.1.weight"] / 2, rtol=0, atol=1e-6)
    assert not bool(own["body.1.bias"].any())
    assert torch.equal(own["head.weight"], free["head.weight"])


def test_adam_is_that_of_torch(make_recipe: MakeRecipe) -> None:
    fit = {"epochs": 10, "batch_size": 16, "learning_rate": 0.05, "schedule": "constant", "optimizer": "adam"}
    recipe, data = make_recipe(fit=fit), dataset(bars())
    objective = build(recipe.objective)
    first = begin(recipe, data, objective)
    theirs = {name: t.clone() for name, t in first.parameters.items()}
    optimizer = torch.optim.Adam(list(theirs.values()), lr=0.05, maximize=True)
    of, memory = manifest(recipe, data), first.memory
    for step in range(10):
        rows = data.order(step, recipe.seed)
        batch = Batch(data.batch(rows, step, recipe.seed))
        gradient, memory = objective.gradient(model_of(of, theirs), batch, Draws(recipe.seed, step), memory)
        for name, t in theirs.items():
            t.grad = gradient[name]
        optimizer.step()
    ours = _fitted(recipe, data).parameters
    for name, t in theirs.items():
        torch.testing.assert_close(ours[name], t, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("figure", "figures", "stops_after", "best"),
    [
        ("log_likelihood_validation", [-5, -4, -3, -2, -1], None, 5),
        ("log_likelihood_validation", [-5, -3, -4, -3, -2], 4, 2),  # as good as the best is not better
        ("pseudo_log_likelihood", [-5, -6, -4, -5, -5], 5, 3),
        ("classification_error_validation", [0.5, 0.1, 0.2, 0.3, 0.0], 4, 2),
    ],
)
def test_patience_stops_where_the_figure_did_not_improve_and_keeps_the_best(
    make_recipe: MakeRecipe, figure: str, figures: list[float], stops_after: int | None, best: int
) -> None:
    recipe = make_recipe(fit={"epochs": 5, "batch_size": 16, "patience": 2})
    recipe = recipe.model_copy(update={"monitor": recipe.monitor.model_copy(update={"watch": figure})})
    data, objective = dataset(bars()), build(recipe.objective)
    seen: list[Tensor] = []

    def after_step(state: FitState) -> None:
        watch(state, recipe, figures[state.step - 1])
        seen.append(state.parameters["W"].clone())

    state = begin(recipe, data, objective)
    train(recipe, data, objective, state, after_step)
    assert state.step == (stops_after or 5)
    assert out_of_patience(state, recipe) is (stops_after is not None)
    assert torch.equal(state.best["W"], seen[best - 1])


def test_the_running_mean_is_what_it_says_and_what_is_judged(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(fit={"epochs": 5, "batch_size": 16, "ema": 0.7})
    data, objective = dataset(bars()), build(recipe.objective)
    state = begin(recipe, data, objective)
    expected, seen = {n: t.clone() for n, t in state.parameters.items()}, list[dict[str, Tensor]]()

    def after_step(now: FitState) -> None:
        seen.append({n: t.clone() for n, t in now.parameters.items()})

    train(recipe, data, objective, state, after_step)
    for parameters in seen:
        expected = {n: 0.7 * t + 0.3 * parameters[n] for n, t in expected.items()}
    for name, mean in expected.items():
        torch.testing.assert_close(state.average[name], mean)
    assert state.result is state.shown is state.average
    plain = _fitted(make_recipe(fit={"epochs": 5, "batch_size": 16}), data)
    assert plain.result is plain.parameters
    assert all(torch.equal(plain.parameters[name], t) for name, t in state.parameters.items())  # it changes no step


# --- networks ---


def _network_recipe(make_recipe: MakeRecipe, objective: dict[str, Any], **sections: Any) -> Recipe:
    return make_recipe(model=_MLP, **sections).model_copy(update={"objective": objective})


def test_a_network_begins_as_torch_makes_it_a_function_of_the_seed_alone(make_recipe: MakeRecipe) -> None:
    data = clouds(50)

    def first(seed: int) -> dict[str, Tensor]:
        recipe = _network_recipe(make_recipe, {"name": "sliced"}, seed=seed)
        return begin(recipe, data, build(recipe.objective)).parameters

    before = torch.random.get_rng_state()
    found, again, other = first(3), first(3), first(4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(t, again[name]) for name, t in found.items())
    assert not any(torch.equal(t, other[name]) for name, t in found.items())
    torch.manual_seed(3)
    theirs = torch.nn.Linear(3, 6)
    torch.random.set_rng_state(before)
    assert torch.equal(found["body.1.weight"], theirs.weight)
    assert torch.equal(found["body.1.bias"], theirs.bias)
    assert found["head.weight"].shape == (1, 5)


def test_a_network_whose_outputs_are_an_image_begins_too(make_recipe: MakeRecipe) -> None:
    architecture = {"name": "dilated", "channels": 4, "dilations": [1]}
    model = {"family": "score_network", "hidden": None, "architecture": architecture, "sigmas": [1.0, 0.1]}
    recipe = make_recipe(model=model).model_copy(update={"objective": {"name": "denoising"}})
    found = begin(recipe, dataset(bars().float(), "unit"), build(recipe.objective)).parameters
    assert found["head.weight"].shape == (1, 4, 3, 3)


def test_every_network_of_a_model_begins_as_torch_makes_it(make_recipe: MakeRecipe) -> None:
    make, model, objective = _FAMILIES["mlp against a generator by Adam"]
    recipe = make_recipe(model=model | {"log_sigma": -1.5}, seed=3).model_copy(update={"objective": objective})
    found = begin(recipe, make(), build(objective)).parameters
    torch.manual_seed(3)
    theirs = [torch.nn.Linear(*size) for size in ((3, 4), (4, 1), (2, 4), (4, 3))]
    for layer, name in zip(theirs, ("energy.body.1", "energy.head", "generator.body.1", "generator.head"), strict=True):
        assert torch.equal(found[f"{name}.weight"], layer.weight)
        assert torch.equal(found[f"{name}.bias"], layer.bias)
    assert float(found["generator.log_std"]) == -1.5
    config = manifest(recipe, make()).config
    assert config["architecture"]["generator"] == {"name": "mlp", "hidden": [4], "activation": "swish"}
    assert (config["latent"], config["prior_std"]) == (2, 2.0)


def test_the_manifest_says_how_the_network_is_made(make_recipe: MakeRecipe) -> None:
    model = _MLP | {"architecture": {"hidden": [6]}, "sigmas": {"largest": 4.0, "smallest": 0.25, "number": 5}}
    config = manifest(make_recipe(model=model), clouds(50)).config
    assert config["architecture"] == {"name": "mlp", "hidden": [6], "activation": "swish"}
    assert config["prior_std"] == 2.0
    assert config["sigmas"] == pytest.approx([4, 2, 1, 0.5, 0.25])
    listed = manifest(make_recipe(model=_MLP | {"sigmas": [3.0, 1.0]}), clouds(50)).config
    assert listed["sigmas"] == [3.0, 1.0]


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "sliced"},
        {"name": "nce", "ratio": 2},
        {"name": "langevin", "steps": 10, "step_size": 0.3, "start_at": "data"},
    ],
    ids=lambda o: str(o["name"]),
)
def test_every_way_takes_a_grbm_close_to_the_law_of_the_data(
    make_recipe: MakeRecipe, objective: dict[str, Any]
) -> None:
    data, truth = clouds(), grbm()
    fit = {"epochs": 60, "batch_size": 100, "learning_rate": 0.05, "optimizer": "adam"}
    recipe = make_recipe(model={"family": "grbm", "hidden": 4, "weight_std": 0.1}, fit=fit)
    recipe = recipe.model_copy(update={"objective": objective})
    best, after = (
        _log_likelihood(truth, data.train),
        _log_likelihood(_model(recipe, data, _fitted(recipe, data)), data.train),
    )
    independent = -sum(0.5 * math.log(2 * math.pi * math.e * float(v)) for v in data.train.double().var(0))
    assert best > independent + 0.25
    assert best - 0.1 < after < best + 0.03


# --- refusals ---


def test_a_batch_larger_than_the_data_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"fit\.batch_size = 50, but there are only 16 training examples"):
        steps_per_epoch(dataset(bars()), make_recipe().fit)


def test_divergence_is_told_apart_with_what_to_lower(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(fit={"epochs": 50, "batch_size": 16, "learning_rate": 1e38, "momentum": 0.9})
    with pytest.raises(
        DivergenceError, match=r"no longer finite after step \d+\. Lower fit\.learning_rate \(now 1e\+38\)"
    ):
        _fitted(recipe, dataset(bars()))


@pytest.mark.parametrize(
    ("data", "model", "objective", "expected"),
    [
        (bars, {"family": "rbmm"}, {}, r"model\.family: 'rbmm' is unknown; expected one of .*rbm"),
        (bars, {"family": "grbm"}, {}, r"grbm has visible units that are real; data\.domain is binary"),
        (clouds, {"family": "rbm"}, {}, r"rbm has visible units that are binary or unit; data\.domain is real"),
        (bars, {"labels": True}, {}, r"model\.labels: toy has no labels"),
        (bars, {"family": "bm", "hidden": None, "labels": True}, {}, r"model\.labels: bm has no label units"),
        (bars, {"hidden": None}, {}, r"model\.hidden: say how many hidden units there are"),
        (bars, {"hidden": [4, 3]}, {}, r"model\.hidden: rbm has one hidden layer; found \[4, 3\]"),
        (bars, {"family": "bm"}, {}, r"model\.hidden: bm has no hidden units"),
        (bars, {"family": "dbm", "hidden": None}, {}, r"model\.hidden: .*\[D, H1, \.\., Hk\]"),
        (bars, {"family": "bm", "hidden": None}, {"name": "sparsity"}, r"sparsity does not train models of family bm"),
        (bars, {"architecture": {"name": "mlp"}}, {}, r"model\.architecture: rbm is no network"),
        (bars, {"sigmas": [1.0]}, {}, r"model\.sigmas: rbm is no network"),
        (clouds, _MLP | {"architecture": None}, {}, r"model: config\.architecture must say how the network is made"),
        (clouds, _MLP | {"architecture": {"name": "conv"}}, {}, r"model: config\.architecture\.name is 'conv'"),
        (clouds, _MLP | {"architecture": {"width": 3}}, {}, r"model: config\.architecture: width: Extra inputs"),
        (clouds, _MLP | {"hidden": 3}, {"name": "sliced"}, r"model\.hidden: mlp_energy is a network; say how"),
        (clouds, _MLP | {"family": "jem"}, {"name": "langevin"}, r"model: a jem has classes"),
        (clouds, _MLP | {"latent": 3}, {"name": "sliced"}, r"model\.latent: mlp_energy has no generator"),
        (clouds, _PARTS | {"latent": None}, {"name": "sliced"}, r"model: config\.latent must say"),
        (clouds, _PARTS | {"hidden": 3}, {"name": "sliced"}, r"model\.hidden: adversarial is a network"),
        (
            clouds,
            _PARTS | {"architecture": {"energy": _SMALL}},
            {"name": "sliced"},
            r"architecture\.generator must say",
        ),
        (
            clouds,
            _PARTS | {"architecture": {"energy": _SMALL, "generator": _SMALL, "critic": _SMALL}},
            {"name": "sliced"},
            r"model\.architecture: adversarial has no critic",
        ),
        (clouds, _MLP, {"name": "adversarial"}, r"adversarial does not train models of family mlp_energy"),
        (clouds, _MLP, {"name": "pcd"}, r"pcd does not train models of family mlp_energy"),
        (bars, {}, {"name": "discriminative"}, r"discriminative does not train models of family rbm without labels"),
        (bars, {}, {"terms": [{"name": "cd"}, {"name": "discriminative"}]}, r"discriminative does not train models"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_the_recipes_words(
    make_recipe: MakeRecipe,
    data: Callable[[], Tensor | Dataset],
    model: dict[str, Any],
    objective: dict[str, Any],
    expected: str,
) -> None:
    found = data()
    recipe = make_recipe(model=model)
    recipe = recipe.model_copy(update={"objective": objective or recipe.objective})
    with pytest.raises(RecipeError, match=expected):
        begin(recipe, found if isinstance(found, Dataset) else dataset(found), build(recipe.objective))


def test_a_rate_of_a_parameter_that_there_is_not_is_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(fit={"rates": {"V": 0.5}})
    with pytest.raises(RecipeError, match=r"fit\.rates: rbm has no V; it has W, b, c"):
        begin(recipe, dataset(bars()), build(recipe.objective))
    recipe = make_recipe(fit={"spectral_norm": {"W": 1.0, "body": 1.0}})
    with pytest.raises(RecipeError, match=r"fit\.spectral_norm: rbm has no body; it has W, b, c"):
        begin(recipe, dataset(bars()), build(recipe.objective))


def test_labels_in_the_data_do_not_disturb_a_model_without_label_units(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective={"name": "pcd", "chains": 20, "centring": "centred"}, fit={"batch_size": 8})
    with_labels, without = labelled_bars(), replace(labelled_bars(), train_labels=None, classes=None)
    ours, theirs = _fitted(recipe, with_labels), _fitted(recipe, without)
    assert all(torch.equal(ours.parameters[name], theirs.parameters[name]) for name in ours.parameters)
    assert set(ours.memory) == set(theirs.memory)
