"""What the scheduler and the chain runner say to each other: ids and integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lane:
    """Chains that can advance in one batch: the same weights, the same sampler with the same settings."""

    digest: str
    sampler: str
    """The sampler's name and hyper-parameters, canonical JSON."""


@dataclass(frozen=True)
class Row:
    """One chain of one job."""

    job: str
    chain: int


@dataclass(frozen=True)
class Plan:
    """The next block: `join` enters the lane's batch, then every row in it makes `sweeps` sweeps."""

    lane: Lane
    join: tuple[Row, ...]
    rows: tuple[Row, ...]
    """All rows of the batch, those that join included."""
    sweeps: int


@dataclass(frozen=True)
class Outcome:
    """What a block did to the jobs in it."""

    left: tuple[Row, ...]
    """Chains that made their last sweep and left the batch."""
    finished: tuple[str, ...]
    """Jobs whose last chain left."""
