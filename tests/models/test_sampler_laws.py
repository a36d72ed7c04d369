"""Long-run frequencies of the real code, draws and all, against the exact law; and the defects that this must reject.

Independent chains, of which only the last state counts, so that the counts are multinomial: Pearson's chi-square at
1e-6 with S - 1 degrees of freedom. For each defect its own exact law after the same number of sweeps is known, so the
statistic's noncentrality is n sum (q - p)^2 / p, and the number of chains is the least that rejects every named defect
with probability 0.999. The seed is fixed; over seeds a correct sampler would fail each of the tests with probability
1e-6, and each defect would slip through with at most 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.family import Clamp, HasConditionals
from models.rng import ChainKeys
from models.sampler import Sampler
from models.samplers.gibbs import Gibbs
from tests.models import mutants
from tests.models.cases import rbm
from tests.models.kernels import Space, clamp_row

FALSE_ALARM, POWER = 1e-6, 0.999
SWEEPS = 40
BINARY = {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)}


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
    visible = space.states["visible"] if clamp is None else clamp.apply(space.states["visible"])
    law.index_add_(
        0, space.number(space.states | {"visible": visible}), torch.full((len(space),), 1 / len(space)).double()
    )
    after: Tensor = law @ torch.linalg.matrix_power(transitions, SWEEPS)
    return after


def last_states(
    space: Space,
    sampler: Sampler,
    model: HasConditionals,
    n: int,
    clamp: Clamp | None = None,
    beta: float | None = None,
) -> np.ndarray:
    """How many of n chains end in each state."""
    keys = ChainKeys.of(20261123, n)
    wide = None if clamp is None else Clamp(clamp.mask.expand(n, -1), clamp.value.expand(n, -1))
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    state = sampler.init(model, keys, None, wide)
    for _ in range(SWEEPS):
        state, _ = sampler.step(model, state, keys, wide, betas)
    return np.bincount(space.number(state.blocks), minlength=len(space))


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


def test_joint_states_follow_the_law_of_the_model() -> None:
    space = Space(MODEL, BINARY)
    kernels: dict[str, tuple[Sampler, HasConditionals]] = {
        "hidden bias ignored": (Gibbs(), mutants.hidden_bias_ignored(MODEL)),
        "weights shrunk to 0.9 on the way down": (Gibbs(), mutants.weights_shrunk_on_the_way_down(MODEL)),
        "visible drawn given stale hidden": (mutants.StaleHidden(), MODEL),
    }
    defects = {
        name: Defect(sampler, model, after_sweeps(space, space.transitions(sampler, model)))
        for name, (sampler, model) in kernels.items()
    }
    reused = after_sweeps(space, mutants.transitions_with_stream_reused(space))
    defects["one stream for both blocks"] = Defect(mutants.StreamReused(), MODEL, reused)
    assert_law_holds_and_defects_are_seen(space, space.law(), after_sweeps(space, space.transitions(Gibbs())), defects)


def test_tempered_states_follow_the_tempered_law() -> None:
    space, beta = Space(MODEL, BINARY), 0.5
    untempered = after_sweeps(space, space.transitions(Gibbs()))
    model = mutants.tempered_in_visible_only(MODEL)
    partly = after_sweeps(space, space.transitions(Gibbs(), model, beta))

    defects = {
        "temperature ignored": Defect(mutants.TemperatureIgnored(), MODEL, untempered),
        "temperature reaches one block only": Defect(Gibbs(), model, partly),
    }
    real = after_sweeps(space, space.transitions(Gibbs(), beta=beta))
    assert_law_holds_and_defects_are_seen(space, space.law(beta), real, defects, beta=beta)


@pytest.mark.parametrize("known", [{0: 1.0}, {1: 0.0, 3: 1.0}])
def test_completions_follow_the_posterior_given_what_is_clamped(known: dict[int, float]) -> None:
    model = rbm(4, 2, seed=6, scale=1.5)
    space, clamp = Space(model, BINARY), clamp_row(4, known)
    free = after_sweeps(space, space.transitions(Gibbs()), clamp)
    shown = torch.zeros_like(free)
    shown.index_add_(0, space.number(space.states | {"visible": clamp.apply(space.states["visible"])}), free)
    defects = {
        "clamp applied at the start only": Defect(mutants.ClampedOnlyAtTheStart(), model, free),
        "clamp put back in what is shown only": Defect(mutants.ClampedAfterTheHiddenDraw(), model, shown),
    }
    real = after_sweeps(space, space.transitions(Gibbs(), clamp=clamp), clamp)
    assert_law_holds_and_defects_are_seen(space, space.law(clamp=clamp), real, defects, clamp)


@pytest.mark.parametrize("known", [{}, {1: 1.0}])
def test_the_written_laws_of_the_defects_are_those_that_the_defects_have(known: dict[int, float]) -> None:
    # The power above rests on these laws; a wrong one would make the sample size wrong unnoticed.
    space = Space(MODEL, BINARY)
    if known:
        clamp = clamp_row(3, known)
        free = after_sweeps(space, space.transitions(Gibbs()), clamp)
        law = torch.zeros_like(free)
        law.index_add_(0, space.number(space.states | {"visible": clamp.apply(space.states["visible"])}), free)
        counts = last_states(space, mutants.ClampedAfterTheHiddenDraw(), MODEL, 20_000, clamp)
    else:
        law = after_sweeps(space, mutants.transitions_with_stream_reused(space))
        counts = last_states(space, mutants.StreamReused(), MODEL, 20_000)
    assert chi_square(counts, law.numpy()) > FALSE_ALARM
