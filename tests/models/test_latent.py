"""Tilted generators: energies, their slope in latent space, the law of latent chains, and log Z relative to p_g.

Laws: independent chains, of which only the last state counts. Where generator and energy are linear, latents are normal
in closed form, and a moment off by 5.5 standard errors is a false alarm less often than once in 10^6 tests of twenty of
them. Else Pearson's chi-square at 1e-6 against sums over a fine grid of the latents; each named defect's statistic is
twice that bound or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog, rng
from models.errors import CheckpointError, InputError
from models.estimator import Effort
from models.estimators.ais_hmc import AISHMC
from models.families.composition import Composition
from models.families.tilted import Tilted
from models.latent_family import LatentModel
from models.manifest import Manifest, Visible
from models.rng import ChainKeys
from models.sampler import Sampler
from models.samplers.latent_hmc import LatentHMC
from models.samplers.latent_langevin import LatentLangevin
from tests.models.cases import case, manifest_of, normal
from tests.models.plane import FALSE_ALARM, Given, Plane, fast_rows

NAMES = ["latent_discriminator", "tilted", "tilted unit"]
SAMPLERS = {"latent_hmc": LatentHMC(0.4, 4, adaptation=0), "latent_langevin": LatentLangevin(0.8, adaptation=0)}


def model_of(name: str, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> LatentModel:
    model = case(name, 5, seed=3, dtype=dtype, scale=scale).model
    assert isinstance(model, LatentModel)
    return model


def latents(sampler: Sampler, model: LatentModel, n: int, sweeps: int, beta: float | None = None) -> Tensor:
    keys = ChainKeys.of(20261127, n)
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    with fast_rows():
        state = sampler.init(model, keys, None, None)
        for _ in range(sweeps):
            state, _ = sampler.step(model, state, keys, None, betas)
        np.testing.assert_allclose(state.visible, model.generate(state.blocks["latent"]), atol=1e-12)
    return state.blocks["latent"]


# --- energies ---


@pytest.mark.parametrize("name", NAMES)
def test_energies_are_the_networks_output_or_minus_it(name: str) -> None:
    model, x = model_of(name), normal((6, 5), 1)
    sign = -1.0 if name == "latent_discriminator" else 1.0
    np.testing.assert_allclose(model.energy(x), sign * model.network.outputs(x)[:, 0], atol=1e-12)
    part = model.part()
    tensors = model.tensors()
    outputs = model.features(x) @ tensors[f"{part}.head.weight"].T + tensors[f"{part}.head.bias"]
    np.testing.assert_allclose(outputs[:, 0], sign * model.energy(x), atol=1e-12)
    made = model.generate(normal((9, 2), 2))
    assert bool(((made >= 0) & (made <= 1)).all()) == (name != "tilted")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [None, 0.4])
def test_latents_have_the_normal_law_times_the_tilt_whose_temperature_leaves_the_generator_alone(
    name: str, beta: float | None
) -> None:
    model, z, step = model_of(name), normal((7, 2), 4), 1e-5
    betas = None if beta is None else torch.full((7,), beta, dtype=torch.float64)
    energy, gradient = model.latent_energy_and_gradient(z, betas)
    tilt = (1.0 if beta is None else beta) * model.energy(model.generate(z))
    np.testing.assert_allclose(energy, 0.5 * z.square().sum(1) + math.log(2 * math.pi) + tilt, atol=1e-12)
    for unit in range(2):
        moved = torch.zeros_like(z)
        moved[:, unit] = step
        up, down = (model.latent_energy_and_gradient(z + sign * moved, betas)[0] for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, unit], (up - down) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_bits_of_a_latent_row_do_not_depend_on_its_batch(name: str) -> None:
    model, z = model_of(name, torch.float32), normal((150, 2), 4)
    found = (*model.latent_energy_and_gradient(z), model.visible_of(z))
    for rows in (torch.randperm(150, generator=torch.Generator().manual_seed(1)), torch.tensor([7]), torch.arange(70)):
        some = (*model.latent_energy_and_gradient(z[rows]), model.visible_of(z[rows]))
        assert all(torch.equal(one, other[rows]) for one, other in zip(some, found, strict=True))
    assert all(t.dtype == torch.float64 for t in found)


def test_what_the_visibles_start_from_is_not_theirs_to_say() -> None:
    model = model_of("tilted")
    assert (model.block_units("latent"), model.block_units("visible")) == (2, 5)
    for call in (lambda: model.noise("visible", 3), lambda: model.block_units("hidden")):
        with pytest.raises(InputError):
            call()


# --- a closed form ---

A = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.6]]).double()
OFFSET, SLOPE = torch.tensor([0.1, -0.4, 0.7]).double(), torch.tensor([0.6, -0.5, 0.9]).double()


def linear() -> LatentModel:
    """G(z) = A z + offset and E(x) = slope'x, of rectified units in pairs: z is N(-A'slope, 1)."""

    def pairs(units: int) -> Tensor:
        return torch.cat((torch.eye(units), -torch.eye(units))).double()

    body = {"body.1.weight": pairs(3), "body.1.bias": torch.zeros(6).double()}
    energy = body | {"head.weight": SLOPE[None] @ pairs(3).T, "head.bias": torch.zeros(1).double()}
    body = {"body.1.weight": pairs(2), "body.1.bias": torch.zeros(4).double()}
    generator = body | {"head.weight": A @ pairs(2).T, "head.bias": OFFSET}
    config = {
        "latent": 2,
        "architecture": {
            "energy": {"name": "mlp", "hidden": [6], "activation": "relu"},
            "generator": {"name": "mlp", "hidden": [4], "activation": "relu"},
        },
    }
    tensors = {f"energy.{n}": t for n, t in energy.items()} | {f"generator.{n}": t for n, t in generator.items()}
    return Tilted.from_tensors(manifest_of("tilted", 3, "real", config=config), tensors)


@pytest.mark.parametrize(
    ("sampler", "variance", "beta"),
    [
        (SAMPLERS["latent_hmc"], 1.0, None),
        (SAMPLERS["latent_langevin"], 1.0, 0.5),
        (LatentLangevin(0.8, adjust=False), 1 / (1 - 0.16), None),
    ],
)
def test_linear_tilts_move_the_latents_mean(sampler: Sampler, variance: float, beta: float | None) -> None:
    model, n = linear(), 4000
    np.testing.assert_allclose(model.generate(torch.zeros(1, 2).double())[0], OFFSET, atol=1e-12)
    z = latents(sampler, model, n, 40, beta)
    mean = -(1.0 if beta is None else beta) * A.T @ SLOPE
    assert float(((z.mean(0) - mean) / math.sqrt(variance / n)).abs().max()) < 5.5
    assert float((z.var(0) / variance - 1).abs().max()) < 5.5 * math.sqrt(2 / n)
    assert float(mean.norm()) > 20 * math.sqrt(1 / n)  # the generator's own law is told from it
    assert sampler.approximate(model, clamped=False) == (variance != 1.0)


@pytest.mark.parametrize("name", ["linear", "latent_discriminator"])
def test_log_z_is_that_of_the_tilt_under_the_generator(name: str) -> None:
    model = linear() if name == "linear" else model_of(name)
    axis = -9 + 18 * (torch.arange(300).double() + 0.5) / 300
    z = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(-0.5 * z.square().sum(1), 0)
    exact = float((weights.log() - model.energy(model.generate(z))).logsumexp(0))
    if name == "linear":
        assert exact == pytest.approx(float(-SLOPE @ OFFSET + 0.5 * (A.T @ SLOPE).square().sum()), abs=1e-6)
    found = AISHMC().estimate(model, Effort(chains=256, temperatures=25, seed=3))
    assert found.stderr < 0.1
    assert abs(found.value - exact) < 4.9 * found.stderr + 1e-6


# --- laws ---

CHAINS = 4000


class Latents(Given):
    """The latents of a model as a model of their own."""

    def __init__(self, model: LatentModel, beta: float | None) -> None:
        self.model, self.beta = model, beta

    def energy_and_gradient(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        betas = None if self.beta is None else torch.full((len(x),), self.beta, dtype=torch.float64)
        with fast_rows():
            return self.model.latent_energy_and_gradient(x, betas)


@pytest.mark.parametrize(
    ("name", "sampler", "beta"),
    [
        ("tilted", "latent_hmc", None),
        ("tilted", "latent_langevin", 0.4),
        ("latent_discriminator", "latent_hmc", 0.4),
        ("latent_discriminator", "latent_langevin", None),
    ],
)
def test_latent_chains_follow_the_law_of_the_tilt(name: str, sampler: str, beta: float | None) -> None:
    model = model_of(name, scale=1.5)
    p, _ = Plane(Latents(model, beta)).p_value(latents(SAMPLERS[sampler], model, CHAINS, 30, beta))
    assert p > FALSE_ALARM


@contextmanager
def tilt_forgotten() -> Iterator[None]:
    real = LatentModel.latent_energy_and_gradient

    def wrong(model: LatentModel, z: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return real(model, z, torch.zeros(len(z)).double() if beta is None else 0 * beta)

    with patch.object(LatentModel, "latent_energy_and_gradient", wrong):
        yield


@contextmanager
def never_refused() -> Iterator[None]:
    with patch.object(rng, "accept", lambda log_ratio, *_: torch.ones(len(log_ratio), dtype=torch.bool)):
        yield


def test_laws_tell_defects_of_latent_chains() -> None:
    model, sampler = model_of("tilted", scale=1.5), LatentLangevin(1.5, adaptation=0)
    plane = Plane(Latents(model, None))
    assert plane.p_value(latents(sampler, model, CHAINS, 30))[0] > FALSE_ALARM
    for defect in (tilt_forgotten, never_refused):
        with defect():
            seen = latents(sampler, model, CHAINS, 30)
        assert plane.p_value(seen)[1] > 2


def test_the_step_size_adapts_to_the_rate_that_is_aimed_at() -> None:
    model, keys, sampler = model_of("tilted", scale=1.5), ChainKeys.of(4, 128), LatentLangevin(0.01, adaptation=60)
    state, rates = sampler.init(model, keys, None, None), []
    for _ in range(120):
        state, info = sampler.step(model, state, keys)
        assert info.acceptance_rate is not None
        rates.append(float(info.acceptance_rate.mean()))
    assert float(np.mean(rates[60:])) == pytest.approx(sampler.target, abs=0.12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"target": 1.0}, "target"),
        ({"adaptation": -1}, "adaptation"),
    ],
)
def test_a_wrong_setting_of_latent_langevin_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentLangevin(**settings)  # type: ignore[arg-type]


def test_latent_chains_are_run_by_the_corrected_sampler_unless_told_otherwise() -> None:
    for name in NAMES:
        model = model_of(name)
        assert catalog.samplers_of(model) == ["latent_hmc", "generator", "latent_langevin"]
        assert not LatentHMC().approximate(model, clamped=False)
        assert not LatentLangevin().approximate(model, clamped=False)
        assert catalog.estimators_of(model) == ["ais_hmc"]


# --- manifests ---

NET = {"name": "mlp", "hidden": [4]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.architecture.energy must say"),
        ({"architecture": NET, "latent": 2}, "config.architecture.energy must say"),
        ({"architecture": {"energy": NET}, "latent": 2}, "config.architecture.generator must say"),
        ({"architecture": {"discriminator": NET, "generator": NET}, "latent": 2}, "config.architecture.energy"),
        ({"architecture": {"energy": NET, "generator": NET}}, "config.latent must say"),
        ({"architecture": {"energy": NET, "generator": NET}, "latent": 0}, "config.latent must say"),
    ],
)
def test_a_wrong_config_is_refused_by_what_is_missing(config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        catalog.build(manifest_of("tilted", 3, "real", config=config), {"x": torch.zeros(1)})


def test_energies_relative_to_a_generator_are_no_term_of_a_sum() -> None:
    of = case("tilted", 4)
    terms = [{"model": "small", "version": 1}]
    manifest = Manifest(
        name="sum",
        version=1,
        family="composition",
        visible=Visible(shape=[4], domain="real"),
        config={"terms": terms},
    )
    with pytest.raises(CheckpointError, match="relative to a generator"):
        Composition.from_terms(manifest, [(of.manifest, of.model)])
