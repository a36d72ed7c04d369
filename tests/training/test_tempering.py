"""Tempered PCD: every replica reaches its own law, and what is exchanged leaves the product of all laws unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.layered_family import LayeredModel
from models.layered_path import LayeredPath
from tests.models import cases
from tests.models.cases import Case
from tests.training import toys
from tests.training.exact import LAYERED, batch_of, law, layered, with_tensors
from training import state
from training.config import validated
from training.fit import begin, train
from training.objective import Batch, Draws, build
from training.objectives.tempering import Tempering
from training.phases import Phases
from training.state import Origin

_CASES = ["rbm labelled", "grbm", "dbm deep labelled", "dbm real labelled"]


def _base(of: Case) -> dict[str, Tensor]:
    """Base rates of the visibles, and of the labels where there are some."""
    base = {"visible": torch.linspace(-1, 1, of.visibles).double()}
    return base | ({"label": torch.log(torch.arange(1, 4).double() / 6)} if layered(of).class_count else {})


def _whole(of: Case) -> dict[str, Tensor]:
    """The same of all even layers."""
    machine = layered(of).machine
    return {b: _base(of).get(b, torch.zeros(machine.units(b)).double()) for b in machine.side(False)}


def _at(of: Case, beta: float) -> LayeredModel:
    """The machine whose law is f_beta."""
    phases = Phases(layered(of))
    names, base = phases.names, _whole(of)
    tensors = dict(of.model.tensors())
    for role, name in names.items():
        block = role.removeprefix("bias of ")
        if role != "log_sigma":
            tensors[name] = torch.lerp(base.get(block, torch.zeros(())).double(), tensors[name], beta)
    return with_tensors(of, tensors)


def _all_states(of: Case) -> dict[str, Tensor]:
    """Every joint state; real visibles take three values each."""
    values = {b: (-1.0, 0.3, 2.0) if v is None else v for b, v in of.values.items()}
    return cases.product({b: cases.states(values[b], layered(of).block_units(b)) for b in layered(of).blocks})


class _RolesSwapped(Tempering):
    def _log_ratios(self, betas: Tensor, gains: Tensor) -> Tensor:
        return -super()._log_ratios(betas, gains)


class _BaseForgotten(Tempering):
    def _gains(self, phases: Phases, base: Mapping[str, Tensor], *states: Any) -> Tensor:
        return super()._gains(phases, {b: torch.zeros_like(x) for b, x in base.items()}, *states)


@pytest.mark.parametrize("name", LAYERED)
def test_what_an_exchange_is_decided_by_is_the_ratio_of_the_products_of_the_laws(name: str) -> None:
    of = cases.case(name, hidden=3)
    states, objective = _all_states(of), Tempering(replicas=2, lowest=0.3)
    pick = torch.randperm(len(states["visible"]), generator=torch.Generator().manual_seed(0))[:60]
    states = {b: x[pick] for b, x in states.items()}
    phases, betas = Phases(layered(of)), torch.tensor([1.0, 0.3], dtype=torch.float64)
    odd = {b: states[b] for b in phases.machine.side(True)}
    even = {b: states[b] for b in phases.machine.side(False)}
    inputs = {b: phases.machine.inputs(b, even) for b in odd}
    gains = objective._gains(phases, _whole(of), even, odd, inputs)
    first, second = torch.cartesian_prod(torch.arange(60), torch.arange(60)).T
    found = objective._log_ratios(betas, torch.stack((gains[first], gains[second])))[0]
    cold, hot = (-_at(of, float(beta)).joint_energy(states) for beta in betas)
    expected = cold[second] + hot[first] - cold[first] - hot[second]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for mutant in (_RolesSwapped(replicas=2, lowest=0.3), _BaseForgotten(replicas=2, lowest=0.3)):
        gains = mutant._gains(phases, _whole(of), even, odd, inputs)
        wrong = mutant._log_ratios(betas, torch.stack((gains[first], gains[second])))[0]
        assert float((wrong - expected).abs().max()) > 0.1


@pytest.mark.parametrize("name", LAYERED)
def test_the_replicas_laws_are_those_of_the_annealing_path(name: str) -> None:
    of = cases.case(name, hidden=3)
    machine = layered(of).machine
    even = {b: x for b, x in _all_states(of).items() if b in machine.side(False)}
    path = LayeredPath(machine, _whole(of))
    for beta in (0.0, 0.3, 1.0):
        tempered = LayeredPath(_at(of, beta).machine, _whole(of))
        one = path.log_density(even, path.activations(even), beta)
        torch.testing.assert_close(one, tempered.log_density(even, tempered.activations(even), 1.0), rtol=0, atol=1e-4)


_CHAINS, _REPLICAS = 20_000, 3


def _largest_z(of: Case, objective: Tempering) -> float:
    """How far the odd layers of every replica are from f_beta's, in standard errors, the largest of all units."""
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    memory = objective.start(model, _base(of), 1)
    batch = Batch(batch_of(of).visible.float(), batch_of(of).labels)
    for step in range(6):
        _, memory = objective.gradient(model, batch, Draws(3, step), memory)
    worst = 0.0
    for r, beta in enumerate(torch.linspace(1, objective.lowest, _REPLICAS).tolist()):
        rows, p = law(_at(of, beta))
        for block in model.machine.side(True):
            mean = p @ rows[block]
            found = memory[f"chains.{block}"][r * _CHAINS : (r + 1) * _CHAINS].double().mean(0)
            worst = max(worst, float(((found - mean) / torch.sqrt(mean * (1 - mean) / _CHAINS)).abs().max()))
    return worst


@pytest.mark.parametrize("lowest", [0.0, 0.4])
@pytest.mark.parametrize("name", _CASES)
def test_every_replica_reaches_its_law_and_exchanges_decided_wrongly_do_not(name: str, lowest: float) -> None:
    of = cases.case(name, hidden=5, seed=1, scale=0.7)
    settings = {"chains": _CHAINS, "replicas": _REPLICAS, "lowest": lowest, "steps": 5}
    # |z| beyond 6.2 at any of 15 means: a false alarm less often than once in 10^8.
    assert _largest_z(of, Tempering(**settings)) < 6.2
    assert _largest_z(of, _RolesSwapped(**settings)) > 6.2 + 3.1


def test_the_gradient_takes_the_replica_at_beta_1() -> None:
    of = cases.case("rbm", hidden=5, seed=1, scale=0.7)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    objective = Tempering(chains=_CHAINS, replicas=2, lowest=0.0, steps=20)
    batch = Batch(batch_of(of).visible.float())
    gradient, _ = objective.gradient(model, batch, Draws(3, 0), objective.start(model, _base(of), 1))
    rows, p = law(layered(of))
    mean = p @ rows["visible"]
    found = batch.visible.mean(0) - gradient["b"]
    assert float(((found - mean) / torch.sqrt(mean * (1 - mean) / _CHAINS)).abs().max()) < 6.2
    rows, p = law(_at(of, 0.0))
    mean = p @ rows["visible"]
    assert float(((found - mean) / torch.sqrt(mean * (1 - mean) / _CHAINS)).abs().max()) > 6.2 + 3.1


@pytest.mark.parametrize(
    "objective", [{"name": "tempering", "replicas": 4}, {"name": "trajectory", "exchange_every": 3, "acceptance": 0.9}]
)
def test_a_run_read_back_goes_on_with_the_same_bits(tmp_path: Path, objective: dict[str, Any]) -> None:
    recipe = validated(
        {
            "name": "toy",
            "data": {"dataset": "digits"},
            "model": {"hidden": 6},
            "objective": {**objective, "chains": 20, "centring": "centred"},
            "fit": {"epochs": 200, "batch_size": 8, "learning_rate": 0.5},
        },
        "test",
    )
    data, built = toys.dataset(toys.bars()), build(recipe.objective)
    origin = Origin(recipe=recipe, data="toy", device="cpu", threads=1)
    whole = begin(recipe, data, built)

    def save_once(fitted: Any) -> None:
        if fitted.step == 237:
            state.save(tmp_path, origin, fitted, 0.0)

    train(recipe, data, built, whole, save_once)
    again = state.read(tmp_path).fit
    assert again.step == 237
    train(recipe, data, built, again, lambda fitted: None)
    for one, other in ((whole.parameters, again.parameters), (whole.memory, again.memory)):
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
    if objective["name"] == "trajectory":
        assert len(whole.memory["ladder.log_ratio"]) > 2  # saved models after the first, some of them after the cut
