"""What a problem's `type` leads to."""

from __future__ import annotations

import html
from typing import ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.encode import json_response
from service.api.endpoint import Endpoint
from service.api.errors import KINDS, Problem
from service.api.media import JSON, choose
from service.api.openapi import problems

HTML = "text/html"


class ProblemType(BaseModel):
    """One kind of problem."""

    type: str
    title: str
    status: int
    meaning: str


class ProblemTypes(Endpoint):
    """`GET /problems/{slug}`."""

    name: ClassVar[str] = "problems"

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter(tags=["Operations of the service"])

        @router.get(
            "/problems/{slug}",
            summary="What a problem means",
            response_class=Response,
            responses={
                200: {"model": ProblemType, "content": {HTML: {"schema": {"type": "string"}}}},
                **problems(401, 404, 406),
            },
        )
        async def problem(request: Request, slug: str) -> Response:
            kind = KINDS.get(slug)
            if kind is None:
                raise Problem("not-found", f"There is no problem type of that name; there are: {', '.join(KINDS)}.")
            about = ProblemType(type=f"/problems/{slug}", title=kind.title, status=kind.status, meaning=kind.meaning)
            if choose(request, (JSON, HTML)) == JSON:
                return json_response(about.model_dump())
            title, meaning = html.escape(f"{kind.status} {kind.title}"), html.escape(kind.meaning)
            page = f"<!doctype html><html lang=en><title>{title}</title><h1>{title}</h1><p>{meaning}</p></html>"
            return Response(page, media_type=HTML)

        return router
