"""Batches of chains: whatever shares a batch, a chain's bits are its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models.families.rbm import RBM
from models.family import HasStates
from models.sampler import Sampler
from models.samplers.gibbs import Gibbs
from models.samplers.langevin import Langevin
from models.samplers.latent_hmc import LatentHMC
from models.samplers.latent_langevin import LatentLangevin
from models.samplers.tempering import Tempering
from service.core.plan import Lane
from service.core.scheduler import Scheduler
from service.runtime.chains import ChainBatch, ChainTask
from tests.models.cases import case
from tests.service.example import weights

D = 30
LANE = Lane("digest", "gibbs")


@pytest.fixture(scope="module")
def model() -> RBM:
    return RBM(**{name: torch.from_numpy(a).float() for name, a in weights(1, D, 20).items()})


@dataclasses.dataclass
class Job:
    task: ChainTask
    draws: np.ndarray
    means: np.ndarray


def make_job(seed: int, chains: int, clamped: bool = False, **fields: Any) -> Job:
    draws = np.full((chains, fields.get("draws", 1), D), np.nan)
    means = np.full((chains, D), np.nan)

    def on_draw(rows: np.ndarray, numbers: np.ndarray, visible: np.ndarray) -> None:
        assert np.isnan(draws[rows, numbers]).all(), "each draw is taken once"
        draws[rows, numbers] = visible

    def on_average(rows: np.ndarray, averages: np.ndarray) -> None:
        means[rows] = averages

    if clamped:
        rng = np.random.default_rng(seed)
        fields |= {"clamp_mask": rng.random((1, D)) < 0.5, "clamp_value": rng.integers(0, 2, (1, D)).astype(float)}
    return Job(ChainTask(seed=seed, on_draw=on_draw, on_average=on_average, **fields), draws, means)


def run(model: RBM, jobs: dict[str, Job], slots: int = 64, block: int = 7) -> None:
    scheduler, batch = Scheduler(slots, block), ChainBatch(model, Gibbs())
    for name, job in jobs.items():
        scheduler.add(name, LANE, [(c, job.task.sweeps) for c in range(len(job.draws))])
    while (plan := scheduler.schedule()) is not None:
        joining: dict[str, list[int]] = {}
        for row in plan.join:
            joining.setdefault(row.job, []).append(row.chain)
        for name, chains in joining.items():
            batch.join(name, jobs[name].task, chains)
        assert len(batch) == len(plan.rows)
        batch.advance(plan.sweeps)
        scheduler.update(plan)
    assert len(batch) == 0


def mixed_jobs() -> dict[str, Job]:
    return {
        f"job-{i}": make_job(
            seed=2**53 - 1 - i,
            chains=1 + 7 * i % 50,
            burn_in=5 * (i % 4),
            draws=1 + i % 3,
            thin=1 + i % 4,
            temperature=(1.0, 0.5, 3.0)[i % 3],
            clamped=i % 2 == 0,
            average_from=4 if i % 5 == 0 else None,
        )
        for i in range(20)
    }


def test_twenty_jobs_together_give_the_bits_that_each_gives_alone(model: RBM) -> None:
    together = mixed_jobs()
    run(model, together)
    for name, alone in mixed_jobs().items():
        run(model, {name: alone}, slots=256, block=20)
        np.testing.assert_array_equal(alone.draws, together[name].draws, err_msg=name)
        np.testing.assert_array_equal(alone.means, together[name].means, err_msg=name)
        assert np.isfinite(alone.draws).all()


def test_a_job_resumed_from_a_snapshot_ends_with_the_same_bits(model: RBM) -> None:
    whole = make_job(3, 9, draws=6, thin=5, burn_in=4, average_from=10)
    run(model, {"job": whole})
    resumed = make_job(3, 9, draws=6, thin=5, burn_in=4, average_from=10)
    first = ChainBatch(model, Gibbs())
    first.join("other", make_job(8, 5, draws=1, burn_in=99).task, range(5))
    first.join("job", resumed.task, range(9))
    first.advance(13)
    saved = first.snapshot("job")
    second = ChainBatch(model, Gibbs())
    order = np.random.default_rng(0).permutation(9)
    second.join("job", resumed.task, list(order), {name: array[order] for name, array in saved.items()})
    while len(second):
        second.advance(3)
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    np.testing.assert_array_equal(resumed.means, whole.means)


@pytest.mark.parametrize("sampler", [Gibbs(), Tempering(replicas=3)])
def test_a_resumed_job_keeps_the_blocks_the_labels_and_the_acceptance_of_its_sampler(sampler: Sampler) -> None:
    rng = np.random.default_rng(0)
    arrays = {**weights(1, D, 20), "U": 3 * rng.normal(size=(3, 20)), "d": rng.normal(size=3)}
    labelled = RBM(**{name: torch.from_numpy(a) for name, a in arrays.items()})
    told: list[tuple[float, float]] = []

    def job() -> Job:
        made = make_job(3, 9, draws=6, thin=5, burn_in=4)
        task = dataclasses.replace(made.task, label=np.arange(9) % 4 - 1, on_accepted=lambda *sums: told.append(sums))
        return Job(task, made.draws, made.means)

    whole, resumed = job(), job()
    alone = ChainBatch(labelled, sampler)
    alone.join("job", whole.task, range(9))
    alone.advance(34)
    first, second = ChainBatch(labelled, sampler), ChainBatch(labelled, sampler)
    first.join("other", make_job(8, 5, draws=1, burn_in=99).task, range(5))
    first.join("job", resumed.task, range(9))
    first.advance(13)
    saved = first.snapshot("job")
    second.join("job", resumed.task, range(4, 9), {name: array[4:] for name, array in saved.items()})
    second.join("job", resumed.task, range(4), {name: array[:4] for name, array in saved.items()})
    held = saved["block.label"].argmax(1)[np.arange(9) % 4 > 0]
    np.testing.assert_array_equal(held, [0, 1, 2, 0, 1, 2])
    while len(second):
        second.advance(7)
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    proposes = isinstance(sampler, Tempering)
    assert ("block.visible@2" in saved) == proposes
    assert told[0][1] == told[1][1] == (9 * 34 if proposes else 0)
    assert told[0][0] == pytest.approx(told[1][0], abs=1e-9)
    assert not proposes or 0 < told[0][0] < 9 * 34


def test_chains_of_a_network_keep_their_labels_alone_together_and_resumed() -> None:
    jem = case("jem", D, dtype=torch.float32).model
    assert isinstance(jem, HasStates)

    def job(seed: int = 3, **fields: Any) -> Job:
        made = make_job(seed, 9, draws=6, thin=5, burn_in=4, average_from=10, **fields)
        return Job(dataclasses.replace(made.task, label=np.arange(9) % 4 - 1), made.draws, made.means)

    whole, beside, free = job(), job(), make_job(3, 9, draws=6, thin=5, burn_in=4)
    alone, together = ChainBatch(jem, Langevin()), ChainBatch(jem, Langevin())
    alone.join("job", whole.task, range(9))
    together.join("free", free.task, range(9))
    together.join("other", make_job(8, 80, draws=1, burn_in=70, temperature=2.0).task, range(80))
    together.join("job", beside.task, range(9))
    alone.advance(34)
    together.advance(13)
    saved = together.snapshot("job")
    together.drop("job")
    resumed = ChainBatch(jem, Langevin())
    resumed.join("job", beside.task, range(4, 9), {name: array[4:] for name, array in saved.items()})
    resumed.join("job", beside.task, range(4), {name: array[:4] for name, array in saved.items()})
    while len(resumed):
        resumed.advance(7)
    together.advance(21)
    np.testing.assert_array_equal(beside.draws, whole.draws)
    np.testing.assert_array_equal(beside.means, whole.means)
    unheld = np.arange(9) % 4 == 0
    np.testing.assert_array_equal(whole.draws[unheld], free.draws[unheld])
    assert (whole.draws[~unheld] != free.draws[~unheld]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("sampler", [LatentHMC(adaptation=20), LatentLangevin(adjust=False)])
def test_chains_on_latents_go_on_from_a_snapshot(sampler: Sampler) -> None:
    tilted = case("tilted", D, dtype=torch.float32).model
    assert isinstance(tilted, HasStates)
    whole, resumed = (make_job(3, 9, draws=6, thin=5, burn_in=4, average_from=10) for _ in range(2))
    alone, together, second = (ChainBatch(tilted, sampler) for _ in range(3))
    alone.join("job", whole.task, range(9))
    alone.advance(34)
    together.join("other", make_job(8, 80, draws=1, burn_in=70, temperature=2.0).task, range(80))
    together.join("job", resumed.task, range(9))
    together.advance(13)
    saved = together.snapshot("job")
    assert {"block.latent", "block.visible"} <= set(saved)
    second.join("job", resumed.task, range(4, 9), {name: array[4:] for name, array in saved.items()})
    second.join("job", resumed.task, range(4), {name: array[:4] for name, array in saved.items()})
    while len(second):
        second.advance(7)
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    np.testing.assert_array_equal(resumed.means, whole.means)


def test_clamped_units_hold_their_values_in_every_draw_and_average(model: RBM) -> None:
    job = make_job(5, 12, clamped=True, draws=4, thin=2, burn_in=0, average_from=1)
    run(model, {"job": job})
    mask, value = job.task.clamp_mask, job.task.clamp_value
    assert mask is not None
    assert value is not None
    np.testing.assert_array_equal(job.draws[..., mask[0]], np.broadcast_to(value[0, mask[0]], (12, 4, mask.sum())))
    np.testing.assert_array_equal(job.means[:, mask[0]], np.broadcast_to(value[0, mask[0]], (12, mask.sum())))
    assert np.ptp(job.draws[..., ~mask[0]]) == 1.0


def test_a_dropped_job_leaves_the_others_as_they_are(model: RBM) -> None:
    alone = make_job(1, 6, draws=3, thin=4, burn_in=2)
    run(model, {"job": alone})
    beside = make_job(1, 6, draws=3, thin=4, burn_in=2)
    batch = ChainBatch(model, Gibbs())
    batch.join("gone", make_job(2, 11, draws=1, burn_in=99).task, range(11))
    batch.join("job", beside.task, range(6))
    batch.advance(5)
    batch.drop("gone")
    assert len(batch) == 6
    while len(batch):
        batch.advance(1)
    np.testing.assert_array_equal(beside.draws, alone.draws)


def test_chains_start_from_values_and_from_data_rows(model: RBM) -> None:
    examples = np.random.default_rng(0).integers(0, 2, (3, D)).astype(np.uint8)
    batch = ChainBatch(model, Gibbs())
    batch.join("values", ChainTask(1, 5, 1, start=examples.astype(float)), range(3))
    batch.join("data", ChainTask(1, 5, 1, examples=examples), range(40))
    np.testing.assert_array_equal(batch.snapshot("values")["block.visible"], examples)
    started = batch.snapshot("data")["block.visible"]
    picks = (started[:, None] == examples[None]).all(axis=2)
    assert picks.any(axis=1).all()
    # 40 independent choices among 3 rows leave one of them out with probability below 3 (2/3)^40 = 3e-7.
    assert picks.any(axis=0).all()


def test_peeks_show_chain_zero_at_multiples_of_the_interval(model: RBM) -> None:
    seen: list[int] = []
    task = ChainTask(1, 20, 1, peek_every=6, on_peek=lambda sweep, visible: seen.append(sweep))
    batch = ChainBatch(model, Gibbs())
    batch.join("job", task, range(3))
    while len(batch):
        batch.advance(1)
    assert seen == [6, 12, 18]
