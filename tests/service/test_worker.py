"""A worker with jobs that the API would have refused: each fails for itself, with a reason."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.core.job import JobRecord, JobStatus, SamplerSpec, SampleSpec, Submission
from service.queue.client import JobQueue
from service.queue.lease import JobSource
from service.runtime.library import ModelLibrary
from service.store.files import JobFiles
from service.worker.worker import Worker
from tests.service.brute import layered
from tests.service.example import write_tensors

GAUSS = layered([3, 4], 2, "grbm", sigma=True)
BAD = [
    ({"name": "tempering", "lowest": 0}, "lowest must be above 0 for a model with real units"),
    ({"name": "tempering", "replicas": 1}, "replicas must be a whole number from 2 to 64"),
    ({"name": "metropolis"}, "does not run on 'gauss'"),
]


@pytest.mark.anyio
async def test_a_bad_job_fails_with_a_reason_and_its_neighbours_go_on(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    write_tensors(tmp_path / "models", "gauss", "grbm", GAUSS.arrays, [3], "real")
    library = ModelLibrary(tmp_path / "models", torch.device("cpu"))
    library.refresh()
    card, files = library.get("gauss").card, JobFiles(tmp_path)
    queue = JobQueue(redis_url, namespace)

    async def submit(job_id: str, sampler: dict[str, Any]) -> None:
        spec = SampleSpec(chains=2, burn_in=9, seed=1, sampler=SamplerSpec(**sampler))
        fields = {"model": "gauss", "version": 1, "digest": card.digest, "owner": "", "seed": 1}
        payload = spec.model_dump(mode="json")
        await queue.submit(Submission(job_id, "sample", payload=payload, total=20, unit="chain-sweeps", **fields))

    async def ended(job_id: str) -> JobRecord:
        for _ in range(600):
            found = await queue.get(job_id)
            if found is not None and found.status.terminal:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{job_id} does not end")

    for number, (sampler, _) in enumerate(BAD):
        await submit(f"bad{number}", sampler)
    await submit("good", {"name": "tempering"})
    source = JobSource(redis_url, namespace)
    worker = Worker(source, files, library, worker_id="w", slots=64, block_sweeps=5, checkpoint_s=0.1, stall_s=60)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        for number, (_, reason) in enumerate(BAD):
            record = await ended(f"bad{number}")
            assert record.status is JobStatus.FAILED
            assert record.problem is not None
            assert reason in record.problem["detail"]
            assert record.problem["status"] == 422
            assert record.attempts == 1
        assert (await ended("good")).status is JobStatus.SUCCEEDED
        assert np.isfinite(files.open_array("good", "draws")).all()
    finally:
        worker.stop()
        thread.join(30)
        await queue.aclose()
