"""Long-run frequencies of the real code, draws and all, against the exact law; and the defects that this must reject.

Independent chains, of which only the last state counts, so that the counts are multinomial: Pearson's chi-square at
1e-6 with S - 1 degrees of freedom. For each defect its own exact law after the same number of sweeps is known, so the
statistic's noncentrality is n sum (q - p)^2 / p, and the number of chains is the least that rejects every named defect
with probability 0.999. The seed is fixed; over seeds a correct sampler would fail each of the tests with probability
1e-6, and each defect would slip through with at most 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.conditionals import Gaussian
from models.families.grbm import GRBM
from models.family import Clamp, HasConditionals
from models.rng import ChainKeys
from models.sampler import Sampler
from models.samplers.gibbs import Gibbs
from tests.models import mutants
from tests.models.cases import BINARY, ONE_HOT, dbm, grbm, rbm, states
from tests.models.kernels import Space, clamp_row, held, widen

FALSE_ALARM, POWER = 1e-6, 0.999
SWEEPS = 40


@dataclass(frozen=True)
class Defect:
    """A mutant that runs, and its exact law after `SWEEPS` sweeps from noise."""

    sampler: Sampler
    model: HasConditionals
    law: Tensor


def chi_square(counts: np.ndarray, law: np.ndarray) -> float:
    """The p-value; 0 where a state was seen that cannot be. States expected fewer than five times count as one."""
    possible = law > 0
    if counts[~possible].any():
        return 0.0
    observed, expected = counts[possible], counts.sum() * law[possible]
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))


def chains_needed(law: Tensor, defects: Mapping[str, Defect]) -> int:
    """The fewest chains with which every defect is rejected with probability POWER."""
    possible = law > 0
    df = int(possible.sum()) - 1
    critical = stats.chi2.isf(FALSE_ALARM, df)
    needed = 2
    for defect in defects.values():
        if float(defect.law[~possible].sum()) > 0.01:
            continue  # states that cannot be: seen at once
        distance = float((((defect.law - law) ** 2)[possible] / law[possible]).sum())
        while stats.ncx2.sf(critical, df, needed * distance) < POWER:
            needed = int(needed * 1.1) + 1
    return max(needed, int(5.5 / float(law[possible].min())))


def after_sweeps(space: Space, transitions: Tensor, clamp: Clamp | None = None) -> Tensor:
    """The law after SWEEPS sweeps, from noise that respects the clamp."""
    law = torch.zeros(len(space), dtype=torch.float64)
    start = space.states if clamp is None else held(space.states, clamp)
    law.index_add_(0, space.number(start), torch.full((len(space),), 1 / len(space)).double())
    after: Tensor = law @ torch.linalg.matrix_power(transitions, SWEEPS)
    return after


def last_blocks(
    sampler: Sampler, model: HasConditionals, n: int, clamp: Clamp | None = None, beta: float | None = None
) -> Mapping[str, Tensor]:
    """The states of n chains after SWEEPS sweeps."""
    keys = ChainKeys.of(20261123, n)
    wide = None if clamp is None else widen(clamp, n)
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    state = sampler.init(model, keys, None, wide)
    for _ in range(SWEEPS):
        state, _ = sampler.step(model, state, keys, wide, betas)
    return state.blocks


def last_states(
    space: Space,
    sampler: Sampler,
    model: HasConditionals,
    n: int,
    clamp: Clamp | None = None,
    beta: float | None = None,
) -> np.ndarray:
    """How many of n chains end in each state."""
    return np.bincount(space.number(last_blocks(sampler, model, n, clamp, beta)), minlength=len(space))


def assert_law_holds_and_defects_are_seen(
    space: Space,
    law: Tensor,
    real: Tensor,
    defects: Mapping[str, Defect],
    clamp: Clamp | None = None,
    beta: float | None = None,
) -> None:
    n = chains_needed(law, defects)
    assert n < 300_000, "this model does not tell the defects apart at a bearable cost"
    # The chains have forgotten their start: what is left of it adds less than 1e-6 to the noncentrality.
    assert n * float((((real - law) ** 2)[law > 0] / law[law > 0]).sum()) < 1e-6
    assert chi_square(last_states(space, Gibbs(), space.model, n, clamp, beta), law.numpy()) > FALSE_ALARM
    for name, defect in defects.items():
        seen = chi_square(last_states(space, defect.sampler, defect.model, n, clamp, beta), law.numpy())
        assert seen < FALSE_ALARM, name


MODEL = rbm(3, 3, seed=23)
LABELLED = rbm(3, 2, seed=23, classes=3)
DEEP = dbm([3, 2, 2], seed=23)


def space_of(model: HasConditionals) -> Space:
    return Space(model, {block: ONE_HOT if block == "label" else BINARY for block in model.blocks})


def exact_defects(
    space: Space, kernels: Mapping[str, tuple[Sampler, HasConditionals]], clamp: Clamp | None = None
) -> dict[str, Defect]:
    """Defects whose transition matrices can be had by enumeration."""
    return {
        name: Defect(sampler, model, after_sweeps(space, space.transitions(sampler, model, clamp=clamp), clamp))
        for name, (sampler, model) in kernels.items()
    }


def test_joint_states_follow_the_law_of_the_model() -> None:
    space = space_of(MODEL)
    kernels: dict[str, tuple[Sampler, HasConditionals]] = {
        "hidden bias ignored": (Gibbs(), mutants.hidden_bias_ignored(MODEL)),
        "weights shrunk to 0.9 on the way down": (Gibbs(), mutants.weights_shrunk_on_the_way_down(MODEL)),
        "visible drawn given stale hidden": (mutants.StaleInputs(), MODEL),
    }
    defects = exact_defects(space, kernels)
    reused = after_sweeps(space, mutants.transitions_with_stream_reused(space))
    defects["one stream for both blocks"] = Defect(mutants.StreamReused(), MODEL, reused)
    assert_law_holds_and_defects_are_seen(space, space.law(), after_sweeps(space, space.transitions(Gibbs())), defects)


def test_labelled_states_follow_the_law_of_the_model() -> None:
    space = space_of(LABELLED)
    kernels: dict[str, tuple[Sampler, HasConditionals]] = {
        "labels unseen by the hidden units": (Gibbs(), mutants.labels_unseen_by_hidden(LABELLED)),
        "bias of the labels ignored": (Gibbs(), mutants.label_bias_ignored(LABELLED)),
        "labels drawn given stale hidden": (mutants.LabelsFromStaleHidden(), LABELLED),
    }
    real = after_sweeps(space, space.transitions(Gibbs()))
    assert_law_holds_and_defects_are_seen(space, space.law(), real, exact_defects(space, kernels))


def test_states_of_deep_machines_follow_the_law_of_the_model() -> None:
    space = space_of(DEEP)
    kernels: dict[str, tuple[Sampler, HasConditionals]] = {
        "layer above ignored": (Gibbs(), mutants.layer_above_ignored(DEEP)),
        "layer below ignored": (Gibbs(), mutants.layer_below_ignored(DEEP)),
        "input doubled in the top layer": (Gibbs(), mutants.input_doubled_in_the_top_layer(DEEP)),
    }
    real = after_sweeps(space, space.transitions(Gibbs()))
    assert_law_holds_and_defects_are_seen(space, space.law(), real, exact_defects(space, kernels))


def test_tempered_states_follow_the_tempered_law() -> None:
    space, beta = space_of(MODEL), 0.5
    untempered = after_sweeps(space, space.transitions(Gibbs()))
    model = mutants.tempered_in_visible_only(MODEL)
    partly = after_sweeps(space, space.transitions(Gibbs(), model, beta))

    defects = {
        "temperature ignored": Defect(mutants.TemperatureIgnored(), MODEL, untempered),
        "temperature reaches one block only": Defect(Gibbs(), model, partly),
    }
    real = after_sweeps(space, space.transitions(Gibbs(), beta=beta))
    assert_law_holds_and_defects_are_seen(space, space.law(beta), real, defects, beta=beta)


def put_back(space: Space, law: Tensor, clamp: Clamp) -> Tensor:
    """The law of states that follow `law`, clamped units put back only afterwards."""
    shown = torch.zeros_like(law)
    return shown.index_add_(0, space.number(held(space.states, clamp)), law)


@pytest.mark.parametrize("known", [{0: 1.0}, {1: 0.0, 3: 1.0}])
def test_completions_follow_the_posterior_given_what_is_clamped(known: dict[int, float]) -> None:
    model = rbm(4, 2, seed=6, scale=1.5)
    space, clamp = space_of(model), clamp_row(4, known)
    free = after_sweeps(space, space.transitions(Gibbs()), clamp)
    defects = {
        "clamp applied at the start only": Defect(mutants.ClampedOnlyAtTheStart(), model, free),
        "clamp put back in what is shown only": Defect(
            mutants.ClampedAfterTheHiddenDraw(), model, put_back(space, free, clamp)
        ),
    }
    real = after_sweeps(space, space.transitions(Gibbs(), clamp=clamp), clamp)
    assert_law_holds_and_defects_are_seen(space, space.law(clamp=clamp), real, defects, clamp)


@pytest.mark.parametrize("known", [{}, {0: 1.0}])
def test_completions_follow_the_posterior_given_the_class(known: dict[int, float]) -> None:
    space, clamp = space_of(LABELLED), clamp_row(3, known, label=2)
    kernels: dict[str, tuple[Sampler, HasConditionals]] = {
        "label clamp ignored": (mutants.LabelClampIgnored(), LABELLED),
        "labels unseen by the hidden units": (Gibbs(), mutants.labels_unseen_by_hidden(LABELLED)),
    }
    real = after_sweeps(space, space.transitions(Gibbs(), clamp=clamp), clamp)
    assert_law_holds_and_defects_are_seen(
        space, space.law(clamp=clamp), real, exact_defects(space, kernels, clamp), clamp
    )


@pytest.mark.parametrize("known", [{}, {1: 1.0}])
def test_the_written_laws_of_the_defects_are_those_that_the_defects_have(known: dict[int, float]) -> None:
    # The power above rests on these laws; a wrong one would make the sample size wrong unnoticed.
    space = space_of(MODEL)
    if known:
        clamp = clamp_row(3, known)
        law = put_back(space, after_sweeps(space, space.transitions(Gibbs()), clamp), clamp)
        counts = last_states(space, mutants.ClampedAfterTheHiddenDraw(), MODEL, 20_000, clamp)
    else:
        law = after_sweeps(space, mutants.transitions_with_stream_reused(space))
        counts = last_states(space, mutants.StreamReused(), MODEL, 20_000)
    assert chi_square(counts, law.numpy()) > FALSE_ALARM


# --- real visibles ---

NODES, BINS = 40, 4


@dataclass(frozen=True)
class Mixture:
    """The chain of a GRBM's hidden states, its visibles integrated out by Gauss-Hermite quadrature; a defect's too."""

    model: GRBM
    drawn_from: HasConditionals
    """What the chain draws from: the model, or a defect of it."""
    clamp: Clamp | None = None

    @property
    def hidden(self) -> Tensor:
        return states(BINARY, len(self.model.c))

    @property
    def free(self) -> Tensor:
        return torch.ones(len(self.model.b), dtype=torch.bool) if self.clamp is None else ~self.clamp.mask[0]

    def visibles_given(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes (hidden, nodes, visible) and weights (nodes) of the law that the visibles are drawn from."""
        law = self.drawn_from.conditional("visible", {"hidden": hidden})
        assert isinstance(law, Gaussian)
        z, weights = np.polynomial.hermite_e.hermegauss(NODES)
        grid = torch.cartesian_prod(*[torch.from_numpy(z)] * len(self.model.b)).reshape(-1, len(self.model.b))
        product = torch.cartesian_prod(*[torch.from_numpy(weights)] * len(self.model.b)).reshape(grid.shape).prod(1)
        nodes = law.location[:, None] + law.std[:, None] * grid
        if self.clamp is not None:
            nodes = torch.where(self.clamp.mask, self.clamp.value, nodes)
        return nodes, product / product.sum()

    def law_of_hidden(self) -> Tensor:
        """After SWEEPS sweeps from N(b, s^2), which is what the visibles are given no hidden unit."""
        model, hidden = self.model, self.hidden
        noise = Mixture(model, model, self.clamp).visibles_given(torch.zeros_like(hidden[:1]))
        transitions = self._up(*self.visibles_given(hidden))
        first = self._up(*noise)[0]
        after: Tensor = first @ torch.linalg.matrix_power(transitions, SWEEPS - 1)
        return after

    def _up(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """p(hidden' | hidden) (hidden, hidden')."""
        flat = nodes.flatten(0, 1)
        law = self.drawn_from.conditional("hidden", {"visible": flat})
        log_p = torch.stack([law.log_prob(h.expand(len(flat), -1)) for h in self.hidden], 1)
        return (log_p.exp().reshape(*nodes.shape[:2], -1) * weights[:, None]).sum(1)

    def cells(self) -> Tensor:
        """The law of (hidden state, bin of each free visible): bins of equal probability given the hidden state in the
        true model, N(b + s W h, s^2)."""
        return (self.law_of_hidden()[:, None] * self.bins_given_hidden()).flatten()

    def bins_given_hidden(self) -> Tensor:
        law = self.drawn_from.conditional("visible", {"hidden": self.hidden})
        assert isinstance(law, Gaussian)
        z = torch.from_numpy(np.concatenate(([-np.inf], stats.norm.ppf(np.arange(1, BINS) / BINS), [np.inf])))
        mean, std = true_visibles(self.model, self.hidden)
        edges = mean[:, :, None] + std[:, None] * z  # (hidden, visible, edge)
        cdf = torch.from_numpy(stats.norm.cdf(edges, law.location[:, :, None], law.std[:, :, None]))
        each = cdf.diff(dim=2)[:, self.free]
        joint = each[:, 0]
        for unit in range(1, each.shape[1]):
            joint = (joint[:, :, None] * each[:, unit, None]).flatten(1)
        return joint

    def counts(self, sampler: Sampler, n: int) -> np.ndarray:
        """How many of n chains end in each cell."""
        blocks = last_blocks(sampler, self.drawn_from, n, self.clamp)
        mean, std = true_visibles(self.model, blocks["hidden"])
        quantile = stats.norm.cdf((blocks["visible"] - mean) / std)[:, self.free.numpy()]
        number = np.zeros(n, np.int64)
        for unit in range(blocks["hidden"].shape[1]):
            number = 2 * number + blocks["hidden"][:, unit].long().numpy()
        for unit in range(quantile.shape[1]):
            number = BINS * number + np.minimum((quantile[:, unit] * BINS).astype(np.int64), BINS - 1)
        return np.bincount(number, minlength=len(self.cells()))


def true_visibles(model: GRBM, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """MATH 3: mean b + s W h and standard deviation s, in loops."""
    mean = torch.empty(len(hidden), len(model.b), dtype=torch.float64)
    for h in states(BINARY, hidden.shape[1]):
        at = [
            float(model.b[i])
            + math.exp(model.log_sigma[i]) * sum(float(w * on) for w, on in zip(model.W[i], h, strict=True))
            for i in range(len(model.b))
        ]
        mean[(hidden == h).all(1)] = torch.tensor(at, dtype=torch.float64)
    return mean, torch.exp(model.log_sigma)


def posterior_of_hidden(model: GRBM, known: Mapping[int, float]) -> Tensor:
    """p(h | the visibles known): exp(c'h + sum_known w_i h v_i / s_i + sum_free (w_i h b_i / s_i + (w_i h)^2 / 2))."""
    log_p = []
    for h in states(BINARY, len(model.c)):
        total = float(model.c @ h)
        for i in range(len(model.b)):
            pull, s = float(model.W[i] @ h), math.exp(model.log_sigma[i])
            total += pull * known[i] / s if i in known else pull * float(model.b[i]) / s + 0.5 * pull**2
        log_p.append(total)
    return torch.softmax(torch.tensor(log_p, dtype=torch.float64), 0)


REAL = grbm(2, 2, seed=5)


@pytest.mark.parametrize("known", [{}, {0: -0.7}])
def test_real_visibles_and_their_completions_follow_the_exact_gaussian_mixture(known: dict[int, float]) -> None:
    clamp = clamp_row(2, known) if known else None
    real = Mixture(REAL, REAL, clamp)
    exact = posterior_of_hidden(REAL, known)
    per_hidden = BINS ** int(real.free.sum())
    law = exact.repeat_interleave(per_hidden) / per_hidden
    kernels: dict[str, HasConditionals] = {
        "pull on the visibles without s": mutants.pull_not_scaled_by_sigma(REAL),
        "variance 1 instead of s squared": mutants.unit_variance(REAL),
        "1 in the place of the hidden bias": mutants.one_for_the_hidden_bias(REAL),
        "hidden inputs not divided by s": mutants.inputs_not_divided_by_sigma(REAL),
    }
    defects = {name: Defect(Gibbs(), model, Mixture(REAL, model, clamp).cells()) for name, model in kernels.items()}
    if clamp is not None:
        free = Mixture(REAL, REAL).law_of_hidden()
        law_of_free = (free[:, None] * real.bins_given_hidden()).flatten()
        defects["clamp applied at the start only"] = Defect(mutants.ClampedOnlyAtTheStart(), REAL, law_of_free)
    n = chains_needed(law, defects)
    assert n < 300_000
    assert n * float(((real.cells() - law) ** 2 / law).sum()) < 1e-6
    assert chi_square(real.counts(Gibbs(), n), law.numpy()) > FALSE_ALARM
    for name, defect in defects.items():
        seen = Mixture(REAL, defect.model, clamp).counts(defect.sampler, n)
        assert chi_square(seen, law.numpy()) < FALSE_ALARM, name


def test_moments_of_real_visibles_are_those_of_the_mixture() -> None:
    model, n = grbm(3, 3, seed=7, scale=0.8), 20_000
    p, hidden = posterior_of_hidden(model, {}), states(BINARY, 3)
    means, std = true_visibles(model, hidden)
    mean = p @ means
    covariance = (p[:, None] * (means - mean)).T @ (means - mean) + torch.diag(std**2)
    visible = last_blocks(Gibbs(), model, n)["visible"]
    # Z-tests at 1e-6 each; products of deviations have their own spread.
    assert bool(((visible.mean(0) - mean).abs() < 4.9 * visible.std(0) / math.sqrt(n)).all())
    products = (visible - mean)[:, :, None] * (visible - mean)[:, None]
    assert bool(((products.mean(0) - covariance).abs() < 4.9 * products.std(0) / math.sqrt(n)).all())
