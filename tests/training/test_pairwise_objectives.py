"""Maximum likelihood by enumeration, and PCD where any pairs are coupled, against sums over all states."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.families.bm import BM
from models.families.bm_hidden import BMHidden
from models.family import EnergyModel
from models.pairwise_family import PairwiseModel
from tests.models import cases
from tests.models.cases import Case
from tests.models.test_sampler_laws import chi_square
from tests.training.toys import bars, dataset
from training import state as states
from training.config import Recipe
from training.errors import RecipeError
from training.fit import FitState, begin, manifest, model_of, train
from training.objective import Batch, Draws, build
from training.pairwise_phases import PairwisePhases
from training.phases import Centring
from training.state import Origin

MakeRecipe = Callable[..., Recipe]
Found = dict[str, Tensor]
PAIRWISE = cases.having(PairwiseModel)
ML = build({"name": "maximum_likelihood"})
_CENTRED: list[Centring] = ["centred", "enhanced"]
_SELF = {"bm": ("W",), "bm_hidden": ("R", "S")}
"""Couplings of units of the same kind, by family."""


def _case(name: str) -> Case:
    return cases.case(name, visible=4, hidden=5 if "deep" in name else 4, seed=2, scale=0.7)


def _pairwise(of: Case) -> PairwiseModel:
    assert isinstance(of.model, PairwiseModel)
    return of.model


def _with(of: Case, tensors: Found) -> EnergyModel:
    return type(of.model).from_tensors(of.manifest, tensors)


# --- brute force: nothing of the models but their tensors ---


def _quadratic(p: Found, v: Tensor, h: Tensor) -> Tensor:
    """-E of a machine with any couplings, for every row of v (n, D) and of h (m, F): (n, m)."""
    R, W = (p["R"], p["W"]) if "R" in p else (p["W"], v.new_zeros(v.shape[1], 0))
    S, c = (p["S"], p["c"]) if "S" in p else (v.new_zeros(0, 0), v.new_zeros(0))
    own = 0.5 * torch.einsum("ni,ij,nj->n", v, R, v) + v @ p["b"]
    hidden = 0.5 * torch.einsum("mi,ij,mj->m", h, S, h) + h @ c
    return own[:, None] + v @ W @ h.T + hidden


def _layered(p: Found, v: Tensor) -> Tensor:
    """-E of an RBM or DBM, for every row of v and every state of the layers above and the labels: (n, m)."""
    depth = sum(name[0] == "W" for name in p)
    W = [p["W"]] if depth == 1 else [p[f"W{n}"] for n in range(1, depth + 1)]
    b = [p["b"], p["c"]] if depth == 1 else [p[f"b{n}"] for n in range(depth + 1)]
    blocks = {f"{n}": cases.states(cases.BINARY, len(b[n])) for n in range(1, depth + 1)}
    blocks["y"] = torch.eye(len(p["d"])).double() if "d" in p else torch.zeros(1, 0).double()
    x = cases.product(blocks)
    above = sum((x[f"{n}"] @ b[n] for n in range(1, depth + 1)), torch.zeros(len(x["1"])).double())
    above = above + sum((x[f"{n}"] @ W[n] * x[f"{n + 1}"]).sum(1) for n in range(1, depth))
    if "d" in p:
        above = above + (x["y"] @ p["U"] * x[f"{depth}"]).sum(1) + x["y"] @ p["d"]
    if "log_sigma" in p:
        s = p["log_sigma"].exp()
        return -0.5 * ((v - b[0]) / s).square().sum(1)[:, None] + (v / s) @ W[0] @ x["1"].T + above
    return (v @ b[0])[:, None] + v @ W[0] @ x["1"].T + above


def _gaussian_log_z(p: Found) -> Tensor:
    """log of the integral over v and the sum over h, the Gaussians' own integrals in closed form."""
    zero = torch.zeros(1, len(p["log_sigma"])).double()
    s, b = p["log_sigma"].exp(), p["b"] if "b" in p else p["b0"]
    W = p["W"] if "W" in p else p["W1"]
    first = cases.states(cases.BINARY, W.shape[1])
    pull = first @ W.T
    # At v = 0 the exponent is -b^2 / 2 s^2 + terms of h; completing the square adds (b / s + W h)^2 / 2.
    gained = 0.5 * (b / s + pull).square().sum(1) + (0.5 * math.log(2 * math.pi) + p["log_sigma"]).sum()
    every = _layered(p, zero)[0].view(len(first), -1)
    return (every + gained[:, None]).flatten().logsumexp(0)


def _brute(of: Case, p: Found, v: Tensor) -> float:
    """Mean log-likelihood, nats."""
    family = of.manifest.family
    if family in _SELF:
        x = cases.states(of.values["visible"], of.visibles)
        h = cases.states(of.values["hidden"], len(p["c"])) if "c" in p else torch.zeros(1, 0).double()
        log_p, log_z = _quadratic(p, v, h).logsumexp(1), _quadratic(p, x, h).flatten().logsumexp(0)
    elif "log_sigma" in p:
        log_p, log_z = _layered(p, v).logsumexp(1), _gaussian_log_z(p)
    else:
        x = cases.states(cases.BINARY, of.visibles)
        log_p, log_z = _layered(p, v).logsumexp(1), _layered(p, x).flatten().logsumexp(0)
    return float(log_p.mean() - log_z)


def _slopes(of: Case, v: Tensor, name: str, step: float = 1e-3) -> Tensor:
    """Derivatives by finite differences of fourth order; a coupling of two units of one kind moves with its mirror."""
    mirrored = name in _SELF.get(of.manifest.family, ())
    found = torch.zeros_like(of.model.tensors()[name])
    for at in range(found.numel()):
        i, j = divmod(at, found.shape[-1])
        if mirrored and i == j:
            continue

        def moved(by: float, at: int = at, mirror: int = j * found.shape[-1] + i) -> float:
            tensors = {k: t.clone() for k, t in of.model.tensors().items()}
            for entry in {at, mirror} if mirrored else {at}:
                tensors[name].view(-1)[entry] += by
            return _brute(of, tensors, v)

        found.view(-1)[at] = (moved(-2 * step) - 8 * moved(-step) + 8 * moved(step) - moved(2 * step)) / (12 * step)
    return found


# --- maximum likelihood ---


@pytest.mark.parametrize("name", [n for n in cases.names() if ML.applies_to(cases.case(n).model)])
def test_maximum_likelihood_has_the_slopes_of_the_brute_force_log_likelihood(name: str) -> None:
    of = _case(name)
    v = cases.some_visibles(of, 5, 1)
    found, memory = ML.gradient(of.model, Batch(v), Draws(1, 0), {})
    assert not memory
    assert set(found) == {n for n in of.model.tensors() if n[0] not in "Va"}  # a recognition net is not of the energy
    for parameter, g in found.items():
        torch.testing.assert_close(g, _slopes(of, v, parameter), rtol=0, atol=1e-8)


def test_couplings_that_are_zero_are_parameters_too() -> None:
    """A machine of independent units: log Z needs no enumeration, and yet has a slope in every coupling."""
    of = _case("bm_hidden coupled")
    zero = {name: torch.zeros_like(t) if t.ndim == 2 else t for name, t in of.model.tensors().items()}
    empty = Case(_with(of, zero), of.manifest, of.values)
    v = cases.some_visibles(of, 5, 1)
    found, _ = ML.gradient(empty.model, Batch(v), Draws(1, 0), {})
    for parameter in ("R", "W", "S"):
        assert parameter == "S" or float(found[parameter].abs().max()) > 0.05
        torch.testing.assert_close(found[parameter], _slopes(empty, v, parameter), rtol=0, atol=1e-8)


def test_more_units_than_can_be_enumerated_are_refused_in_the_recipes_words(make_recipe: MakeRecipe) -> None:
    data = dataset((torch.arange(30 * 16).view(16, 30) % 7 < 3).byte())
    recipe = make_recipe(model={"family": "bm", "hidden": None}, fit={"batch_size": 16})
    with pytest.raises(
        RecipeError, match=r"objective\.name: exact log Z enumerates .* at most 25 units; this one has 30"
    ):
        train(recipe, data, ML, begin(recipe, data, ML), lambda _state: None)


def test_objectives_do_not_ask_for_gradients_behind_each_other(make_recipe: MakeRecipe) -> None:
    whole = build({"terms": [{"name": "maximum_likelihood"}, {"name": "pcd", "chains": 5}]})
    model = BM(torch.zeros(4, 4), torch.zeros(4))
    memory = whole.start(model, {"visible": torch.zeros(4).double()}, 1)
    for step in range(3):
        found, memory = whole.gradient(model, Batch(torch.ones(3, 4)), Draws(1, step), memory)
        assert not any(t.requires_grad for t in (*found.values(), *memory.values(), *model.tensors().values()))
    assert not model.machine.c.requires_grad


# --- the parameters are changed in place ---


@pytest.mark.parametrize("settings", [{"name": "maximum_likelihood"}, {"name": "pcd", "chains": 9, "steps": 2}])
@pytest.mark.parametrize("name", ["bm", "bm_hidden coupled spin", "rbm labelled", "grbm", "dbm deep"])
def test_what_was_computed_from_earlier_parameters_is_never_used(name: str, settings: dict[str, Any]) -> None:
    of, objective = _case(name), build(settings)
    tensors = {k: t.float() for k, t in of.model.tensors().items()}
    model = _with(of, tensors)
    labels = torch.arange(6) % cases.CLASSES if "labelled" in name else None
    batch = Batch(cases.some_visibles(of, 6).float(), labels)
    base = {"visible": torch.zeros(4).double(), "label": torch.zeros(cases.CLASSES).double()}
    memory = objective.start(model, base, 1)
    first_log_z = model.log_partition()  # type: ignore[attr-defined]
    model.energy(batch.visible)  # everything that a model may keep, it now keeps
    for step in range(4):
        rebuilt = _with(of, {k: t.clone() for k, t in tensors.items()})
        expected, _ = objective.gradient(rebuilt, batch, Draws(1, step), memory)
        found, memory = objective.gradient(model, batch, Draws(1, step), memory)
        for parameter, g in found.items():
            assert torch.equal(g, expected[parameter]), (step, parameter)
            tensors[parameter].add_(g, alpha=0.2 if parameter == "log_sigma" else 1.0)
    assert abs(rebuilt.log_partition() - first_log_z) > 0.02  # type: ignore[attr-defined]
    if isinstance(model, PairwiseModel):  # the defect there would be: a model does keep what it computed
        assert float((model.machine.couplings - rebuilt.machine.couplings).abs().max()) > 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize("domain", ["binary", "spin"])
@pytest.mark.parametrize("family", ["bm", "bm_hidden"])
@pytest.mark.parametrize(
    "settings", [{"name": "maximum_likelihood"}, *({"name": "pcd", "centring": c} for c in ("none", *_CENTRED))]
)
def test_couplings_stay_symmetric_to_the_bit_with_a_zero_diagonal(
    make_recipe: MakeRecipe, family: str, domain: str, settings: dict[str, Any]
) -> None:
    examples = 2 * bars().char() - 1 if domain == "spin" else bars()
    data, objective = dataset(examples, domain), build(settings)  # type: ignore[arg-type]
    recipe = make_recipe(
        model={"family": family, "hidden": None if family == "bm" else 3},
        fit={"epochs": 20, "batch_size": 5, "learning_rate": 0.5, "momentum": 0.5, "weight_decay": 1e-2, "clip": 0.5},
    )
    state = begin(recipe, data, objective)
    before = {name: t.clone() for name, t in state.parameters.items()}
    train(recipe, data, objective, state, lambda _state: None)
    for name in _SELF[family]:
        J = state.parameters[name]
        assert torch.equal(J, J.T)
        assert not bool(J.diagonal().any())
        assert float((J - before[name]).abs().max()) > 1e-4


# --- PCD: the two phases ---


def _law(of: Case) -> tuple[Found, Tensor]:
    """Every joint state and its probability."""
    x = cases.joint_states(of.sweeping, of.values)
    h = x.get("hidden", torch.zeros(len(x["visible"]), 0).double())
    p = of.model.tensors()
    pairs = torch.stack([_quadratic(p, v[None], row[None])[0, 0] for v, row in zip(x["visible"], h, strict=True)])
    return x, torch.softmax(pairs, 0)


def _contrast(of: Case, batch: Batch, spoil: Callable[[Found], Found] = dict) -> Found:
    """The plain contrast with every state, weighted by its probability, in place of the chains."""
    phases = PairwisePhases(_pairwise(of))
    data, (rows, p) = spoil(phases.data(batch)), _law(of)
    total: Found = {}
    for k, weight in enumerate(p):
        found, _ = phases.contrast(data, {b: x[k : k + 1] for b, x in rows.items()}, {}, "none")
        total = {name: total.get(name, 0.0) + weight * g for name, g in found.items()}
    return total


def _without_covariance(data: Found) -> Found:
    return {name: t for name, t in data.items() if name != "covariance"}


@pytest.mark.parametrize("name", PAIRWISE)
def test_with_the_exact_law_the_contrast_is_the_gradient_of_the_log_likelihood(name: str) -> None:
    of = _case(name)
    batch = Batch(cases.some_visibles(of, 5, 1))
    found = _contrast(of, batch)
    assert set(found) == set(of.model.tensors())
    for parameter, g in found.items():
        torch.testing.assert_close(g, _slopes(of, batch.visible, parameter), rtol=0, atol=1e-8)
    if "coupled" in name:  # the named defect: products of means in place of the means of products
        wrong = _contrast(of, batch, _without_covariance)
        assert float((wrong["S"] - found["S"]).abs().max()) > 1e-3


def test_hidden_units_that_are_too_many_to_enumerate_have_a_factorial_posterior() -> None:
    of = cases.case("bm_hidden coupled", hidden=24, scale=0.2)
    phases = PairwisePhases(_pairwise(of))
    assert not phases.machine.exact
    v = cases.some_visibles(of, 3)
    data = phases.data(Batch(v))
    m, p = data["hidden"], of.model.tensors()
    torch.testing.assert_close(m, torch.sigmoid(v @ p["W"] + m @ p["S"] + p["c"]), rtol=0, atol=1e-9)
    off = data["covariance"] - data["covariance"].diagonal().diag()
    assert float(off.abs().max()) < 1e-12


_STEP = 0.3


def _centred(p: Found, b: Tensor, mu: Tensor, x: Tensor) -> Tensor:
    """E = -1/2 (x - mu)'J(x - mu) - (x - mu)'b of the centred machine whose couplings are J."""
    return -0.5 * torch.einsum("ni,ij,nj->n", x - mu, p["J"], x - mu) - (x - mu) @ b


def _joined(p: Found) -> tuple[Tensor, Tensor]:
    """All couplings and all biases, hidden units first."""
    if "R" not in p:
        return p["W"], p["b"]
    return torch.cat((torch.cat((p["S"], p["W"].T), 1), torch.cat((p["W"], p["R"]), 1))), torch.cat((p["c"], p["b"]))


def _distance_from_a_centred_step(of: Case, centring: Centring, spoil: Callable[[Found, Tensor], Found]) -> float:
    """Largest difference of energy, but for a constant, between the machine after the step that `contrast` says and the
    centred machine after a step up its own gradient, the covariances."""
    phases = PairwisePhases(_pairwise(of))
    blocks = list(of.sweeping.blocks)
    data, chains = cases.some_states(of, 7, seed=3), cases.some_states(of, 5, seed=4)
    x, y = (torch.cat([s[block] for block in blocks], 1) for s in (data, chains))
    memory = phases.offsets({"visible": torch.linspace(-1, 1, of.visibles).double()}, centring)
    found, after = phases.contrast(data, chains, memory, centring)
    mu = after["offset"] if centring == "centred" else (x.mean(0) + y.mean(0)) / 2
    J, b = _joined(of.model.tensors())
    dJ, db = _joined(spoil(found, mu))
    own = (x - mu).T @ (x - mu) / len(x) - (y - mu).T @ (y - mu) / len(y)
    own = own - own.diagonal().diag()
    states = torch.cat(list(cases.joint_states(of.sweeping, of.values).values()), 1)
    centred = _centred({"J": J + _STEP * own}, b + J @ mu + _STEP * (x.mean(0) - y.mean(0)), mu, states)
    ordinary = _centred({"J": J + _STEP * dJ}, b + _STEP * db, torch.zeros_like(mu), states)
    difference = centred - ordinary
    return float((difference - difference[0]).abs().max())


@pytest.mark.parametrize("centring", _CENTRED)
@pytest.mark.parametrize("name", PAIRWISE)
def test_a_centred_step_is_a_step_of_the_centred_machine_written_in_ordinary_parameters(
    name: str, centring: Centring
) -> None:
    of = _case(name)
    assert _distance_from_a_centred_step(of, centring, lambda found, _mu: found) < 1e-9

    def biases_not_moved_back(found: Found, mu: Tensor) -> Found:
        J, b = _joined(found)
        b = b + J @ mu
        hidden = len(b) - of.visibles
        return found | {"b": b[hidden:]} | ({"c": b[:hidden]} if hidden else {})

    assert _distance_from_a_centred_step(of, centring, biases_not_moved_back) > 1e-2


@pytest.mark.parametrize("name", ["bm spin", "bm_hidden coupled", "bm_hidden coupled spin"])
def test_offsets_begin_at_the_datas_means_and_those_of_hidden_units_follow_them(name: str) -> None:
    of = _case(name)
    phases = PairwisePhases(_pairwise(of))
    base, hidden = torch.linspace(-1, 1, of.visibles).double(), phases.machine.sizes.get("hidden", 0)
    memory = phases.offsets({"visible": base}, "centred")
    spin = "spin" in name
    torch.testing.assert_close(memory["offset"][hidden:], torch.tanh(base) if spin else torch.sigmoid(base))
    data = phases.data(Batch(cases.some_visibles(of, 5)))
    _, after = phases.contrast(data, cases.some_states(of, 4), memory, "centred")
    assert torch.equal(after["offset"][hidden:], memory["offset"][hidden:])
    if hidden:
        old, seen = memory["offset"][:hidden], data["hidden"].mean(0)
        torch.testing.assert_close(after["offset"][:hidden], old + 0.01 * (seen - old))


# --- PCD: the chains ---


def _transitions(of: Case, stale: bool = False, factor: float | None = None) -> tuple[Tensor, Tensor]:
    """All states, hidden units first, and the matrix of one sweep, unit by unit. `stale`: every unit sees the states
    before the sweep; `factor`: of the inputs, in the log-odds."""
    J, b = _joined(of.model.tensors())
    low = float(of.values["visible"][0])  # type: ignore[index]
    x = cases.states(of.values["visible"], len(b))
    times = (2.0 if low < 0 else 1.0) if factor is None else factor
    matrix = torch.ones(len(x), len(x)).double()
    for s in range(len(x)):
        for unit in range(len(b)):
            seen = x[s].expand_as(x).clone()
            if not stale:
                seen[:, :unit] = x[:, :unit]
            p = torch.sigmoid(times * (seen @ J[unit] + b[unit]))
            matrix[s] *= torch.where(x[:, unit] > low, p, 1 - p)
    return x, matrix


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("name", ["bm", "bm spin", "bm_hidden coupled", "bm_hidden coupled spin"])
def test_chains_make_sequential_gibbs_sweeps(name: str, sweeps: int) -> None:
    of = cases.case(name, visible=5 if "hidden" not in name else 3, hidden=2, seed=1)
    n, size = 40_000, {block: of.sweeping.block_units(block) for block in of.sweeping.blocks}
    phases = PairwisePhases(
        _pairwise(Case(_with(of, {k: t.float() for k, t in of.model.tensors().items()}), of.manifest, of.values))
    )
    x, matrix = _transitions(of)
    start = 11
    blocks = dict(zip(size, x[start].float().expand(n, -1).split(list(size.values()), 1), strict=True))  # type: ignore[no-untyped-call]
    seen, kept = phases.advance(blocks, Draws(5, 0), 3, sweeps)
    assert all(torch.equal(seen[block], kept[block]) for block in size)
    ended = torch.cat([kept[block] for block in size], 1)
    number = ((ended > 0).long() * 2 ** torch.arange(len(x[0]) - 1, -1, -1)).sum(1)
    counts = np.bincount(number.numpy(), minlength=len(x))
    assert chi_square(counts, torch.linalg.matrix_power(matrix, sweeps)[start].numpy()) > 1e-6
    # The named defects lie so far off that their laws are refused for what was seen.
    defects = {"stale states": _transitions(of, stale=True)[1]}
    if "spin" in name:
        defects["spins as if binary"] = _transitions(of, factor=1.0)[1]
    for defect in defects.values():
        assert chi_square(counts, torch.linalg.matrix_power(defect, sweeps)[start].numpy()) < 1e-6


@pytest.mark.parametrize("domain", ["binary", "spin"])
def test_the_first_chains_have_the_datas_means_and_fair_hidden_units(domain: str) -> None:
    spin = domain == "spin"
    model = BMHidden(torch.ones(3, 3), torch.ones(3, 2), torch.ones(2, 2), torch.ones(3), torch.ones(2), domain)
    p, n = torch.tensor([0.2, 0.5, 0.9]), 40_000
    base = {"visible": torch.logit(p.double()) / (2 if spin else 1)}
    memory = build({"name": "pcd", "chains": n}).start(model, base, seed=1)
    for block, expected in (("visible", p), ("hidden", torch.full((2,), 0.5))):
        state = memory[f"chains.{block}"]
        assert set(state.flatten().tolist()) == ({-1.0, 1.0} if spin else {0.0, 1.0})
        ones = (state > 0).float().mean(0)
        # |z| > 5.2 for five units: a false alarm once in a million.
        assert float(((ones - expected) / torch.sqrt(expected * (1 - expected) / n)).abs().max()) < 5.2
    assert stats.pearsonr(memory["chains.visible"][:, 0], memory["chains.hidden"][:, 0]).pvalue > 1e-6


# --- learning ---


def _log_likelihood(recipe: Recipe, state: FitState, data: Any) -> float:
    of = manifest(recipe, data)
    model = model_of(of, {k: t.double() for k, t in state.parameters.items()})
    assert isinstance(model, PairwiseModel)
    return -float(model.energy(data.train.double()).mean()) - model.log_partition()


@pytest.mark.parametrize("domain", ["binary", "spin"])
def test_pcd_comes_close_to_the_maximum_of_the_likelihood(make_recipe: MakeRecipe, domain: str) -> None:
    of = cases.case("bm" if domain == "binary" else "bm spin", visible=5, scale=0.5)
    x, p = _law(of)
    examples = x["visible"].char()[torch.multinomial(p, 400, True, generator=torch.Generator().manual_seed(1))]
    data, found = dataset(examples, domain), {}  # type: ignore[arg-type]
    for settings in ({"name": "maximum_likelihood"}, {"name": "pcd", "chains": 200, "centring": "centred"}):
        objective = build(settings)
        fit = {"epochs": 120, "batch_size": 200, "learning_rate": 0.5}
        recipe = make_recipe(model={"family": "bm", "hidden": None}, fit=fit)
        state = begin(recipe, data, objective)
        start = _log_likelihood(recipe, state, data)
        train(recipe, data, objective, state, lambda _state: None)
        found[settings["name"]] = _log_likelihood(recipe, state, data)
    truth = -float(of.model.energy(data.train.double()).mean()) - of.model.log_partition()  # type: ignore[attr-defined]
    # What fits 400 examples best is above their own law by about half its 15 parameters per 400.
    assert start < truth - 0.05
    assert truth < found["maximum_likelihood"] < truth + 0.05
    assert found["maximum_likelihood"] - 0.02 < found["pcd"] < found["maximum_likelihood"] + 1e-3


class _CutError(Exception):
    pass


@pytest.mark.parametrize(("family", "domain"), [("bm", "spin"), ("bm_hidden", "binary")])
def test_a_run_cut_in_two_ends_with_the_same_bits(
    make_recipe: MakeRecipe, tmp_path: Path, family: str, domain: str
) -> None:
    examples = 2 * bars().char() - 1 if domain == "spin" else bars()
    data, objective = dataset(examples, domain), build({"name": "pcd", "chains": 20, "centring": "centred"})  # type: ignore[arg-type]
    recipe = make_recipe(
        model={"family": family, "hidden": None if family == "bm" else 3},
        fit={"epochs": 6, "batch_size": 5, "momentum": 0.5},
    )

    def cut(state: FitState) -> None:
        if state.step == 7:
            raise _CutError

    whole, part = begin(recipe, data, objective), begin(recipe, data, objective)
    train(recipe, data, objective, whole, lambda _state: None)
    with pytest.raises(_CutError):
        train(recipe, data, objective, part, cut)
    states.save(tmp_path, Origin(recipe=recipe, data="", device="cpu", threads=1), part, 1.0)
    again = states.read(tmp_path).fit
    train(recipe, data, objective, again, lambda _state: None)
    for group in ("parameters", "velocity", "memory"):
        ours, theirs = getattr(again, group), getattr(whole, group)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), group
