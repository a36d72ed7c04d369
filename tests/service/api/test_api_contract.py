"""The app against its own OpenAPI schema: what it answers is what it says it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.app import create_app
from service.queue.client import JobQueue
from service.settings import Settings
from service.store.files import JobFiles
from tests.service.api.small_models import SmallModels

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def url(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app behind a real server, in a thread with its own loop."""
    folder: Path = tmp_path_factory.mktemp("files")
    started = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        queue = JobQueue(redis_url, "contract", queue_limit=10**6)
        app = create_app(Settings(), SmallModels(), queue, JobFiles(folder))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
        found["server"] = server
        task = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        found["port"] = server.servers[0].sockets[0].getsockname()[1]
        started.set()
        await task
        await queue.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{found['port']}"
    found["server"].should_exit = True
    thread.join(60)


PARTS: Any = None  # the schema is read off the routes; nothing is asked of the parts
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings(), PARTS, PARTS, PARTS).openapi())
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]


def _aim(case: Any) -> None:
    """At a model that exists, with inputs of its shape: chance would never find them."""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "digits"
    fitting = {"model": "digits", "inputs": [[1, 0, 1], [0, 1, 1]], "mask": [1, 1, 1, 0, 0, 0], "sampler": "gibbs"}
    if isinstance(case.body, dict):
        case.body = {name: fitting.get(name, value) for name, value in case.body.items()}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_answers_are_those_of_the_schema(operation: Any, mode: GenerationMode, url: str) -> None:
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        pytest.skip("nothing of it can be sent wrongly")

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            _aim(case)
        case.call_and_validate(base_url=url, checks=CHECKS)

    check()
