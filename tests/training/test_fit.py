from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.families.rbm import RBM
from models.numerics import all_binary_states
from training.config import Recipe
from training.data import Dataset
from training.errors import DataError, DivergenceError
from training.fit import FitState, begin, steps_per_epoch, train
from training.likelihood import evaluate, free_energies, monitor
from training.objective import build

_CPU = torch.device("cpu")


def _bars() -> Tensor:
    """The bars and stripes of 3 x 3 (MacKay 2003), 8 of each: the two blank images come twice."""
    rows = all_binary_states(3, 0, 8, _CPU).byte()
    return torch.cat((rows.repeat_interleave(3, 1), rows.repeat(1, 3)))


def _dataset(examples: Tensor) -> Dataset:
    return Dataset(
        name="bars",
        shape=(3, 3),
        binarization="threshold",
        train=examples,
        validation=examples,
        test=examples,
        grey=None,
        train_means=examples.double().mean(0),
    )


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _log_likelihood(model: RBM, examples: Tensor) -> float:
    return -float(free_energies(model, examples).mean()) - model.log_partition()


@pytest.mark.parametrize(("centring", "close"), [("none", 1.0), ("centred", 0.4), ("enhanced", 0.4)])
@pytest.mark.parametrize("name", ["cd", "pcd"])
def test_training_takes_the_exact_log_likelihood_close_to_the_datas_entropy(
    make_recipe: Callable[..., Recipe], name: str, centring: str, close: float
) -> None:
    bars = _bars()
    recipe = make_recipe(model={"hidden": 12}, fit={"epochs": 800, "batch_size": 16, "learning_rate": 1.0})
    data, objective = _dataset(bars), build({"name": name, "centring": centring, "steps": 5})
    state = begin(recipe, data, objective)
    before = _log_likelihood(state.model(), bars)
    train(recipe, data, objective, state, lambda _state: None)
    after = _log_likelihood(state.model(), bars)
    entropy = -(12 * math.log(1 / 16) + 4 * math.log(2 / 16)) / 16
    # Independent units, where training starts, are at -9 log 2 = -6.2; the bound is -entropy = -2.6. The plain gradient
    # is slower: units that are 1 half of the time are where centring pays.
    assert before < -6
    assert -entropy - close < after < -entropy


def test_training_begins_at_the_datas_means(make_recipe: Callable[..., Recipe]) -> None:
    data = _dataset(_bars()[:5])
    recipe = make_recipe(model={"hidden": 4000, "weight_std": 0.02})
    state = begin(recipe, data, build(recipe.objective))
    means = torch.sigmoid(state.parameters["b"].double())
    torch.testing.assert_close(means, (data.train_means * 5 + 0.5) / 6, rtol=0, atol=1e-6)
    assert not bool(state.parameters["c"].any())
    # Mean and mean square of 36,000 normal numbers: |z| < 5.2, a false alarm once in five million.
    w = state.parameters["W"].double() / 0.02
    assert abs(float(w.mean())) * math.sqrt(w.numel()) < 5.2
    assert abs(float(w.square().mean()) - 1) * math.sqrt(w.numel() / 2) < 5.2


def test_a_run_cut_in_two_ends_with_the_same_bits(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(
        objective={"centring": "centred"},
        fit={"epochs": 6, "batch_size": 5, "momentum": 0.5, "weight_decay": 1e-3},
    )
    data, objective = _dataset(_bars()), build(recipe.objective)
    whole = begin(recipe, data, objective)
    train(recipe, data, objective, whole, lambda _state: None)

    class _CutError(Exception):
        pass

    def cut(state: FitState) -> None:
        if state.step == 7:  # in the middle of an epoch
            raise _CutError

    part = begin(recipe, data, objective)
    with pytest.raises(_CutError):
        train(recipe, data, objective, part, cut)
    train(recipe, data, objective, part, lambda _state: None)
    assert part.step == whole.step == 18
    assert all(torch.equal(part.parameters[name], whole.parameters[name]) for name in ("W", "b", "c"))


def test_weight_decay_shrinks_weights_and_leaves_biases(make_recipe: Callable[..., Recipe]) -> None:
    norms = []
    for decay in (0.0, 0.5):
        recipe = make_recipe(fit={"epochs": 300, "batch_size": 16, "weight_decay": decay})
        data, objective = _dataset(_bars()), build(recipe.objective)
        state = begin(recipe, data, objective)
        train(recipe, data, objective, state, lambda _state: None)
        norms.append(float(state.parameters["W"].norm()))
    assert norms[1] < norms[0] / 2


def test_a_batch_larger_than_the_data_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(DataError, match=r"fit\.batch_size = 50, but there are only 16 training examples"):
        steps_per_epoch(_dataset(_bars()), make_recipe().fit)


def test_divergence_is_told_apart_with_what_to_lower(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(fit={"epochs": 50, "batch_size": 16, "learning_rate": 1e38, "momentum": 0.9})
    data, objective = _dataset(_bars()), build(recipe.objective)
    with pytest.raises(
        DivergenceError, match=r"no longer finite after step \d+\. Lower fit\.learning_rate \(now 1e\+38\)"
    ):
        train(recipe, data, objective, begin(recipe, data, objective), lambda _state: None)


def _trained(make_recipe: Callable[..., Recipe]) -> tuple[RBM, Dataset, Recipe]:
    recipe = make_recipe(
        model={"hidden": 12},
        objective={"chains": 100, "centring": "centred"},
        fit={"epochs": 2000, "batch_size": 16, "learning_rate": 0.1},
        likelihood={"chains": 400, "temperatures": 200, "raise_examples": 8, "raise_runs": 100},
    )
    data, objective = _dataset(_bars()), build(recipe.objective)
    state = begin(recipe, data, objective)
    train(recipe, data, objective, state, lambda _state: None)
    return state.model(), data, recipe


def test_every_estimate_of_log_z_agrees_with_enumeration(make_recipe: Callable[..., Recipe]) -> None:
    model, data, recipe = _trained(make_recipe)
    found = evaluate(model, data, recipe.likelihood, 3, _silent)
    m, exact = found.metrics, model.log_partition()
    assert found.log_partition.method == "exact"
    assert found.log_partition.value == m["log_partition_exact"] == exact
    # Errors that are close to normal, each with its own standard error: |z| < 5 is a false alarm once in a million.
    for method in ("ais", "reverse_ais"):
        assert abs(m[f"log_partition_{method}"] - exact) < 5 * m[f"log_partition_{method}_stderr"]
    # RAISE's own bias, half the variance of its mean weight, is far below this at 100 runs.
    assert abs(m["log_partition_raise"] - exact) < 0.1
    mean = float(free_energies(model, data.test).mean())
    assert m["test_log_likelihood_exact"] == pytest.approx(-mean - exact, abs=1e-9)
    assert m["test_log_likelihood_optimistic"] == pytest.approx(-mean - m["log_partition_ais"], abs=1e-9)
    assert m["test_log_likelihood_pessimistic"] == pytest.approx(-mean - m["log_partition_reverse_ais"], abs=1e-9)
    assert (m["test_examples"], m["raise_examples"], m["binarization"]) == (16, 8, "threshold")


def test_monitors_report_what_enumeration_says(make_recipe: Callable[..., Recipe]) -> None:
    model, data, recipe = _trained(make_recipe)
    v = data.validation.double()
    conditional = torch.zeros(len(v), 9, dtype=torch.float64)
    for unit in range(9):
        flipped = v.clone()
        flipped[:, unit] = 1 - v[:, unit]
        conditional[:, unit] = -torch.log1p(torch.exp(free_energies(model, v) - free_energies(model, flipped)))
    found = [monitor(model, data, recipe.monitor, 0, step) for step in range(200)]
    assert found[0]["log_likelihood_validation"] == pytest.approx(_log_likelihood(model, data.validation), abs=1e-9)
    estimates = torch.tensor([f["pseudo_log_likelihood"] for f in found], dtype=torch.float64)
    stderr = float(estimates.std()) / math.sqrt(len(estimates))
    assert abs(float(estimates.mean() - conditional.sum(1).mean())) < 5.2 * stderr
