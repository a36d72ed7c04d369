"""Estimates of log Z: unbiased weights, honest errors, both sides of the truth, and no draw used twice."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models import annealing, catalog, rng
from models.errors import CapabilityError
from models.estimator import Effort, Estimator
from models.estimators import reverse_ais
from models.estimators.ais import AIS
from models.estimators.exact import Exact
from models.estimators.reverse_ais import ReverseAIS
from models.families.rbm import RBM
from models.family import EnergyModel, HasAnnealing
from models.rng import ChainKeys
from tests.models import cases
from tests.models.cases import case, normal, rbm, states
from tests.models.test_samplers import Bare

ESTIMATORS: Mapping[str, Estimator] = {"exact": Exact(), "ais": AIS(), "reverse_ais": ReverseAIS()}
PAIRS = [
    (estimator, family)
    for estimator in sorted(catalog.estimators())
    for family in sorted(catalog.families())
    if catalog.estimators()[estimator].applies_to(catalog.families()[family])
]
FALSE_ALARM = 1e-6
Z_SCORE = float(stats.norm.isf(FALSE_ALARM / 2))
"""4.9: a standard normal number is further from 0 with probability 1e-6."""


def brute_force(of: cases.Case) -> float:
    visible = states(of.values["visible"], of.manifest.visible.units)
    return float(torch.logsumexp(-of.model.energy(visible.to(of.model.dtype)).double(), 0))


# --- the contract ---


def test_every_estimator_has_an_entry_here_and_a_family_to_run_on() -> None:
    assert set(ESTIMATORS) == set(catalog.estimators())
    assert {estimator for estimator, _ in PAIRS} == set(ESTIMATORS)
    for name, estimator in ESTIMATORS.items():
        assert type(estimator) is catalog.estimators()[name]
        assert not type(estimator).__subclasses__()
        assert all(inspect.isabstract(base) for base in type(estimator).__mro__[1:] if issubclass(base, Estimator))


@pytest.mark.parametrize(("estimator", "family"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_estimate_lies_within_five_of_its_standard_errors(estimator: str, family: str, dtype: torch.dtype) -> None:
    of = case(family, 6, 4, dtype=dtype)
    estimate = ESTIMATORS[estimator].estimate(of.model, Effort(chains=400, temperatures=200, seed=3))
    assert estimate.method == estimator
    assert math.isfinite(estimate.stderr)
    assert (estimate.stderr == 0.0) == (estimator == "exact")
    assert abs(estimate.value - brute_force(of)) < max(5 * estimate.stderr, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(("estimator", "family"), PAIRS)
def test_the_same_effort_and_seed_give_the_same_bits(estimator: str, family: str) -> None:
    model = case(family, 6, 4).model
    run = ESTIMATORS[estimator].estimate
    once = run(model, Effort(chains=20, temperatures=30, seed=2**53 - 1))
    assert run(model, Effort(chains=20, temperatures=30, seed=2**53 - 1)) == once
    if estimator != "exact":
        assert run(model, Effort(chains=20, temperatures=30, seed=1)).value != once.value
        assert run(model, Effort(chains=21, temperatures=30, seed=2**53 - 1)).value != once.value


@pytest.mark.parametrize(("estimator", "family"), PAIRS)
def test_progress_grows_to_its_total(estimator: str, family: str) -> None:
    told: list[tuple[int, int]] = []
    ESTIMATORS[estimator].estimate(
        case(family, 6, 4).model, Effort(chains=5, temperatures=12), lambda done, total: told.append((done, total))
    )
    if estimator == "exact":
        return
    assert len({total for _, total in told}) == 1
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_an_estimator_refuses_a_family_without_what_it_needs(name: str) -> None:
    assert not ESTIMATORS[name].applies_to(Bare)
    with pytest.raises(CapabilityError, match="bare") as refused:
        ESTIMATORS[name].estimate(Bare(), Effort())
    assert refused.value.available == ("energy", "log-density", "anomaly")


@pytest.mark.parametrize(("estimator", "family"), PAIRS)
def test_no_random_number_is_drawn_twice(estimator: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Watches the compiled kernels: every row they are asked for is a (seed, chain, sweep, stream) of its own.
    asked: list[tuple[int, int, int, int]] = []
    real_bernoulli, real_bits = rng._bernoulli_kernel, rng._bits_kernel

    def bernoulli(logits: Any, seeds: Any, chains: Any, sweeps: Any, stream: int, out: Any) -> None:
        asked.extend((int(s), int(c), int(w), stream) for s, c, w in zip(seeds, chains, sweeps, strict=True))
        real_bernoulli(logits, seeds, chains, sweeps, stream, out)

    def bits(seeds: Any, chains: Any, sweeps: Any, stream: int, out: Any) -> None:
        asked.extend((int(s), int(c), int(w), stream) for s, c, w in zip(seeds, chains, sweeps, strict=True))
        real_bits(seeds, chains, sweeps, stream, out)

    monkeypatch.setattr(rng, "_bernoulli_kernel", bernoulli)
    monkeypatch.setattr(rng, "_bits_kernel", bits)
    ESTIMATORS[estimator].estimate(case(family, 6, 4).model, Effort(chains=13, temperatures=70, seed=9))
    assert (estimator == "exact") == (not asked)
    assert len(set(asked)) == len(asked)


# --- the path ---


@pytest.mark.parametrize("count", [1, 2, 3, 10, 29, 100, 1000, 14_500])
def test_temperatures_rise_from_0_to_1(count: int) -> None:
    betas = annealing.temperatures(count)
    assert len(betas) == count + 1
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    assert all(low < high for low, high in itertools.pairwise(betas))


def test_temperatures_are_spaced_as_published() -> None:
    # Salakhutdinov & Murray (2008): 500 uniformly from 0 to 0.5, 4000 from 0.5 to 0.9, 10,000 from 0.9 to 1.
    published = np.concatenate(
        (np.linspace(0, 0.5, 501), np.linspace(0.5, 0.9, 4001)[1:], np.linspace(0.9, 1, 10_001)[1:])
    )
    np.testing.assert_allclose(annealing.temperatures(14_500), published, atol=1e-12)


def test_base_rates_are_log_odds_and_finite_even_where_a_unit_never_moved() -> None:
    np.testing.assert_allclose(
        annealing.log_odds(torch.tensor([0.0, 50.0, 100.0]), 100), np.log([0.5 / 100.5, 1, 100.5 / 0.5])
    )
    stuck = RBM(torch.zeros(2, 1).double(), torch.tensor([60.0, -60.0]).double(), torch.zeros(1).double())
    base = annealing.base_rates(stuck, ChainKeys.of(0, 100))
    assert bool(torch.isfinite(base).all())
    assert float(base[0]) > 5.0
    assert float(base[1]) < -5.0


def test_base_rates_approach_the_marginals_of_the_model() -> None:
    model = rbm(6, 4, scale=0.5)
    visible = states((0.0, 1.0), 6)
    p = cases.law(model.energy(visible)) @ visible
    base = annealing.base_rates(model, ChainKeys.of(1, 4000), sweeps=20)
    # 40,000 draws, of which at least the 4,000 of different chains are independent: 4.9 standard errors of those.
    error = Z_SCORE * torch.sqrt(p * (1 - p) / 4000)
    assert bool((torch.sigmoid(base) - p).abs().le(error).all())


def tempered(model: RBM, base: Tensor, beta: float) -> RBM:
    """The RBM whose marginal over the visibles is f_beta (Salakhutdinov & Murray 2008, eq. 16)."""
    return RBM(beta * model.W, (1 - beta) * base + beta * model.b, beta * model.c)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.8, 1.0])
def test_a_transition_is_reversible_and_leaves_its_density_unchanged(beta: float) -> None:
    # 40,000 chains start from exact draws of f_beta; (before, after) has the law f(x) T(x, y), which is symmetric.
    # Chi-square over the 64 pairs at 1e-6. A transition at a wrong beta is the named defect: rejected with the same n.
    model, base, n = rbm(3, 3, seed=23), 0.5 * normal((3,), 5), 40_000
    visible, hidden = states((0.0, 1.0), 3), states((0.0, 1.0), 3)

    def pair_law(at: float, stationary: float) -> np.ndarray:
        rbm_at = tempered(model, base, at)
        up = rbm_at.conditional("hidden", {"visible": visible, "hidden": hidden}).mean()
        down = rbm_at.conditional("visible", {"visible": visible, "hidden": hidden}).mean()
        p_h = torch.where(hidden[None] == 1, up[:, None], 1 - up[:, None]).prod(2)
        p_v = torch.where(visible[None] == 1, down[:, None], 1 - down[:, None]).prod(2)
        return (cases.law(tempered(model, base, stationary).energy(visible))[:, None] * (p_h @ p_v)).numpy()

    law = pair_law(beta, beta)
    np.testing.assert_allclose(law, law.T, atol=1e-12)
    start = np.random.default_rng(3).choice(8, n, p=law.sum(1) / law.sum())
    state = model.annealed_at(visible[torch.from_numpy(start)])
    keys = ChainKeys.of(12, n)
    after = model.annealed_transition(state, base, beta, keys, torch.ones(n, dtype=torch.int64))
    powers = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    counts = np.bincount(8 * start + (after.visible @ powers).long().numpy(), minlength=64)
    expected = n * law.ravel()
    assert expected.min() > 5
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > FALSE_ALARM
    wrong = pair_law(abs(beta - 0.2), beta).ravel()
    noncentrality = n * ((wrong - law.ravel()) ** 2 / law.ravel()).sum()
    assert stats.ncx2.sf(stats.chi2.isf(FALSE_ALARM, 63), 63, noncentrality) > 0.999


def test_annealing_starts_from_the_base_rates() -> None:
    model, base, n = rbm(3, 3, seed=23), normal((3,), 5), 20_000
    start = model.annealed_start(base, ChainKeys.of(1, n), torch.zeros(n, dtype=torch.int64)).visible
    counts = np.bincount((start @ torch.tensor([4.0, 2.0, 1.0]).double()).long().numpy(), minlength=8)
    law = torch.softmax(states((0.0, 1.0), 3) @ base, 0).numpy()
    assert stats.chisquare(counts, counts.sum() * law / law.sum()).pvalue > FALSE_ALARM


# --- the weights ---

WALKERS, STEPS = 40_000, 6
"""Few temperatures: a defect in the order of weights and transitions shows the more, the coarser the path."""


def forward_weights_after_transition(model: HasAnnealing, base: Tensor, keys: ChainKeys, betas: list[float]) -> Tensor:
    """The defect: each weight is taken from the state that its temperature's transition has already moved."""
    sweep = torch.zeros(len(keys), dtype=torch.int64)
    state = model.annealed_start(base, keys, sweep)
    weight = torch.full((len(keys),), model.annealed_base(base), dtype=torch.float64)
    for k in range(1, len(betas)):
        state = model.annealed_transition(state, base, betas[k], keys, sweep + k)
        weight += model.annealed_log_density(state, base, betas[k]) - model.annealed_log_density(
            state, base, betas[k - 1]
        )
    return weight


def z_score(log_weights: Tensor, log_z: float) -> float:
    """How many standard errors the mean of exp(log weight) / Z is from 1."""
    ratio = (log_weights - log_z).exp()
    return float((ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio))))


def test_forward_weights_are_unbiased_for_z() -> None:
    # The mean of w / Z is 1: a z-test at 1e-6. The named defects score beyond 8 and so are rejected with power 0.999.
    model, base = rbm(8, 5, seed=2), torch.zeros(8, dtype=torch.float64)
    betas, keys = annealing.temperatures(STEPS), ChainKeys.of(4, WALKERS)
    _, log_weights = annealing.forward(model, base, keys, betas)
    log_z = model.log_partition()
    assert abs(z_score(log_weights, log_z)) < Z_SCORE
    assert float((log_weights - log_z).std()) > 0.3
    defects = {
        "weights after the transition": forward_weights_after_transition(model, base, keys, betas),
        "hidden units of the base not counted": log_weights - 5 * math.log(2),
        "first temperature left out": annealing.forward(model, base, keys, betas[1:])[1],
    }
    for name, weights in defects.items():
        assert abs(z_score(weights, log_z)) > 8, name


def test_final_states_of_the_forward_walk_are_weighted_draws_of_the_model() -> None:
    model, base = rbm(8, 5, seed=2), torch.zeros(8, dtype=torch.float64)
    walked, log_weights = annealing.forward(model, base, ChainKeys.of(5, WALKERS), annealing.temperatures(STEPS))
    ratio = (log_weights - model.log_partition()).exp()
    visible = states((0.0, 1.0), 8)
    marginals = cases.law(model.energy(visible)) @ visible
    weighted = ratio[:, None] * (walked - marginals)
    # Eight z-tests at 1e-6.
    assert bool((weighted.mean(0).abs() < Z_SCORE * weighted.std(0) / math.sqrt(WALKERS)).all())


def test_backward_weights_from_exact_samples_are_unbiased_for_one_over_z() -> None:
    model, base = rbm(8, 5, seed=2), torch.zeros(8, dtype=torch.float64)
    visible = states((0.0, 1.0), 8)
    law = cases.law(model.energy(visible)).numpy()
    start = visible[torch.from_numpy(np.random.default_rng(0).choice(256, WALKERS, p=law / law.sum()))]
    keys, betas = ChainKeys.of(6, WALKERS), annealing.temperatures(STEPS)
    log_weights = annealing.backward(model, base, keys, betas, start)
    log_z = model.log_partition()
    assert abs(z_score(-log_weights, -log_z)) < Z_SCORE
    wrong_start = annealing.backward(model, base, keys, betas, (states((0.0, 1.0), 8)[torch.arange(WALKERS) % 256]))
    assert abs(z_score(-wrong_start, -log_z)) > 8


def test_a_walk_from_a_given_state_estimates_that_states_probability() -> None:
    # exp(-E(x) - w) has as its mean the probability that the forward walk ends in x, weights aside: seen by counting.
    model, base = rbm(4, 3, seed=2), torch.zeros(4, dtype=torch.float64)
    betas = annealing.temperatures(4)
    ends, _ = annealing.forward(model, base, ChainKeys.of(7, WALKERS), betas)
    visible = states((0.0, 1.0), 4)
    counts = np.bincount((ends @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long().numpy(), minlength=16)
    for number in (0, 5, 11, 15):
        x = visible[number]
        w = annealing.backward(model, base, ChainKeys.of(8, WALKERS), betas, x.expand(WALKERS, -1).contiguous())
        chances = (-model.energy(x[None]) - w).exp()
        share = counts[number] / WALKERS
        error = math.hypot(float(chances.std()) / math.sqrt(WALKERS), math.sqrt(share * (1 - share) / WALKERS))
        assert abs(float(chances.mean()) - share) < Z_SCORE * error


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_particles_are_resampled_in_proportion_to_their_weights(spread: float) -> None:
    # Systematic resampling: a particle of weight p among n comes n p times, rounded down or up.
    n = 1000
    log_weights = spread * normal((n,), 3) + 5000.0
    particles = torch.arange(n, dtype=torch.float64)[:, None]
    share = n * torch.softmax(log_weights, 0)
    drawn = reverse_ais._resample(particles, log_weights, ChainKeys.of(4, n, first=n))
    counts = torch.bincount(drawn[:, 0].long(), minlength=n)
    assert int(counts.sum()) == n
    assert bool((counts >= torch.floor(share - 1e-6)).all())
    assert bool((counts <= torch.ceil(share + 1e-6)).all())
    if spread == 1.0:
        other = reverse_ais._resample(particles, log_weights, ChainKeys.of(5, n, first=n))
        assert not torch.equal(drawn, other)


# --- the estimates ---

SEEDS = 100


@pytest.fixture(scope="module")
def many() -> tuple[float, dict[str, np.ndarray]]:
    """The exact log Z, and (value, stderr) of each estimator over SEEDS seeds."""
    model = rbm(8, 5, seed=2)
    effort = [Effort(chains=100, temperatures=25, seed=seed) for seed in range(SEEDS)]
    estimates = {}
    for name in ("ais", "reverse_ais"):
        found = [ESTIMATORS[name].estimate(model, e) for e in effort]
        estimates[name] = np.array([(f.value, f.stderr) for f in found])
    return model.log_partition(), estimates


@pytest.mark.parametrize("name", ["ais", "reverse_ais"])
def test_the_standard_error_is_that_of_the_estimate(name: str, many: tuple[float, dict[str, np.ndarray]]) -> None:
    # z = (estimate - log Z) / stderr is nearly standard normal with this many chains (its bias, stderr / 2, is below
    # 0.02), so its squares sum to a chi-square with SEEDS degrees of freedom: two-sided at 1e-6. A stderr that is off
    # by a factor of 1.9 either way is rejected with power above 0.999.
    log_z, estimates = many
    z = (estimates[name][:, 0] - log_z) / estimates[name][:, 1]
    low, high = (float(stats.chi2.ppf(p, SEEDS)) for p in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
    total = float((z**2).sum())
    assert low < total < high
    assert abs(z.mean()) < (Z_SCORE + 0.25) / math.sqrt(SEEDS)
    assert stats.chi2.sf(high / 1.9**2, SEEDS) > 0.999
    assert stats.chi2.cdf(low * 1.9**2, SEEDS) > 0.999


def test_both_sides_bracket_the_exact_value_within_their_stated_errors(
    many: tuple[float, dict[str, np.ndarray]],
) -> None:
    log_z, estimates = many
    low, high = estimates["ais"], estimates["reverse_ais"]
    # Each of the 200 comparisons fails by chance with probability 5e-7.
    assert bool((low[:, 0] - Z_SCORE * low[:, 1] < log_z).all())
    assert bool((high[:, 0] + Z_SCORE * high[:, 1] > log_z).all())


def test_ais_on_784_by_16_is_within_a_twentieth_of_a_nat() -> None:
    model = rbm(784, 16, seed=1, dtype=torch.float32, scale=0.15)
    exact = Exact().estimate(model, Effort())
    low = AIS().estimate(model, Effort(chains=100, temperatures=1000, seed=0))
    assert abs(low.value - exact.value) < 0.05
    assert low.stderr < 0.02


def test_ais_is_the_same_on_any_number_of_threads() -> None:
    model: EnergyModel = rbm(300, 40, seed=1, dtype=torch.float32, scale=0.2)
    threads = torch.get_num_threads()
    try:
        expected = AIS().estimate(model, Effort(chains=150, temperatures=40))
        torch.set_num_threads(3)
        assert AIS().estimate(model, Effort(chains=150, temperatures=40)) == expected
    finally:
        torch.set_num_threads(threads)
