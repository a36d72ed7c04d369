"""The front door."""

from __future__ import annotations

from typing import ClassVar

from fastapi import APIRouter
from starlette.responses import RedirectResponse

from service.api.endpoint import Endpoint


class Root(Endpoint):
    """`GET /` leads to the documentation."""

    name: ClassVar[str] = "root"

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter()

        @router.get("/", include_in_schema=False)
        async def root() -> RedirectResponse:
            return RedirectResponse("docs")

        return router
