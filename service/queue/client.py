"""The API's side of the queue: submit, look, cancel, follow."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from service.core.job import JobEvent, JobRecord, JobStatus, Submission
from service.queue.errors import IdempotencyConflict, QueueFull, reachable
from service.queue.keys import Keys, script
from service.queue.record import decode_record, fields

Page = tuple[list[JobRecord], str | None]
"""Records, and the cursor of the next page or None on the last one."""

MAX_PRIORITY = 2**11 - 1
RETRY_AFTER_S = 5.0
_BLOCK_MS = 5000
_SOCKET_TIMEOUT_S = 5.0
_SCAN = 200
_STREAM_ID = re.compile(r"\d{1,19}(-\d{1,19})?")


def _connect(url: str, connections: int, socket_timeout_s: float, wait_s: float) -> Any:
    # Any: the client's annotations name every reply that any setting could give.
    # The default pool raises at its limit instead of waiting. Protocol 2: the same replies from every server.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=wait_s,
        protocol=2,
        decode_responses=True,
        socket_timeout=socket_timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2),
    )
    return Redis.from_pool(pool)


class JobQueue:
    """The queue as the API sees it. Every call may raise `QueueUnavailable`, and each may then be repeated as it is."""

    def __init__(
        self,
        url: str,
        namespace: str = "ebm",
        *,
        queue_limit: int = 1000,
        result_ttl_s: float = 7 * 86400.0,
        idempotency_ttl_s: float = 86400.0,
        max_connections: int = 64,
        max_streams: int = 512,
    ) -> None:
        self._keys = Keys(namespace)
        self._queue_limit = queue_limit
        self._result_ttl_ms = int(result_ttl_s * 1000)
        self._idempotency_ttl_ms = max(1, int(idempotency_ttl_s * 1000))
        self._client = _connect(url, max_connections, _SOCKET_TIMEOUT_S, wait_s=20)
        # Apart, as a follower of events keeps its connection for seconds.
        self._streams = _connect(url, max_streams, _SOCKET_TIMEOUT_S + _BLOCK_MS / 1000, wait_s=60)
        self._submit, self._record, self._cancel = (
            self._client.register_script(script(name)) for name in ("submit", "record", "cancel")
        )

    async def submit(self, submission: Submission) -> tuple[JobRecord, bool]:
        """Puts a job into its model's queue, once.

        Returns:
            The record, and whether this call made it: a repeated submission (the same idempotency key of the same
            owner, or the same id) gets the job of the first.

        Raises:
            IdempotencyConflict: The key or id stands for a request with another `request_hash`.
            QueueFull: `queue_limit` jobs wait for the model.
            ValueError: The priority is out of its range.
        """
        if abs(submission.priority) > MAX_PRIORITY:
            raise ValueError(f"priority must lie within ±{MAX_PRIORITY}, got {submission.priority}")
        keys = self._keys
        names = [
            keys.job(submission.id),
            keys.pending(submission.model),
            keys.seq,
            keys.jobs,
            keys.jobs_of(submission.owner),
        ]
        if submission.idempotency_key is not None:
            names.append(keys.idempotency(submission.owner, submission.idempotency_key))
        arguments = [
            keys.prefix,
            submission.id,
            submission.request_hash,
            self._queue_limit,
            submission.priority,
            self._idempotency_ttl_ms,
            *fields(submission),
        ]
        with reachable():
            answer = await self._submit(names, arguments)
        if answer[0] == "full":
            raise QueueFull(submission.model, answer[1], RETRY_AFTER_S)
        record = decode_record(*answer[1])
        assert record is not None
        if answer[0] == "conflict":
            raise IdempotencyConflict(record.id)
        return record, answer[0] == "created"

    async def get(self, job_id: str) -> JobRecord | None:
        """The job, or None where there is none (any more)."""
        with reachable():
            answer = await self._record([self._keys.job(job_id)], [self._keys.prefix, job_id])
        return decode_record(*answer)

    async def list(
        self,
        owner: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Jobs, newest first. No owner given: everyone's.

        Raises:
            ValueError: The cursor is none that a page ended with.
        """
        if cursor is not None and not re.fullmatch(r"\d{1,16}", cursor):
            raise ValueError(f"not a cursor of this list: {cursor!r}")
        with reachable():
            found = await self._search(owner, status, model, limit + 1, cursor)
            more, found = len(found) > limit, found[:limit]
            pipe = self._client.pipeline(transaction=False)
            for job_id, _ in found:
                await self._record([self._keys.job(job_id)], [self._keys.prefix, job_id], client=pipe)
            answers = await pipe.execute()
        records = [record for answer in answers if (record := decode_record(*answer))]
        return records, f"{found[-1][1]:.0f}" if more else None

    async def _search(
        self, owner: str | None, status: JobStatus | None, model: str | None, count: int, cursor: str | None
    ) -> Sequence[tuple[str, float]]:
        index = self._keys.jobs if owner is None else self._keys.jobs_of(owner)
        top = "+inf" if cursor is None else f"({cursor}"
        found: list[tuple[str, float]] = []
        while len(found) < count:
            page = await self._client.zrevrangebyscore(index, top, "-inf", 0, _SCAN, withscores=True)
            if not page:
                break
            pipe = self._client.pipeline(transaction=False)
            for job_id, _ in page:
                pipe.hmget(self._keys.job(job_id), ["state", "model"])
            for entry, (its_state, its_model) in zip(page, await pipe.execute(), strict=True):
                if status in (None, its_state) and model in (None, its_model):
                    found.append(entry)
            top = f"({page[-1][1]:.0f}"
        return found[:count]

    async def cancel(self, job_id: str) -> JobRecord | None:
        """Cancels a job: at once while it waits; a running one is asked to stop. Again: no effect.

        Returns:
            The record as it then is, or None where there is no such job.
        """
        with reachable():
            answer = await self._cancel([self._keys.job(job_id)], [self._keys.prefix, job_id, self._result_ttl_ms])
        return decode_record(*answer)

    async def events(self, job_id: str, last_id: str = "0") -> AsyncIterator[JobEvent]:
        """What happened to the job after the event `last_id`, and what happens from now on; ends with `done`.

        Only the last thousand or so events are kept. Of a job whose events are gone, `done` alone is told. An id that
        no event can have counts as "0".
        """
        cursor = last_id if _STREAM_ID.fullmatch(last_id) else "0"
        while True:
            # Asked first: `done` is written together with the state, so the read that follows must see it.
            record = await self.get(job_id)
            if record is None:
                return
            batch = await self._read(job_id, cursor, None if record.status.terminal else _BLOCK_MS)
            for event in batch:
                cursor = event.id
                yield event
                if event.name == "done":
                    return
            if record.status.terminal and not batch:
                if record.expired:
                    at = int((record.finished_at or 0) * 1000)
                    yield JobEvent(f"{at}-0", "done", {"status": record.status.value})
                return

    async def _read(self, job_id: str, cursor: str, block_ms: int | None) -> Sequence[JobEvent]:
        with reachable():
            reply = await self._streams.xread({self._keys.events(job_id): cursor}, count=100, block=block_ms)
        entries: Any = reply[0][1] if reply else []
        return [JobEvent(entry, values["name"], orjson.loads(values["data"])) for entry, values in entries]

    async def depth(self) -> dict[str, int]:
        """How many jobs wait, by model; a model without any may be missing."""
        with reachable():
            models = sorted(await self._client.smembers(self._keys.models))
            pipe = self._client.pipeline(transaction=False)
            for model in models:
                pipe.zcard(self._keys.pending(model))
            return dict(zip(models, await pipe.execute(), strict=True))

    async def workers(self) -> Sequence[Mapping[str, Any]]:
        """What every live worker says of itself, with its `id`."""
        with reachable():
            ids = sorted(await self._client.smembers(self._keys.workers))
            said = await self._client.mget([self._keys.worker(id_) for id_ in ids]) if ids else []
            dead = [id_ for id_, text in zip(ids, said, strict=True) if text is None]
            if dead:
                await self._client.srem(self._keys.workers, *dead)
        return [{"id": id_, **orjson.loads(text)} for id_, text in zip(ids, said, strict=True) if text]

    async def ping(self) -> None:
        """Raises `QueueUnavailable` unless the server answers."""
        with reachable():
            await self._client.ping()

    async def aclose(self) -> None:
        """Closes every connection."""
        for client in (self._client, self._streams):
            await client.aclose()
            await client.connection_pool.aclose()
