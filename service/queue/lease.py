"""The workers' side of the queue: jobs are held by leases, and every write names the attempt that it belongs to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Literal, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.core.job import Claim, JobStatus, Progress
from service.queue.errors import QueueUnavailable, reachable
from service.queue.keys import Keys, script
from service.queue.record import decode_claim, dump

Verdict = Literal["ok", "lost", "cancel"]
Held = tuple[str, int]
"""A job's id and the attempt under which it is held. Never the id alone: it may be held again by then."""

_SOCKET_TIMEOUT_S = 5.0
_BLOCK_S = 2.0
_SWEEP = 100
_CRASHED = {
    "type": "/problems/internal",
    "title": "Internal error",
    "status": 500,
    "detail": "the job was given up: its worker stopped each time at the same point of it",
}
_log = logging.getLogger(__name__)


class _Standing(Enum):
    """How far a held job can be trusted not to bring its worker down."""

    FRESH = "no checkpoint since it was claimed"
    SUSPECT = "the same, and it crashed a worker before"
    PROVEN = "checkpointed since it was claimed"


class JobSource:
    """Where a worker gets its jobs. Thread-safe.

    While the server is away, `claim`, `wait`, `reap` and `expire` find nothing and `beat` and `register` raise
    `QueueUnavailable`; `note`, `emit`, `finish` and `release` keep trying for `patience_s` before they do. Nothing
    is lost by an outage: whoever still computes goes on once the server is back.
    """

    def __init__(
        self,
        url: str,
        namespace: str = "ebm",
        *,
        lease_s: float = 5.0,
        max_crashes: int = 3,
        result_ttl_s: float = 7 * 86400.0,
        patience_s: float = 300.0,
    ) -> None:
        self.lease_s = lease_s
        self._keys = Keys(namespace)
        self._lease_ms = max(1, int(lease_s * 1000))
        self._max_crashes = max_crashes
        self._result_ttl_ms = int(result_ttl_s * 1000)
        self._patience_s = patience_s
        self._client = self._connect(url)
        self._waits = self._connect(url)
        beats = self._connect(url)
        self._clients = (self._client, self._waits, beats)
        names = ("claim", "note", "emit", "finish", "release", "reap", "expire")
        self._scripts = {name: self._client.register_script(script(name)) for name in names}
        self._scripts["beat"] = beats.register_script(script("beat"))
        self._claiming = threading.Lock()
        self._standing: dict[Held, _Standing] = {}
        self._changed = threading.Condition()
        self._held_back = False
        self._registered: tuple[str, str] | None = None
        self._reaped_at: float | None = None
        self._cautious_until = 0.0
        self._closed = threading.Event()

    @staticmethod
    def _connect(url: str) -> Any:
        # Any: the client's annotations name every reply that any setting could give.
        # No retries beneath ours: a claim that was repeated unseen would leave jobs with a worker that knows nothing of
        # them. Protocol 2: the same replies from every server.
        return Redis.from_url(
            url,
            protocol=2,
            decode_responses=True,
            socket_timeout=_SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    # -- claiming

    def claim(self, models: Sequence[str], room: int) -> list[Claim]:
        """Takes jobs of these models, by priority and then age, until `room` chains are taken; the last may exceed it.

        A job that crashed a worker before comes alone, and only once every other job held has been checkpointed
        since it was claimed; until it is checkpointed itself, nothing further is handed out to this worker.
        """
        with self._claiming:
            with self._changed:
                standings = set(self._standing.values())
            if not models or room <= 0 or _Standing.SUSPECT in standings:
                self._held_back = _Standing.SUSPECT in standings
                return []
            arguments = [
                self._keys.prefix,
                room,
                self._lease_ms,
                self._registered[0] if self._registered else "",
                int(standings <= {_Standing.PROVEN}),
                *models,
            ]
            keys = [self._keys.lease, *map(self._keys.pending, models)]
            try:
                held_back, found = self._run("claim", keys, arguments)
            except QueueUnavailable:
                return []
            claims = [decode_claim(job_id, fields) for job_id, fields in found]
            with self._changed:
                self._held_back = bool(held_back) and not claims
                for claim in claims:
                    self._standing[claim.id, claim.attempt] = _Standing.SUSPECT if claim.crashes else _Standing.FRESH
            return claims

    def wait(self, models: Sequence[str], timeout_s: float) -> bool:
        """Sleeps until a job may wait for one of the models. Claim in any case: a wake-up can be another worker's.

        Returns:
            False where the time was up, the server away or the source closed.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0 and not self._closed.is_set():
            if self._held_back or not models:
                with self._changed:
                    self._changed.wait(min(left, _BLOCK_S))
                if models and not self._held_back:
                    return True
                continue
            try:
                with reachable():
                    marks = [self._keys.mark(model) for model in models]
                    if self._waits.bzpopmin(marks, max(0.01, min(left, _BLOCK_S))):
                        return True
            except QueueUnavailable:
                self._be_cautious()
                self._closed.wait(min(left, 0.2))
        return False

    def held(self) -> list[Held]:
        """The jobs that this worker holds, as far as it knows."""
        with self._changed:
            return list(self._standing)

    # -- holding

    def beat(self, held: Iterable[Held]) -> dict[Held, Verdict]:
        """Prolongs the leases of these jobs, over a connection of its own.

        Returns:
            For each: "ok", "cancel" (held, but to be stopped) or "lost" (another's by now: drop it silently).

        Raises:
            QueueUnavailable: The server did not answer.
        """
        jobs = list(held)
        if not jobs:
            return {}
        flat = [part for job in jobs for part in job]
        arguments = [self._keys.prefix, self._lease_ms, *flat]
        verdicts: list[Verdict] = self._run("beat", [self._keys.lease], arguments)
        return dict(zip(jobs, verdicts, strict=True))

    def note(
        self,
        job_id: str,
        attempt: int,
        progress: Progress,
        checkpoint: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
    ) -> bool:
        """Records how far a job is, and where it can be resumed. `checkpoint` has its absolute "step" as an integer.

        Returns:
            False where the job is not this worker's any more. Otherwise the checkpoint is now the truth, and older ones
            may go.
        """
        event = {name: getattr(progress, name) for name in ("done", "total", "unit", "rate", "eta_s")}
        arguments = [
            progress.done,
            "" if progress.rate is None else progress.rate,
            "" if progress.eta_s is None else progress.eta_s,
            dump(diagnostics),
            dump(checkpoint),
            "" if checkpoint is None else int(checkpoint["step"]),
            dump(event),
        ]
        answer = self._write("note", job_id, attempt, arguments)
        if answer == 0:
            self.drop((job_id, attempt))
        elif answer == 2:
            with self._changed:
                if (job_id, attempt) in self._standing:
                    self._standing[job_id, attempt] = _Standing.PROVEN
                self._held_back = False
                self._changed.notify_all()
        return answer > 0

    def emit(self, job_id: str, attempt: int, name: str, data: Mapping[str, Any]) -> bool:
        """Adds an event to the job's stream; False where the job is not this worker's any more."""
        return self._write("emit", job_id, attempt, [name, dump(data)]) > 0

    def finish(
        self,
        job_id: str,
        attempt: int,
        status: JobStatus,
        result: Mapping[str, Any] | None = None,
        problem: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
    ) -> bool:
        """Ends a job; once more is harmless. One whose cancellation was accepted ends cancelled, not succeeded.

        Returns:
            False where the job is not this worker's any more: drop it silently.
        """
        if not status.terminal:
            raise ValueError(f"a job ends succeeded, failed or cancelled, not {status.value}")
        arguments = [status.value, self._result_ttl_ms, dump(result), dump(problem), dump(diagnostics)]
        try:
            return self._write("finish", job_id, attempt, arguments) > 0
        finally:
            # Whatever happened: a job that nobody works on must not be kept by heartbeats.
            self.drop((job_id, attempt))

    def release(self, job_id: str, attempt: int) -> bool:
        """Hands a job back to the front of its queue; no crash is counted. False where it was not held any more."""
        try:
            return self._write("release", job_id, attempt, [self._result_ttl_ms]) > 0
        finally:
            self.drop((job_id, attempt))

    def drop(self, job: Held) -> bool:
        """Forgets a job that was lost; False where it was not held any more."""
        with self._changed:
            known = self._standing.pop(job, None) is not None
            self._held_back = False
            self._changed.notify_all()
            return known

    # -- sweeping

    def reap(self) -> list[str]:
        """Takes back jobs whose leases ran out: into the queue, or failed after `max_crashes` without progress.

        To be called about once a second. After an outage it waits one lease: owners beat first.

        Returns:
            The ids of those jobs.
        """
        now = time.monotonic()
        # A worker that was itself held up for so long may be what kept the leases from being renewed.
        if self._reaped_at is not None and now - self._reaped_at > max(self.lease_s, 2.0):
            self._be_cautious()
        self._reaped_at = now
        try:
            with reachable():
                uptime_s = self._client.info("server")["uptime_in_seconds"]
            # The server subtracts whole seconds: it may be up to a second younger than it says.
            if uptime_s < self.lease_s + 1 or now < self._cautious_until:
                return []
            keys = [self._keys.lease, self._keys.models]
            arguments = [
                self._keys.prefix,
                self._max_crashes,
                self._result_ttl_ms,
                dump(_CRASHED),
                _SWEEP,
            ]
            return cast("list[str]", self._run("reap", keys, arguments))
        except QueueUnavailable:
            self._be_cautious()
            return []

    def expire(self) -> list[str]:
        """Ids of jobs whose files are to be removed. Each is told twice, a result's lifetime apart.

        At the first time the job is marked expired and its events go, at the second its record goes.
        """
        keys = [self._keys.expiry, self._keys.jobs]
        try:
            return cast("list[str]", self._run("expire", keys, [self._keys.prefix, self._result_ttl_ms, _SWEEP]))
        except QueueUnavailable:
            return []

    # -- being seen, and hearing

    def register(self, worker_id: str, info: Mapping[str, Any]) -> None:
        """Says what this worker is (its models, its free chains, ...). Lasts 3 leases; every heartbeat repeats it."""
        self._registered = (worker_id, dump(info))
        self.announce()

    def announce(self) -> None:
        """Repeats what was registered, so that it does not lapse."""
        if self._registered is not None:
            worker_id, info = self._registered
            with reachable():
                pipe = self._client.pipeline(transaction=False)
                pipe.set(self._keys.worker(worker_id), info, px=3 * self._lease_ms)
                pipe.sadd(self._keys.workers, worker_id)
                pipe.execute()

    def cancellations(self) -> Iterator[str]:
        """Ids of running jobs to be stopped, anyone's, as they are cancelled; ends when the source is closed.

        The fast path: one that is missed (an outage) comes with the next heartbeat.
        """
        while not self._closed.is_set():
            try:
                with reachable(), self._waits.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(self._keys.control)
                    while not self._closed.is_set():
                        if message := channel.get_message(timeout=0.5):
                            yield message["data"]
            except QueueUnavailable:
                self._be_cautious()
                self._closed.wait(0.2)

    def close(self) -> None:
        """Signs off, ends every wait and retry, and closes the connections. Held jobs are not released."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._registered is not None:
            with suppress(QueueUnavailable), reachable():
                self._client.delete(self._keys.worker(self._registered[0]))
        for client in self._clients:
            # Not one that another thread is reading from: that thread sees `_closed` by itself.
            client.connection_pool.disconnect(inuse_connections=False)

    # -- the server

    def _run(self, name: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        started = time.monotonic()
        try:
            with reachable():
                return self._scripts[name](keys, arguments)
        except QueueUnavailable:
            self._be_cautious()
            raise
        finally:
            # A server that stood still for this long did so for every owner's heartbeat as well.
            if time.monotonic() - started > self.lease_s / 2:
                self._be_cautious()

    def _write(self, name: str, job_id: str, attempt: int, arguments: Sequence[object]) -> int:
        """One fenced write, repeated until the server has taken it: each of these scripts may run twice."""
        full = [self._keys.prefix, job_id, attempt, *arguments]
        deadline, pause_s = time.monotonic() + self._patience_s, 0.05
        while True:
            try:
                return int(self._run(name, [self._keys.job(job_id)], full))
            except QueueUnavailable:
                if time.monotonic() > deadline or self._closed.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, 1.0)

    def _be_cautious(self) -> None:
        self._cautious_until = time.monotonic() + self.lease_s


class Heartbeat(threading.Thread):
    """Keeps what a `JobSource` holds, a beat every fifth of a lease, as long as `alive` says that the engine moves.

    It beats from a thread, so that neither an event loop nor a long step can miss it, and stops while `alive` is false,
    so that an engine that hangs loses its jobs. Through an outage it keeps trying.

    Args:
        source: Whose jobs.
        alive: Whether the engine moves (or has nothing to do). Called from this thread.
        on_verdict: Told, from this thread and once for each held job, (id, attempt, "lost" or "cancel").
    """

    def __init__(
        self,
        source: JobSource,
        alive: Callable[[], bool],
        on_verdict: Callable[[str, int, Verdict], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._source = source
        self._alive = alive
        self._on_verdict = on_verdict
        self._told: set[Held] = set()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Beats until `stop`."""
        while not self._stopping.wait(self._source.lease_s / 5):
            try:
                if self._alive():
                    self._beat()
            except QueueUnavailable as error:
                _log.warning("missed a heartbeat: %s", error)
            except Exception:
                # A dead heartbeat thread would cost every job its lease.
                _log.exception("heartbeat")

    def _beat(self) -> None:
        held = self._source.held()
        verdicts = self._source.beat(held)
        self._told &= set(held)
        for job, verdict in verdicts.items():
            if verdict == "lost" and not self._source.drop(job):
                continue  # finished a moment ago
            if verdict != "ok" and job not in self._told:
                self._told.add(job)
                self._on_verdict(*job, verdict)
        self._source.announce()

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stopping.set()
        self.join()
