"""Every error that the API answers with: RFC 9457 problem details, one slug for each kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from models.errors import CapabilityError, InputError
from service.core.errors import NotReady, Overloaded, UnknownModel
from service.queue.errors import IdempotencyConflict, QueueFull, QueueUnavailable

PROBLEM_JSON = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One kind of problem: its status, its title, and what a reader of `/problems/{slug}` is told."""

    status: int
    title: str
    meaning: str


KINDS: dict[str, Kind] = {
    "malformed-body": Kind(400, "Malformed body", "The request body could not be read as what its Content-Type says."),
    "unauthorized": Kind(401, "Unauthorized", "Send a valid API key: `Authorization: Bearer KEY`."),
    "forbidden": Kind(403, "Forbidden", "The API key is valid, but may not do this."),
    "not-found": Kind(404, "Not found", "Nothing is served at this path. `/docs` lists what is."),
    "model-not-found": Kind(404, "Model not found", "No such model or version. `GET /v1/models` lists what is served."),
    "job-not-found": Kind(404, "Job not found", "No such job, or it belongs to another API key."),
    "method-not-allowed": Kind(405, "Method not allowed", "The path exists, but not for this method; see `Allow`."),
    "not-acceptable": Kind(406, "Not acceptable", "The answer has none of the media types that `Accept` asks for."),
    "conflict": Kind(409, "Conflict", "The Idempotency-Key was used before with another request."),
    "result-not-ready": Kind(409, "Result not ready", "The job has not finished, or it did not succeed."),
    "expired": Kind(410, "Expired", "The job's result was kept for its time and then deleted."),
    "too-large": Kind(413, "Too large", "The request body, after decompression, is beyond the size limit."),
    "unsupported-media-type": Kind(
        415, "Unsupported media type", "The body's Content-Type or Content-Encoding is not understood here."
    ),
    "invalid-input": Kind(
        422, "Invalid input", "A field is unknown, missing, or outside its shape, domain or limit; `errors` says which."
    ),
    "capability-missing": Kind(
        422, "Capability missing", "The model cannot do this; its card's `capabilities` list what it can."
    ),
    "rate-limited": Kind(429, "Rate limited", "Too much work is waiting. Retry after `Retry-After` seconds."),
    "queue-full": Kind(429, "Queue full", "Too many jobs wait for this model. Retry after `Retry-After` seconds."),
    "internal": Kind(500, "Internal error", "A fault of the service. The log has its trace under the request id."),
    "not-ready": Kind(503, "Not ready", "The model or the queue cannot answer now. Retry after `Retry-After` seconds."),
}

_BY_STATUS = {
    400: "malformed-body",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    422: "invalid-input",
}


class FieldError(BaseModel):
    """One invalid field."""

    loc: list[str | int] = Field(description='Where: for example `["body", "inputs", 3]`.')
    msg: str


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="`/problems/{slug}`", examples=["/problems/invalid-input"])
    title: str
    status: int
    detail: str = Field(description="What was wrong and what was expected.")
    instance: str = Field(description="The request id.")
    errors: list[FieldError] | None = Field(None, description="The invalid fields, where there are any.")


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer that is a problem; raised anywhere below a route."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        errors: Iterable[tuple[Sequence[str | int], str]] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail
        self.errors = [FieldError(loc=list(loc), msg=msg) for loc, msg in errors]
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))


def invalid(loc: Sequence[str | int], message: str) -> Problem:
    """An `invalid-input` problem about one field."""
    return Problem("invalid-input", message, errors=[(loc, message)])


def response(scope: Scope, problem: Problem) -> Response:
    """The problem as a response. Leaves the slug in the scope for the log and the metrics."""
    state = scope.setdefault("state", {})
    state["problem"] = problem.slug
    kind = KINDS[problem.slug]
    body: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "instance": state.get("request_id", ""),
    }
    if problem.errors:
        body["errors"] = [error.model_dump() for error in problem.errors]
    return Response(orjson.dumps(body), kind.status, headers=problem.headers, media_type=PROBLEM_JSON)


def from_pydantic(errors: Iterable[Mapping[str, Any]], prefix: Sequence[str | int] = ()) -> Problem:
    """An `invalid-input` problem that names every field that pydantic refused."""
    fields = [((*prefix, *error["loc"]), str(error["msg"])) for error in errors]
    named = "; ".join(f"{'.'.join(str(part) for part in loc[len(prefix) :])}: {msg}" for loc, msg in fields)
    return Problem("invalid-input", named or "The request is invalid.", errors=fields)


def translate(error: Exception) -> Problem:  # noqa: PLR0911 - one arm for each exception
    """The problem that stands for an exception of a lower floor, or of the framework."""
    match error:
        case Problem():
            return error
        case InputError():
            return invalid(("body", error.field), str(error))
        case CapabilityError():
            can = f" It can: {', '.join(error.available)}." if error.available else ""
            return Problem("capability-missing", f"{error}{can}")
        case UnknownModel():
            return Problem("model-not-found", str(error))
        case NotReady():
            return Problem("not-ready", str(error), retry_after_s=error.retry_after_s)
        case Overloaded():
            return Problem("rate-limited", str(error), retry_after_s=error.retry_after_s)
        case QueueFull():
            return Problem("queue-full", str(error), retry_after_s=error.retry_after_s)
        case QueueUnavailable():
            return Problem("not-ready", str(error), retry_after_s=5)
        case IdempotencyConflict():
            return Problem("conflict", str(error))
        case RequestValidationError():
            return from_pydantic(error.errors())
        case ClientDisconnect():
            return Problem("malformed-body", "The connection closed before the whole body had arrived.")
        case HTTPException(status_code=status) if status in _BY_STATUS:
            slug = _BY_STATUS[status]
            return Problem(slug, KINDS[slug].meaning, headers=error.headers)
    return Problem("internal", "A fault of the service; the request id finds it in the log.")


def install(app: FastAPI) -> None:
    """Makes every expected exception a problem. What is left becomes a 500 in the outermost middleware."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code < HTTPStatus.BAD_REQUEST:
            return Response(status_code=error.status_code, headers=error.headers)
        return response(request.scope, translate(error))

    for kind in (
        Problem,
        InputError,
        CapabilityError,
        UnknownModel,
        NotReady,
        Overloaded,
        QueueFull,
        QueueUnavailable,
        IdempotencyConflict,
        RequestValidationError,
        ClientDisconnect,
        HTTPException,
    ):
        app.add_exception_handler(kind, handle)
