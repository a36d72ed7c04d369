"""The routes of every operation on the shelf, with and without a version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import orjson
from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from models.discovery import discover
from models.errors import CapabilityError
from service.api.body import IN_THREAD_BYTES, parse_json, parse_npy, read_body
from service.api.deps import route_path, services
from service.api.encode import answer
from service.api.endpoint import Endpoint
from service.api.errors import from_pydantic, invalid
from service.api.inputs import parse_inputs
from service.api.media import JSON, NPY, choose, content_type
from service.api.openapi import NPY_CONTENT, operation_request, problems
from service.api.operation import Call, Fields, Operation
from service.core.card import Card
from service.settings import Settings


class Operations(Endpoint):
    """`POST /v1/models/{name}[/versions/{version}]/{operation}`."""

    name: ClassVar[str] = "operations"

    def router(self) -> APIRouter:
        """Two routes an operation."""
        router = APIRouter(tags=["Operations"])
        for kind in discover("service.api.operations", Operation).values():
            operation = kind()
            for path, endpoint in _endpoints(operation).items():
                router.add_api_route(
                    f"/v1/models/{{name}}{path}/{operation.name}",
                    endpoint,
                    methods=["POST"],
                    summary=operation.summary,
                    operation_id=f"{operation.name}{'-version' if path else ''}",
                    response_class=Response,
                    responses={
                        200: {
                            "model": operation.answer,
                            "description": f"JSON, or `{operation.main}` alone as a .npy array.",
                            "content": NPY_CONTENT,
                        },
                        **problems(400, 401, 404, 406, 413, 415, 422, 429, 503),
                    },
                    openapi_extra={"requestBody": operation_request(operation)},
                )
        return router


def _endpoints(operation: Operation) -> dict[str, Callable[..., Awaitable[Response]]]:
    async def newest(request: Request, name: str) -> Response:
        return await respond(request, operation, name, None)

    async def versioned(request: Request, name: str, version: int = Path(ge=1)) -> Response:
        return await respond(request, operation, name, version)

    return {"": newest, "/versions/{version}": versioned}


async def respond(request: Request, operation: Operation, name: str, version: int | None) -> Response:
    """One operation, from the raw request to the encoded answer."""
    parts, route = services(request), route_path(request)
    media = choose(request, (JSON, NPY))
    card = parts.models.card(name, version)
    if operation.name not in card.capabilities:
        raise CapabilityError(f"{card.name} version {card.version} cannot do {operation.name}.", card.capabilities)
    sent_as = content_type(request, (JSON, NPY))
    body = await read_body(request, parts.settings.max_body_bytes)
    with parts.metrics.phase(route, "parse"):
        parse = partial(_parse, request, operation, card, parts.settings, sent_as, body)
        call = await run_in_threadpool(parse) if len(body) > IN_THREAD_BYTES else parse()
    with parts.metrics.phase(route, "compute"):
        result = await parts.models.run(card, operation.name, call.inputs.values, **call.arguments)
    parts.metrics.rows.labels(card.name, operation.name).inc(len(call.inputs))
    with parts.metrics.phase(route, "encode"):
        return await answer(operation.finish(call, result), media, operation.main)


def _parse(request: Request, operation: Operation, card: Card, settings: Settings, sent_as: str, body: bytes) -> Call:
    if sent_as == NPY:
        value: Any = parse_npy(body)
        fields = _fields(operation.fields, _query(request), "query", strict=False)
    else:
        if request.query_params:
            name = next(iter(request.query_params))
            raise invalid(("query", name), f"With a JSON body, {name} goes into the body, not into the query string.")
        parsed = parse_json(body)
        if "inputs" not in parsed:
            raise invalid(("body", "inputs"), "inputs is missing: an array of examples is expected.")
        value = parsed.pop("inputs")
        fields = _fields(operation.fields, parsed, "body", strict=True)
    call = Call(card, parse_inputs(value, card, settings.max_rows, nulls=operation.nulls), fields, settings)
    return replace(call, arguments=operation.arguments(call))


def _fields(kind: type[Fields], values: dict[str, Any], where: str, *, strict: bool) -> Fields:
    try:
        return kind.model_validate(values, strict=strict)
    except ValidationError as error:
        raise from_pydantic(error.errors(), (where,)) from error


def _query(request: Request) -> dict[str, Any]:
    """The query's fields; a value that is JSON (a number, a list of labels) is read as such."""
    found: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in found:
            raise invalid(("query", name), f"{name} was sent twice.")
        try:
            found[name] = orjson.loads(text)
        except orjson.JSONDecodeError:
            found[name] = text
    return found
