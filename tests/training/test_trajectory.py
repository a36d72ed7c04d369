"""Trajectory tempering: exchanges against enumeration, every saved model's chains at its law, log Z along training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.estimator import LogPartition
from models.layered_family import LayeredModel
from tests.models import cases
from tests.models.cases import Case
from tests.training import toys
from tests.training.exact import LAYERED, batch_of, law, layered, with_tensors
from training.config import MonitorSettings, validated
from training.data import Dataset
from training.fit import FitState, begin, manifest, model_of, train
from training.ladder import Crowd, Ladder, Meeting, bennett, bridge, overlap
from training.likelihood import monitor
from training.objective import Batch, Draws, Memory, build
from training.objectives.trajectory import Trajectory
from training.phases import Phases


def _other(of: Case) -> LayeredModel:
    """Another model of the same kind."""
    tensors = dict(of.model.tensors())
    return with_tensors(
        of, {n: t + cases.normal(tuple(t.shape), 90 + k, 0.3) for k, (n, t) in enumerate(tensors.items())}
    )


def _even_states(of: Case, count: int = 40) -> dict[str, Tensor]:
    """States of the even layers; real visibles take three values each."""
    machine = layered(of).machine
    values = {b: (-1.0, 0.3, 2.0) if v is None else v for b, v in of.values.items()}
    states = cases.product({b: cases.states(values[b], machine.units(b)) for b in machine.side(False)})
    some = torch.randperm(len(states["visible"]), generator=torch.Generator().manual_seed(0))[:count]
    return {b: x[some] for b, x in states.items()}


def _log_marginal(of: Case, model: LayeredModel, even: dict[str, Tensor]) -> Tensor:
    """log of the sum of exp(-E) over all states of the odd layers, one by one."""
    machine = model.machine
    odd = cases.product({b: cases.states(of.values[b], machine.units(b)) for b in machine.side(True)})
    count, n = len(next(iter(odd.values()))), len(even["visible"])
    rows = {b: x.repeat_interleave(count, 0) for b, x in even.items()} | {b: x.repeat(n, 1) for b, x in odd.items()}
    return torch.logsumexp(-model.joint_energy(rows).view(n, count), 1)


def _meeting(of: Case, x: dict[str, Tensor], y: dict[str, Tensor]) -> Meeting:
    return Meeting(Crowd.at(Phases(layered(of)), x), Crowd.at(Phases(_other(of)), y))


@pytest.mark.parametrize("name", LAYERED)
def test_what_an_exchange_is_decided_by_is_the_ratio_of_the_products_of_the_laws(name: str) -> None:
    of = cases.case(name, hidden=4)
    states = _even_states(of)
    n = len(states["visible"])
    first, second = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    x, y = ({b: s[rows] for b, s in states.items()} for rows in (first, second))
    found = _meeting(of, x, y).log_ratio
    lower, upper = (_log_marginal(of, model, states) for model in (layered(of), _other(of)))
    expected = lower[second] + upper[first] - lower[first] - upper[second]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((_meeting(of, y, x).log_ratio - expected).abs().max()) > 0.1  # the roles swapped


class _Scripted(Draws):
    """Exchanges take place in every other row."""

    def accept(self, log_ratio: Tensor, sweep: int, stream: int) -> Tensor:
        return torch.arange(len(log_ratio)) % 2 == 0


@pytest.mark.parametrize("name", LAYERED)
def test_states_that_change_places_are_then_the_other_models(name: str) -> None:
    of = cases.case(name, hidden=4)
    states = _even_states(of)
    x, y = states, {b: s.flip(0) for b, s in states.items()}
    lower, upper = _meeting(of, x, y).exchanged(_Scripted(0, 0), 0)
    swap = (torch.arange(len(x["visible"])) % 2 == 0)[:, None]
    for crowd, mine, theirs in ((lower, x, y), (upper, y, x)):
        for block, states_now in crowd.even.items():
            torch.testing.assert_close(states_now, torch.where(swap, theirs[block], mine[block]))
        for block, inputs in Crowd.at(crowd.phases, crowd.even).inputs.items():
            torch.testing.assert_close(crowd.inputs[block], inputs)
    assert (lower.phases.machine.weights[0] == layered(of).machine.weights[0]).all()


# --- laws that stay ---

_CHAINS = 20_000


def _memory(of: Case, objective: Trajectory, model: LayeredModel) -> tuple[Memory, list[LayeredModel]]:
    """A ladder of three: base rates, half of the model's parameters, another model; all chains from the start."""
    base = {"visible": torch.linspace(-1, 1, of.visibles).double()}
    base |= {"label": torch.log(torch.arange(1, 4).double() / 6)} if model.class_count else {}
    memory = dict(objective.start(model, base, 1))
    ladder = Ladder.of(memory)
    for tensors in ({n: t / 2 for n, t in model.tensors().items()}, _other(of).tensors()):
        parameters = {n: t.float() for n, t in tensors.items()}
        ladder = ladder.grown(len(ladder), parameters, ladder.chains_of(0), 0.0, 0.0)
    saved = [{n: t[k].double() for n, t in ladder.parameters.items()} for k in range(3)]
    recognition = {n: t for n, t in of.model.tensors().items() if n not in ladder.parameters}
    return {**memory, **ladder.memory()}, [with_tensors(of, recognition | tensors) for tensors in saved]


def _largest_z(of: Case) -> float:
    """How far odd layers are from their law, of the model and of each saved one, in standard errors, the largest."""
    objective = Trajectory(chains=_CHAINS, exchange_every=1, acceptance=1e-9)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    memory, saved = _memory(of, objective, model)
    batch = Batch(batch_of(of).visible.float(), batch_of(of).labels)
    for step in range(25):
        _, memory = objective.gradient(model, batch, Draws(3, step), memory)
    worst = 0.0
    for block in model.machine.side(True):
        chains = [*memory[f"ladder.chains.{block}"], memory[f"chains.{block}"]]
        for own, found in zip([*saved, layered(of)], chains, strict=True):
            rows, p = law(own)
            mean = p @ rows[block]
            z = (found.double().mean(0) - mean) / torch.sqrt(mean * (1 - mean) / _CHAINS)
            worst = max(worst, float(z.abs().max()))
    assert len(memory["ladder.log_ratio"]) == 3
    return worst


@pytest.mark.parametrize("name", ["rbm labelled", "grbm", "dbm deep labelled", "dbm real labelled"])
def test_all_chains_reach_their_models_laws_and_exchanges_decided_wrongly_do_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = cases.case(name, hidden=5, seed=1, scale=0.7)
    # |z| beyond 6.2 at any of 20 means: a false alarm less often than once in 10^7.
    assert _largest_z(of) < 6.2
    right = Meeting.log_ratio.fget
    assert right is not None
    with monkeypatch.context() as wrong:  # the roles swapped
        wrong.setattr(Meeting, "log_ratio", property(lambda self: -right(self)))
        assert _largest_z(of) > 6.2 + 3.1
    with monkeypatch.context() as wrong:  # the even layers' own biases forgotten
        density = Crowd.log_density
        wrong.setattr(
            Crowd, "log_density", lambda self: density(self) - self.phases.machine.visible_term(self.even["visible"])
        )
        assert _largest_z(of) > 6.2 + 3.1


# --- estimates ---


def test_a_bridge_is_exact_wherever_it_stands_and_the_overlap_is_the_acceptance() -> None:
    p, q = torch.tensor([4.0, 3.0, 2.0, 1.0]).double(), torch.tensor([1.0, 1.0, 3.0, 5.0]).double()
    x, y = (torch.arange(4).repeat_interleave(law.long()) for law in (p, q))
    gain = torch.log(7.5 * q / 10) - torch.log(0.3 * p / 10)  # Z of the upper one is 7.5, of the lower one 0.3
    for at in (-2.0, 3.0, 10.0):
        assert bridge(gain[x], gain[y], at) == pytest.approx(math.log(25.0), abs=1e-12)
    found, stderr = bennett(gain[x][None], gain[y][None])
    assert found == pytest.approx(math.log(25.0), abs=1e-12)
    assert 0.1 < stderr < 1
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    chances = (p[pairs[:, 0]] / 10) * (q[pairs[:, 1]] / 10)
    ratios = torch.exp((gain[pairs[:, 0]] - gain[pairs[:, 1]]).clamp(max=0))
    assert overlap(gain[x]) == pytest.approx(float((chances * ratios).sum()), abs=1e-12)


def _trained(
    data: Dataset, objective: dict[str, Any], seed: int, after: Any = lambda state: None, **fit: Any
) -> FitState:
    family = {"grbm": "grbm", "dbm": "dbm"}.get(fit.pop("family", "rbm"), "rbm")
    recipe = validated(
        {
            "name": "toy",
            "seed": seed,
            "data": {"dataset": "digits", "domain": data.domain},
            "model": {"family": family, "hidden": fit.pop("hidden", 10)},
            "objective": objective,
            "fit": {"epochs": 200, "batch_size": 8, "learning_rate": 0.3, **fit},
        },
        "test",
    )
    built = build(recipe.objective)
    state = begin(recipe, data, built)
    train(recipe, data, built, state, lambda s: after(recipe, s))
    return state


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("rbm", {"hidden": 10, "epochs": 400, "learning_rate": 0.5}),
        ("dbm", {"hidden": [8, 5], "epochs": 200, "learning_rate": 1.0}),
        ("grbm", {"hidden": 4, "epochs": 60, "batch_size": 100, "learning_rate": 0.05}),
    ],
)
def test_log_partition_follows_the_exact_one_through_training(family: str, settings: dict[str, Any]) -> None:
    data = toys.clouds() if family == "grbm" else toys.dataset(toys.bars())
    errors, rungs = [], []

    def compare(recipe: Any, state: FitState) -> None:
        if state.step % 100:
            return
        of = manifest(recipe, data)
        exact = model_of(of, {n: t.double() for n, t in state.parameters.items()}).log_partition()
        found = objective.log_partition(model_of(of, state.parameters), state.memory)
        assert found is not None
        assert found.method == "trajectory"
        assert 0 < found.stderr < 0.3
        errors.append((found.value - exact, exact - float(state.memory["ladder.log_ratio"][0])))
        rungs.append(len(state.memory["ladder.log_ratio"]))

    section = {"name": "trajectory", "chains": 100, "exchange_every": 3, "acceptance": 0.6, "centring": "centred"}
    objective = build(section)
    for seed in range(4):
        _trained(data, section, seed, compare, family=family, **settings)
    off, moved = torch.tensor(errors).T
    assert float(off.square().mean().sqrt()) < 0.12  # nats
    assert float(off.abs().max()) < 0.4
    assert float(moved.abs().max()) > 1.0  # log Z of the base rates alone would not do
    assert max(rungs) > 1


def _two_modes() -> Dataset:
    """Two opposite patterns of 16 bits, seven to three, a twentieth of all bits flipped."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.arange(16) % 2 == 0
    rows = torch.where(torch.rand(2000, 1, generator=generator) < 0.7, pattern, ~pattern)
    return toys.dataset((rows ^ (torch.rand(2000, 16, generator=generator) < 0.05)).byte())


def _moment_error(objective: dict[str, Any]) -> float:
    """Mean distance between what the chains and enumeration say of the hidden units, along training."""
    data, found = _two_modes(), []

    def compare(recipe: Any, state: FitState) -> None:
        if state.step < 200 or state.step % 10:
            return
        model = model_of(manifest(recipe, data), {n: t.double() for n, t in state.parameters.items()})
        assert isinstance(model, LayeredModel)
        rows, p = law(model)
        found.append(float((state.memory["chains.hidden"][:100].mean(0) - p @ rows["hidden"]).abs().mean()))

    for seed in range(2):
        fit = {"epochs": 30, "batch_size": 50, "learning_rate": 0.05}
        _trained(data, {**objective, "chains": 100, "centring": "centred"}, seed, compare, **fit)
    return sum(found) / len(found)


def test_between_two_modes_exchanged_chains_keep_to_the_model_better_than_those_of_pcd() -> None:
    plain = _moment_error({"name": "pcd"})
    temp, traj = _moment_error({"name": "tempering"}), _moment_error({"name": "trajectory", "exchange_every": 1})
    assert traj < plain / 2
    assert temp < plain / 2


# --- the ladder ---


def test_a_model_that_begins_far_from_the_base_rates_is_reached_by_models_on_the_way() -> None:
    of = cases.case("rbm", hidden=8, scale=3.0)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    objective = Trajectory(chains=200, exchange_every=1, acceptance=0.6)
    memory = objective.start(model, {"visible": torch.linspace(-3, 3, of.visibles).double()}, 1)
    assert objective.log_partition(model, memory) is None or len(memory["ladder.log_ratio"]) == 1
    for step in range(300):
        _, memory = objective.gradient(model, Batch(batch_of(of).visible.float()), Draws(3, step), memory)
    assert len(memory["ladder.log_ratio"]) > 2
    found = objective.log_partition(model, memory)
    assert found is not None
    assert abs(found.value - layered(of).log_partition()) < 0.15


def test_a_long_ladder_is_thinned_and_keeps_its_ends_and_its_sum() -> None:
    of = cases.case("rbm", hidden=4)
    objective = Trajectory(chains=5, most=3)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    memory, _ = _memory(of, objective, model)
    ladder = Ladder.of(memory).grown(3, model.tensors(), Ladder.of(memory).chains_of(0), 0.0, 0.1)
    for k in range(1, 4):
        ladder = ladder.noted(k, float(k), 0.5 if k > 1 else 0.01)
    thin = ladder.thinned()
    assert len(thin) == 3
    assert thin.total[0] == pytest.approx(ladder.total[0], abs=1e-12)
    assert thin.log_ratio.tolist()[1:] == [1.0, 5.0]  # the second exchanges hardly with the first: the third went
    for name, tensor in thin.parameters.items():
        assert torch.equal(tensor, ladder.parameters[name][[0, 1, 3]])
    assert thin.acceptance.tolist() == pytest.approx([1.0, 0.01, 0.25])


def test_a_model_put_between_two_saved_ones_keeps_the_sum() -> None:
    of = cases.case("rbm", hidden=4)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    memory, _ = _memory(of, Trajectory(chains=5), model)
    ladder = Ladder.of(memory).noted(2, 3.0, 0.01)
    grown = ladder.grown(2, model.tensors(), ladder.chains_of(1), 1.25, 0.1)
    assert grown.log_ratio.tolist()[1:] == [0.0, 1.25, 1.75]
    assert grown.estimates.tolist() == [0.0, 0.0, 0.0, 0.0]  # both of its pairs are measured anew
    for name, tensor in ladder.parameters.items():
        assert torch.equal(grown.parameters[name][[0, 1, 3]], tensor)
        assert torch.equal(grown.parameters[name][2], model.tensors()[name])


def test_saved_models_that_hardly_overlap_get_one_between_them() -> None:
    of = cases.case("rbm", hidden=5, seed=1, scale=0.7)
    far = with_tensors(of, {name: 4 * t.float() for name, t in of.model.tensors().items()})
    objective = Trajectory(chains=300, exchange_every=1, acceptance=0.5)
    memory = dict(objective.start(far, {"visible": torch.linspace(-1, 1, of.visibles).double()}, 1))
    first = Ladder.of(memory)
    memory |= first.grown(1, far.tensors(), first.chains_of(0), 0.0, 0.0).memory()
    for step in range(300):
        _, memory = objective.gradient(far, Batch(batch_of(of).visible.float()), Draws(3, step), memory)
    ladder, found = Ladder.of(memory), objective.log_partition(far, memory)
    assert len(ladder) > 2
    assert float(ladder.acceptance.min()) > 0.2
    exact = with_tensors(of, {name: 4 * t for name, t in of.model.tensors().items()}).log_partition()
    assert found is not None
    assert abs(found.value - exact) < 0.15


def test_a_sum_takes_log_partition_from_the_term_that_knows_it() -> None:
    of = cases.case("rbm", hidden=4)
    model = with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})
    objective = build({"terms": [{"name": "sparsity"}, {"name": "trajectory", "chains": 50}]})
    memory = objective.start(model, {"visible": torch.zeros(of.visibles).double()}, 1)
    found = objective.log_partition(model, memory)
    assert found is not None
    alone = {key.removeprefix("1."): tensor for key, tensor in memory.items()}
    assert found == Trajectory(chains=50).log_partition(model, alone)
    plain = build({"terms": [{"name": "sparsity"}, {"name": "pcd"}]})
    assert plain.log_partition(model, plain.start(model, {"visible": torch.zeros(of.visibles).double()}, 1)) is None


def test_the_monitors_take_log_z_from_the_objective_where_it_is_too_large_for_enumeration() -> None:
    model, of = cases.rbm(17, 17), cases.manifest_of("rbm", 17)
    data = toys.dataset((cases.normal((30, 17), 3) > 0).byte())
    known = LogPartition(4.5, 0.1, "trajectory")
    found = monitor(of, model, data, MonitorSettings(), 0, 0, known)
    assert found["log_likelihood_validation"] == -found["free_energy_validation"] - 4.5
    assert "log_likelihood_validation" not in monitor(of, model, data, MonitorSettings(), 0, 0)
    small, of = cases.rbm(9, 5), cases.manifest_of("rbm", 9)
    data = toys.dataset(toys.bars())
    found = monitor(of, small, data, MonitorSettings(), 0, 0, known)  # exact where that is to be had
    assert found["log_likelihood_validation"] == pytest.approx(-found["free_energy_validation"] - small.log_partition())
