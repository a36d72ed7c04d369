"""Continuous batching of chains: which chains advance together next, and for how many sweeps. Pure integers and ids.

    plan = scheduler.schedule(); run it; outcome = scheduler.update(plan)

Chains of all jobs on one lane share a batch. They join and leave between blocks; a block is never longer than the
shortest stay in it, so each chain leaves after exactly its own number of sweeps. Free slots go to the job with the
least work left, where every `HALF_LIFE` blocks of waiting halve the work that counts: small jobs pass, big ones do
not starve.
One job holds at most `job_share` of a lane's slots, also while it is alone: chains in the batch are not preempted, so
whoever comes next finds room. Lanes with work take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from service.core.plan import Lane, Outcome, Plan, Row

HALF_LIFE = 50


@dataclass
class _Job:
    lane: Lane
    arrived: int
    waiting: deque[tuple[int, int]]
    """(chain, sweeps left) of the chains that are not in the batch."""
    active: dict[int, int] = field(default_factory=dict)
    """Sweeps left of the chains in the batch."""

    @property
    def work(self) -> int:
        return sum(left for _, left in self.waiting) + sum(self.active.values())


class Scheduler:
    """Decides; owns no tensor, no clock and no device."""

    def __init__(self, slots: int, block_sweeps: int, job_share: float = 0.5) -> None:
        self._slots = slots
        self._block_sweeps = block_sweeps
        self._cap = max(1, int(slots * job_share))
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[Lane] = deque()
        self._tick = 0

    def add(self, job: str, lane: Lane, chains: Iterable[tuple[int, int]]) -> None:
        """A job with its chains and the sweeps that each has left (at least 1).

        Raises:
            ValueError: the job is here already, or has no chains, or a chain without sweeps left.
        """
        waiting = deque(chains)
        if job in self._jobs or not waiting or any(left < 1 for _, left in waiting):
            raise ValueError(f"job {job}: new, with at least one chain, each with at least one sweep left")
        self._jobs[job] = _Job(lane, self._tick, waiting)
        if lane not in self._turns:
            self._turns.append(lane)

    def remove(self, job: str) -> tuple[Row, ...]:
        """Forget a job (cancelled or lost); returns its rows that are in the batch and must leave it."""
        gone = self._jobs.pop(job, None)
        if gone is None:
            return ()
        self._retire(gone.lane)
        return tuple(Row(job, chain) for chain in gone.active)

    @property
    def jobs(self) -> frozenset[str]:
        """The jobs that have work left."""
        return frozenset(self._jobs)

    @property
    def chains(self) -> int:
        """Chains that have sweeps left, in a batch or waiting."""
        return sum(len(job.waiting) + len(job.active) for job in self._jobs.values())

    def schedule(self) -> Plan | None:
        """The next block, or None where nothing is left to do."""
        if not self._turns:
            return None
        lane = self._turns[0]
        self._turns.rotate(-1)
        join = self._admit(lane)
        rows = tuple(Row(name, chain) for name, job in self._lane(lane) for chain in job.active)
        shortest = min(left for _, job in self._lane(lane) for left in job.active.values())
        return Plan(lane, join, rows, min(self._block_sweeps, shortest))

    def update(self, plan: Plan) -> Outcome:
        """Account for a block that ran. Jobs removed since it was planned are passed over."""
        self._tick += 1
        left: list[Row] = []
        for row in plan.rows:
            job = self._jobs.get(row.job)
            if job is None or row.chain not in job.active:
                continue
            job.active[row.chain] -= plan.sweeps
            if job.active[row.chain] == 0:
                del job.active[row.chain]
                left.append(row)
        finished = tuple(name for name in dict.fromkeys(row.job for row in left) if self._jobs[name].work == 0)
        for name in finished:
            del self._jobs[name]
        self._retire(plan.lane)
        return Outcome(tuple(left), finished)

    def _lane(self, lane: Lane) -> list[tuple[str, _Job]]:
        return [(name, job) for name, job in self._jobs.items() if job.lane == lane]

    def _retire(self, lane: Lane) -> None:
        if lane in self._turns and not self._lane(lane):
            self._turns.remove(lane)

    def _admit(self, lane: Lane) -> tuple[Row, ...]:
        jobs = self._lane(lane)
        free = self._slots - sum(len(job.active) for _, job in jobs)
        queue = sorted((item for item in jobs if item[1].waiting), key=lambda item: self._rank(item[1]))
        join: list[Row] = []
        for name, job in queue:
            while free and job.waiting and len(job.active) < self._cap:
                chain, sweeps = job.waiting.popleft()
                job.active[chain] = sweeps
                join.append(Row(name, chain))
                free -= 1
        return tuple(join)

    def _rank(self, job: _Job) -> tuple[float, int]:
        return job.work * 2.0 ** (-(self._tick - job.arrived) / HALF_LIFE), job.arrived
