"""Jobs over HTTP, with the real queue, real files, and a worker's hands in the test's own."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from service.api.app import create_app
from service.api.results import CHUNK_BYTES
from service.core.job import Claim, CompleteSpec, JobStatus, LogPartitionSpec, Progress, SampleSpec
from service.queue.client import JobQueue
from service.queue.lease import JobSource
from service.settings import Settings
from service.store.files import JobFiles
from tests.service.api.conftest import Start, connect
from tests.service.api.small_models import SmallModels

pytestmark = pytest.mark.anyio

ONE = [[1, 0, 1], [0, 1, 1]]
SAMPLE: dict[str, Any] = {
    "kind": "sample",
    "model": "digits",
    "chains": 4,
    "draws": 3,
    "burn_in": 10,
    "thin": 2,
    "seed": 7,
}
NPY = "application/x-npy"
Serve = Callable[[FastAPI], AbstractAsyncContextManager[str]]


async def submit(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


async def refused(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    error: dict[str, Any] = response.json()["errors"][0]
    return error


def claim(source: JobSource, model: str = "digits") -> Claim:
    (found,) = source.claim([model], 10**6)
    return found


def finish(source: JobSource, files: JobFiles, held: Claim, array: np.ndarray[Any, Any]) -> None:
    arrays = {"draws": array} | ({"mean": array.mean(1, dtype=np.float64)} if held.kind == "complete" else {})
    for name, values in arrays.items():
        stored = files.create_array(held.id, name, values.shape, values.dtype)
        stored[:] = values
        stored.flush()
    result = {"shape": list(array.shape), "dtype": array.dtype.name}
    assert source.finish(held.id, held.attempt, JobStatus.SUCCEEDED, result, diagnostics={"r_hat": 1.01})


async def finished(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles, array: np.ndarray[Any, Any], **body: Any
) -> str:
    job = await submit(client, **{**SAMPLE, **body})
    finish(source, files, claim(source, job["model"]), array)
    return f"/v1/jobs/{job['id']}/result"


# Submission


async def test_sample_job_reaches_the_worker_as_asked(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, **SAMPLE, sampler={"name": "tempering", "levels": 3}, stream_every=5)
    assert (job["status"], job["version"], job["seed"], job["position"]) == ("queued", 2, 7, 0)
    assert job["progress"] == {
        "done": 0,
        "total": 4 * (10 + 3 * 2),
        "unit": "chain-sweeps",
        "rate": None,
        "eta_s": None,
    }
    assert job["result"] is job["problem"] is job["diagnostics"] is job["started_at"] is None
    assert job["created_at"].endswith("Z")
    spec = SampleSpec(**claim(source).payload)
    assert (spec.chains, spec.draws, spec.burn_in, spec.thin, spec.seed, spec.stream_every) == (4, 3, 10, 2, 7, 5)
    assert spec.sampler.model_dump() == {"name": "tempering", "levels": 3}
    assert spec.arrays == ()


async def test_defaults_are_filled_in_and_the_seed_is_drawn(client: httpx.AsyncClient) -> None:
    first = await submit(client, kind="sample", model="digits")
    second = await submit(client, kind="sample", model="digits", version=1)
    assert first["request"]["chains"] == 16
    assert first["request"]["seed"] == first["seed"] != second["seed"]
    assert first["request"]["sampler"] == {"name": "gibbs"}
    assert second["version"] == 1


async def test_start_and_clamped_values_lie_in_the_inputs(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles
) -> None:
    clamp = {"values": [[1, None, None], [None, None, 0]]}
    await submit(client, kind="sample", model="digits", init=[ONE, [[1, 1, 1], [0, 0, 0]]], clamp=clamp)
    held = claim(source)
    spec, arrays = SampleSpec(**held.payload), files.read_inputs(held.id)
    assert (spec.chains, spec.init, set(spec.arrays)) == (2, "values", {"init", "clamp_value", "clamp_mask"})
    assert arrays["init"].tolist() == [[1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert arrays["clamp_mask"].dtype == bool
    assert arrays["clamp_mask"].tolist() == [[True, False, False, False, False, True]] * 2
    assert arrays["clamp_value"].tolist() == [[1, 0, 0, 0, 0, 0]] * 2


async def test_complete_job_stores_values_and_mask(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles
) -> None:
    body = {"model": "plain", "inputs": [[0.1, 2, 3, 4, None, 6]], "mask": [1, 1, 0, 1, 1, 1]}
    job = await submit(client, kind="complete", **body, samples=2, sweeps=50)
    assert job["progress"]["total"] == 100
    held = claim(source, "plain")
    spec, arrays = CompleteSpec(**held.payload), files.read_inputs(held.id)
    assert (spec.examples, spec.samples, spec.sweeps) == (1, 2, 50)
    assert arrays["clamp_value"].tolist() == [[0.1, 2, 0, 4, 0, 6]]
    assert arrays["clamp_mask"].tolist() == [[True, True, False, True, False, True]]


async def test_log_partition_job_counts_chain_temperatures(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, kind="log_partition", model="digits", method="reverse_ais", chains=8, temperatures=50)
    assert job["progress"]["total"] == 400
    assert job["progress"]["unit"] == "chain-temperatures"
    assert LogPartitionSpec(**claim(source).payload).method == "reverse_ais"


async def test_labels_of_chains_and_inputs_lie_in_the_inputs(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles
) -> None:
    job = await submit(client, kind="sample", model="digits", label=["owl", 0, "dog"])
    assert job["request"]["chains"] == 3
    held = claim(source)
    assert SampleSpec(**held.payload).arrays == ("label",)
    assert files.read_inputs(held.id)["label"].tolist() == [2, 0, 1]
    await submit(client, kind="sample", model="digits", label="owl", chains=2)
    assert files.read_inputs(claim(source).id)["label"].tolist() == [2, 2]
    await submit(client, kind="complete", model="digits", inputs=[[None] * 6, [None] * 6], label="dog", samples=5)
    held = claim(source)
    assert CompleteSpec(**held.payload).arrays == ("clamp_value", "clamp_mask", "label")
    assert files.read_inputs(held.id)["label"].tolist() == [1, 1]


async def test_a_method_that_does_not_apply_to_the_model_is_refused(client: httpx.AsyncClient) -> None:
    error = await refused(client, kind="log_partition", model="joint", method="exact")
    assert error["loc"] == ["body", "method"]
    assert "on joint these apply: ais" in error["msg"]


async def test_values_that_preprocessing_brings_outside_the_domain_cannot_be_held(client: httpx.AsyncClient) -> None:
    sent = [0, 255, 0, 17, 0, 255]
    error = await refused(client, kind="complete", model="scaled", inputs=sent)
    assert error["loc"] == ["body", "inputs", 0, 1, 0]
    assert "is 17.0, which the model's preprocessing makes 0.0666667" in error["msg"]
    assert "0 or 1" in error["msg"]
    await submit(client, kind="complete", model="scaled", inputs=sent, mask=[1, 1, 1, 0, 1, 1])
    error = await refused(client, kind="sample", model="scaled", init=sent)
    assert error["loc"] == ["body", "init", 0, 1, 0]
    await submit(client, kind="sample", model="scaled", init=[0, 255, 0, 255, 0, 255])


async def test_trace_context_goes_with_the_job(client: httpx.AsyncClient, source: JobSource) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await client.post("/v1/jobs", json=SAMPLE, headers={"traceparent": trace})
    assert claim(source).traceparent == trace
    await client.post("/v1/jobs", json=SAMPLE, headers={"traceparent": "00-nonsense"})
    assert claim(source).traceparent is None


@pytest.mark.parametrize(
    ("changes", "loc", "text"),
    [
        ({"kind": "anomaly"}, ["kind"], "sample, complete, log_partition"),
        ({"kind": None}, ["kind"], "is missing"),
        ({"kind": ["sample"]}, ["kind"], "sample, complete, log_partition"),
        ({"model": 3}, ["model"], "valid string"),
        ({"chains": 0}, ["chains"], "greater than or equal to 1"),
        ({"chains": "4"}, ["chains"], "valid integer"),
        ({"chains": 100_001}, ["chains"], "at most 100000"),
        ({"burn_in": -1}, ["burn_in"], "greater than or equal to 0"),
        ({"temperature": 0}, ["temperature"], "greater than 0"),
        ({"seed": -1}, ["seed"], "greater than or equal to 0"),
        ({"draw": 1}, ["draw"], "Extra inputs"),
        ({"sampler": "hmc"}, ["sampler"], "gibbs, tempering"),
        ({"init": "data"}, ["init"], "no data"),
        ({"init": [[1, 2, 1], [0, 1, 0]]}, ["init", 0, 0, 1], "0 or 1"),
        ({"init": [ONE, ONE]}, ["init"], "1 or 4 are expected"),
        ({"clamp": {"values": [1, 1, 0]}}, ["clamp", "values"], "(2, 3)"),
        ({"clamp": {"values": [ONE] * 3}}, ["clamp", "values"], "1 or 4 are expected"),
        ({"clamp": {"values": ONE, "mask": [2] * 6}}, ["clamp", "mask", 0, 0, 0], "0 or 1"),
        ({"clamp": {"mask": ONE}}, ["clamp", "values"], "required"),
        ({"label": "cow"}, ["label"], "is 'cow'; the classes are cat, dog, owl"),
        ({"label": 3}, ["label"], "is 3; the classes are cat, dog, owl"),
        ({"label": ["cat", "owl"]}, ["label"], "has 2 entries; 4 are expected, as there are chains"),
        ({"label": ["cat"] * 3 + ["cow"]}, ["label", 3], "is 'cow'"),
        ({"label": "cat", "version": 1}, ["label"], "has no classes"),
        ({"sampler": {"name": "gibbs", "nonsense": 1}}, ["sampler"], "nonsense: Unexpected keyword argument"),
        ({"draws": 10**9}, ["draws"], "bytes"),
        ({"version": 0}, ["version"], "greater than or equal to 1"),
    ],
)
async def test_bad_job_is_refused_before_anything_is_stored(
    client: httpx.AsyncClient, files: JobFiles, changes: dict[str, Any], loc: list[Any], text: str
) -> None:
    error = await refused(client, **{**SAMPLE, **changes})
    assert error["loc"] == ["body", *loc]
    assert text in error["msg"]
    assert (await client.get("/v1/jobs")).json()["jobs"] == []
    assert not files.folder("x").parent.exists()


async def test_uncountably_long_job_is_refused(client: httpx.AsyncClient) -> None:
    long = {"chains": 100_000, "draws": 1, "burn_in": 10**9, "thin": 10**9}
    assert (await client.post("/v1/jobs", json={**SAMPLE, **long})).status_code == 202
    response = await client.post("/v1/jobs", json={**SAMPLE, **long, "draws": 100})
    assert response.status_code == 422


async def test_job_of_an_unknown_model_or_a_missing_capability(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={**SAMPLE, "model": "nobody"})
    assert response.json()["type"] == "/problems/model-not-found"
    response = await client.post("/v1/jobs", json={"kind": "log_partition", "model": "plain"})
    assert response.json()["type"] == "/problems/capability-missing"
    assert "energy, complete, sample" in response.json()["detail"]
    response = await client.post("/v1/jobs", json={**SAMPLE, "model": "slow"})
    assert response.status_code == 503


async def test_full_queue_tells_when_to_come_back_and_keeps_no_files(
    client: httpx.AsyncClient, files: JobFiles
) -> None:
    body = {**SAMPLE, "init": ONE}
    for _ in range(3):
        await submit(client, **body)
    response = await client.post("/v1/jobs", json=body)
    assert response.status_code == 429
    assert response.json()["type"] == "/problems/queue-full"
    assert int(response.headers["retry-after"]) >= 1
    assert len(list(files.folder("x").parent.iterdir())) == 3


async def test_idempotency_key_repeats_the_first_job(client: httpx.AsyncClient, files: JobFiles) -> None:
    headers = {"Idempotency-Key": "k 1"}
    body = {"kind": "sample", "model": "digits", "init": ONE}
    first = await client.post("/v1/jobs", json=body, headers=headers)
    again = await client.post("/v1/jobs", json=dict(reversed(body.items())), headers=headers)
    assert again.status_code == 202
    assert again.json() == first.json()
    other = await client.post("/v1/jobs", json={**body, "draws": 2}, headers=headers)
    assert other.status_code == 409
    assert other.json()["type"] == "/problems/conflict"
    assert len((await client.get("/v1/jobs")).json()["jobs"]) == 1
    assert [path.name for path in files.folder("x").parent.iterdir()] == [first.json()["id"]]


async def test_same_key_sent_at_once_makes_one_job_with_its_files(client: httpx.AsyncClient, files: JobFiles) -> None:
    body = {"kind": "sample", "model": "digits", "init": ONE}
    posts = (client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(8))
    (made,) = {response.json()["id"] for response in await asyncio.gather(*posts)}
    assert [path.name for path in files.folder("x").parent.iterdir()] == [made]
    assert files.read_inputs(made)["init"].shape == (16, 6)


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_idempotency_key_has_a_bounded_length(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post("/v1/jobs", json=SAMPLE, headers={"Idempotency-Key": key})
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["header", "idempotency-key"]


# Looking, listing, cancelling


async def test_progress_is_seen(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, **SAMPLE)
    held = claim(source)
    source.note(held.id, held.attempt, Progress(20, 64, "chain-sweeps", 10.0, 4.4))
    seen = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert seen["status"] == "running"
    assert seen["attempts"] == 1
    assert seen["progress"] == {"done": 20, "total": 64, "unit": "chain-sweeps", "rate": 10.0, "eta_s": 4.4}


async def test_list_pages_newest_first_and_filters(client: httpx.AsyncClient, source: JobSource) -> None:
    made = [(await submit(client, **SAMPLE))["id"] for _ in range(3)]
    claim_first = source.claim(["digits"], 1)
    page = (await client.get("/v1/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in page["jobs"]] == [made[2], made[1]]
    rest = (await client.get("/v1/jobs", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert [job["id"] for job in rest["jobs"]] == [made[0]]
    assert rest["next_cursor"] is None
    running = (await client.get("/v1/jobs", params={"status": "running"})).json()["jobs"]
    assert [job["id"] for job in running] == [each.id for each in claim_first]
    assert (await client.get("/v1/jobs", params={"model": "plain"})).json()["jobs"] == []


@pytest.mark.parametrize("query", ["status=done", "limit=0", "limit=x", "cursor=abc"])
async def test_bad_list_query_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/v1/jobs?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", query.split("=", maxsplit=1)[0]]


@pytest.mark.parametrize("job_id", ["0" * 32, "nobody", "a-b", "..", "x" * 5000, "ß"])
async def test_unknown_job_is_not_found(client: httpx.AsyncClient, job_id: str) -> None:
    for path in ("", "/result", "/events"):
        response = await client.get(f"/v1/jobs/{job_id}{path}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    assert (await client.delete("/v1/jobs/nobody")).json()["type"] == "/problems/job-not-found"


async def test_cancel_queued_job_at_once_and_again(client: httpx.AsyncClient) -> None:
    job = await submit(client, **SAMPLE)
    for _ in range(2):
        response = await client.delete(f"/v1/jobs/{job['id']}")
        assert response.status_code == 200
        assert response.json()["status"] == "cancelled"


async def test_cancel_running_job_is_accepted(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, **SAMPLE)
    held = claim(source)
    response = await client.delete(f"/v1/jobs/{job['id']}")
    assert response.status_code == 202
    assert response.json()["status"] == "running"
    source.finish(held.id, held.attempt, JobStatus.CANCELLED)
    assert (await client.delete(f"/v1/jobs/{job['id']}")).status_code == 200


# Results


async def test_result_is_not_ready_before_the_end(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, **SAMPLE)
    response = await client.get(f"/v1/jobs/{job['id']}/result")
    assert response.status_code == 409
    assert response.json()["type"] == "/problems/result-not-ready"
    assert "queued: 0 of 64" in response.json()["detail"]
    held = claim(source)
    source.finish(
        held.id, held.attempt, JobStatus.FAILED, problem={"title": "Bad", "detail": "the weights are missing"}
    )
    response = await client.get(f"/v1/jobs/{job['id']}/result")
    assert response.status_code == 409
    assert "the weights are missing" in response.json()["detail"]
    assert (await client.get(f"/v1/jobs/{job['id']}")).json()["problem"]["title"] == "Bad"


async def test_small_result_in_every_media_type(client: httpx.AsyncClient, source: JobSource, files: JobFiles) -> None:
    draws = np.random.default_rng(0).integers(0, 2, (4, 3, 2, 3)).astype(np.uint8)
    path = await finished(client, source, files, draws)
    job = (await client.get(path.removesuffix("/result"))).json()
    assert job["status"] == "succeeded"
    assert job["diagnostics"] == {"r_hat": 1.01}
    assert job["result"] == {
        "href": path,
        "shape": [4, 3, 2, 3],
        "dtype": "uint8",
        "media_types": ["application/json", NPY, "image/png"],
    }
    body = (await client.get(path)).json()
    assert body["samples"] == draws.tolist()
    assert (body["shape"], body["dtype"], body["seed"], body["version"]) == ([4, 3, 2, 3], "uint8", 7, 2)
    binary = await client.get(path, headers={"Accept": NPY})
    assert (np.load(io.BytesIO(binary.content)) == draws).all()
    picture = await client.get(path, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(picture.content))
    tile = 56 // 3
    assert image.size == (3 * (3 * tile + 2) + 2, 4 * (2 * tile + 2) + 2)
    for chain in range(4):
        for draw in range(3):
            corner = draw * (3 * tile + 2) + 2, chain * (2 * tile + 2) + 2
            assert image.getpixel(corner) == 255 * draws[chain, draw, 0, 0]


async def test_result_may_be_stored_flat(client: httpx.AsyncClient, source: JobSource, files: JobFiles) -> None:
    job = await submit(client, **SAMPLE)
    held = claim(source)
    stored = files.create_array(held.id, "draws", (4, 3, 6), np.uint8)
    stored[:] = np.arange(72).reshape(4, 3, 6) % 2
    source.finish(held.id, held.attempt, JobStatus.SUCCEEDED, {"shape": [4, 3, 2, 3], "dtype": "uint8"})
    body = (await client.get(f"/v1/jobs/{job['id']}/result")).json()
    assert np.shape(body["samples"]) == (4, 3, 2, 3)


@pytest.mark.parametrize("kind", ["sample", "complete"])
async def test_large_result_streams_unchanged(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles, kind: str
) -> None:
    draws = np.random.default_rng(0).normal(size=(400, 150, 6)).astype(np.float32)
    assert draws.nbytes > CHUNK_BYTES
    request: dict[str, Any] = {"kind": kind, "model": "plain"}
    if kind == "complete":
        request["inputs"] = [0.1, None, None, None, None, None]
    job = await submit(client, **request)
    finish(source, files, claim(source, "plain"), draws)
    path = f"/v1/jobs/{job['id']}/result"
    body = (await client.get(path)).json()
    assert (np.array(body["samples"], np.float32) == draws).all()
    if kind == "complete":
        assert (np.array(body["mean"]) == draws.mean(1, dtype=np.float64)).all()
    binary = await client.get(path, headers={"Accept": NPY})
    assert int(binary.headers["content-length"]) == len(binary.content)
    assert (np.load(io.BytesIO(binary.content)) == draws).all()


async def test_non_finite_draws_stand_as_null_with_a_reason(
    client: httpx.AsyncClient, source: JobSource, files: JobFiles
) -> None:
    draws = np.array([[[1, np.nan, 3, 4, 5, np.inf]]], np.float32)
    body = (await client.get(await finished(client, source, files, draws, model="plain"))).json()
    assert body["samples"] == [[[1, None, 3, 4, 5, None]]]
    assert "2 of 6" in body["reason"]


async def test_pictures_are_for_images_only(client: httpx.AsyncClient, source: JobSource, files: JobFiles) -> None:
    path = await finished(client, source, files, np.zeros((2, 2, 6), np.float32), model="plain")
    response = await client.get(path, headers={"Accept": "image/png"})
    assert response.status_code == 406
    assert "image/png" not in response.json()["detail"]


async def test_estimate_of_log_z_is_json(client: httpx.AsyncClient, source: JobSource) -> None:
    job = await submit(client, kind="log_partition", model="digits", seed=5)
    held = claim(source)
    source.finish(held.id, held.attempt, JobStatus.SUCCEEDED, {"value": 3.5, "stderr": 0.1, "method": "ais"})
    response = await client.get(f"/v1/jobs/{job['id']}/result")
    assert response.json() == {
        **{"id": job["id"], "kind": "log_partition", "model": "digits", "version": 2, "seed": 5},
        **{"value": 3.5, "stderr": 0.1, "method": "ais"},
    }
    assert (await client.get(f"/v1/jobs/{job['id']}")).json()["result"]["media_types"] == ["application/json"]
    assert (await client.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": NPY})).status_code == 406


async def test_expired_result_is_gone(
    client: httpx.AsyncClient, redis_url: str, namespace: str, source: JobSource, files: JobFiles
) -> None:
    path = await finished_with_short_life(client, redis_url, namespace, files)
    assert source.expire() == [path.split("/")[3]]
    response = await client.get(path)
    assert response.status_code == 410
    assert response.json()["type"] == "/problems/expired"
    assert (await client.get(path.removesuffix("/result"))).json()["result"] is None


async def test_result_that_expires_while_it_is_fetched_is_gone(
    models: SmallModels, queue: JobQueue, redis_url: str, namespace: str, source: JobSource, tmp_path: Path
) -> None:
    class Sweeping(JobFiles):
        def open_array(self, job_id: str, name: str) -> Any:
            assert source.expire() == [job_id]
            self.remove(job_id)
            return super().open_array(job_id, name)

    files = Sweeping(tmp_path)
    async with connect(create_app(Settings(), models, queue, files)) as client:
        path = await finished_with_short_life(client, redis_url, namespace, files)
        assert (await client.get(path)).status_code == 410


async def finished_with_short_life(client: httpx.AsyncClient, redis_url: str, namespace: str, files: JobFiles) -> str:
    hasty = JobSource(redis_url, namespace, result_ttl_s=0.001)
    try:
        path = await finished(client, hasty, files, np.zeros((4, 3, 2, 3), np.uint8))
    finally:
        hasty.close()
    await asyncio.sleep(0.01)
    return path


# Whose jobs


async def test_job_is_seen_by_its_key_alone(start: Start, source: JobSource) -> None:
    app = start(api_keys="alice-key, bob-key")
    async with (
        connect(app, headers={"Authorization": "Bearer alice-key"}) as alice,
        connect(app, headers={"Authorization": "Bearer bob-key"}) as bob,
    ):
        job = await submit(alice, **SAMPLE)
        path = f"/v1/jobs/{job['id']}"
        assert (await alice.get(path)).status_code == 200
        for response in (
            await bob.get(path),
            await bob.delete(path),
            await bob.get(f"{path}/result"),
            await bob.get(f"{path}/events"),
        ):
            assert response.status_code == 404
            assert response.json()["type"] == "/problems/job-not-found"
        assert (await bob.get("/v1/jobs")).json()["jobs"] == []
        assert len((await alice.get("/v1/jobs")).json()["jobs"]) == 1
        assert "owner" not in job
        for client in (alice, bob):  # one key's idempotency keys are not another's
            headers = {"Idempotency-Key": "same"}
            assert (await client.post("/v1/jobs", json=SAMPLE, headers=headers)).status_code == 202
        assert len((await bob.get("/v1/jobs")).json()["jobs"]) == 1


# Events


async def read_events(response: httpx.Response) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and current:
            found.append(current)
            current = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            current[name] = value
    return found


async def test_events_are_followed_and_resumed(app: FastAPI, serve: Serve, source: JobSource, files: JobFiles) -> None:
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        job = await submit(client, **SAMPLE)
        held = claim(source)
        source.note(held.id, held.attempt, Progress(10, 64, "chain-sweeps"))
        path = f"/v1/jobs/{job['id']}/events"
        async with client.stream("GET", path) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            following = asyncio.create_task(read_events(response))
            source.emit(held.id, held.attempt, "sample", {"sweep": 5, "chain": 0})
            finish(source, files, held, np.zeros((4, 3, 2, 3), np.uint8))
            events = await asyncio.wait_for(following, 20)
        assert [event["event"] for event in events] == ["progress", "sample", "done"]
        assert '"status":"succeeded"' in events[-1]["data"].replace(" ", "")
        assert f"/v1/jobs/{job['id']}/result" in events[-1]["data"]
        async with client.stream("GET", path, headers={"Last-Event-ID": events[0]["id"]}) as response:
            assert await asyncio.wait_for(read_events(response), 20) == events[1:]


async def test_event_streams_end_when_a_shutdown_begins(app: FastAPI, serve: Serve) -> None:
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        job = await submit(client, **SAMPLE)
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
            assert response.status_code == 200
            app.state.services.draining.set()
            assert await asyncio.wait_for(read_events(response), 20) == []


async def test_follower_that_leaves_is_forgotten(app: FastAPI, serve: Serve) -> None:
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        job = await submit(client, **SAMPLE)
        before = len(asyncio.all_tasks())
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
            assert response.status_code == 200
        for _ in range(500):
            if len(asyncio.all_tasks()) <= before:
                break
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) <= before


async def test_models_that_are_gone_leave_their_results(
    client: httpx.AsyncClient, models: SmallModels, source: JobSource, files: JobFiles
) -> None:
    path = await finished(client, source, files, np.zeros((4, 1, 2, 3), np.uint8))
    models.by_name.clear()
    assert (await client.get(path, headers={"Accept": "image/png"})).status_code == 200
