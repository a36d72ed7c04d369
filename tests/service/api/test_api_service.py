"""What holds for every path: problems, keys, request ids, health, metrics, documentation."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.api.app import create_app
from service.api.errors import KINDS
from service.queue.client import JobQueue
from service.settings import Settings
from service.store.files import JobFiles
from tests.service.api.conftest import Start, connect
from tests.service.api.small_models import SmallModels

pytestmark = pytest.mark.anyio

ONE = [[1, 0, 1], [0, 1, 1]]
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
Serve = Callable[[FastAPI], AbstractAsyncContextManager[str]]


def check_problem(response: httpx.Response, slug: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"/problems/{slug}"
    assert body["status"] == response.status_code == KINDS[slug].status
    assert body["title"] == KINDS[slug].title
    assert body["instance"] == response.headers["x-request-id"]
    assert set(body) <= {"type", "title", "status", "detail", "instance", "errors"}
    assert body["detail"]
    return body


# Problems


@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("GET", "/v1/nothing", "not-found"),
        ("POST", "/v1/models/digits/dream", "not-found"),
        ("PUT", "/v1/models", "method-not-allowed"),
        ("GET", "/v1/models/digits/energy", "method-not-allowed"),
        ("GET", "/v1/models/nobody", "model-not-found"),
        ("GET", "/v1/models/digits/versions/9", "model-not-found"),
        ("POST", "/v1/models/nobody/energy", "model-not-found"),
        ("GET", "/v1/models/digits/versions/x", "invalid-input"),
        ("GET", "/v1/models/digits/versions/0", "invalid-input"),
        ("POST", "/v1/models/plain/classify", "capability-missing"),
        ("GET", "/v1/models/slow", "not-ready"),
        ("GET", "/problems/nothing", "not-found"),
    ],
)
async def test_refusals_are_problems(client: httpx.AsyncClient, method: str, path: str, slug: str) -> None:
    check_problem(await client.request(method, path, json={"inputs": ONE} if method == "POST" else None), slug)


async def test_method_not_allowed_names_those_that_are(client: httpx.AsyncClient) -> None:
    assert (await client.put("/v1/models")).headers["allow"] == "GET"


async def test_missing_capability_names_what_the_model_can_do(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/plain/features", json={"inputs": [0] * 6})
    assert "energy, complete, sample" in check_problem(response, "capability-missing")["detail"]


async def test_overload_tells_when_to_come_back(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/busy/energy", json={"inputs": ONE})
    check_problem(response, "rate-limited")
    assert response.headers["retry-after"] == "1"
    response = await client.get("/v1/models/slow")
    assert response.headers["retry-after"] == "3"


async def test_what_nobody_expected_is_logged_and_not_told(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.post("/v1/models/broken/energy", json={"inputs": ONE})
    check_problem(response, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None or "exc_info" in record.msg
    assert record.msg["request_id"] == response.headers["x-request-id"]  # type: ignore[index]


async def test_every_problem_type_can_be_read(client: httpx.AsyncClient) -> None:
    for slug, kind in KINDS.items():
        assert (await client.get(f"/problems/{slug}")).json()["status"] == kind.status
    page = await client.get("/problems/expired", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "410 Expired" in page.text


async def test_connection_that_breaks_in_the_body_does_no_harm(app: FastAPI, serve: Serve) -> None:
    async with serve(app) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/models/digits/energy HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        writer.write(head)
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/models")).status_code == 200


async def test_too_large_a_body_is_answered_over_the_wire(start: Start, serve: Serve) -> None:
    async with serve(start(max_body_bytes=4096)) as url, httpx.AsyncClient(base_url=url) as client:
        check_problem(await client.post("/v1/models/digits/energy", content=bytes(5000)), "too-large")
        check_problem(await client.post("/v1/models/digits/energy", content=bytes(20_000_000)), "too-large")
        assert (await client.get("/v1/models")).status_code == 200


# Cards


async def test_cards_say_everything_of_the_contract(client: httpx.AsyncClient) -> None:
    card = (await client.get("/v1/models/digits")).json()
    assert set(card) >= {
        *("name", "version", "family", "visible", "classes", "capabilities", "energy_kind", "log_partition"),
        *("training", "backend", "device", "digest", "state", "loaded_at"),
    }
    assert card["version"] == 2
    assert card["visible"] == {"shape": [2, 3], "domain": "binary"}
    assert card["log_partition"]["stderr"] == 0
    assert card["training"]["metrics"] == {"loss": 1.0}
    assert (await client.get("/v1/models/digits/versions/1")).json()["version"] == 1
    cards = (await client.get("/v1/models")).json()["models"]
    assert card in cards
    assert len(cards) == 10


# Keys


async def test_every_path_but_the_probes_wants_a_key(start: Start) -> None:
    app = start(api_keys="first, second")
    async with connect(app) as client:
        for path in PROBES:
            assert (await client.get(path)).status_code == 200
        for path in (
            "/",
            "/docs",
            "/openapi.json",
            "/metrics",
            "/v1/models",
            "/v1/jobs",
            "/nowhere",
            "/problems/expired",
        ):
            for authorization in (
                "",
                "Bearer",
                "Bearer wrong",
                "Basic first",
                "first",
                "Bearer first second",
                "Bearer ü",
            ):
                headers = [(b"Authorization", authorization.encode())] if authorization else []
                response = await client.get(path, headers=headers)
                check_problem(response, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        for authorization in ("Bearer first", "bearer second", "Bearer  first"):
            response = await client.get("/v1/models", headers={"Authorization": authorization})
            assert response.status_code == 200


async def test_without_keys_no_key_is_asked_for(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200


# Request ids and logs


@pytest.mark.parametrize("sent", ["abc-123", "A" * 128, "1.2:3_4"])
async def test_request_id_is_taken_and_returned(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/v1/models/nobody", headers={"X-Request-ID": sent})
    assert response.headers["x-request-id"] == sent == response.json()["instance"]


@pytest.mark.parametrize("sent", ["", "A" * 129, "a b", "a\tb", "<script>"])
async def test_other_request_ids_are_replaced(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/v1/models", headers={"X-Request-ID": sent})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_request_is_logged_with_id_and_trace(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-ID": "mine", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with caplog.at_level(logging.INFO):
        await client.get("/v1/models/nobody", headers=headers)
    (entry,) = [record.msg for record in caplog.records if record.name == "service.api.middleware"]
    assert isinstance(entry, dict)
    assert (entry["request_id"], entry["trace_id"], entry["status"]) == ("mine", trace, 404)
    assert entry["problem"] == "model-not-found"


@pytest.mark.parametrize("flag", ["True", "False"])
def test_log_lines_have_no_values_of_variables(flag: str) -> None:
    code = f"""
import logging, structlog
from service.telemetry import configure_logging
configure_logging("info", json={flag})
secret = "the-inputs"
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("a").exception("failed", x=1)
logging.getLogger("b").info("plain %s", "text")
logging.getLogger("b").debug("hidden")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in done.stderr
    assert "plain text" in done.stderr
    assert "the-inputs" not in done.stderr.replace('secret = "the-inputs"', "")
    assert "hidden" not in done.stderr


# Health


async def test_ready_while_models_and_queue_are(client: httpx.AsyncClient) -> None:
    for path in PROBES:
        response = await client.get(path)
        assert response.status_code == 200
        assert response.json()["live"] is True
    assert (await client.get("/health/ready")).json()["ready"] is True


async def test_not_ready_once_draining(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.services.draining.set()
    for path in ("/health/ready", "/v2/health/ready"):
        response = await client.get(path)
        check_problem(response, "not-ready")
        assert int(response.headers["retry-after"]) > 0
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.post("/v1/models/digits/energy", json={"inputs": ONE})).status_code == 200


async def test_not_ready_while_a_model_loads(
    client: httpx.AsyncClient, models: SmallModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = models.by_name["slow"][1]
    monkeypatch.setattr(models, "cards", lambda: [loading])
    assert "slow" in check_problem(await client.get("/health/ready"), "not-ready")["detail"]


async def test_without_the_queue_jobs_wait_and_operations_go_on(models: SmallModels, tmp_path: Path) -> None:
    queue = JobQueue(f"unix://{tmp_path}/nobody-listens")
    app = create_app(Settings(), models, queue, JobFiles(tmp_path))
    async with connect(app) as client:
        check_problem(await client.get("/health/ready"), "not-ready")
        for response in (
            await client.get("/v1/jobs"),
            await client.get("/v1/jobs/abc"),
            await client.delete("/v1/jobs/abc"),
            await client.get("/v1/jobs/abc/events"),
            await client.post("/v1/jobs", json={"kind": "sample", "model": "digits"}),
        ):
            check_problem(response, "not-ready")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.post("/v1/models/digits/energy", json={"inputs": ONE})).status_code == 200
        metrics = await client.get("/metrics")
        assert "ebm_queue_up 0.0" in metrics.text
    await queue.aclose()


# Metrics


async def test_metrics_count_by_route_and_not_by_path(client: httpx.AsyncClient) -> None:
    await client.post("/v1/models/digits/energy", json={"inputs": [ONE, ONE]})
    for name in ("a", "b", "c"):
        await client.get(f"/v1/models/{name}")
        await client.get(f"/{name}")
        await client.request(name.upper() * 3, "/")
    await client.post("/v1/jobs", json={"kind": "sample", "model": "digits"})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    route = "/v1/models/{name}/energy"
    assert values["ebm_request_duration_seconds_count", *sorted((route, "POST", "200"))] == 1
    assert values["ebm_request_duration_seconds_count", *sorted(("/v1/models/{name}", "GET", "404"))] == 3
    assert values["ebm_request_duration_seconds_count", *sorted(("unmatched", "GET", "404"))] == 3
    assert values["ebm_request_duration_seconds_count", *sorted(("/", "other", "405"))] == 3
    for phase in ("parse", "compute", "encode"):
        assert values["ebm_request_phase_seconds_count", *sorted((route, phase))] == 1
    assert values["ebm_rows_total", "digits", "energy"] == 2
    assert values["ebm_rejected_total", "model-not-found"] == 3
    assert values["ebm_jobs_submitted_total", "digits", "sample"] == 1
    assert values["ebm_queue_depth", "digits"] == 1
    assert values["ebm_queue_up",] == 1
    assert values["ebm_workers",] == 0


async def test_metrics_speak_openmetrics_too(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    names = {family.name for family in openmetrics.text_string_to_metric_families(response.text)}  # type: ignore[no-untyped-call]
    assert {"ebm_rejected", "ebm_queue_up"} <= names


# Documentation


async def test_docs_need_no_other_host(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).headers["location"] == "docs"
    for path in ("/docs", "/redoc"):
        page = (await client.get(path)).text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        for link in links:
            assert link.startswith("/"), link
            assert len((await client.get(link)).content) > 1000
        assert "https://" not in re.sub(r"<!--.*?-->", "", page)


def test_every_module_of_the_api_goes_without_torch() -> None:
    folder = importlib.import_module("service.api")
    names = [module.name for module in pkgutil.walk_packages(folder.__path__, "service.api.")]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_schema_declares_keys_where_they_are_wanted(start: Start) -> None:
    assert "security" not in start().openapi()
    assert start(api_keys="k").openapi()["security"] == [{"key": []}]


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*(references(value) for value in schema.values()))
    return set().union(*(references(value) for value in schema)) if isinstance(schema, list) else set()


async def test_schema_refers_to_nothing_that_is_not_there(app: FastAPI) -> None:
    schema = app.openapi()
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) == known
