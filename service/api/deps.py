"""What every endpoint is handed, and who is asking."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fastapi import Request

from service.api.ports import JobFiles, JobQueue, Models
from service.settings import Settings
from service.telemetry import Metrics


@dataclass(frozen=True)
class Services:
    """The parts that the endpoints share, one set for each app (`app.state.services`).

    Setting `draining` is the first step of a shutdown: readiness turns 503 and event streams end, so that clients
    resume them elsewhere; requests in flight go on.
    """

    settings: Settings
    models: Models
    queue: JobQueue
    files: JobFiles
    metrics: Metrics
    draining: asyncio.Event = field(default_factory=asyncio.Event)


def services(request: Request) -> Services:
    """The app's parts."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def owner(request: Request) -> str:
    """Fingerprint of the key that asks, or "" where no keys are configured."""
    return str(getattr(request.state, "owner", ""))


def route_path(request: Request) -> str:
    """The route's template, such as `/v1/models/{name}/energy`: few enough to label a metric."""
    return str(getattr(request.scope.get("route"), "path", "unmatched"))
