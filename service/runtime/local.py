"""Sampling without a queue: what a `sample` job computes, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.job import SamplerSpec
from service.core.plan import Lane
from service.core.scheduler import Scheduler
from service.runtime.chains import ChainBatch, ChainTask
from service.runtime.library import Served
from service.runtime.operations import chain_model, shown
from service.runtime.samplers import make_sampler

Array = NDArray[Any]

_SLOTS, _BLOCK_SWEEPS = 256, 20


def sample(
    served: Served,
    *,
    chains: int,
    draws: int,
    burn_in: int,
    thin: int,
    temperature: float,
    seed: int,
    sampler: SamplerSpec | None = None,
    label: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Array:
    """Draws (chains, draws, *shape), the bits of the job with the same fields. `label` is a class's position.

    Raises:
        CapabilityError: the model cannot be sampled, or not by this sampler.
        InputError: the sampler has no such setting.
    """
    model = chain_model(served)
    shape = (chains, draws, *served.card.visible.shape)
    found = np.empty((chains, draws, served.card.visible.units), served.card.draws_dtype(clamped=False))

    def keep(rows: Array, numbers: Array, visible: Array) -> None:
        found[rows, numbers] = shown(served, visible)

    labels = None if label is None else np.array([label])
    task = ChainTask(seed, burn_in, draws, thin, temperature, label=labels, on_draw=keep)
    scheduler, batch = Scheduler(_SLOTS, _BLOCK_SWEEPS), ChainBatch(model, make_sampler(served.card, sampler))
    scheduler.add("", Lane(served.card.digest, ""), [(c, task.sweeps) for c in range(chains)])
    done = 0
    while (plan := scheduler.schedule()) is not None:
        if plan.join:
            batch.join("", task, [row.chain for row in plan.join])
        batch.advance(plan.sweeps)
        scheduler.update(plan)
        done += plan.sweeps * len(plan.rows)
        if progress:
            progress(done, chains * task.sweeps)
    return found.reshape(shape)
