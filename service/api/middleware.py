"""Around every request: its id, its log line and metrics, its key. Pure ASGI, so that streams stay streams."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Sequence

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import Problem, response, translate
from service.telemetry import Metrics

log = structlog.get_logger(__name__)

PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
"""Paths that want no key."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def fingerprint(key: str) -> str:
    """What stands for a key in records and logs."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class RequestContext:
    """Outermost: gives the request its id, times it, logs it, and answers 500 to what nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        sent_id = headers.get("x-request-id", "")
        state["request_id"] = request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        context = {"request_id": request_id}
        if _TRACEPARENT.fullmatch(trace := headers.get("traceparent", "")):
            state["traceparent"] = trace
            context["trace_id"] = trace.split("-")[1]
        status, start = 0, time.perf_counter()

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(**context), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, tagged)
            except Exception as error:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                if status:
                    raise
                await response(scope, translate(error))(scope, receive, tagged)
            finally:
                self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.duration.labels(route, method, str(status)).observe(seconds)
        problem = scope["state"].get("problem")
        if problem:
            self._metrics.rejected.labels(problem).inc()
        write = log.debug if scope["path"] in PROBES else log.info
        write("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1e3, 2), problem=problem)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Authorization:
    """Wants one of the bearer keys on every path but the probes; without keys, lets everything pass."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not self._keys or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        scheme, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
        key = sent.strip()
        # Every key is compared, so that the time taken does not tell which one is near.
        found = [hmac.compare_digest(key.encode(), known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(found):
            what = "is not one of the service's keys" if key else "is missing"
            problem = Problem(
                "unauthorized",
                f"The API key {what}; send it as `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await response(scope, problem)(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = fingerprint(key)
        await self._app(scope, receive, send)
