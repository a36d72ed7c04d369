"""Scores at many scales of noise: as energies, as free networks with their probability flow, and annealed Langevin."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models import catalog, rng
from models.errors import CheckpointError
from models.families.score_energy import ScoreEnergy
from models.families.score_network import EXACT_UNITS, ScoreNetwork
from models.family import Clamp, HasNoiseScales
from models.manifest import Visible
from models.rng import ChainKeys
from models.sampler import Sampler
from models.samplers.annealed_langevin import AnnealedLangevin
from models.samplers.langevin import Langevin
from tests.models.cases import SIGMAS, case, grbm, manifest_of, normal
from tests.models.kernels import clamp_row, widen
from tests.models.plane import Given

FALSE_ALARM = 1e-6
NAMES = ["score_energy", "score_energy unit", "score_network", "score_network unit"]


def scaled(name: str, visible: int = 4, dtype: torch.dtype = torch.float64) -> HasNoiseScales:
    model = case(name, visible, dtype=dtype).model
    assert isinstance(model, HasNoiseScales)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_field_over_sigma_and_the_models_own_is_the_sharpest(name: str) -> None:
    model, x = scaled(name), normal((9, 4), 3)
    assert model.sigmas == tuple(SIGMAS)
    np.testing.assert_allclose(model.blurred_score(x, SIGMAS[-1]), model.score(x), atol=1e-12)
    for sigma in SIGMAS:
        np.testing.assert_allclose(sigma * model.blurred_score(x, sigma), SIGMAS[-1] * model.score(x), atol=1e-12)
    assert model.blurred_score(x.float(), 0.8).dtype == torch.float64


def test_the_energy_of_a_score_energy_is_the_output_over_the_smallest_sigma() -> None:
    model, x = scaled("score_energy"), normal((9, 4), 3)
    assert isinstance(model, ScoreEnergy)
    np.testing.assert_allclose(model.energy(x), model.network.outputs(x)[:, 0] / SIGMAS[-1], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_bits_of_a_row_do_not_depend_on_its_batch(name: str) -> None:
    model, x = scaled(name, 5, torch.float32), normal((150, 5), 3)
    together = model.blurred_score(x, 0.8)
    for rows in (torch.arange(149, -1, -1), torch.tensor([7]), torch.arange(3, 70), torch.arange(60, 129)):
        assert torch.equal(model.blurred_score(x[rows], 0.8), together[rows])


@pytest.mark.parametrize("family", ["score_energy", "score_network"])
@pytest.mark.parametrize("sigmas", [None, [], [0.5, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, "a"], 1.0, [float("inf"), 1.0]])
def test_sigmas_that_do_not_fall_are_refused(family: str, sigmas: object) -> None:
    of = case(family)
    config = {**of.manifest.config, "sigmas": sigmas}
    with pytest.raises(CheckpointError, match=r"config\.sigmas must be a list of positive numbers, the largest first"):
        catalog.build(of.manifest.model_copy(update={"config": config}), of.model.tensors())


def test_a_score_energy_has_no_quadratic_term() -> None:
    of = case("score_energy")
    manifest = of.manifest.model_copy(update={"config": {**of.manifest.config, "prior_std": 1.0}})
    with pytest.raises(CheckpointError, match="prior_std"):
        catalog.build(manifest, of.model.tensors())


def test_chains_start_from_the_largest_noise_or_within_bounds() -> None:
    zeros, std = torch.zeros(2, 4).double(), SIGMAS[0]
    for name in ("score_energy", "score_network"):
        expected = -4 * (math.log(std) + 0.5 * math.log(2 * math.pi))
        np.testing.assert_allclose(case(name).model.noise("visible", 2).log_prob(zeros), expected)  # type: ignore[attr-defined]
        inside = case(name + " unit").model.noise("visible", 2)  # type: ignore[attr-defined]
        assert inside.log_prob(zeros).tolist() == [0.0, 0.0]
        assert inside.log_prob(zeros - 0.1).tolist() == [-math.inf, -math.inf]


# --- an architecture that makes images ---


@pytest.mark.parametrize("shape", [[3, 4], [3, 4, 2]])
def test_a_dilated_network_has_its_outputs_where_its_inputs_are(shape: list[int]) -> None:
    units = math.prod(shape)
    architecture = {"name": "dilated", "channels": 3, "dilations": [1], "activation": "relu"}
    manifest = manifest_of("score_network", units, "real", config={"architecture": architecture, "sigmas": [1.0]})
    manifest = manifest.model_copy(update={"visible": Visible(shape=shape, domain="real")})
    sizes = ScoreNetwork.tensor_shapes(manifest, {})
    # Kernels that hand their middle on, channel by channel, and blocks that add nothing: the identity where x > 0.
    tensors = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("body.1.weight", "head.weight"):
        for channel in range(units // 12):
            tensors[name][channel, channel, 1, 1] = 1.0
    x = normal((2, units), 5).abs()
    np.testing.assert_allclose(ScoreNetwork.from_tensors(manifest, tensors).score(x), x, atol=1e-12)
    # A block of dilation 1 between two convolutions: nothing reaches further than four places.
    tensors = {name: normal(size, seed, 0.3) for seed, (name, size) in enumerate(sizes.items())}
    wide = manifest.model_copy(update={"visible": Visible(shape=[1, 12, *shape[2:]], domain="real")})
    model, x = ScoreNetwork.from_tensors(wide, tensors), normal((1, units), 5)
    moved = x.clone()
    moved[:, 0] += 1.0
    changed = (model.score(moved) != model.score(x)).reshape(12, -1).any(1)
    assert bool(changed[0])
    assert not bool(changed[5:].any())


def test_a_dilated_network_refuses_to_make_anything_but_images() -> None:
    of = case("conv_energy")
    config = {"architecture": {"name": "dilated"}, "sigmas": [1.0]}
    manifest = manifest_of("score_energy", 9, "real", config=config)
    manifest = manifest.model_copy(update={"visible": Visible(shape=[3, 3], domain="real")})
    with pytest.raises(CheckpointError, match="outputs are an image of 3 x 3; 1 numbers are none"):
        catalog.build(manifest, of.model.tensors())


# --- the probability flow ---


def linear(A: Tensor, sigmas: list[float]) -> ScoreNetwork:
    """f(x) = A x, as a network of leaky units: x = (leaky(x) - leaky(-x)) / 1.2."""
    D = len(A)
    tensors = {
        "body.1.weight": torch.cat((torch.eye(D), -torch.eye(D))).double(),
        "body.1.bias": torch.zeros(2 * D).double(),
        "head.weight": torch.cat((A, -A), 1) / 1.2,
        "head.bias": torch.zeros(D).double(),
    }
    architecture = {"name": "mlp", "hidden": [2 * D], "activation": "leaky_relu"}
    config = {"architecture": architecture, "sigmas": sigmas}
    model = catalog.build(manifest_of("score_network", D, "real", config=config), tensors)
    assert isinstance(model, ScoreNetwork)
    return model


def flow_log_density(A: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """dx/dsigma = -A x: x is carried to expm(-A (high - low)) x, and volumes by exp(-tr A (high - low))."""
    carried = x @ torch.linalg.matrix_exp(-A * (high - low)).T
    normal_law = torch.distributions.Normal(0.0, high)
    total: Tensor = normal_law.log_prob(carried).sum(1) - torch.trace(A) * (high - low)
    return total


def test_the_log_density_is_that_of_the_flow() -> None:
    A, x = -0.5 * torch.eye(4).double() + normal((4, 4), 2, 0.3), normal((6, 4), 3)
    model = linear(A, [2.0, 0.5, 0.1])
    energy, error = model.energy_with_error(x)
    exact = -flow_log_density(A, x, 0.1, 2.0)
    distance = (energy - exact).abs()
    assert float(distance.max()) < 2e-2
    assert bool((distance < error).all())  # the error of so smooth a flow is a third of what is said
    assert bool((error < 10 * distance + 1e-4).all())
    with torch.inference_mode():
        assert torch.equal(model.energy(x.clone()), energy)


def test_beyond_so_many_units_divergences_are_had_from_random_directions() -> None:
    D = EXACT_UNITS + 6
    A, x = -0.3 * torch.eye(D).double() + normal((D, D), 2, 0.02), normal((5, D), 3)
    model = linear(A, [2.0, 0.5])
    energy, error = model.energy_with_error(x)
    exact = -flow_log_density(A, x, 0.5, 2.0)
    # All rows have the same directions: one draw of Student's t with 15 degrees of freedom, |t| < 7.9 but for 1e-6.
    assert bool(((energy - exact).abs() < 7.9 * error).all())
    assert float(error.min()) > 0.05
    np.testing.assert_allclose(model.energy(x[3:4]), energy[3:4], atol=1e-9)


def test_a_free_score_has_a_log_density_and_no_energy() -> None:
    model = case("score_network").model
    assert set(model.capabilities()) == {"log-density", "anomaly", "score", "sample", "complete"}
    assert model.energy_kind == "estimate"


@pytest.mark.parametrize("name", ["score_energy", "score_network"])
def test_the_learned_score_is_the_blurred_one_and_has_slopes_by_the_parameters(name: str) -> None:
    model = case(name, 4).model
    assert isinstance(model, HasNoiseScales)
    x, sigma = normal((6, 4), 3), torch.tensor(model.sigmas).double()[torch.arange(6) % len(model.sigmas)]
    weights = model.tensors()["head.weight"].requires_grad_()
    try:
        found = model.learned_score(x, sigma)
        (slope,) = torch.autograd.grad(found.square().sum(), weights)
    finally:
        weights.requires_grad_(False)
    for row, scale in enumerate(sigma.tolist()):
        np.testing.assert_allclose(found[row].detach(), model.blurred_score(x[row : row + 1], scale)[0], atol=1e-9)
    assert float(slope.abs().max()) > 0


# --- annealed Langevin dynamics ---


class Hills(Given, HasNoiseScales):
    """Two Gaussian hills of standard deviation 0.3 and weights 0.8 and 0.2, far apart, and their exact blurs."""

    sigmas: ClassVar[tuple[float, ...]] = tuple(float(s) for s in np.geomspace(10.0, 0.1, 14))  # type: ignore[misc]
    weights, centres, own = (0.8, 0.2), ((3.0, 3.0), (-3.0, -3.0)), 0.3
    spread = 10.0

    def _energy(self, x: Tensor, sigma: float) -> Tensor:
        variance = self.own**2 + sigma**2
        terms = [
            math.log(w) - 0.5 * (x - torch.tensor(c).double()).square().sum(1) / variance
            for w, c in zip(self.weights, self.centres, strict=True)
        ]
        return -torch.stack(terms).logsumexp(0)

    def energy(self, x: Tensor) -> Tensor:
        return self._energy(x, 0.0)

    def blurred_score(self, x: Tensor, sigma: float) -> Tensor:
        with torch.enable_grad():
            at = x.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._energy(at, sigma).sum(), at)
        return -gradient

    def learned_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError


def hills(sampler: Sampler, n: int, sweeps: int, clamp: Clamp | None = None) -> Tensor:
    model, keys = Hills(), ChainKeys.of(20261126, n)
    state = sampler.init(model, keys, None, clamp)
    for _ in range(sweeps):
        state, _ = sampler.step(model, state, keys, clamp)
    return state.visible


def test_annealing_finds_the_weights_of_hills_that_plain_langevin_does_not() -> None:
    n, steps = 4000, 30
    seen = hills(AnnealedLangevin(steps, 0.3), n, steps * len(Hills.sigmas))
    share = float((seen.sum(1) < 0).double().mean())
    # 4.9 standard errors of a share of 0.2 are 0.031. What the finite number of steps adds is below 0.02.
    assert abs(share - 0.2) < 0.031 + 0.02
    plain = float((hills(Langevin(0.1), n, 400).sum(1) < 0).double().mean())
    assert plain > 0.2 + 0.2
    # Denoised, the hills have their own width and no more: 0.3, and not hypot(0.3, 0.1) = 0.316, let alone more.
    high = seen[seen.sum(1) > 0]
    spread = float((high - 3.0).square().mean().sqrt())
    assert abs(spread - 0.3) < 0.3 * 0.1


def test_a_schedule_without_its_large_scales_is_seen() -> None:
    steps = 30
    few = hills(AnnealedLangevin(steps, 0.3), 4000, steps * 3)  # stops at large scales
    assert float((few - few.sign() * 3.0).square().mean().sqrt()) > 1.0

    class Sharp(Hills):
        sigmas = Hills.sigmas[-3:]

    model, keys, sampler = Sharp(), ChainKeys.of(1, 4000), AnnealedLangevin(steps, 0.3)
    state = sampler.init(model, keys, None, None)
    for _ in range(steps * 3):
        state, _ = sampler.step(model, state, keys)
    assert float((state.visible.sum(1) < 0).double().mean()) > 0.4


def test_a_chain_equals_its_reference_step_by_step() -> None:
    # The sigma goes by the chain's own sweep number; the visibles are what the sweep set out from, denoised.
    model, keys, beta = scaled("score_network unit"), ChainKeys.of(5, 3), 0.6
    sampler = AnnealedLangevin(steps=2, step_scale=0.1)
    clamp = widen(clamp_row(4, {2: 0.3}), 3)
    state = sampler.init(model, keys, None, clamp)
    x = state.visible
    assert torch.equal(state.blocks["blurred"], x)
    for sweep in range(1, 10):
        sigma = SIGMAS[min((sweep - 1) // 2, 2)]
        score = model.blurred_score(x, sigma)
        visible = (x + sigma**2 * score).clamp(0.0, 1.0)
        noise = rng.normals(keys, torch.full((3,), sweep), 0, 4)
        x = x + 0.05 * sigma**2 * beta * score + math.sqrt(0.1) * sigma * noise
        x[:, 2], visible[:, 2] = 0.3, 0.3
        state, info = sampler.step(model, state, keys, clamp, torch.full((3,), beta, dtype=torch.float64))
        np.testing.assert_allclose(state.blocks["blurred"], x, atol=1e-12)
        np.testing.assert_allclose(state.visible, visible, atol=1e-12)
        assert torch.equal(info.expected_visible(), state.visible)
        assert bool((state.visible[:, 2] == 0.3).all())
        x = state.blocks["blurred"].clone()


class Broken(Hills):
    """Scores that are no numbers on one side."""

    def blurred_score(self, x: Tensor, sigma: float) -> Tensor:
        return torch.where(x.sum(1, keepdim=True) < 0, torch.nan, super().blurred_score(x, sigma))


def test_no_chain_ever_becomes_nan() -> None:
    keys = ChainKeys.of(2, 50)
    state = AnnealedLangevin(2).init(Broken(), keys, None, None)
    for _ in range(30):
        state, _ = AnnealedLangevin(2).step(Broken(), state, keys)
    assert all(bool(torch.isfinite(block).all()) for block in state.blocks.values())


def test_a_gaussian_at_the_last_scale_has_the_variance_of_its_steps() -> None:
    # s(x, sigma) = -x / v: x <- (1 - a / 2v) x + sqrt(a) z has the variance v / (1 - a / 4v), here with v = sigma^2.
    D, n, scale = 2, 5000, 0.5
    model = linear(-torch.eye(D).double(), [1.0])
    keys, sampler = ChainKeys.of(3, n), AnnealedLangevin(1, scale)
    state = sampler.init(model, keys, None, None)
    for _ in range(40):
        state, _ = sampler.step(model, state, keys)
    statistic = state.blocks["blurred"].square().sum(0) * (1 - scale / 4)
    for value in statistic.tolist():
        assert FALSE_ALARM < stats.chi2.sf(value, n) < 1 - FALSE_ALARM
    assert float(state.visible.abs().max()) < 1e-12  # x - sigma^2 x / v


def test_it_applies_to_scores_at_scales_of_noise() -> None:
    for name in NAMES:
        assert AnnealedLangevin.applies_to(case(name).model)
        assert AnnealedLangevin().approximate(case(name).model, clamped=False)
    assert not AnnealedLangevin.applies_to(grbm(3, 2))
    assert not Langevin.applies_to(case("score_network").model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": True}, "steps must be a whole number from 1"),
        ({"step_scale": 0.0}, "step_scale must be a number above 0 and below 4"),
        ({"step_scale": 4.0}, "step_scale must be a number above 0 and below 4"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnealedLangevin(**settings)  # type: ignore[arg-type]
