"""The contract of the queue, held by every kind of server that is at hand."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
import redis

from service.core.job import Claim, JobEvent, JobStatus, Progress, Submission
from service.queue.client import JobQueue
from service.queue.errors import IdempotencyConflict, QueueFull
from service.queue.keys import Keys
from service.queue.lease import JobSource

pytestmark = pytest.mark.anyio
LEASE_S = 0.25


def submission(**changes: object) -> Submission:
    job = Submission(
        id=secrets.token_hex(8),
        kind="sample",
        model="digits",
        version=2,
        digest="d" * 64,
        owner="alice",
        seed=2**53 - 1,
        payload={"chains": 4, "note": "β ≥ 1"},
        total=100,
        unit="chain-sweeps",
        chains=4,
        request_hash="h",
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def at(done: int) -> Progress:
    return Progress(done=done, total=100, unit="chain-sweeps", rate=12.5, eta_s=3.0)


@pytest.fixture
def url(every_redis_url: str) -> str:
    return every_redis_url


@pytest.fixture
async def queue(url: str, namespace: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue(url, namespace, queue_limit=1000, result_ttl_s=60)
    yield queue
    await queue.aclose()


Sources = Callable[..., JobSource]


@pytest.fixture
def sources(url: str, namespace: str) -> Iterator[Sources]:
    made: list[JobSource] = []

    def make(lease_s: float = 30.0, **settings: float) -> JobSource:
        made.append(JobSource(url, namespace, lease_s=lease_s, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def source(sources: Sources) -> JobSource:
    return sources()


def take(source: JobSource, room: int = 64) -> Claim:
    (claim,) = source.claim(["digits"], room)
    return claim


def reap(source: JobSource) -> list[str]:
    """What the reaper takes once it may (it lets a young server settle)."""
    deadline = time.monotonic() + 10
    while not (found := source.reap()):
        assert time.monotonic() < deadline, "nothing to reap"
        time.sleep(0.02)
    return found


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to pass")


async def events(queue: JobQueue, job_id: str, last_id: str = "0") -> list[JobEvent]:
    return [event async for event in queue.events(job_id, last_id)]


async def test_a_submitted_job_is_recorded_as_it_was_sent(queue: JobQueue) -> None:
    sent = submission()
    record, created = await queue.submit(sent)
    assert created
    assert record == await queue.get(sent.id)
    for name in ("id", "kind", "model", "version", "digest", "owner", "seed", "payload"):
        assert getattr(record, name) == getattr(sent, name)
    assert record.status is JobStatus.QUEUED
    assert record.progress == Progress(done=0, total=100, unit="chain-sweeps")
    assert (record.attempts, record.position) == (0, 0)
    assert abs(record.created_at - time.time()) < 60
    assert record.started_at is record.finished_at is record.expires_at is record.result is record.problem is None


async def test_an_unknown_job_is_none(queue: JobQueue) -> None:
    assert await queue.get("nosuch") is None
    assert await queue.cancel("nosuch") is None
    assert await events(queue, "nosuch") == []


async def test_a_job_is_claimed_noted_and_finished(queue: JobQueue, source: JobSource) -> None:
    sent = submission(traceparent="00-1-2-01")
    await queue.submit(sent)
    source.register("w1", {"models": ["digits"]})
    claim = take(source)
    assert claim == Claim(
        id=sent.id,
        attempt=1,
        kind="sample",
        model="digits",
        version=2,
        digest=sent.digest,
        payload=sent.payload,
        checkpoint=None,
        crashes=0,
        traceparent="00-1-2-01",
    )
    assert source.claim(["digits"], 64) == []
    assert source.note(claim.id, 1, at(50), {"step": 5, "file": "f"}, {"r_hat": float("nan"), "ess_bulk": 9.5})
    running = await queue.get(sent.id)
    assert running is not None
    assert (running.status, running.progress, running.attempts) == (JobStatus.RUNNING, at(50), 1)
    assert running.diagnostics == {"r_hat": None, "ess_bulk": 9.5}
    assert running.started_at is not None
    assert running.position is None
    assert source.finish(claim.id, 1, JobStatus.SUCCEEDED, result={"shape": [4, 1, 64]})
    done = await queue.get(sent.id)
    assert done is not None
    assert (done.status, done.progress.done, done.result) == (JobStatus.SUCCEEDED, 100, {"shape": [4, 1, 64]})
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + 7 * 86400)
    assert source.held() == []


async def test_a_failed_job_carries_its_problem(queue: JobQueue, source: JobSource) -> None:
    record, _ = await queue.submit(submission())
    assert source.finish(take(source).id, 1, JobStatus.FAILED, problem={"title": "no"})
    failed = await queue.get(record.id)
    assert failed is not None
    assert (failed.status, failed.problem, failed.result) == (JobStatus.FAILED, {"title": "no"}, None)


async def test_finishing_twice_is_harmless_and_finishing_unfinished_is_refused(
    queue: JobQueue, source: JobSource
) -> None:
    await queue.submit(submission())
    claim = take(source)
    with pytest.raises(ValueError, match="not running"):
        source.finish(claim.id, 1, JobStatus.RUNNING)
    assert source.finish(claim.id, 1, JobStatus.SUCCEEDED)
    assert source.finish(claim.id, 1, JobStatus.SUCCEEDED)
    assert [event.name for event in await events(queue, claim.id)] == ["start", "done"]


async def test_a_lost_lease_is_requeued_at_the_front_and_the_zombie_is_refused(
    queue: JobQueue, sources: Sources
) -> None:
    first, second = submission(), submission()
    await queue.submit(first)
    zombie, other, reaper = sources(LEASE_S), sources(), sources(LEASE_S)
    claim = take(zombie)
    assert zombie.note(claim.id, 1, at(10), {"step": 1, "file": "one"})
    await queue.submit(second)
    assert reap(reaper) == [first.id]
    assert zombie.beat([(first.id, 1)]) == {(first.id, 1): "lost"}
    again = take(other, room=1)
    assert (again.id, again.attempt, again.checkpoint) == (first.id, 2, {"step": 1, "file": "one"})
    assert not zombie.note(first.id, 1, at(99), {"step": 9, "file": "nine"})
    assert not zombie.emit(first.id, 1, "sample", {})
    assert not zombie.finish(first.id, 1, JobStatus.SUCCEEDED, result={"mine": False})
    assert not zombie.release(first.id, 1)
    assert zombie.beat([(first.id, 1)]) == {(first.id, 1): "lost"}
    record = await queue.get(first.id)
    assert record is not None
    assert (record.status, record.progress.done, record.result) == (JobStatus.RUNNING, 10, None)
    assert other.finish(first.id, 2, JobStatus.SUCCEEDED, result={"mine": True})
    assert take(other).id == second.id


async def test_a_zombie_is_refused_while_its_job_waits_too(queue: JobQueue, sources: Sources) -> None:
    await queue.submit(submission())
    zombie = sources(LEASE_S)
    claim = take(zombie)
    reap(sources(LEASE_S))
    assert not zombie.note(claim.id, 1, at(99))
    assert not zombie.finish(claim.id, 1, JobStatus.SUCCEEDED)
    record = await queue.get(claim.id)
    assert record is not None
    assert record.status is JobStatus.QUEUED


async def test_beats_keep_a_job_beyond_its_lease(queue: JobQueue, sources: Sources) -> None:
    await queue.submit(submission())
    source, reaper = sources(1.0), sources(1.0)
    claim = take(source)
    for _ in range(12):
        assert source.beat([(claim.id, 1)]) == {(claim.id, 1): "ok"}
        assert reaper.reap() == []
        await asyncio.sleep(0.2)
    assert source.beat([]) == {}


async def test_a_queued_job_is_cancelled_at_once_and_again_without_effect(queue: JobQueue, source: JobSource) -> None:
    record, _ = await queue.submit(submission())
    cancelled = await queue.cancel(record.id)
    assert cancelled is not None
    assert cancelled.status is JobStatus.CANCELLED
    assert await queue.cancel(record.id) == cancelled
    assert source.claim(["digits"], 64) == []
    assert [event.name for event in await events(queue, record.id)] == ["done"]


async def test_a_running_job_is_told_to_stop_and_ends_cancelled(
    queue: JobQueue, source: JobSource, url: str, namespace: str
) -> None:
    await queue.submit(submission())
    claim = take(source)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(source.cancellations()))
    listener.start()
    with redis.Redis.from_url(url) as client:
        await until(lambda: client.pubsub_numsub(Keys(namespace).control)[0][1])
    record = await queue.cancel(claim.id)
    assert record is not None
    assert (record.status, record.cancel_requested) == (JobStatus.RUNNING, True)
    assert await queue.cancel(claim.id) == record
    assert source.beat([(claim.id, 1)]) == {(claim.id, 1): "cancel"}
    assert source.finish(claim.id, 1, JobStatus.SUCCEEDED, result={})
    ended = await queue.get(claim.id)
    assert ended is not None
    assert (ended.status, ended.result) == (JobStatus.CANCELLED, None)
    await until(lambda: heard)
    source.close()
    await asyncio.to_thread(listener.join)
    assert heard == [claim.id]


async def test_a_cancelled_job_whose_worker_died_is_not_run_again(queue: JobQueue, sources: Sources) -> None:
    await queue.submit(submission())
    claim = take(sources(LEASE_S))
    await queue.cancel(claim.id)
    assert reap(sources(LEASE_S)) == [claim.id]
    record = await queue.get(claim.id)
    assert record is not None
    assert record.status is JobStatus.CANCELLED


async def test_parallel_submits_with_one_key_make_one_job(queue: JobQueue, source: JobSource) -> None:
    answers = await asyncio.gather(*(queue.submit(submission(idempotency_key="k")) for _ in range(40)))
    assert sum(created for _, created in answers) == 1
    assert len({record.id for record, _ in answers}) == 1
    assert len(source.claim(["digits"], 1000)) == 1


async def test_a_retried_submit_is_the_same_job(queue: JobQueue) -> None:
    sent = submission()
    first, _ = await queue.submit(sent)
    assert await queue.submit(sent) == (first, False)
    assert await queue.depth() == {"digits": 1}


async def test_one_key_for_two_requests_is_a_conflict(queue: JobQueue) -> None:
    first, _ = await queue.submit(submission(idempotency_key="k{}" * 999, request_hash="a"))
    with pytest.raises(IdempotencyConflict) as conflict:
        await queue.submit(submission(idempotency_key="k{}" * 999, request_hash="b"))
    assert conflict.value.job_id == first.id
    with pytest.raises(IdempotencyConflict):
        await queue.submit(submission(id=first.id, request_hash="b"))


async def test_one_key_of_two_owners_is_two_jobs(queue: JobQueue) -> None:
    for owner in ("alice", "bob"):
        _, created = await queue.submit(submission(idempotency_key="k", owner=owner))
        assert created


async def test_a_key_is_forgotten_after_its_time(url: str, namespace: str) -> None:
    queue = JobQueue(url, namespace, idempotency_ttl_s=0.05)
    await queue.submit(submission(idempotency_key="k", request_hash="a"))
    await asyncio.sleep(0.1)
    _, created = await queue.submit(submission(idempotency_key="k", request_hash="b"))
    await queue.aclose()
    assert created


async def test_a_full_queue_refuses_exactly_what_is_too_much(url: str, namespace: str, source: JobSource) -> None:
    queue = JobQueue(url, namespace, queue_limit=10)
    answers = await asyncio.gather(*(queue.submit(submission()) for _ in range(30)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert len(refused) == 20
    assert refused[0].retry_after_s > 0
    assert await queue.depth() == {"digits": 10}
    _, created = await queue.submit(submission(model="other"))
    assert created
    source.claim(["digits"], 1)
    _, created = await queue.submit(submission())
    await queue.aclose()
    assert created


async def test_higher_priority_comes_first_then_first_come_first_served(queue: JobQueue, source: JobSource) -> None:
    jobs = [submission(priority=priority, model=model) for priority in (0, -2047, 2047, 1) for model in ("a", "b", "a")]
    for job in jobs:
        await queue.submit(job)
    expected = [job.id for job in sorted(jobs, key=lambda job: -job.priority)]
    record = await queue.get(jobs[-1].id)
    assert record is not None
    assert record.position == 3  # two of the highest priority and one of its own wait for the same model
    assert [claim.id for claim in source.claim(["a", "b"], 1000)] == expected
    with pytest.raises(ValueError, match="priority"):
        await queue.submit(submission(priority=2048))


async def test_a_claim_ends_where_the_chains_are_taken(queue: JobQueue, source: JobSource) -> None:
    for chains in (4, 4, 100_000, 4):
        await queue.submit(submission(chains=chains))
    assert source.claim(["digits"], 0) == []
    assert len(source.claim(["digits"], 8)) == 2
    assert len(source.claim(["digits"], 8)) == 1
    assert len(source.claim(["digits"], 8)) == 1


async def test_only_the_models_asked_for_are_claimed(queue: JobQueue, source: JobSource) -> None:
    await queue.submit(submission(model="other"))
    assert source.claim(["digits"], 64) == []
    assert source.claim([], 64) == []


async def test_racing_claimers_never_share_a_job(queue: JobQueue, sources: Sources) -> None:
    ids = {submission().id for _ in range(200)}
    await asyncio.gather(*(queue.submit(submission(id=id_, chains=1)) for id_ in ids))
    taken: list[list[str]] = [[] for _ in range(4)]
    workers = [sources() for _ in taken]
    start = threading.Barrier(len(workers))

    def drain(number: int) -> None:
        start.wait()
        while claims := workers[number].claim(["digits"], 3):
            taken[number] += [claim.id for claim in claims]

    threads = [threading.Thread(target=drain, args=(number,)) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    everything = [id_ for part in taken for id_ in part]
    assert len(everything) == 200
    assert set(everything) == ids


async def test_a_job_that_keeps_crashing_fails_after_the_limit(queue: JobQueue, sources: Sources) -> None:
    record, _ = await queue.submit(submission())
    reaper = sources(LEASE_S, max_crashes=3)
    for crashes in range(3):
        assert take(sources(LEASE_S)).crashes == crashes
        reap(reaper)
    dead = await queue.get(record.id)
    assert dead is not None
    assert dead.status is JobStatus.FAILED
    assert dead.attempts == 3
    assert dead.problem is not None
    assert dead.problem["type"] == "/problems/internal"
    assert [event.name for event in await events(queue, record.id)][-1] == "done"
    assert sources().claim(["digits"], 64) == []


async def test_a_crash_after_a_new_checkpoint_is_not_held_against_the_job(queue: JobQueue, sources: Sources) -> None:
    await queue.submit(submission())
    reaper = sources(LEASE_S, max_crashes=2)
    for step in (10, 20, 30):
        worker = sources(LEASE_S)
        claim = take(worker)
        assert claim.crashes == 0
        worker.note(claim.id, claim.attempt, at(step), {"step": step})
        reap(reaper)
    claim = take(sources(LEASE_S))
    reap(reaper)
    worker = sources(LEASE_S)
    suspect = take(worker)
    assert suspect.crashes == 1
    # The same checkpoint again is no progress; a later one is.
    worker.note(suspect.id, suspect.attempt, at(30), {"step": 30})
    worker.note(suspect.id, suspect.attempt, at(40), {"step": 40})
    reap(reaper)
    assert take(sources()).crashes == 0


async def test_a_job_that_crashed_runs_beside_proven_jobs_only_and_alone_until_proven(
    queue: JobQueue, sources: Sources
) -> None:
    poison, innocent, late = submission(), submission(), submission()
    await queue.submit(poison)
    take(sources(LEASE_S))
    reap(sources(LEASE_S))
    await queue.submit(innocent)
    await queue.submit(late)
    worker, other = sources(), sources()
    assert [claim.id for claim in worker.claim(["digits"], 64)] == [poison.id]
    assert worker.claim(["digits"], 64) == []  # alone until it is proven
    assert [claim.id for claim in other.claim(["digits"], 4)] == [innocent.id]
    assert worker.release(poison.id, 2)
    assert other.claim(["digits"], 64) == []  # beside an unproven job: not, and nothing past it
    assert not other.wait(["digits"], 0.05)
    assert other.note(innocent.id, 1, at(1), {"step": 1})
    assert other.wait(["digits"], 5)
    assert [claim.id for claim in other.claim(["digits"], 64)] == [poison.id]
    assert other.claim(["digits"], 64) == []
    assert other.note(poison.id, 3, at(1), {"step": 1})
    assert [claim.id for claim in other.claim(["digits"], 64)] == [late.id]


async def test_a_job_that_crashed_is_not_handed_out_together_with_others(queue: JobQueue, sources: Sources) -> None:
    suspect = submission()
    await queue.submit(suspect)
    take(sources(LEASE_S))
    reap(sources(LEASE_S))
    fresh = submission(priority=1)
    await queue.submit(fresh)
    worker = sources()
    assert [claim.id for claim in worker.claim(["digits"], 64)] == [fresh.id]
    worker.finish(fresh.id, 1, JobStatus.SUCCEEDED)
    assert [claim.id for claim in worker.claim(["digits"], 64)] == [suspect.id]


async def test_neighbours_of_a_poisonous_job_survive_it(queue: JobQueue, sources: Sources) -> None:
    """Every worker that runs the poison for a round dies; neighbours checkpoint in that round where it lets them."""
    poison = submission()
    jobs = [submission(), submission(), poison, submission(), submission()]
    for job in jobs:
        await queue.submit(job)
    reaper = sources(LEASE_S, max_crashes=3)
    finished: set[str] = set()
    for _ in range(20):
        worker = sources(LEASE_S)
        live: dict[str, Claim] = {}
        while True:
            for claim in worker.claim(["digits"], 64):
                live[claim.id] = claim
            if poison.id in live or not live:
                break
            for claim in live.values():
                worker.note(claim.id, claim.attempt, at(1), {"step": claim.attempt})
            for claim in list(live.values()):
                if claim.attempt > 1 and worker.finish(claim.id, claim.attempt, JobStatus.SUCCEEDED):
                    finished.add(live.pop(claim.id).id)
        if not live:
            break
        reap(reaper)
        while reaper.reap():
            pass
    statuses = {job.id: (await queue.get(job.id)).status for job in jobs}  # type: ignore[union-attr]
    assert statuses.pop(poison.id) is JobStatus.FAILED
    assert set(statuses.values()) == {JobStatus.SUCCEEDED}
    assert finished == set(statuses)


async def test_a_released_job_goes_on_at_the_front_and_counts_no_crash(queue: JobQueue, source: JobSource) -> None:
    first, second = submission(), submission()
    await queue.submit(first)
    await queue.submit(second)
    claim = take(source, room=1)
    source.note(claim.id, 1, at(7), {"step": 7})
    assert source.release(claim.id, 1)
    again = take(source, room=1)
    assert (again.id, again.attempt, again.crashes, again.checkpoint) == (first.id, 2, 0, {"step": 7})
    requeued = next(event for event in await asyncio.wait_for(head(queue, first.id, 5), 5) if event.name == "requeued")
    assert requeued.data == {"reason": "released"}


async def test_a_cancelled_job_that_is_released_ends(queue: JobQueue, source: JobSource) -> None:
    await queue.submit(submission())
    claim = take(source)
    await queue.cancel(claim.id)
    assert source.release(claim.id, 1)
    record = await queue.get(claim.id)
    assert record is not None
    assert record.status is JobStatus.CANCELLED


async def head(queue: JobQueue, job_id: str, count: int, last_id: str = "0") -> list[JobEvent]:
    found: list[JobEvent] = []
    stream = queue.events(job_id, last_id)
    async for event in stream:
        found.append(event)
        if len(found) == count:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found


async def test_events_are_followed_live_and_resumed_by_id(queue: JobQueue, source: JobSource) -> None:
    await queue.submit(submission())
    claim = take(source)
    following = asyncio.create_task(events(queue, claim.id))
    await asyncio.sleep(0.05)
    source.note(claim.id, 1, at(10), {"step": 1})
    source.emit(claim.id, 1, "sample", {"draw": 0})
    source.finish(claim.id, 1, JobStatus.SUCCEEDED)
    seen = await asyncio.wait_for(following, 5)
    assert [event.name for event in seen] == ["start", "checkpoint", "progress", "sample", "done"]
    assert [event.data for event in seen] == [
        {"attempt": 1},
        {"step": 1},
        {"done": 10, "total": 100, "unit": "chain-sweeps", "rate": 12.5, "eta_s": 3.0},
        {"draw": 0},
        {"status": "succeeded"},
    ]
    for known, event in enumerate(seen, start=1):
        assert await asyncio.wait_for(events(queue, claim.id, event.id), 5) == seen[known:]
    assert await events(queue, claim.id, "rubbish; 9") == seen
    assert await asyncio.wait_for(events(queue, claim.id, "9" * 19), 5) == []


async def test_a_stream_that_was_trimmed_still_ends_with_done(queue: JobQueue, source: JobSource) -> None:
    await queue.submit(submission())
    claim = take(source)
    for draw in range(2500):
        source.emit(claim.id, 1, "sample", {"draw": draw})
    source.finish(claim.id, 1, JobStatus.SUCCEEDED)
    seen = await events(queue, claim.id, "0-1")
    assert 1000 <= len(seen) < 1500
    assert [event.data for event in seen[-3:-1]] == [{"draw": 2498}, {"draw": 2499}]
    assert seen[-1].name == "done"


async def test_more_followers_than_connections_are_all_served(url: str, namespace: str, source: JobSource) -> None:
    queue = JobQueue(url, namespace, max_connections=4, max_streams=40)
    await queue.submit(submission())
    claim = take(source)
    followers = [asyncio.create_task(events(queue, claim.id)) for _ in range(40)]
    await asyncio.sleep(0.1)
    assert await asyncio.wait_for(queue.get(claim.id), 5) is not None
    source.finish(claim.id, 1, JobStatus.SUCCEEDED)
    for seen in await asyncio.wait_for(asyncio.gather(*followers), 10):
        assert [event.name for event in seen] == ["start", "done"]
    await queue.aclose()


async def test_a_result_expires_and_later_its_record(
    queue: JobQueue, sources: Sources, url: str, namespace: str
) -> None:
    source = sources(result_ttl_s=0.8)
    sent = submission(idempotency_key="k")
    await queue.submit(sent)
    kept, _ = await queue.submit(submission())
    claim = take(source, room=1)
    source.finish(claim.id, 1, JobStatus.SUCCEEDED, result={})
    assert source.expire() == []
    await asyncio.sleep(0.85)
    assert source.expire() == [sent.id]
    assert source.expire() == []
    record = await queue.get(sent.id)
    assert record is not None
    assert (record.status, record.expired) == (JobStatus.SUCCEEDED, True)
    assert [event.data for event in await events(queue, sent.id)] == [{"status": "succeeded"}]
    await asyncio.sleep(0.85)
    assert source.expire() == [sent.id]
    assert await queue.get(sent.id) is None
    assert await queue.list() == ([await queue.get(kept.id)], None)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert list(client.scan_iter(f"*{namespace}*{sent.id}*")) == []
    _, created = await queue.submit(replace(sent, id="again"))
    assert created


async def test_nothing_is_left_of_jobs_that_are_gone(
    queue: JobQueue, sources: Sources, url: str, namespace: str
) -> None:
    source = sources(LEASE_S, result_ttl_s=0.01)
    for _ in range(3):
        await queue.submit(submission())
    for claim in source.claim(["digits"], 64):
        source.finish(claim.id, claim.attempt, JobStatus.SUCCEEDED)

    def only_the_counter_is_left() -> bool:
        source.expire()
        source.reap()
        return list(client.scan_iter(f"*{namespace}*")) == ["{" + namespace + "}:seq"]

    with redis.Redis.from_url(url, decode_responses=True) as client:
        await until(only_the_counter_is_left)


async def test_waiting_ends_with_a_submit(queue: JobQueue, source: JobSource) -> None:
    assert not source.wait(["digits"], 0.02)
    waiting = asyncio.create_task(asyncio.to_thread(source.wait, ["other", "digits"], 20))
    await asyncio.sleep(0.1)
    await queue.submit(submission())
    assert await asyncio.wait_for(waiting, 5)
    assert len(source.claim(["other", "digits"], 64)) == 1


async def test_what_one_worker_leaves_wakes_the_next(queue: JobQueue, sources: Sources) -> None:
    for _ in range(3):
        await queue.submit(submission())
    for worker in (sources(), sources(), sources()):
        assert worker.wait(["digits"], 2)
        assert len(worker.claim(["digits"], 1)) == 1


async def test_a_wake_up_lost_with_its_worker_is_put_back(queue: JobQueue, sources: Sources) -> None:
    await queue.submit(submission())
    assert sources().wait(["digits"], 2)  # and dies before it claims
    worker = sources(LEASE_S)
    assert not worker.wait(["digits"], 0.05)
    deadline = time.monotonic() + 10
    while not worker.wait(["digits"], 0.05):
        assert time.monotonic() < deadline
        worker.reap()


async def test_a_closed_source_stops_waiting(sources: Sources) -> None:
    source = sources()
    waiting = asyncio.create_task(asyncio.to_thread(source.wait, [], 20))
    await asyncio.sleep(0.05)
    source.close()
    assert await asyncio.wait_for(waiting, 5) is False


async def test_lists_are_newest_first_filtered_and_paged(queue: JobQueue, source: JobSource) -> None:
    jobs = [
        submission(owner=owner, model=model)
        for _ in range(70)
        for owner in ("alice", "bob", "")
        for model in ("a", "b")
    ]
    for job in jobs:
        await queue.submit(job)
    running = {claim.id for claim in source.claim(["a"], 10 * 4)}
    newest = [job.id for job in reversed(jobs)]

    async def pages(limit: int, **filters: object) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            records, cursor = await queue.list(limit=limit, cursor=cursor, **filters)  # type: ignore[arg-type]
            found += [record.id for record in records]
            if cursor is None:
                return found
            assert len(records) == limit

    by_id = {job.id: job for job in jobs}
    assert await pages(50) == newest
    assert await pages(420) == newest
    assert await pages(7, owner="bob") == [id_ for id_ in newest if by_id[id_].owner == "bob"]
    assert await pages(30, owner="") == [id_ for id_ in newest if by_id[id_].owner == ""]
    assert await pages(3, status=JobStatus.RUNNING) == [id_ for id_ in newest if id_ in running]
    assert await pages(100, model="b", owner="alice") == [
        id_ for id_ in newest if (by_id[id_].model, by_id[id_].owner) == ("b", "alice")
    ]
    assert await queue.list(owner="nobody") == ([], None)
    with pytest.raises(ValueError, match="cursor"):
        await queue.list(cursor="1; DROP")


async def test_only_live_workers_are_listed(queue: JobQueue, sources: Sources) -> None:
    leaving, dying = sources(), sources(0.2)
    assert await queue.workers() == []
    leaving.register("w1", {"models": ["a"], "free": 3})
    dying.register("w2", {})
    assert await queue.workers() == [{"id": "w1", "models": ["a"], "free": 3}, {"id": "w2"}]
    await asyncio.sleep(0.7)
    assert [worker["id"] for worker in await queue.workers()] == ["w1"]
    leaving.close()
    assert await queue.workers() == []


async def test_depth_counts_waiting_jobs_by_model(queue: JobQueue, source: JobSource) -> None:
    for model in ("a", "a", "b"):
        await queue.submit(submission(model=model))
    assert await queue.depth() == {"a": 2, "b": 1}
    source.claim(["b"], 64)
    assert (await queue.depth()).get("b", 0) == 0
    await queue.ping()
