"""The difference of the two phases against exact enumeration, for every layered machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models import cases
from tests.models.cases import Case
from tests.training.exact import LAYERED, batch_of, climbed, crowd, gradient, law, layered, with_tensors
from training.objective import Batch
from training.phases import Centring, Phases
from training.products import Products, multiplying

CENTRED: list[Centring] = ["centred", "enhanced"]
_STEP = 0.3
_MULTIPLIES_IN_BFLOAT16 = torch.cpu._is_amx_tile_supported()  # of others it is not known


def _case(name: str) -> Case:
    return cases.case(name, visible=4, hidden=5 if "deep" in name else 4, seed=2, scale=0.7)


def _derivative(of: Case, batch: Batch, name: str, at: int, step: float = 1e-3) -> float:
    """By finite differences of fourth order: their own error is about 1e-12."""

    def moved(by: float) -> float:
        tensors = {k: t.clone() for k, t in of.model.tensors().items()}
        tensors[name].view(-1)[at] += by
        return climbed(with_tensors(of, tensors), batch)

    return (moved(-2 * step) - 8 * moved(-step) + 8 * moved(step) - moved(2 * step)) / (12 * step)


@pytest.mark.parametrize("name", LAYERED)
def test_with_the_exact_law_the_contrast_is_the_gradient_of_the_log_likelihood(name: str) -> None:
    of = _case(name)
    batch, found = batch_of(of), gradient(of, batch_of(of))
    tensors = of.model.tensors()
    assert set(found) == {name for name in tensors if name[0] not in "Va"}  # a recognition net is not of the energy
    log_sigma = tensors.get("log_sigma")
    for parameter, g in found.items():
        slopes = [_derivative(of, batch, parameter, k) for k in range(g.numel())]
        truth = torch.tensor(slopes, dtype=torch.float64).view(g.shape)
        if log_sigma is not None and parameter in {"b", "b0"}:
            truth = truth * torch.exp(2 * log_sigma)  # the natural direction
        torch.testing.assert_close(g, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LAYERED)
def test_the_law_that_stands_for_the_chains_is_normalised_and_has_the_models_own_means(name: str) -> None:
    of = _case(name)
    rows, p = law(layered(of))
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    if of.enumerable:
        states = cases.joint_states(of.sweeping, of.values)
        q = cases.law(of.sweeping.joint_energy(states))
        for block, x in states.items():
            torch.testing.assert_close(p @ rows[block], q @ x, rtol=0, atol=1e-9)


# --- centring ---


def _pairs(phases: Phases) -> list[tuple[str, str, str]]:
    """(parameter, block below, block above) of every matrix."""
    layers = phases.machine.layers
    found = [(phases.names[f"weights {n}"], *layers[n : n + 2]) for n in range(phases.machine.depth)]
    return [*found, (phases.names["U"], "label", layers[-1])] if phases.machine.classes else found


def _in_units(phases: Phases, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Real visibles counted in standard deviations."""
    s = phases.machine.log_sigma
    return states if s is None else states | {"visible": states["visible"] * torch.exp(-s)}


def _centred_energy(
    phases: Phases,
    tensors: dict[str, Tensor],
    biases: dict[str, Tensor],
    offset: dict[str, Tensor],
    x: dict[str, Tensor],
) -> Tensor:
    """E = -sum (x - mu)'W (y - lambda) - sum (x - mu)'b, and (v - b)^2 / 2 s^2 for real visibles."""
    scaled = _in_units(phases, x)
    total = torch.zeros(len(x["visible"]), dtype=torch.float64)
    for name, below, above in _pairs(phases):
        total = total - ((scaled[below] - offset[below]) @ tensors[name] * (scaled[above] - offset[above])).sum(1)
    for block, bias in biases.items():
        if block == "visible" and phases.machine.log_sigma is not None:
            total = total + ((x[block] - bias) * torch.exp(-phases.machine.log_sigma)).square().sum(1) / 2
        else:
            total = total - (scaled[block] - offset[block]) @ bias
    return total


Found = dict[str, Tensor]
Spoil = Callable[[Phases, Found, Found], Found]


def _distance_from_a_centred_step(of: Case, centring: Centring, spoil: Spoil | None = None) -> float:
    """Largest difference of energy, but for a constant, between the machine after the step that `contrast` says and the
    machine that is written with centred units after a step up its own gradient, the covariances."""
    model = layered(of)
    phases = Phases(model)
    tensors = model.tensors()
    data, chains = cases.some_states(of, 7, seed=3), cases.some_states(of, 5, seed=4)
    means = {b: torch.rand(model.block_units(b), generator=torch.Generator().manual_seed(1)).double() for b in data}
    memory = {f"offset.{b}": mean for b, mean in means.items()} if centring == "centred" else {}
    found, after = phases.contrast(data, chains, memory, centring)
    here, there = _in_units(phases, data), _in_units(phases, chains)
    offset = (
        {b: after[f"offset.{b}"] for b in data}
        if centring == "centred"
        else {b: (here[b].mean(0) + there[b].mean(0)) / 2 for b in data}
    )
    if spoil is not None:
        found = spoil(phases, found, offset)
    ordinary = {k: t + _STEP * found[k] if k in found and k != "log_sigma" else t for k, t in tensors.items()}
    biases = {b: tensors[phases.names[f"bias of {b}"]] + _STEP * (data[b].mean(0) - chains[b].mean(0)) for b in data}
    if phases.machine.log_sigma is None:
        s = torch.ones(of.visibles, dtype=torch.float64)
    else:
        s = phases.machine.log_sigma.exp()
    centred = dict(tensors)
    for name, below, above in _pairs(phases):
        scale = s if below == "visible" else torch.ones(model.block_units(below), dtype=torch.float64)
        biases[below] = biases[below] + scale * (tensors[name] @ offset[above])
        biases[above] = biases[above] + tensors[name].T @ offset[below]
        moments = [(x[below] - offset[below]).T @ (x[above] - offset[above]) / len(x[above]) for x in (here, there)]
        centred[name] = tensors[name] + _STEP * (moments[0] - moments[1])
    states = cases.some_states(of, 100, seed=6)
    zero = {b: torch.zeros_like(o) for b, o in offset.items()}
    ordinary_biases = {b: ordinary[phases.names[f"bias of {b}"]] for b in data}
    difference = _centred_energy(phases, centred, biases, offset, states)
    difference = difference - _centred_energy(phases, ordinary, ordinary_biases, zero, states)
    return float((difference - difference[0]).abs().max())


@pytest.mark.parametrize("centring", CENTRED)
@pytest.mark.parametrize("name", LAYERED)
def test_a_centred_step_is_a_step_of_the_centred_machine_written_in_ordinary_parameters(
    name: str, centring: Centring
) -> None:
    assert _distance_from_a_centred_step(_case(name), centring) < 1e-9


def _bias(phases: Phases, found: Found, block: str, change: Tensor) -> Found:
    name = phases.names[f"bias of {block}"]
    return found | {name: found[name] + change}


def _offset_with_the_other_sign(phases: Phases, found: Found, offset: Found) -> Found:
    name, below, above = _pairs(phases)[-1]
    return _bias(phases, found, above, 2 * found[name].T @ offset[below])


def _one_neighbour_of_a_middle_layer(phases: Phases, found: Found, offset: Found) -> Found:
    name, below, above = _pairs(phases)[1]
    return _bias(phases, found, below, found[name] @ offset[above])


def _no_label_pair(phases: Phases, found: Found, offset: Found) -> Found:
    return _bias(phases, found, phases.machine.layers[-1], found[phases.names["U"]].T @ offset["label"])


def _no_standard_deviation(phases: Phases, found: Found, offset: Found) -> Found:
    name, below, above = _pairs(phases)[0]
    assert phases.machine.log_sigma is not None
    return _bias(phases, found, below, (phases.machine.log_sigma.exp() - 1) * (found[name] @ offset[above]))


_MUTANTS: list[tuple[Spoil, list[str]]] = [
    (_offset_with_the_other_sign, ["rbm", "rbm labelled", "grbm", "dbm deep"]),
    (_one_neighbour_of_a_middle_layer, ["dbm", "dbm deep", "dbm real labelled"]),
    (_no_label_pair, ["rbm labelled", "dbm labelled", "dbm deep labelled"]),
    (_no_standard_deviation, ["grbm", "dbm real"]),
]


@pytest.mark.parametrize("centring", CENTRED)
@pytest.mark.parametrize(("spoil", "name"), [(spoil, name) for spoil, names in _MUTANTS for name in names])
def test_a_centred_step_with_a_named_defect_is_told_apart(spoil: Spoil, name: str, centring: Centring) -> None:
    assert _distance_from_a_centred_step(_case(name), centring, spoil) > 1e-3


@pytest.mark.parametrize("centring", ["none", *CENTRED])
@pytest.mark.parametrize("name", LAYERED)
def test_every_form_of_the_gradient_climbs(name: str, centring: Centring) -> None:
    of = _case(name)
    model, batch = layered(of), batch_of(of)
    phases = Phases(model, 100)
    data = phases.data(batch)
    offsets = {f"offset.{b}": x.mean(0) for b, x in _in_units(phases, dict(data)).items()}
    found, _ = phases.contrast(data, crowd(model), offsets, centring)
    moved = with_tensors(of, {k: t + 1e-3 * found[k] if k in found else t for k, t in model.tensors().items()})
    assert climbed(moved, batch) > climbed(model, batch) + 1e-5


@pytest.mark.parametrize("name", ["rbm", "rbm labelled", "grbm", "dbm deep labelled"])
def test_products_in_bfloat16_are_right_to_its_8_bits_and_leave_the_parameters_as_they_are(name: str) -> None:
    of = cases.case(name, visible=40, hidden=41, seed=2, scale=0.1)  # small products are float32 whatever is asked for
    tensors = {k: t.float() for k, t in of.model.tensors().items()}
    model, batch = with_tensors(of, tensors), batch_of(of, 40)
    batch = Batch(batch.visible.float(), batch.labels)
    chains = {b: x.float() for b, x in cases.some_states(of, 40).items()}
    found = {}
    each: list[Products] = ["float32", "bfloat16"]
    for products in each:
        phases = Phases(model, 30, products=products)
        with multiplying(products):
            found[products], _ = phases.contrast(phases.data(batch), chains, {}, "none")
    for k, exact in found["float32"].items():
        assert found["bfloat16"][k].dtype == torch.float32
        torch.testing.assert_close(found["bfloat16"][k], exact, rtol=0.02, atol=0.02)
    rounded = any(not torch.equal(found["bfloat16"][k], exact) for k, exact in found["float32"].items())
    assert rounded or not _MULTIPLIES_IN_BFLOAT16
    assert all(t.dtype == torch.float32 for t in model.tensors().values())


@pytest.mark.parametrize("chains", [100, 200, 300])
@pytest.mark.parametrize("centring", ["none", "centred", "enhanced"])
def test_products_in_bfloat16_have_no_steady_pull_where_means_meet_states(chains: int, centring: Centring) -> None:
    # Means of 0.7 and 0.3 under the data; chains with as many ones, independent. Divided by their numbers in bfloat16,
    # as they once were, states and means are off by different parts, and the weights between hidden layers go astray.
    model = cases.dbm([32, 33, 34], dtype=torch.float32)
    phases, n = Phases(model, products="bfloat16"), torch.arange(chains)
    first = (n < 0.7 * chains - 0.5).float()[:, None]
    second = torch.where(first[:, 0] > 0, n < 0.21 * chains - 0.5, n - 0.7 * chains < 0.09 * chains - 0.5).float()[
        :, None
    ]
    states = {"visible": first.expand(-1, 32), "hidden1": first.expand(-1, 33), "hidden2": second.expand(-1, 34)}
    assert [round(float(s.mean()), 6) for s in (first, second, first * second)] == [0.7, 0.3, 0.21]
    means = {
        "visible": torch.full((100, 32), 0.7),
        "hidden1": torch.full((100, 33), 0.7),
        "hidden2": torch.full((100, 34), 0.3),
    }
    memory = {f"offset.{block}": mean[0] for block, mean in means.items()} if centring == "centred" else {}
    gradient, _ = phases.contrast(means, states, memory, centring)
    torch.testing.assert_close(gradient["W2"], torch.zeros(33, 34), atol=1e-6, rtol=0)


def _base(of: Case) -> dict[str, Tensor]:
    classes = layered(of).class_count
    base = {"visible": torch.linspace(-1, 1, of.visibles).double()}
    return base | ({"label": torch.log(torch.arange(1, classes + 1) / 6)} if classes else {})


@pytest.mark.parametrize("name", LAYERED)
def test_offsets_begin_at_the_datas_means_and_those_of_hidden_units_follow_them(name: str) -> None:
    of = _case(name)
    model, phases = layered(of), Phases(layered(of), 50)
    memory, base = phases.offsets(_base(of), "centred"), _base(of)
    assert set(memory) == {f"offset.{block}" for block in model.blocks}
    if phases.machine.log_sigma is None:
        torch.testing.assert_close(memory["offset.visible"], torch.sigmoid(base["visible"]))
    if model.class_count:
        torch.testing.assert_close(memory["offset.label"], torch.arange(1, 4).double() / 6)
    data = phases.data(batch_of(of))
    _, after = phases.contrast(data, cases.some_states(of, 5), memory, "centred")
    for block in model.blocks:
        old, seen = memory[f"offset.{block}"], data[block].mean(0)
        hidden = block not in {"visible", "label"}
        torch.testing.assert_close(after[f"offset.{block}"], old + 0.01 * (seen - old) if hidden else old)
