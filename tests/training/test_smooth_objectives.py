"""Score matching, noise contrast and Langevin negatives against closed forms and exact laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from models.families.grbm import GRBM
from models.family import EnergyModel, HasGradient, HasNoiseScales
from models.manifest import Manifest
from tests.models import cases
from tests.models.cases import normal
from tests.training.exact import gradient as exact_gradient
from training.errors import DivergenceError, RecipeError
from training.flow import Flow
from training.generated import made as generated
from training.mixture import Mixture
from training.objective import Batch, Draws, Memory, Objective, build
from training.smooth import is_unbounded, score, score_along, score_matching

# |z| beyond 6 at any of a hundred entries: a false alarm less often than once in 10^6 tests.
_Z = 6.0
_UNBOUNDED = cases.names(lambda of: is_unbounded(of.model))


@dataclass(frozen=True, eq=False)
class _Gaussian(EnergyModel):
    """E(x) = x'Ax / 2 - b'x: N(A^-1 b, A^-1), whose every figure is known."""

    name: ClassVar[str] = "gaussian"
    domains: ClassVar[frozenset[str]] = frozenset({"real"})
    A: Tensor
    b: Tensor

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> EnergyModel:
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {"A": self.A, "b": self.b}

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.A) * x).sum(1) - x @ self.b


class _Blurred(_Gaussian, HasNoiseScales):
    """Its score at scale sigma is that of the energy over sigma, as in an energy network with noise scales."""

    name: ClassVar[str] = "blurred"

    @property
    def score_is_relaxed(self) -> bool:
        return False

    def score(self, x: Tensor) -> Tensor:
        return self.b - x @ self.A

    @property
    def sigmas(self) -> tuple[float, ...]:
        return (1.0, 0.5, 0.1)

    def blurred_score(self, x: Tensor, sigma: float) -> Tensor:
        return (self.b - x @ self.A) / sigma

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None

    def learned_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.b - x @ self.A) / sigma[:, None]


def _gaussian(kind: type[_Gaussian] = _Gaussian, units: int = 3) -> _Gaussian:
    root = normal((units, units), 1)
    return kind(root @ root.T + torch.eye(units).double(), normal((units,), 2))


def _model(name: str) -> EnergyModel:
    return _gaussian() if name == "gaussian" else cases.case(name, hidden=4).model


def _loss(objective: Objective, model: EnergyModel, x: Tensor, draws: Draws) -> Tensor:
    """What is climbed, for each row, written down again in terms of the Jacobian of the score."""
    s = score(model, x).detach()
    jacobian = -torch.stack([torch.func.hessian(lambda y: model.energy(y[None])[0])(row) for row in x])
    match objective.model_dump() | {"name": objective.name}:
        case {"name": "implicit"}:
            return -(0.5 * s.square().sum(1) + jacobian.diagonal(dim1=1, dim2=2).sum(1))
        case {"name": "sliced", "variance_reduced": reduced, "directions": law}:
            v = draws.signs(x, draws.step, 0) if law == "signs" else draws.normals(x, draws.step, 0)
            squares = s.square().sum(1) if reduced else (s * v).sum(1).square()
            return -(0.5 * squares + torch.einsum("ni,nij,nj->n", v, jacobian, v))
        case {"name": "finite_difference_sliced", "distance": distance}:
            h = distance / math.sqrt(x.shape[1])
            v = draws.signs(x, draws.step, 0)
            back, here, ahead = (model.energy(x + k * h * v) for k in (-1, 0, 1))
            return ((ahead + back - 2 * here) - (ahead - back).square() / 8) / h**2
        case {"name": "denoising", "sigma": sigma, "control_variate": control}:
            z = draws.normals(x, draws.step, 0)
            there = score(model, x + sigma * z).detach()
            off = -0.5 * sigma**2 * (there + z / sigma).square().sum(1)
            return off + (sigma * (z * s).sum(1) if control else 0.0)
    raise AssertionError


_FORMS: list[dict[str, Any]] = [
    {"name": "implicit"},
    {"name": "sliced"},
    {"name": "sliced", "variance_reduced": False, "directions": "normal"},
    {"name": "finite_difference_sliced"},
    {"name": "denoising", "sigma": 0.3},
    {"name": "denoising", "sigma": 0.3, "control_variate": True},
]


@pytest.mark.parametrize("name", ["gaussian", "grbm", "mlp_energy"])
@pytest.mark.parametrize("settings", _FORMS, ids=str)
def test_gradients_are_the_slopes_of_the_stated_loss(name: str, settings: dict[str, Any]) -> None:
    model, objective, draws = _model(name), build(settings), Draws(4, 2)
    x = normal((5, 3 if name == "gaussian" else 4), 7)
    found, _ = objective.gradient(model, Batch(x), draws, objective.start(model, {}, 0))
    for parameter, tensor in model.tensors().items():
        for place in range(min(3, tensor.numel())):
            values = []
            for move in (1e-5, -1e-5):
                tensor.view(-1)[place] += move
                values.append(float(_loss(objective, model, x, draws).mean()))
                tensor.view(-1)[place] -= move
            slope = found[parameter].reshape(-1)[place] if parameter in found else torch.tensor(0.0)
            assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6, rel=1e-5), parameter


def _many(settings: dict[str, Any], model: EnergyModel, x: Tensor, times: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard error of the gradient over so many steps' draws."""
    objective = build(settings)
    found = [
        objective.gradient(model, Batch(x), Draws(3, step), objective.start(model, {}, 0))[0] for step in range(times)
    ]
    stacked = {name: torch.stack([f[name] for f in found]) for name in found[0]}
    return {name: (t.mean(0), t.std(0) / math.sqrt(times)) for name, t in stacked.items()}


@pytest.mark.parametrize("name", ["gaussian", "grbm"])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sliced", "projections": 3},
        {"name": "sliced", "variance_reduced": False},
        {"name": "sliced", "variance_reduced": False, "directions": "normal"},
        {"name": "finite_difference_sliced", "distance": 0.01},
    ],
    ids=str,
)
def test_sliced_forms_agree_with_the_exact_trace_in_expectation(name: str, settings: dict[str, Any]) -> None:
    model, x = _model(name), normal((200, 3 if name == "gaussian" else 4), 7)
    exact, _ = build({"name": "implicit"}).gradient(model, Batch(x), Draws(0, 0), {})
    found = _many(settings, model, x, 200)
    bias = 1e-3 if "difference" in settings["name"] else 1e-9  # differences err by the order of h^2
    for parameter, g in exact.items():
        mean, error = found[parameter]
        assert float(((mean - g).abs() - bias * g.abs().max()).div(error + 1e-12).max()) < _Z, parameter
    # The named defect: a Hessian term counted twice lies beyond.
    doubled = {p: (m - exact[p]).norm() for p, (m, _) in found.items()}
    assert all(float(d) < 0.5 * float(exact[p].norm()) + 1e-9 for p, d in doubled.items())


def test_the_variance_reduced_form_has_less_variance() -> None:
    model, x = _gaussian(), normal((200, 3), 7)
    errors = [
        _many({"name": "sliced", "variance_reduced": reduced}, model, x, 100)["b"][1].norm()
        for reduced in (True, False)
    ]
    assert errors[0] < errors[1] / 3


def _climbed(model: _Gaussian, objective: Objective, x: Tensor, rate: float, steps: int) -> _Gaussian:
    """After plain ascent."""
    memory = objective.noted(objective.start(model, {}, 0), x)
    for step in range(steps):
        g, memory = objective.gradient(model, Batch(x), Draws(1, step), memory)
        change = {name: rate * t for name, t in g.items()}
        model.A.add_((change["A"] + change["A"].T) / 2)
        model.b.add_(change["b"])
    return model


def test_score_matching_finds_the_gaussian_of_the_data_in_closed_form() -> None:
    truth = _gaussian()
    covariance = torch.linalg.inv(truth.A)
    z = normal((200, 3), 5)
    x = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov(correction=0))).T
    x = x @ torch.linalg.cholesky(covariance).T + covariance @ truth.b  # these very moments
    start = _Gaussian(torch.eye(3).double(), torch.zeros(3).double())
    found = _climbed(start, build({"name": "implicit"}), x, 1.0, 200)
    torch.testing.assert_close(found.A, truth.A, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.b, truth.b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("control", [False, True])
def test_denoising_finds_the_score_of_the_blurred_data(control: bool) -> None:
    truth, sigma, n = _gaussian(units=2), 0.5, 20_000
    covariance = torch.linalg.inv(truth.A)
    x = normal((n, 2), 5) @ torch.linalg.cholesky(covariance).T + covariance @ truth.b
    start = _Gaussian(torch.eye(2).double(), torch.zeros(2).double())
    found = _climbed(start, build({"name": "denoising", "sigma": sigma, "control_variate": control}), x, 1.0, 200)
    blurred = torch.linalg.inv(covariance + sigma**2 * torch.eye(2))
    # 200 steps see 20,000 examples anew: the figures are theirs to a few parts in a hundred.
    torch.testing.assert_close(found.A, blurred, rtol=0, atol=0.1)
    torch.testing.assert_close(found.b, blurred @ (covariance @ truth.b), rtol=0, atol=0.1)
    assert float((found.A - truth.A).abs().max()) > 0.2  # the score of the data as they are would be another


def test_the_control_variate_keeps_the_mean_and_takes_the_noise_of_small_scales() -> None:
    model, x = _gaussian(), normal((300, 3), 7)
    plain, controlled = (
        _many({"name": "denoising", "sigma": 0.01, "control_variate": control}, model, x, 300)
        for control in (False, True)
    )
    for name in plain:
        (mean, error), (other, less) = plain[name], controlled[name]
        assert float(((mean - other) / (error + less)).abs().max()) < _Z
        assert float(less.max()) < 0.2 * float(error.max())
    exact, _ = build({"name": "implicit"}).gradient(model, Batch(x), Draws(0, 0), {})
    for name, (mean, error) in controlled.items():  # sigma^2 times that of implicit score matching, as sigma goes to 0
        assert float(((mean / 1e-4 - exact[name]).abs() - 0.01 * exact[name].abs().max()).div(error / 1e-4).max()) < _Z


def test_denoising_at_many_scales_draws_each_of_them_and_weighs_by_its_square() -> None:
    model = _gaussian(_Blurred)
    assert isinstance(model, _Blurred)
    x, draws = normal((3000, 3), 7), Draws(5, 1)
    found, _ = build({"name": "denoising"}).gradient(model, Batch(x), draws, {})
    drawn = draws.categorical(torch.zeros(3000, 3).double(), 1, 1)
    assert all(abs(float(share) - 1 / 3) < _Z * math.sqrt(2 / 9 / 3000) for share in drawn.mean(0))
    sigma, z = (drawn @ torch.tensor(model.sigmas).double())[:, None], draws.normals(x, 1, 0)
    # sigma s + z = b - Ax~ + z, whatever sigma is: the slope by b is minus its mean.
    torch.testing.assert_close(found["b"], -(model.b - (x + sigma * z) @ model.A + z).mean(0))


def test_sigma_belongs_to_models_without_scales_of_their_own() -> None:
    assert not build({"name": "denoising"}).start(_gaussian(), {}, 0)
    with pytest.raises(RecipeError, match=r"objective\.sigma: the model has noise scales of its own"):
        build({"name": "denoising", "sigma": 0.1}).start(_gaussian(_Blurred), {}, 0)


@pytest.mark.parametrize("name", _UNBOUNDED)
def test_products_with_the_jacobian_are_differences_of_the_score(name: str) -> None:
    model, x, v = _model(name), normal((6, 4), 3), normal((6, 4), 4)
    s, along = score_along(model, x, v)
    ahead, back = (score(model, x + step * v).detach() for step in (1e-5, -1e-5))
    torch.testing.assert_close(along, (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(s, score(model, x).detach())
    torch.testing.assert_close(score_matching(model, x, v), 0.5 * s.square().sum(1) + (v * along).sum(1))


def test_a_product_costs_two_passes_in_any_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(_Gaussian, "energy", _counting(_Gaussian.energy, calls))
    for units in (2, 50):
        model, x = _gaussian(units=units), normal((4, units), 1)
        calls.clear()
        build({"name": "sliced"}).gradient(model, Batch(x), Draws(0, 0), {})
        assert len(calls) == 1  # the energy is passed once, forwards; slope and product come of that pass


def _counting(function: Callable[..., Tensor], calls: list[int]) -> Callable[..., Tensor]:
    def counted(self: Any, x: Tensor) -> Tensor:
        calls.append(len(x))
        return function(self, x)

    return counted


# --- noise contrast ---


def _grbm_and_draws(n: int, seed: int = 0) -> tuple[GRBM, Tensor]:
    """A small GRBM and exact draws of it."""
    model = cases.case("grbm", hidden=3).model
    assert isinstance(model, GRBM)
    generator, h = torch.Generator().manual_seed(seed), cases.states(cases.BINARY, 3)
    p = torch.softmax(h @ model.c + model.machine.log_sum("visible", {"hidden": h}), 0)
    mean = model.machine.inputs(
        "visible", {"hidden": h[torch.multinomial(p, n, replacement=True, generator=generator)]}
    )
    return model, mean + model.log_sigma.exp() * torch.randn(mean.shape, generator=generator).double()


_FLOW = {"flow_layers": 4, "flow_hidden": 16, "flow_steps": 200}
_CONTRASTS: list[dict[str, Any]] = [
    {"name": "nce"},
    {"name": "nce", "ratio": 3},
    {"name": "nce", "noise": "mixture", "components": 4},
    {"name": "nce", "noise": "flow", **_FLOW},
    {"name": "flow_contrastive", **_FLOW},
]


@pytest.mark.parametrize("settings", _CONTRASTS, ids=str)
def test_c_is_log_z(settings: dict[str, Any]) -> None:
    model, x = _grbm_and_draws(100_000)
    objective = build({"gain": 0.02, **settings})
    memory = objective.noted(objective.start(model, {}, 0), x)
    for step in range(200):
        _, memory = objective.gradient(model, Batch(x[500 * step :][:500]), Draws(0, step), memory)
    found, exact = objective.log_partition(model, memory), model.log_partition()
    assert found is not None
    assert found.method == settings["name"]
    assert abs(found.value - exact) < 0.01 * exact
    assert abs(found.value - exact) < _Z * found.stderr
    assert 0 < found.stderr < 0.02


def test_the_gradient_of_noise_contrast_vanishes_at_the_truth_and_is_the_slope_of_its_loss() -> None:
    model, x = _grbm_and_draws(20_000)
    objective = build({"name": "nce"})
    memory = {**objective.noted(objective.start(model, {}, 0), x), "c": torch.tensor(model.log_partition()).double()}
    found = [
        objective.gradient(model, Batch(x[500 * step :][:500]), Draws(0, step), memory)[0] for step in range(1, 40)
    ]
    for name in found[0]:
        g = torch.stack([f[name] for f in found])
        assert float((g.mean(0) / (g.std(0) / math.sqrt(len(g)))).abs().max()) < 7.5  # t with 38 degrees of freedom
    law, batch, draws = Mixture.of({k.removeprefix("noise."): t for k, t in memory.items()}), x[:50], Draws(0, 9)
    made = draws.noise(law, batch, 9, 0)

    def loss() -> float:
        g = [-model.energy(y) - memory["c"] - law.log_density(y) for y in (batch, made)]
        return float(torch.sigmoid(g[0]).log().mean() + torch.sigmoid(-g[1]).log().mean())

    slope, _ = objective.gradient(model, Batch(batch), draws, memory)
    for name, tensor in model.tensors().items():
        values = []
        for move in (1e-5, -1e-5):
            tensor.view(-1)[0] += move
            values.append(loss())
            tensor.view(-1)[0] -= move
        assert float(slope[name].view(-1)[0]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)


def test_noise_is_a_law_with_the_datas_moments_whose_density_is_its_own() -> None:
    x = normal((5000, 2), 1) @ torch.tensor([[1.0, 0.5], [0.0, 1.5]]).double() + 3.0
    one, draws = Mixture.fitted(x, 1), Draws(1, 1)
    torch.testing.assert_close(one.means[0], x.mean(0))
    torch.testing.assert_close(one.factors[0] @ one.factors[0].T, x.T.cov(correction=0), rtol=0, atol=0.01)
    truth = torch.distributions.MultivariateNormal(one.means[0], scale_tril=one.factors[0])
    torch.testing.assert_close(one.log_density(x[:9]), truth.log_prob(x[:9]))
    both = torch.cat((x - 6, x + 6))
    two = Mixture.fitted(both, 2)
    assert sorted(two.means.mean(1).tolist()) == pytest.approx(
        sorted(part.mean(0).mean().item() for part in both.chunk(2)), abs=0.1
    )
    drawn = draws.noise(two, both, 1, 0)
    error = both.std(0) / math.sqrt(len(both))
    assert float(((drawn.mean(0) - both.mean(0)) / error).abs().max()) < _Z
    assert float(two.log_density(drawn).mean() - two.log_density(both).mean()) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("settings", _CONTRASTS[3:], ids=str)
def test_contrast_with_a_flow_finds_a_gaussian_in_the_plane_and_its_log_z(settings: dict[str, Any]) -> None:
    truth = _gaussian(units=2)
    x = normal((20_000, 2), 5) @ torch.linalg.cholesky(torch.linalg.inv(truth.A)).T + torch.linalg.solve(
        truth.A, truth.b
    )
    model, objective = _Gaussian(2 * torch.eye(2).double(), torch.zeros(2).double()), build({"gain": 0.02, **settings})
    memory = objective.noted(objective.start(cases.case("mlp_energy", visible=2).model, {}, 0), x)
    for step in range(400):
        batch = Batch(x[500 * step % len(x) :][:500])
        g, memory = objective.gradient(model, batch, Draws(1, step), memory)
        model.A.add_(0.5 * (1 - step / 400) * (g["A"] + g["A"].T))
        model.b.add_((1 - step / 400) * g["b"])
    exact = float(0.5 * model.b @ torch.linalg.solve(model.A, model.b) - 0.5 * model.A.logdet()) + math.log(2 * math.pi)
    found = objective.log_partition(model, memory)
    assert found is not None
    assert abs(found.value - exact) < 0.01 * abs(exact)
    # 20,000 examples, seen by a decaying step: figures are theirs to a few parts in a hundred.
    torch.testing.assert_close(model.A, truth.A, rtol=0.05, atol=0.1)
    torch.testing.assert_close(model.b, truth.b, rtol=0.05, atol=0.1)


def test_a_flow_is_a_law_whose_density_is_its_own() -> None:
    x = _moons()
    one, two = Flow.fitted(x, 6, 32, 0), Flow.fitted(x, 6, 32, 300)
    torch.testing.assert_close(one.log_density(x), Mixture.fitted(x, 1).log_density(x))  # it begins at the Gaussian
    assert float(two.log_density(x).mean()) > float(one.log_density(x).mean()) + 0.4
    z = normal((20, 2), 3)
    drawn, logs = two.pushed(z)
    torch.testing.assert_close(two.log_density(drawn), logs)
    slopes = torch.stack([torch.func.jacrev(lambda row: two.pushed(row[None])[0][0])(row) for row in z])
    torch.testing.assert_close(logs, torch.distributions.Normal(0, 1).log_prob(z).sum(1) - slopes.logdet())
    cells = 300  # the density integrates to 1: by the midpoint rule on a square that holds all of it
    at = (torch.arange(cells).double() + 0.5) / cells * 12 - 6
    p = two.log_density(torch.cartesian_prod(at, at)).exp()
    assert float(p.sum()) * (12 / cells) ** 2 == pytest.approx(1, abs=2e-3)
    sampled = Draws(1, 1).noise(two, x, 1, 0)
    assert float(((sampled.mean(0) - two.pushed(normal((20_000, 2), 4))[0].mean(0)) / 0.02).abs().max()) < _Z


def _moons() -> Tensor:
    return torch.from_numpy(generated("moons").train.examples).double()[:5000]


def test_the_flow_of_flow_contrast_goes_down_what_the_energy_goes_up() -> None:
    model, x = cases.case("mlp_energy", visible=2).model, normal((400, 2), 2)
    objective = build({"name": "flow_contrastive", **_FLOW, "flow_steps": 0, "flow_rate": 1e-3})
    still = build({"name": "flow_contrastive", **_FLOW, "flow_steps": 0, "flow_rate": 0.0})
    first = objective.noted(objective.start(model, {}, 0), x)

    def value(memory: Memory, c: Tensor) -> float:
        """V on the very numbers of the step."""
        law = Flow({k.removeprefix("noise."): t for k, t in memory.items() if k.startswith("noise.")})
        made, logs = law.pushed(Draws(3, 1).normals(x, 1, 0))
        g = [-model.energy(x) - c - law.log_density(x), -model.energy(made) - c - logs]
        return float(torch.sigmoid(g[0]).log().mean() + torch.sigmoid(-g[1]).log().mean())

    _, moved = objective.gradient(model, Batch(x), Draws(3, 1), first)
    _, same = still.gradient(model, Batch(x), Draws(3, 1), first)
    assert value(moved, moved["c"]) < value(same, moved["c"]) - 1e-5
    assert all(torch.equal(same[name], first[name]) for name in first if name.startswith("noise."))
    # Adam's first step is the sign of the slope: checked against differences of V.
    for place in (0, 3):
        values = []
        for move in (1e-5, -1e-5):
            changed = {**first, "noise.second_bias": first["noise.second_bias"].clone()}
            changed["noise.second_bias"].view(-1)[place] += move
            values.append(value(changed, moved["c"]))
        slope = (values[0] - values[1]) / 2e-5
        assert float(moved["mean.second_bias"].view(-1)[place]) == pytest.approx(-0.1 * slope, rel=1e-4, abs=1e-9)


# --- Langevin ---


def test_langevin_climbs_the_likelihood_where_its_chains_have_the_models_law() -> None:
    model, chains = _grbm_and_draws(40_000)
    of = replace(cases.case("grbm", hidden=3), model=model)
    batch = Batch(normal((7, 4), 9))
    objective = build({"name": "langevin", "start_at": "persistent", "steps": 1, "step_size": 1e-6})
    found, _ = objective.gradient(model, batch, Draws(1, 0), {"chains": chains})
    # `exact` has the natural gradient of b, s^2 times the plain one.
    truth = exact_gradient(of, batch)
    truth["b"] = truth["b"] / model.log_sigma.exp().square() if _natural(of, batch) else truth["b"]
    each = torch.func.vmap(torch.func.grad(_energy), (None, 0))(model.tensors(), chains)
    for name, g in truth.items():
        error = each[name].std(0) / math.sqrt(len(chains))
        assert float(((found[name] - g) / (error + 1e-9)).abs().max()) < _Z, name


def _energy(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    return GRBM(**tensors).energy(x[None])[0]


def _natural(of: cases.Case, batch: Batch) -> bool:
    """Whether the layered machines' gradient of b is a natural one: the plain one of -E at the data alone tells."""
    mean = (batch.visible - of.model.tensors()["b"]).mean(0)
    phases_b = exact_gradient(of, batch)["b"] - exact_gradient(of, Batch(batch.visible * 0))["b"]
    return bool(torch.allclose(phases_b, mean + of.model.tensors()["b"], atol=1e-6))


def test_its_chains_have_the_law_of_the_model() -> None:
    model = _gaussian(units=2)
    walker = build({"name": "langevin", "steps": 400, "step_size": 0.2})
    x = walker.walk(model, torch.zeros(20_000, 2).double(), Draws(1, 0), 0)  # type: ignore[attr-defined]
    mean = torch.linalg.inv(model.A) @ model.b
    # Steps of size e make the covariance that of A - e^2 A^2 / 4 in place of A.
    covariance = torch.linalg.inv(model.A - 0.01 * model.A @ model.A)
    assert float(((x.mean(0) - mean) / (covariance.diagonal() / 20_000).sqrt()).abs().max()) < _Z
    variances = x.var(0) / covariance.diagonal()
    assert float((variances - 1).abs().max()) < _Z * math.sqrt(2 / 20_000)


def _smooth_grbm() -> EnergyModel:
    of = cases.case("grbm", hidden=3)
    return type(of.model).from_tensors(of.manifest, {k: t.float() for k, t in of.model.tensors().items()})


def test_chains_start_where_they_are_told_to() -> None:
    model, batch = _smooth_grbm(), Batch(normal((6, 4), 3).float() + 100)
    still = {"steps": 1, "step_size": 1e-9, "noise": 0.0, "name": "langevin", "largest_gap": 1e9}
    memories: dict[str, Memory] = {}
    for where in ("noise", "data", "persistent", "replay"):
        objective = build({**still, "start_at": where, "chains": 9, "buffer": 20, "reinit": 0.5})
        first = objective.start(model, {}, 3)
        slope, memories[where] = objective.gradient(model, batch, Draws(3, 0), first)
        assert set(memories[where]) == set(first)
        if where == "data":  # nothing moved, so that the terms, of the order of 10^4, cancel
            assert all(float(g.abs().max()) < 0.1 for g in slope.values())
        else:
            assert float(slope["b"].abs().max()) > 10
        if where == "persistent":
            assert memories[where]["chains"].shape == (9, 4)
            torch.testing.assert_close(memories[where]["chains"], first["chains"])
        if where == "replay":
            changed = (memories[where]["chains"] != first["chains"]).any(1)
            assert first["chains"].shape == (20, 4)
            assert 1 <= int(changed.sum()) <= 6  # the ones chosen, of which about a half began anew
    assert not memories["noise"]
    assert not memories["data"]


def test_chains_stay_within_bounds_by_reflection() -> None:
    of = cases.case("mlp_energy unit")
    model = of.model
    assert isinstance(model, HasGradient)
    flat = type(model).from_tensors(of.manifest, {k: 0 * t for k, t in model.tensors().items()})
    walker = build({"name": "langevin", "steps": 20, "step_size": 0.4})
    x = walker.walk(flat, torch.full((20_000, 4), 0.05).double(), Draws(1, 0), 0)  # type: ignore[attr-defined]
    assert 0 <= float(x.min()) < 0.01
    assert 0.99 < float(x.max()) <= 1
    assert float((x.mean(0) - 0.5).abs().max()) < _Z * math.sqrt(1 / 12 / 20_000)
    assert float((x.var(0) * 12 - 1).abs().max()) < _Z * math.sqrt(0.8 / 20_000)


def test_energies_that_run_apart_stop_training_with_advice() -> None:
    model = _smooth_grbm()
    objective = build({"name": "langevin", "start_at": "noise", "largest_gap": 5})
    with pytest.raises(DivergenceError, match=r"at step 7 the mean energies of data .*objective\.largest_gap = 5 nats"):
        objective.gradient(model, Batch(torch.full((3, 4), 50.0)), Draws(1, 7), {})
    broken = type(model)(*[t * torch.nan if n == "b" else t for n, t in model.tensors().items()])  # type: ignore[call-arg]
    with pytest.raises(DivergenceError, match="nan"):
        build({"name": "langevin", "start_at": "noise"}).gradient(broken, Batch(torch.zeros(3, 4)), Draws(1, 7), {})


def test_the_penalty_pulls_energies_to_0() -> None:
    model, batch = _smooth_grbm(), Batch(normal((6, 4), 3).float())
    found = []
    for alpha in (0.0, 0.25):
        settings = {"name": "langevin", "start_at": "data", "energy_penalty": alpha, "steps": 3}
        found.append(build(settings).gradient(model, batch, Draws(1, 2), {})[0])
    chains = build({"name": "langevin", "start_at": "data", "steps": 3}).walk(  # type: ignore[attr-defined]
        model, batch.visible, Draws(1, 2), 6
    )
    tensors = {n: t.clone().requires_grad_() for n, t in model.tensors().items()}
    loss = -0.25 * sum(GRBM(**tensors).energy(x).square().mean() for x in (batch.visible, chains))
    assert isinstance(loss, Tensor)
    for name, g in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True):
        torch.testing.assert_close(found[1][name] - found[0][name], g, rtol=1e-3, atol=1e-4)


# --- cross-entropy ---


@pytest.mark.parametrize("name", ["jem", "rbm labelled", "dbm labelled"])
def test_cross_entropy_climbs_the_log_probability_of_the_class(name: str) -> None:
    of = cases.case(name)
    x, labels = cases.some_visibles(of, 6), torch.arange(6) % cases.CLASSES
    found, _ = build({"name": "cross_entropy"}).gradient(of.model, Batch(x, labels), Draws(0, 0), {})
    for parameter, g in found.items():
        values, tensor = [], of.model.tensors()[parameter]
        for move in (1e-5, -1e-5):
            moved = of.model.tensors() | {parameter: tensor + move * torch.ones_like(tensor)}
            values.append(type(of.model).from_tensors(of.manifest, moved).class_log_probs(x))  # type: ignore[attr-defined]
        slope = (values[0] - values[1])[range(6), labels].mean() / 2e-5
        assert float(g.sum()) == pytest.approx(float(slope), abs=1e-6)
    with pytest.raises(RecipeError, match="labelled data"):
        build({"name": "cross_entropy"}).gradient(of.model, Batch(x), Draws(0, 0), {})
