"""Deep belief networks against enumeration; what is approximate about them, measured; and the corrected sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models import catalog, rng
from models.conditionals import Bernoulli, Conditional
from models.errors import CapabilityError, CheckpointError, InputError
from models.estimator import Effort
from models.estimators.ais import AIS
from models.estimators.reverse_ais import ReverseAIS
from models.families import dbn as family
from models.families.dbn import DBN, Weighed
from models.families.rbm import RBM
from models.family import Clamp, HasRecognition, Part
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler
from models.samplers.gibbs import Gibbs
from models.samplers.metropolis import Metropolis
from tests.models import cases
from tests.models.cases import BINARY, ONE_HOT, dbn, joint_states, manifest_of, states
from tests.models.kernels import Delegating, Space, clamp_row, held

SHAPES = [([3, 2, 2], 0), ([2, 2, 2], 2), ([2, 2, 2, 2], 0), ([3, 4], 2), ([2, 1, 2, 1], 2)]
FALSE_ALARM, POWER = 1e-6, 0.999
Z_LIMIT = 4.9  # a false alarm in a million


def space(model: DBN) -> Space:
    return Space(model, {block: ONE_HOT if block == "label" else BINARY for block in model.blocks})


def models(tied: bool) -> list[DBN]:
    return [dbn(layers, seed=at, classes=K, recognition=not tied) for at, (layers, K) in enumerate(SHAPES)]


EVERY = [*models(True), *models(False)]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def log_joint(model: DBN, at: Mapping[str, Tensor]) -> Tensor:
    """log p~(v, h, y), written down anew from MATH 4."""
    p, k = model.parameters, model.depth
    x = [at["visible"], *(at[f"hidden{n}"] for n in range(1, k + 1))]
    total = torch.zeros(len(x[0]), dtype=torch.float64)
    for n in range(1, k):
        on = sigmoid(p[f"b{n - 1}"] + x[n] @ p[f"W{n}"].T)
        total += torch.where(x[n - 1] == 1, on, 1 - on).log().sum(1)
    total += torch.einsum("ni,ij,nj->n", x[k - 1], p[f"W{k}"], x[k]) + x[k - 1] @ p[f"b{k - 1}"] + x[k] @ p[f"b{k}"]
    if "U" in p:
        total += torch.einsum("ny,yj,nj->n", at["label"], p["U"], x[k]) + at["label"] @ p["d"]
    return total


def grouped(log_p: Tensor, *by: Tensor) -> tuple[Tensor, Tensor]:
    """log of the sums of exp(log_p) over rows that agree in `by`; and the group of each row."""
    _, group = torch.unique(torch.cat(by, 1), dim=0, return_inverse=True)
    sums = torch.stack([log_p[group == g].logsumexp(0) for g in range(int(group.max()) + 1)])
    return sums, group


# --- energies ---


@pytest.mark.parametrize("model", EVERY)
def test_the_joint_energy_is_the_products_logarithm(model: DBN) -> None:
    everything = space(model).states
    expected = log_joint(model, everything)
    np.testing.assert_allclose(model.joint_energy(everything), -expected, atol=1e-9)
    directed = model.joint_energy(everything) - model.thermal_energy(everything)
    assert bool((directed >= 0).all())  # probabilities
    assert bool((directed > 0).any()) == (model.depth > 1)
    assert model.log_partition() == pytest.approx(float(expected.logsumexp(0)), abs=1e-9)


@pytest.mark.parametrize("model", EVERY)
def test_energies_and_classes_sum_out_what_is_not_given(model: DBN) -> None:
    everything = space(model).states
    x = states(BINARY, model.block_units("visible"))
    log_p = log_joint(model, everything)
    rows = [(everything["visible"] == row).all(1) for row in x]
    np.testing.assert_allclose(model.energy(x), [-float(log_p[here].logsumexp(0)) for here in rows], atol=1e-9)
    assert model.energy_kind == model.class_kind == "exact"
    assert model.energy_with_error(x)[1] is None
    if not model.class_count:
        return
    of_label = [everything["label"][:, y] == 1 for y in range(model.class_count)]
    each = torch.tensor([[-float(log_p[here & label].logsumexp(0)) for label in of_label] for here in rows])
    for y in range(model.class_count):
        np.testing.assert_allclose(model.class_energy(x, torch.full((len(x),), y)), each[:, y], atol=1e-6)
    np.testing.assert_allclose(model.class_log_probs(x), torch.log_softmax(-each, 1), atol=1e-6)


def test_enumeration_in_pieces_is_the_sum_over_all_states() -> None:
    # 2^16 states are sixteen pieces; two directed layers are summed out one after the other.
    for layers in ([5, 16, 3], [5, 13, 3, 2], [5, 3, 13, 2]):
        model, x = dbn(layers, seed=3, scale=0.5), states(BINARY, 5)[::3]
        assert model.energy_kind == "exact"
        p, k = model.parameters, len(layers) - 1
        rows = [states(BINARY, units) for units in layers[1:k]]
        log_g = -model.top.energy(rows[-1])
        for n in range(k - 1, 0, -1):
            below, on = (x, *rows)[n - 1], sigmoid(p[f"b{n - 1}"] + rows[n - 1] @ p[f"W{n}"].T)
            log_g = (below @ on.log().T + (1 - below) @ (1 - on).log().T + log_g).logsumexp(1)
        np.testing.assert_allclose(model.energy(x), -log_g, atol=1e-9)


def test_one_hidden_layer_makes_an_rbm() -> None:
    for domain in ("binary", "unit"):
        model = dbn([4, 3], classes=3, domain=domain)
        p = model.parameters
        same = RBM(p["W1"], p["b0"], p["b1"], domain, p["U"], p["d"])
        x, labels = cases.normal((6, 4), 1).sigmoid().round(decimals=3 if domain == "unit" else 0), torch.arange(6) % 3
        np.testing.assert_allclose(model.energy(x), same.energy(x), atol=1e-12)
        np.testing.assert_allclose(model.features(x), same.features(x), atol=1e-12)
        np.testing.assert_allclose(model.class_energy(x, labels), same.class_energy(x, labels), atol=1e-12)
        assert model.exact_when_clamped
        assert not Metropolis.applies_to(model)
        keys, clamp = ChainKeys.of(0, 6), Clamp(torch.eye(6, 4).bool(), x)
        assert not Gibbs().approximate(model, clamped=True)
        state = Gibbs().step(model, Gibbs().init(model, keys, x, clamp), keys, clamp)[0]
        assert state.visible.shape == (6, 4)


# --- conditionals and sweeps ---


@pytest.mark.parametrize("model", EVERY)
def test_each_layer_is_drawn_from_its_law_given_all_above_and_the_top_rbm_from_its_own(model: DBN) -> None:
    everything = space(model).states
    log_p = log_joint(model, everything)
    names = ["visible", *model.layers]
    label = [everything["label"]] if model.class_count else []
    for block in model.blocks:
        if block == "label":
            given = [everything[model.layers[-1]]]
        elif block == names[-1]:
            given = [everything[names[-2]], *label]
        else:  # the labels tell layer k - 1 nothing once layer k is known
            given = [everything[name] for name in names[names.index(block) + 1 :]]
        joint, row = grouped(log_p, everything[block], *given)
        marginal, group = grouped(log_p, *given)
        found = model.conditional(block, everything).log_prob(everything[block])
        np.testing.assert_allclose(found, joint[row] - marginal[group], atol=1e-9)


@pytest.mark.parametrize("model", EVERY)
def test_the_recognition_law_is_that_of_its_own_parameters_or_of_the_tied_ones(model: DBN) -> None:
    everything, p = space(model).states, model.parameters
    names = ["visible", *model.layers]
    parts = [part for part in model.parts if part.when_clamped]
    assert [part.block for part in parts] == list(model.layers[:-1])
    for n, part in enumerate(parts, start=1):
        V, a = (p[f"V{n}"], p[f"a{n}"]) if "V1" in p else (p[f"W{n}"], p[f"b{n}"])
        expected = sigmoid(a + everything[names[n - 1]] @ V)
        np.testing.assert_allclose(model.conditional(part.name, everything).mean(), expected, atol=1e-9)


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("beta", [None, 0.4])
def test_a_sweep_leaves_the_joint_law_unchanged_and_with_a_label_held_the_law_given_the_label(
    model: DBN, beta: float | None
) -> None:
    at = space(model)
    clamps = [None, *([clamp_row(model.block_units("visible"), {}, label=1)] if model.class_count else [])]
    for clamp in clamps:
        law, K = at.law(1.0 if beta is None else beta, clamp), at.transitions(Gibbs(), beta=beta, clamp=clamp)
        np.testing.assert_allclose(K.sum(1), 1.0, atol=1e-12)
        np.testing.assert_allclose(law @ K, law, atol=1e-12)


class RecognisedAlways(Delegating):
    """The recognition pass is made in every row."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(replace(part, when_clamped=False) for part in self.model.parts)


class NoPassDown(Delegating):
    """Layers below the top RBM stay as they are, but the visibles."""

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        if part == "hidden1":
            return Bernoulli(1e3 * (2 * states["hidden1"] - 1))
        return self.model.conditional(part, states, beta)


class TemperedBelow(Delegating):
    """Inverse temperatures reach the directed layers."""

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        law = self.model.conditional(part, states, beta)
        if part in ("visible", "hidden1") and isinstance(law, Bernoulli) and beta is not None:
            return Bernoulli(law.logits * beta[:, None])
        return law


@pytest.mark.parametrize("mutant", [RecognisedAlways, NoPassDown, TemperedBelow])
def test_defects_of_a_sweep_change_the_law(mutant: type[Delegating]) -> None:
    at = space(dbn([2, 2, 2, 1], seed=1, recognition=True))
    law = at.law(0.4)
    K = at.transitions(Gibbs(), mutant(at.model), beta=0.4)
    np.testing.assert_allclose(K.sum(1), 1.0, atol=1e-12)
    # What stays as it is is stationary but not ergodic: the second eigenvalue tells.
    wrong = float((law @ K - law).abs().max()) > 1e-3
    assert wrong or float(torch.linalg.eigvals(K).abs().sort().values[-2]) > 1 - 1e-9


def stationary(K: Tensor, start: Tensor) -> Tensor:
    """The law after 2^12 steps."""
    for _ in range(12):
        K = K @ K
    return start @ K


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * float((p - q).abs().sum())


def marginal(at: Space, law: Tensor) -> Tensor:
    """The law of the visibles, by their number."""
    visible = at.states["visible"].long()
    number = (visible * 2 ** torch.arange(visible.shape[1])).sum(1)
    return torch.zeros(2 ** visible.shape[1], dtype=torch.float64).index_add_(0, number, law)


@pytest.mark.parametrize("seed", range(4))
def test_completion_through_the_recognition_law_is_close_to_the_posterior_and_not_it(seed: int) -> None:
    at = space(dbn([4, 2, 2], seed=seed))
    clamp = clamp_row(4, {0: 1.0, 2: 0.0})
    law = at.law(clamp=clamp)
    found = stationary(at.transitions(Gibbs(), clamp=clamp), law)
    distance = total_variation(marginal(at, found), marginal(at, law))
    assert 1e-3 < distance < 0.2
    assert Gibbs().approximate(at.model, clamped=True)
    assert not Gibbs().approximate(at.model, clamped=False)


def test_a_row_that_holds_no_visible_is_as_if_nothing_were_held() -> None:
    model = dbn([6, 5, 4, 3], classes=3)
    keys = ChainKeys.of(2, 5)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 2] = mask[3] = True
    clamp = Clamp(mask, torch.ones(5, 6, dtype=torch.float64))
    held, free = Gibbs().init(model, keys, None, clamp), Gibbs().init(model, keys, None, None)
    for _ in range(4):
        held, free = Gibbs().step(model, held, keys, clamp)[0], Gibbs().step(model, free, keys)[0]
    for row in (0, 2, 4):
        for block in model.blocks:
            assert torch.equal(held.blocks[block][row], free.blocks[block][row])
    assert bool((held.visible[3] == 1).all())


# --- the corrected sampler ---


@contextmanager
def decisions_scripted() -> Iterator[None]:
    """Decisions are drawn by `Bernoulli.sample`, which `Space` scripts, with the probability that they should have."""

    def accept(log_ratio: Tensor, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
        p = log_ratio.clamp(max=0.0).exp()
        log_odds = torch.where(p < 1, torch.log(p) - torch.log1p(-p), 700.0)
        return Bernoulli(log_odds[:, None]).sample(keys, sweep, stream)[:, 0] == 1

    with patch.object(rng, "accept", accept):
        yield


def kernel(at: Space, sampler: Sampler, clamp: Clamp | None, beta: float | None = None, model: object = None) -> Tensor:
    with decisions_scripted():
        return at.transitions(sampler, model, beta=beta, clamp=clamp)  # type: ignore[arg-type]


CORRECTED = [
    (dbn([3, 2, 1], seed=0), Metropolis(), clamp_row(3, {0: 1.0, 2: 0.0})),
    (dbn([2, 2, 1], seed=1, recognition=True), Metropolis(units=1), clamp_row(2, {0: 1.0})),
    (dbn([2, 2, 1], seed=2, classes=2, recognition=True), Metropolis(units=2), clamp_row(2, {0: 1.0, 1: 1.0})),
    (dbn([2, 1, 1], seed=3, classes=2), Metropolis(), clamp_row(2, {1: 0.0}, label=1)),
    (dbn([2, 2, 2, 1], seed=4, recognition=True), Metropolis(), clamp_row(2, {1: 0.0})),
    (dbn([2, 2, 1, 1], seed=5), Metropolis(units=1), clamp_row(2, {0: 1.0, 1: 0.0})),
    (dbn([2, 2, 1], seed=6, recognition=True), Metropolis(), None),
]


@pytest.mark.parametrize("beta", [None, 0.4])
@pytest.mark.parametrize(("model", "sampler", "clamp"), CORRECTED)
def test_the_posterior_is_stationary_under_corrected_sweeps_and_nothing_else_is(
    model: DBN, sampler: Metropolis, clamp: Clamp | None, beta: float | None
) -> None:
    at = space(model)
    law, K = at.law(1.0 if beta is None else beta, clamp), kernel(at, sampler, clamp, beta)
    np.testing.assert_allclose(K.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(law @ K, law, atol=1e-12)
    here = at.allowed(clamp)
    assert bool((K[here][:, ~here] == 0).all())
    inside = torch.linalg.matrix_power(K[here][:, here], 3)
    assert bool((inside > 0).all())  # irreducible and aperiodic: the stationary law is the only one
    assert not sampler.approximate(model, clamped=True)


class _Wrong(Delegating, HasRecognition):
    """A model that tells the corrected sampler another density of a directed layer."""

    model: DBN
    exact_when_clamped = False

    def __init__(self, model: DBN, before: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.before = before

    def recognition(self, block: str, states: Mapping[str, Tensor]) -> Tensor:
        return self.model.recognition(block, states)

    def log_q(self, block: str, states: Mapping[str, Tensor]) -> Tensor:
        return (states[block] * self.recognition(block, states)).sum(1)


class AcceptsAlways(_Wrong):
    def log_given_rest(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Tensor:
        return self.log_q(block, states)


class ForgetsTheReverseProposal(_Wrong):
    def log_given_rest(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Tensor:
        return self.model.log_given_rest(block, states, beta) + self.log_q(block, states)


class StaleHidden(_Wrong):
    """The layer above is that of before the sweep."""

    def log_given_rest(self, block: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Tensor:
        above = f"hidden{int(block.removeprefix('hidden')) + 1}"
        n, m = len(states[above]), len(self.before[above])
        stale = self.before[above].repeat_interleave(n // m, 0) if n >= m else self.before[above][:n]
        return self.model.log_given_rest(block, {**states, above: stale}, beta)


@pytest.mark.parametrize("mutant", [AcceptsAlways, ForgetsTheReverseProposal, StaleHidden])
@pytest.mark.parametrize(("model", "sampler", "clamp"), [CORRECTED[0], CORRECTED[2], CORRECTED[4]])
def test_defects_of_the_correction_change_the_posterior(
    mutant: type[_Wrong], model: DBN, sampler: Metropolis, clamp: Clamp
) -> None:
    at = space(model)
    law, K = at.law(clamp=clamp), kernel(at, sampler, clamp, model=mutant(model, at.states))
    np.testing.assert_allclose(K.sum(1), 1.0, atol=1e-12)
    assert float((law @ K - law).abs().sum()) > 1e-3


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    possible = law > 0
    assert not counts[~possible].any()
    observed, expected = counts[possible], counts.sum() * law[possible]
    assert expected.min() >= 5
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))


def test_completions_have_the_exact_posterior_and_recognition_alone_would_not_pass() -> None:
    # Independent chains, the last state of each. The number of chains is the least with which the law of uncorrected
    # completion is rejected with probability POWER; the corrected chains' law after SWEEPS is exact to 1e-9.
    at = space(dbn([4, 2, 2], seed=6, recognition=True))
    clamp, sweeps = clamp_row(4, {0: 1.0, 2: 0.0}), 40
    law = at.law(clamp=clamp)
    K, start = kernel(at, Metropolis(), clamp), at.allowed(clamp).double()
    assert total_variation(start / start.sum() @ torch.linalg.matrix_power(K, sweeps), law) < 1e-9
    exact = marginal(at, law).numpy()
    wrong = marginal(at, stationary(at.transitions(Gibbs(), clamp=clamp), law)).numpy()
    df, effect = int((exact > 0).sum()) - 1, float(((wrong - exact)[exact > 0] ** 2 / exact[exact > 0]).sum())
    critical, n = stats.chi2.isf(FALSE_ALARM, df), 1000
    while stats.ncx2.sf(critical, df, n * effect) < POWER:
        n = int(1.2 * n)
    assert n < 200_000

    def counts(sampler: Sampler) -> np.ndarray:
        keys, wide = ChainKeys.of(7, n), clamp.rows(torch.zeros(n, dtype=torch.int64))
        state = sampler.init(at.model, keys, None, wide)
        for _ in range(sweeps):
            state, _ = sampler.step(at.model, state, keys, wide)
        number = (state.visible.long() * 2 ** torch.arange(4)).sum(1)
        return np.bincount(number.numpy(), minlength=16)

    assert p_value(counts(Metropolis()), exact) > FALSE_ALARM
    assert p_value(counts(Gibbs()), exact) < FALSE_ALARM


@pytest.mark.parametrize("domain", ["binary", "unit"])
def test_a_corrected_chain_is_the_same_in_any_company_and_goes_on_from_its_blocks(domain: str) -> None:
    model = dbn([61, 23, 19, 7], dtype=torch.float32, domain=domain, scale=0.3, classes=3, recognition=True)
    n, sampler, generator = 33, Metropolis(units=5), torch.Generator().manual_seed(0)
    keys = ChainKeys(torch.arange(n) % 5 + 2**40, torch.arange(n) * 977)
    value = torch.rand((n, 61), generator=generator).double()
    value = value.round() if domain == "binary" else value
    clamp = Clamp(torch.rand((n, 61), generator=generator) < 0.5, value, torch.arange(n) % 4 - 1)
    beta = torch.linspace(0.3, 1.0, n).double()

    def run(rows: Tensor, stops: tuple[int, ...]) -> tuple[ChainState, Tensor]:
        state = sampler.init(model, keys.rows(rows), None, clamp.rows(rows))
        for _ in stops:
            state = ChainState({b: s.clone() for b, s in state.blocks.items()}, state.sweep.clone())
            for _ in range(2):
                state, info = sampler.step(model, state, keys.rows(rows), clamp.rows(rows), beta[rows])
        assert info.acceptance_rate is not None
        return state, info.acceptance_rate

    every, rates = run(torch.arange(n), (1, 2))
    assert bool(((rates >= 0) & (rates <= 1)).all())
    assert 0 < float(rates.mean()) < 1
    assert torch.equal(every.visible[clamp.mask], value[clamp.mask])
    for rows in (torch.tensor([4]), torch.arange(5, 12), torch.randperm(n, generator=generator)):
        alone, alone_rates = run(rows, (1, 2))
        assert torch.equal(alone_rates, rates[rows])
        for block in model.blocks:
            assert torch.equal(alone.blocks[block], every.blocks[block][rows]), block


def test_the_corrected_sampler_refuses_what_it_cannot_do() -> None:
    for units in (0, -1, True):
        with pytest.raises(ValueError, match="units must be a whole number from 1"):
            Metropolis(units=units)
    rbm = cases.rbm(3, 2)
    assert not Metropolis.applies_to(rbm)
    with pytest.raises(CapabilityError, match=r"directed layers .* rbm has not"):
        Metropolis().init(rbm, ChainKeys.of(0, 1), None, None)
    model = DBN({"W1": torch.zeros(1, 40_000), "W2": torch.zeros(40_000, 1)} | _biases(1, 40_000, 1), 2)
    with pytest.raises(InputError, match="units must be above 1 for this model's 40000"):
        Metropolis(units=1).init(model, ChainKeys.of(0, 1), None, None)
    Metropolis(units=2).init(model, ChainKeys.of(0, 1), None, None)


def _biases(*layers: int) -> dict[str, Tensor]:
    return {f"b{n}": torch.zeros(units) for n, units in enumerate(layers)}


# --- the bound and the importance-weighted estimate ---

ESTIMATED = [dbn([3, 4, 2], seed=1), dbn([3, 3, 2, 2], seed=2, scale=0.7, classes=2, recognition=True)]


def recognised(model: DBN, x: Tensor) -> tuple[Tensor, Tensor]:
    """log q(h | v) and log p~(v, h) of every state of the directed layers, h_k and y summed out; for one x."""
    layers = model.layers[:-1]
    each = [states(BINARY, model.block_units(layer)) for layer in layers]
    rows = [torch.stack(r) for r in zip(*itertools.product(*each), strict=True)]
    at = {"visible": x.expand(len(rows[0]), -1), **dict(zip(layers, rows, strict=True))}
    log_q = sum(
        (Bernoulli(model.recognition(layer, at)).log_prob(at[layer]) for layer in layers), torch.zeros(()).double()
    )
    everything = space(model).states
    log_p = log_joint(model, everything)
    joint = torch.stack(
        [
            log_p[torch.stack([(everything[b] == s[i]).all(1) for b, s in at.items()]).all(0)].logsumexp(0)
            for i in range(len(rows[0]))
        ]
    )
    return log_q, joint


@pytest.mark.parametrize("model", ESTIMATED)
def test_the_weights_are_unbiased_for_the_density_and_their_logarithm_for_the_bound(model: DBN) -> None:
    x = states(BINARY, 3)
    log_density = -model.energy(x)
    for i in range(0, len(x), 3):
        log_q, joint = recognised(model, x[i])
        assert float(log_q.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
        assert float(joint.logsumexp(0)) == pytest.approx(float(log_density[i]), abs=1e-9)
        exact_bound = float((log_q.exp() * (joint - log_q)).sum())
        spread = float((log_q.exp() * (joint - log_q - exact_bound) ** 2).sum()) ** 0.5
        draws = 100_000
        bound, stderr = model.weighed(x[i : i + 1], draws, seed=3).bound()
        assert abs(float(bound) - exact_bound) < Z_LIMIT * spread / math.sqrt(draws)
        assert float(stderr) == pytest.approx(spread / math.sqrt(draws), rel=0.1)
        assert exact_bound < float(log_density[i])
        # Mean of the weights: their exact variance is known too.
        ratio = torch.exp(joint - log_q - log_density[i])
        deviation = float((log_q.exp() * (ratio - 1) ** 2).sum()) ** 0.5
        value, error = model.weighed(x[i : i + 1], draws, seed=4).log_density()
        assert abs(math.expm1(float(value) - float(log_density[i]))) < Z_LIMIT * deviation / math.sqrt(draws)
        assert float(error) == pytest.approx(deviation / math.sqrt(draws), rel=0.2)


@pytest.mark.parametrize("model", ESTIMATED)
def test_the_estimate_is_a_lower_bound_in_the_mean_that_tightens_with_draws(model: DBN) -> None:
    x = states(BINARY, 3)
    seeds, counts = 100, (1, 3, 10, 100)
    found = torch.stack(
        [torch.stack([model.weighed(x, draws, seed).log_density()[0] for seed in range(seeds)]) for draws in counts]
    )
    means, errors = found.mean((1, 2)), found.mean(2).std(1) / math.sqrt(seeds)
    ends = [*means.tolist(), float(-model.energy(x).mean())]
    for low, high, error in zip(ends, ends[1:], errors.tolist(), strict=False):
        assert high - low > -Z_LIMIT * error
    assert ends[-1] - ends[0] > Z_LIMIT * float(errors[0])  # one draw is the bound, and is seen to be below


def test_beyond_enumeration_the_energy_is_an_estimate_that_says_how_good_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = dbn([4, 17, 3], seed=1, scale=0.3, classes=3), states(BINARY, 4)
    labels = torch.arange(len(x)) % 3
    energy, stderr = model.energy_with_error(x)
    estimated = model.class_energy(x, labels), model.class_log_probs(x)
    assert model.energy_kind == model.class_kind == "estimate"
    assert stderr is not None
    assert torch.equal(model.energy(x), energy)
    # Any row alone, or in a batch that is cut into pieces, has the same draws.
    for i in (0, 5, 15):
        np.testing.assert_allclose(model.energy(x[i : i + 1])[0], energy[i], atol=1e-12)
    monkeypatch.setattr(family, "_ENTRIES", 5 * family.DRAWS * 17)
    np.testing.assert_allclose(model.energy(x), energy, atol=1e-12)
    np.testing.assert_allclose(estimated[1].logsumexp(1), 0.0, atol=1e-12)
    every = torch.stack([model.class_energy(x, torch.full_like(labels, y)) for y in range(3)], 1)
    np.testing.assert_allclose(-energy, torch.logsumexp(-every, 1), atol=1e-12)
    np.testing.assert_allclose(torch.log_softmax(-every, 1), estimated[1], atol=1e-12)

    monkeypatch.setattr(family, "ENUMERATED_UNITS", 17)
    exact = dbn([4, 17, 3], seed=1, scale=0.3, classes=3)
    assert exact.energy_kind == "exact"
    assert bool(((energy - exact.energy(x)).abs() < Z_LIMIT * stderr).all())
    assert bool((stderr < 0.5).all())
    np.testing.assert_allclose(estimated[0], exact.class_energy(x, labels), atol=float(Z_LIMIT * stderr.max()))
    np.testing.assert_allclose(estimated[1].exp(), exact.class_log_probs(x).exp(), atol=0.15)


def test_a_single_draw_has_no_standard_error_and_none_is_refused() -> None:
    model, x = ESTIMATED[0], states(BINARY, 3)
    for estimate in (Weighed.bound, Weighed.log_density):
        value, stderr = estimate(model.weighed(x, 1))
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isinf(stderr).all())
        assert [t.shape for t in estimate(model.weighed(x[:0], 5))] == [(0,), (0,)]
    with pytest.raises(InputError, match="at least 1; got 0"):
        model.weighed(x, 0)


# --- features, log Z, checkpoints ---


@pytest.mark.parametrize("model", EVERY)
def test_features_are_the_means_of_one_pass_up(model: DBN) -> None:
    x, p = states(BINARY, model.block_units("visible")), model.parameters
    mean = x
    for n in range(1, model.depth):
        V, a = (p[f"V{n}"], p[f"a{n}"]) if "V1" in p else (p[f"W{n}"], p[f"b{n}"])
        mean = sigmoid(a + mean @ V)
        np.testing.assert_allclose(model.features(x, f"hidden{n}"), mean, atol=1e-12)
    inputs = p[f"b{model.depth}"] + mean @ p[f"W{model.depth}"]
    top = sigmoid(inputs)
    if model.class_count:
        each = torch.stack([p["d"][y] + (1 + (inputs + p["U"][y]).exp()).log().sum(1) for y in range(2)], 1)
        weights = torch.softmax(each, 1)
        top = sum((weights[:, y : y + 1] * sigmoid(inputs + p["U"][y]) for y in range(2)), torch.zeros(()))
    np.testing.assert_allclose(model.features(x), top, atol=1e-12)
    np.testing.assert_allclose(model.features(x, model.layers[-1]), top, atol=1e-12)


@pytest.mark.parametrize("classes", [0, 3])
def test_annealing_in_the_top_rbm_brackets_log_z(classes: int) -> None:
    model = dbn([5, 6, 4], seed=2, classes=classes)
    assert model.kept_blocks == (("hidden1", "label") if classes else ("hidden1",))
    exact, effort = model.log_partition(), Effort(chains=200, temperatures=100)
    low, high = AIS().estimate(model, effort), ReverseAIS().estimate(model, effort)
    assert low.stderr < 0.2
    assert high.stderr < 0.2
    assert abs(low.value - exact) < 5 * low.stderr
    assert abs(high.value - exact) < 5 * high.stderr


def test_a_checkpoint_names_its_layers_and_may_leave_the_recognition_law_out() -> None:
    config = {"layers": [3, 4, 2, 2]}
    tied, untied = dbn([3, 4, 2, 2], classes=2), dbn([3, 4, 2, 2], classes=2, recognition=True)
    manifest = manifest_of("dbn", 3, classes=2, config=config)
    x = states(BINARY, 3)
    for model in (tied, untied):
        built = catalog.build(manifest, model.tensors())
        assert torch.equal(built.energy(x), model.energy(x))
        assert set(built.tensors()) == set(model.tensors())
    assert "V1" not in tied.tensors()

    def refused(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
        tensors = untied.tensors()
        change(tensors)
        with pytest.raises(CheckpointError, match=message):
            catalog.build(manifest, tensors)

    refused(lambda t: t.pop("a2"), r"tensor a2 is missing; expected shape \[2\]")
    refused(lambda t: t.pop("V1"), r"tensor V1 is missing; expected shape \[3, 4\]")
    refused(lambda t: t.pop("b0"), r"tensor b0 is missing; expected shape \[3\]")
    refused(lambda t: t.update(W2=torch.zeros(2, 4)), r"tensor W2 has shape \[2, 4\]; expected \[4, 2\]")
    refused(lambda t: t.update(U=torch.zeros(2, 4)), r"tensor U has shape \[2, 4\]; expected \[2, 2\]")
    refused(lambda t: t.update(V3=torch.zeros(2, 2)), r"tensor V3 is not part of family 'dbn'")
    for layers in (None, [3], [3, 0, 2], [3, 4.0], "3,4", [3, True]):
        with pytest.raises(CheckpointError, match=r"config.layers must be a list \[D, H1, .., Hk\]"):
            catalog.build(manifest_of("dbn", 3, config={"layers": layers}), tied.tensors())
    with pytest.raises(CheckpointError, match="begins with 4, but there are 3 visibles"):
        catalog.build(manifest_of("dbn", 3, config={"layers": [4, 2]}), tied.tensors())


def test_held_rows_of_a_space_agree_with_the_clamp() -> None:
    model = dbn([2, 1, 1], classes=2)
    clamp = clamp_row(2, {1: 0.0}, label=1)
    found = held(joint_states(model, space(model).values), clamp)
    assert bool((found["visible"][:, 1] == 0).all())
    assert bool((found["label"][:, 1] == 1).all())
