"""Up-down learning of DBNs, recognition nets of DBMs, and the doubled inputs of a DBM's end layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from models.families.dbm import DBM
from models.families.dbn import DBN
from models.families.grbm import GRBM
from models.families.rbm import RBM
from models.family import EnergyModel
from tests.models import cases
from tests.models.cases import Case
from tests.training.toys import bars, dataset, labelled_bars
from training.config import Recipe
from training.data import Dataset
from training.fit import FitState, begin, manifest, model_of, train
from training.likelihood import classification_error, wide
from training.objective import Batch, Draws, Memory, Objective, build
from training.objectives.up_down import _DOWN, _UP, UpDown
from training.phases import Centring, Phases
from training.stages import names, stage

MakeRecipe = Callable[..., Recipe]
Found = dict[str, Tensor]
_VISIBLE = 1  # stream of the visibles in the top RBM, after the hidden units


@dataclass(frozen=True)
class _NotedDraws(Draws):
    """Draws that note what they gave, by stream; the last one of each."""

    noted: dict[int, Tensor] = field(default_factory=dict)

    def bernoulli(self, logits: Tensor, sweep: int, stream: int) -> Tensor:
        self.noted[stream] = super().bernoulli(logits, sweep, stream)
        return self.noted[stream]


class _LateDraws(Draws):
    """The draws of chains' sweeps, not those of their starts, are numbered from 1."""

    def bernoulli(self, logits: Tensor, sweep: int, stream: int) -> Tensor:
        return super().bernoulli(logits, sweep + (stream < _UP), stream)

    def categorical(self, logits: Tensor, sweep: int, stream: int) -> Tensor:
        return super().categorical(logits, sweep + (stream < _UP), stream)


def _fourth_order(f: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-3) -> Tensor:
    """Derivatives of a function of one tensor by finite differences; their own error is about 1e-12."""
    found = torch.zeros_like(at)
    for k in range(at.numel()):

        def moved(by: float, k: int = k) -> float:
            there = at.clone()
            there.view(-1)[k] += by
            return float(f(there))

        found.view(-1)[k] = (moved(-2 * step) - 8 * moved(-step) + 8 * moved(step) - moved(2 * step)) / (12 * step)
    return found


def _log_p(x: Tensor, inputs: Tensor) -> Tensor:
    """Mean log-probability of binary states with these log-odds."""
    return (x * inputs - torch.log1p(torch.exp(inputs))).sum(1).mean()


def _slopes_of_log_p(x: Tensor, given: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean of log p(x | given) by weights (given, x) and bias."""
    by_weights = _fourth_order(lambda w: _log_p(x, given @ w + bias), weights.contiguous())
    return by_weights, _fourth_order(lambda b: _log_p(x, given @ weights + b), bias)


# --- up-down ---


def _dbn(layers: list[int], classes: int = 0, recognition: bool = True) -> DBN:
    return cases.dbn(layers, seed=3, classes=classes, recognition=recognition)


def _batch(model: DBN, n: int = 7) -> Batch:
    v = cases.some(cases.BINARY, n, model.block_units("visible"), torch.Generator().manual_seed(1))
    return Batch(v, torch.arange(n) % cases.CLASSES if model.class_count else None)


def _base(model: DBN) -> Found:
    base = {"visible": torch.linspace(-1, 1, model.block_units("visible")).double()}
    return base | ({"label": torch.log(torch.arange(1, cases.CLASSES + 1) / 6)} if model.class_count else {})


@pytest.mark.parametrize("centring", ["none", "centred", "enhanced"])
@pytest.mark.parametrize("classes", [0, cases.CLASSES])
@pytest.mark.parametrize("steps", [1, 3])
def test_with_one_hidden_layer_it_is_contrastive_divergence(steps: int, classes: int, centring: Centring) -> None:
    model = _dbn([5, 4], classes)
    p = model.tensors()
    rbm = RBM(p["W1"], p["b0"], p["b1"], "binary", p.get("U"), p.get("d"))
    settings = {"steps": steps, "centring": centring}
    ours, cd = build({"name": "up_down", **settings}), build({"name": "cd", **settings})
    memory = ours.start(model, _base(model), 1)
    found, after = ours.gradient(model, _batch(model), Draws(4, 0), memory)
    theirs = cd.start(rbm, _base(model), 1)
    expected, theirs_after = cd.gradient(rbm, _batch(model), _LateDraws(4, 0), theirs)
    names_of = {"W": "W1", "b": "b0", "c": "b1"}
    assert set(found) == set(p)
    for name, g in expected.items():
        assert torch.equal(found[names_of.get(name, name)], g)
    assert set(memory) == set(theirs)
    assert all(torch.equal(after[name], theirs_after[name]) for name in after)


@pytest.mark.parametrize("layers", [[5, 4, 3], [5, 4, 3, 3]])
@pytest.mark.parametrize("recognition", [True, False])
@pytest.mark.parametrize("classes", [0, cases.CLASSES])
def test_wake_learns_to_generate_and_sleep_to_recognise(layers: list[int], classes: int, recognition: bool) -> None:
    model, draws = _dbn(layers, classes, recognition), _NotedDraws(4, 2)
    p, batch, k = model.tensors(), _batch(model), len(layers) - 1
    objective = build({"name": "up_down", "steps": 2})
    found, _ = objective.gradient(model, batch, draws, objective.start(model, _base(model), 1))
    assert set(found) == set(p)
    up = [batch.visible, *(draws.noted[_UP + n] for n in range(1, k))]
    dreamt = [*(draws.noted[_DOWN + n] for n in range(1, k)), draws.noted[_VISIBLE]]
    assert not any(torch.equal(a, b) for a, b in zip(up, dreamt, strict=True))
    for n in range(1, k):
        # Wake: log p(h_(n-1) | h_n) of what was recognised. Sleep: log q(h_n | h_(n-1)) of what was dreamt.
        expected = _slopes_of_log_p(up[n - 1], up[n], p[f"W{n}"].T, p[f"b{n - 1}"])
        torch.testing.assert_close(found[f"W{n}"], expected[0].T, rtol=0, atol=1e-9)
        torch.testing.assert_close(found[f"b{n - 1}"], expected[1], rtol=0, atol=1e-9)
        if recognition:
            expected = _slopes_of_log_p(dreamt[n], dreamt[n - 1], p[f"V{n}"], p[f"a{n}"])
            torch.testing.assert_close(found[f"V{n}"], expected[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(found[f"a{n}"], expected[1], rtol=0, atol=1e-9)


def test_the_passes_draw_from_the_recognition_and_the_generative_law() -> None:
    n = 40_000
    model = _dbn([4, 3, 2])
    p = {name: t.float() for name, t in model.tensors().items()}
    single, draws = DBN(p, 2), _NotedDraws(9, 0)
    v = torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(n, -1).contiguous()
    build({"name": "up_down", "steps": 1}).gradient(single, Batch(v), draws, {})

    def z(x: Tensor, means: Tensor) -> float:
        """Largest |z| of n independent draws, each with its own mean."""
        return float(((x - means).sum(0) / (means * (1 - means)).sum(0).sqrt()).abs().max())

    up = torch.sigmoid(v @ p["V1"] + p["a1"])
    down = torch.sigmoid(draws.noted[_VISIBLE] @ p["W1"].T + p["b0"])
    # |z| > 5.2 for seven units: a false alarm less often than once in 700,000.
    assert z(draws.noted[_UP + 1], up) < 5.2
    assert z(draws.noted[_DOWN + 1], down) < 5.2
    # The named defects: tied weights on the way up, recognition weights on the way down.
    assert z(draws.noted[_UP + 1], torch.sigmoid(v @ p["W1"] + p["b1"])) > 10
    assert z(draws.noted[_DOWN + 1], torch.sigmoid(draws.noted[_VISIBLE] @ p["V1"].T + p["b0"])) > 10


@pytest.mark.parametrize("classes", [0, cases.CLASSES])
def test_the_top_rbm_learns_by_contrastive_divergence_from_what_was_recognised(classes: int) -> None:
    model, draws = _dbn([5, 4, 3], classes), _NotedDraws(4, 0)
    p, batch = model.tensors(), _batch(model)
    found, _ = build({"name": "up_down", "steps": 2}).gradient(model, batch, draws, {})
    rbm = RBM(p["W2"], p["b1"], p["b2"], "binary", p.get("U"), p.get("d"))
    recognised = Batch(draws.noted[_UP + 1], batch.labels)
    expected, _ = build({"name": "cd", "steps": 2}).gradient(rbm, recognised, _LateDraws(4, 0), {})
    for name, g in expected.items():
        assert torch.equal(found[{"W": "W2", "b": "b1", "c": "b2"}.get(name, name)], g)
    if classes:
        assert float(found["U"].abs().max()) > 0.01


def test_persistent_chains_of_the_top_rbm_go_on_from_step_to_step() -> None:
    model = _dbn([5, 4, 3], cases.CLASSES)
    objective = build({"name": "up_down", "steps": 2, "chains": 11, "centring": "centred"})
    memory = objective.start(model, _base(model), 1)
    first = memory["chains.hidden"]
    assert first.shape == (11, 3)
    p, mean = model.tensors(), torch.sigmoid(_base(model)["visible"])
    passed_up = torch.sigmoid(mean @ p["V1"] + p["a1"])
    torch.testing.assert_close(memory["offset.visible"], passed_up)
    _, after = objective.gradient(model, _batch(model), Draws(4, 0), memory)
    other = {**memory, "chains.hidden": 1 - first}
    _, from_others = objective.gradient(model, _batch(model), Draws(4, 0), other)
    assert set(after) == set(memory)
    assert after["chains.hidden"].shape == first.shape
    assert not torch.equal(after["chains.hidden"], from_others["chains.hidden"])
    assert torch.equal(first, objective.start(model, _base(model), 1)["chains.hidden"])  # it was not changed in place


def _bound(parameters: Found, v: Tensor) -> float:
    """E_q[log p(v, h1) - log q(h1 | v)], normalised, of two hidden layers by enumeration: nats."""
    p, v = {name: t.double() for name, t in parameters.items()}, v.double()
    h = cases.states(cases.BINARY, p["W1"].shape[1])
    down = h @ p["W1"].T + p["b0"]
    generated = v @ down.T - torch.log1p(torch.exp(down)).sum(1)
    prior = torch.log_softmax(h @ p["b1"] + torch.log1p(torch.exp(h @ p["W2"] + p["b2"])).sum(1), 0)
    q = torch.sigmoid(v @ p["V1"] + p["a1"])
    log_q = q.log() @ h.T + (1 - q).log() @ (1 - h).T
    return float((log_q.exp() * (generated + prior - log_q)).sum(1).mean())


def _trained(recipe: Recipe, data: Dataset) -> list[Found]:
    """What every stage ends with."""
    finished: list[Found] = []
    for _ in names(recipe):
        at = stage(recipe, data, finished)
        state = at.begin()
        train(at.recipe, at.data, at.objective, state, lambda _state: None)
        finished.append(state.parameters)
    return finished


class _SleepDescends(UpDown):
    """The named defect: recognition weights go down where they should go up."""

    name: ClassVar[str] = "sleep_descends"

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        found, memory = super().gradient(model, batch, draws, memory)
        return {name: -g if name[0] in "Va" else g for name, g in found.items()}, memory


@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_bound_of_a_pre_trained_dbn_rises(make_recipe: MakeRecipe, seed: int) -> None:
    recipe = make_recipe(
        model={"family": "dbn", "hidden": [6, 4]},
        fit={"epochs": 400, "batch_size": 16, "learning_rate": 0.1, "schedule": "constant"},
        pretraining={
            "objective": {"name": "pcd", "centring": "centred"},
            "fit": {"epochs": 300, "batch_size": 16, "learning_rate": 0.5},
        },
    )
    settings = {"steps": 5, "centring": "centred"}
    recipe = recipe.model_copy(update={"seed": seed, "objective": {"name": "up_down", **settings}})
    data = dataset(bars())
    *layers, _ = _trained(recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 0})}), data)

    def bounds(objective: Objective) -> list[float]:
        at = stage(recipe, data, layers)
        state, found = at.begin(), []

        def note(state: FitState) -> None:
            if state.step % 100 == 0:
                found.append(_bound(state.parameters, bars()))

        note(state)
        train(at.recipe, data, objective, state, note)
        return found

    right, wrong = bounds(build(recipe.objective)), bounds(_SleepDescends(**settings))
    assert right[-1] > right[0] + 0.03
    # Between records it may fall by what single steps are off, and by no more.
    assert all(after > before - 0.02 for before, after in pairwise(right))
    assert wrong[-1] < wrong[0] - 0.1


def test_labels_reach_the_top_rbm(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        model={"family": "dbn", "hidden": [12, 10], "labels": True},
        fit={"epochs": 50, "batch_size": 16, "learning_rate": 0.02},
        pretraining={
            "objective": {"name": "pcd", "centring": "centred", "steps": 3},
            "fit": {"epochs": 400, "batch_size": 16, "learning_rate": 1.0},
        },
    ).model_copy(update={"objective": {"name": "up_down", "steps": 3}})
    data = labelled_bars()
    *_, layer, joint = _trained(recipe, data)
    for name in ("U", "d"):
        assert not torch.equal(layer[name], joint[name])
    of = manifest(recipe, data)
    model = wide(of, model_of(of, joint))
    assert isinstance(model, DBN)
    assert data.test_labels is not None
    assert classification_error(model, data.test, data.test_labels) == 0


# --- recognition ---

_NETS = ["dbm recognition", "dbm unit recognition labelled", "dbm deep recognition"]


def _net(name: str) -> Case:
    deep, classes = "deep" in name, cases.CLASSES if "labelled" in name else 0
    layers = [4, 3, 3, 2] if deep else [4, 3, 3]
    model = cases.dbm(layers, seed=3, scale=0.5, classes=classes, recognition=True)
    values = dict.fromkeys(model.blocks, cases.BINARY)
    return Case(model, cases.manifest_of("dbm", 4, "binary", classes, {"layers": layers}), values)


def _passes(p: Found, v: Tensor, depth: int) -> list[Tensor]:
    q = [v]
    for n in range(1, depth + 1):
        q.append(torch.sigmoid(q[-1] @ p[f"V{n}"] + p[f"a{n}"]))
    return q[1:]


def _fixed_point(p: Found, v: Tensor, depth: int, classes: int, sweeps: int) -> list[Tensor]:
    """Mean-field from the recognition net's pass, written out: odd layers, then even ones, labels beside them."""
    m = [v, *_passes(p, v, depth)]
    y = torch.softmax(m[depth] @ p["U"].T + p["d"], 1) if classes else None
    for _ in range(sweeps):
        for parity in (1, 0):
            for n in range(2 - parity, depth + 1, 2):
                total = m[n - 1] @ p[f"W{n}"] + p[f"b{n}"]
                if n < depth:
                    total = total + m[n + 1] @ p[f"W{n + 1}"].T
                elif y is not None:
                    total = total + y @ p["U"]
                m[n] = torch.sigmoid(total)
            if y is not None and (depth + 1) % 2 == parity:
                y = torch.softmax(m[depth] @ p["U"].T + p["d"], 1)
    return m[1:]


@pytest.mark.parametrize("name", _NETS)
def test_the_recognition_net_learns_what_mean_field_found(name: str) -> None:
    of = _net(name)
    assert isinstance(of.model, DBM)
    p, depth, v = of.model.tensors(), of.model.depth, cases.some_visibles(of, 6, 2)
    found, memory = build({"name": "recognition", "mean_field_sweeps": 4}).gradient(of.model, Batch(v), Draws(1, 0), {})
    assert not memory
    assert set(found) == {k for k in p if k[0] in "Va"}  # the DBM itself is left alone
    target = _fixed_point(p, v, depth, of.model.class_count, 4)

    def fit(parameter: str, value: Tensor) -> Tensor:
        q = _passes({**p, parameter: value}, v, depth)
        each = [t * torch.log(m) + (1 - t) * torch.log1p(-m) for t, m in zip(target, q, strict=True)]
        return torch.cat(each, 1).sum(1).mean()

    for parameter, g in found.items():
        slopes = _fourth_order(lambda x, parameter=parameter: fit(parameter, x), p[parameter])  # type: ignore[misc]
        torch.testing.assert_close(g, slopes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", _NETS)
def test_a_trained_recognition_net_starts_close_to_the_fixed_point(name: str) -> None:
    of = _net(name)
    assert isinstance(of.model, DBM)
    model, v = of.model, cases.states(cases.BINARY, 4)
    objective, p = build({"name": "recognition", "mean_field_sweeps": 5}), model.tensors()
    kept = {k: t.clone() for k, t in p.items() if k[0] not in "Va"}

    def distance() -> float:
        fixed = model.machine.mean_field(v, sweeps=200)
        return max(float((fixed[layer] - q).abs().max()) for layer, q in model.recognise(v).items())

    before = distance()
    for step in range(1000):
        found, _ = objective.gradient(model, Batch(v), Draws(1, step), {})
        for parameter, g in found.items():
            p[parameter].add_(g)
    assert before > 0.3
    assert distance() < 0.03
    assert all(torch.equal(p[k], t) for k, t in kept.items())


def test_only_dbms_with_a_recognition_net_are_given_one_to_learn() -> None:
    recognition = build({"name": "recognition"})
    assert cases.names(lambda of: recognition.applies_to(of.model)) == ["dbm unit recognition labelled"]


# --- doubled inputs ---


def _twice_visible(model: RBM | GRBM) -> RBM | GRBM:
    """The machine whose visibles are there twice, with the same weights."""
    two: dict[str, Any] = {"W": torch.cat((model.W, model.W)), "b": torch.cat((model.b, model.b))}
    if isinstance(model, GRBM):
        two["log_sigma"] = torch.cat((model.log_sigma, model.log_sigma))
    return replace(model, **two)


def _twice_hidden(model: RBM) -> RBM:
    """The machine whose hidden units are there twice, the labels coupled to both by half."""
    U = None if model.U is None else torch.cat((model.U, model.U), 1) / 2
    return replace(model, W=torch.cat((model.W, model.W), 1), c=torch.cat((model.c, model.c)), U=U)


@pytest.mark.parametrize("make", [lambda: cases.rbm(5, 4, 3), lambda: cases.grbm(5, 4, 3)])
def test_a_layer_doubled_below_is_the_machine_with_its_visibles_twice(make: Callable[[], RBM | GRBM]) -> None:
    model = make()
    ours, twice = Phases(model, doubled="below"), Phases(_twice_visible(model))
    v = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    if isinstance(model, RBM):
        v = (v > 0).double()
    data = ours.data(Batch(v))
    torch.testing.assert_close(data["hidden"], twice.data(Batch(torch.cat((v, v), 1)))["hidden"])
    assert float((data["hidden"] - Phases(model).data(Batch(v))["hidden"]).abs().max()) > 0.05
    h = cases.some(cases.BINARY, 6, 4, torch.Generator().manual_seed(2))
    even, inputs = ours.down({"hidden": h}, Draws(1, 0), 5)
    both, _ = twice.down({"hidden": h}, Draws(1, 0), 5)
    # The law of one copy given the hidden units is that of the visibles: the draws of unit i are the same.
    torch.testing.assert_close(even["visible"], both["visible"][:, :5])
    copies = torch.cat((even["visible"], even["visible"]), 1)
    torch.testing.assert_close(inputs["hidden"], twice.machine.inputs("hidden", {"visible": copies}))


@pytest.mark.parametrize("classes", [0, cases.CLASSES])
def test_a_layer_doubled_above_is_the_machine_with_its_hidden_units_twice(classes: int) -> None:
    model = cases.rbm(5, 4, 3, classes=classes)
    ours, twice = Phases(model, doubled="above"), Phases(_twice_hidden(model))
    v = cases.some(cases.BINARY, 200, 5, torch.Generator().manual_seed(1))
    labels = torch.arange(200) % classes if classes else None
    data, plain = ours.data(Batch(v, labels)), Phases(model).data(Batch(v, labels))
    assert all(torch.equal(data[block], plain[block]) for block in data)  # the visibles' input alone is doubled
    h = cases.some(cases.BINARY, 200, 4, torch.Generator().manual_seed(2))
    even, inputs = ours.down({"hidden": h}, Draws(1, 0), 5)
    both, _ = twice.down({"hidden": torch.cat((h, h), 1)}, Draws(1, 0), 5)
    once, _ = Phases(model).down({"hidden": h}, Draws(1, 0), 5)
    for block in even:
        torch.testing.assert_close(even[block], both[block])
    assert not torch.equal(even["visible"], once["visible"])
    torch.testing.assert_close(inputs["hidden"], model.machine.inputs("hidden", even))


@pytest.mark.parametrize("doubled", ["below", "above"])
def test_the_chains_of_a_doubled_layer_alternate_between_its_two_conditionals(doubled: str) -> None:
    """CD-1 from one state: the expected negative phase, by enumeration."""
    n, model = 60_000, cases.rbm(4, 3, 3, scale=0.7)
    single = RBM(model.W.float(), model.b.float(), model.c.float())
    v0 = torch.tensor([1.0, 0.0, 0.0, 1.0]).double()
    up, down = (2.0, 1.0) if doubled == "below" else (1.0, 2.0)
    h, v = cases.states(cases.BINARY, 3), cases.states(cases.BINARY, 4)

    def law(x: Tensor, inputs: Tensor) -> Tensor:
        return torch.exp(x @ inputs - torch.log1p(torch.exp(inputs)).sum())

    def means(up: float, down: float) -> tuple[Tensor, Tensor]:
        p_h = law(h, up * v0 @ model.W + model.c)
        p_v = sum(w * law(v, down * (model.W @ row) + model.b) for w, row in zip(p_h, h, strict=True))
        hidden = torch.sigmoid(up * v @ model.W + model.c)
        mean = p_v @ hidden
        return mean, p_v @ hidden.square() - mean.square()

    batch = Batch(v0.float().expand(n, -1).contiguous())
    found, _ = build({"name": "cd", "doubled": doubled}).gradient(single, batch, Draws(5, 0), {})
    seen = torch.sigmoid(up * v0 @ model.W + model.c) - found["c"].double()

    def largest_z(up: float, down: float) -> float:
        mean, variance = means(up, down)
        return float(((seen - mean) / torch.sqrt(variance / n)).abs().max())

    assert largest_z(up, down) < 5.2
    for wrong in ((1.0, 1.0), (2.0, 2.0), (down, up)):  # the named defects: neither, both, or the other side doubled
        assert largest_z(*wrong) > 10


def test_a_doubled_layer_learns(make_recipe: MakeRecipe) -> None:
    """Its hidden units, seen through doubled inputs, come to tell the examples apart."""
    recipe = make_recipe(model={"hidden": 6}, fit={"epochs": 200, "batch_size": 16, "learning_rate": 0.5})
    data, objective = dataset(bars()), build({"name": "pcd", "doubled": "below", "centring": "centred"})
    state = begin(recipe, data, objective)
    spread = []
    for _ in range(2):
        W, c = state.parameters["W"], state.parameters["c"]
        spread.append(float(torch.sigmoid(2 * bars().float() @ W + c).std(0).mean()))
        train(recipe, data, objective, state, lambda _state: None)
    assert spread[0] < 0.05
    assert spread[1] > 0.2
