"""What every family on the shelf must hold, by enumeration; `cases.FACTORIES` has a small model of each."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch

from models import catalog
from models.errors import CapabilityError
from models.family import (
    EnergyModel,
    HasAnnealing,
    HasConditionals,
    HasEnumeration,
    HasFeatures,
    HasScore,
)
from models.rng import ChainKeys
from tests.models import cases
from tests.models.cases import case, joint_states, states

FAMILIES = sorted(catalog.families())
SIZES = [(4, 3), (3, 4), (1, 2), (2, 1), (6, 2)]


def having(capability: type) -> list[str]:
    return [name for name in FAMILIES if issubclass(catalog.families()[name], capability)]


def rounding(model: HasConditionals, units: int) -> float:
    """How far energies of the parameters as sampled can lie from those of the parameters."""
    return model.rounding_error * (units + 1) ** 2 + 1e-12


def test_every_family_has_a_factory_and_every_factory_a_family() -> None:
    assert set(cases.FACTORIES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_final_and_immutable(family: str) -> None:
    cls = catalog.families()[family]
    assert not cls.__subclasses__()
    assert all(inspect.isabstract(base) or base is object for base in cls.__mro__[1:] if issubclass(base, EnergyModel))
    model = case(family).model
    for name in (*model.tensors(), "anything"):
        with pytest.raises(AttributeError):
            setattr(model, name, torch.zeros(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_capabilities_are_those_of_the_base_classes_in_their_order(family: str) -> None:
    operations = {
        EnergyModel: ("energy", "log-density", "anomaly"),
        HasScore: ("score",),
        HasFeatures: ("features",),
        HasConditionals: ("sample", "complete"),
        HasEnumeration: ("log_partition",),
        HasAnnealing: ("log_partition",),
    }
    cls = catalog.families()[family]
    bases = [EnergyModel, *(base for base in cls.__mro__ if base in operations)]
    assert cls.capabilities() == tuple(dict.fromkeys(itertools.chain.from_iterable(operations[b] for b in bases)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energies_have_the_parameters_precision_and_a_row_each(family: str, dtype: torch.dtype) -> None:
    of = case(family, dtype=dtype)
    x = states(of.values["visible"], 4).to(dtype)
    energies = of.model.energy(x)
    assert of.model.dtype == energies.dtype == dtype
    assert energies.shape == (len(x),)
    assert of.model.energy(x[:0]).shape == (0,)
    np.testing.assert_allclose(energies.double(), case(family).model.energy(x.double()), atol=1e-4)


@pytest.mark.parametrize("family", having(HasConditionals))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_log_odds_of_every_block_are_differences_of_the_joint_energy(
    family: str, size: tuple[int, int], tempered: bool, scale: float
) -> None:
    # log p(b | rest) + beta E(b, rest) must not depend on b, and p(. | rest) must sum to one.
    of = case(family, *size, scale=scale)
    model = of.model
    assert isinstance(model, HasConditionals)
    everything = joint_states(model, of.values)
    n = len(everything["visible"])
    index = torch.arange(n).reshape([len(states(of.values[b], model.block_units(b))) for b in model.blocks])
    beta = 0.7 if tempered else 1.0
    for axis, block in enumerate(model.blocks):
        conditional = model.conditional(
            block, everything, torch.full((n,), beta, dtype=torch.float64) if tempered else None
        )
        log_p = conditional.log_prob(everything[block])
        by_rest = index.movedim(axis, 0).flatten(1)
        constant = (log_p + beta * model.joint_energy(everything))[by_rest]
        assert float((constant - constant[0]).abs().max()) < rounding(model, sum(size))
        assert float(log_p[by_rest].logsumexp(0).abs().max()) < 1e-12


@pytest.mark.parametrize("family", having(HasConditionals))
def test_a_conditional_mean_is_the_expectation_and_ignores_the_blocks_own_state(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasConditionals)
    everything = joint_states(model, of.values)
    for block in model.blocks:
        conditional = model.conditional(block, everything)
        outcomes = states(of.values[block], model.block_units(block))
        expected = torch.zeros_like(everything[block])
        for outcome in outcomes:
            expected += conditional.log_prob(outcome.expand_as(expected)).exp()[:, None] * outcome
        np.testing.assert_allclose(conditional.mean(), expected, atol=1e-12)
        other = everything | {block: everything[block].flip(0)}
        assert torch.equal(model.conditional(block, other).mean(), conditional.mean())


@pytest.mark.parametrize("family", having(HasConditionals))
def test_beta_is_each_chains_own(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasConditionals)
    everything = joint_states(model, of.values)
    betas = torch.linspace(0.0, 2.0, len(everything["visible"]), dtype=torch.float64)
    for block in model.blocks:
        together = model.conditional(block, everything, betas).mean()
        for i in (0, 5, len(betas) - 1):
            row = {b: s[i : i + 1] for b, s in everything.items()}
            assert torch.equal(model.conditional(block, row, betas[i : i + 1]).mean(), together[i : i + 1])
        at_one = model.conditional(block, everything, torch.ones_like(betas)).mean()
        assert torch.equal(at_one, model.conditional(block, everything).mean())


@pytest.mark.parametrize("family", having(HasConditionals))
def test_noise_prefers_no_state(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasConditionals)
    for block in model.blocks:
        everything = states(of.values[block], model.block_units(block))
        log_p = model.noise(block, len(everything)).log_prob(everything)
        np.testing.assert_allclose(log_p, -np.log(len(everything)), atol=1e-12)


@pytest.mark.parametrize("family", having(HasConditionals))
def test_the_bits_of_a_conditional_do_not_depend_on_batch_position_or_threads(family: str) -> None:
    of = case(family, 61, 37, seed=3, dtype=torch.float32)
    model = of.model
    assert isinstance(model, HasConditionals)
    generator = torch.Generator().manual_seed(0)
    n = 67
    batch = {}
    for block in model.blocks:
        values = torch.tensor(of.values[block], dtype=torch.float64)
        batch[block] = values[torch.randint(len(values), (n, model.block_units(block)), generator=generator)]
    threads = torch.get_num_threads()
    try:
        for block in model.blocks:
            torch.set_num_threads(1)
            together = model.conditional(block, batch).mean()
            torch.set_num_threads(2)
            assert torch.equal(model.conditional(block, batch).mean(), together)
            for rows in (slice(0, 1), slice(5, 6), slice(1, 8), slice(30, 67)):
                part = {b: s[rows] for b, s in batch.items()}
                assert torch.equal(model.conditional(block, part).mean(), together[rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("family", having(HasConditionals))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_the_free_energy_sums_the_hidden_units_out(family: str, size: tuple[int, int], scale: float) -> None:
    of = case(family, *size, scale=scale)
    model = of.model
    assert isinstance(model, HasConditionals)
    everything = joint_states(model, of.values)
    joint = model.joint_energy(everything)
    for x in states(of.values["visible"], size[0]):
        here = (everything["visible"] == x).all(1)
        assert float(model.energy(x[None])) == pytest.approx(float(-torch.logsumexp(-joint[here], 0)), abs=1e-12)


@pytest.mark.parametrize("family", having(HasScore))
def test_the_score_is_the_negative_gradient_of_the_energy(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasScore)
    x = cases.normal((9, 4), seed=5).sigmoid()
    step = 1e-5
    differences = torch.stack(
        [(model.energy(x - step * e) - model.energy(x + step * e)) / (2 * step) for e in torch.eye(4).double()], 1
    )
    # Central differences: truncation h^2 |E'''| / 6 < 1e-9, rounding 1e-16 |E| / h < 1e-9.
    np.testing.assert_allclose(model.score(x), differences, atol=1e-8)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.energy(leaf).sum(), leaf)
    np.testing.assert_allclose(model.score(x), -gradient, atol=1e-12)


@pytest.mark.parametrize("family", having(HasFeatures))
def test_features_are_expected_hidden_states(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasFeatures)
    assert isinstance(model, HasConditionals)
    everything = joint_states(model, of.values)
    joint = model.joint_energy(everything)
    for x in states(of.values["visible"], 4):
        here = (everything["visible"] == x).all(1)
        expected = cases.law(joint[here]) @ everything["hidden"][here]
        np.testing.assert_allclose(model.features(x[None])[0], expected, atol=1e-12)


@pytest.mark.parametrize("family", having(HasEnumeration))
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [*SIZES, (9, 4), (4, 9)])
def test_log_z_is_the_brute_force_sum_whichever_side_is_smaller(
    family: str, dtype: torch.dtype, error: float, size: tuple[int, int]
) -> None:
    model, reference = case(family, *size, dtype=dtype).model, case(family, *size)
    assert isinstance(model, HasEnumeration)
    assert isinstance(reference.model, HasConditionals)
    joint = reference.model.joint_energy(joint_states(reference.model, reference.values))
    assert model.log_partition() == pytest.approx(float(torch.logsumexp(-joint, 0)), abs=error)
    visible = states(reference.values["visible"], size[0])
    assert model.log_partition() == pytest.approx(
        float(torch.logsumexp(-reference.model.energy(visible), 0)), abs=error
    )


@pytest.mark.parametrize("family", having(HasEnumeration))
def test_log_z_by_enumeration_is_refused_where_it_would_not_end(family: str) -> None:
    model = case(family, 26, 26).model
    assert isinstance(model, HasEnumeration)
    with pytest.raises(CapabilityError, match="at most 25 units; this one has 26"):
        model.log_partition()


@pytest.mark.parametrize("family", having(HasAnnealing))
@pytest.mark.parametrize("size", [(4, 3), (3, 5)])
def test_the_annealing_path_leads_from_the_base_rate_model_to_the_model(family: str, size: tuple[int, int]) -> None:
    of = case(family, *size)
    model = of.model
    assert isinstance(model, HasAnnealing)
    visible = states(of.values["visible"], size[0])
    base = cases.normal((size[0],), seed=9)
    at = model.annealed_at(visible)
    start = model.annealed_log_density(at, base, 0.0)
    assert float(start.logsumexp(0)) == pytest.approx(model.annealed_base(base), abs=1e-12)
    # f_0 has independent visibles with log-odds `base`.
    np.testing.assert_allclose(torch.softmax(start, 0).log(), torch.log_softmax(visible @ base, 0), atol=1e-12)
    np.testing.assert_allclose(model.annealed_log_density(at, base, 1.0), -model.energy(visible), atol=1e-10)


@pytest.mark.parametrize("family", having(HasAnnealing))
def test_annealed_states_carry_what_their_visibles_imply(family: str) -> None:
    of = case(family)
    model = of.model
    assert isinstance(model, HasAnnealing)
    keys, base = ChainKeys.of(4, 50), torch.zeros(4, dtype=torch.float64)
    sweep = torch.zeros(50, dtype=torch.int64)
    state = model.annealed_start(base, keys, sweep)
    for step in range(1, 4):
        assert torch.equal(model.annealed_at(state.visible).activation, state.activation)
        state = model.annealed_transition(state, base, 0.5, keys, sweep + step)
    assert torch.equal(model.annealed_at(state.visible).activation, state.activation)
