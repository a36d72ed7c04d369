"""What every family on the shelf must hold, by enumeration; `cases.FACTORIES` has small models of each.

All of it is told by the joint energy; `test_layered` and the families' own files tell that the joint energy is right.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from models import catalog
from models.conditionals import Conditional
from models.errors import CapabilityError
from models.family import (
    EnergyModel,
    HasAnnealing,
    HasClasses,
    HasConditionals,
    HasEnumeration,
    HasFeatures,
    HasScore,
    HasStates,
    IsComposed,
    Part,
)
from models.latent_family import LatentModel
from models.rng import ChainKeys
from tests.models import cases
from tests.models.cases import ONE_HOT, Case, case, having, joint_states, names, product, states
from tests.models.kernels import every_step, matrix, number

FAMILIES = sorted(name for name, family in catalog.families().items() if not issubclass(family, IsComposed))
"""Those that are made of others have a file of their own, `test_composition`."""
SIZES = [(4, 3), (3, 4), (1, 2), (2, 1), (6, 2)]
EXACT = names(lambda of: isinstance(of.model, HasConditionals) and of.model.energy_kind == "exact")


def enumerable(*capabilities: type) -> list[str]:
    return [name for name in having(*capabilities) if case(name).enumerable]


def rounding(of: Case, scale: float = 1.0) -> float:
    """How far energies of the parameters as sampled can lie from those of the parameters."""
    units = sum(of.sweeping.block_units(block) for block in of.sweeping.blocks)
    real = 1e-6 * scale if None in of.values.values() else 0.0
    return (of.sweeping.rounding_error + real) * (units + 1) ** 2 + 1e-12


def starting_points(of: Case) -> dict[str, Tensor]:
    """Every joint state, or some where there are real units."""
    return joint_states(of.sweeping, of.values) if of.enumerable else cases.some_states(of, 60, seed=2)


def outcomes(of: Case, part: Part) -> Tensor:
    """Every state of a part, or some where its units are real."""
    units = of.sweeping.block_units(part.block) if part.units is None else len(part.units)
    values = of.values[part.block]
    if values is None:
        return cases.some(values, 7, units, torch.Generator().manual_seed(4))
    return states(values, units)


def with_part(blocks: Mapping[str, Tensor], part: Part, outcome: Tensor) -> dict[str, Tensor]:
    """The states with the part's units at an outcome."""
    block = blocks[part.block].clone()
    block[:, slice(None) if part.units is None else part.units] = outcome
    return {**blocks, part.block: block}


def swept(of: Case) -> list[Part]:
    return [part for part in of.sweeping.parts if not part.when_clamped]


def given_visibles(of: Case, x: Tensor) -> dict[str, Tensor]:
    """Every state of all other blocks beside one visible state."""
    others = {b: states(of.values[b], of.sweeping.block_units(b)) for b in of.sweeping.blocks if b != "visible"}
    if not others:
        return {"visible": x[None]}
    found = product(others)
    return {"visible": x.expand(len(next(iter(found.values()))), -1), **found}


def visibles(of: Case) -> Tensor:
    """Every visible state, or some where they are real."""
    if of.values["visible"] is None:
        return cases.some_visibles(of, 12, seed=1)
    return states(of.values["visible"], of.visibles)


def test_every_family_has_a_case_and_every_case_a_family() -> None:
    assert {case(name).model.name for name in cases.FACTORIES} == set(FAMILIES)
    assert {name.split()[0] for name in cases.FACTORIES} == set(FAMILIES)
    for name in cases.FACTORIES:
        assert case(name).manifest.family == case(name).model.name == name.split()[0]


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
def test_a_family_is_final_and_immutable(name: str) -> None:
    model = case(name).model
    cls = type(model)
    assert cls is catalog.families()[model.name]
    assert not cls.__subclasses__()
    assert all(inspect.isabstract(base) or base is object for base in cls.__mro__[1:] if issubclass(base, EnergyModel))
    for attribute in (*model.tensors(), "anything"):
        with pytest.raises(AttributeError):
            setattr(model, attribute, torch.zeros(1))


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
def test_capabilities_are_those_of_the_base_classes_in_their_order(name: str) -> None:
    operations = {
        EnergyModel: ("energy", "log-density", "anomaly"),
        HasScore: ("score",),
        HasFeatures: ("features",),
        HasClasses: ("classify",),
        HasStates: ("sample", "complete"),
        HasEnumeration: ("log_partition",),
        HasAnnealing: ("log_partition",),
    }
    model = case(name).model
    bases = [EnergyModel, *(base for base in type(model).__mro__ if base in operations)]
    expected = dict.fromkeys(itertools.chain.from_iterable(operations[b] for b in bases))
    if isinstance(model, HasClasses) and not model.class_count:
        del expected["classify"]
    if model.name == "score_network":
        del expected["energy"]
    if isinstance(model, LatentModel):
        del expected["complete"]
    assert model.capabilities() == tuple(expected)


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energies_have_the_parameters_precision_and_a_row_each(name: str, dtype: torch.dtype) -> None:
    of = case(name, dtype=dtype)
    x = cases.some_visibles(of, 20).to(dtype)
    energies = of.model.energy(x)
    assert of.model.dtype == energies.dtype == dtype
    assert energies.shape == (len(x),)
    assert of.model.energy(x[:0]).shape == (0,)
    np.testing.assert_allclose(energies.double(), case(name).model.energy(x.double()), rtol=1e-5, atol=1e-4)
    value, stderr = of.model.energy_with_error(x)
    assert (stderr is not None) == (of.model.energy_kind == "estimate")
    assert stderr is not None or torch.equal(value, energies)


# --- conditionals ---


@pytest.mark.parametrize("name", having(HasConditionals))
def test_the_parts_of_a_sweep_are_the_units_once_each(name: str) -> None:
    of = case(name)
    model = of.sweeping
    assert len({part.name for part in model.parts}) == len(model.parts)
    assert "visible" in model.blocks
    assert model.block_units("visible") == of.visibles
    assert set(of.values) == set(model.blocks)
    for block in model.blocks:
        drawn = [
            torch.arange(model.block_units(block)) if part.units is None else part.units
            for part in swept(of)
            if part.block == block
        ]
        assert sorted(torch.cat(drawn).tolist()) == list(range(model.block_units(block)))


def laws(of: Case, part: Part, at: Mapping[str, Tensor], beta: float | None) -> tuple[Conditional, Tensor]:
    """The part's conditional, and the log-probabilities of its `outcomes`, (outcomes, states)."""
    betas = None if beta is None else torch.full((len(at["visible"]),), beta, dtype=torch.float64)
    conditional = of.sweeping.conditional(part.name, at, betas)
    shape = conditional.mean().shape
    return conditional, torch.stack([conditional.log_prob(o.expand(shape)) for o in outcomes(of, part)])


@pytest.mark.parametrize("name", [name for name in having(HasConditionals) if not case(name).directed])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", [None, 0.7])
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_log_odds_of_every_part_are_differences_of_the_joint_energy(
    name: str, size: tuple[int, int], beta: float | None, scale: float
) -> None:
    # log p(part | rest) + beta E(part, rest) must not depend on the part's state, and p(. | rest) must sum to one.
    of = case(name, *size, scale=scale)
    at = starting_points(of)
    for part in of.sweeping.parts:
        _, log_p = laws(of, part, at, beta)
        joint = torch.stack([of.sweeping.joint_energy(with_part(at, part, o)) for o in outcomes(of, part)])
        constant = log_p + (1.0 if beta is None else beta) * joint
        error = rounding(of, scale) + 1e-15 * float(joint.abs().max())
        assert float((constant - constant[0]).abs().max()) < error, part.name
        if of.values[part.block] is not None:
            assert float(log_p.logsumexp(0).abs().max()) < 1e-12, part.name


@pytest.mark.parametrize("name", having(HasConditionals))
def test_a_conditional_mean_is_the_expectation_and_ignores_the_parts_own_state(name: str) -> None:
    of = case(name)
    at = starting_points(of)
    for part in of.sweeping.parts:
        conditional, log_p = laws(of, part, at, None)
        if of.values[part.block] is not None:
            np.testing.assert_allclose(conditional.mean(), log_p.exp().T @ outcomes(of, part), atol=1e-12)
        for outcome in outcomes(of, part)[[0, -1]]:
            other = of.sweeping.conditional(part.name, with_part(at, part, outcome))
            assert torch.equal(other.mean(), conditional.mean())


@pytest.mark.parametrize("name", having(HasConditionals))
def test_beta_is_each_chains_own(name: str) -> None:
    of = case(name)
    at = starting_points(of)
    n = len(at["visible"])
    betas = torch.linspace(0.1, 2.0, n, dtype=torch.float64)
    for part in of.sweeping.parts:
        together = of.sweeping.conditional(part.name, at, betas)
        for i in (0, 5, n - 1):
            row = {b: s[i : i + 1] for b, s in at.items()}
            alone = of.sweeping.conditional(part.name, row, betas[i : i + 1])
            assert torch.equal(alone.mean(), together.mean()[i : i + 1])
            for outcome in outcomes(of, part)[[0, -1]]:
                wide = outcome.expand_as(together.mean())
                np.testing.assert_allclose(alone.log_prob(wide[:1])[0], together.log_prob(wide)[i], rtol=1e-13)
        at_one = of.sweeping.conditional(part.name, at, torch.ones_like(betas)).mean()
        assert torch.equal(at_one, of.sweeping.conditional(part.name, at).mean())


@pytest.mark.parametrize("name", having(HasConditionals))
def test_all_energy_is_thermal_but_in_directed_models(name: str) -> None:
    of = case(name)
    at = starting_points(of)
    thermal, joint = of.sweeping.thermal_energy(at), of.sweeping.joint_energy(at)
    assert torch.equal(thermal, joint) != of.directed


@pytest.mark.parametrize("name", having(HasConditionals))
def test_noise_prefers_no_state(name: str) -> None:
    of = case(name)
    for block in of.sweeping.blocks:
        values = of.values[block]
        if values is None:
            continue
        everything = states(values, of.sweeping.block_units(block))
        log_p = of.sweeping.noise(block, len(everything)).log_prob(everything)
        np.testing.assert_allclose(log_p, -np.log(len(everything)), atol=1e-12)


@pytest.mark.parametrize("name", having(HasConditionals))
def test_the_bits_of_conditionals_and_joint_energies_do_not_depend_on_batch_position_or_threads(name: str) -> None:
    of = case(name, 61, 37, seed=3, dtype=torch.float32)
    model = of.sweeping
    batch = cases.some_states(of, 67)
    parts = (model.parts[0], model.parts[len(model.parts) // 2], model.parts[-1])

    def told(blocks: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            *(model.conditional(part.name, blocks).mean() for part in parts),
            model.joint_energy(blocks),
            model.thermal_energy(blocks),
        ]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = told(batch)
        torch.set_num_threads(2)
        for rows in (slice(0, 67), slice(0, 1), slice(5, 6), slice(1, 8), slice(30, 67)):
            for found, expected in zip(told({b: s[rows] for b, s in batch.items()}), together, strict=True):
                assert torch.equal(found, expected[rows])
    finally:
        torch.set_num_threads(threads)


# --- what is summed out ---


@pytest.mark.parametrize("name", having(HasConditionals))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_the_energy_sums_all_other_blocks_out(name: str, size: tuple[int, int], scale: float) -> None:
    of = case(name, *size, scale=scale)
    if of.model.energy_kind == "estimate":
        pytest.skip("an estimate: the family's own tests say how far it lies")
    x = visibles(of)
    exact = torch.stack([-torch.logsumexp(-of.sweeping.joint_energy(given_visibles(of, row)), 0) for row in x])
    error = rounding(of, scale) + 1e-14 * float(exact.abs().max())
    if of.model.energy_kind == "lower_bound":  # on -E: the energy is not below the exact one
        assert bool((of.model.energy(x) > exact - error).all())
    else:
        np.testing.assert_allclose(of.model.energy(x), exact, atol=error, rtol=0)


@pytest.mark.parametrize("name", [name for name in having(HasScore) if case(name).model.energy_kind != "estimate"])
def test_the_score_is_the_negative_gradient_of_the_energy(name: str) -> None:
    of = case(name)
    model = of.model
    assert isinstance(model, HasScore)
    values = of.values["visible"]
    x = cases.normal((9, 4), seed=5)
    if isinstance(values, tuple):
        x = min(values) + (max(values) - min(values)) * x.sigmoid()
    assert model.score_is_relaxed == (of.manifest.visible.domain in ("binary", "spin"))
    step, units = 1e-3, torch.eye(4, dtype=torch.float64)

    def difference(width: float) -> Tensor:
        return torch.stack([model.energy(x - width * e) - model.energy(x + width * e) for e in units], 1) / (2 * width)

    # Five points: truncation h^4 |E'''''| / 30 < 1e-10, rounding 1e-15 |E| / h < 1e-10.
    np.testing.assert_allclose(model.score(x), (4 * difference(step) - difference(2 * step)) / 3, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in having(HasFeatures) if name in EXACT and not case(name).directed])
def test_features_are_expected_hidden_states(name: str) -> None:
    of = case(name, 4, 4)
    model = of.model
    assert isinstance(model, HasFeatures)
    x = visibles(of)
    for layer in model.layers:
        expected = []
        for row in x:
            others = given_visibles(of, row)
            expected.append(cases.law(of.sweeping.joint_energy(others)) @ others[layer])
        np.testing.assert_allclose(model.features(x, layer), torch.stack(expected), atol=rounding(of))
    assert torch.equal(model.features(x), model.features(x, model.layers[-1]))
    assert model.features(x[:0]).shape == (0, of.sweeping.block_units(model.layers[-1]))


def labelled() -> list[str]:
    return names(lambda of: isinstance(of.model, HasClasses) and of.model.class_count > 0)


@pytest.mark.parametrize("name", [name for name in labelled() if name in EXACT and case(name).values.get("label")])
def test_classes_have_their_posterior_and_their_joint_energy(name: str) -> None:
    of = case(name, 4, 4)
    model = of.model
    assert isinstance(model, HasClasses)
    assert of.values["label"] == ONE_HOT
    assert model.class_count == of.sweeping.block_units("label") == len(of.manifest.classes or ())
    x = visibles(of)
    for row in x:
        others = given_visibles(of, row)
        joint = of.sweeping.joint_energy(others)
        each = [-torch.logsumexp(-joint[others["label"][:, k] == 1], 0) for k in range(model.class_count)]
        labels = torch.arange(model.class_count)
        found = model.class_energy(row.expand(len(labels), -1), labels)
        np.testing.assert_allclose(found, torch.stack(each), atol=rounding(of))
        assert torch.equal(model.class_energy(row.expand(len(labels), -1), labels.flip(0)), found.flip(0))
        if model.class_kind == "exact":
            posterior = torch.log_softmax(-torch.stack(each), 0)
            np.testing.assert_allclose(model.class_log_probs(row[None])[0], posterior, atol=rounding(of))
            # The energy has the labels summed out.
            np.testing.assert_allclose(model.energy(row[None])[0], -torch.logsumexp(-found, 0), atol=1e-10)
    np.testing.assert_allclose(model.class_log_probs(x).logsumexp(1), 0.0, atol=1e-12)
    assert model.class_log_probs(x[:0]).shape == (0, model.class_count)


@pytest.mark.parametrize("name", [name for name in having(HasClasses) if name not in labelled()])
def test_a_model_without_labels_cannot_classify_and_says_so(name: str) -> None:
    of = case(name)
    model = of.model
    assert isinstance(model, HasClasses)
    assert model.class_count == 0
    assert "classify" not in model.capabilities()
    x = cases.some_visibles(of, 2)
    with pytest.raises(CapabilityError, match="no label units") as refused:
        model.class_log_probs(x)
    assert refused.value.available == model.capabilities()
    with pytest.raises(CapabilityError, match="no label units"):
        model.class_energy(x, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", enumerable(HasEnumeration))
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [*SIZES, (7, 3), (3, 7)])
def test_log_z_is_the_brute_force_sum_whichever_side_is_smaller(
    name: str, dtype: torch.dtype, error: float, size: tuple[int, int]
) -> None:
    model, reference = case(name, *size, dtype=dtype).model, case(name, *size)
    assert isinstance(model, HasEnumeration)
    joint = reference.sweeping.joint_energy(joint_states(reference.sweeping, reference.values))
    assert model.log_partition() == pytest.approx(float(torch.logsumexp(-joint, 0)), abs=error)


@pytest.mark.parametrize("name", having(HasEnumeration))
def test_log_z_by_enumeration_is_refused_where_it_would_not_end(name: str) -> None:
    model = case(name, 80, 81).model
    assert isinstance(model, HasEnumeration)
    with pytest.raises(CapabilityError, match=r"at most 25 .*\d\d"):
        model.log_partition()


# --- the annealing path ---


def path(name: str, size: tuple[int, int]) -> tuple[HasAnnealing, dict[str, Tensor], dict[str, Tensor]]:
    """The model, a base, and every state of the kept blocks."""
    of = case(name, *size)
    model = of.model
    assert isinstance(model, HasAnnealing)
    units = {block: of.sweeping.block_units(block) for block in model.kept_blocks}
    base = {block: cases.normal((n,), seed=9 + n) for block, n in units.items()}
    return model, base, product({block: states(of.values[block], n) for block, n in units.items()})


@pytest.mark.parametrize("name", enumerable(HasAnnealing))
@pytest.mark.parametrize("size", [(4, 3), (3, 5)])
def test_the_annealing_path_leads_from_the_base_rate_model_to_the_model(name: str, size: tuple[int, int]) -> None:
    of = case(name, *size)
    model, base, kept = path(name, size)
    at = model.annealed_at(kept)
    start = model.annealed_log_density(at, base, 0.0)
    assert start.dtype == torch.float64
    assert float(start.logsumexp(0)) == pytest.approx(model.annealed_base(base), abs=1e-12)
    # f_0 has independent units whose log-odds the base sets.
    expected = sum((kept[block] @ base[block] for block in kept), torch.zeros(()).double())
    np.testing.assert_allclose(torch.log_softmax(start, 0), torch.log_softmax(expected, 0), atol=1e-12)
    # f_1 is the model's marginal, unnormalized as its energy is.
    end = model.annealed_log_density(at, base, 1.0)
    everything = joint_states(of.sweeping, of.values)
    rows = number(everything, {block: of.values[block] for block in kept})
    each = [torch.logsumexp(-of.sweeping.joint_energy(everything)[rows == k], 0) for k in range(len(end))]
    np.testing.assert_allclose(end, torch.stack(each), atol=rounding(of))
    if isinstance(model, HasEnumeration):
        assert float(end.logsumexp(0)) == pytest.approx(model.log_partition(), abs=1e-9)


@pytest.mark.parametrize("name", having(HasAnnealing))
def test_the_base_has_the_means_that_were_seen_and_is_finite_even_where_a_unit_never_moved(name: str) -> None:
    of = case(name, 4, 4)
    model = of.model
    assert isinstance(model, HasAnnealing)
    n = 1000
    for never_moved in (False, True):
        means, totals = {}, {}
        for block in model.kept_blocks:
            seen = cases.some(of.values[block], n, of.sweeping.block_units(block), torch.Generator().manual_seed(1))
            seen = seen[:1].expand(n, -1) if never_moved else seen
            means[block], totals[block] = seen.mean(0), seen.sum(0)
        base = model.base_of(totals, n)
        assert set(base) == set(model.kept_blocks)
        assert all(bool(torch.isfinite(biases).all()) for biases in base.values())
        if never_moved:
            continue
        start = model.annealed_start(base, ChainKeys.of(1, 10_000), torch.zeros(10_000, dtype=torch.int64))
        for block, state in start.kept.items():
            # 4.9 standard errors, passed by chance once in a million, and the pseudo-observation.
            error = 4.9 * state.std(0) / 100 + 2 / n
            assert bool(((state.mean(0) - means[block]).abs() < error).all()), block


@pytest.mark.parametrize("name", having(HasAnnealing))
def test_annealed_states_carry_what_their_kept_blocks_imply(name: str) -> None:
    of = case(name)
    model = of.model
    assert isinstance(model, HasAnnealing)
    base = {block: cases.normal((of.sweeping.block_units(block),), seed=9) for block in model.kept_blocks}
    keys, sweep = ChainKeys.of(4, 50), torch.zeros(50, dtype=torch.int64)
    state = model.annealed_start(base, keys, sweep)
    for step in range(1, 5):
        again = model.annealed_at(state.kept)
        assert set(state.kept) == set(model.kept_blocks)
        assert set(state.activations) == set(again.activations)
        for block, inputs in again.activations.items():
            assert torch.equal(inputs, state.activations[block])
        state = model.annealed_transition(state, base, 0.5, keys, sweep + step)


@pytest.mark.parametrize("name", enumerable(HasAnnealing))
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.8, 1.0])
def test_a_transition_leaves_its_density_unchanged_and_is_reversible(name: str, beta: float) -> None:
    model, base, kept = path(name, (3, 3))
    n = len(next(iter(kept.values())))
    values = {block: case(name).values[block] for block in kept}

    def step(before: Tensor) -> Tensor:
        state = model.annealed_at({block: s[before] for block, s in kept.items()})
        keys, sweep = ChainKeys.of(0, len(before)), torch.ones(len(before), dtype=torch.int64)
        return number(model.annealed_transition(state, base, beta, keys, sweep).kept, values)

    transitions = matrix(n, *every_step(n, step))
    law = torch.softmax(model.annealed_log_density(model.annealed_at(kept), base, beta), 0)
    np.testing.assert_allclose(transitions.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(law @ transitions, law, atol=1e-11)
    flow = law[:, None] * transitions
    np.testing.assert_allclose(flow, flow.T, atol=1e-11)
    wrong = torch.softmax(model.annealed_log_density(model.annealed_at(kept), base, abs(beta - 0.2)), 0)
    assert float((wrong @ transitions - wrong).abs().max()) > 1e-4
