"""The queue when servers, workers and engines die, stall or are away: real processes, really killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from service.core.job import JobStatus, Progress, Submission
from service.queue.client import JobQueue
from service.queue.errors import QueueUnavailable
from service.queue.lease import Heartbeat, JobSource
from tests.service.conftest import Server

pytestmark = pytest.mark.anyio
LEASE_S = 1.0
PROGRESS = Progress(done=1, total=2, unit="chain-sweeps")


def submission(number: int) -> Submission:
    return Submission(
        id=f"job-{number}",
        kind="sample",
        model="digits",
        version=1,
        digest="d",
        owner="",
        seed=number,
        payload={},
        total=2,
        unit="chain-sweeps",
    )


Sources = Callable[..., JobSource]


@pytest.fixture
def sources(own_server: Server, namespace: str) -> Iterator[Sources]:
    made: list[JobSource] = []

    def make(lease_s: float = LEASE_S, **settings: float) -> JobSource:
        made.append(JobSource(own_server.url, namespace, lease_s=lease_s, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for source in made:
        source.close()


async def submit_all(server: Server, namespace: str, count: int) -> None:
    queue = JobQueue(server.url, namespace)
    for number in range(count):
        await queue.submit(submission(number))
    await queue.aclose()


def submit(server: Server, namespace: str, count: int) -> None:
    asyncio.run(submit_all(server, namespace, count))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


async def test_a_killed_server_loses_no_acknowledged_job(own_server: Server, namespace: str, sources: Sources) -> None:
    queue = JobQueue(own_server.url, namespace)
    acknowledged: list[str] = []

    async def submit_until_killed(numbers: range) -> None:
        for number in numbers:
            try:
                record, _ = await queue.submit(submission(number))
            except QueueUnavailable:
                return
            acknowledged.append(record.id)

    submitting = asyncio.gather(*(submit_until_killed(range(part, 10**6, 8)) for part in range(8)))
    await asyncio.to_thread(until, lambda: len(acknowledged) >= 200)
    own_server.kill()
    await submitting
    with pytest.raises(QueueUnavailable):
        await queue.get("job-0")
    own_server.start()
    assert {record.id for record in (await queue.list(limit=10**6))[0]} >= set(acknowledged)
    await queue.aclose()
    claimed = {claim.id for claim in sources(60.0).claim(["digits"], 10**6)}
    assert claimed >= set(acknowledged)


def test_an_outage_longer_than_the_lease_costs_no_job_its_worker(
    own_server: Server, namespace: str, sources: Sources
) -> None:
    submit(own_server, namespace, 20)
    workers = [sources(), sources()]
    verdicts: list[tuple[str, int, str]] = []
    beats = [Heartbeat(worker, lambda: True, lambda *told: verdicts.append(told)) for worker in workers]
    claims = [(worker, claim) for worker in workers for claim in worker.claim(["digits"], 10)]
    assert len(claims) == 20
    for beat in beats:
        beat.start()
    until(lambda: not any(worker.reap() for worker in workers))
    own_server.kill()
    for _ in range(15):
        assert [worker.reap() for worker in workers] == [[], []]
        time.sleep(LEASE_S / 10)
    own_server.start()
    end = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < end:
        assert [worker.reap() for worker in [*workers, sources()]] == [[], [], []]
        time.sleep(LEASE_S / 10)
    for worker, claim in claims:
        assert worker.finish(claim.id, claim.attempt, JobStatus.SUCCEEDED)
    for beat in beats:
        beat.stop()
    assert verdicts == []


def test_a_young_server_is_not_reaped_even_by_a_worker_that_saw_no_outage(
    own_server: Server, namespace: str, sources: Sources
) -> None:
    submit(own_server, namespace, 1)
    (claim,) = sources(1.5).claim(["digits"], 10)
    own_server.kill()
    time.sleep(1.6)
    own_server.start()
    reaper = sources(1.5)
    assert reaper.reap() == []
    found: list[str] = []
    until(lambda: found.extend(reaper.reap()) or found)
    assert found == [claim.id]


async def test_an_idle_worker_lives_through_an_outage(own_server: Server, namespace: str, sources: Sources) -> None:
    worker = sources()
    worker.register("w", {})
    own_server.kill()
    assert worker.claim(["digits"], 10) == []
    assert worker.reap() == worker.expire() == []
    assert not worker.wait(["digits"], 0.3)
    with pytest.raises(QueueUnavailable):
        worker.beat([("job-0", 1)])
    hearing = threading.Thread(target=lambda: list(worker.cancellations()))
    hearing.start()
    own_server.start()
    await submit_all(own_server, namespace, 1)
    assert worker.wait(["digits"], 10)
    assert len(worker.claim(["digits"], 10)) == 1
    worker.close()
    await asyncio.to_thread(hearing.join)


async def test_a_result_waits_for_the_server_to_come_back(own_server: Server, namespace: str, sources: Sources) -> None:
    await submit_all(own_server, namespace, 1)
    worker = sources(60.0)
    (claim,) = worker.claim(["digits"], 10)
    own_server.kill()
    finishing = asyncio.create_task(asyncio.to_thread(worker.finish, claim.id, 1, JobStatus.SUCCEEDED))
    await asyncio.sleep(0.3)
    assert not finishing.done()
    await asyncio.to_thread(own_server.start)
    assert await asyncio.wait_for(finishing, 10)


def test_a_server_that_stays_away_is_reported_in_the_end(own_server: Server, namespace: str, sources: Sources) -> None:
    submit(own_server, namespace, 1)
    worker = sources(patience_s=0.2)
    (claim,) = worker.claim(["digits"], 10)
    own_server.kill()
    with pytest.raises(QueueUnavailable):
        worker.note(claim.id, 1, PROGRESS)
    with pytest.raises(QueueUnavailable):
        worker.finish(claim.id, 1, JobStatus.SUCCEEDED)
    # Nobody works on it any more, so no heartbeat may keep it.
    assert worker.held() == []


def test_a_stalled_engine_loses_its_jobs_and_is_told_once(own_server: Server, namespace: str, sources: Sources) -> None:
    submit(own_server, namespace, 1)
    stalled, other = sources(), sources()
    moving = threading.Event()
    moving.set()
    verdicts: list[tuple[str, int, str]] = []
    heartbeat = Heartbeat(stalled, moving.is_set, lambda *told: verdicts.append(told))
    heartbeat.start()
    (claim,) = stalled.claim(["digits"], 10)
    end = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < end:
        assert other.reap() == []
        time.sleep(LEASE_S / 10)
    moving.clear()
    until(lambda: other.reap() == [claim.id])
    assert verdicts == []
    (again,) = other.claim(["digits"], 10)
    assert (again.attempt, again.crashes) == (2, 1)
    moving.set()
    until(lambda: verdicts)
    time.sleep(LEASE_S / 2)
    heartbeat.stop()
    assert verdicts == [(claim.id, 1, "lost")]


async def test_a_heartbeat_survives_its_callbacks(own_server: Server, namespace: str, sources: Sources) -> None:
    await submit_all(own_server, namespace, 2)
    worker = sources()
    first, second = worker.claim(["digits"], 10)
    told: list[str] = []

    def stumble(job_id: str, attempt: int, verdict: str) -> None:
        told.append(f"{job_id} {verdict}")
        raise RuntimeError("in the callback")

    queue = JobQueue(own_server.url, namespace)
    heartbeat = Heartbeat(worker, lambda: True, stumble)
    heartbeat.start()
    await queue.cancel(first.id)
    await asyncio.to_thread(until, lambda: told)
    await queue.cancel(second.id)
    await asyncio.to_thread(until, lambda: len(told) == 2)
    heartbeat.stop()
    await queue.aclose()
    assert told == [f"{first.id} cancel", f"{second.id} cancel"]


WORKER = """
import sys, time
from service.core.job import Progress
from service.queue.lease import Heartbeat, JobSource

source = JobSource(sys.argv[1], sys.argv[2], lease_s=float(sys.argv[3]))
Heartbeat(source, lambda: True, print).start()
claims = source.claim(["digits"], 5)
for claim in claims:
    source.note(claim.id, claim.attempt, Progress(1, 2, "chain-sweeps"), {"step": 1})
print(len(claims), flush=True)
time.sleep(600)
"""


def test_the_jobs_of_a_killed_worker_go_on_from_their_checkpoints(
    own_server: Server, namespace: str, sources: Sources
) -> None:
    submit(own_server, namespace, 5)
    command = [sys.executable, "-c", WORKER, own_server.url, namespace, str(LEASE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"5\n"
        survivor = sources()
        end = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < end:
            assert survivor.reap() == []
            time.sleep(LEASE_S / 10)
        process.kill()
    reaped: list[str] = []
    until(lambda: reaped.extend(survivor.reap()) or len(reaped) == 5)
    claims = survivor.claim(["digits"], 5)
    assert [(claim.id, claim.attempt, claim.crashes, claim.checkpoint) for claim in claims] == [
        (f"job-{number}", 2, 0, {"step": 1}) for number in range(5)
    ]
