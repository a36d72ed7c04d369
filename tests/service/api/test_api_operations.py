"""Operations: what may be sent, what comes back, and what is said of anything else."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import zstandard
from fastapi import FastAPI

from service.core.job import MAX_SEED
from tests.service.api.conftest import Start, connect
from tests.service.api.small_models import CLASSES, SmallModels

pytestmark = pytest.mark.anyio

ONE = [[1, 0, 1], [0, 1, 1]]
TWO = [ONE, [[0, 0, 0], [1, 1, 1]]]
NPY = "application/x-npy"


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def errors(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/problem+json"
    found: list[dict[str, Any]] = response.json()["errors"]
    return found


async def ask(client: httpx.AsyncClient, path: str = "digits/energy", **body: Any) -> httpx.Response:
    return await client.post(f"/v1/models/{path}", json=body)


async def refused(client: httpx.AsyncClient, path: str = "digits/energy", **body: Any) -> dict[str, Any]:
    """The one field error of a request that is refused as invalid."""
    response = await ask(client, path, **body)
    assert response.status_code == 422, response.text
    assert response.json()["type"] == "/problems/invalid-input"
    (error,) = errors(response)
    return error


@pytest.mark.parametrize(
    "inputs",
    [TWO, np.reshape(TWO, (2, 6)).tolist(), np.array(TWO, bool).tolist(), np.array(TWO, float).tolist()],
    ids=["shaped", "flat", "booleans", "floats"],
)
async def test_energy_takes_every_spelling_of_the_same_inputs(
    client: httpx.AsyncClient, models: SmallModels, inputs: Any
) -> None:
    response = await ask(client, inputs=inputs)
    assert response.status_code == 200
    expected = models.energy(np.reshape(TWO, (2, 6)).astype(float))
    assert response.json() == {"model": "digits", "version": 2, "energy": expected.tolist(), "kind": "exact"}


@pytest.mark.parametrize("inputs", [ONE, [*ONE[0], *ONE[1]]], ids=["shaped", "flat"])
async def test_single_example_needs_no_leading_axis(client: httpx.AsyncClient, inputs: Any) -> None:
    assert (await ask(client, inputs=inputs)).json()["energy"] == (await ask(client, inputs=[ONE])).json()["energy"]


async def test_older_version_answers_under_its_own_path(client: httpx.AsyncClient) -> None:
    response = await ask(client, "digits/versions/1/log-density", inputs=ONE)
    assert response.json()["version"] == 1
    assert response.json()["log_density"] is None
    assert response.json()["log_partition"] is None


async def test_log_density_is_normalized_where_log_z_is_known(client: httpx.AsyncClient, models: SmallModels) -> None:
    body = (await ask(client, "digits/log-density", inputs=models.states.tolist())).json()
    assert math.isclose(sum(math.exp(value) for value in body["log_density"]), 1, rel_tol=1e-9)
    assert body["log_partition"]["method"] == "exact"


async def test_score_has_the_shape_of_the_inputs(client: httpx.AsyncClient) -> None:
    body = (await ask(client, "digits/score", inputs=TWO)).json()
    assert np.shape(body["score"]) == (2, 2, 3)
    assert body["relaxed"] is True


async def test_features_pass_the_layer_on(client: httpx.AsyncClient, models: SmallModels) -> None:
    body = (await ask(client, "digits/features", inputs=TWO, layer="top")).json()
    assert np.shape(body["features"]) == (2, 4)
    assert models.seen["layer"] == "top"


async def test_classify_names_the_classes(client: httpx.AsyncClient) -> None:
    body = (await ask(client, "digits/classify", inputs=TWO, top_k=2)).json()
    assert body["classes"] == CLASSES
    assert body["labels"] == [CLASSES[int(np.argmax(row))] for row in body["probabilities"]]
    for row, label, top in zip(body["probabilities"], body["labels"], body["top"], strict=True):
        assert [each["probability"] for each in top] == sorted(row, reverse=True)[:2]
        assert top[0]["label"] == label


async def test_joint_energy_by_name_and_by_position(client: httpx.AsyncClient, models: SmallModels) -> None:
    x = np.reshape(TWO, (2, 6)).astype(float)
    expected = models.energy(x, np.array([2, 0])).tolist()
    assert (await ask(client, inputs=TWO, labels=["owl", "cat"])).json()["energy"] == expected
    assert (await ask(client, inputs=TWO, labels=[2, 0])).json()["energy"] == expected
    assert (await ask(client, inputs=TWO, labels="owl")).json()["energy"][0] == expected[0]


async def test_numbers_as_class_names_are_names_and_not_positions(
    client: httpx.AsyncClient, models: SmallModels
) -> None:
    assert (await ask(client, "numbered/energy", inputs=ONE, labels=[6])).status_code == 200
    assert models.seen["labels"].tolist() == [1]
    assert "5, 6, 7" in (await refused(client, "numbered/energy", inputs=ONE, labels=[1]))["msg"]


async def test_anomaly_takes_a_rate_or_a_threshold(client: httpx.AsyncClient, models: SmallModels) -> None:
    states = models.states.tolist()
    body = (await ask(client, "digits/anomaly", inputs=states, false_positive_rate=0.25)).json()
    assert sum(body["anomalous"]) == 16
    assert min(body["p_value"]) > 0
    body = (await ask(client, "digits/anomaly", inputs=states, threshold=1e9)).json()
    assert not any(body["anomalous"])
    assert body["threshold"] == 1e9
    response = await ask(client, "digits/anomaly", inputs=states, threshold=1, false_positive_rate=0.5)
    assert response.status_code == 422


async def test_anomaly_without_a_reference_says_what_is_missing(client: httpx.AsyncClient) -> None:
    body = (await ask(client, "numbered/anomaly", inputs=ONE)).json()
    assert body["p_value"] is None
    assert body["anomalous"] is None
    assert "no reference" in body["reason"]
    error = await refused(client, "numbered/anomaly", inputs=ONE, false_positive_rate=0.1)
    assert error["loc"] == ["body", "false_positive_rate"]


async def test_anomaly_by_another_score_needs_a_reference_of_that_score(
    client: httpx.AsyncClient, models: SmallModels
) -> None:
    body = (await ask(client, "digits/anomaly", inputs=TWO, score="max_softmax")).json()
    assert body["of"] == "max_softmax"
    assert (body["p_value"], body["anomalous"], body["threshold"]) == (None, None, None)
    assert "no reference values of max_softmax" in body["reason"]
    assert "no verdicts" in body["reason"]
    body = (await ask(client, "digits/anomaly", inputs=TWO, score="max_softmax", threshold=0.4)).json()
    assert body["anomalous"] == [each > 0.4 for each in body["score"]]
    assert "no verdicts" not in body["reason"]
    body = (await ask(client, "digits/anomaly", inputs=TWO, score="energy")).json()
    assert (body["of"], "reason" in body) == ("energy", False)
    rate = {"score": "max_softmax", "false_positive_rate": 0.1}
    error = await refused(client, "digits/anomaly", inputs=TWO, **rate)
    assert error["loc"] == ["body", "false_positive_rate"]
    assert "values of max_softmax" in error["msg"]
    error = await refused(client, "joint/anomaly", inputs=TWO, score="max_softmax")
    assert (error["loc"], error["msg"]) == (["body", "score"], "score is 'max_softmax'; joint has these: energy.")


# Completion


async def test_clamped_units_come_back_bit_for_bit(client: httpx.AsyncClient) -> None:
    sent = [0.1, 1e-300, -0.0, 3.3333333333333335, 5.0, 1.2345678901234567e30]
    mask = [1, 1, 1, 1, 0, 1]
    body = (await ask(client, "plain/complete", inputs=[sent], mask=mask, samples=3, sweeps=2)).json()
    kept = np.array(mask, bool)
    for row in (*body["samples"][0], *body["mean"]):
        assert np.array(row)[kept].tobytes() == np.array(sent)[kept].tobytes()


async def test_null_is_the_same_as_mask_zero(client: httpx.AsyncClient, models: SmallModels) -> None:
    by_null = await ask(client, "digits/complete", inputs=[[1, None, 1, None, 0, 1]], samples=5, seed=3)
    by_mask = await ask(
        client, "digits/complete", inputs=[[1, 0.5, 1, 7, 0, 1]], mask=[1, 0, 1, 0, 1, 1], samples=5, seed=3
    )
    assert by_null.status_code == by_mask.status_code == 200, by_mask.text
    assert by_null.json() == by_mask.json()
    assert set(np.ravel(by_null.json()["samples"])) <= {0, 1}


async def test_mask_of_one_example_holds_for_all(client: httpx.AsyncClient, models: SmallModels) -> None:
    one = [[1, 1, 1], [0, 0, 0]]
    await ask(client, "digits/complete", inputs=TWO, mask=one)
    shared = models.seen["mask"]
    await ask(client, "digits/complete", inputs=TWO, mask=[one, one])
    assert shared.shape == (2, 2, 3)
    assert (shared == models.seen["mask"]).all()


async def test_seed_is_drawn_and_repeats_the_answer(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "digits/complete", inputs=[[1] + [None] * 5], samples=20)).json()
    assert 0 <= first["seed"] <= MAX_SEED
    again = await ask(client, "digits/complete", inputs=[[1] + [None] * 5], samples=20, seed=first["seed"])
    assert again.json() == first
    other = await ask(client, "digits/complete", inputs=[[1] + [None] * 5], samples=20)
    assert other.json()["seed"] != first["seed"]  # two of 2^53


async def test_too_long_a_completion_is_sent_to_the_jobs(start: Start) -> None:
    async with connect(start(max_complete_sweeps=1000)) as client:
        assert (await ask(client, "digits/complete", inputs=TWO, samples=5, sweeps=100)).status_code == 200
        error = await refused(client, "digits/complete", inputs=TWO, samples=5, sweeps=101)
    assert "/v1/jobs" in error["msg"]
    assert "complete" in error["msg"]


async def test_sampler_is_the_models_first_unless_named(client: httpx.AsyncClient, models: SmallModels) -> None:
    await ask(client, "digits/complete", inputs=ONE)
    assert models.seen["sampler"].name == "gibbs"
    await ask(client, "digits/complete", inputs=ONE, sampler={"name": "tempering", "temperatures": 4})
    assert models.seen["sampler"].model_dump() == {"name": "tempering", "temperatures": 4}
    error = await refused(client, "digits/complete", inputs=ONE, sampler="hmc")
    assert "gibbs, tempering" in error["msg"]


async def test_label_of_a_completion_is_passed_as_positions(client: httpx.AsyncClient, models: SmallModels) -> None:
    await ask(client, "digits/complete", inputs=TWO, label="dog")
    assert models.seen["label"].tolist() == [1, 1]
    await ask(client, "digits/complete", inputs=TWO, label=["owl", 0])
    assert models.seen["label"].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("fields", "loc", "text"),
    [
        ({"inputs": [[0.5, 1, 1, 1, 1, 1]]}, ["body", "inputs", 0, 0, 0], "0 or 1"),
        ({"inputs": TWO, "mask": [1, 1, 0]}, ["body", "mask"], "(2, 3)"),
        ({"inputs": TWO, "mask": [ONE, ONE, ONE]}, ["body", "mask"], "1 or 2"),
        ({"inputs": TWO, "mask": [1, 1, 0, 0, 2, 0]}, ["body", "mask", 0, 1, 1], "0 or 1"),
        ({"inputs": TWO, "samples": 0}, ["body", "samples"], "greater than or equal to 1"),
        ({"inputs": TWO, "seed": 2**53}, ["body", "seed"], "less than or equal to"),
        ({"inputs": TWO, "label": "cow"}, ["body", "label"], "cat, dog, owl"),
        ({"inputs": TWO, "label": ["cat"]}, ["body", "label"], "has 1 entries; 2 are expected, as there are inputs"),
    ],
)
async def test_a_bad_completion_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], loc: list[Any], text: str
) -> None:
    error = await refused(client, "digits/complete", **fields)
    assert error["loc"] == loc
    assert text in error["msg"]


# Shapes, values, fields


@pytest.mark.parametrize(
    ("path", "inputs", "loc", "text"),
    [
        ("digits", [[1, 0, 1], [0, 1]], ["inputs", 1], "inputs[1] has 2 entries where inputs[0] has 3"),
        ("digits", [[1, 0, 1], 5], ["inputs", 1], "is the number 5; an array of 3 is expected"),
        ("digits", [1, [2], 3], ["inputs", 1], "is an array of 1; a number is expected"),
        ("digits", [["1", 0, 1, 0, 1, 1]], ["inputs", 0, 0], "is the string '1'; a number is expected"),
        ("digits", [[{"a": 1}, 0, 1, 0, 1, 1]], ["inputs", 0, 0], "is an object"),
        ("digits", [[1, None, 1, 0, 1, 1]], ["inputs", 0, 0, 1], "is null; 0 or 1 is expected"),
        ("digits", [[1, 0], [0, 1]], ["inputs"], "has shape (2, 2); (n, 2, 3) or (n, 6) or (2, 3) is expected"),
        ("digits", [], ["inputs"], "has shape (0,)"),
        ("digits", [[], []], ["inputs"], "has shape (2, 0)"),
        ("digits", 3, ["inputs"], "is the number 3; an array of numbers is expected"),
        ("digits", "abc", ["inputs"], "is the string 'abc'"),
        ("digits", None, ["inputs"], "is null"),
        ("digits", {"a": []}, ["inputs"], "is an object"),
        (
            "digits",
            [ONE, [[0, 2, 0], [1, 1, 1]]],
            ["inputs", 1, 0, 1],
            "inputs[1][0][1] is 2; a binary model takes 0 or 1",
        ),
        ("spins", [[1, 1, -1, 1, 0, 1]], ["inputs", 0, 4], "is 0; a spin model takes -1 or 1"),
        ("unit", [[0.5, 1.5, 1, 1, 0, 1]], ["inputs", 0, 0, 1, 0], "is 1.5; a unit model takes a number from 0 to 1"),
        ("plain", [[0, 0, 0, 0, None, 1]], ["inputs", 0, 4], "is null; a finite number is expected"),
        ("plain", [[[[[[]]]]]], ["inputs"], "(n, 6)"),
    ],
)
async def test_bad_inputs_are_refused_with_place_and_expectation(
    client: httpx.AsyncClient, path: str, inputs: Any, loc: list[Any], text: str
) -> None:
    error = await refused(client, f"{path}/energy", inputs=inputs)
    assert error["loc"] == ["body", *loc]
    assert text in error["msg"]


@pytest.mark.parametrize("depth", [33, 70, 900])
async def test_deep_nesting_is_refused(client: httpx.AsyncClient, depth: int) -> None:
    body = b'{"inputs": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    response = await client.post("/v1/models/digits/energy", content=body)
    assert response.status_code == 422


@pytest.mark.parametrize(
    ("fields", "loc", "text"),
    [
        ({"inputs": ONE, "lables": [1]}, ["body", "lables"], "Extra inputs are not permitted"),
        ({"labels": [1]}, ["body", "inputs"], "missing"),
        ({"inputs": TWO, "labels": [1]}, ["body", "labels"], "has 1 entries; 2 are expected"),
        ({"inputs": TWO, "labels": [1, 3]}, ["body", "labels", 1], "is 3; the classes are cat, dog, owl"),
        ({"inputs": ONE, "labels": True}, ["body", "labels"], None),
    ],
)
async def test_bad_fields_are_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], loc: list[Any], text: str | None
) -> None:
    response = await ask(client, **fields)
    assert response.status_code == 422
    found = errors(response)
    assert found[0]["loc"][: len(loc)] == loc
    assert text is None or text in found[0]["msg"]


async def test_labels_mean_nothing_without_classes(client: httpx.AsyncClient) -> None:
    assert "no classes" in (await refused(client, "digits/versions/1/energy", inputs=ONE, labels=[1]))["msg"]


async def test_top_k_is_at_most_the_number_of_classes(client: httpx.AsyncClient) -> None:
    assert (await refused(client, "digits/classify", inputs=ONE, top_k=4))["loc"] == ["body", "top_k"]


async def test_sigma_is_a_positive_number(client: httpx.AsyncClient) -> None:
    assert (await refused(client, "digits/score", inputs=ONE, sigma=0))["loc"] == ["body", "sigma"]
    assert (await refused(client, "digits/score", inputs=ONE, sigma="1"))["loc"] == ["body", "sigma"]


async def test_raw_inputs_of_a_model_with_preprocessing_are_in_their_own_units(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "scaled/energy", inputs=[0, 255, 17, 3, 0, 1])).status_code == 200


async def test_only_what_becomes_a_state_of_the_model_can_be_clamped(client: httpx.AsyncClient) -> None:
    error = await refused(client, "scaled/complete", inputs=[0, 255, 0, 17, 0, 255])
    assert error["loc"] == ["body", "inputs", 0, 1, 0]
    assert "preprocessing makes 0.0666667" in error["msg"]
    response = await ask(client, "scaled/complete", inputs=[0, 255, 0, None, 0, 255])
    assert response.status_code == 200


async def test_rows_are_bounded(start: Start) -> None:
    async with connect(start(max_rows=8)) as client:
        assert (await ask(client, inputs=[ONE] * 8)).status_code == 200
        assert "at most 8" in (await refused(client, inputs=[ONE] * 9))["msg"]


async def test_query_fields_with_a_json_body_are_refused_instead_of_ignored(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/digits/classify?top_k=1", json={"inputs": ONE})
    assert response.status_code == 422
    assert errors(response)[0]["loc"] == ["query", "top_k"]


# Binary bodies


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "u1", "i8", "?", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
async def test_npy_of_every_real_dtype_and_order(
    client: httpx.AsyncClient, models: SmallModels, dtype: str, order: Any
) -> None:
    array = np.asarray(np.array(TWO), dtype=dtype, order=order)
    response = await client.post("/v1/models/digits/energy", content=npy(array), headers={"Content-Type": NPY})
    assert response.json()["energy"] == (await ask(client, inputs=TWO)).json()["energy"]
    seen = models.seen["inputs"]
    assert seen.flags.c_contiguous
    assert seen.flags.writeable
    assert seen.dtype.isnative


async def test_npy_both_ways_with_fields_in_the_query(client: httpx.AsyncClient, models: SmallModels) -> None:
    x = np.array(TWO, np.float32)
    headers = {"Content-Type": NPY, "Accept": NPY}
    response = await client.post('/v1/models/digits/energy?labels=["owl",0]', content=npy(x), headers=headers)
    assert response.headers["content-type"] == NPY
    energy = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (energy == models.energy(x.reshape(2, 6).astype(float), np.array([2, 0]))).all()


async def test_npy_completion_returns_the_samples_alone(client: httpx.AsyncClient) -> None:
    x = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], np.float32)
    headers = {"Content-Type": NPY, "Accept": NPY}
    path = "/v1/models/plain/complete?mask=[1,1,1,0,0,0]&samples=4&sampler=gibbs&seed=5"
    response = await client.post(path, content=npy(x), headers=headers)
    samples = np.load(io.BytesIO(response.content))
    assert samples.shape == (1, 4, 6)
    assert samples.dtype == np.float32
    assert (samples[:, :, :3] == x[:, None, :3]).all()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"\x93NUMPY", 400),
        (b"not an array at all", 400),
        (npy(np.zeros((2, 6), np.float32))[:-1], 400),
        (npy(np.zeros((2, 6), np.float32)) + b"x", 400),
        (npy(np.array([["a"] * 6])), 422),
        (npy(np.zeros((1, 6), complex)), 422),
        (npy(np.zeros((1, 6), "f4,f4")), 422),
        (npy(np.array([[None] * 6]), allow_pickle=True), 422),
        (npy(np.zeros((0, 6))), 422),
        (npy(np.full((1, 6), np.nan)), 422),
    ],
)
async def test_bad_npy_is_refused(client: httpx.AsyncClient, content: bytes, status: int) -> None:
    response = await client.post("/v1/models/digits/energy", content=content, headers={"Content-Type": NPY})
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000000), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 6), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.5, 6), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6, }",
        "{'descr': None, 'fortran_order': False, 'shape': (1, 6), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1, 6), }",
        "__import__('os').system('true')",
        "(" * 200,
        "{",
    ],
)
async def test_npy_header_is_never_believed(client: httpx.AsyncClient, header: str) -> None:
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(24)
    response = await client.post("/v1/models/digits/energy", content=content, headers={"Content-Type": NPY})
    assert response.status_code in (400, 422), response.text


async def test_infinities_of_a_binary_body_are_named(client: httpx.AsyncClient) -> None:
    array = np.zeros((2, 6))
    array[1, 4] = -np.inf
    response = await client.post("/v1/models/plain/energy", content=npy(array), headers={"Content-Type": NPY})
    assert errors(response)[0]["loc"] == ["body", "inputs", 1, 4]
    assert "-inf" in errors(response)[0]["msg"]


# Bodies, encodings, media types


def packed(encoding: str, body: bytes) -> bytes:
    match encoding:
        case "gzip" | "x-gzip":
            return gzip.compress(body)
        case "deflate":
            return zlib.compress(body)
        case "zstd":
            return zstandard.compress(body)
    return body


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "zstd", "deflate", "identity"])
async def test_compressed_bodies_are_read(client: httpx.AsyncClient, encoding: str) -> None:
    body = packed(encoding.lower(), orjson.dumps({"inputs": ONE}))
    response = await client.post("/v1/models/digits/energy", content=body, headers={"Content-Encoding": encoding})
    assert response.status_code == 200, response.text


async def test_series_of_compressed_parts_is_one_body(client: httpx.AsyncClient) -> None:
    body = orjson.dumps({"inputs": ONE})
    for encoding in ("gzip", "zstd"):
        content = packed(encoding, body[:5]) + packed(encoding, body[5:])
        headers = {"Content-Encoding": encoding}
        assert (await client.post("/v1/models/digits/energy", content=content, headers=headers)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate"])
async def test_body_is_bounded_after_decompression(start: Start, encoding: str) -> None:
    async with connect(start(max_body_bytes=1_000_000)) as client:
        headers = {"Content-Encoding": encoding}
        bomb = packed(encoding, bytes(200_000_000))
        assert len(bomb) < 1_000_000
        response = await client.post("/v1/models/digits/energy", content=bomb, headers=headers)
        assert response.status_code == 413
        assert response.json()["type"] == "/problems/too-large"


@pytest.mark.parametrize("chunked", [False, True])
async def test_plain_body_is_bounded(start: Start, chunked: bool) -> None:
    async def parts() -> Any:
        for _ in range(3):
            yield bytes(1000)

    async with connect(start(max_body_bytes=1024)) as client:
        response = await client.post("/v1/models/digits/energy", content=parts() if chunked else bytes(3000))
    assert response.status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate"])
async def test_broken_compression_is_malformed(client: httpx.AsyncClient, encoding: str) -> None:
    whole = packed(encoding, orjson.dumps({"inputs": [ONE] * 1000}))
    for content in (b"no such thing", whole[: len(whole) // 2]):
        headers = {"Content-Encoding": encoding}
        response = await client.post("/v1/models/digits/energy", content=content, headers=headers)
        assert response.status_code == 400
        assert response.json()["type"] == "/problems/malformed-body"


async def test_unknown_encoding_names_those_understood(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/digits/energy", content=b"x", headers={"Content-Encoding": "br"})
    assert response.status_code == 415
    assert "gzip" in response.headers["accept-encoding"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'inputs': []}", b'{"inputs": [NaN]}', b'{"inputs": [1e999]}', b"\xff\xfe"]
)
async def test_what_is_not_json_is_malformed(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/models/digits/energy", content=body)
    assert response.status_code == 400
    assert response.json()["type"] == "/problems/malformed-body"


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"', b"true", b"1.5"])
async def test_json_that_is_no_object_is_invalid(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/models/digits/energy", content=body)
    assert response.status_code == 422


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/json; charset=utf-8", "application/ld+json"]
)
async def test_json_is_taken_under_its_names_and_without_any(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post("/v1/models/digits/energy", content=orjson.dumps({"inputs": ONE}), headers=headers)
    assert response.status_code == 200


async def test_other_content_types_are_unsupported(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/digits/energy", data={"inputs": "1"})
    assert response.status_code == 415
    assert response.json()["type"] == "/problems/unsupported-media-type"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/x-npy", NPY),
        ("application/x-npy, */*;q=0.5", NPY),
        ("application/x-npy, */*", NPY),
        ("application/json;q=0.2, application/x-npy;q=0.9", NPY),
        ("application/json;q=0, */*", NPY),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
async def test_accept_chooses_the_answer(client: httpx.AsyncClient, accept: str, expected: str) -> None:
    response = await client.post("/v1/models/digits/energy", json={"inputs": ONE}, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == expected


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "*/*;q=0", "application/json;q=x"])
async def test_other_answers_are_not_acceptable(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post("/v1/models/digits/energy", json={"inputs": ONE}, headers={"Accept": accept})
    assert response.status_code == 406
    assert response.json()["type"] == "/problems/not-acceptable"
    assert NPY in response.json()["detail"]


async def test_non_finite_numbers_are_null_with_a_reason(client: httpx.AsyncClient) -> None:
    inputs = [[0.0] * 6, [1.7e308] * 6]
    body = (await ask(client, "plain/energy", inputs=inputs)).json()
    assert body["energy"][0] is not None
    assert body["energy"][1] is None
    assert "1 of 2 numbers in energy" in body["reason"]
    response = await client.post("/v1/models/plain/energy", json={"inputs": inputs}, headers={"Accept": NPY})
    assert response.status_code == 422


async def test_big_requests_and_answers_go_through_threads_unchanged(
    client: httpx.AsyncClient, models: SmallModels
) -> None:
    x = np.random.default_rng(0).integers(0, 2, (60_000, 6))
    body = (await ask(client, "digits/features", inputs=x.tolist())).json()
    assert len(orjson.dumps(x.tolist())) < 2**20 < np.asarray(body["features"]).nbytes
    assert body["features"] == (1 / (1 + np.exp(-(x @ models.W + models.c)))).tolist()
    wide = [[float(value) for value in row] for row in x]
    assert len(orjson.dumps(wide)) > 2**20
    assert (await ask(client, "digits/energy", inputs=wide)).json()["energy"] == models.energy(x.astype(float)).tolist()


async def test_every_operation_of_the_shelf_has_both_routes(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for name in ("energy", "log-density", "score", "classify", "features", "complete", "anomaly"):
        for version in ("", "/versions/{version}"):
            assert "post" in paths[f"/v1/models/{{name}}{version}/{name}"]
