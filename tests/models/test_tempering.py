"""Parallel tempering and tempered transitions: exact transition matrices, and two modes that Gibbs cannot join.

Every draw and every decision of a step is enumerated, so the matrices are those of the samplers' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models import rng, sweeping
from models.errors import InputError
from models.families.rbm import RBM
from models.family import Clamp, HasConditionals
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler
from models.samplers.gibbs import Gibbs
from models.samplers.tempered_transitions import TemperedTransitions
from models.samplers.tempering import Tempering
from tests.models.cases import case, grbm, names
from tests.models.kernels import Delegating, Space, clamp_row, every_step, matrix, scripted, widen

FALSE_ALARM = 1e-6
Twist = Callable[[Tensor], Tensor]


@cache
def space_of(name: str, visible: int, hidden: int) -> Space:
    of = case(name, visible, hidden)
    return Space(of.sweeping, of.values)


SMALL = [name for name in names(lambda of: of.enumerable) if len(space_of(name, 1, 2)) <= 24]
UNDIRECTED = [name for name in SMALL if not case(name).directed]
SITUATIONS = [(None, False), (1.0, False), (0.3, False), (None, True), (0.3, True)]


def clamp_of(name: str, visible: int, held: bool) -> Clamp | None:
    """The first visible held at 1, and the last class where there are labels."""
    if not held:
        return None
    return clamp_row(visible, {0: 1.0}, 2 if "labelled" in name else None)


# --- parallel tempering, exact ---


def at(block: str, replica: int) -> str:
    return f"{block}@{replica}" if replica else block


def exchange_matrix(
    space: Space,
    sampler: Tempering,
    beta: float | None = None,
    clamp: Clamp | None = None,
    sweep: int = 0,
    twist: Twist = lambda log_ratio: log_ratio,
) -> Tensor:
    """K over the states of all replicas, the chain's own the slowest. `twist` is a defect of the log ratio."""
    R, S, model = sampler.replicas, len(space), space.model

    def step(numbers: Tensor) -> ChainState:
        n = len(numbers)
        blocks = {at(b, r): space.states[b][numbers[:, r]] for b in model.blocks for r in range(R)}
        betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
        wide = None if clamp is None else widen(clamp, n)
        start = ChainState(blocks, torch.full((n,), sweep))
        return sampler.step(model, start, ChainKeys.of(0, n), wide, betas)[0]

    with scripted(None) as rehearsal:
        step(torch.zeros(1, R, dtype=torch.int64))
    outcomes = rehearsal.every_outcome()
    ranges = [torch.arange(S)] * R + [torch.arange(len(outcomes[0]))] * R + [torch.arange(2)] * (R - 1)
    index = torch.cartesian_prod(*ranges)
    before, drawn, coins = index[:, :R], index[:, R : 2 * R], index[:, 2 * R :]
    decided: list[Tensor] = []

    def accept(log_ratio: Tensor, keys: ChainKeys, number: Tensor, stream: int) -> Tensor:
        coin = coins.T.reshape(-1).bool()
        p = twist(log_ratio).clamp(max=0.0).exp()
        decided.append(torch.where(coin, p, 1 - p).reshape(R - 1, -1).prod(0))
        return coin

    with scripted([o[drawn.T.reshape(-1)] for o in outcomes]) as script, patch.object(rng, "accept", accept):
        after = step(before)
    log_p = script.log_prob.reshape(R, -1).sum(0) + decided[0].log()
    numbers = [space.number({b: after.blocks[at(b, r)] for b in model.blocks}) for r in range(R)]
    return matrix(S**R, join(before.T, S), log_p, join(numbers, S))


def join(numbers: Tensor | list[Tensor], base: int) -> Tensor:
    total = torch.zeros_like(numbers[0])
    for number in numbers:
        total = total * base + number
    return total


def product_law(space: Space, sampler: Tempering, beta: float | None, clamp: Clamp | None) -> Tensor:
    total = torch.ones(1, dtype=torch.float64)
    for fraction in sampler.ladder(space.model):
        total = torch.outer(total, space.law(fraction * (1.0 if beta is None else beta), clamp)).reshape(-1)
    return total


def assert_stationary(law: Tensor, transitions: Tensor) -> None:
    np.testing.assert_allclose(transitions.sum(1), 1.0, atol=1e-11)
    np.testing.assert_allclose(law @ transitions, law, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "beta", "held"),
    [(name, None, False) for name in SMALL] + [(name, 0.3, True) for name in UNDIRECTED],
)
def test_the_product_of_the_tempered_laws_is_stationary(name: str, beta: float | None, held: bool) -> None:
    space, clamp, sampler = space_of(name, 1, 2), clamp_of(name, 1, held), Tempering(2, 0.4 if held else None)
    assert_stationary(product_law(space, sampler, beta, clamp), exchange_matrix(space, sampler, beta, clamp))


@pytest.mark.parametrize("size", [(2, 1), (1, 2)])
@pytest.mark.parametrize(("beta", "held"), SITUATIONS)
def test_two_replicas_of_three_units_are_stationary(size: tuple[int, int], beta: float | None, held: bool) -> None:
    space, clamp, sampler = space_of("rbm", *size), clamp_of("rbm", size[0], held), Tempering(replicas=2, lowest=0.2)
    assert_stationary(product_law(space, sampler, beta, clamp), exchange_matrix(space, sampler, beta, clamp))


@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize("sampler", [Tempering(3), Tempering(3, 0.2), Tempering(3, 0.2, "geometric")])
def test_three_replicas_are_stationary_after_even_and_odd_sweeps(sweep: int, sampler: Tempering) -> None:
    space = space_of("rbm", 1, 1)
    law = product_law(space, sampler, 0.7, None)
    assert_stationary(law, exchange_matrix(space, sampler, 0.7, sweep=sweep))


@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize(
    ("beta", "twist"),
    [
        pytest.param(None, lambda log_ratio: -log_ratio, id="wrong sign"),
        pytest.param(0.3, lambda log_ratio: log_ratio / 0.3, id="the chain's beta ignored"),
        pytest.param(None, torch.zeros_like, id="always exchanged"),
        pytest.param(None, lambda log_ratio: 0.5 * log_ratio, id="half the ratio"),
    ],
)
def test_stationarity_fails_for_a_defective_exchange(sweep: int, beta: float | None, twist: Twist) -> None:
    space, sampler = space_of("rbm", 2, 1), Tempering(replicas=2)
    law = product_law(space, sampler, beta, None)
    wrong = exchange_matrix(space, sampler, beta, sweep=sweep, twist=twist)
    assert float((law @ wrong - law).abs().max()) > 1e-4


class TotalEnergy(Delegating):
    """A model of which beta is thought to multiply more than it does."""

    def thermal_energy(self, states: object) -> Tensor:
        return self.model.joint_energy(states) + states["visible"].sum(1)  # type: ignore[arg-type,index]


def test_stationarity_fails_where_exchanges_go_by_another_energy_than_sweeps() -> None:
    space, sampler = space_of("rbm", 2, 1), Tempering(replicas=2)
    law = product_law(space, sampler, None, None)
    wrong = exchange_matrix(Space(TotalEnergy(space.model), space.values), sampler)
    assert float((law @ wrong - law).abs().max()) > 1e-4


def test_pairs_take_turns_and_the_share_of_exchanges_is_told() -> None:
    model, keys = case("rbm", 3, 2).model, ChainKeys.of(0, 2)
    sampler = Tempering(replicas=5, lowest=0.5)
    start = sampler.init(model, keys, None, None)
    state = ChainState(start.blocks, torch.tensor([1, 2]))  # after these come the sweeps 2 and 3

    def step(accepted: bool) -> tuple[ChainState, Tensor]:
        with patch.object(rng, "accept", lambda log_ratio, *_: torch.full(log_ratio.shape, accepted)):
            after, info = sampler.step(model, state, keys)
        assert info.acceptance_rate is not None
        return after, info.acceptance_rate

    (still, none), (moved, every) = step(False), step(True)
    assert none.tolist() == [0.0, 0.0]
    assert every.tolist() == [1.0, 1.0]
    for row, order in enumerate(([1, 0, 3, 2, 4], [0, 2, 1, 4, 3])):
        for block in ("visible", "hidden"):
            for r, source in enumerate(order):
                assert torch.equal(moved.blocks[at(block, r)][row], still.blocks[at(block, source)][row])


def test_replicas_start_from_noise_and_clamped_units_are_held_in_all_of_them() -> None:
    of = case("rbm labelled", 6, 4)
    sampler, keys, start = Tempering(replicas=4), ChainKeys.of(2, 5), torch.ones(5, 6, dtype=torch.float64)
    clamp = widen(clamp_row(6, {0: 1.0, 3: 0.0}, 1), 5)
    state = sampler.init(of.model, keys, start, clamp)
    assert state.visible.tolist() == [[1, 1, 1, 0, 1, 1]] * 5
    assert len({tuple(state.blocks[at("visible", r)].reshape(-1).tolist()) for r in range(4)}) == 4
    assert set(state.blocks) == {at(b, r) for b in ("visible", "hidden", "label") for r in range(4)}
    for _ in range(10):
        for r in range(4):
            visible, label = state.blocks[at("visible", r)], state.blocks[at("label", r)]
            assert torch.equal(visible[clamp.mask], clamp.value[clamp.mask])
            assert label.tolist() == [[0, 1, 0]] * 5
        state, _ = sampler.step(of.model, state, keys, clamp)


def test_without_exchanges_the_own_replica_is_a_gibbs_chain() -> None:
    model, keys = case("rbm", 6, 4).model, ChainKeys.of(2, 5)
    sampler = Tempering(replicas=3)
    mine, plain = sampler.init(model, keys, None, None), Gibbs().init(model, keys, None, None)
    with patch.object(rng, "accept", lambda log_ratio, *_: torch.zeros(log_ratio.shape, dtype=torch.bool)):
        for _ in range(5):
            mine, info = sampler.step(model, mine, keys)
            plain, expected = Gibbs().step(model, plain, keys)
            assert torch.equal(mine.visible, plain.visible)
            assert torch.equal(info.expected_visible(), expected.expected_visible())


def test_ladders_fall_from_one_to_the_lowest() -> None:
    model, real = case("rbm").sweeping, grbm(3, 2)
    assert Tempering(3).ladder(model) == [1.0, 0.5, 0.0]
    assert Tempering(3, 0.5).ladder(model) == [1.0, 0.75, 0.5]
    np.testing.assert_allclose(Tempering(3, 0.25, "geometric").ladder(model), [1.0, 0.5, 0.25], rtol=1e-14)
    np.testing.assert_allclose(Tempering(2).ladder(real), [1.0, 0.1], rtol=1e-14)
    np.testing.assert_allclose(Tempering(2, spacing="geometric").ladder(model), [1.0, 0.1], rtol=1e-14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 1}, "whole number from 2 to 64"),
        ({"replicas": 65}, "whole number from 2 to 64"),
        ({"replicas": True}, "whole number from 2 to 64"),
        ({"lowest": 1.0}, "from 0 to below 1"),
        ({"lowest": -0.1}, "from 0 to below 1"),
        ({"lowest": float("nan")}, "from 0 to below 1"),
        ({"spacing": "cubic"}, "'linear' or 'geometric'"),
        ({"spacing": "geometric", "lowest": 0.0}, "above 0"),
    ],
)
def test_settings_of_tempering_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tempering(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rungs": 0}, "whole number from 1 to 1000"),
        ({"rungs": 1001}, "whole number from 1 to 1000"),
        ({"rungs": True}, "whole number from 1 to 1000"),
        ({"lowest": 1.0}, "from 0 to below 1"),
        ({"lowest": -1e-9}, "from 0 to below 1"),
        ({"lowest": float("nan")}, "from 0 to below 1"),
    ],
)
def test_settings_of_tempered_transitions_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemperedTransitions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [Tempering(lowest=0.0), TemperedTransitions(lowest=0.0)])
def test_real_units_have_no_law_at_zero(sampler: Sampler) -> None:
    with pytest.raises(InputError, match="above 0 for a model with real units"):
        sampler.init(grbm(3, 2), ChainKeys.of(0, 1), None, None)


# --- tempered transitions, exact ---


@contextmanager
def taking(accepted: bool, log_ratios: list[Tensor]) -> Iterator[None]:
    """Every proposal is accepted, or none is; the log ratios are noted."""

    def accept(log_ratio: Tensor, *_: object) -> Tensor:
        log_ratios.append(log_ratio)
        return torch.full(log_ratio.shape, accepted)

    with patch.object(rng, "accept", accept):
        yield


def excursion_matrix(
    space: Space,
    sampler: TemperedTransitions,
    beta: float = 1.0,
    clamp: Clamp | None = None,
    twist: Twist = lambda log_ratio: log_ratio,
    at_once: int = 64,
) -> Tensor:
    """K of a proposal and its decision, without the sweep before; from so many states at a time."""
    total = torch.zeros(len(space), len(space), dtype=torch.float64)
    for first in range(0, len(space), at_once):
        log_ratios: list[Tensor] = []

        def step(offset: Tensor, first: int = first) -> dict[str, Tensor]:
            n, states = len(offset), {b: s[first + offset] for b, s in space.states.items()}
            wide, betas = None if clamp is None else widen(clamp, n), torch.full((n,), beta, dtype=torch.float64)
            return sampler.excursion(space.model, states, ChainKeys.of(0, n), torch.ones(n).long(), wide, betas)[0]

        with taking(True, log_ratios):
            offset, log_p, proposed = every_step(min(at_once, len(space) - first), step)
        p, taken = log_p.exp(), twist(log_ratios[-1]).clamp(max=0.0).exp()
        before = first + offset
        total.index_put_((before, space.number(proposed)), p * taken, accumulate=True)
        total.index_put_((before, before), p * (1 - taken), accumulate=True)
    return total


def step_matrix(space: Space, sampler: Sampler, beta: float | None = None, clamp: Clamp | None = None) -> Tensor:
    """K of a whole step that ends in one decision."""
    total = torch.zeros(len(space), len(space), dtype=torch.float64)
    for accepted in (False, True):
        log_ratios: list[Tensor] = []
        with taking(accepted, log_ratios):
            before, log_p, after, info = space.steps(sampler, beta=beta, clamp=clamp)
        assert info.acceptance_rate is not None
        assert bool((info.acceptance_rate == float(accepted)).all())
        p = log_ratios[-1].clamp(max=0.0).exp()
        total += matrix(len(space), before, log_p + (p if accepted else 1 - p).log(), space.number(after.blocks))
    return total


def imbalance(law: Tensor, transitions: Tensor, clamp: Clamp | None, space: Space) -> float:
    flow = law[:, None] * transitions
    flow[:, ~space.allowed(clamp)] = 0.0  # what contradicts the clamp no chain is in
    return float((flow - flow.T).abs().max())


@pytest.mark.parametrize("name", UNDIRECTED)
@pytest.mark.parametrize(("beta", "held"), [(1.0, False), (0.3, True)])
def test_tempered_transitions_are_in_detailed_balance(name: str, beta: float, held: bool) -> None:
    space, clamp = space_of(name, 1, 2), clamp_of(name, 1, held)
    law, excursion = space.law(beta, clamp), excursion_matrix(space, TemperedTransitions(1, 0.0), beta, clamp)
    assert_stationary(law, excursion)
    assert imbalance(law, excursion, clamp, space) < 1e-15


@pytest.mark.parametrize(("beta", "held"), SITUATIONS)
def test_a_step_is_a_gibbs_sweep_and_then_a_tempered_transition(beta: float | None, held: bool) -> None:
    space, clamp, sampler = space_of("rbm", 2, 1), clamp_of("rbm", 2, held), TemperedTransitions(1, 0.0)
    whole = step_matrix(space, sampler, beta, clamp)
    own = 1.0 if beta is None else beta
    sweep = space.transitions(Gibbs(), beta=beta, clamp=clamp)
    np.testing.assert_allclose(whole, sweep @ excursion_matrix(space, sampler, own, clamp), atol=1e-12)
    assert_stationary(space.law(own, clamp), whole)
    allowed = space.allowed(clamp)
    assert bool((whole[:, allowed] > 0).all())
    assert float(whole[:, ~allowed].sum()) == 0.0


@pytest.mark.parametrize(("size", "rungs"), [((1, 1), 3), ((2, 1), 2), ((1, 2), 2)])
@pytest.mark.parametrize(("beta", "held"), SITUATIONS)
def test_tempered_transitions_of_several_rungs_are_in_detailed_balance(
    size: tuple[int, int], rungs: int, beta: float | None, held: bool
) -> None:
    space, clamp = space_of("rbm", *size), clamp_of("rbm", size[0], held)
    law, sampler = space.law(1.0 if beta is None else beta, clamp), TemperedTransitions(rungs, lowest=0.2)
    excursion = excursion_matrix(space, sampler, 1.0 if beta is None else beta, clamp)
    assert_stationary(law, excursion)
    assert imbalance(law, excursion, clamp, space) < 1e-15


def test_three_rungs_of_three_units_are_in_detailed_balance() -> None:
    space = space_of("rbm", 2, 1)
    excursion = excursion_matrix(space, TemperedTransitions(3, lowest=0.1), at_once=1)
    np.testing.assert_allclose(excursion.sum(1), 1.0, atol=1e-11)
    assert imbalance(space.law(), excursion, None, space) < 1e-15


@pytest.mark.parametrize(
    ("beta", "twist"),
    [
        pytest.param(1.0, lambda log_ratio: -log_ratio, id="wrong sign"),
        pytest.param(0.3, lambda log_ratio: log_ratio / 0.3, id="the chain's beta ignored"),
        pytest.param(1.0, torch.zeros_like, id="always accepted"),
    ],
)
def test_stationarity_fails_for_a_defective_decision(beta: float, twist: Twist) -> None:
    space, sampler = space_of("rbm", 2, 1), TemperedTransitions(2, lowest=0.0)
    law = space.law(beta)
    assert float((law @ excursion_matrix(space, sampler, beta, twist=twist) - law).abs().max()) > 1e-4


def test_stationarity_fails_where_the_sweeps_down_are_not_reversed() -> None:
    space, sampler, real = space_of("rbm", 2, 1), TemperedTransitions(2, lowest=0.0), sweeping.sweep

    def forwards(*args: object, backwards: bool = False) -> sweeping.Swept:
        return real(*args)  # type: ignore[arg-type]

    law = space.law()
    with patch.object(sweeping, "sweep", forwards):
        wrong = excursion_matrix(space, sampler)
    np.testing.assert_allclose(wrong.sum(1), 1.0, atol=1e-11)
    assert float((law @ wrong - law).abs().max()) > 1e-4


@pytest.mark.parametrize("name", UNDIRECTED)
def test_a_sweep_backwards_is_the_reversal_of_a_sweep(name: str) -> None:
    space = space_of(name, 1, 2)

    def kernel(backwards: bool) -> Tensor:
        def step(numbers: Tensor) -> dict[str, Tensor]:
            states, sweep = {b: s[numbers] for b, s in space.states.items()}, torch.ones(len(numbers)).long()
            keys = ChainKeys.of(0, len(numbers))
            return sweeping.sweep(space.model, states, keys, sweep, backwards=backwards).blocks

        before, log_p, after = every_step(len(space), step)
        return matrix(len(space), before, log_p, space.number(after))

    law = space.law()
    np.testing.assert_allclose(law[:, None] * kernel(False), (law[:, None] * kernel(True)).T, atol=1e-14)


class Directed(Delegating):
    """A model whose sweep is one of directed layers."""

    exact_when_clamped = False


def test_models_with_directed_layers_are_tempered_by_exchange_alone() -> None:
    model = Directed(case("rbm").sweeping)
    assert Tempering.applies_to(model)
    assert Tempering().approximate(model, clamped=True)
    assert not Tempering().approximate(model, clamped=False)
    assert not TemperedTransitions.applies_to(model)
    assert TemperedTransitions.applies_to(model.model)
    assert not Tempering().approximate(model.model, clamped=True)


# --- two deep modes ---


def bimodal(units: int = 6, weight: float = 3.2, tilt: float = 0.15) -> RBM:
    """Modes at all ones and all zeros, in either layer; a barrier between them; ones are likelier by exp(6 tilt)."""
    W = torch.full((units, units), weight, dtype=torch.float64)
    bias = torch.full((units,), -weight * units / 2, dtype=torch.float64)
    return RBM(W, bias + tilt, bias)


def mode(visible: Tensor) -> Tensor:
    """0 or 1 by majority; 2 in between."""
    ones = visible.sum(1)
    half = visible.shape[1] / 2
    return torch.where(ones > half, 1, torch.where(ones < half, 0, 2))


def mode_weights(model: RBM) -> np.ndarray:
    space = Space(model, {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)})
    return np.bincount(mode(space.states["visible"]), weights=space.law().numpy(), minlength=3)


def modes_seen(sampler: Sampler, model: HasConditionals, n: int, sweeps: int) -> np.ndarray:
    """Modes of the last states of n chains that all start in the mode of zeros."""
    keys, start = ChainKeys.of(20261124, n), torch.zeros(n, 6, dtype=torch.float64)
    state = sampler.init(model, keys, start, None)
    for _ in range(sweeps):
        state, _ = sampler.step(model, state, keys)
    return np.bincount(mode(state.visible), minlength=3)


def test_gibbs_sampling_stays_in_its_mode() -> None:
    # A chain leaves it within 1000 sweeps with a probability of 2e-7.
    model = bimodal()
    assert mode_weights(model)[1] > 0.6
    assert modes_seen(Gibbs(), model, 5, 1000)[0] == 5


@pytest.mark.parametrize(
    ("sampler", "n", "sweeps"),
    [(Tempering(replicas=10), 500, 250), (TemperedTransitions(rungs=12, lowest=0.0), 500, 60)],
)
def test_tempering_gives_both_modes_their_weight(sampler: Sampler, n: int, sweeps: int) -> None:
    # Power at least 0.999 against modes of equal weight, against weights changed round, and against chains that stay.
    model = bimodal()
    law = mode_weights(model)
    assert law[2] < 1e-4
    share = law[1] / (law[0] + law[1])
    critical = stats.chi2.isf(FALSE_ALARM, 1)
    for wrong in (0.5, 1 - share, 0.0):
        assert stats.ncx2.sf(critical, 1, n * (wrong - share) ** 2 / (share * (1 - share))) > 0.999
    seen = modes_seen(sampler, model, n, sweeps)
    expected = seen[:2].sum() * np.array([1 - share, share])
    assert seen[2] < 10
    assert stats.chi2.sf(((seen[:2] - expected) ** 2 / expected).sum(), 1) > FALSE_ALARM, seen
