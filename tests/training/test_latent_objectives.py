"""A generator against its discriminator, and the tilt of a generator that is held: slopes, and a law recovered."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.catalog import build as build_model
from models.latent_family import LatentModel
from tests.models.cases import case, manifest_of, normal
from tests.training.toys import dataset
from training.config import LikelihoodSettings, MonitorSettings, validated
from training.errors import DivergenceError, RecipeError
from training.fit import begin, manifest, model_of, train
from training.likelihood import evaluate, monitor
from training.objective import Batch, Draws, build
from training.pictures import untilted
from training.stages import names, stage

NAMES = ["tilted", "latent_discriminator"]


def tilting(name: str) -> LatentModel:
    model = case(name, 4, seed=2).model
    assert isinstance(model, LatentModel)
    return model


def differences(tensor: Tensor, place: int, figure: Any) -> float:
    values = []
    for move in (1e-5, -1e-5):
        tensor.view(-1)[place] += move
        values.append(float(figure()))
        tensor.view(-1)[place] -= move
    return (values[0] - values[1]) / 2e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("r1", [0.0, 2.0])
def test_each_side_of_a_gan_climbs_what_is_its_own(name: str, r1: float) -> None:
    model, x, draws = tilting(name), normal((6, 4), 5).sigmoid(), Draws(1, 3)
    found, _ = build({"name": "gan", "r1": r1}).gradient(model, Batch(x), draws, {})
    assert set(found) == set(model.tensors())
    first, second = (draws.normals(torch.empty(6, 2).double(), 3, stream) for stream in (0, 1))
    made = model.generate(first)

    def told_apart() -> Tensor:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.energy(at).sum(), at)
        gain = torch.sigmoid(-model.energy(x)).log().mean() + torch.sigmoid(model.energy(made)).log().mean()
        return gain - 0.5 * r1 * slope.square().sum(1).mean()

    def taken_for_data() -> Tensor:
        return torch.sigmoid(-model.energy(model.generate(second))).log().mean()

    for parameter, tensor in model.tensors().items():
        climbed = taken_for_data if parameter.startswith("generator.") else told_apart
        for place in range(min(2, tensor.numel())):
            slope = differences(tensor, place, climbed)
            assert float(found[parameter].reshape(-1)[place]) == pytest.approx(slope, abs=1e-7, rel=1e-5), parameter


@pytest.mark.parametrize("name", NAMES)
def test_tilting_climbs_the_contrast_of_data_and_chains_and_holds_the_generator(name: str) -> None:
    model, x, draws = tilting(name), normal((6, 4), 5).sigmoid(), Draws(1, 3)
    objective = build({"name": "tilting", "start_at": "noise", "steps": 2, "step_size": 0.3, "energy_penalty": 0.1})
    found, memory = objective.gradient(model, Batch(x), draws, {})
    assert memory == {}
    assert set(found) == set(model.tilt_tensors())
    z = draws.normals(torch.empty(6, 2).double(), 3, 0)
    for sweep in (6, 7):
        slope = model.latent_energy_and_gradient(z)[1]
        z = z - 0.045 * slope + 0.3 * draws.normals(z, sweep, 1)
    made = model.generate(z)

    def climbed() -> Tensor:
        up, down = model.energy(x), model.energy(made)
        return down.mean() - up.mean() - 0.1 * (up.square().mean() + down.square().mean())

    for parameter, tensor in model.tilt_tensors().items():
        slope = differences(tensor, 0, climbed)
        assert float(found[parameter].reshape(-1)[0]) == pytest.approx(slope, abs=1e-7, rel=1e-5), parameter


def test_chains_of_tilting_persist_and_energies_too_far_apart_stop_it() -> None:
    model, batch = tilting("tilted"), Batch(normal((6, 4), 5))
    objective = build({"name": "tilting", "chains": 9, "steps": 1, "step_size": 1e-9})
    first = objective.start(model, {}, 3)
    _, memory = objective.gradient(model, batch, Draws(3, 0), first)
    assert first["chains"].shape == (9, 2)
    torch.testing.assert_close(memory["chains"], first["chains"])
    with pytest.raises(DivergenceError, match="largest_gap"):
        build({"name": "tilting", "largest_gap": 1e-6}).gradient(model, batch, Draws(3, 0), memory)


CONFIG: dict[str, Any] = {
    "latent": 1,
    "architecture": {
        "energy": {"name": "mlp", "hidden": [16], "activation": "tanh"},
        "generator": {"name": "mlp", "hidden": [2], "activation": "relu"},
    },
}


def line() -> LatentModel:
    """The generator is N(0, 1) itself, the energy small."""
    pair = torch.tensor([[1.0], [-1.0]])
    tensors = {
        "energy.body.1.weight": normal((16, 1), 1).float(),
        "energy.body.1.bias": normal((16,), 2).float(),
        "energy.head.weight": 0.1 * normal((1, 16), 3).float(),
        "energy.head.bias": torch.zeros(1),
        "generator.body.1.weight": pair,
        "generator.body.1.bias": torch.zeros(2),
        "generator.head.weight": pair.T.contiguous(),
        "generator.head.bias": torch.zeros(1),
    }
    model = build_model(manifest_of("tilted", 1, "real", config=CONFIG), tensors)
    assert isinstance(model, LatentModel)
    return model


GRID = torch.linspace(-6, 6, 2001)[:, None]


def divergence(model: LatentModel) -> float:
    """KL of N(1, 0.6^2) from the model, by quadrature, nats."""
    generator = -0.5 * GRID[:, 0].double().square()
    data = torch.log_softmax(-0.5 * ((GRID[:, 0].double() - 1) / 0.6).square(), 0)
    log_p = torch.log_softmax(generator - model.energy(GRID).double(), 0)
    return float((data.exp() * (data - log_p)).sum())


@pytest.mark.parametrize(("start_at", "steps"), [("persistent", 3), ("noise", 10)])
def test_tilting_recovers_the_tilt_from_the_generator_to_the_data(start_at: str, steps: int) -> None:
    model, x = line(), 1 + 0.6 * normal((4000, 1), 7).float()
    assert divergence(model) > 0.5
    settings = {"name": "tilting", "start_at": start_at, "chains": 64, "steps": steps, "step_size": 0.4}
    objective, memory = build(settings), build(settings).start(model, {}, 0)
    climbing = torch.optim.Adam(model.tilt_tensors().values(), lr=0.02, maximize=True)
    for step in range(150):
        for group in climbing.param_groups:
            group["lr"] = 0.04 * (1 - step / 150)
        gradient, memory = objective.gradient(model, Batch(x[64 * (step % 60) :][:64]), Draws(1, step), memory)
        for name, tensor in model.tilt_tensors().items():
            tensor.grad = gradient[name]
        climbing.step()
    assert divergence(model) < 0.05


def test_figures_of_a_tilt_are_its_log_ratio_to_the_generator() -> None:
    model, of = line(), manifest_of("tilted", 1, "real", config=CONFIG)
    data = dataset(1 + 0.6 * normal((500, 1), 7).float(), "real")
    z = torch.linspace(-8, 8, 4001).double()[:, None]
    weights = torch.log_softmax(-0.5 * z[:, 0].square(), 0)
    log_z = float((weights - model.energy(z.float()).double()).logsumexp(0))
    ratio = -float(model.energy(data.test).double().mean()) - log_z
    found = evaluate(of, model, data, LikelihoodSettings(chains=64, temperatures=10), 0, lambda *_: None)
    metrics = found.metrics
    assert not [name for name in metrics if "likelihood" in name]
    assert found.log_partition is not None
    assert found.log_partition.value == metrics["log_partition_ais_hmc"]
    assert abs(metrics["test_log_ratio_to_generator"] - ratio) < 4.9 * metrics["log_partition_ais_hmc_stderr"] + 1e-9
    made = float(weights.softmax(0) @ model.energy(z.float()).double())
    assert metrics["generator_energy"] == pytest.approx(made, abs=0.02)  # a mean of 10,000 within five standard errors
    glance = monitor(of, model, data, MonitorSettings(), 0, 1)
    assert glance["log_ratio_to_generator_validation"] == pytest.approx(ratio, abs=0.1)


# --- recipes ---


def recipe(**model: Any) -> Any:
    tree = {
        "name": "toy",
        "data": {"dataset": "digits", "domain": "unit", "validation": 50, "test": 50},
        "model": {"family": "tilted", **CONFIG, **model},
        "objective": {"name": "gan"},
        "fit": {"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
    }
    return validated(tree, "toy")


def test_both_networks_begin_as_pytorch_makes_them() -> None:
    data = dataset(torch.rand(20, 9, generator=torch.Generator().manual_seed(1)), "unit")
    made = recipe()
    fitted = begin(made, data, build({"name": "gan"}))
    of = manifest(made, data)
    assert of.config["architecture"]["energy"] == {"name": "mlp", "hidden": [16], "activation": "tanh"}
    model = model_of(of, fitted.parameters)
    assert isinstance(model, LatentModel)
    assert model.generate(torch.zeros(2, 1)).shape == (2, 9)
    bound = 1 / math.sqrt(9)
    weight = fitted.parameters["energy.body.1.weight"]
    assert 0.8 * bound < float(weight.abs().max()) <= bound
    np.testing.assert_array_equal(weight, begin(made, data, build({"name": "gan"})).parameters["energy.body.1.weight"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"latent": None}, "config.latent must say"),
        ({"architecture": {"energy": {"name": "mlp"}}}, "hidden: Field required|generator must say"),
        ({"architecture": {"name": "mlp", "hidden": [4]}}, "architecture.energy must say"),
        ({"family": "rbm", "hidden": 3, "architecture": None}, "rbm has no generator"),
        ({"family": "mlp_energy", "architecture": {"hidden": [3]}}, "mlp_energy has no generator"),
    ],
)
def test_a_recipe_without_what_a_generator_needs_is_refused(model: dict[str, Any], message: str) -> None:
    data = dataset(torch.rand(20, 9, generator=torch.Generator().manual_seed(1)), "unit")
    with pytest.raises(RecipeError, match=message):
        begin(recipe(**model), data, build({"name": "gan"}))


def test_a_generator_is_trained_first_and_held_while_its_tilt_is_learned() -> None:
    data = dataset(torch.rand(20, 9, generator=torch.Generator().manual_seed(1)), "unit")
    of = recipe()
    settings = {"objective": {"name": "tilting", "steps": 1, "chains": 8}, "fit": of.fit.model_dump()}
    of = validated({**of.model_dump(), "finetuning": settings}, "toy")
    assert names(of) == ["training", "fine-tuning"]
    finished: list[dict[str, Tensor]] = []
    for _ in range(2):
        at = stage(of, data, finished)
        fitted = at.begin()
        first = {name: tensor.clone() for name, tensor in fitted.parameters.items()}
        train(at.recipe, at.data, at.objective, fitted, lambda _: None)
        moved = {name.split(".")[0] for name, tensor in fitted.result.items() if not torch.equal(tensor, first[name])}
        assert moved == ({"energy"} if finished else {"energy", "generator"})
        assert not finished or all(torch.equal(first[name], tensor) for name, tensor in finished[0].items())
        finished.append(fitted.result)
    model = model_of(manifest(of, data), finished[1])
    assert isinstance(model, LatentModel)
    with Image.open(io.BytesIO(untilted(model, data, 0))) as picture:
        assert np.asarray(picture.convert("L")).std() > 5
