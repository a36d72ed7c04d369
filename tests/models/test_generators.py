"""Models with a generator: how it is described, its draws step by step, and their refinement by Langevin dynamics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog, rng
from models.architectures.deconv import Deconv
from models.dynamics import reflect
from models.errors import CapabilityError, CheckpointError
from models.families.adversarial import Adversarial
from models.generator import LOG_STD
from models.rng import ChainKeys
from models.samplers.generator import FromGenerator
from tests.models.cases import Case, case, normal
from tests.models.kernels import clamp_row, widen

NAMES = ["adversarial", "adversarial unit"]


def adversarial(name: str, visible: int = 5) -> tuple[Case, Adversarial]:
    of = case(name, visible)
    assert isinstance(of.model, Adversarial)
    return of, of.model


# --- the family ---


@pytest.mark.parametrize("name", NAMES)
def test_an_energy_is_that_of_its_network_alone(name: str) -> None:
    of, model = adversarial(name)
    energy = {n.removeprefix("energy."): t for n, t in model.tensors().items() if n.startswith("energy.")}
    config = {**of.manifest.config, "architecture": of.manifest.config["architecture"]["energy"]}
    alone = catalog.build(of.manifest.model_copy(update={"family": "mlp_energy", "config": config}), energy)
    x = normal((7, 5), 3).sigmoid()
    assert torch.equal(alone.energy(x), model.energy(x))


def test_a_generator_of_values_from_0_to_1_stays_within() -> None:
    for name, within in (("adversarial", False), ("adversarial unit", True)):
        made = adversarial(name)[1].generate(30 * normal((200, 2), 1))
        assert made.shape == (200, 5)
        assert bool(((made >= 0) & (made <= 1)).all()) is within


def changed(config: dict[str, Any], log_std: float = -1.0) -> None:
    of, model = adversarial("adversarial")
    manifest = of.manifest.model_copy(update={"config": {**of.manifest.config, **config}})
    catalog.build(manifest, model.tensors() | {LOG_STD: torch.tensor(log_std).double()})


MLP = {"name": "mlp", "hidden": [8, 8], "activation": "tanh"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"latent": None}, "config.latent must say of how many numbers z is made"),
        ({"latent": 0}, "config.latent must say"),
        ({"latent": True}, "config.latent must say"),
        ({"latent": 3}, r"tensor generator.body.1.weight has shape \[6, 2\]; expected \[6, 3\]"),
        ({"architecture": MLP}, "config.architecture.energy must say how the energy is made"),
        ({"architecture": {"energy": MLP}}, "config.architecture.generator must say how the generator is made"),
        ({"architecture": {"energy": {"name": "rnn"}, "generator": MLP}}, "architecture.name is 'rnn'"),
        ({"prior_std": 0}, "config.prior_std must be a number above 0"),
        (
            {"architecture": {"energy": MLP, "generator": {"name": "deconv", "image": [2, 2, 3]}}},
            "image 2 x 2 x 3 has 12 numbers; expected 5",
        ),
        (
            {"architecture": {"energy": MLP, "generator": {"name": "deconv", "image": [2, 2]}}},
            "image: List should have at least 3 items",
        ),
        ({"architecture": {"energy": MLP, "generator": {"name": "deconv"}}}, "image: Field required"),
    ],
)
def test_what_does_not_describe_two_networks_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        changed(config)


@pytest.mark.parametrize("log_std", [41.0, -41.0, 1e30])
def test_a_log_std_whose_exponential_is_no_number_is_refused(log_std: float) -> None:
    with pytest.raises(
        CheckpointError, match=r"generator.log_std is the logarithm of a standard deviation beyond \+-40"
    ):
        changed({}, log_std)


# --- images ---


@pytest.mark.parametrize("image", [(7, 5, 1), (8, 8, 3), (1, 1, 2)])
def test_an_image_is_made_place_by_place_with_channels_last(image: tuple[int, int, int]) -> None:
    network = Deconv(image=list(image), channels=[4, 3, 2]).network((6,), math.prod(image)).double()
    z = normal((3, 6), 1)
    planes = network.body(z).view(3, 2, *(4 * math.ceil(size / 4) for size in image[:2]))
    weight, bias = network.head.weight.detach(), network.head.bias.detach()
    made = torch.nn.functional.conv2d(planes, weight, bias, padding=1)
    found = network(z).detach().view(3, *image)
    for y, x, colour in ((0, 0, 0), (image[0] - 1, image[1] - 1, image[2] - 1)):
        np.testing.assert_allclose(found[:, y, x, colour], made[:, colour, y, x].detach(), atol=1e-12)


# --- draws ---


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_equals_its_reference_step_by_step(name: str) -> None:
    _, model = adversarial(name)
    keys, beta, e = ChainKeys.of(5, 3), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64), 0.1
    sampler, clamp = FromGenerator(steps=2, step_size=e), widen(clamp_row(5, {2: 0.3}), 3)

    def drawn(sweep: int) -> Tensor:
        at = torch.full((3,), sweep)
        x = model.generate(rng.normals(keys, at, 0, 2)) + 0.2 * rng.normals(keys, at, 1, 5)
        x = reflect(x.detach(), model.bounds)[0]
        x[:, 2] = 0.3
        return x

    state = sampler.init(model, keys, None, clamp)
    np.testing.assert_allclose(state.visible, drawn(0), atol=1e-12)
    for sweep in range(1, 4):
        x = drawn(sweep)
        for stream in (2, 3):
            noise = rng.single_normals(keys, torch.full((3,), sweep), stream, 5).double()
            x = reflect(x + 0.5 * e**2 * beta[:, None] * model.score(x) + e * noise, model.bounds)[0]
            x[:, 2] = 0.3
        state, info = sampler.step(model, state, keys, clamp, beta)
        np.testing.assert_allclose(state.visible, x, atol=1e-12)
        assert torch.equal(info.expected_visible(), state.visible)
    assert sampler.approximate(model, clamped=False)


def test_draws_do_not_depend_on_where_chains_were() -> None:
    _, model = adversarial("adversarial")
    keys, sampler = ChainKeys.of(1, 40), FromGenerator()
    free, told = (sampler.init(model, keys, start, None) for start in (None, normal((40, 5), 2)))
    (free, _), (told, _) = sampler.step(model, free, keys), sampler.step(model, told, keys)
    assert torch.equal(free.visible, told.visible)
    again, _ = sampler.step(model, free, keys)
    assert not bool((again.visible == free.visible).any())


def test_langevin_steps_lead_from_the_generators_law_to_the_energys() -> None:
    # E(x) = |x|^2 / (2 1.5^2) and a flat network; G(z) = 4 everywhere.
    of, model = adversarial("adversarial", 2)
    flat = {n: torch.zeros_like(t) for n, t in model.tensors().items()}
    tensors = flat | {"generator.head.bias": torch.full((2,), 4.0).double(), LOG_STD: torch.tensor(-2.0).double()}
    plain = catalog.build(of.manifest, tensors)
    n, keys, found = 1000, ChainKeys.of(3, 1000), list[Tensor]()
    for steps in (0, 60):
        sampler = FromGenerator(steps=steps, step_size=0.6)
        state = sampler.init(plain, keys, None, None)
        found.append(sampler.step(plain, state, keys)[0].visible)
    # |z| beyond 5.2 at either of two units: a false alarm less often than once in 10^6 seeds.
    assert float((found[0].mean(0) - 4).abs().max()) < 5.2 * math.exp(-2) / math.sqrt(n)
    left = 4 * (1 - 0.5 * 0.6**2 / 1.5**2) ** 60
    assert float((found[1].mean(0) - left).abs().max()) < 5.2 * 1.6 / math.sqrt(n)
    np.testing.assert_allclose(found[1].std(0), 1.5 / math.sqrt(1 - 0.6**2 / 1.5**2 / 4), rtol=0.12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": -1}, "steps must be a whole number from 0 to 10000; got -1"),
        ({"steps": 10_001}, "steps must be a whole number"),
        ({"step_size": 0.0}, "step_size must be a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FromGenerator(**settings)


def test_a_model_without_a_generator_is_refused() -> None:
    model, keys = case("mlp_energy").model, ChainKeys.of(1, 2)
    assert not FromGenerator.applies_to(model)
    with pytest.raises(CapabilityError, match="generator needs a generator, which mlp_energy has not"):
        FromGenerator().init(model, keys, None, None)


def test_the_law_of_the_energy_stands_before_the_generators() -> None:
    assert catalog.samplers_of(adversarial("adversarial")[1]) == ["hmc", "generator", "langevin", "mala"]
