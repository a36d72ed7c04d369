"""Jobs: submit, look, follow, cancel, fetch."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, ClassVar

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from models.manifest import Domain
from service.api.body import IN_THREAD_BYTES, parse_json, read_body
from service.api.deps import Services, owner, services
from service.api.encode import json_response
from service.api.endpoint import Endpoint
from service.api.errors import Problem, invalid
from service.api.media import JSON, NPY, PNG, choose, content_type
from service.api.openapi import job_request, problems
from service.api.results import about, array_response
from service.api.schemas import JobPage, JobView, job_view, media_types
from service.api.streams import until
from service.api.submissions import Work, parse_request, plan, request_hash, submission
from service.core.card import Card
from service.core.errors import NotReady, UnknownModel
from service.core.job import JobRecord, JobStatus, LogPartitionSpec
from service.queue.errors import IdempotencyConflict, QueueFull, QueueUnavailable
from service.store.files import StoreError

log = structlog.get_logger(__name__)

DRAWS, MEAN = "draws", "mean"
"""The names under which workers store a job's draws, and a completion's expected values."""

_TOLD = ("progress", "sample", "done")
_MAX_KEY = 255


async def visible_job(request: Request, job_id: str) -> JobRecord:
    """The job of the path, where it is the asking key's own."""
    record = await services(request).queue.get(job_id) if job_id.isalnum() and job_id.isascii() else None
    if record is None or record.owner != owner(request):
        raise Problem("job-not-found", f"There is no job {job_id[:64]!r}, or it is not yours.")
    return record


Job = Annotated[JobRecord, Depends(visible_job)]


class Jobs(Endpoint):
    """`/v1/jobs`."""

    name: ClassVar[str] = "jobs"

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/jobs", tags=["Jobs"], default_response_class=Response)
        router.add_api_route(
            "",
            submit,
            methods=["POST"],
            status_code=202,
            summary="Submit a job",
            responses={202: {"model": JobView}, **problems(400, 401, 404, 406, 409, 413, 415, 422, 429, 503)},
            openapi_extra={"requestBody": job_request()},
        )
        router.add_api_route(
            "", page, summary="List jobs", responses={200: {"model": JobPage}, **problems(401, 406, 422, 503)}
        )
        single: dict[int | str, dict[str, Any]] = {200: {"model": JobView}, **problems(401, 404, 406, 503)}
        router.add_api_route("/{job_id}", one, summary="A job", responses=single)
        router.add_api_route(
            "/{job_id}",
            cancel,
            methods=["DELETE"],
            summary="Cancel a job",
            responses={**single, 202: {"model": JobView, "description": "It is running, and stops within a block."}},
        )
        router.add_api_route(
            "/{job_id}/events",
            events,
            response_class=EventSourceResponse,
            summary="Follow a job",
            description="Events `progress`, `sample` and at last `done`, with the job. `Last-Event-ID` resumes.",
            responses=problems(401, 404, 503),
        )
        binary = {"schema": {"type": "string", "format": "binary"}}
        router.add_api_route(
            "/{job_id}/result",
            result,
            summary="A job's result",
            responses={
                200: {"content": {JSON: {"schema": {"type": "object"}}, NPY: binary, PNG: binary}},
                **problems(401, 404, 406, 409, 410, 503),
            },
        )
        return router


async def submit(
    request: Request, idempotency_key: Annotated[str | None, Header(max_length=_MAX_KEY, min_length=1)] = None
) -> Response:
    """Queues a job. With an `Idempotency-Key`, the same request again gets the first job."""
    parts = services(request)
    choose(request, (JSON,))
    content_type(request, (JSON,))
    body = await read_body(request, parts.settings.max_body_bytes)
    prepare = partial(_prepare, parts, body)
    card, work, hashed = await run_in_threadpool(prepare) if len(body) > IN_THREAD_BYTES else prepare()
    if not isinstance(work.spec, LogPartitionSpec):
        await run_in_threadpool(parts.models.check_sampler, card, work.spec.sampler)
    traceparent = getattr(request.state, "traceparent", None)
    sent = submission(work, card, owner(request), hashed, idempotency_key, traceparent)
    if work.arrays:
        await run_in_threadpool(parts.files.write_inputs, sent.id, work.arrays)
    # After any other error the job may have been made all the same (a lost reply): then its files must stay.
    try:
        record, created = await parts.queue.submit(sent)
    except (QueueFull, IdempotencyConflict):
        await run_in_threadpool(parts.files.remove, sent.id)
        raise
    if created:
        parts.metrics.submitted.labels(sent.kind, sent.model).inc()
    elif work.arrays:
        await run_in_threadpool(parts.files.remove, sent.id)
    return json_response(job_view(record), 202, {"Location": f"/v1/jobs/{record.id}"})


def _prepare(parts: Services, body: bytes) -> tuple[Card, Work, str]:
    parsed = parse_json(body)
    asked = parse_request(parsed)
    card = parts.models.card(asked.model, asked.version)
    return card, plan(asked, card, parts.settings), request_hash(parsed)


async def page(
    request: Request,
    status: JobStatus | None = None,
    model: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> Response:
    """The key's own jobs, newest first."""
    choose(request, (JSON,))
    try:
        records, following = await services(request).queue.list(owner(request), status, model, limit, cursor)
    except ValueError as error:
        raise invalid(("query", "cursor"), "cursor is not one that a page of this list ended with.") from error
    return json_response({"jobs": [job_view(record) for record in records], "next_cursor": following})


async def one(request: Request, job: Job) -> Response:
    """The job as it is now."""
    choose(request, (JSON,))
    return json_response(job_view(job))


async def cancel(request: Request, job: Job) -> Response:
    """Cancels: a waiting job at once, a running one within a block. Cancelling again changes nothing."""
    choose(request, (JSON,))
    record = await services(request).queue.cancel(job.id)
    if record is None:
        raise Problem("job-not-found", f"The job {job.id} is gone.")
    return json_response(job_view(record), 202 if record.status is JobStatus.RUNNING else 200)


async def events(
    request: Request, job: Job, last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """The job's events after the last one seen."""
    parts = services(request)
    with contextlib.suppress(QueueUnavailable):  # the client comes back, and is told then
        source = parts.queue.events(job.id, last_event_id or "0")
        async with contextlib.aclosing(until(parts.draining, source)) as told:
            async for event in told:
                if event.name == "done":
                    record = await parts.queue.get(job.id)
                    yield ServerSentEvent(data=job_view(record) if record else event.data, event="done", id=event.id)
                elif event.name in _TOLD:
                    yield ServerSentEvent(data=event.data, event=event.name, id=event.id)


async def result(request: Request, job: Job) -> Response:
    """The result, by `Accept`: JSON, a .npy array, or a picture of image-shaped samples."""
    _check_finished(job)
    media = choose(request, media_types(job))
    found = job.result or {}
    if "shape" not in found:
        return json_response({**about(job), **{name: found[name] for name in found if name != "media_types"}})
    parts = services(request)
    domain = _domain(parts, job)

    def respond() -> Response:
        array = parts.files.open_array(job.id, DRAWS).reshape(found["shape"])
        of_one = (array.shape[0], *array.shape[2:])
        mean = parts.files.open_array(job.id, MEAN).reshape(of_one) if job.kind == "complete" else None
        return array_response(job, array, mean, media, domain)

    try:
        return await run_in_threadpool(respond)
    except StoreError:
        _check_finished(await visible_job(request, job.id))  # it may have expired since the job was looked up
        raise


def _check_finished(job: JobRecord) -> None:
    if job.expired:
        raise Problem("expired", "The result was kept for its time and then deleted. Submit the job again.")
    if not job.status.terminal:
        done, total = job.progress.done, job.progress.total
        raise Problem("result-not-ready", f"The job is {job.status.value}: {done} of {total} {job.progress.unit} done.")
    if job.status is not JobStatus.SUCCEEDED:
        why = (job.problem or {}).get("detail") or (job.problem or {}).get("title")
        raise Problem("result-not-ready", f"The job was {job.status.value}" + (f": {why}" if why else "."))


def _domain(parts: Services, job: JobRecord) -> Domain:
    try:
        return parts.models.card(job.model, job.version).input_domain
    except (UnknownModel, NotReady):
        return "real"
