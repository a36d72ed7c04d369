"""The worker's loop: claim, decide, execute, account, checkpoint.

The loop owns the device. Leases are kept by a heartbeat thread as long as the loop moves. Whatever happens to the
process, the queue and the job's folder say all that another worker needs to go on.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import structlog

from models.errors import CapabilityError, ModelError
from models.estimator import LogPartition
from service.core.errors import ServiceError
from service.core.job import Claim, JobStatus, Progress
from service.core.plan import Lane, Plan
from service.core.scheduler import Scheduler
from service.queue.errors import QueueUnavailable
from service.queue.lease import Heartbeat, JobSource, Verdict
from service.runtime.chains import ChainBatch
from service.runtime.library import ModelLibrary, Served
from service.store.files import JobFiles, StoreError
from service.worker.chainjob import CHAIN_KINDS, ChainJob
from service.worker.estimate import Estimate

_log = structlog.get_logger(__name__)

_CLAIM_EVERY_S = 0.05
_NOTE_EVERY_S = 0.5
_HOUSEKEEPING_EVERY_S = 1.0
_IDLE_S = 0.5
_MOST_ESTIMATES = 2
_BLOCK_S = 1.0
"""Blocks of slow samplers are cut to about this long: leases, cancellations and other lanes wait for a block's end."""


@dataclass
class _Pace:
    """Measures a job's rate from what it had done when this worker took it."""

    since: float
    done_then: int

    def of(self, progress: Progress, now: float) -> Progress:
        rate = (progress.done - self.done_then) / max(now - self.since, 1e-9)
        eta = (progress.total - progress.done) / rate if rate > 0 else None
        return Progress(progress.done, progress.total, progress.unit, rate or None, eta)


class Worker:
    """Runs jobs until told to stop."""

    def __init__(
        self,
        source: JobSource,
        files: JobFiles,
        library: ModelLibrary,
        *,
        worker_id: str,
        slots: int,
        block_sweeps: int,
        checkpoint_s: float,
        stall_s: float,
    ) -> None:
        self._source = source
        self._files = files
        self._library = library
        self._worker_id = worker_id
        self._slots = slots
        self._checkpoint_s = checkpoint_s
        self._stall_s = stall_s
        self._scheduler = Scheduler(slots, block_sweeps)
        self._jobs: dict[str, ChainJob] = {}
        self._estimates: dict[str, Estimate] = {}
        self._batches: dict[Lane, ChainBatch] = {}
        self._most_sweeps: dict[Lane, int] = {}
        self._paces: dict[str, _Pace] = {}
        self._verdicts: queue.SimpleQueue[tuple[str, int, Verdict]] = queue.SimpleQueue()
        self._estimated: queue.SimpleQueue[tuple[Estimate, LogPartition | Exception]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._moved = time.monotonic()
        self._due: dict[str, float] = {}

    def stop(self) -> None:
        """Checkpoint what runs, hand it back and end. Safe to call from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`."""
        self._keep_house()
        heartbeat = Heartbeat(self._source, self._alive, lambda *verdict: self._verdicts.put(verdict))
        heartbeat.start()
        listener = threading.Thread(target=self._listen, name="cancellations", daemon=True)
        listener.start()
        _log.info("worker ready", worker=self._worker_id, models=self._models())
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._hand_back()
            heartbeat.stop()
            self._source.close()
            _log.info("worker stopped", worker=self._worker_id)

    # --- one turn of the loop ---

    def _turn(self) -> None:
        self._moved = time.monotonic()
        self._obey()
        self._settle_estimates()
        self._claim()
        plan = self._scheduler.schedule()
        if plan is not None:
            self._execute(plan)
        else:
            self._source.wait(self._models(), 0.05 if self._estimates else _IDLE_S)
        self._checkpoint()
        if self._is_due("note", _NOTE_EVERY_S):
            self._note()
        if self._is_due("housekeeping", _HOUSEKEEPING_EVERY_S):
            self._keep_house()

    def _execute(self, plan: Plan) -> None:
        plan = replace(plan, sweeps=min(plan.sweeps, self._most_sweeps.get(plan.lane, 1)))
        begun = time.monotonic()
        joining: dict[str, list[int]] = {}
        for row in plan.join:
            joining.setdefault(row.job, []).append(row.chain)
        batch = self._batches.get(plan.lane)
        if batch is None:
            first = self._jobs[plan.rows[0].job]
            batch = self._batches[plan.lane] = ChainBatch(first.model, first.sampler)
        for name, chains in joining.items():
            self._join(name, batch, chains)
        self._batches[plan.lane] = batch  # a job that could not join may have taken it away
        if len(batch):
            batch.advance(plan.sweeps)
        self._most_sweeps[plan.lane] = max(1, int(plan.sweeps * _BLOCK_S / max(time.monotonic() - begun, 1e-9)))
        outcome = self._scheduler.update(plan)
        for row in outcome.left:
            self._jobs[row.job].left([row.chain])
        for name in outcome.finished:
            self._finish(self._jobs.pop(name))
        if not len(batch):
            del self._batches[plan.lane], self._most_sweeps[plan.lane]

    def _join(self, name: str, batch: ChainBatch, chains: list[int]) -> None:
        claim = self._jobs[name].claim
        try:
            self._jobs[name].join(batch, chains)
        except ModelError as error:
            _log.warning("job failed", job=name, reason=str(error))
            self._drop(name)
            self._source.finish(claim.id, claim.attempt, JobStatus.FAILED, problem=_problem(error))

    def _claim(self) -> None:
        if not self._is_due("claim", _CLAIM_EVERY_S):
            return
        # Twice the slots: what joins next is at hand when a slot falls free, and other workers find work too.
        room = 2 * self._slots - self._scheduler.chains
        if room <= 0 or len(self._estimates) >= _MOST_ESTIMATES:
            return
        for claim in self._source.claim(self._models(), room):
            self._take(claim)

    def _take(self, claim: Claim) -> None:
        log = _log.bind(job=claim.id, kind=claim.kind, model=claim.model, attempt=claim.attempt)
        try:
            served = self._served(claim)
            if claim.kind in CHAIN_KINDS:
                self._take_chains(claim, served)
            else:
                estimate = Estimate(claim, served, lambda *done: self._estimated.put(done))
                self._estimates[claim.id] = estimate
                estimate.start()
            log.info("job taken", resumed=claim.checkpoint is not None)
        except (ModelError, ServiceError, StoreError, ValueError, OSError) as error:
            # ValueError: a job of a kind, or with a field, that this version does not know. OSError: the disk is full.
            log.warning("job failed", reason=str(error))
            self._source.finish(claim.id, claim.attempt, JobStatus.FAILED, problem=_problem(error))

    def _take_chains(self, claim: Claim, served: Served) -> None:
        def emit(name: str, data: dict[str, Any]) -> None:
            self._source.emit(claim.id, claim.attempt, name, data)

        job = ChainJob(claim, served, self._files, emit)
        self._jobs[claim.id] = job
        remaining = job.remaining()
        self._paces[claim.id] = _Pace(time.monotonic(), claim.checkpoint["step"] if claim.checkpoint else 0)
        if remaining:
            self._scheduler.add(claim.id, job.lane, remaining)
        else:
            self._finish(self._jobs.pop(claim.id))

    def _served(self, claim: Claim) -> Served:
        served = self._library.get(claim.model, claim.version)
        if served.checkpoint.digest != claim.digest:
            raise StoreError(
                f"model {claim.model!r} version {claim.version} has digest {served.checkpoint.digest[:12]}… here, "
                f"but the job was made for {claim.digest[:12]}…"
            )
        return served

    def _finish(self, job: ChainJob) -> None:
        claim = job.claim
        result, found = job.finish()
        total = job.progress().total
        self._source.note(
            claim.id,
            claim.attempt,
            self._paces.pop(claim.id).of(Progress(total, total, "chain-sweeps"), time.monotonic()),
        )
        kept = self._source.finish(claim.id, claim.attempt, JobStatus.SUCCEEDED, result=result, diagnostics=found)
        _log.info("job done" if kept else "job was another's by then", job=claim.id, attempt=claim.attempt)

    # --- what the outside says ---

    def _listen(self) -> None:
        # The fast path; a heartbeat's verdict is the sure one.
        for job_id in self._source.cancellations():
            self._verdicts.put((job_id, -1, "cancel"))

    def _obey(self) -> None:
        while True:
            try:
                job_id, attempt, verdict = self._verdicts.get_nowait()
            except queue.Empty:
                return
            held = self._jobs.get(job_id) or self._estimates.get(job_id)
            if held is None or attempt not in (-1, held.claim.attempt):
                continue
            self._drop(job_id)
            if verdict == "cancel":
                self._source.finish(job_id, held.claim.attempt, JobStatus.CANCELLED)
            _log.info("job dropped", job=job_id, verdict=verdict)

    def _drop(self, job_id: str) -> None:
        self._paces.pop(job_id, None)
        estimate = self._estimates.pop(job_id, None)
        if estimate is not None:
            estimate.cancel()
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._scheduler.remove(job_id)
            batch = self._batches.get(job.lane)
            if batch is not None:
                batch.drop(job_id)
                if not len(batch):
                    del self._batches[job.lane]
                    self._most_sweeps.pop(job.lane, None)

    def _settle_estimates(self) -> None:
        while True:
            try:
                estimate, outcome = self._estimated.get_nowait()
            except queue.Empty:
                return
            claim = estimate.claim
            if self._estimates.get(claim.id) is not estimate:
                continue
            del self._estimates[claim.id]
            try:
                if not isinstance(outcome, LogPartition):
                    raise outcome
                result = estimate.result(outcome)
            except ModelError as error:
                self._source.finish(claim.id, claim.attempt, JobStatus.FAILED, problem=_problem(error))
                continue
            self._source.note(claim.id, claim.attempt, estimate.progress())
            self._source.finish(claim.id, claim.attempt, JobStatus.SUCCEEDED, result=result)

    # --- what must not be lost ---

    def _checkpoint(self, every_s: float | None = None) -> None:
        if not self._is_due("checkpoint", self._checkpoint_s if every_s is None else every_s):
            return
        for job in list(self._jobs.values()):
            claim = job.claim
            pointer, progress = job.checkpoint(self._batches.get(job.lane))
            paced = self._paces[claim.id].of(progress, time.monotonic())
            if self._source.note(claim.id, claim.attempt, paced, checkpoint=pointer):
                self._files.prune_states(claim.id, pointer)
            else:
                self._drop(claim.id)

    def _note(self) -> None:
        now = time.monotonic()
        for job in list(self._jobs.values()):
            batch = self._batches.get(job.lane)
            progress = job.progress(batch.sweeps_of(job.claim.id) if batch is not None else 0)
            if not self._source.note(job.claim.id, job.claim.attempt, self._paces[job.claim.id].of(progress, now)):
                self._drop(job.claim.id)
        for estimate in list(self._estimates.values()):
            claim = estimate.claim
            pace = self._paces.setdefault(claim.id, _Pace(now, 0))
            if not self._source.note(claim.id, claim.attempt, pace.of(estimate.progress(), now)):
                self._drop(claim.id)

    def _keep_house(self) -> None:
        try:
            self._source.register(
                self._worker_id,
                {
                    "models": self._models(),
                    "free": max(0, self._slots - self._scheduler.chains),
                    "slots": self._slots,
                },
            )
        except QueueUnavailable:
            return
        self._source.reap()
        for job_id in self._source.expire():
            self._files.remove(job_id)

    def _hand_back(self) -> None:
        try:
            self._checkpoint(every_s=0.0)
            for job_id in [*self._jobs, *self._estimates]:
                held = self._jobs.get(job_id) or self._estimates[job_id]
                self._source.release(job_id, held.claim.attempt)
                self._drop(job_id)
        except QueueUnavailable as error:
            _log.warning("jobs not handed back; their leases will lapse", reason=str(error))

    def _models(self) -> list[str]:
        return sorted({served.card.name for served in self._library.all()})

    def _alive(self) -> bool:
        return time.monotonic() - self._moved < self._stall_s

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0) and every_s > 0:
            return False
        self._due[what] = now + every_s
        return True


def _problem(error: Exception) -> dict[str, Any]:
    slug, title = (
        ("capability-missing", "Capability missing")
        if isinstance(error, CapabilityError)
        else (("invalid-input", "Invalid input") if isinstance(error, ModelError) else ("not-ready", "Not ready"))
    )
    status = 503 if slug == "not-ready" else 422
    return {"type": f"/problems/{slug}", "title": title, "status": status, "detail": str(error)}
