"""Models that know the score at several noise levels, through the API and the real evaluator."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.stats import norm
from torch import Tensor

from models import catalog
from models.family import EnergyModel, HasNoiseScales
from models.manifest import Manifest
from service.api.app import create_app
from service.queue.client import JobQueue
from service.runtime.evaluator import Evaluator
from service.runtime.library import ModelLibrary
from service.settings import Settings
from service.store.files import JobFiles
from tests.service.api.conftest import connect
from tests.service.example import write_tensors

MEAN, STD, SIGMAS, SCALE = np.array([0.5, -1.0, 2.0]), 0.7, [2.0, 0.5, 0.1], 4.0
X = np.random.default_rng(0).normal(size=(6, 3))


@dataclass(frozen=True, eq=False)
class Blurred(HasNoiseScales):
    """A Gaussian that has a normalised density and blurred scores, but no energy."""

    name: ClassVar[str] = "blurred"
    domains: ClassVar[frozenset[str]] = frozenset({"real"})
    mean: Tensor

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {"mean": (manifest.visible.units,)}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> EnergyModel:
        return cls(tensors["mean"])

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    @property
    def lacks(self) -> frozenset[str]:
        return frozenset({"energy"})

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None

    def energy(self, x: Tensor) -> Tensor:
        return (0.5 * ((x - self.mean) / STD).square() + math.log(STD * math.sqrt(2 * math.pi))).sum(1)

    @property
    def score_is_relaxed(self) -> bool:
        return False

    def score(self, x: Tensor) -> Tensor:
        return self.blurred_score(x, 0.1)

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(SIGMAS)

    def learned_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def blurred_score(self, x: Tensor, sigma: float) -> Tensor:
        return (self.mean - x) / (STD**2 + sigma**2)


def exact(x: np.ndarray, sigma: float) -> np.ndarray:
    return (MEAN - x) / (STD**2 + sigma**2)


def norms(x: np.ndarray) -> np.ndarray:
    return np.sum([sigma * np.linalg.norm(exact(x, sigma), axis=1) for sigma in SIGMAS], axis=0)


@pytest.fixture
async def client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queue: JobQueue, files: JobFiles
) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setitem(catalog.families(), "blurred", Blurred)
    for name, preprocessing in (("blur", None), ("scaled", {"scale": SCALE})):
        write_tensors(tmp_path, name, "blurred", {"mean": MEAN}, [3], "real", preprocessing=preprocessing)
    save_file({"score_norms": norms(X)}, tmp_path / "blur" / "1" / "reference.safetensors")
    library = ModelLibrary(tmp_path, torch.device("cpu"))
    library.refresh()
    evaluator = Evaluator(library)
    async with connect(create_app(Settings(), evaluator, queue, files)) as client:
        yield client
    evaluator.close()


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/models/{path}", json={"inputs": X.tolist(), **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.content)
    return found


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("sigma", [*SIGMAS, 0.3, 1.9])
async def test_sigma_may_be_any_value_between_the_levels(client: httpx.AsyncClient, sigma: float) -> None:
    found = await ask(client, "blur/score", sigma=sigma)
    assert found["sigma"] == sigma
    np.testing.assert_allclose(found["score"], exact(X, sigma), rtol=1e-12)
    found = await ask(client, "scaled/score", sigma=sigma)
    np.testing.assert_allclose(found["score"], SCALE * exact(SCALE * X, sigma), rtol=1e-12)


async def test_without_sigma_the_score_is_the_models_own(client: httpx.AsyncClient) -> None:
    found = await ask(client, "blur/score")
    assert "sigma" not in found
    np.testing.assert_allclose(found["score"], exact(X, 0.1), rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.0999, 2.0001])
async def test_sigma_beyond_the_levels_is_refused(client: httpx.AsyncClient, sigma: float) -> None:
    answer = await client.post("/v1/models/blur/score", json={"inputs": X.tolist(), "sigma": sigma})
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-input"
    error = answer.json()["errors"][0]
    assert error["loc"] == ["body", "sigma"]
    assert "from 0.1 to 2" in error["msg"]


async def test_the_card_lists_the_levels_and_what_can_be_scored_by(client: httpx.AsyncClient) -> None:
    card = (await client.get("/v1/models/blur")).json()
    assert card["sigmas"] == SIGMAS
    assert card["anomaly_scores"] == ["score_norm", "score_norms"]
    assert (card["has_reference"], card["reference_scores"]) == (False, ["score_norms"])
    assert card["capabilities"] == ["log-density", "anomaly", "score"]
    assert (card["samplers"], card["weights"]) == ([], None)


async def test_a_density_without_an_energy_is_a_normalised_one(client: httpx.AsyncClient) -> None:
    found = await ask(client, "blur/log-density")
    np.testing.assert_allclose(found["log_density"], norm(MEAN, STD).logpdf(X).sum(1), rtol=1e-12)
    assert found["log_density"] == found["unnormalized_log_density"]
    assert found["log_partition"] == {"value": 0.0, "stderr": 0.0, "method": "normalised"}


async def test_anomaly_scores_are_norms_of_scores_where_there_is_no_energy(client: httpx.AsyncClient) -> None:
    found = await ask(client, "blur/anomaly")
    assert found["of"] == "score_norm"
    np.testing.assert_allclose(found["score"], np.linalg.norm(exact(X, 0.1), axis=1), rtol=1e-12)
    assert found["p_value"] is None
    found = await ask(client, "blur/anomaly", score="score_norms", false_positive_rate=0.3)
    assert found["of"] == "score_norms"
    np.testing.assert_allclose(found["score"], norms(X), rtol=1e-12)
    assert sorted(found["p_value"]) == pytest.approx([(1 + k) / 7 for k in range(1, 7)])
    assert found["anomalous"] == [p <= 0.3 for p in found["p_value"]]
    strangest = int(np.argmin(found["p_value"]))
    assert found["score"][strangest] == max(found["score"])
