"""The FastAPI app: parts in, routes out."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from models.discovery import discover
from service.api import errors, openapi
from service.api.deps import Services
from service.api.endpoint import Endpoint
from service.api.middleware import Authorization, RequestContext
from service.api.ports import JobFiles, JobQueue, Models
from service.settings import Settings
from service.telemetry import Metrics

DESCRIPTION = (
    "Energy-based models over REST: energies, log-densities, scores, completions and anomaly scores at once; "
    "MCMC sampling and log Z as jobs. Errors are RFC 9457 problems, each `type` readable at its path."
)


def create_app(settings: Settings, models: Models, queue: JobQueue, files: JobFiles) -> FastAPI:
    """The app on these parts, which it neither opens nor closes.

    Whoever runs it sets `app.state.services.draining` when a shutdown begins.
    """
    keys = [key.get_secret_value() for key in settings.api_keys]
    # The documentation's scripts come with the package: no other host is asked for anything.
    app: FastAPI = FastAPIOffline(title="ebm-server", version=version("ebm-server"), description=DESCRIPTION)
    app.state.services = parts = Services(settings, models, queue, files, Metrics())
    errors.install(app)
    for endpoint in discover("service.api.endpoints", Endpoint).values():  # type: ignore[type-abstract]
        app.include_router(endpoint().router())
    openapi.install(app, authorized=bool(keys))
    app.add_middleware(Authorization, keys=keys)
    app.add_middleware(RequestContext, metrics=parts.metrics)
    return app
