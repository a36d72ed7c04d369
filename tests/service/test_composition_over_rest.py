"""Compositions of served models, by a real process, against sums of energies in numpy."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.brute import layered
from tests.service.example import write_tensors
from tests.service.networks import means, mlp, on_grid
from tests.service.servers import Server, serving

PETS = ["cat", "dog", "owl"]
HILL = mlp("mlp_energy", [1, 2], [8], 4, domain="unit", scale=6.0)
JEM = mlp("jem", [1, 2], [8, 8], 38, domain="unit", classes=PETS, scale=4.0)
RBMS = [layered([6, 4], seed, "rbm") for seed in (1, 2)]
FINE = {"sampler": {"name": "langevin", "step_size": 0.06}}


def term(model: str, weight: float = 1.0, label: str | None = None) -> dict[str, Any]:
    return {"model": model, "version": 1, "weight": weight, "label": label}


SUMS: dict[str, list[dict[str, Any]]] = {
    "and": [term("hill", 0.7), term("pets", 1.0, "owl")],
    "not": [term("pets", 1.0, "owl"), term("pets", -0.4, "cat")],
    "machines": [term("rbm-0", 0.5), term("rbm-1", 2.0)],
    "early": [term("late", 1.0)],
}


def energy(name: str, x: np.ndarray) -> np.ndarray:
    """The sum of the terms' energies."""
    flat, total = x.reshape(len(x), -1), np.zeros(len(x))
    for each in SUMS[name]:
        if each["model"].startswith("rbm"):
            own = -RBMS[int(each["model"][-1])].log_density(flat)
        elif each["model"] == "pets":
            own = JEM.energy(x, PETS.index(each["label"]))
        else:
            own = HILL.energy(x)
        total += each["weight"] * own
    return total


def compose(models_dir: Path, name: str, terms: list[dict[str, Any]], shape: list[int], domain: str) -> None:
    folder = models_dir / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"format": "ebm-checkpoint", "format_version": 1, "name": name, "version": 1, "family": "composition"}
    manifest |= {"visible": {"shape": shape, "domain": domain}, "config": {"terms": terms}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composed") / "checkpoints"
    for name, model in (("hill", HILL), ("pets", JEM)):
        write_tensors(folder, name, model.family, model.arrays, model.shape, model.domain, **model.manifest)
    for n, rbm in enumerate(RBMS):
        write_tensors(folder, f"rbm-{n}", "rbm", rbm.arrays, [2, 3], "binary")
    for name, terms in SUMS.items():
        shape, domain = ([2, 3], "binary") if name == "machines" else ([1, 2], "unit")
        compose(folder, name, terms, shape, domain)
    return folder


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[Server]:
    with serving(models_dir, models_dir.parent / "data", slots=4096) as running:
        yield running


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/models/{path}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def draws(server: Server, model: str, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
    job = server.run({"kind": "sample", "model": model, **request})
    assert job["status"] == "succeeded", job
    return np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False), job


@pytest.mark.parametrize("name", ["and", "not", "machines"])
def test_energies_are_sums_and_scores_their_slopes(server: Server, name: str) -> None:
    x = RBMS[0].every[:40] if name == "machines" else np.random.default_rng(0).random((40, 1, 2))
    found = post(server, f"{name}/energy", inputs=x.tolist())
    assert found["kind"] == "exact"
    np.testing.assert_allclose(found["energy"], energy(name, x), rtol=0, atol=1e-9)
    np.testing.assert_allclose(post(server, f"{name}/anomaly", inputs=x.tolist())["score"], energy(name, x), atol=1e-9)
    found = post(server, f"{name}/score", inputs=x.tolist())
    assert found["relaxed"] == (name == "machines")
    flat, step = x.reshape(40, -1), 1e-5
    moves = step * np.eye(flat.shape[1])
    up, down = ((flat[:, None] + sign * moves).reshape(-1, *x.shape[1:]) for sign in (1, -1))
    slope = (energy(name, up) - energy(name, down)).reshape(flat.shape) / (2 * step)
    np.testing.assert_allclose(np.reshape(found["score"], flat.shape), -slope, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["and", "not"])
def test_samples_and_completions_follow_the_product(server: Server, name: str) -> None:
    grid = on_grid(2, 100)
    expected = means(energy(name, grid), grid)
    found, job = draws(server, name, chains=1200, burn_in=200, seed=1, **FINE)
    assert job["result"]["shape"] == [1200, 1, 1, 2]
    # A unit's standard deviation is at most 0.5: five standard errors of 1200 chains are 0.072 at most.
    np.testing.assert_allclose(found.reshape(1200, 2).mean(0), expected, atol=0.072)
    assert job["diagnostics"]["energy_mean"] == pytest.approx(energy(name, found[:, 0].astype(float)).mean(), abs=1e-6)
    line = np.stack((np.full(2001, 0.3), np.linspace(0, 1, 2001)), 1)
    request = {"inputs": [[[0.3, None]]], "samples": 200, "sweeps": 400, "seed": 2}
    done = post(server, f"{name}/complete", **request, **FINE)
    assert (np.reshape(done["samples"], (200, 2))[:, 0] == 0.3).all()
    assert np.ravel(done["mean"])[1] == pytest.approx(means(energy(name, line), line)[1], abs=0.06)


def test_the_factors_make_another_law_than_each_alone() -> None:
    grid = on_grid(2, 100)
    product, without, hill, owl = (
        means(each, grid) for each in (energy("and", grid), energy("not", grid), HILL.energy(grid), JEM.energy(grid, 2))
    )
    for one, other in ((product, hill), (product, owl), (without, owl), (product, without)):
        assert np.abs(one - other).max() > 0.2


def test_the_card_names_the_terms_and_warns_of_negative_weights(server: Server) -> None:
    cards = {card["name"]: card for card in server.client.get("/v1/models").json()["models"]}
    assert cards["and"]["terms"] == SUMS["and"]
    assert (cards["and"]["warnings"], cards["hill"]["terms"]) == ([], None)
    assert "term 2 (pets version 1)" in cards["not"]["warnings"][0]
    assert {"sample", "complete", "score"} <= set(cards["and"]["capabilities"])
    assert cards["and"]["weights"]["arithmetic"] == "float64, 64 rows at a time, states float64"
    assert cards["machines"]["samplers"] == cards["machines"]["estimators"] == []
    assert not {"sample", "complete", "log_partition"} & set(cards["machines"]["capabilities"])
    digests = [card["digest"] for card in cards.values()]
    assert len(set(digests)) == len(digests)


def test_machines_without_gradients_are_not_sampled(server: Server) -> None:
    for path, body in (("jobs", {"kind": "sample", "model": "machines"}), ("models/machines/complete", {})):
        answer = server.client.post(f"/v1/{path}", json=body | ({} if "kind" in body else {"inputs": [None] * 6}))
        assert answer.status_code == 422
        assert answer.json()["type"] == "/problems/capability-missing"


def test_a_composition_waits_for_its_terms_and_follows_them(server: Server, models_dir: Path) -> None:
    def until(status: int, digest: str | None = None) -> dict[str, Any]:
        for _ in range(200):
            answer = server.client.get("/v1/models/early")
            if answer.status_code == status and (digest is None or answer.json()["digest"] != digest):
                found: dict[str, Any] = answer.json()
                return found
            time.sleep(0.05)
        raise AssertionError(answer.text)

    said = until(503)["detail"]
    assert "term 1 is 'late' version 1, which is not in the models directory" in said
    write_tensors(models_dir, "late", HILL.family, HILL.arrays, HILL.shape, HILL.domain, **HILL.manifest)
    first = until(200)["digest"]
    assert server.client.get("/v1/models/hill").json()["digest"] != first
    x = np.random.default_rng(0).random((5, 1, 2))
    np.testing.assert_allclose(post(server, "early/energy", inputs=x.tolist())["energy"], HILL.energy(x), atol=1e-9)
    compose(models_dir, "early", [term("late", 3.0)], [1, 2], "unit")
    until(200, first)
    np.testing.assert_allclose(post(server, "early/energy", inputs=x.tolist())["energy"], 3 * HILL.energy(x), atol=1e-9)
    (models_dir / "late" / "1" / "manifest.json").unlink()
    assert "not in the models directory" in until(503)["detail"]
