"""What `/openapi.json` says beyond what FastAPI reads off the routes: raw request bodies, problems, bearer keys."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.errors import KINDS, PROBLEM_JSON, FieldError, ProblemDetails
from service.api.media import JSON, NPY
from service.api.operation import Operation
from service.api.schemas import JOB_EXAMPLE, JOB_REQUEST

_REF = "#/components/schemas/{model}"
NPY_CONTENT: dict[str, Any] = {NPY: {"schema": {"type": "string", "format": "binary"}}}
_INPUTS = {
    "type": "array",
    "minItems": 1,
    "items": {},
    "title": "Inputs",
    "description": "Nested arrays of numbers of shape (n, *shape), flat (n, D), or one example without the "
    "leading axis; every number inside the model's domain.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with problems of these statuses, and with 500."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, 500):
        slugs = [slug for slug, kind in KINDS.items() if kind.status == status]
        found[status] = {
            "description": " or ".join(f"`{slug}`" for slug in slugs),
            "content": {PROBLEM_JSON: {"schema": {"$ref": _REF.format(model="ProblemDetails")}}},
        }
    return found


def job_request() -> dict[str, Any]:
    """A job's request body: one schema a kind."""
    schema = {**JOB_REQUEST.json_schema(ref_template=_REF), "title": "JobRequest"}
    return {"required": True, "content": {JSON: {"schema": schema, "example": JOB_EXAMPLE}}}


def operation_request(operation: Operation) -> dict[str, Any]:
    """An operation's request body: `inputs` and its fields, or `inputs` alone as .npy."""
    schema = operation.fields.model_json_schema(ref_template=_REF)
    whole = {
        **schema,
        "title": f"{type(operation).__name__}Request",
        "description": f"{operation.summary} With a .npy body, the fields beside `inputs` go in the query string.",
        "properties": {"inputs": _nullable_inputs(operation), **schema.get("properties", {})},
        "required": ["inputs"],
    }
    return {
        "required": True,
        "content": {JSON: {"schema": whole, "example": {"inputs": [[0, 1, 1, 0]]}}, **NPY_CONTENT},
    }


def _nullable_inputs(operation: Operation) -> dict[str, Any]:
    if not operation.nulls:
        return _INPUTS
    return {**_INPUTS, "description": f"{_INPUTS['description']} null stands for an unknown unit."}


def _hoist(schema: dict[str, Any]) -> None:
    """Moves the schemas of request bodies to the components, where code generators find them."""
    known = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        known.pop(name, None)
    for operation in (entry for path in schema["paths"].values() for entry in path.values()):
        if PROBLEM_JSON not in operation["responses"].get("422", {}).get("content", {}):
            operation["responses"].pop("422", None)  # FastAPI's own, which no route here answers with
        content = operation.get("requestBody", {}).get("content", {}).get(JSON)
        if content and "title" in content["schema"]:
            body = dict(content["schema"])
            known.update(body.pop("$defs", {}))
            known[body["title"]] = body
            content["schema"] = {"$ref": _REF.format(model=body["title"])}
    for model in (FieldError, ProblemDetails):
        known[model.__name__] = {**model.model_json_schema(ref_template=_REF)}
        known[model.__name__].pop("$defs", None)


def install(app: FastAPI, *, authorized: bool) -> None:
    """Replaces the app's schema by one that has also what FastAPI cannot see."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = copy.deepcopy(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
            _hoist(schema)
            if authorized:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
