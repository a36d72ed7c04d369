"""What a client sends to make a job, and what it is told of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.api.media import JSON, NPY, PNG
from service.api.sampler import SamplerField
from service.core.job import MAX_SEED, JobRecord, JobStatus
from service.picture import image_size

_MOST = 10**9
Count = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int | None, Field(ge=0, le=MAX_SEED, description="Drawn, and reported, where absent.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(examples=["digits"])
    version: int | None = Field(None, ge=1, description="The newest that is ready where absent.")
    seed: Seed = None


class Clamp(BaseModel):
    """Visible units that are held fixed; of the shape of one example, for every chain, or of all chains."""

    model_config = ConfigDict(extra="forbid")

    values: list[Any] = Field(description="null stands for a free unit.")
    mask: list[Any] | None = Field(None, description="1 = clamped. Absent: what is not null.")


class SampleJob(_Request):
    """Draws from the model. The result is (chains, draws, *shape)."""

    kind: Literal["sample"]
    chains: Count | None = Field(
        None, description="16, or as many as there are start values or labels, where there are several."
    )
    draws: Count = Field(1, description="States that are kept of each chain.")
    burn_in: int = Field(1000, ge=0, le=_MOST, description="Sweeps before the first that counts.")
    thin: Count = Field(1, description="Sweeps from one draw to the next.")
    sampler: SamplerField | None = None
    init: Literal["noise", "data"] | list[Any] = Field(
        "noise", description="Or start values, one example or one a chain."
    )
    temperature: float = Field(1.0, gt=0)
    label: list[int | str] | int | str | None = Field(
        None, description="Class to sample, where the model has classes: one for all, or one a chain."
    )
    clamp: Clamp | None = None
    stream_every: Count | None = Field(None, description="Sweeps between two `sample` events.")


class CompleteJob(_Request):
    """Completions of partly known inputs. The result is (n, samples, *shape)."""

    kind: Literal["complete"]
    inputs: list[Any] = Field(description="As for the operation; null stands for an unknown unit.")
    mask: list[Any] | None = Field(None, description="1 = clamped. Absent: what is not null.")
    samples: Count = 1
    sweeps: Count = 100
    sampler: SamplerField | None = None
    label: list[int | str] | int | str | None = Field(
        None, description="Class to complete towards, where the model has classes: one for all, or one an input."
    )


class LogPartitionJob(_Request):
    """An estimate of log Z, which joins the model's card."""

    kind: Literal["log_partition"]
    method: str | None = Field(
        None, description="One of the card's `estimators`; where absent `ais`, or the first where that does not apply."
    )
    chains: int = Field(100, ge=2, le=_MOST)
    temperatures: int = Field(1000, ge=2, le=_MOST)


JobRequest = Annotated[SampleJob | CompleteJob | LogPartitionJob, Field(discriminator="kind")]
JOB_REQUEST: TypeAdapter[SampleJob | CompleteJob | LogPartitionJob] = TypeAdapter(JobRequest)
JOB_KINDS = ("sample", "complete", "log_partition")
JOB_EXAMPLE = {"kind": "sample", "model": "digits", "chains": 16, "draws": 1, "burn_in": 1000, "seed": 7}


class ProgressView(BaseModel):
    """Work done so far; `rate` in units a second."""

    done: int
    total: int
    unit: str
    rate: float | None
    eta_s: float | None


class ResultView(BaseModel):
    """Where the result is, and what it is."""

    model_config = ConfigDict(extra="allow")

    href: str
    shape: list[int] | None = None
    dtype: str | None = None
    media_types: list[str]


class JobView(BaseModel):
    """A job."""

    id: str
    kind: str
    model: str
    version: int
    status: JobStatus
    position: int | None = Field(description="Jobs that wait before this one; null once it runs.")
    progress: ProgressView
    attempts: int
    seed: int
    request: dict[str, Any] = Field(description="What is computed: the request without its arrays, defaults filled in.")
    diagnostics: dict[str, Any] | None = Field(description="r_hat, ess_bulk, ess_tail, acceptance_rate, energy_mean.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    result: ResultView | None
    problem: dict[str, Any] | None = Field(description="Why it failed.")


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(description="The next page's `cursor`; null on the last.")


def media_types(record: JobRecord) -> tuple[str, ...]:
    """What a succeeded job's result can be had as."""
    shape = (record.result or {}).get("shape")
    if shape is None:
        return (JSON,)
    return (JSON, NPY, PNG) if image_size(shape[2:]) else (JSON, NPY)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def job_view(record: JobRecord) -> dict[str, Any]:
    """The job as clients see it."""
    found = None
    if record.status is JobStatus.SUCCEEDED and not record.expired:
        found = {**(record.result or {}), "href": f"/v1/jobs/{record.id}/result", "media_types": media_types(record)}
    progress = record.progress
    return {
        "id": record.id,
        "kind": record.kind,
        "model": record.model,
        "version": record.version,
        "status": record.status.value,
        "position": record.position,
        "progress": {
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
            "rate": progress.rate,
            "eta_s": progress.eta_s,
        },
        "attempts": record.attempts,
        "seed": record.seed,
        "request": record.payload,
        "diagnostics": record.diagnostics,
        "created_at": _time(record.created_at),
        "started_at": _time(record.started_at),
        "finished_at": _time(record.finished_at),
        "expires_at": _time(record.expires_at),
        "result": found,
        "problem": record.problem,
    }
