"""A job as the server's HASH, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from service.core.job import Claim, JobRecord, JobStatus, Progress, Submission


def dump(value: object | None) -> str:
    """JSON, or "" for None: scripts take strings only."""
    return "" if value is None else orjson.dumps(value).decode()


def fields(submission: Submission) -> list[str | int]:
    """The fields of a new job, flat: what it asks for; the queue's own fields are the submit script's."""
    flat: list[str | int] = []
    for name in ("kind", "model", "version", "digest", "owner", "seed", "chains", "total", "unit"):
        flat += [name, getattr(submission, name)]
    flat += ["payload", dump(submission.payload)]
    if submission.traceparent is not None:
        flat += ["traceparent", submission.traceparent]
    return flat


def unflatten(flat: Sequence[str]) -> dict[str, str]:
    """A HASH as a script returns it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode_record(job_id: str, flat: Sequence[str], position: int) -> JobRecord | None:
    """The record of a job from its HASH; None where there is none."""
    if not flat:
        return None
    job = unflatten(flat)
    return JobRecord(
        id=job_id,
        kind=job["kind"],
        model=job["model"],
        version=int(job["version"]),
        digest=job["digest"],
        owner=job["owner"],
        seed=int(job["seed"]),
        status=JobStatus(job["state"]),
        payload=orjson.loads(job["payload"]),
        progress=_progress(job),
        attempts=int(job["attempt"]),
        created_at=int(job["created_ms"]) / 1000,
        started_at=_seconds(job, "started_ms"),
        finished_at=_seconds(job, "finished_ms"),
        expires_at=_seconds(job, "expires_ms"),
        diagnostics=_json(job, "diagnostics"),
        result=_json(job, "result"),
        problem=_json(job, "problem"),
        cancel_requested="cancel" in job,
        expired="expired" in job,
        position=position if position >= 0 else None,
    )


def decode_claim(job_id: str, flat: Sequence[str]) -> Claim:
    """What a worker is handed, from the job's HASH."""
    job = unflatten(flat)
    return Claim(
        id=job_id,
        attempt=int(job["attempt"]),
        kind=job["kind"],
        model=job["model"],
        version=int(job["version"]),
        digest=job["digest"],
        payload=orjson.loads(job["payload"]),
        checkpoint=_json(job, "checkpoint"),
        crashes=int(job["crashes"]),
        traceparent=job.get("traceparent"),
    )


def _progress(job: dict[str, str]) -> Progress:
    return Progress(
        done=int(job["done"]),
        total=int(job["total"]),
        unit=job["unit"],
        rate=_float(job, "rate"),
        eta_s=_float(job, "eta_s"),
    )


def _float(job: dict[str, str], name: str) -> float | None:
    return float(job[name]) if job.get(name) else None


def _seconds(job: dict[str, str], name: str) -> float | None:
    return int(job[name]) / 1000 if job.get(name) else None


def _json(job: dict[str, str], name: str) -> dict[str, Any] | None:
    value: dict[str, Any] | None = orjson.loads(job[name]) if job.get(name) else None
    return value
