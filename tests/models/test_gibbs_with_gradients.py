"""Gibbs-with-gradients: its whole transition matrix, from every state and with every proposal and decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from models import rng
from models.conditionals import Categorical
from models.errors import InputError
from models.family import Clamp, HasClasses, HasConditionals, HasScore
from models.rng import ChainKeys
from models.sampler import ChainState
from models.samplers import gibbs_with_gradients
from models.samplers.gibbs_with_gradients import GibbsWithGradients
from tests.models.cases import BINARY, Case, case, names, rbm, states
from tests.models.kernels import clamp_row, matrix, number, widen
from tests.models.test_sampler_laws import FALSE_ALARM, chi_square

NAMES = names(lambda of: GibbsWithGradients.applies_to(of.model))
ONE = GibbsWithGradients(steps=1)


def transitions(of: Case, beta: float | None, clamp: Clamp | None) -> Tensor:
    """K[x, x'] of one step of the code, over all states of the visibles."""
    D, values = of.visibles, {"visible": of.values["visible"]}
    everything = states(values["visible"], D)
    before = torch.arange(len(everything)).repeat_interleave(D)
    unit = torch.arange(D).repeat(len(everything))
    n, noted, q = len(before), [], []

    def sample(law: Categorical, *_: object) -> Tensor:
        q.append(law.logits.gather(1, unit[:, None])[:, 0])  # normalised already
        return torch.nn.functional.one_hot(unit, D).double()

    def accept(log_ratio: Tensor, *_: object) -> Tensor:
        noted.append(log_ratio)
        return torch.ones(n, dtype=torch.bool)

    start = ChainState({"visible": everything[before]}, torch.zeros(n, dtype=torch.int64))
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    wide = None if clamp is None else widen(clamp, n)
    with patch.object(Categorical, "sample", sample), patch.object(rng, "accept", accept):
        after, _ = ONE.step(of.model, start, ChainKeys.of(0, n), wide, betas)
    proposed = q[0].exp()
    chance = proposed * noted[0].clamp(max=0.0).exp().nan_to_num(0.0)
    went = matrix(len(everything), before, chance.log(), number(after.blocks, values))
    stayed = matrix(len(everything), before, (proposed - chance).clamp(min=0.0).log(), before)
    return went + stayed


def law(of: Case, beta: float, clamp: Clamp | None) -> Tensor:
    everything = states(of.values["visible"], of.visibles)
    log_p = -beta * of.model.energy(everything)
    if clamp is not None:
        if clamp.label is not None:
            assert isinstance(of.model, HasClasses)
            log_p = -beta * of.model.class_energy(everything, clamp.label.expand(len(everything)))
        agrees = torch.where(clamp.mask, clamp.value, everything).eq(everything).all(1)
        log_p = torch.where(agrees, log_p, -torch.inf)
    return torch.softmax(log_p, 0)


@pytest.mark.parametrize(
    ("name", "known", "label"),
    [
        (name, known, label)
        for name in NAMES
        for known in ({}, {0: 1.0})
        for label in (None, 1)
        if label is None or "label" in case(name).values
    ],
)
@pytest.mark.parametrize("beta", [None, 0.3, 2.0])
@pytest.mark.parametrize("size", [(4, 3), (2, 3)])
def test_the_law_of_the_model_is_stationary(
    name: str, known: dict[int, float], label: int | None, beta: float | None, size: tuple[int, int]
) -> None:
    of = case(name, *size)
    clamp = clamp_row(of.visibles, known, label) if known or label is not None else None
    p, kernel = law(of, 1.0 if beta is None else beta, clamp), transitions(of, beta, clamp)
    support = p > 0
    np.testing.assert_allclose(kernel.sum(1)[support], 1.0, atol=1e-12)
    np.testing.assert_allclose(p @ kernel, p, atol=1e-11)
    flow = p[:, None] * kernel
    np.testing.assert_allclose(flow, flow.T, atol=1e-11)  # reversible, moreover
    assert float(kernel[support][:, ~support].sum()) == 0.0
    reached = torch.linalg.matrix_power(kernel + torch.eye(len(kernel)).double(), of.visibles)
    assert bool((reached[support][:, support] > 0).all())
    assert float((torch.roll(p, 1) @ kernel - torch.roll(p, 1)).abs().max()) > 1e-6


@pytest.mark.parametrize("name", ["rbm", "bm spin"])
def test_proposals_are_those_of_the_paper(name: str) -> None:
    of, beta = case(name, 4, 3), 0.7
    assert isinstance(of.model, HasScore)
    x = states(of.values["visible"], 4)
    laws: list[Tensor] = []

    def sample(drawn: Categorical, *_: object) -> Tensor:
        laws.append(drawn.logits)
        return torch.nn.functional.one_hot(torch.zeros(16, dtype=torch.int64), 4).double()

    start = ChainState({"visible": x}, torch.zeros(16, dtype=torch.int64))
    with patch.object(Categorical, "sample", sample):
        ONE.step(of.model, start, ChainKeys.of(0, 16), None, torch.full((16,), beta, dtype=torch.float64))
    turned = -x if name == "bm spin" else 1 - x
    gain = (turned - x) * beta * of.model.score(x)
    np.testing.assert_allclose(laws[0].exp(), torch.softmax(gain / 2, 1), atol=1e-12)


@contextmanager
def gradient_of_the_start_only() -> Iterator[None]:
    """The proposal's own probabilities are never found: as if q were symmetric."""

    def look(walk: gibbs_with_gradients._Walk, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, log_q = real_look(walk, x)
        first.append(log_q)
        return energy, first[0]

    first: list[Tensor] = []
    real_look = gibbs_with_gradients._Walk.look
    with patch.object(gibbs_with_gradients._Walk, "look", look):
        yield


@contextmanager
def ratio_changed(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    real = rng.accept
    with patch.object(rng, "accept", lambda log_ratio, *of: real(change(log_ratio), *of)):
        yield


def test_stationarity_fails_where_the_ratio_of_proposals_is_forgotten() -> None:
    of = case("rbm", 4, 3)
    with gradient_of_the_start_only():
        kernel = transitions(of, None, None)
    p = law(of, 1.0, None)
    assert float((p @ kernel - p).abs().max()) > 1e-3


def counts(n: int, sweeps: int, model: HasConditionals) -> np.ndarray:
    sampler, keys = GibbsWithGradients(4), ChainKeys.of(20261126, n)
    state = sampler.init(model, keys, None, None)
    for _ in range(sweeps):
        state, _ = sampler.step(model, state, keys)
    return np.bincount(number(state.blocks, {"visible": BINARY}), minlength=8)


def test_frequencies_are_those_of_the_law_and_defects_are_seen() -> None:
    # 10,000 chains: a state whose probability is off by a tenth of itself is seen from a noncentrality of 100 p.
    of = case("rbm", 3, 3, seed=23)
    model = of.sweeping
    p = law(of, 1.0, None).numpy()
    assert chi_square(counts(10_000, 20, model), p) > FALSE_ALARM
    with ratio_changed(torch.zeros_like):  # never refused
        assert chi_square(counts(10_000, 20, model), p) < FALSE_ALARM * 1e-6
    with ratio_changed(torch.neg):  # wrong sign
        assert chi_square(counts(10_000, 20, model), p) < FALSE_ALARM * 1e-6


def test_a_chain_that_holds_all_visibles_stays_and_proposes_nothing() -> None:
    model, keys = rbm(3, 2), ChainKeys.of(1, 4)
    clamp = widen(clamp_row(3, {0: 1.0, 1: 0.0, 2: 1.0}), 4)
    state = GibbsWithGradients().init(model, keys, None, clamp)
    after, info = GibbsWithGradients().step(model, state, keys, clamp)
    assert torch.equal(after.visible, clamp.value)
    assert info.acceptance_rate is not None
    assert bool(info.acceptance_rate.isnan().all())


def test_it_applies_to_two_valued_visibles_of_exact_energy() -> None:
    assert {"bm", "bm spin", "rbm", "rbm labelled", "bm_hidden"} <= set(NAMES)
    for name in ("rbm unit", "grbm", "dbm real", "jem", "dbn"):
        assert name not in NAMES
    assert not GibbsWithGradients.applies_to(case("dbm", 4, 60).model)  # a bound


def test_more_units_than_one_can_be_drawn_from_are_refused() -> None:
    model, keys = rbm(4097, 1, scale=0.01), ChainKeys.of(1, 1)
    with pytest.raises(InputError, match="at most 4096 states"):
        ONE.step(model, ONE.init(model, keys, None, None), keys)


@pytest.mark.parametrize("steps", [0, -1, True, 100_001])
def test_settings_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 100000"):
        GibbsWithGradients(steps)
