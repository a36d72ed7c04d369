"""Every objective on the shelf by its contract; the chains of CD and PCD against exact laws; sums and sparsity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.families.rbm import RBM
from models.family import EnergyModel, HasClasses
from models.layered_family import LayeredModel
from models.numerics import all_binary_states
from tests.models import cases
from tests.models.cases import Case
from tests.training.exact import LAYERED, batch_of, law, layered, with_tensors
from training.objective import Batch, Draws, Memory, Objective, build, objectives
from training.phases import Phases

_CPU = torch.device("cpu")
_CENTRINGS = ["none", "centred", "enhanced"]
_DETERMINISTIC = {"sparsity", "discriminative"}

# |z| beyond 6.2 at any of 29 parameters: a false alarm less often than once in 10^7 tests of independent normal means.
_Z = 6.2


def _single(of: Case) -> LayeredModel:
    """The case's model in the precision of training."""
    return with_tensors(of, {name: t.float() for name, t in of.model.tensors().items()})


def _float(batch: Batch) -> Batch:
    return Batch(batch.visible.float(), batch.labels)


def _base(model: EnergyModel) -> dict[str, Tensor]:
    classes = model.class_count if isinstance(model, HasClasses) else 0
    base = {"visible": torch.linspace(-1, 1, 4).double()}
    return base | ({"label": torch.log(torch.arange(1, classes + 1) / 6)} if classes else {})


# --- the contract ---


def _settings() -> list[dict[str, Any]]:
    """Every objective on the shelf in every form that it has."""
    forms = [(name, kind.model_fields) for name, kind in objectives().items()]
    found = [{"name": n, "centring": c} if "centring" in f else {"name": n} for n, f in forms for c in _CENTRINGS]
    return [settings for k, settings in enumerate(found) if settings not in found[:k]]


def _trained() -> list[Any]:
    """Every pair of a small model and an objective that trains it."""
    models = {name: cases.case(name).model for name in cases.names()}
    return [
        pytest.param(name, settings, id=f"{name}-{'-'.join(settings.values())}")
        for settings in _settings()
        for name, model in models.items()
        if build(settings).applies_to(model)
    ]


def test_every_objective_trains_something() -> None:
    assert {parameters.values[1]["name"] for parameters in _trained()} == set(objectives())


@pytest.mark.parametrize(("name", "settings"), _trained())
def test_every_objective_is_a_function_of_seed_and_step(name: str, settings: dict[str, Any]) -> None:
    of = cases.case(name, hidden=4)
    model = type(of.model).from_tensors(of.manifest, {name: t.float() for name, t in of.model.tensors().items()})
    labels = torch.arange(40) % cases.CLASSES if isinstance(model, HasClasses) and model.class_count else None
    batch, objective = Batch(cases.some_visibles(of, 40).float(), labels), build(settings)
    base = _base(model)

    def at(seed: int, step: int) -> tuple[dict[str, Tensor], Memory]:
        return objective.gradient(model, batch, Draws(seed, step), objective.start(model, base, 1))

    (first, memory), (again, memory_again) = at(1, 3), at(1, 3)
    shapes = {name: t.shape for name, t in model.tensors().items()}
    assert first
    assert {name: t.shape for name, t in first.items()}.items() <= shapes.items()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(memory[name], memory_again[name]) for name in memory)
    assert set(memory) == set(objective.start(model, base, 1))
    assert all(bool(torch.isfinite(t).all()) for t in first.values())
    assert not any(t.requires_grad for t in (*first.values(), *memory.values(), *model.tensors().values()))
    for other in (at(2, 3)[0], at(1, 4)[0]):
        same = [torch.equal(first[name], other[name]) for name in first]
        if settings["name"] in _DETERMINISTIC:
            assert all(same)
        if "steps" in type(objective).model_fields:  # of chains
            assert not all(same)


def test_the_draws_of_a_step_are_fair_and_of_their_law() -> None:
    n = 100_000
    mean = float(Draws(9, 4).bernoulli(torch.full((1, n), math.log(3.0)), 4, 1).mean())
    assert abs(mean - 0.75) / math.sqrt(0.75 * 0.25 / n) < 5.2
    x = Draws(9, 4).normals(torch.zeros(1, n), 4, 1).double()
    assert abs(float(x.mean())) * math.sqrt(n) < 5.2
    assert abs(float(x.square().mean()) - 1) * math.sqrt(n / 2) < 5.2
    p = torch.tensor([0.5, 0.3, 0.2])
    shares = Draws(9, 4).categorical(p.log().expand(n, -1), 4, 1).mean(0)
    assert float(((shares - p) / torch.sqrt(p * (1 - p) / n)).abs().max()) < 5.2
    accepted = float(Draws(9, 4).accept(torch.full((n,), math.log(0.25)), 4, 1).double().mean())
    assert abs(accepted - 0.25) / math.sqrt(0.25 * 0.75 / n) < 5.2


# --- CD ---


def _states(units: int) -> Tensor:
    return all_binary_states(units, 0, 1 << units, _CPU)


def _transition(model: RBM) -> Tensor:
    """p(v' | v) of one sweep hidden, visible: (32, 32)."""
    v, h = _states(5), _states(4)
    return _law(model.features(v), h) @ _law(torch.sigmoid(model.b + h @ model.W.T), v)


def _law(p: Tensor, states: Tensor) -> Tensor:
    """Probabilities of `states` for independent units with means `p`: (rows of p, states)."""
    return torch.exp(torch.log(p) @ states.T + torch.log1p(-p) @ (1 - states).T)


def _model_terms(model: RBM, law: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and variance, under a law over v, of the statistics v h', v and h with h at its mean given v."""
    v = _states(5)
    h = model.features(v)
    each = {"W": v[:, :, None] * h[:, None, :], "b": v, "c": h}
    mean = {name: torch.tensordot(law, t, 1) for name, t in each.items()}
    return mean, {name: torch.tensordot(law, t.square(), 1) - mean[name].square() for name, t in each.items()}


def _largest_z(model: RBM, gradient: dict[str, Tensor], data: Tensor, law: Tensor, n: int) -> float:
    """How far the gradient's model part is from its expectation under `law`, in standard errors of n independent v."""
    mean, variance = _model_terms(model, law)
    h = model.features(data)
    positive = {"W": data.T @ h / len(data), "b": data.mean(0), "c": h.mean(0)}
    z = [(positive[k] - gradient[k].double() - mean[k]) / torch.sqrt(variance[k] / n + 1e-14) for k in mean]
    return max(float(part.abs().max()) for part in z)


def _float_rbm(model: RBM) -> RBM:
    return RBM(model.W.float(), model.b.float(), model.c.float())


@pytest.mark.parametrize(("k", "wrong_k"), [(1, 2), (2, 1)])
def test_cd_makes_k_sweeps_from_the_data(tiny_rbm: RBM, k: int, wrong_k: int) -> None:
    n = 60_000
    start = all_binary_states(5, 3, 4, _CPU)
    gradient, _ = build({"name": "cd", "steps": k}).gradient(
        _float_rbm(tiny_rbm), Batch(start.float().expand(n, -1).contiguous()), Draws(5, 0), {}
    )
    laws = (torch.linalg.matrix_power(_transition(tiny_rbm), sweeps)[3] for sweeps in (k, wrong_k))
    right, wrong = (_largest_z(tiny_rbm, gradient, start, law, n) for law in laws)
    assert right < _Z
    # The named defect, one sweep more or less, lies beyond the threshold by more than a power of 0.999 takes.
    assert wrong > _Z + 3.1


def test_many_sweeps_of_cd_forget_the_labels_that_they_start_from() -> None:
    of = cases.case("rbm labelled", hidden=4, scale=0.5)
    model = _single(of)
    terms = []
    for label in (0, 2):
        batch = Batch(torch.ones(20_000, 4), torch.full((20_000,), label))
        gradient, _ = build({"name": "cd", "steps": 30}).gradient(model, batch, Draws(5, 0), {})
        terms.append(torch.eye(3)[label] - gradient["d"])  # the chains' shares of the classes
    rows, p = law(layered(of))
    truth = (p @ rows["label"]).float()
    for share in terms:
        assert float(((share - truth) / torch.sqrt(truth * (1 - truth) / 20_000)).abs().max()) < 5.2


# --- PCD ---

_GROUPS, _CHAINS = 40, 150


def _negative_phases(of: Case, seed: int = 5) -> dict[str, Tensor]:
    """The model's term of PCD's gradient after 200 sweeps, from 40 independent groups of chains."""
    model, batch = _single(of), _float(batch_of(of))
    objective = build({"name": "pcd", "chains": _GROUPS * _CHAINS, "steps": 10})
    memory = objective.start(model, _base(model), seed)
    for step in range(20):
        _, memory = objective.gradient(model, batch, Draws(seed, step), memory)
    phases = Phases(model)
    positive, _ = phases.contrast(phases.data(batch), {b: torch.zeros(1, n) for b, n in _sizes(model)}, {}, "none")
    found = []
    for group in range(_GROUPS):
        own = {name: t[group * _CHAINS : (group + 1) * _CHAINS] for name, t in memory.items()}
        gradient, _ = build({"name": "pcd", "chains": _CHAINS}).gradient(model, batch, Draws(seed + 1 + group, 0), own)
        found.append({name: positive[name] - g for name, g in gradient.items() if name != "log_sigma"})
    return {name: torch.stack([f[name] for f in found]).double() for name in found[0]}


def _sizes(model: LayeredModel) -> list[tuple[str, int]]:
    return [(block, model.block_units(block)) for block in model.blocks]


def _expected_statistics(of: Case) -> dict[str, Tensor]:
    """<x y'> and <x> of the model by enumeration, by parameter; real visibles in standard deviations in products."""
    model = layered(of)
    phases, (rows, p) = Phases(model), law(model)
    machine, names = phases.machine, phases.names
    found = {names[f"bias of {b}"]: p @ x for b, x in rows.items()}
    scaled = rows if machine.log_sigma is None else rows | {"visible": rows["visible"] * torch.exp(-machine.log_sigma)}
    for n in range(machine.depth):
        below, above = machine.layers[n : n + 2]
        found[names[f"weights {n}"]] = (p[:, None] * scaled[below]).T @ scaled[above]
    if machine.classes:
        found[names["U"]] = (p[:, None] * rows["label"]).T @ rows[machine.layers[-1]]
    return found


def _largest_t(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Student's t of 40 independent means of 250 chains, the largest of all parameters."""
    t = [
        (x.mean(0) - truth[name]) / (x.std(0) / math.sqrt(_GROUPS) + 1e-9) for name, x in found.items() if name in truth
    ]
    return max(float(part.abs().max()) for part in t)


@pytest.mark.parametrize("name", ["rbm", "rbm labelled", "grbm", "dbm", "dbm deep labelled", "dbm real labelled"])
def test_the_chains_of_pcd_reach_the_models_law(name: str) -> None:
    of = cases.case(name, hidden=5, seed=1, scale=0.7)
    found = _negative_phases(of)
    # Of 50 parameters, |t| > 7.5 with 39 degrees of freedom: a false alarm less often than once in 10^6.
    assert _largest_t(found, _expected_statistics(of)) < 7.5
    # The named defect: chains of a model whose weights are a fifth larger.
    colder = {k: 1.2 * t if t.ndim == 2 else t for k, t in of.model.tensors().items()}
    wrong = Case(with_tensors(of, colder), of.manifest, of.values)
    assert _largest_t(found, _expected_statistics(wrong)) > 7.5 + 3.5


def test_the_first_chains_of_pcd_have_the_datas_means() -> None:
    flat = RBM(torch.zeros(4, 3), torch.zeros(4), torch.tensor([0.0, 2.0, -1.0]))
    memory = build({"name": "pcd", "chains": 40_000}).start(flat, {"visible": torch.zeros(4).double()}, seed=1)
    expected = torch.sigmoid(flat.c)
    z = (memory["chains.hidden"].mean(0) - expected) / torch.sqrt(expected * (1 - expected) / 40_000)
    assert float(z.abs().max()) < 5.2
    copies = RBM(40.0 * torch.eye(3), torch.zeros(3), torch.full((3,), -20.0))  # hidden units that copy the visibles
    base = {"visible": torch.logit(torch.tensor([0.2, 0.5, 0.9]).double())}
    memory = build({"name": "pcd", "chains": 40_000}).start(copies, base, seed=1)
    p = torch.tensor([0.2, 0.5, 0.9])
    z = (memory["chains.hidden"].mean(0) - p) / torch.sqrt(p * (1 - p) / 40_000)
    assert float(z.abs().max()) < 5.2


@pytest.mark.parametrize(("burn_in", "reached"), [(100, True), (0, False)])
def test_a_burn_in_takes_the_first_chains_to_the_models_law(burn_in: int, reached: bool) -> None:
    of = cases.case("rbm", 5, 4, seed=2)
    everything = cases.joint_states(of.sweeping, of.values)
    p = everything["hidden"].T @ cases.law(of.sweeping.joint_energy(everything))
    settings = {"name": "pcd", "chains": 20_000, "burn_in": burn_in}
    chains = build(settings).start(_single(of), {"visible": torch.zeros(5).double()}, seed=1)["chains.hidden"]
    z = (chains.double().mean(0) - p) / torch.sqrt(p * (1 - p) / 20_000)
    assert (float(z.abs().max()) < 5.2) is reached


# --- sums ---


@pytest.mark.parametrize("name", ["rbm labelled", "dbm labelled"])
def test_a_sum_climbs_the_weighted_sum_and_keeps_each_terms_memory_apart(name: str) -> None:
    of = cases.case(name, hidden=4)
    model, batch = _single(of), _float(batch_of(of, 20))
    terms = [{"name": "pcd", "chains": 30}, {"name": "discriminative"}, {"name": "pcd", "chains": 7}]
    weights = [0.5, 2.0, 1.0]
    whole = build({"terms": [{**t, "weight": w} for t, w in zip(terms[:2], weights[:2], strict=True)] + [terms[2]]})
    memory = whole.start(model, _base(model), 1)
    found, after = whole.gradient(model, batch, Draws(3, 2), memory)
    expected: dict[str, Any] = {}
    for k, (settings, weight) in enumerate(zip(terms, weights, strict=True)):
        part: Objective = build(settings)
        gradient, own = part.gradient(model, batch, Draws(3, 2), part.start(model, _base(model), 1))
        for parameter, g in gradient.items():
            expected[parameter] = expected.get(parameter, 0.0) + weight * g
        assert all(torch.equal(after[f"{k}.{key}"], tensor) for key, tensor in own.items())
    assert set(found) == set(expected)
    for parameter, g in found.items():
        torch.testing.assert_close(g, expected[parameter])
    assert set(after) == set(memory)
    assert len(after["0.chains.hidden" if name == "rbm labelled" else "0.chains.hidden1"]) == 30


# --- sparsity ---


@pytest.mark.parametrize("name", LAYERED)
def test_sparsity_climbs_the_cross_entropy_of_hidden_means_with_the_target(name: str) -> None:
    of = cases.case(name, hidden=4)
    model, batch = layered(of), batch_of(of, 10)
    found, memory = build({"name": "sparsity", "target": 0.3}).gradient(model, batch, Draws(1, 0), {})
    phases = Phases(model)
    means = phases.data(batch)
    assert not memory
    assert set(found) == {phases.names[f"bias of {block}"] for block in model.layers}
    for block in model.layers:
        # The derivative of target log q + (1 - target) log(1 - q) by the bias of a unit whose mean q is its sigmoid.
        torch.testing.assert_close(found[phases.names[f"bias of {block}"]], 0.3 - means[block].mean(0))
