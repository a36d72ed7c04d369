"""What every sampler on the shelf must hold of clamps and bits; and the transition matrix of Gibbs sampling, exactly.

The other samplers' transitions have files of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

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
from models.samplers.annealed_langevin import AnnealedLangevin
from models.samplers.generator import FromGenerator
from models.samplers.gibbs import Gibbs
from models.samplers.gibbs_langevin import GibbsLangevin
from models.samplers.gibbs_with_gradients import GibbsWithGradients
from models.samplers.hmc import HMC
from models.samplers.langevin import Langevin
from models.samplers.latent_hmc import LatentHMC
from models.samplers.latent_langevin import LatentLangevin
from models.samplers.mala import MALA
from models.samplers.metropolis import Metropolis
from models.samplers.tempered_transitions import TemperedTransitions
from models.samplers.tempering import Tempering
from tests.models import cases, mutants, philox
from tests.models.cases import case, dbm, grbm, having, names, rbm
from tests.models.kernels import Space, clamp_row

SAMPLERS: Mapping[str, Sampler] = {
    "annealed_langevin": AnnealedLangevin(steps=2),
    "generator": FromGenerator(steps=2, step_size=0.1),
    "gibbs": Gibbs(),
    "gibbs_langevin": GibbsLangevin(),
    "gibbs_with_gradients": GibbsWithGradients(),
    "hmc": HMC(leapfrog_steps=3, adaptation=2),
    "langevin": Langevin(),
    "latent_hmc": LatentHMC(leapfrog_steps=3, adaptation=2),
    "latent_langevin": LatentLangevin(adaptation=2),
    "mala": MALA(),
    "metropolis": Metropolis(),
    "tempered_transitions": TemperedTransitions(rungs=1, lowest=0.8),
    "tempering": Tempering(replicas=2),
}
EVERY_KIND = {
    *("bm chain", "bm_hidden coupled spin", "rbm labelled", "grbm", "dbm real labelled", "dbn labelled"),
    *("mlp_energy", "resnet_energy", "jem", "score_energy", "score_network unit", "adversarial unit"),
    *("tilted", "latent_discriminator"),
}
"""Spins, labels, real units, units of one block in several parts, layers, directed layers; networks, within walls, with
classes that are no units, with scales of noise, with a generator, over generators."""
PAIRS = [
    (sampler, name)
    for sampler in sorted(set(SAMPLERS) & set(catalog.samplers()))
    for name in sorted(cases.FACTORIES)
    if (sampler == "gibbs" or name in EVERY_KIND) and catalog.samplers()[sampler].applies_to(case(name).model)
]
HOLDING = [(sampler, name) for sampler, name in PAIRS if "complete" in case(name).model.capabilities()]
"""Those whose chains can hold visibles, and start from them."""
KNOWN = {0: 1.0, 2: 0.0}
BINARY = {"visible": cases.BINARY, "hidden": cases.BINARY}


def size(sampler: str, name: str) -> tuple[int, int]:
    """Units enough for sums to be split among lanes and threads, where a sweep is a few products of matrices."""
    return (61, 37) if sampler == "gibbs" and len(case(name, 9, 9).sweeping.parts) < 9 else (9, 5)


def pair(
    sampler: str, name: str, visible: int, hidden: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Sampler, cases.Case]:
    return SAMPLERS[sampler], case(name, visible, hidden, dtype=dtype, scale=scale)


def test_every_sampler_has_an_entry_here_and_a_model_to_run_on() -> None:
    assert set(SAMPLERS) == set(catalog.samplers())
    assert {sampler for sampler, _ in PAIRS} == set(SAMPLERS)
    assert {name for sampler, name in PAIRS if sampler == "gibbs"} == set(having(HasConditionals))
    for name, sampler in SAMPLERS.items():
        assert type(sampler) is catalog.samplers()[name]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_is_final_and_immutable(name: str) -> None:
    cls = type(SAMPLERS[name])
    assert not cls.__subclasses__()
    assert all(inspect.isabstract(base) for base in cls.__mro__[1:] if issubclass(base, Sampler))
    with pytest.raises(AttributeError):
        SAMPLERS[name].anything = 1  # type: ignore[attr-defined]


# --- the transition matrix of Gibbs sampling ---


def clamp_of(of: cases.Case, visibles: bool, label: bool) -> Clamp | None:
    """Two visibles at the ends of their values, the second class, both or neither."""
    values = of.values["visible"]
    assert isinstance(values, tuple)
    known = {unit: values[int(value)] for unit, value in KNOWN.items() if unit < of.visibles} if visibles else {}
    return clamp_row(of.visibles, known, 1 if label else None) if visibles or label else None


HELD = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("name", "visibles", "label"),
    [
        (name, visibles, label)
        for name in names(lambda of: of.enumerable)
        for visibles, label in HELD
        if not label or "label" in case(name).values
    ],
)
@pytest.mark.parametrize("size", [(3, 3), (4, 2), (1, 2)])
@pytest.mark.parametrize("beta", [None, 1.0, 0.3, 2.0])
def test_the_law_of_the_model_is_stationary(
    name: str, visibles: bool, label: bool, size: tuple[int, int], beta: float | None
) -> None:
    of = case(name, *size)
    space, clamp = Space(of.sweeping, of.values), clamp_of(of, visibles, label)
    transitions = space.transitions(Gibbs(), beta=beta, clamp=clamp)
    np.testing.assert_allclose(transitions.sum(1), 1.0, atol=1e-12)
    allowed = space.allowed(clamp)
    assert 0 < int(allowed.sum()) <= len(space)
    assert (int(allowed.sum()) < len(space)) == (clamp is not None)
    # From every state the whole support can be reached, and nothing outside of it.
    reached = transitions if not of.directed else torch.linalg.matrix_power(transitions, 2)
    assert bool((reached[:, allowed] > 0).all())
    assert float(transitions[:, ~allowed].sum()) == 0.0
    law = space.law(1.0 if beta is None else beta, clamp)
    if Gibbs().approximate(of.model, clamped=visibles):
        assert float((law @ transitions - law).abs().max()) > 1e-6
    else:
        np.testing.assert_allclose(law @ transitions, law, atol=1e-11)


@pytest.mark.parametrize("name", names(lambda of: of.enumerable))
@pytest.mark.parametrize("beta", [None, 0.3])
def test_expected_visibles_have_the_mean_of_the_visibles_drawn(name: str, beta: float | None) -> None:
    of = case(name, 3, 2)
    space = Space(of.sweeping, of.values)
    before, log_prob, after, info = space.steps(Gibbs(), beta=beta)
    expected = info.expected_visible()
    assert expected.shape == after.visible.shape
    assert bool((expected != after.visible).all())  # of every unit the mean, and not the state
    surplus = log_prob.exp()[:, None] * (expected - after.visible)
    mean = torch.zeros(len(space), of.visibles, dtype=torch.float64).index_add_(0, before, surplus)
    np.testing.assert_allclose(mean, 0.0, atol=1e-12)


@pytest.mark.parametrize("name", having(HasConditionals))
def test_expected_visibles_are_those_of_the_law_that_they_were_drawn_from_last(name: str) -> None:
    # The part of the visibles that a sweep draws last still sees what it was drawn from, clamped or not.
    of = case(name, 5, 3)
    keys, clamp = ChainKeys.of(4, 12), mixed_clamp(12, of, seed=4)
    betas = torch.linspace(0.3, 1.5, 12, dtype=torch.float64)
    state = Gibbs().init(of.model, keys, None, clamp)
    for held in (None, clamp):
        after, info = Gibbs().step(of.model, state, keys, held, betas)
        last = [part for part in of.sweeping.parts if part.block == "visible"][-1]
        law = of.sweeping.conditional(last.name, after.blocks, betas)
        units = slice(None) if last.units is None else last.units
        assert torch.equal(info.expected_visible()[:, units], law.mean())


DEFECTS: Mapping[str, tuple[Any, Callable[[Any], HasConditionals]]] = {
    "hidden bias ignored": (rbm(4, 4), mutants.hidden_bias_ignored),
    "weights shrunk to 0.9 on the way down": (rbm(4, 4), mutants.weights_shrunk_on_the_way_down),
    "labels unseen by the hidden units": (rbm(3, 3, classes=3), mutants.labels_unseen_by_hidden),
    "bias of the labels ignored": (rbm(3, 3, classes=3), mutants.label_bias_ignored),
    "layer above ignored": (dbm([3, 2, 2]), mutants.layer_above_ignored),
    "layer below ignored": (dbm([3, 2, 2]), mutants.layer_below_ignored),
    "input doubled in the top layer": (dbm([3, 2, 2]), mutants.input_doubled_in_the_top_layer),
    "input doubled in the third layer": (dbm([3, 2, 1, 1]), mutants.input_doubled_in_the_top_layer),
}


def space_of(model: HasConditionals) -> Space:
    return Space(model, {block: cases.ONE_HOT if block == "label" else cases.BINARY for block in model.blocks})


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_stationarity_fails_for_a_defective_conditional(defect: str) -> None:
    model, spoil = DEFECTS[defect]
    space = space_of(model)
    law = space.law()
    np.testing.assert_allclose(law @ space.transitions(Gibbs()), law, atol=1e-11)
    assert float((law @ space.transitions(Gibbs(), spoil(model)) - law).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("mutant", "known", "label"),
    [
        (mutants.StaleInputs(), {}, None),
        (mutants.LabelsFromStaleHidden(), {}, None),
        (mutants.ClampedOnlyAtTheStart(), KNOWN, None),
        (mutants.ClampedOnlyAtTheStart(), {}, 1),
        (mutants.LabelClampIgnored(), KNOWN, 1),
        (mutants.LabelClampIgnored(), {}, 0),
    ],
)
def test_stationarity_fails_for_a_defective_step(mutant: Sampler, known: dict[int, float], label: int | None) -> None:
    space = space_of(rbm(3, 3, classes=3))
    clamp = clamp_row(3, known, label) if known or label is not None else None
    law = space.law(clamp=clamp)
    np.testing.assert_allclose(law @ space.transitions(Gibbs(), clamp=clamp), law, atol=1e-11)
    assert float((law @ space.transitions(mutant, clamp=clamp) - law).abs().max()) > 1e-4


@pytest.mark.parametrize("model", [rbm(4, 4), rbm(3, 3, classes=3), dbm([3, 2, 2])])
def test_stationarity_fails_where_the_temperature_reaches_one_block_only(model: HasConditionals) -> None:
    space = space_of(model)
    law = space.law(beta=0.3)
    wrong = space.transitions(Gibbs(), mutants.tempered_in_visible_only(model), beta=0.3)
    assert float((law @ wrong - law).abs().max()) > 1e-4


# --- clamps ---


def mixed_clamp(n: int, of: cases.Case, seed: int) -> Clamp:
    """A row of its own each: from nothing held (row 0) to everything (row 1); NaN where nothing is held."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, of.visibles, generator=generator) < torch.rand(n, 1, generator=generator)
    mask[0], mask[1] = False, True
    value = torch.where(mask, cases.some(of.values["visible"], n, of.visibles, generator), torch.nan)
    if "label" not in of.values:
        return Clamp(mask, value)
    label = torch.randint(-1, of.sweeping.block_units("label"), (n,), generator=generator)
    label[0], label[1] = -1, 0
    return Clamp(mask, value, label)


def assert_held(clamp: Clamp, blocks: Mapping[str, Tensor]) -> None:
    assert torch.equal(blocks["visible"][clamp.mask], clamp.value[clamp.mask])
    assert bool(torch.isfinite(blocks["visible"]).all())
    if clamp.label is not None and "label" in blocks:  # some samplers sum labels out
        given = clamp.label >= 0
        assert torch.equal(blocks["label"][given].argmax(1), clamp.label[given])
        assert torch.equal(blocks["label"].sum(1), torch.ones(len(given)).double())


@pytest.mark.parametrize(("sampler", "name"), HOLDING)
def test_clamped_units_never_move_and_the_others_do(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 12, 6, scale=0.3)
    n = 30
    clamp = mixed_clamp(n, of, seed=1)
    keys = ChainKeys.of(8, n)
    state = kernel.init(of.model, keys, None, clamp)
    assert_held(clamp, state.blocks)
    seen = {block: [states] for block, states in state.blocks.items()}
    for _ in range(20):
        state, _ = kernel.step(of.model, state, keys, clamp)
        assert_held(clamp, state.blocks)
        for block, states in state.blocks.items():
            seen[block].append(states)
    moved = {block: (torch.stack(states) != states[0]).any(0) for block, states in seen.items()}
    assert float(moved["visible"][~clamp.mask].double().mean()) > 0.75
    if clamp.label is not None and "label" in moved:
        assert float(moved["label"][clamp.label < 0].any(1).double().mean()) > 0.75
        assert not bool(moved["label"][clamp.label >= 0].any())


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_a_row_with_nothing_clamped_is_as_if_there_were_no_clamp(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 7, 5)
    keys = ChainKeys.of(3, 4)
    label = torch.full((4,), -1) if "label" in of.values else None
    for nothing in (
        Clamp(torch.zeros(4, 7).bool(), torch.full((4, 7), torch.nan).double()),
        Clamp(torch.zeros(4, 7).bool(), torch.full((4, 7), torch.nan).double(), label),
    ):
        free, clamped = kernel.init(of.model, keys, None, None), kernel.init(of.model, keys, None, nothing)
        for _ in range(5):
            free, clamped = kernel.step(of.model, free, keys)[0], kernel.step(of.model, clamped, keys, nothing)[0]
            assert_same(free, clamped)


@pytest.mark.parametrize(("sampler", "name"), sorted(set(PAIRS) - set(HOLDING)))
def test_chains_that_hold_no_visibles_refuse_clamps_and_starts(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 7, 5)
    keys, clamp = ChainKeys.of(3, 6), mixed_clamp(6, of, seed=2)
    with pytest.raises(CapabilityError, match="cannot hold"):
        kernel.init(of.model, keys, None, clamp)
    with pytest.raises(CapabilityError, match="cannot hold"):
        kernel.step(of.model, kernel.init(of.model, keys, None, None), keys, clamp)
    with pytest.raises(CapabilityError, match="start from noise alone") as refused:
        kernel.init(of.model, keys, cases.some_visibles(of, 6), None)
    assert refused.value.available == of.model.capabilities()


@pytest.mark.parametrize(("sampler", "name"), HOLDING)
def test_chains_start_where_they_are_told_to_and_clamps_win_over_the_start(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 7, 5)
    keys = ChainKeys.of(3, 6)
    start = cases.some_visibles(of, 6).float()
    assert torch.equal(kernel.init(of.model, keys, start, None).visible, start.double())
    clamp = mixed_clamp(6, of, seed=2)
    begun = kernel.init(of.model, keys, start, clamp)
    assert torch.equal(begun.visible, torch.where(clamp.mask, clamp.value, start.double()))
    assert_held(clamp, begun.blocks)
    assert begun.sweep.tolist() == [0] * 6


# --- bits ---


def company(of: cases.Case, n: int) -> tuple[ChainKeys, Clamp, Tensor]:
    """Chains of different jobs: seeds, chain numbers, clamps and temperatures of their own."""
    generator = np.random.default_rng(5)
    seeds = torch.from_numpy(generator.choice([0, 1, 17, 2**32 + 1, 2**53 - 1], n))
    chains = torch.from_numpy(generator.integers(0, 2**32, n))
    betas = torch.from_numpy(generator.choice([1.0, 0.25, 0.9, 2.0], n))
    clamp = mixed_clamp(n, of, seed=3)
    if "complete" not in of.model.capabilities():
        clamp = Clamp(torch.zeros_like(clamp.mask), clamp.value)
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


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain_is_the_same_alone_in_any_company_and_at_any_position(
    sampler: str, name: str, dtype: torch.dtype
) -> None:
    kernel, of = pair(sampler, name, *size(sampler, name), dtype=dtype)
    n, sweeps = 17, 3
    keys, clamp, betas = company(of, n)
    together = run(kernel, of.model, keys, clamp, betas, sweeps)
    parts = [
        torch.tensor([0]),
        torch.tensor([9]),
        torch.arange(5, 12),
        torch.from_numpy(np.random.default_rng(0).permutation(n)),
    ]
    for part in parts:
        alone = run(kernel, of.model, keys.rows(part), clamp.rows(part), betas[part], sweeps)
        assert_same(alone, rows(together, part))


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_a_chain_is_the_same_on_any_number_of_threads(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, *size(sampler, name))
    keys, clamp, betas = company(of, 120)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(kernel, of.model, keys, clamp, betas, 2)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same(run(kernel, of.model, keys, clamp, betas, 2), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_a_chain_goes_on_as_if_never_interrupted_from_its_blocks_and_its_sweep_number(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 9, 5)
    keys, clamp, betas = company(of, 9)
    expected = run(kernel, of.model, keys, clamp, betas, 4)
    for stop in (0, 3):
        saved = run(kernel, of.model, keys, clamp, betas, stop)
        stored = {b: s.numpy().tobytes() for b, s in saved.blocks.items()}
        blocks = {b: torch.from_numpy(np.frombuffer(raw).reshape(9, -1).copy()) for b, raw in stored.items()}
        state = ChainState(blocks, torch.tensor(saved.sweep.tolist()))
        for _ in range(4 - stop):
            state, _ = kernel.step(of.model, state, keys, clamp, betas)
        assert_same(state, expected)


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_chains_join_and_leave_a_batch_between_sweeps_without_a_trace(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 9, 5)
    keys, clamp, betas = company(of, 12)
    old, new = torch.arange(5), torch.arange(5, 12)

    def take(index: Tensor) -> tuple[ChainKeys, Clamp, Tensor]:
        return keys.rows(index), clamp.rows(index), betas[index]

    first = run(kernel, of.model, *take(old), 2)
    second = run(kernel, of.model, *take(new), 0)
    state = ChainState(
        {b: torch.cat((first.blocks[b], second.blocks[b])) for b in first.blocks},
        torch.cat((first.sweep, second.sweep)),
    )
    for _ in range(3):
        state, _ = kernel.step(of.model, state, keys, clamp, betas)
    assert_same(rows(state, old), run(kernel, of.model, *take(old), 5))
    stayed = torch.tensor([6, 11])
    state = rows(state, stayed)
    for _ in range(2):
        state, _ = kernel.step(of.model, state, *take(stayed))
    assert_same(state, run(kernel, of.model, *take(stayed), 5))


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_a_step_changes_nothing_it_was_given_and_repeats_itself(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 7, 5)
    keys = ChainKeys.of(1, 3)
    state = kernel.init(of.model, keys, None, None)
    copy = ChainState({b: s.clone() for b, s in state.blocks.items()}, state.sweep.clone())
    once, info = kernel.step(of.model, state, keys)
    assert_same(state, copy)
    assert_same(kernel.step(of.model, state, keys)[0], once)
    assert once.sweep.tolist() == [1, 1, 1]
    assert info.expected_visible().shape == (3, 7)
    assert info.acceptance_rate is None or bool(((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1)).all())


@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_seeds_and_chain_numbers_give_different_chains(sampler: str, name: str) -> None:
    kernel, of = pair(sampler, name, 40, 3, scale=0.2)
    keys = ChainKeys(torch.tensor([1, 1, 2, 1 + 2**32]), torch.tensor([0, 1, 0, 0]))
    state = kernel.step(of.model, kernel.init(of.model, keys, None, None), keys)[0]
    assert len({tuple(row.tolist()) for row in state.visible}) == 4


# --- Gibbs ---

SEEDS, CHAINS = [5, 2**53 - 1], [0, 2**32 - 1]


def words(sweep: int, stream: int, units: int) -> np.ndarray:
    return philox.bits(SEEDS, CHAINS, [sweep] * 2, stream, units)


def coins(logits: np.ndarray, sweep: int, stream: int) -> np.ndarray:
    return philox.bernoulli(logits, words(sweep, stream, logits.shape[1]))


def test_a_gibbs_chain_of_a_labelled_rbm_equals_its_reference_in_numpy() -> None:
    # Fair coins and dice of sweep 0; then hidden from stream 0, visible from 1, label from 2 of sweeps 1, 2, ..
    model, beta = rbm(13, 6, seed=8, classes=3), 0.6
    assert model.machine._label_matrix is not None
    w, u = model.machine._matrices[0].value.numpy(), model.machine._label_matrix.value.numpy()
    assert model.d is not None
    b, c, d = model.b.numpy(), model.c.numpy(), model.d.numpy()
    known = np.zeros((2, 13), bool)
    known[1, 4:7] = True
    label = np.array([-1, 2])

    def dice(logits: np.ndarray, sweep: int) -> np.ndarray:
        drawn = philox.categorical(logits, words(sweep, 2, 3))
        return np.where(label[:, None] >= 0, np.eye(3)[label], drawn)

    v, y = np.where(known, 1.0, coins(np.zeros((2, 13)), 0, 1)), dice(np.zeros((2, 3)), 0)
    keys = ChainKeys(torch.tensor(SEEDS), torch.tensor(CHAINS))
    clamp = Clamp(torch.from_numpy(known), torch.ones(2, 13).double(), torch.from_numpy(label))
    betas = torch.full((2,), beta, dtype=torch.float64)
    state = Gibbs().init(model, keys, None, clamp)
    assert np.array_equal(state.visible, v)
    assert np.array_equal(state.blocks["label"], y)
    for sweep in range(1, 8):
        h = coins((v @ w + y @ u + c) * beta, sweep, 0)
        v = np.where(known, 1.0, coins((h @ w.T + b) * beta, sweep, 1))
        y = dice((h @ u.T + d) * beta, sweep)
        state, info = Gibbs().step(model, state, keys, clamp, betas)
        assert np.array_equal(state.blocks["hidden"], h)
        assert np.array_equal(state.visible, v)
        assert np.array_equal(state.blocks["label"], y)
        np.testing.assert_allclose(info.expected_visible(), 1 / (1 + np.exp(-(h @ w.T + b) * beta)), rtol=1e-12)


def test_a_gibbs_chain_of_a_grbm_equals_its_reference_in_numpy() -> None:
    # N(b, s^2) of sweep 0; then hidden from stream 0 and visible from stream 1.
    model, beta = grbm(7, 6, seed=8), 0.6
    w, s = model.W.numpy(), np.exp(model.log_sigma.numpy())
    b, c = model.b.numpy(), model.c.numpy()

    def normals(sweep: int) -> np.ndarray:
        return philox.normal_quantile((words(sweep, 1, 7) + 0.5) / 2.0**32)

    v = b + s * normals(0)
    keys = ChainKeys(torch.tensor(SEEDS), torch.tensor(CHAINS))
    betas = torch.full((2,), beta, dtype=torch.float64)
    state = Gibbs().init(model, keys, None, None)
    np.testing.assert_allclose(state.visible, v, rtol=1e-13)
    for sweep in range(1, 8):
        h = coins((v / s @ w + c) * beta, sweep, 0)
        mean = b + s * (h @ w.T)
        v = mean + s / np.sqrt(beta) * normals(sweep)
        state, info = Gibbs().step(model, state, keys, None, betas)
        assert np.array_equal(state.blocks["hidden"], h)
        np.testing.assert_allclose(state.visible, v, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(info.expected_visible(), mean, rtol=1e-11, atol=1e-11)


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
    if sampler.applies_to(Bare()):
        pytest.skip("an energy is all that this sampler needs")
    keys = ChainKeys.of(0, 1)
    with pytest.raises(CapabilityError, match="bare"):
        sampler.init(Bare(), keys, None, None)
    state = ChainState({"visible": torch.zeros(1, 2, dtype=torch.float64)}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(CapabilityError, match="bare") as refused:
        sampler.step(Bare(), state, keys)
    assert refused.value.available == ("energy", "log-density", "anomaly")
