"""What every sampler on the shelf must hold, exactly: its transition matrix, its clamps, and its bits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasConditionals
from models.manifest import Manifest
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler
from models.samplers.gibbs import Gibbs
from tests.models import cases, mutants, philox
from tests.models.cases import case, rbm
from tests.models.kernels import Space, clamp_row

SAMPLERS: Mapping[str, Sampler] = {"gibbs": Gibbs()}
PAIRS = [
    (sampler, family)
    for sampler in sorted(catalog.samplers())
    for family in sorted(catalog.families())
    if catalog.samplers()[sampler].applies_to(catalog.families()[family])
]
KNOWN = {0: 1.0, 2: 0.0}


def pair(
    sampler: str, family: str, visible: int, hidden: int, dtype: torch.dtype = torch.float64
) -> tuple[Sampler, cases.Case]:
    of = case(family, visible, hidden, dtype=dtype)
    assert isinstance(of.model, HasConditionals)
    return SAMPLERS[sampler], of


def space_of(of: cases.Case) -> Space:
    assert isinstance(of.model, HasConditionals)
    return Space(of.model, of.values)


def test_every_sampler_has_an_entry_here_and_a_family_to_run_on() -> None:
    assert set(SAMPLERS) == set(catalog.samplers())
    assert {sampler for sampler, _ in PAIRS} == set(SAMPLERS)
    for name, sampler in SAMPLERS.items():
        assert type(sampler) is catalog.samplers()[name]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_is_final_and_immutable(name: str) -> None:
    cls = type(SAMPLERS[name])
    assert not cls.__subclasses__()
    assert all(inspect.isabstract(base) for base in cls.__mro__[1:] if issubclass(base, Sampler))
    with pytest.raises(AttributeError):
        SAMPLERS[name].anything = 1  # type: ignore[attr-defined]


# --- the transition matrix ---


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 2)])
@pytest.mark.parametrize("beta", [None, 1.0, 0.3, 2.0])
@pytest.mark.parametrize("known", [{}, KNOWN])
def test_the_law_of_the_model_is_stationary(
    sampler: str, family: str, size: tuple[int, int], beta: float | None, known: dict[int, float]
) -> None:
    kernel, of = pair(sampler, family, *size)
    space = space_of(of)
    clamp = clamp_row(size[0], {unit: value for unit, value in known.items() if unit < size[0]}) if known else None
    transitions = space.transitions(kernel, beta=beta, clamp=clamp)
    law = space.law(1.0 if beta is None else beta, clamp)
    np.testing.assert_allclose(transitions.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(law @ transitions, law, atol=1e-11)
    # From every state the whole support can be reached, and nothing outside of it.
    allowed = space.allowed(clamp)
    assert bool((transitions[:, allowed] > 0).all())
    assert float(transitions[:, ~allowed].sum()) == 0.0


@pytest.mark.parametrize("defect", [mutants.hidden_bias_ignored, mutants.weights_shrunk_on_the_way_down])
def test_stationarity_fails_for_a_defective_conditional(defect: object) -> None:
    model = rbm(4, 4)
    space = Space(model, {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)})
    law = space.law()
    assert float((law @ space.transitions(Gibbs(), defect(model)) - law).abs().max()) > 1e-4  # type: ignore[operator]


@pytest.mark.parametrize(
    ("mutant", "known"),
    [
        (mutants.StaleHidden(), {}),
        (mutants.ClampedOnlyAtTheStart(), KNOWN),
    ],
)
def test_stationarity_fails_for_a_defective_step(mutant: Sampler, known: dict[int, float]) -> None:
    space = Space(rbm(4, 4), {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)})
    clamp = clamp_row(4, known) if known else None
    law = space.law(clamp=clamp)
    assert float((law @ space.transitions(mutant, clamp=clamp) - law).abs().max()) > 1e-4


def test_stationarity_fails_where_the_temperature_reaches_one_block_only() -> None:
    model = rbm(4, 4)
    space = Space(model, {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)})
    law = space.law(beta=0.3)
    wrong = space.transitions(Gibbs(), mutants.tempered_in_visible_only(model), beta=0.3)
    assert float((law @ wrong - law).abs().max()) > 1e-4


# --- clamps ---


def mixed_clamp(n: int, values: tuple[float, ...], units: int, seed: int) -> Clamp:
    """A row of its own each: from nothing clamped (row 0) to everything (row 1); NaN where nothing is clamped."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, units, generator=generator) < torch.rand(n, 1, generator=generator)
    mask[0], mask[1] = False, True
    value = torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (n, units), generator=generator)]
    return Clamp(mask, torch.where(mask, value, torch.nan))


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_clamped_units_never_move_and_the_others_do(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 21, 9)
    n = 30
    clamp = mixed_clamp(n, of.values["visible"], 21, seed=1)
    keys = ChainKeys.of(8, n)
    state = kernel.init(of.model, keys, None, clamp)
    seen = [state.visible]
    for _ in range(20):
        state, _ = kernel.step(of.model, state, keys, clamp)
        seen.append(state.visible)
    for visible in seen:
        assert torch.equal(visible[clamp.mask], clamp.value[clamp.mask])
        assert bool(torch.isfinite(visible).all())
    moved = (torch.stack(seen) != seen[0]).any(0)
    assert float(moved[~clamp.mask].double().mean()) > 0.75


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_a_row_with_nothing_clamped_is_as_if_there_were_no_clamp(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 7, 5)
    keys, nothing = ChainKeys.of(3, 4), Clamp(torch.zeros(4, 7).bool(), torch.full((4, 7), torch.nan).double())
    free, clamped = kernel.init(of.model, keys, None, None), kernel.init(of.model, keys, None, nothing)
    for _ in range(5):
        free, clamped = kernel.step(of.model, free, keys)[0], kernel.step(of.model, clamped, keys, nothing)[0]
        assert torch.equal(free.visible, clamped.visible)


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_chains_start_where_they_are_told_to_and_clamps_win_over_the_start(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 7, 5)
    keys = ChainKeys.of(3, 6)
    values = torch.tensor(of.values["visible"])
    start = values[torch.randint(len(values), (6, 7), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(kernel.init(of.model, keys, start, None).visible, start.double())
    clamp = mixed_clamp(6, of.values["visible"], 7, seed=2)
    begun = kernel.init(of.model, keys, start, clamp).visible
    assert torch.equal(begun, torch.where(clamp.mask, clamp.value, start.double()))
    assert kernel.init(of.model, keys, start, clamp).sweep.tolist() == [0] * 6


# --- bits ---


def company(of: cases.Case, n: int) -> tuple[ChainKeys, Clamp, Tensor]:
    """Chains of different jobs: seeds, chain numbers, clamps and temperatures of their own."""
    generator = np.random.default_rng(5)
    seeds = torch.from_numpy(generator.choice([0, 1, 17, 2**32 + 1, 2**53 - 1], n))
    chains = torch.from_numpy(generator.integers(0, 2**32, n))
    clamp = mixed_clamp(n, of.values["visible"], 61, seed=3)
    betas = torch.from_numpy(generator.choice([1.0, 0.25, 0.9, 2.0], n))
    return ChainKeys(seeds, chains), clamp, betas


def run(kernel: Sampler, model: EnergyModel, keys: ChainKeys, clamp: Clamp, betas: Tensor, sweeps: int) -> ChainState:
    state = kernel.init(model, keys, None, clamp)
    for _ in range(sweeps):
        state, _ = kernel.step(model, state, keys, clamp, betas)
    return state


def rows(state: ChainState, index: Tensor) -> ChainState:
    return ChainState({b: s[index] for b, s in state.blocks.items()}, state.sweep[index])


def assert_same(one: ChainState, other: ChainState) -> None:
    assert torch.equal(one.sweep, other.sweep)
    assert set(one.blocks) == set(other.blocks)
    for block, state in one.blocks.items():
        assert torch.equal(state, other.blocks[block]), block


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain_is_the_same_alone_in_any_company_and_at_any_position(
    sampler: str, family: str, dtype: torch.dtype
) -> None:
    kernel, of = pair(sampler, family, 61, 37, dtype=dtype)
    n, sweeps = 33, 6
    keys, clamp, betas = company(of, n)
    together = run(kernel, of.model, keys, clamp, betas, sweeps)
    parts = [torch.tensor([i]) for i in range(0, n, 4)]
    parts += [torch.arange(5, 12), torch.from_numpy(np.random.default_rng(0).permutation(n))]
    for part in parts:
        alone = run(kernel, of.model, keys.rows(part), Clamp(clamp.mask[part], clamp.value[part]), betas[part], sweeps)
        assert_same(alone, rows(together, part))


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_a_chain_is_the_same_on_any_number_of_threads(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 61, 37)
    keys, clamp, betas = company(of, 200)
    threads = torch.get_num_threads()
    try:
        expected = run(kernel, of.model, keys, clamp, betas, 5)
        for count in (2, 3, 4):
            torch.set_num_threads(count)
            assert_same(run(kernel, of.model, keys, clamp, betas, 5), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_a_chain_goes_on_as_if_never_interrupted_from_its_blocks_and_its_sweep_number(
    sampler: str, family: str
) -> None:
    kernel, of = pair(sampler, family, 61, 37)
    keys, clamp, betas = company(of, 9)
    expected = run(kernel, of.model, keys, clamp, betas, 10)
    for stop in (0, 1, 4, 9):
        saved = run(kernel, of.model, keys, clamp, betas, stop)
        stored = {b: s.numpy().tobytes() for b, s in saved.blocks.items()}
        blocks = {b: torch.from_numpy(np.frombuffer(raw).reshape(9, -1).copy()) for b, raw in stored.items()}
        state = ChainState(blocks, torch.tensor(saved.sweep.tolist()))
        for _ in range(10 - stop):
            state, _ = kernel.step(of.model, state, keys, clamp, betas)
        assert_same(state, expected)


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_chains_join_and_leave_a_batch_between_sweeps_without_a_trace(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 61, 37)
    keys, clamp, betas = company(of, 12)
    old, new = torch.arange(5), torch.arange(5, 12)

    def take(index: Tensor) -> tuple[ChainKeys, Clamp, Tensor]:
        return keys.rows(index), Clamp(clamp.mask[index], clamp.value[index]), betas[index]

    first = run(kernel, of.model, *take(old), 3)
    second = run(kernel, of.model, *take(new), 0)
    state = ChainState(
        {b: torch.cat((first.blocks[b], second.blocks[b])) for b in first.blocks},
        torch.cat((first.sweep, second.sweep)),
    )
    for _ in range(4):
        state, _ = kernel.step(of.model, state, keys, clamp, betas)
    assert_same(rows(state, old), run(kernel, of.model, *take(old), 7))
    stayed = torch.tensor([6, 11])
    state = rows(state, stayed)
    for _ in range(2):
        state, _ = kernel.step(of.model, state, *take(stayed))
    assert_same(state, run(kernel, of.model, *take(stayed), 6))


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_a_step_changes_nothing_it_was_given_and_repeats_itself(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 7, 5)
    keys = ChainKeys.of(1, 3)
    state = kernel.init(of.model, keys, None, None)
    copy = ChainState({b: s.clone() for b, s in state.blocks.items()}, state.sweep.clone())
    once, info = kernel.step(of.model, state, keys)
    assert_same(state, copy)
    assert_same(kernel.step(of.model, state, keys)[0], once)
    assert once.sweep.tolist() == [1, 1, 1]
    assert info.acceptance_rate is None or bool((info.acceptance_rate >= 0).all())


@pytest.mark.parametrize(("sampler", "family"), PAIRS)
def test_seeds_and_chain_numbers_give_different_chains(sampler: str, family: str) -> None:
    kernel, of = pair(sampler, family, 61, 37)
    keys = ChainKeys(torch.tensor([1, 1, 2, 1 + 2**32]), torch.tensor([0, 1, 0, 0]))
    state = kernel.step(of.model, kernel.init(of.model, keys, None, None), keys)[0]
    assert len({tuple(row.tolist()) for row in state.visible}) == 4


# --- Gibbs ---


def test_a_gibbs_chain_of_an_rbm_equals_its_reference_in_numpy() -> None:
    # Fair coins of sweep 0, then hidden from stream 0 and visible from stream 1 of sweeps 1, 2, ..
    model = rbm(13, 6, seed=8)
    w, b, c = (p.numpy() for p in model._exact)
    seeds, chains, beta = [5, 2**53 - 1], [0, 2**32 - 1], 0.6
    known = np.zeros((2, 13), bool)
    known[1, 4:7] = True

    def draw(logits: np.ndarray, sweep: int, stream: int) -> np.ndarray:
        return philox.bernoulli(logits, philox.bits(seeds, chains, [sweep] * 2, stream, logits.shape[1]))

    v = np.where(known, 1.0, draw(np.zeros((2, 13)), 0, 1))
    keys = ChainKeys(torch.tensor(seeds), torch.tensor(chains))
    clamp = Clamp(torch.from_numpy(known), torch.ones(2, 13).double())
    betas = torch.full((2,), beta, dtype=torch.float64)
    state = Gibbs().init(model, keys, None, clamp)
    assert np.array_equal(state.visible, v)
    for sweep in range(1, 8):
        h = draw((v @ w + c) * beta, sweep, 0)
        v = np.where(known, 1.0, draw((h @ w.T + b) * beta, sweep, 1))
        state, info = Gibbs().step(model, state, keys, clamp, betas)
        assert np.array_equal(state.blocks["hidden"], h)
        assert np.array_equal(state.visible, v)
        assert set(info.conditionals) == {"hidden", "visible"}
        np.testing.assert_allclose(
            info.conditionals["visible"].mean(), 1 / (1 + np.exp(-(h @ w.T + b) * beta)), rtol=1e-12
        )


class Bare(EnergyModel):
    """A family that has an energy and nothing else."""

    name: ClassVar[str] = "bare"
    domains: ClassVar[frozenset[str]] = frozenset({"real"})

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Bare:
        return cls()

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": torch.ones(1)}

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (x**2).sum(1)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_refuses_a_family_without_what_it_needs(name: str) -> None:
    sampler = SAMPLERS[name]
    if sampler.applies_to(Bare):
        pytest.skip("an energy is all that this sampler needs")
    keys = ChainKeys.of(0, 1)
    with pytest.raises(CapabilityError, match="bare"):
        sampler.init(Bare(), keys, None, None)
    state = ChainState({"visible": torch.zeros(1, 2, dtype=torch.float64)}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(CapabilityError, match="bare") as refused:
        sampler.step(Bare(), state, keys)
    assert refused.value.available == ("energy", "log-density", "anomaly")
