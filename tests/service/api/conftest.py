"""The app on small exact models, the real queue and real files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.queue.client import JobQueue
from service.queue.lease import JobSource
from service.settings import Settings
from service.store.files import JobFiles
from service.telemetry import configure_logging
from tests.service.api.small_models import SmallModels

Start = Callable[..., FastAPI]


@pytest.fixture(scope="session", autouse=True)
def logging_as_in_service() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging("debug")
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()


@pytest.fixture
def models() -> SmallModels:
    return SmallModels()


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture
async def queue(redis_url: str, namespace: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue(redis_url, namespace, queue_limit=3, result_ttl_s=60)
    yield queue
    await queue.aclose()


@pytest.fixture
def source(redis_url: str, namespace: str) -> Any:
    """A worker's hands."""
    source = JobSource(redis_url, namespace, lease_s=30)
    yield source
    source.close()


@pytest.fixture
def start(models: SmallModels, queue: JobQueue, files: JobFiles) -> Start:
    """The app with other settings."""

    def build(**settings: Any) -> FastAPI:
        return create_app(Settings(**settings), models, queue, files)

    return build


@pytest.fixture
def app(start: Start) -> FastAPI:
    return start()


def connect(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api", **options)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as client:
        yield client


@pytest.fixture
def serve() -> Callable[[FastAPI], AbstractAsyncContextManager[str]]:
    """The app behind a real server on a free port."""

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[str]:
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await task

    return run
