"""RBM, GRBM and DBM against `layered_reference`; mean field; and what is said of real visibles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import expit, logsumexp
from torch import Tensor

from models import catalog, layered
from models.errors import CapabilityError
from models.families.dbm import DBM
from models.families.grbm import GRBM
from models.layered_family import LayeredModel
from models.layered_path import LayeredPath
from models.rng import ChainKeys
from tests.models import cases
from tests.models.cases import Case, case, dbm, grbm, names, normal
from tests.models.kernels import scripted
from tests.models.layered_reference import FAMILIES, Reference

NAMES = names(lambda of: of.model.name in FAMILIES)
DEEP = [name for name in NAMES if name.startswith("dbm")]
SIZES = [(4, 3), (1, 2), (2, 5)]


def model_of(of: Case) -> LayeredModel:
    assert isinstance(of.model, LayeredModel)
    return of.model


def points(of: Case, n: int = 25) -> Tensor:
    """Visible states, and where they may be more than 0 and 1 or are relaxed, numbers between."""
    x = cases.some_visibles(of, n, seed=6)
    return x if of.values["visible"] is None else torch.cat((x, normal((n, of.visibles), 8).sigmoid()))


# --- energies ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_energies_features_and_classes_are_sums_over_the_hidden_states(
    name: str, size: tuple[int, int], scale: float
) -> None:
    of = case(name, *size, scale=scale)
    model, reference, x = model_of(of), Reference.of(of), points(of)
    assert model.energy_kind == model.score_kind == "exact"
    error = 1e-12 * (1 + float(np.abs(reference.energy(x)).max()))
    np.testing.assert_allclose(model.energy(x), reference.energy(x), atol=error, rtol=0)
    means = reference.means(x)
    for layer, mean in zip(model.layers, means, strict=False):
        np.testing.assert_allclose(model.features(x, layer), mean, atol=10 * error)
    if "label" not in of.values:
        return
    every = reference.class_energy(x)
    for k in range(model.class_count):
        labels = torch.full((len(x),), k)
        np.testing.assert_allclose(model.class_energy(x, labels), every[:, k], atol=error, rtol=0)
    mixed = torch.arange(len(x)) % model.class_count
    np.testing.assert_allclose(model.class_energy(x, mixed), every[range(len(x)), mixed], atol=error, rtol=0)
    if model.class_kind == "exact":
        posterior = -every - logsumexp(-every, axis=1, keepdims=True)
        np.testing.assert_allclose(model.class_log_probs(x), posterior, atol=10 * error)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_is_within_its_own_error(name: str) -> None:
    of, reference = case(name, dtype=torch.float32), Reference.of(case(name))
    model, x = model_of(of), points(of)
    np.testing.assert_allclose(model.energy(x.float()), reference.energy(x), atol=1e-4)
    np.testing.assert_allclose(model.features(x.float(), model.layers[0]), reference.means(x)[0], atol=1e-4)
    assert model.log_partition() == pytest.approx(reference.log_z(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_joint_energies_are_those_of_the_formula(name: str) -> None:
    of = case(name)
    model, blocks = model_of(of), cases.some_states(case(name), 40, seed=3)
    upper = [blocks[block].numpy() for block in (*model.layers, *(["label"] if "label" in blocks else []))]
    expected = Reference.of(of).joint_energy(blocks["visible"].numpy(), *upper)
    # Real visibles enter products to 2^-21 standard deviations.
    error = 1e-11 if of.enumerable else 2.0**-21 * 10
    np.testing.assert_allclose(model.joint_energy(blocks), expected, atol=error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [*SIZES, (6, 3), (3, 7)])
def test_log_z_is_the_sum_over_all_states_and_the_integral_over_real_ones(name: str, size: tuple[int, int]) -> None:
    of = case(name, *size)
    assert model_of(of).log_partition() == pytest.approx(Reference.of(of).log_z(), abs=1e-9)


def test_the_formula_of_the_integral_is_the_integral() -> None:
    of = case("grbm", 1, 2, seed=4)
    reference = Reference.of(of)
    value, error = integrate.quad(lambda v: math.exp(-reference.energy(torch.tensor([[v]]).double())[0]), -30, 30)
    assert error < 1e-6
    assert reference.log_z() == pytest.approx(math.log(value), abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_depends_on_how_many_states_are_summed_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = case(name, 4, 6)
    model, x = model_of(of), points(of)

    def told() -> list[Tensor]:
        found = [model.energy(x), model.score(x), *(model.features(x, layer) for layer in model.layers)]
        found.append(torch.tensor([model.log_partition()], dtype=torch.float64))
        return [*found, model.class_log_probs(x)] if model.class_count else found

    at_once = told()
    for states, entries in ((3, 1 << 20), (1 << 10, 20), (5, 64)):
        monkeypatch.setattr(layered, "_STATES", states)
        monkeypatch.setattr(layered, "_ENTRIES", entries)
        for piecemeal, whole in zip(told(), at_once, strict=True):
            np.testing.assert_allclose(piecemeal, whole, atol=1e-12)


def test_a_grbms_hidden_units_have_their_own_bias_and_not_one() -> None:
    # p(h_j = 1 | v) = sigmoid(c_j + sum_i w_ij v_i / s_i); a slide prints 1 in the place of c_j.
    model, v = grbm(4, 3, seed=2), normal((6, 4), 1)
    assert float((model.c - 1).abs().min()) > 0.05
    expected = expit(model.c.numpy() + (v.numpy() / np.exp(model.log_sigma.numpy())) @ model.W.numpy())
    np.testing.assert_allclose(model.features(v), expected, atol=1e-13)
    np.testing.assert_allclose(model.conditional("hidden", {"visible": v}).mean(), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if not case(name).enumerable])
def test_real_visibles_have_their_mean_and_their_own_variance(name: str) -> None:
    of = case(name)
    model, reference, blocks = model_of(of), Reference.of(of), cases.some_states(case(name), 20)
    assert reference.s is not None
    z = normal((20, of.visibles), 3)
    beta = torch.linspace(0.2, 2.0, 20, dtype=torch.float64)
    first = blocks[model.layers[0]].numpy()
    mean = reference.b[0] + reference.s * (first @ reference.W[0].T)
    for std, law in (
        (reference.s * np.ones((20, 1)), model.conditional("visible", blocks)),
        (reference.s / np.sqrt(beta.numpy())[:, None], model.conditional("visible", blocks, beta)),
    ):
        np.testing.assert_allclose(law.mean(), mean, atol=1e-11)
        at = torch.from_numpy(mean + std * z.numpy())
        log_p = (-0.5 * z.numpy() ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(1)
        np.testing.assert_allclose(law.log_prob(at), log_p, atol=1e-9)
    noise = model.noise("visible", 20)
    at = torch.from_numpy(reference.b[0] + reference.s * z.numpy())
    log_p = (-0.5 * z.numpy() ** 2 - np.log(reference.s) - 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(noise.log_prob(at), log_p, atol=1e-12)


def test_real_visibles_far_out_are_finite_and_bounded_in_chains_only() -> None:
    model, far = grbm(3, 2), torch.full((1, 3), 1e6, dtype=torch.float64)
    assert bool(torch.isfinite(model.energy(far)).all())
    assert bool(torch.isfinite(model.score(far)).all())
    reach = 2.0**10 * torch.exp(model.log_sigma)
    at = model.conditional("hidden", {"visible": far}).logits  # type: ignore[attr-defined]
    np.testing.assert_allclose(at, model.conditional("hidden", {"visible": reach[None]}).logits, rtol=1e-6)  # type: ignore[attr-defined]


# --- mean field ---


def unenumerable(name: str, monkeypatch: pytest.MonkeyPatch, scale: float = 1.0) -> Case:
    """The case as one whose hidden units are too many to be summed out."""
    monkeypatch.setattr(layered, "MAX_POSTERIOR_UNITS", 0)
    return case(name, 4, 6, scale=scale)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_mean_field_energy_is_a_bound(name: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    of = unenumerable(name, monkeypatch, scale)
    model, reference, x = model_of(of), Reference.of(of), points(of)
    assert (model.energy_kind, model.score_kind) == ("lower_bound", "mean_field")
    exact = reference.energy(x)
    assert bool((model.energy(x).numpy() > exact - 1e-12).all())
    assert float(np.abs(model.energy(x).numpy() - exact).max()) > 1e-6
    means = model.machine.mean_field(x)
    assert torch.equal(model.energy(x), -model.machine.bound(x, means))
    for layer in model.layers:
        assert torch.equal(model.features(x, layer), means[layer])
    if model.class_count:
        every = np.stack([model.class_energy(x, torch.full((len(x),), k)) for k in range(model.class_count)], 1)
        assert bool((every > reference.class_energy(x) - 1e-12).all())
        assert model.class_kind == ("recognition" if "recognition" in name else "mean_field")
        if model.class_kind == "mean_field":
            posterior = -every - logsumexp(-every, axis=1, keepdims=True)
            np.testing.assert_allclose(model.class_log_probs(x), posterior, atol=1e-12)


@pytest.mark.parametrize("name", DEEP)
def test_the_bound_is_the_expected_energy_and_the_entropy_of_the_factorial_law(name: str) -> None:
    # For any means, not only the best: sum_h q(h) (-E(x, h) - log q(h)), the sum over every state.
    of = case(name, 3, 4)
    model, reference, x = model_of(of), Reference.of(of), points(case(name, 3, 4), 4)
    means = {layer: normal((len(x), of.sweeping.block_units(layer)), 11).sigmoid() for layer in model.layers}
    q_log = np.zeros((len(x), len(reference.layers[0])))
    for layer, every in zip(model.layers, reference.layers, strict=False):
        m = means[layer].numpy()[:, None]
        q_log += (every * np.log(m) + (1 - every) * np.log1p(-m)).sum(2)
    if model.class_count:
        means["label"] = torch.softmax(normal((len(x), model.class_count), 12), 1)
        q_log += (reference.layers[-1] * np.log(means["label"].numpy()[:, None])).sum(2)
    expected = (np.exp(q_log) * (reference.log_weights(x.numpy()) - q_log)).sum(1)
    found = model.machine.bound(x, means)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert bool((found.numpy() < -reference.energy(x)).all())


@pytest.mark.parametrize("name", DEEP)
def test_mean_field_climbs_to_a_fixed_point(name: str) -> None:
    of = case(name, 4, 6)
    machine, x = model_of(of).machine, points(of)
    bounds = [machine.bound(x, machine.mean_field(x, sweeps=n)) for n in (0, 1, 2, 5, 20, 50)]
    for before, after in itertools.pairwise(bounds):
        assert bool((after > before - 1e-12).all())
    at = machine.mean_field(x, sweeps=3000)
    again = machine.mean_field(x, start=at, sweeps=1)
    for block, means in at.items():
        np.testing.assert_allclose(again[block], means, atol=1e-9)
        law = torch.softmax if block == "label" else lambda inputs, _: torch.sigmoid(inputs)
        np.testing.assert_allclose(law(machine.inputs(block, {"visible": x, **at}), 1), means, atol=1e-9)


@pytest.mark.parametrize("name", DEEP)
def test_mean_field_starts_from_a_pass_up_with_doubled_input_but_at_the_top(name: str) -> None:
    of = case(name, 4, 6)
    reference, x = Reference.of(of), points(of)
    below = x.numpy() / (1.0 if reference.s is None else reference.s)
    means = model_of(of).machine.mean_field(x, sweeps=0)
    for n, (W, b) in enumerate(zip(reference.W, reference.b[1:], strict=True), start=1):
        below = expit((1 if n == len(reference.W) else 2) * below @ W + b)
        np.testing.assert_allclose(means[f"hidden{n}"], below, atol=1e-12)


def test_mean_field_of_one_layer_is_the_posterior() -> None:
    of = case("rbm")
    x = points(of)
    np.testing.assert_allclose(model_of(of).machine.mean_field(x)["hidden"], model_of(of).features(x), atol=1e-15)
    np.testing.assert_allclose(
        model_of(of).machine.bound(x, model_of(of).machine.mean_field(x)), -model_of(of).energy(x), atol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in DEEP if "labelled" in name])
def test_mean_field_of_a_given_class_is_that_of_the_machine_with_the_class_in_its_biases(name: str) -> None:
    of = case(name, 4, 6)
    machine, x = model_of(of).machine, points(of)
    label = torch.eye(3, dtype=torch.float64)[1].expand(len(x), -1)
    given = machine.mean_field(x, label=label)
    without, term = machine.given_label(1)
    found = without.mean_field(x, start={b: m for b, m in given.items() if b != "label"})
    np.testing.assert_allclose(machine.bound(x, given), without.bound(x, found) + term, atol=1e-6)
    assert torch.equal(given["label"], label)


def test_a_large_machine_is_not_enumerated_and_a_small_one_is() -> None:
    # One side of the hidden units counts: here those of even layers, 20 of them; then 21 on both sides.
    assert dbm([3, 40, 20]).energy_kind == "exact"
    assert dbm([3, 20, 40]).energy_kind == "exact"
    assert dbm([3, 21, 21]).energy_kind == "lower_bound"
    assert dbm([3, 21, 20], classes=3).energy_kind == "exact"
    assert dbm([3, 20, 21], classes=3).energy_kind == "lower_bound"
    assert cases.rbm(3, 50, classes=3).energy_kind == "exact"
    assert grbm(3, 50).energy_kind == "exact"


# --- classes by the recognition net ---


def test_a_recognition_net_classifies_in_one_pass_up_where_classes_cannot_be_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = case("dbm unit recognition labelled", 4, 4).model
    assert isinstance(small, DBM)
    assert small.class_kind == "exact"
    of = unenumerable("dbm unit recognition labelled", monkeypatch)
    model, x = of.model, points(of)
    assert isinstance(model, DBM)
    assert model.class_kind == "recognition"
    p = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    q1 = expit(x.numpy() @ p["V1"] + p["a1"])
    q2 = expit(q1 @ p["V2"] + p["a2"])
    found = model.recognise(x)
    np.testing.assert_allclose(found["hidden1"], q1, atol=1e-14)
    np.testing.assert_allclose(found["hidden2"], q2, atol=1e-14)
    logits = q2 @ p["U"].T + p["d"]
    np.testing.assert_allclose(model.class_log_probs(x), logits - logsumexp(logits, axis=1, keepdims=True), atol=1e-13)


def test_a_machine_without_recognition_net_says_so() -> None:
    model = dbm([3, 2, 2], classes=3)
    assert model.class_kind == "exact"
    with pytest.raises(CapabilityError, match="no recognition net"):
        model.recognise(torch.zeros(1, 3, dtype=torch.float64))


def test_a_recognition_net_without_labels_classifies_nothing() -> None:
    model = dbm([3, 2, 2], recognition=True)
    assert "classify" not in model.capabilities()
    with pytest.raises(CapabilityError, match="no label units"):
        model.class_log_probs(torch.zeros(1, 3, dtype=torch.float64))


# --- the annealing path with real visibles ---


def base_of(of: Case, odd: bool, seed: int = 5) -> dict[str, Tensor]:
    """Biases for the even blocks, and for the `odd` ones too, or not."""
    blocks = model_of(of).base_blocks if odd else model_of(of).kept_blocks
    return {block: normal((of.sweeping.block_units(block),), seed, 0.5) for block in blocks}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("odd", [True, False])
def test_the_density_of_the_path_is_that_of_a_machine_with_changed_parameters(
    name: str, beta: float, odd: bool
) -> None:
    # f_beta(even) = sum over odd of exp(-E), weights times beta, biases on the way, from 0 where there is no base.
    of = case(name, 3, 5)
    model, reference, base = model_of(of), Reference.of(of), base_of(of, odd)
    assert set(base) == set(model.blocks if odd else model.kept_blocks)
    kept = {block: states for block, states in cases.some_states(of, 30).items() if block in model.kept_blocks}
    depth, k = len(reference.W), model.class_count
    even = {"visible": 0, **{f"hidden{n}": n for n in range(2, depth + 1, 2)}}
    places = {"visible": 0, **{layer: n for n, layer in enumerate(model.layers, start=1)}}
    biases = [beta * b for b in reference.b]
    for block in base.keys() - {"label"}:
        biases[places[block]] = biases[places[block]] + (1 - beta) * base[block].numpy()
    d = None if reference.d is None else beta * reference.d
    if d is not None and "label" in base:
        d = d + (1 - beta) * base["label"].numpy()
    U = None if reference.U is None else beta * reference.U
    at = Reference([beta * W for W in reference.W], biases, reference.s, U, d)
    expected = []
    for row in range(30):
        fits = np.ones(len(at.layers[0]), bool)
        for block, states in kept.items():
            if block != "visible":
                layer = at.layers[-1] if block == "label" else at.layers[even[block] - 1]
                fits &= (layer == states[row].numpy()).all(1)
        log_weights = -at.joint_energy(kept["visible"][row : row + 1].numpy(), *(layer[fits] for layer in at.layers))
        expected.append(logsumexp(log_weights))
    assert k == (0 if d is None else len(d))
    found = model.annealed_log_density(model.annealed_at(kept), base, beta)
    np.testing.assert_allclose(found, expected, atol=1e-10 if of.enumerable else 2e-5)
    if beta == 0.0:
        assert model.annealed_base(base) == pytest.approx(at.log_z(), abs=1e-10)
    if beta == 1.0:
        assert at.log_z() == pytest.approx(model.log_partition(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("odd_base", [True, False])
def test_a_transition_is_odd_layers_given_even_ones_and_back_at_any_real_visibles(
    name: str, beta: float, odd_base: bool
) -> None:
    # f(x) p(odd | x) p(y | odd) = f(y) p(odd | y) p(x | odd) for any x, y and odd layers: reversible, and f unchanged.
    of = case(name, 3, 5)
    model, base, n = model_of(of), base_of(of, odd_base), 40
    x, y = (
        {block: states for block, states in cases.some_states(of, n, seed).items() if block in model.kept_blocks}
        for seed in (1, 2)
    )
    odd = {b: states for b, states in cases.some_states(of, n, 3).items() if b not in model.kept_blocks}
    keys, sweep = ChainKeys.of(0, n), torch.ones(n, dtype=torch.int64)

    def flow(start: dict[str, Tensor], end: dict[str, Tensor]) -> Tensor:
        machine = model.machine
        drawn = [odd[b] for b in machine.side(True)] + [end[b] for b in machine.side(False)]
        state = model.annealed_at(start)
        with scripted(drawn) as script:
            after = model.annealed_transition(state, base, beta, keys, sweep)
        assert all(torch.equal(after.kept[block], end[block]) for block in end)
        return model.annealed_log_density(state, base, beta) + script.log_prob

    np.testing.assert_allclose(flow(x, y), flow(y, x), atol=1e-10 if of.enumerable else 5e-5)
    if beta:
        other = LayeredPath(model.machine, base).log_density(x, model.annealed_at(x).activations, 0.5 * beta)
        now = model.annealed_log_density(model.annealed_at(x), base, beta)
        assert float((other - now).abs().max()) > 0.01


# --- what is built ---


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_shared_and_not_copied(name: str) -> None:
    of = case(name)
    model = model_of(of)
    rebuilt = catalog.build(of.manifest, model.tensors())
    assert isinstance(rebuilt, LayeredModel)
    own = {tensor.data_ptr() for tensor in rebuilt.tensors().values()}
    used = [*rebuilt.machine.weights, *rebuilt.machine.biases, rebuilt.machine.log_sigma, rebuilt.machine.U]
    assert {tensor.data_ptr() for tensor in used if tensor is not None} <= own


def test_log_sigma_is_a_logarithm() -> None:
    model = grbm(3, 2)
    assert isinstance(model, GRBM)
    wider = replace(model, log_sigma=model.log_sigma + math.log(2.0))
    np.testing.assert_allclose(wider.machine.sigma, 2 * model.machine.sigma, rtol=1e-14)
