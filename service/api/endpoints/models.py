"""Cards."""

from __future__ import annotations

from typing import ClassVar

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from service.api.deps import services
from service.api.encode import json_response
from service.api.endpoint import Endpoint
from service.api.media import JSON, choose
from service.api.openapi import problems
from service.core.card import Card


class ModelList(BaseModel):
    """Everything that is served, ready or not."""

    models: list[Card]


class ModelCards(Endpoint):
    """`GET /v1/models`, and one card."""

    name: ClassVar[str] = "models"

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["Models"])
        listed = {200: {"model": ModelList}, **problems(401, 406)}
        single = {200: {"model": Card}, **problems(401, 404, 406, 422, 503)}

        @router.get("/v1/models", summary="List models", response_class=Response, responses=listed)
        async def models(request: Request) -> Response:
            choose(request, (JSON,))
            return json_response({"models": [card.model_dump() for card in services(request).models.cards()]})

        @router.get("/v1/models/{name}", summary="Card of a model", response_class=Response, responses=single)
        async def newest(request: Request, name: str) -> Response:
            choose(request, (JSON,))
            return json_response(services(request).models.card(name, None).model_dump())

        @router.get(
            "/v1/models/{name}/versions/{version}",
            summary="Card of a model's version",
            response_class=Response,
            responses=single,
        )
        async def versioned(request: Request, name: str, version: int = Path(ge=1)) -> Response:
            choose(request, (JSON,))
            return json_response(services(request).models.card(name, version).model_dump())

        return router
