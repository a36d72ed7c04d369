"""Annealed importance sampling of p~(v): against sums over every hidden state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.layered_family import LayeredModel
from models.layered_posterior import annealed
from tests.models.cases import case, names, some_visibles
from tests.models.layered_reference import Reference

Z_LIMIT = 4.9  # a false alarm in a million
DEEP = names(lambda of: of.model.name == "dbm")


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("temperatures", [1, 7])
def test_the_mean_weight_is_unbiased_for_the_unnormalized_density(name: str, temperatures: int) -> None:
    of = case(name, 4, 3, scale=1.5)
    assert isinstance(of.model, LayeredModel)
    x, runs = some_visibles(of, 3, seed=5), 20_000
    found, stderr = annealed(of.model.machine, x, runs, temperatures, seed=7)
    exact = torch.from_numpy(-Reference.of(of).energy(x))
    ratio = torch.expm1(found - exact)
    assert bool((stderr > 0).all())
    assert bool((ratio.abs() < Z_LIMIT * stderr * torch.exp(found - exact)).all())


@pytest.mark.parametrize("name", DEEP)
def test_at_one_temperature_the_log_weights_average_to_the_variational_bound(name: str) -> None:
    # log weight = log p~(v, h) - log q(h), h from q, but for the odd blocks, which are summed out: no lower than that.
    of = case(name, 4, 3, scale=1.5)
    assert isinstance(of.model, LayeredModel)
    machine, x = of.model.machine, some_visibles(of, 2, seed=5)
    each = torch.stack([annealed(machine, x, 1, 1, seed)[0] for seed in range(200)])
    stderr = each.std(0) / math.sqrt(len(each))
    bound, exact = machine.bound(x, machine.mean_field(x)), -Reference.of(of).energy(x)
    assert bool((each.mean(0) > bound - Z_LIMIT * stderr).all())
    assert bool((each.mean(0) < torch.from_numpy(exact) + Z_LIMIT * stderr).all())


def test_with_temperatures_the_estimate_rises_from_the_bound_to_the_exact_value() -> None:
    of = case("dbm", 6, 5, scale=4.0)
    assert isinstance(of.model, LayeredModel)
    machine, x = of.model.machine, some_visibles(of, 8, seed=5).repeat(250, 1)
    exact = -Reference.of(of).energy(x).mean()
    gaps = [exact - float(annealed(machine, x, 1, count, seed=3)[0].mean()) for count in (1, 10, 300)]
    bound = exact - float(machine.bound(x, machine.mean_field(x)).mean())
    assert bound > gaps[0] > gaps[1] > abs(gaps[2])
    assert abs(gaps[2]) < bound / 20


def test_the_visibles_own_term_and_a_given_seed_are_what_they_say() -> None:
    of = case("dbm labelled", 4, 3)
    assert isinstance(of.model, LayeredModel)
    machine, x = of.model.machine, some_visibles(of, 3, seed=5)
    one, same, other = (annealed(machine, x, 5, 20, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    shift = torch.linspace(-2, 2, x.shape[1], dtype=x.dtype)
    moved = replace(machine, biases=(machine.biases[0] + shift, *machine.biases[1:]))
    np.testing.assert_allclose(annealed(moved, x, 5, 20, 1)[0] - one, x @ shift, atol=1e-9)


def test_of_one_hidden_layer_without_labels_it_is_exact_at_once() -> None:
    of = case("rbm", 4, 3)
    assert isinstance(of.model, LayeredModel)
    x = some_visibles(of, 3, seed=5)
    np.testing.assert_allclose(annealed(of.model.machine, x, 2, 1, 0)[0], -of.model.energy(x), atol=1e-12)
    np.testing.assert_allclose(annealed(of.model.machine, x, 2, 3, 0)[0], -Reference.of(of).energy(x), atol=1e-12)
