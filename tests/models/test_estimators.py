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
from models.estimators.ais_hmc import AISHMC
from models.estimators.exact import Exact
from models.estimators.reverse_ais import ReverseAIS
from models.families.rbm import RBM
from models.family import Base, EnergyModel, HasAnnealing
from models.numerics import log_mean_exp
from models.rng import ChainKeys
from tests.models import cases
from tests.models.cases import BINARY, ONE_HOT, case, having, normal, product, rbm, states
from tests.models.kernels import number
from tests.models.layered_reference import Reference
from tests.models.test_samplers import EVERY_KIND, Bare

ESTIMATORS: Mapping[str, Estimator] = {
    "exact": Exact(),
    "ais": AIS(),
    "ais_hmc": AISHMC(),
    "reverse_ais": ReverseAIS(),
}
PAIRS = [
    (estimator, name)
    for estimator in sorted(catalog.estimators())
    for name in sorted(cases.FACTORIES)
    if catalog.estimators()[estimator].applies_to(case(name).model)
]
KNOWN = [(estimator, name) for estimator, name in PAIRS if isinstance(case(name).model, HasAnnealing)]
"""Pairs of which the exact log Z is known; `test_ais_hmc` has networks."""
EVERY_KIND_OF_PAIR = [(estimator, name) for estimator, name in PAIRS if name in EVERY_KIND]
PATHS = having(HasAnnealing)
FALSE_ALARM = 1e-6
Z_SCORE = float(stats.norm.isf(FALSE_ALARM / 2))
"""4.9: a standard normal number is further from 0 with probability 1e-6."""


def exact_log_z(of: cases.Case) -> float:
    """By the sum over all states, and the integral over real ones."""
    if not of.enumerable:
        return Reference.of(of).log_z()
    return float(torch.logsumexp(-of.sweeping.joint_energy(cases.joint_states(of.sweeping, of.values)), 0))


# --- the contract ---


def test_every_estimator_has_an_entry_here_and_a_family_to_run_on() -> None:
    assert set(ESTIMATORS) == set(catalog.estimators())
    assert {estimator for estimator, _ in PAIRS} == set(ESTIMATORS)
    for name, estimator in ESTIMATORS.items():
        assert type(estimator) is catalog.estimators()[name]
        assert not type(estimator).__subclasses__()
        assert all(inspect.isabstract(base) for base in type(estimator).__mro__[1:] if issubclass(base, Estimator))


@pytest.mark.parametrize(
    ("estimator", "name", "dtype"),
    [(*pair, torch.float64) for pair in KNOWN]
    + [(*pair, torch.float32) for pair in EVERY_KIND_OF_PAIR if pair in KNOWN],
)
def test_the_estimate_lies_within_five_of_its_standard_errors(estimator: str, name: str, dtype: torch.dtype) -> None:
    of = case(name, 5, 4, dtype=dtype, scale=0.7)
    estimate = ESTIMATORS[estimator].estimate(of.model, Effort(chains=200, temperatures=60, seed=3))
    assert estimate.method == estimator
    assert math.isfinite(estimate.stderr)
    assert (estimate.stderr == 0.0) == (estimator == "exact")
    exact = exact_log_z(case(name, 5, 4, scale=0.7))
    assert abs(estimate.value - exact) < max(5 * estimate.stderr, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(("estimator", "name"), EVERY_KIND_OF_PAIR)
def test_the_same_effort_and_seed_give_the_same_bits(estimator: str, name: str) -> None:
    model = case(name, 5, 3).model
    run = ESTIMATORS[estimator].estimate
    once = run(model, Effort(chains=20, temperatures=10, seed=2**53 - 1))
    assert run(model, Effort(chains=20, temperatures=10, seed=2**53 - 1)) == once
    if estimator != "exact":
        assert run(model, Effort(chains=20, temperatures=10, seed=1)).value != once.value
        assert run(model, Effort(chains=21, temperatures=10, seed=2**53 - 1)).value != once.value


@pytest.mark.parametrize(("estimator", "name"), EVERY_KIND_OF_PAIR)
def test_progress_grows_to_its_total(estimator: str, name: str) -> None:
    told: list[tuple[int, int]] = []
    ESTIMATORS[estimator].estimate(
        case(name, 5, 3).model, Effort(chains=5, temperatures=12), lambda done, total: told.append((done, total))
    )
    if estimator == "exact":
        return
    assert len({total for _, total in told}) == 1
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_an_estimator_refuses_a_family_without_what_it_needs(name: str) -> None:
    assert not ESTIMATORS[name].applies_to(Bare())
    with pytest.raises(CapabilityError, match="bare") as refused:
        ESTIMATORS[name].estimate(Bare(), Effort())
    assert refused.value.available == ("energy", "log-density", "anomaly")


@pytest.mark.parametrize(("estimator", "name"), EVERY_KIND_OF_PAIR)
def test_no_random_number_is_drawn_twice(estimator: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Watches what runs the compiled kernels: every row asked for is a (seed, chain, sweep, stream and replica).
    asked: list[tuple[int, ...]] = []
    real = rng.over_rows

    def watched(kernel: Any, keys: ChainKeys, sweep: Tensor, stream: int, *blocks: Tensor) -> None:
        last = rng._last_word(keys, stream)
        asked.extend(zip(*(column.tolist() for column in (keys.seed, keys.chain, sweep, last)), strict=True))
        real(kernel, keys, sweep, stream, *blocks)

    monkeypatch.setattr(rng, "over_rows", watched)
    ESTIMATORS[estimator].estimate(case(name, 5, 3).model, Effort(chains=13, temperatures=70, seed=9))
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


def test_base_rates_are_finite_even_where_a_unit_never_moved() -> None:
    stuck = RBM(torch.zeros(2, 1).double(), torch.tensor([60.0, -60.0]).double(), torch.zeros(1).double())
    base = annealing.base_rates(stuck, ChainKeys.of(0, 100))["visible"]
    assert bool(torch.isfinite(base).all())
    assert float(base[0]) > 5.0
    assert float(base[1]) < -5.0


@pytest.mark.parametrize("name", PATHS)
def test_base_rates_approach_the_marginals_of_the_model(name: str) -> None:
    of, n = mild(name), 4000
    model = annealed(of)
    base = annealing.base_rates(model, ChainKeys.of(1, n), sweeps=20)
    truth = draws_of(of, 40_000)
    at_start = model.annealed_start(base, ChainKeys.of(2, 40_000), torch.zeros(40_000, dtype=torch.int64)).kept
    for block in model.kept_blocks:
        # 40,000 states, of which at least the 4,000 of different chains are independent, and 40,000 draws on each side.
        error = Z_SCORE * truth[block].std(0) * math.sqrt(1 / n + 2 / 40_000)
        difference = at_start[block].mean(0) - truth[block].mean(0)
        assert bool((difference.abs() < error + 1e-3).all()), block


def test_annealing_starts_from_the_base_rates() -> None:
    model, n = rbm(3, 3, seed=23, classes=3), 20_000
    base = {"visible": normal((3,), 5), "label": normal((3,), 6)}
    start = model.annealed_start(base, ChainKeys.of(1, n), torch.zeros(n, dtype=torch.int64)).kept
    kept = product({"visible": states(BINARY, 3), "label": states(ONE_HOT, 3)})
    counts = np.bincount(number(start, {"visible": BINARY, "label": ONE_HOT}), minlength=24)
    law = torch.softmax(kept["visible"] @ base["visible"] + kept["label"] @ base["label"], 0).numpy()
    assert stats.chisquare(counts, counts.sum() * law / law.sum()).pvalue > FALSE_ALARM


# --- the weights ---

WALKERS, STEPS = 20_000, 6
"""Few temperatures: a defect in the order of weights and transitions shows the more, the coarser the path."""


def mild(name: str) -> cases.Case:
    """A case whose coarse path has weights that are not carried by a few walkers: couplings of spins count double."""
    return case(name, 4, 3, scale=0.2 if "spin" in name else 0.4)


def annealed(of: cases.Case) -> HasAnnealing:
    assert isinstance(of.model, HasAnnealing)
    return of.model


def draws_of(of: cases.Case, n: int) -> dict[str, Tensor]:
    """Independent exact draws of all blocks."""
    if not of.enumerable:
        return Reference.of(of).samples(n, seed=2)
    everything = cases.joint_states(of.sweeping, of.values)
    law = cases.law(of.sweeping.joint_energy(everything)).numpy()
    chosen = torch.from_numpy(np.random.default_rng(2).choice(len(law), n, p=law / law.sum()))
    return {block: states[chosen] for block, states in everything.items()}


def zero_base(of: cases.Case) -> dict[str, Tensor]:
    """A base that is not the model's marginals, so that weights have something to make good."""
    units = {block: of.sweeping.block_units(block) for block in annealed(of).kept_blocks}
    return {block: torch.zeros(n, dtype=torch.float64) for block, n in units.items()}


def forward_weights_after_transition(model: HasAnnealing, base: Base, keys: ChainKeys, betas: list[float]) -> Tensor:
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


@pytest.mark.parametrize("name", PATHS)
def test_weights_are_unbiased_for_z_and_from_exact_samples_for_one_over_z(name: str) -> None:
    # The means of w / Z and of Z / w are 1: two z-tests at 1e-6.
    of = mild(name)
    model, base, log_z = annealed(of), zero_base(of), exact_log_z(of)
    betas, keys = annealing.temperatures(3 * STEPS), ChainKeys.of(4, WALKERS)
    _, up = annealing.forward(model, base, keys, betas)
    truth = draws_of(of, WALKERS)
    down = annealing.backward(model, base, ChainKeys.of(6, WALKERS), betas, {b: truth[b] for b in model.kept_blocks})
    assert float((up - log_z).std()) > 0.05
    assert abs(z_score(up, log_z)) < Z_SCORE
    assert abs(z_score(-down, -log_z)) < Z_SCORE
    # And not because the error is wide: a factor of 1.2 would be seen.
    for weights, exact in ((up, log_z), (-down, -log_z)):
        assert abs(z_score(weights + math.log(1.2), exact)) > 8


@pytest.mark.parametrize("name", ["rbm", "rbm labelled", "dbm deep labelled", "grbm"])
def test_defects_of_forward_weights_are_seen(name: str) -> None:
    of = case(name, 5, 4, seed=2, scale=0.6)
    model, base, log_z = annealed(of), zero_base(of), exact_log_z(of)
    betas, keys = annealing.temperatures(STEPS), ChainKeys.of(4, WALKERS)
    _, log_weights = annealing.forward(model, base, keys, betas)
    assert abs(z_score(log_weights, log_z)) < Z_SCORE
    defects = {
        "weights after the transition": forward_weights_after_transition(model, base, keys, betas),
        "one unit of the base not counted": log_weights - math.log(2),
        "first temperature left out": annealing.forward(model, base, keys, betas[1:])[1],
    }
    for defect, weights in defects.items():
        assert abs(z_score(weights, log_z)) > 8, defect


@pytest.mark.parametrize("name", PATHS)
def test_final_states_of_the_forward_walk_are_weighted_draws_of_the_model(name: str) -> None:
    of = mild(name)
    model, truth = annealed(of), draws_of(of, 400_000)
    walked, log_weights = annealing.forward(
        model, zero_base(of), ChainKeys.of(5, WALKERS), annealing.temperatures(STEPS)
    )
    ratio = (log_weights - exact_log_z(of)).exp()[:, None]
    for block, ends in walked.items():
        weighted = ratio * (ends - truth[block].mean(0))
        # Z-tests at 1e-6; the exact draws add their own spread.
        error = torch.sqrt(weighted.var(0) / WALKERS + truth[block].var(0) / 400_000)
        assert bool((weighted.mean(0).abs() < Z_SCORE * error).all()), block


def test_backward_weights_from_other_samples_are_seen_to_be_wrong() -> None:
    model, base = rbm(8, 5, seed=2), {"visible": torch.zeros(8, dtype=torch.float64)}
    n = 2 * WALKERS
    wrong = {"visible": states(BINARY, 8)[torch.arange(n) % 256]}
    log_weights = annealing.backward(model, base, ChainKeys.of(6, n), annealing.temperatures(STEPS), wrong)
    assert abs(z_score(-log_weights, -model.log_partition())) > 8


def test_a_walk_from_a_given_state_estimates_that_states_probability() -> None:
    # f_1(x) exp(-w) has as its mean the probability that the forward walk ends in x, weights aside: seen by counting.
    of = case("rbm labelled", 3, 3, seed=2)
    model, base = annealed(of), zero_base(of)
    betas = annealing.temperatures(4)
    ends, _ = annealing.forward(model, base, ChainKeys.of(7, WALKERS), betas)
    kept = product({block: states(of.values[block], of.sweeping.block_units(block)) for block in model.kept_blocks})
    counts = np.bincount(number(ends, {block: of.values[block] for block in kept}), minlength=24)
    for at in (0, 5, 11, 23):
        start = {block: s[at].expand(WALKERS, -1).contiguous() for block, s in kept.items()}
        w = annealing.backward(model, base, ChainKeys.of(8, WALKERS), betas, start)
        chances = (model.annealed_log_density(model.annealed_at(start), base, 1.0) - w).exp()
        share = counts[at] / WALKERS
        error = math.hypot(float(chances.std()) / math.sqrt(WALKERS), math.sqrt(share * (1 - share) / WALKERS))
        assert abs(float(chances.mean()) - share) < Z_SCORE * error


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_particles_are_resampled_in_proportion_to_their_weights(spread: float) -> None:
    # Systematic resampling: a particle of weight p among n comes n p times, rounded down or up.
    n = 1000
    log_weights = spread * normal((n,), 3) + 5000.0
    particles = {"visible": torch.arange(n, dtype=torch.float64)[:, None], "label": torch.arange(n).double()[:, None]}
    share = n * torch.softmax(log_weights, 0)
    drawn = reverse_ais._resample(particles, log_weights, ChainKeys.of(4, n, first=n))
    assert torch.equal(drawn["visible"], drawn["label"])
    counts = torch.bincount(drawn["visible"][:, 0].long(), minlength=n)
    assert int(counts.sum()) == n
    assert bool((counts >= torch.floor(share - 1e-6)).all())
    assert bool((counts <= torch.ceil(share + 1e-6)).all())
    if spread == 1.0:
        other = reverse_ais._resample(particles, log_weights, ChainKeys.of(5, n, first=n))
        assert not torch.equal(drawn["visible"], other["visible"])


# --- the estimates ---

SEEDS, GROUP = 40, 60


@pytest.mark.parametrize("name", PATHS)
def test_errors_are_those_of_the_estimates_on_every_path(name: str) -> None:
    # SEEDS estimates of GROUP walkers from one base: see `assert_calibrated`.
    of = mild(name)
    model, log_z = annealed(of), exact_log_z(of)
    base, betas = annealing.base_rates(model, ChainKeys.of(0, 100)), annealing.temperatures(25)
    n = SEEDS * GROUP
    _, up = annealing.forward(model, base, ChainKeys.of(11, n), betas)
    truth = draws_of(of, n)
    down = annealing.backward(model, base, ChainKeys.of(12, n), betas, {b: truth[b] for b in model.kept_blocks})
    for log_weights, exact in ((up, log_z), (-down, -log_z)):
        found = np.array([log_mean_exp(group) for group in torch.split(log_weights, GROUP)])
        assert_calibrated(found[:, 0] - exact, found[:, 1])


def assert_calibrated(errors: np.ndarray, stderrs: np.ndarray) -> None:
    """z = error / stderr is nearly standard normal with so many walkers (the bias, stderr / 2, is far below), so that
    its squares sum to a chi-square with SEEDS degrees of freedom: two-sided at 1e-6. A stderr that is off by a factor
    of 3 either way is rejected with power above 0.999."""
    z = errors / stderrs
    assert len(z) == SEEDS
    low, high = (float(stats.chi2.ppf(p, SEEDS)) for p in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
    assert low < float((z**2).sum()) < high
    assert abs(z.mean()) < (Z_SCORE + 0.25) / math.sqrt(SEEDS)
    assert stats.chi2.sf(high / 9, SEEDS) > 0.999
    assert stats.chi2.cdf(low * 9, SEEDS) > 0.999


@pytest.fixture(scope="module", params=["rbm labelled", "grbm"])
def many(request: pytest.FixtureRequest) -> tuple[float, dict[str, np.ndarray]]:
    """The exact log Z, and (value, stderr) of each estimator over SEEDS seeds."""
    of = case(request.param, 6, 4, seed=2, scale=0.7)
    effort = [Effort(chains=100, temperatures=20, seed=seed) for seed in range(SEEDS)]
    estimates = {}
    for name in ("ais", "reverse_ais"):
        found = [ESTIMATORS[name].estimate(of.model, e) for e in effort]
        estimates[name] = np.array([(f.value, f.stderr) for f in found])
    return exact_log_z(of), estimates


@pytest.mark.parametrize("name", ["ais", "reverse_ais"])
def test_the_standard_error_is_that_of_the_estimate(name: str, many: tuple[float, dict[str, np.ndarray]]) -> None:
    log_z, estimates = many
    assert_calibrated(estimates[name][:, 0] - log_z, estimates[name][:, 1])


def test_both_sides_bracket_the_exact_value_within_their_stated_errors(
    many: tuple[float, dict[str, np.ndarray]],
) -> None:
    log_z, estimates = many
    low, high = estimates["ais"], estimates["reverse_ais"]
    # Each of the 160 comparisons fails by chance with probability 5e-7.
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
