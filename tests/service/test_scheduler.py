"""The scheduler against a shadow account: random arrivals, blocks and cancellations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.plan import Lane, Plan
from service.core.scheduler import Scheduler

SLOTS, BLOCK = 8, 5
LANES = (Lane("a", "gibbs"), Lane("b", "gibbs"))


def run_until_done(scheduler: Scheduler, limit: int = 10_000) -> list[str]:
    finished: list[str] = []
    for _ in range(limit):
        plan = scheduler.schedule()
        if plan is None:
            return finished
        finished += scheduler.update(plan).finished
    raise AssertionError("the scheduler does not come to an end")


class Account(RuleBasedStateMachine):
    """Keeps its own count of every chain's sweeps and checks that the scheduler's plans add up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SLOTS, BLOCK)
        self.left: dict[str, dict[int, int]] = {}
        self.lane: dict[str, Lane] = {}
        self.inside: dict[Lane, set[tuple[str, int]]] = {lane: set() for lane in LANES}
        self.count = 0

    @rule(lane=st.sampled_from(LANES), sweeps=st.lists(st.integers(1, 30), min_size=1, max_size=20))
    def add(self, lane: Lane, sweeps: list[int]) -> None:
        name = f"job-{self.count}"
        self.count += 1
        self.left[name] = dict(enumerate(sweeps))
        self.lane[name] = lane
        self.scheduler.add(name, lane, list(enumerate(sweeps)))

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.left)))
        rows = self.scheduler.remove(name)
        mine = {key for key in self.inside[self.lane[name]] if key[0] == name}
        assert {(row.job, row.chain) for row in rows} == mine
        self.inside[self.lane[name]] -= mine
        del self.left[name]

    @precondition(lambda self: self.left)
    @rule()
    def block(self) -> None:
        plan = self.scheduler.schedule()
        assert plan is not None
        self.check(plan)
        outcome = self.scheduler.update(plan)
        for row in plan.rows:
            self.left[row.job][row.chain] -= plan.sweeps
        done = {(row.job, row.chain) for row in plan.rows if self.left[row.job][row.chain] == 0}
        assert {(row.job, row.chain) for row in outcome.left} == done
        self.inside[plan.lane] -= done
        for job, chain in done:
            del self.left[job][chain]
        finished = {name for name, chains in self.left.items() if not chains}
        assert set(outcome.finished) == finished
        for name in finished:
            del self.left[name]

    def check(self, plan: Plan) -> None:
        rows = {(row.job, row.chain) for row in plan.rows}
        joined = {(row.job, row.chain) for row in plan.join}
        assert len(rows) == len(plan.rows) <= SLOTS
        assert rows == self.inside[plan.lane] | joined
        assert not self.inside[plan.lane] & joined
        assert all(self.lane[job] == plan.lane for job, _ in rows)
        assert 1 <= plan.sweeps <= min(BLOCK, *(self.left[job][chain] for job, chain in rows))
        waiting = sum(
            (name, c) not in rows for name, chains in self.left.items() if self.lane[name] == plan.lane for c in chains
        )
        jobs = [name for name in self.left if self.lane[name] == plan.lane]
        if waiting and len(jobs) == 1:
            assert len(rows) == SLOTS // 2, "a job alone uses its whole share"
        self.inside[plan.lane] = rows

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.chains == sum(len(chains) for chains in self.left.values())
        assert self.scheduler.jobs == frozenset(self.left)

    def teardown(self) -> None:
        assert set(run_until_done(self.scheduler)) == set(self.left), "every job that is left comes to its end"


TestScheduler = Account.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_small_job_is_done_at_once_beside_a_big_one() -> None:
    scheduler = Scheduler(SLOTS, BLOCK)
    scheduler.add("big", LANES[0], [(c, 1000) for c in range(50)])
    scheduler.update(scheduler.schedule() or pytest.fail("nothing planned"))
    scheduler.add("small", LANES[0], [(0, BLOCK)])
    plan = scheduler.schedule()
    assert plan is not None
    assert scheduler.update(plan).finished == ("small",)


def test_a_big_job_is_not_starved_by_an_endless_stream_of_small_ones() -> None:
    scheduler = Scheduler(SLOTS, BLOCK)
    scheduler.add("big", LANES[0], [(c, 20) for c in range(40)])
    finished: list[str] = []
    for tick in range(2000):
        for k in range(2):
            scheduler.add(f"small-{tick}-{k}", LANES[0], [(c, 5) for c in range(4)])
        plan = scheduler.schedule()
        assert plan is not None
        finished += scheduler.update(plan).finished
        if "big" in finished:
            return
    pytest.fail("the big job never finished")


def test_lanes_take_turns() -> None:
    scheduler = Scheduler(SLOTS, BLOCK)
    for lane in LANES:
        scheduler.add(lane.digest, lane, [(0, 100)])
    seen = []
    for _ in range(6):
        plan = scheduler.schedule()
        assert plan is not None
        seen.append(plan.lane.digest)
        scheduler.update(plan)
    assert seen == ["a", "b"] * 3


@pytest.mark.parametrize("chains", [[], [(0, 0)], [(0, 3), (1, -1)]])
def test_a_job_without_work_is_refused(chains: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Scheduler(SLOTS, BLOCK).add("job", LANES[0], chains)


def test_the_same_job_twice_is_refused() -> None:
    scheduler = Scheduler(SLOTS, BLOCK)
    scheduler.add("job", LANES[0], [(0, 1)])
    with pytest.raises(ValueError, match="new"):
        scheduler.add("job", LANES[0], [(0, 1)])
