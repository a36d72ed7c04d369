"""A job: what a client asks for, what a worker is handed, and what the queue knows of it.

These are the only shapes that API, queue and worker share. Nothing here reads a clock or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**53 - 1
"""Seeds stay exact in every JSON reader (IEEE double)."""


class JobStatus(StrEnum):
    """The life of a job; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing more will happen to a job in this state."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class SamplerSpec(BaseModel):
    """A sampler by name; further fields are that sampler's hyper-parameters."""

    model_config = ConfigDict(extra="allow")

    name: str = "gibbs"


ArrayName = Literal["init", "clamp_value", "clamp_mask", "label"]


class SampleSpec(BaseModel):
    """What a `sample` job computes: everything that its bits depend on besides the model's digest.

    A chain makes `burn_in + draws * thin` sweeps; draw d is its state after `burn_in + (d + 1) * thin` of them.
    Start values, clamped values and labels lie in the job's input file, not in the record, a row a chain and in the
    units that they were sent in; `arrays` names those that must be there: `init`, `clamp_value` with `clamp_mask`, and
    `label` (positions of the classes).
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["sample"] = "sample"
    chains: int = Field(16, ge=1)
    draws: int = Field(1, ge=1)
    burn_in: int = Field(1000, ge=0)
    thin: int = Field(1, ge=1)
    sampler: SamplerSpec = SamplerSpec()
    init: Literal["noise", "data", "values"] = "noise"
    temperature: float = Field(1.0, gt=0)
    seed: int = Field(ge=0, le=MAX_SEED)
    stream_every: int | None = Field(None, ge=1)
    arrays: tuple[ArrayName, ...] = ()


class CompleteSpec(BaseModel):
    """What a `complete` job computes: `samples` completions of each of `examples` partial inputs.

    The arrays of the input file have a row an example.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["complete"] = "complete"
    examples: int = Field(ge=1)
    samples: int = Field(1, ge=1)
    sweeps: int = Field(100, ge=1)
    sampler: SamplerSpec = SamplerSpec()
    seed: int = Field(ge=0, le=MAX_SEED)
    arrays: tuple[ArrayName, ...] = ("clamp_value", "clamp_mask")


class LogPartitionSpec(BaseModel):
    """What a `log_partition` job computes."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["log_partition"] = "log_partition"
    method: str = "ais"
    chains: int = Field(100, ge=2)
    temperatures: int = Field(1000, ge=2)
    seed: int = Field(ge=0, le=MAX_SEED)


JobSpec = SampleSpec | CompleteSpec | LogPartitionSpec


@dataclass(frozen=True)
class Submission:
    """One job on its way into the queue. The caller makes the `id`, so that a retried submit is the same job."""

    id: str
    kind: str
    model: str
    version: int
    digest: str
    owner: str
    """Fingerprint of the key that made the job, or "" where no keys are configured."""
    seed: int
    payload: dict[str, Any]
    total: int
    """Units of progress in all: chain-sweeps, or temperatures."""
    unit: str
    chains: int = 1
    """Slots of the engine that the job asks for; a worker claims only as long as some are free."""
    priority: int = 0
    idempotency_key: str | None = None
    request_hash: str = ""
    """SHA-256 of the request body: the same key with another hash is a conflict."""
    traceparent: str | None = None


@dataclass(frozen=True)
class Progress:
    """Work done so far, in the job's own unit. `rate` is units a second as the worker measured it."""

    done: int
    total: int
    unit: str
    rate: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class Claim:
    """A job as a worker holds it. `attempt` is the fence: it only ever grows, and every write names it."""

    id: str
    attempt: int
    kind: str
    model: str
    version: int
    digest: str
    payload: dict[str, Any]
    checkpoint: dict[str, Any] | None
    crashes: int
    traceparent: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job as the queue knows it. Times are Unix seconds of the queue server's clock."""

    id: str
    kind: str
    model: str
    version: int
    digest: str
    owner: str
    seed: int
    status: JobStatus
    payload: dict[str, Any]
    progress: Progress
    attempts: int
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    diagnostics: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    """For example {"shape": [16, 1, 64], "dtype": "uint8", "media_types": [...]}; None until it succeeded."""
    problem: dict[str, Any] | None = None
    cancel_requested: bool = False
    expired: bool = False
    """True once the result's files are gone; the record outlives them for a while, to answer 410."""
    position: int | None = None
    """How many jobs wait before this one for the same model; None once it runs."""


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's event stream. `id` is the stream id, and so the SSE event id."""

    id: str
    name: str
    """start, progress, sample, checkpoint, requeued or done."""
    data: dict[str, Any] = field(default_factory=dict)
