"""Whether the process lives, and whether it should be sent work."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.deps import Services, services
from service.api.encode import json_response
from service.api.endpoint import Endpoint
from service.api.errors import Problem
from service.api.openapi import problems
from service.queue.errors import QueueUnavailable

PING_S = 2.0
RETRY_AFTER_S = 5.0


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(Live):
    """The process can be sent work."""

    ready: bool


class Health(Endpoint):
    """Liveness and readiness, under their own paths and under those of the Open Inference Protocol."""

    name: ClassVar[str] = "health"

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["Operations of the service"])

        @router.get("/v2/health/live", include_in_schema=False)
        @router.get("/health/live", summary="Liveness", response_class=Response, responses={200: {"model": Live}})
        async def live() -> Response:
            return json_response({"live": True})

        @router.get("/v2/health/ready", include_in_schema=False)
        @router.get(
            "/health/ready",
            summary="Readiness",
            response_class=Response,
            responses={200: {"model": Ready}, **problems(503)},
        )
        async def ready(request: Request) -> Response:
            if why := await obstacle(services(request)):
                raise Problem("not-ready", why, retry_after_s=RETRY_AFTER_S)
            return json_response({"live": True, "ready": True})

        return router


async def obstacle(parts: Services) -> str | None:
    """Why the service should be sent no work now; None where it should."""
    if parts.draining.is_set():
        return "The service is shutting down."
    loading = [card.name for card in parts.models.cards() if card.state == "loading"]
    if loading:
        return f"Still loading: {', '.join(loading)}."
    try:
        await asyncio.wait_for(parts.queue.ping(), PING_S)
    except (QueueUnavailable, TimeoutError) as error:
        return f"The job queue does not answer: {error or 'timeout'}."
    return None
