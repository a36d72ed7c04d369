"""Families whose energy is a network's: energies, scores, classes, features, and bits that no batch changes."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog
from models.architecture import ACTIVATIONS, Activation, architectures, read
from models.architectures.mlp import MLP
from models.errors import CapabilityError, CheckpointError
from models.families.jem import JEM
from models.families.mlp_energy import MLPEnergy
from models.network_family import NetworkEnergy
from tests.models.cases import case, manifest_of, names, normal

NAMES = names(lambda of: isinstance(of.model, NetworkEnergy))


def model_of(name: str, visible: int = 5, dtype: torch.dtype = torch.float64) -> NetworkEnergy:
    model = case(name, visible, dtype=dtype).model
    assert isinstance(model, NetworkEnergy)
    return model


def points(n: int, visible: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((n, visible), 3).sigmoid().to(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_minus_the_slope_of_the_energy(name: str) -> None:
    model, x, step = model_of(name), points(7), 1e-5
    for unit in range(x.shape[1]):
        moved = torch.zeros_like(x)
        moved[:, unit] = step
        slope = (model.energy(x + moved) - model.energy(x - moved)) / (2 * step)
        np.testing.assert_allclose(model.score(x)[:, unit], -slope, atol=1e-8)
    energy, gradient = model.energy_and_gradient(x)
    np.testing.assert_allclose(energy, model.energy(x), atol=1e-12)
    np.testing.assert_allclose(gradient, -model.score(x), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_of_a_row_do_not_depend_on_its_batch(name: str, threads: int) -> None:
    before = torch.get_num_threads()
    model, x = model_of(name, dtype=torch.float32), points(150, dtype=torch.float32)
    energy, gradient = model.energy_and_gradient(x)
    try:
        torch.set_num_threads(threads)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
        for rows in (order, order[:1], order[3:70], order[60:129]):
            some_energy, some_gradient = model.energy_and_gradient(x[rows])
            assert torch.equal(some_energy, energy[rows])
            assert torch.equal(some_gradient, gradient[rows])
    finally:
        torch.set_num_threads(before)
    assert energy.dtype == gradient.dtype == torch.float64
    assert [len(t) for t in model.energy_and_gradient(x[:0])] == [0, 0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [[7], [33, 20, 9]])
def test_compiled_slopes_of_a_perceptron_are_those_of_automatic_differentiation(
    activation: Activation, hidden: list[int]
) -> None:
    # To single precision, out to where exponentials saturate; the reference is computed in double precision.
    architecture = MLP(hidden=hidden, activation=activation)
    shapes = architecture.shapes((5,), 3)
    parameters = {name: normal(shape, n, 0.7) for n, (name, shape) in enumerate(shapes.items())}
    x = torch.cat((normal((200, 5), 20, 3.0), normal((60, 5), 21, 300.0))).float()
    for label in (None, torch.arange(260) % 4 - 1):
        model, exact = (
            JEM(architecture, (5,), "real", {n: t.to(dtype) for n, t in parameters.items()}, 3, 1.5)
            for dtype in (torch.float32, torch.float64)
        )
        assert model._pullback is not None
        assert exact._pullback is None
        found, expected = model.energy_and_gradient(x, label), exact.energy_and_gradient(x, label)
        for a, b in zip(found, expected, strict=True):
            scale = b.abs().reshape(260, -1).amax(1).clamp(min=1.0).reshape(-1, *[1] * (b.ndim - 1))
            np.testing.assert_allclose(a / scale, b / scale, atol=2e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_derivatives_along_directions_are_those_of_automatic_differentiation(activation: Activation) -> None:
    # And so are their gradients by the parameters, each term with weights of its own; in double precision without them.
    architecture = MLP(hidden=[33, 20, 9], activation=activation)
    drawn = {name: normal(shape, n, 0.5) for n, (name, shape) in enumerate(architecture.shapes((5,), 1).items())}
    x, v, weights = normal((40, 5), 20, 2.0), normal((40, 5), 21), normal((40, 3), 22)

    def found(dtype: torch.dtype) -> dict[str, Tensor]:
        parameters = {name: p.to(dtype).requires_grad_() for name, p in drawn.items()}
        model, at = MLPEnergy(architecture, (5,), "real", parameters, 0, 1.5), x.to(dtype).requires_grad_()
        along = model.along(at.detach(), v.to(dtype))
        assert (along is None) == (dtype == torch.float64)
        if along is None:
            (slope,) = torch.autograd.grad(model.energy(at).sum(), at, create_graph=True)
            (product,) = torch.autograd.grad((slope * v).sum(), at, create_graph=True)
            terms = (slope * v).sum(1), (product * v).sum(1), slope.square().sum(1)
        else:
            terms = along.first, along.second, along.slope().square().sum(1)
        total = sum((w.to(dtype) * term).sum() for w, term in zip(weights.T, terms, strict=True))
        slopes = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(("first", "second", "squared", *parameters), (*terms, *slopes), strict=True))

    single, double = found(torch.float32), found(torch.float64)
    for name, expected in double.items():
        scale = float(expected.detach().abs().max().clamp(min=1.0))
        np.testing.assert_allclose(single[name].detach() / scale, expected.detach() / scale, atol=2e-5, err_msg=name)


def test_compiled_slopes_go_by_parameters_as_they_are_now() -> None:
    # Training changes them in place.
    model, x = model_of("mlp_energy", dtype=torch.float32), points(3, dtype=torch.float32)
    before = model.energy_and_gradient(x)[1]
    for parameter in model.tensors().values():
        parameter.mul_(2.0)
    after = model.energy_and_gradient(x)[1]
    assert not torch.equal(after, before)
    slope = torch.func.grad(lambda at: model.energy(at).sum())(x)
    np.testing.assert_allclose(after, slope, atol=1e-4)


def test_pieces_are_as_large_as_bits_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mlp_energy", dtype=torch.float32)
    assert model._most_rows in (64, 256)
    slope = NetworkEnergy._slope

    def by_size(self: NetworkEnergy, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energy, gradient = slope(self, x, label)
        return energy, gradient * (1 + 1e-6 * (len(x) == 192))

    monkeypatch.setattr(NetworkEnergy, "_slope", by_size)
    assert model_of("mlp_energy", dtype=torch.float32)._most_rows == 64


def test_threads_may_share_a_network() -> None:
    # Chains, estimates and requests of one process all ask the same model. Parameters that are put in for the length
    # of a call, as torch.func.functional_call does, are taken out under the feet of the others.
    model, x = model_of("conv_energy"), points(64)
    energy, gradient = model.energy_and_gradient(x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.energy_and_gradient(x), range(200)):
            assert torch.equal(found[0], energy)
            assert torch.equal(found[1], gradient)


@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_had_in_inference_mode_too(name: str) -> None:
    model, x = model_of(name), points(3)
    with torch.inference_mode():
        found = model.energy_and_gradient(x.clone())[1]
        np.testing.assert_allclose(found, -model.score(x.clone()), atol=1e-12)
    assert torch.equal(found, model.energy_and_gradient(x)[1])


def test_a_quadratic_term_keeps_real_visibles_together() -> None:
    model, x = model_of("mlp_energy"), points(4)
    without = model.network.outputs(x)[:, 0]
    np.testing.assert_allclose(model.energy(x) - without, x.square().sum(1) / (2 * 1.5**2), atol=1e-12)


def test_a_jem_is_its_logits() -> None:
    model, x = model_of("jem"), points(6)
    assert isinstance(model, JEM)
    logits = model.network.outputs(x)
    np.testing.assert_allclose(model.energy(x), -logits.logsumexp(1), atol=1e-12)
    np.testing.assert_allclose(model.class_log_probs(x), torch.log_softmax(logits, 1), atol=1e-12)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    np.testing.assert_allclose(model.class_energy(x, labels), -logits[range(6), labels], atol=1e-12)
    # log p(y | x) = E(x) - E(x, y), and a label of -1 is none.
    some = torch.tensor([0, -1, 2, -1, 1, 2])
    energy, gradient = model.energy_and_gradient(x, some)
    free = model.energy_and_gradient(x)
    assert torch.equal(energy[some < 0], free[0][some < 0])
    assert torch.equal(gradient[some < 0], free[1][some < 0])
    np.testing.assert_allclose(energy[some >= 0], -logits[some >= 0, some[some >= 0]], atol=1e-12)
    with pytest.raises(CapabilityError, match="no classes"):
        model_of("mlp_energy").energy_and_gradient(x, some)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_head_takes(name: str) -> None:
    model, x = model_of(name), points(4)
    own = {n.removeprefix("energy."): t for n, t in model.tensors().items()}
    head = {n.removeprefix("head."): t for n, t in own.items() if n.startswith("head.")}
    outputs = model.features(x) @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(outputs, model.network.outputs(x), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_rebuilt_from_its_manifest(name: str) -> None:
    of = case(name, 5)
    rebuilt = catalog.build(of.manifest, of.model.tensors())
    assert torch.equal(rebuilt.energy(points(3)), of.model.energy(points(3)))
    assert {n: tuple(t.shape) for n, t in of.model.tensors().items()} == type(of.model).tensor_shapes(of.manifest, {})


@pytest.mark.parametrize("kind", sorted(architectures()))
@pytest.mark.parametrize("shape", [(9, 8), (8, 8, 3)])
def test_every_architecture_takes_images_and_treats_examples_apart(kind: str, shape: tuple[int, ...]) -> None:
    count = math.prod(shape) if kind in ("dilated", "unet", "deconv") else 2  # those that make images
    settings = {"image": [*shape, 1][:3]} if kind == "deconv" else {}
    network = architectures()[kind](**settings).network(shape, count).double()
    x = normal((4, *shape), 1)
    outputs = network(x).detach()
    assert outputs.shape == (4, count)
    assert not list(network.buffers())
    np.testing.assert_allclose(network(x[2:3]).detach(), outputs[2:3], atol=1e-12)


def test_a_u_net_of_patches_answers_with_images_of_the_same_layout() -> None:
    made = read({"architecture": {"name": "unet", "channels": [4, 8, 8], "patch": 2, "activation": "tanh"}})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = made.network((10, 6, 3), 180).double().requires_grad_(False)
    slope = torch.func.jacrev(lambda y: network(y[None])[0])(normal((10, 6, 3), 1)).reshape(10, 6, 3, 10, 6, 3)
    near, far = (slope[at[0], at[1], :, 0, 0].abs().mean() for at in ((0, 0), (9, 5)))
    assert float(near) > 3 * float(far) > 0  # what a unit becomes rests most on its own place, and on all others
    with pytest.raises(CheckpointError, match="5 x 6 pixels are not made of patches of 2 x 2"):
        made.shapes((5, 6), 30)


def test_the_probability_flow_goes_through_u_nets() -> None:
    config = {"architecture": {"name": "unet", "channels": [2, 2], "patch": 2}, "sigmas": [1.0, 0.5]}
    of = manifest_of("score_network", 72, "real", config=config)
    of = of.model_copy(update={"visible": of.visible.model_copy(update={"shape": [12, 6]})})
    shapes = catalog.families()["score_network"].tensor_shapes(of, {})
    still = catalog.build(of, {name: torch.zeros(shape).double() for name, shape in shapes.items()})
    x = normal((2, 72), 1)
    energy, error = still.energy_with_error(x)
    # A field of zeros leaves the normal law at the largest scale as it is.
    torch.testing.assert_close(energy, 0.5 * x.square().sum(1) + 36 * math.log(2 * math.pi))
    torch.testing.assert_close(error, torch.zeros(2).double())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.architecture must say"),
        ({"architecture": {"name": "transformer"}}, "expected one of mlp"),
        ({"architecture": {"hidden": []}}, "hidden: List should have at least 1 item"),
        ({"architecture": {"hidden": [4], "dropout": 0.5}}, "dropout: Extra inputs"),
        ({"architecture": {"hidden": [4], "activation": "sin"}}, "activation: Input should be 'swish'"),
        ({"architecture": {"hidden": [4]}, "prior_std": 0}, "prior_std must be a number above 0"),
    ],
)
def test_a_wrong_architecture_is_refused_by_name(config: dict[str, object], message: str) -> None:
    manifest = manifest_of("mlp_energy", 3, "real", config=config)
    good = manifest_of("mlp_energy", 3, "real", config={"architecture": {"hidden": [4]}})
    shapes = catalog.families()["mlp_energy"].tensor_shapes(good, {})
    with pytest.raises(CheckpointError, match=message):
        catalog.build(manifest, {name: torch.zeros(shape) for name, shape in shapes.items()})


def test_convolutions_need_images_and_a_jem_needs_classes() -> None:
    with pytest.raises(CheckpointError, match="needs images"):
        read({"architecture": {"name": "conv"}}).shapes((9,), 1)
    with pytest.raises(CheckpointError, match="3 halvings leave nothing of images of 4 x 9"):
        read({"architecture": {"name": "conv"}}).shapes((4, 9), 1)
    with pytest.raises(CheckpointError, match="classes"):
        catalog.families()["jem"].tensor_shapes(
            manifest_of("jem", 3, "unit", config={"architecture": {"name": "mlp"}}), {}
        )


def test_chains_start_in_the_visibles_own_domain() -> None:
    real, unit = model_of("mlp_energy"), model_of("mlp_energy unit")
    assert (real.bounds, unit.bounds) == (None, (0.0, 1.0))
    states = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None].expand(-1, 5)
    inside = (states[:, 0] >= 0) & (states[:, 0] <= 1)
    assert torch.equal(torch.isfinite(unit.noise("visible", 7).log_prob(states)), inside)
    normal_law = -0.5 * (states / 1.5).square() - math.log(1.5) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(real.noise("visible", 7).log_prob(states), normal_law.sum(1), atol=1e-12)
