"""Metrics for Prometheus."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from service.api.deps import Services, services
from service.api.endpoint import Endpoint
from service.api.openapi import problems
from service.queue.errors import QueueUnavailable

SCRAPE_S = 2.0


class PrometheusMetrics(Endpoint):
    """`GET /metrics`: this process's own metrics, and what the queue says at this moment."""

    name: ClassVar[str] = "metrics"

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter(tags=["Operations of the service"])

        @router.get(
            "/metrics",
            summary="Prometheus metrics",
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401)},
        )
        async def metrics(request: Request) -> Response:
            parts = services(request)
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            text = encode(parts.metrics.registry) + encode(await _queue(parts))
            # Two registries in one answer: OpenMetrics ends each with its mark, which may stand only once.
            text = text.replace(b"# EOF\n", b"") + (b"# EOF\n" if b"# EOF\n" in text else b"")
            return Response(text, media_type=content_type)

        return router


async def _queue(parts: Services) -> CollectorRegistry:
    registry = CollectorRegistry()
    up = Gauge("ebm_queue_up", "Whether the job queue answers.", registry=registry)
    try:
        depth, workers = await asyncio.wait_for(asyncio.gather(parts.queue.depth(), parts.queue.workers()), SCRAPE_S)
    except (QueueUnavailable, TimeoutError):
        return registry
    up.set(1)
    waiting = Gauge("ebm_queue_depth", "Jobs waiting.", ("model",), registry=registry)
    for model, jobs in depth.items():
        waiting.labels(model).set(jobs)
    Gauge("ebm_workers", "Workers alive.", registry=registry).set(len(workers))
    return registry
