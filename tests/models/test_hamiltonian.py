"""Langevin dynamics, MALA and HMC: reversible, of unit volume, judged by the right ratio, and with the right law.

Laws: independent chains, of which only the last state counts, in bins of nearly equal probability of a law that a sum
over a fine grid gives: Pearson's chi-square at 1e-6. The number of chains is such that each named defect's statistic is
twice that bound or more, so that another seed would let it pass with a probability below 1e-3 (a noncentral chi-square
of 35 degrees of freedom and mean 200 is below 100 with a probability of 1e-5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models import dynamics, rng
from models.dynamics import Point
from models.family import Clamp, HasGradient
from models.hamiltonian import StepSize
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler
from models.samplers import langevin
from models.samplers.hmc import HMC
from models.samplers.langevin import Langevin
from models.samplers.mala import MALA
from tests.models.cases import case, grbm, normal, rbm
from tests.models.kernels import clamp_row, widen
from tests.models.plane import FALSE_ALARM, Given, Normal, Plane, Slope, last

# --- one proposal, exactly ---


@dataclass(frozen=True)
class Judged:
    """One sweep whose proposals were all accepted: from where to where, by which noise and which log ratio."""

    before: Tensor
    proposed: Tensor
    noise: Tensor
    log_ratio: Tensor


def one_step(
    sampler: Sampler, model: HasGradient, start: Tensor, beta: Tensor | None = None, clamp: Clamp | None = None
) -> Judged:
    keys, noted = ChainKeys.of(3, len(start)), []

    def accept(log_ratio: Tensor, *_: object) -> Tensor:
        noted.append(log_ratio)
        return torch.ones(len(log_ratio), dtype=torch.bool)

    state = sampler.init(model, keys, start, clamp)
    with patch.object(rng, "accept", accept):
        after, info = sampler.step(model, state, keys, clamp, beta)
    assert info.acceptance_rate is None or info.acceptance_rate.tolist() == [1.0] * len(start)
    noise = rng.normals(keys, after.sweep, 0, start.shape[1])
    return Judged(state.visible, after.visible, noise, noted[0] if noted else torch.zeros(len(start)))


def energy_of(model: HasGradient, label: int | None, beta: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def told(x: Tensor) -> tuple[Tensor, Tensor]:
        labels = None if label is None else torch.full((len(x),), label)
        energy, gradient = model.energy_and_gradient(x, labels)
        return beta * energy, beta * gradient

    return told


@pytest.mark.parametrize("name", ["grbm", "mlp_energy"])
@pytest.mark.parametrize("step_size", [0.1, 0.7])
@pytest.mark.parametrize("beta", [None, 0.3])
@pytest.mark.parametrize("held", [False, True])
def test_mala_is_judged_by_energies_and_by_the_densities_of_its_own_proposals(
    name: str, step_size: float, beta: float | None, held: bool
) -> None:
    n, model = 40, case(name, 5, 4, seed=3).model
    assert isinstance(model, HasGradient)
    clamp = widen(clamp_row(5, {1: 0.7, 4: -1.5}), n) if held else None
    free = torch.tensor([True, not held, True, True, not held])
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    step = one_step(MALA(step_size, adaptation=0), model, normal((n, 5), 8, 2.0), betas, clamp)
    told = energy_of(model, None, 1.0 if beta is None else beta)

    def drift(x: Tensor) -> Tensor:
        return x - 0.5 * step_size**2 * told(x)[1]

    def log_q(to: Tensor, x: Tensor) -> Tensor:
        return torch.distributions.Normal(drift(x), step_size).log_prob(to)[:, free].sum(1)

    expected = drift(step.before) + step_size * step.noise
    np.testing.assert_allclose(step.proposed[:, free], expected[:, free], atol=1e-11)
    assert torch.equal(step.proposed[:, ~free], step.before[:, ~free])
    log_ratio = told(step.before)[0] - told(step.proposed)[0]
    log_ratio += log_q(step.before, step.proposed) - log_q(step.proposed, step.before)
    np.testing.assert_allclose(step.log_ratio, log_ratio, atol=1e-9, rtol=1e-10)


@pytest.mark.parametrize("label", [None, 2])
def test_hmc_is_judged_by_the_hamiltonian_at_the_ends_of_a_leapfrog_trajectory(label: int | None) -> None:
    n, e, beta = 30, 0.02, 0.6
    model = case("mlp_energy" if label is None else "jem", 4, seed=3).model
    assert isinstance(model, HasGradient)
    clamp = None if label is None else widen(clamp_row(4, {}, label), n)
    start = 0.4 + 0.2 * normal((n, 4), 2).sigmoid()  # so far from the walls that none is met
    step = one_step(HMC(e, 3, adaptation=0), model, start, torch.full((n,), beta).double(), clamp)
    told = energy_of(model, label, beta)
    x, p = step.before, step.noise
    for _ in range(3):
        p = p - 0.5 * e * told(x)[1]
        x = x + e * p
        p = p - 0.5 * e * told(x)[1]
    np.testing.assert_allclose(step.proposed, x, atol=1e-12)
    hamiltonians = [told(x)[0] + 0.5 * p.square().sum(1) for x, p in ((step.before, step.noise), (x, p))]
    np.testing.assert_allclose(step.log_ratio, hamiltonians[0] - hamiltonians[1], atol=1e-12)


class Bowl(Given):
    """E = sum of x^4 / 4 and of a product of neighbours, within walls if there are any."""

    def __init__(self, walls: tuple[float, float] | None) -> None:
        self.walls, self.units = walls, 3

    def energy(self, x: Tensor) -> Tensor:
        return 0.25 * x.pow(4).sum(1) + 0.5 * (x[:, 1:] * x[:, :-1]).sum(1)

    def energy_and_gradient(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gradient = x.pow(3) + 0.5 * (
            torch.nn.functional.pad(x[:, 1:], (0, 1)) + torch.nn.functional.pad(x[:, :-1], (1, 0))
        )
        return self.energy(x), gradient


WALLS = [None, (0.0, 1.0), (-0.3, 0.2)]


def free_flight(model: HasGradient, x: Tensor, p: Tensor, step: float, steps: int) -> Point:
    slope = dynamics.slope_of(model)
    size = step * torch.linspace(0.5, 1.5, x.shape[1]).double().expand(len(x), -1)  # each unit has its own
    return dynamics.leapfrog(slope, Point(x, p, *slope(x)), size, steps, model.bounds, torch.ones_like(x).bool())


@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize(("step", "steps"), [(0.05, 1), (0.13, 7), (0.4, 3)])
def test_leapfrog_with_the_momentum_turned_round_comes_back(
    walls: tuple[float, float] | None, step: float, steps: int
) -> None:
    model, n = Bowl(walls), 200
    low, high = walls or (-1.0, 1.0)
    x, p = low + (high - low) * normal((n, 3), 1).sigmoid(), normal((n, 3), 2)
    there = free_flight(model, x, p, step, steps)
    assert bool(((there.x >= low) & (there.x <= high)).all()) or walls is None
    back = free_flight(model, there.x, -there.momentum, step, steps)
    np.testing.assert_allclose(back.x, x, atol=1e-10)
    np.testing.assert_allclose(back.momentum, -p, atol=1e-10)


@pytest.mark.parametrize("walls", WALLS)
def test_leapfrog_keeps_volumes(walls: tuple[float, float] | None) -> None:
    model = Bowl(walls)
    low, high = walls or (-1.0, 1.0)
    for row in range(8):
        x = low + (high - low) * normal((3,), 10 + row).sigmoid()

        def flight(phase: Tensor) -> Tensor:
            end = free_flight(model, phase[None, :3], phase[None, 3:], 0.3, 4)
            return torch.cat((end.x[0], end.momentum[0]))

        jacobian = torch.autograd.functional.jacobian(flight, torch.cat((x, normal((3,), 30 + row))))
        assert abs(abs(float(torch.linalg.det(jacobian))) - 1) < 1e-9


@pytest.mark.parametrize("sampler", [MALA(), HMC(), MALA(adaptation=0)])
def test_a_refused_proposal_leaves_every_bit_where_it_was(sampler: Sampler) -> None:
    model, keys = grbm(5, 4), ChainKeys.of(3, 20)
    state = sampler.init(model, keys, None, None)
    with patch.object(rng, "accept", lambda log_ratio, *_: torch.zeros(len(log_ratio), dtype=torch.bool)):
        after, info = sampler.step(model, state, keys)
    assert torch.equal(after.visible, state.visible)
    assert info.acceptance_rate is not None
    assert info.acceptance_rate.tolist() == [0.0] * 20


class Cliff(Given):
    """N(0, 1) with energies that are no numbers beyond 1."""

    def energy(self, x: Tensor) -> Tensor:
        beyond = x.abs().amax(1)
        return torch.where(beyond > 2, torch.inf, torch.where(beyond > 1, torch.nan, 0.5 * x.square().sum(1)))


@pytest.mark.parametrize("sampler", [MALA(2.0, adaptation=0), HMC(0.8, 3, adaptation=5), HMC(1e5, 3, adaptation=0)])
def test_what_has_no_finite_energy_is_never_moved_to(sampler: Sampler) -> None:
    seen = last(sampler, Cliff(), 500, 20, start=torch.zeros(500, 2))
    assert bool((seen.abs() <= 1).all())
    moved = float((seen != 0).any(1).double().mean())
    assert moved == 0 if sampler.step_size > 1e4 else moved > 0.5  # type: ignore[attr-defined]


def test_langevin_steps_lead_to_finite_places_only() -> None:
    assert bool(torch.isfinite(last(Langevin(1e3), Bowl(None), 50, 40)).all())


@pytest.mark.parametrize(("walls", "clip"), [(None, False), ((-1.0, 1.0), False), ((-1.0, 1.0), True)])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("step_size", [0.1, 3.0])
def test_a_langevin_step_is_what_its_single_operations_make(
    walls: tuple[float, float] | None, clip: bool, held: bool, step_size: float
) -> None:
    # Bit for bit, with units held, walls met many times over, and a chain that has no finite place to go to.
    model, n = Bowl(walls), 600
    keys, number, x = ChainKeys.of(4, n), torch.full((n,), 9), normal((n, 3), 6).clamp(-1, 1)
    beta = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    beta[5] = torch.inf
    clamp = widen(clamp_row(3, {1: 0.5}), n) if held else None
    x = x if clamp is None else clamp.apply(x)
    _, gradient = dynamics.slope_of(model, clamp, beta)(x)
    noise = rng.single_normals(keys, number, dynamics.MOMENTA, 3).double()
    led = x - 0.5 * step_size**2 * gradient
    led = led.clamp(-1, 1) if clip else led
    moved, _ = dynamics.reflect(led + step_size * noise, walls)
    free = dynamics.free_units(x, clamp)
    sound = (torch.isfinite(moved) | ~free).all(1, keepdim=True)
    assert clip or torch.equal(sound[:, 0].logical_not().nonzero()[:, 0], torch.tensor([5]))
    expected = torch.where(free & sound, moved, x)
    state = ChainState({"visible": x}, number - 1)
    assert torch.equal(Langevin(step_size, clip).step(model, state, keys, clamp, beta)[0].visible, expected)
    with patch.object(langevin, "_ROWS", 7), patch.object(langevin, "_NUMBERS", 1):
        assert torch.equal(Langevin(step_size, clip).step(model, state, keys, clamp, beta)[0].visible, expected)
    empty = Langevin(step_size, clip).step(model, ChainState({"visible": x[:0]}, number[:0]), keys.rows(slice(0, 0)))
    assert empty[0].visible.shape == (0, 3)


# --- laws ---

CHAINS = 6000
SAMPLERS = {"mala": MALA(0.9, adaptation=0), "hmc": HMC(0.5, 4, adaptation=0)}
UNIT = {"mala": MALA(0.25, adaptation=0), "hmc": HMC(0.15, 4, adaptation=0)}
"""For visibles from 0 to 1."""


@pytest.mark.parametrize(
    ("name", "scale", "beta", "known", "label"),
    [
        ("grbm", 0.7, None, {}, None),
        ("grbm", 0.7, 0.5, {}, None),
        ("grbm", 0.7, None, {0: 0.8}, None),
        ("mlp_energy", 1.0, None, {}, None),
        ("mlp_energy", 1.0, 2.0, {1: -0.4}, None),
        ("mlp_energy unit", 1.5, None, {}, None),
        ("jem", 1.0, None, {}, None),
        ("jem", 1.0, 2.0, {}, 1),
        ("jem", 1.0, None, {0: 0.1}, 2),
    ],
)
@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_chains_follow_the_law_of_the_energy(
    sampler: str, name: str, scale: float, beta: float | None, known: dict[int, float], label: int | None
) -> None:
    model = case(name, 2, 3, seed=5, scale=scale).model
    assert isinstance(model, HasGradient)
    clamp = clamp_row(2, known, label) if known or label is not None else None
    kernel = (UNIT if model.bounds else SAMPLERS)[sampler]
    seen = last(kernel, model, CHAINS, 40, beta, clamp)
    p, _ = Plane(model, 1.0 if beta is None else beta, clamp).p_value(seen)
    assert p > FALSE_ALARM


@contextmanager
def noise_scaled(by: float) -> Iterator[None]:
    real, single = rng.normals, rng.single_normals
    with (
        patch.object(rng, "normals", lambda *of: by * real(*of)),
        patch.object(rng, "single_normals", lambda *of: by * single(*of)),
    ):
        yield


@contextmanager
def ratio_changed(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    real = rng.accept
    with patch.object(rng, "accept", lambda log_ratio, *of: real(change(log_ratio), *of)):
        yield


@contextmanager
def kinetic_energy_forgotten() -> Iterator[None]:
    with patch.object(dynamics, "invariant_sum", lambda terms: torch.zeros(len(terms), dtype=torch.float64)):
        yield


@contextmanager
def momentum_kept_at_walls() -> Iterator[None]:
    real = dynamics.reflect
    with patch.object(dynamics, "reflect", lambda x, bounds: (real(x, bounds)[0], torch.zeros_like(x).bool())):
        yield


@contextmanager
def stopped_at_walls() -> Iterator[None]:
    def stop(x: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
        return x.clamp(*bounds), torch.zeros_like(x).bool()

    def stop_compiled(x: np.ndarray, slope: np.ndarray, noise: np.ndarray, _: object, drift: float, *of: Any) -> None:
        step, low, high, _, out = of
        out[:] = np.clip(x - drift * slope + step * noise, low, high)

    with patch.object(dynamics, "reflect", stop), patch.object(dynamics, "_langevin_kernel", stop_compiled):
        yield


DEFECTS = {
    "noise scaled by 0.8": lambda: noise_scaled(0.8),
    "never refused": lambda: ratio_changed(torch.zeros_like),
    "wrong sign": lambda: ratio_changed(torch.neg),
    "kinetic energy forgotten": kinetic_energy_forgotten,
}


@pytest.mark.parametrize("sampler", [MALA(1.4, adaptation=0), HMC(1.1, 4, adaptation=0)])
@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_laws_tell_defects(sampler: Sampler, defect: str) -> None:
    model = case("grbm", 2, 3, seed=5, scale=0.7).model
    assert isinstance(model, HasGradient)
    with DEFECTS[defect]():
        assert Plane(model).p_value(last(sampler, model, CHAINS, 40))[1] > 2
    assert Plane(model).p_value(last(sampler, model, CHAINS, 40))[0] > FALSE_ALARM


@pytest.mark.parametrize("sampler", [Langevin(0.3), MALA(0.3, adaptation=0), HMC(0.1, 4, adaptation=0)])
def test_walls_leave_a_uniform_law_uniform(sampler: Sampler) -> None:
    box = Slope([0.0, 0.0], (0.0, 1.0))
    start = torch.full((CHAINS, 2), 0.05)
    assert Plane(box).p_value(last(sampler, box, CHAINS, 40, start=start))[0] > FALSE_ALARM
    with stopped_at_walls():
        assert Plane(box).p_value(last(sampler, box, CHAINS, 40, start=start))[1] > 2


@pytest.mark.parametrize("sampler", [MALA(0.5, adaptation=0), HMC(0.25, 4, adaptation=0)])
def test_walls_that_do_not_turn_the_momentum_are_seen(sampler: Sampler) -> None:
    slope = Slope([3.0, -2.0], (0.0, 1.0))
    assert Plane(slope).p_value(last(sampler, slope, CHAINS, 40))[0] > FALSE_ALARM
    with momentum_kept_at_walls():
        assert Plane(slope).p_value(last(sampler, slope, CHAINS, 40))[1] > 2


NORMAL = Normal(
    torch.tensor([1.0, -2.0, 0.5]).double(),
    torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]]).double(),
)


@pytest.mark.parametrize("sampler", [MALA(0.9, adaptation=0), HMC(0.4, 4, adaptation=0), HMC(adaptation=60)])
@pytest.mark.parametrize("beta", [None, 0.4])
def test_a_gaussian_has_its_mean_and_its_covariance(sampler: Sampler, beta: float | None) -> None:
    x = last(sampler, NORMAL, CHAINS, 100, beta)
    covariance = NORMAL.covariance / (1.0 if beta is None else beta)
    away = x - NORMAL.mean
    # Hotelling's T^2 and, of a whitened unit, the sum of squares: chi-square with 3 and with n degrees of freedom.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), away.T, upper=False).T
    assert stats.chi2.sf(float(CHAINS * white.mean(0).square().sum()), 3) > FALSE_ALARM
    for unit in range(3):
        total = float(white[:, unit].square().sum())
        assert FALSE_ALARM / 3 < stats.chi2.sf(total, CHAINS) < 1 - FALSE_ALARM / 3
    # A correlation has the standard error n^-1/2 where there is none.
    products = white.T @ white / CHAINS
    assert float((products - torch.eye(3) * products).abs().max()) < stats.norm.isf(FALSE_ALARM / 6) / math.sqrt(CHAINS)


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_langevin_variances_are_too_large_by_what_is_said(step_size: float) -> None:
    model, n = Normal(torch.zeros(2).double(), torch.eye(2).double()), 20_000
    x = last(Langevin(step_size), model, n, 150 if step_size < 1 else 30)
    assert Langevin().approximate(model, clamped=False)
    assert not MALA().approximate(model, clamped=True)
    assert not HMC().approximate(model, clamped=True)
    for value in (x.square().sum(0) * (1 - step_size**2 / 4)).tolist():
        assert FALSE_ALARM < stats.chi2.sf(value, n) < 1 - FALSE_ALARM
    with noise_scaled(math.sqrt(0.9)):
        spoilt = last(Langevin(step_size), model, n, 150 if step_size < 1 else 30)
    assert stats.chi2.cdf(float(spoilt[:, 0].square().sum() * (1 - step_size**2 / 4)), n) < FALSE_ALARM


# --- step sizes ---


def test_step_sizes_follow_dual_averaging() -> None:
    sizes, n = StepSize(0.2, 0.7, 6), 3
    chances = normal((8, n), 4).sigmoid()
    blocks = sizes.blocks(n, torch.device("cpu"))
    error, log_step, mean = [0.0] * n, [math.log(0.2)] * n, [math.log(0.2)] * n
    for m in range(1, 9):
        number = torch.full((n,), m)
        used = [math.exp(v) for v in (log_step if m <= 6 else mean)]
        np.testing.assert_allclose(sizes.at(blocks, number), used, rtol=1e-12)
        blocks = sizes.after(blocks, number, chances[m - 1])
        for i in range(n):
            if m <= 6:
                error[i] = (1 - 1 / (m + 10)) * error[i] + (0.7 - float(chances[m - 1, i])) / (m + 10)
                log_step[i] = math.log(2.0) - math.sqrt(m) / 0.05 * error[i]
                mean[i] = m**-0.75 * log_step[i] + (1 - m**-0.75) * mean[i]
    assert all(block.shape == (n, 1) for block in blocks.values())


@pytest.mark.parametrize(("sampler", "target"), [(MALA(), 0.574), (HMC(), 0.8), (MALA(1.0, target=0.8), 0.8)])
@pytest.mark.parametrize("width", [0.01, 1.0])
def test_chains_accept_as_often_as_they_were_told_to(sampler: Sampler, target: float, width: float) -> None:
    model = Normal(torch.zeros(10).double(), width**2 * torch.eye(10).double())
    keys, rates = ChainKeys.of(4, 40), []
    state = sampler.init(model, keys, width * normal((40, 10), 1), None)
    for sweep in range(1, 501):
        state, info = sampler.step(model, state, keys)
        if sweep == 200:
            steps = state.blocks["log_step_mean"]
        if sweep > 200:
            assert info.acceptance_rate is not None
            rates.append(info.acceptance_rate)
    assert torch.equal(state.blocks["log_step_mean"], steps)
    assert abs(float(torch.stack(rates).mean()) - target) < 0.1
    assert float(steps.std()) > 0  # each chain has its own


def test_scales_are_those_of_the_sweeps_before_and_step_sizes_begin_anew_with_them() -> None:
    n, sampler = 3, HMC(0.1, 2, adaptation=80, precondition=True)
    model = Normal(torch.zeros(2).double(), torch.diag(torch.tensor([1e-4, 4.0]).double()))
    keys, states = ChainKeys.of(4, n), []
    state, scale = sampler.init(model, keys, None, None), np.ones((n, 2))
    for sweep in range(1, 101):
        state, _ = sampler.step(model, state, keys)
        states.append(state.visible)
        if sweep in (20, 40, 60):
            seen = torch.stack(states[sweep - (10 if sweep == 20 else 20) :])
            share = len(seen) / (len(seen) + 5)
            scale = (share * seen.var(0, unbiased=False) + 1e-3 * (1 - share)).sqrt().numpy()
        np.testing.assert_allclose(state.blocks["scale"], scale, rtol=1e-9)
        if sweep in (1, 21, 41, 61):
            error = state.blocks["step_error"]
            np.testing.assert_allclose(state.blocks["log_step"], math.log(1.0) - error / 0.05, rtol=1e-9, atol=1e-12)
            assert bool((error.abs() <= 0.8 / 11 + 1e-12).all())


@pytest.mark.parametrize("make", [lambda p: MALA(precondition=p), lambda p: HMC(precondition=p)])
def test_preconditioned_chains_cross_a_narrow_law_in_far_fewer_sweeps(make: Callable[[bool], Sampler]) -> None:
    model = Normal(torch.zeros(4).double(), torch.diag(torch.tensor([0.05, 0.2, 1.0, 5.0]).double().square()))
    keys, kept = ChainKeys.of(4, 100), []
    for precondition in (False, True):
        sampler = make(precondition)
        state, moved = sampler.init(model, keys, None, None), []
        for sweep in range(1, 241):
            before = state.visible
            state, _ = sampler.step(model, state, keys)
            if sweep > 200:
                moved.append((state.visible - before)[:, 3].square())
        kept.append(float(torch.stack(moved).mean()))
    assert kept[1] > 20 * kept[0]  # mean squared jumps of the widest unit


def test_laws_hold_once_step_sizes_are_kept() -> None:
    model = case("grbm", 2, 3, seed=5, scale=0.7).model
    assert isinstance(model, HasGradient)
    for sampler in (MALA(adaptation=60), HMC(0.05, 4, adaptation=60), HMC(0.05, 4, adaptation=80, precondition=True)):
        assert Plane(model).p_value(last(sampler, model, CHAINS, 100))[0] > FALSE_ALARM


def test_a_chain_that_holds_all_visibles_stays_where_it_is_and_its_step_size_finite() -> None:
    model, clamp = grbm(3, 4), widen(clamp_row(3, {0: 0.1, 1: -7.3, 2: 1e-9}), 4)
    state = ChainState(HMC().init(model, ChainKeys.of(1, 4), None, clamp).blocks, torch.zeros(4, dtype=torch.int64))
    for _ in range(150):
        state, _ = HMC(leapfrog_steps=1).step(model, state, ChainKeys.of(1, 4), clamp)
    assert torch.equal(state.visible, clamp.value)
    assert all(bool(torch.isfinite(block).all()) for block in state.blocks.values())


# --- where they apply, and their settings ---


@pytest.mark.parametrize("sampler", [Langevin, MALA, HMC])
def test_they_apply_to_models_with_gradients(sampler: type[Sampler]) -> None:
    assert sampler.applies_to(grbm(3, 2))
    assert sampler.applies_to(case("jem").model)
    assert not sampler.applies_to(rbm(3, 2))


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        (Langevin, {"step_size": 0.0}, "step_size must be a number above 0"),
        (MALA, {"step_size": float("nan")}, "step_size must be a number above 0"),
        (MALA, {"target": 1.0}, "target must be a number above 0 and below 1"),
        (MALA, {"adaptation": -1}, "adaptation must be a whole number from 0"),
        (HMC, {"step_size": -1.0}, "step_size must be a number above 0"),
        (HMC, {"leapfrog_steps": 0}, "leapfrog_steps must be a whole number from 1 to 1000"),
        (HMC, {"leapfrog_steps": True}, "leapfrog_steps must be a whole number from 1 to 1000"),
        (HMC, {"adaptation": False}, "adaptation must be a whole number from 0"),
        (MALA, {"adaptation": 39, "precondition": True}, "precondition needs an adaptation of 40 sweeps or more"),
    ],
)
def test_settings_out_of_range_are_refused(sampler: type[Sampler], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**settings)
