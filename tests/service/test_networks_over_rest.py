"""Hand-made checkpoints of the families whose energy is a network's, served by a real process, against numpy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from service.cli import app
from tests.service.example import write_tensors
from tests.service.networks import Net, Tilt, adversarial, conv, means, mlp, on_grid, resnet, tilt
from tests.service.servers import Server, serving

PETS = ["cat", "dog", "owl"]
MODELS = {
    "plane": mlp("mlp_energy", [3], [8, 8], 1, prior_std=1.5),
    "box": mlp("mlp_energy", [2, 2], [6], 2, "swish", domain="unit"),
    "images": conv(3),
    "colours": resnet(4),
    "pets": mlp("jem", [1, 2], [8, 8], 5, domain="unit", classes=PETS, scale=6.0),
    "pets-real": mlp("jem", [3], [8], 6, classes=PETS, prior_std=1.0),
    "pets-images": resnet(7, PETS),
    "rivals": adversarial(9),
}
TILTS = {
    "tilt": tilt("tilted", [3], 26),
    "critic": tilt("latent_discriminator", [2, 2], 31, domain="unit"),
}
CLASSED = [name for name, model in MODELS.items() if model.classes]
FINE = {"sampler": {"name": "langevin", "step_size": 0.06}}
"""Steps so small that the law's error is far below that of two thousand chains."""


def inputs_of(model: Net, n: int = 20, seed: int = 0) -> np.ndarray:
    rng, size = np.random.default_rng(seed), (n, *model.shape)
    return rng.normal(size=size) if model.domain == "real" else rng.random(size)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("networks")
    models_dir = folder / "checkpoints"
    for name, model in MODELS.items():
        write_tensors(models_dir, name, model.family, model.arrays, model.shape, model.domain, **model.manifest)
    for name, of in TILTS.items():
        write_tensors(models_dir, name, of.family, of.arrays, of.own.shape, of.own.domain, **of.manifest)
    save_file(
        {"energies": np.zeros(5), "examples": np.zeros((5, 3))}, models_dir / "tilt" / "1" / "reference.safetensors"
    )
    grey = {**MODELS["box"].manifest, "preprocessing": {"scale": 1 / 255}}
    write_tensors(models_dir, "box-grey", "mlp_energy", MODELS["box"].arrays, [2, 2], "unit", **grey)
    references = {"energies": MODELS["pets"].energy(held_out()), "max_softmax": softmax_score("pets", held_out())}
    save_file(references, models_dir / "pets" / "1" / "reference.safetensors")
    with serving(models_dir, folder / "data", slots=4096) as running:
        yield running


def held_out() -> np.ndarray:
    return inputs_of(MODELS["pets"], 99, seed=9)


def softmax_score(name: str, x: np.ndarray) -> np.ndarray:
    return 1 - MODELS[name].class_probabilities(x).max(1)


def post(server: Server, model: str, operation: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/models/{model}/{operation}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422, answer.text
    found: dict[str, Any] = answer.json()
    return found


def draws(server: Server, model: str, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
    job = server.run({"kind": "sample", "model": model, **request})
    assert job["status"] == "succeeded", job
    array = np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False)
    return array.reshape(*array.shape[:2], -1), job


# What is computed at once


@pytest.mark.parametrize("name", MODELS)
def test_energies_log_densities_and_features_are_the_forward_pass(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    found = post(server, name, "energy", inputs=x.tolist())
    assert found["kind"] == "exact"
    np.testing.assert_allclose(found["energy"], model.energy(x), rtol=0, atol=1e-9)
    found = post(server, name, "log-density", inputs=x.tolist())
    np.testing.assert_allclose(found["unnormalized_log_density"], -model.energy(x), rtol=0, atol=1e-9)
    assert found["log_density"] is None
    found = post(server, name, "features", inputs=x.tolist(), layer=1)
    assert found["layer"] == "features"
    np.testing.assert_allclose(found["features"], model.features(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_finite_differences(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    found = post(server, name, "score", inputs=x.tolist())
    assert (found["kind"], found["relaxed"], "sigma" in found) == ("exact", False, False)
    assert np.shape(found["score"]) == x.shape
    np.testing.assert_allclose(np.reshape(found["score"], (len(x), -1)), model.score(x), rtol=0, atol=1e-6)


def test_more_rows_than_are_computed_at_once_come_back_in_order(server: Server) -> None:
    x = inputs_of(MODELS["images"], 5000)
    found = post(server, "images", "energy", inputs=x.tolist())["energy"]
    np.testing.assert_allclose(found, MODELS["images"].energy(x), rtol=0, atol=1e-9)
    found = post(server, "images", "score", inputs=x.tolist())["score"]
    last = post(server, "images", "score", inputs=x[-3:].tolist())["score"]
    np.testing.assert_allclose(found[-3:], last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CLASSED)
def test_classes_are_the_softmax_and_joint_energies_the_logits(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    labels = np.arange(len(x)) % 3
    by_name = post(server, name, "energy", inputs=x.tolist(), labels=[PETS[k] for k in labels])
    assert by_name == post(server, name, "energy", inputs=x.tolist(), labels=labels.tolist())
    np.testing.assert_allclose(by_name["energy"], model.energy(x, labels), rtol=0, atol=1e-9)
    found = post(server, name, "classify", inputs=x.tolist())
    assert (found["kind"], found["classes"]) == ("exact", PETS)
    np.testing.assert_allclose(found["probabilities"], model.class_probabilities(x), rtol=0, atol=1e-9)
    assert found["labels"] == [PETS[k] for k in model.outputs(x).argmax(1)]


def test_preprocessing_goes_before_the_network_and_its_slope_into_the_score(server: Server) -> None:
    x = inputs_of(MODELS["box"])
    raw = (255 * x).tolist()
    found = post(server, "box-grey", "energy", inputs=raw)["energy"]
    np.testing.assert_allclose(found, MODELS["box"].energy(x), rtol=0, atol=1e-9)
    found = post(server, "box-grey", "score", inputs=raw)["score"]
    np.testing.assert_allclose(np.reshape(found, (20, 4)), MODELS["box"].score(x) / 255, rtol=0, atol=1e-6)


# Anomaly scores


def test_anomaly_scores_are_energies_unless_another_is_asked_for(server: Server) -> None:
    for name, model in MODELS.items():
        x = inputs_of(model)
        scores = {"energy": model.energy(x), "score_norm": np.linalg.norm(model.score(x), axis=1)}
        scores |= {"max_softmax": softmax_score(name, x)} if model.classes else {}
        assert set(scores) == set(server.client.get(f"/v1/models/{name}").json()["anomaly_scores"])
        for score, expected in scores.items():
            found = post(server, name, "anomaly", inputs=x.tolist(), score=score)
            assert found["of"] == score
            np.testing.assert_allclose(found["score"], expected, rtol=0, atol=1e-6)
        default = post(server, name, "anomaly", inputs=x.tolist())
        assert default == post(server, name, "anomaly", inputs=x.tolist(), score="energy")


@pytest.mark.parametrize("score", ["energy", "max_softmax"])
def test_p_values_are_ranks_among_the_same_score_of_held_out_data(server: Server, score: str) -> None:
    x, model = inputs_of(MODELS["pets"]), MODELS["pets"]
    values, kept = (model.energy(r) if score == "energy" else softmax_score("pets", r) for r in (x, held_out()))
    found = post(server, "pets", "anomaly", inputs=x.tolist(), score=score, false_positive_rate=0.2)
    p = (1 + (kept >= values[:, None]).sum(1)) / 100
    np.testing.assert_allclose(found["p_value"], p, rtol=0, atol=1e-12)
    assert found["anomalous"] == (p <= 0.2).tolist()
    assert any(found["anomalous"])
    assert not all(found["anomalous"])
    assert found["reference"]["size"] == 99
    assert "reason" not in found


def test_without_a_reference_of_the_score_there_is_no_p_value_and_a_reason(server: Server) -> None:
    x = inputs_of(MODELS["pets"]).tolist()
    found = post(server, "pets", "anomaly", inputs=x, score="score_norm")
    assert (found["p_value"], found["anomalous"], found["reference"]) == (None, None, None)
    assert "no reference values of score_norm" in found["reason"]
    threshold = float(np.median(found["score"]))
    found = post(server, "pets", "anomaly", inputs=x, score="score_norm", threshold=threshold)
    assert found["anomalous"] == [each > threshold for each in found["score"]]
    rate = {"score": "score_norm", "false_positive_rate": 0.1}
    assert "score_norm" in refused(server, "models/pets/anomaly", inputs=x, **rate)["errors"][0]["msg"]


def test_a_table_is_scored_by_the_score_that_is_named(server: Server, tmp_path: Path) -> None:
    x = inputs_of(MODELS["pets"]).reshape(20, 2)
    np.save(tmp_path / "in.npy", x)
    models_dir = server.log.parents[1] / "checkpoints"
    command = ["score", "pets", str(tmp_path / "in.npy"), str(tmp_path / "out.npy"), "--models", str(models_dir)]
    done = CliRunner().invoke(app, [*command, "--score", "max_softmax"])
    assert done.exit_code == 0, done.output
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found["score"], softmax_score("pets", x), rtol=0, atol=1e-9)
    assert "p_value" in found.dtype.names
    done = CliRunner().invoke(app, [*command, "--score", "score_norms"])
    assert done.exit_code == 2
    assert "pets has these: energy, max_softmax, score_norm" in done.output


# Chains


@pytest.mark.parametrize("label", [None, "cat", "owl"])
def test_samples_follow_the_law_of_the_label(server: Server, label: str | None) -> None:
    model, grid = MODELS["pets"], on_grid(2, 100)
    found, job = draws(server, "pets", chains=1500, burn_in=250, seed=3, label=label, **FINE)
    assert found.dtype == np.float32
    assert job["result"]["approximate"] is True
    assert job["diagnostics"]["energy_mean"] == pytest.approx(model.energy(found[:, 0].astype(float)).mean(), abs=1e-6)
    assert (found >= 0).all()
    assert (found <= 1).all()
    every = [means(model.energy(grid, k), grid) for k in range(3)]
    expected = means(model.energy(grid), grid) if label is None else every[PETS.index(label)]
    # A unit's standard deviation is at most 0.5: five standard errors of 1500 chains are 0.065 at most.
    np.testing.assert_allclose(found[:, 0].mean(0), expected, atol=0.065)
    assert np.abs(every[0] - every[2]).max() > 0.2  # the labels' laws are told apart


def test_each_chain_has_its_own_label(server: Server) -> None:
    model, grid = MODELS["pets"], on_grid(2, 100)
    found, _ = draws(server, "pets", burn_in=250, seed=4, label=["cat", "owl"] * 700, **FINE)
    for k in (0, 1):
        np.testing.assert_allclose(found[k::2, 0].mean(0), means(model.energy(grid, 2 * k), grid), atol=0.07)


def test_completions_follow_the_conditional_law_and_keep_what_was_sent(server: Server) -> None:
    model, held = MODELS["pets"], 0.123456789
    grid = np.linspace(0, 1, 2001)[:, None]
    request = {"inputs": [[[held, None]]] * 2, "label": ["cat", "owl"], "samples": 400, "sweeps": 400, "seed": 6}
    found = post(server, "pets", "complete", **request, **FINE)
    assert found["approximate"] is True
    samples = np.reshape(found["samples"], (2, 400, 2))
    assert (samples[:, :, 0] == held).all()
    for row, label in enumerate((0, 2)):
        line = np.concatenate((np.full_like(grid, held), grid), 1)
        expected = means(model.energy(line, label), grid)[0]
        assert samples[row, :, 1].mean() == pytest.approx(expected, abs=0.1)
        assert np.reshape(found["mean"], (2, 2))[row, 1] == pytest.approx(expected, abs=0.05)
    job = server.run({"kind": "complete", "model": "pets", **request, **FINE})
    by_job = server.client.get(f"/v1/jobs/{job['id']}/result").json()
    assert by_job["samples"] == found["samples"]
    assert by_job["mean"] == found["mean"]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_sampled_and_completed_by_default(server: Server, name: str) -> None:
    model = MODELS[name]
    found, job = draws(server, name, chains=3, draws=5, burn_in=5, thin=2, seed=2, temperature=0.5)
    assert job["result"]["shape"] == [3, 5, *model.shape]
    assert np.isfinite(found).all()
    assert len(np.unique(found[:, -1])) == found[:, -1].size  # a corrected sampler may refuse steps, but not chains
    card = server.client.get(f"/v1/models/{name}").json()
    assert card["samplers"][0] == job["request"]["sampler"]["name"]
    half = inputs_of(model, 2)
    mask = np.arange(half[0].size).reshape(model.shape) % 2
    done = post(server, name, "complete", inputs=half.tolist(), mask=mask.tolist(), samples=2, sweeps=4, seed=1)
    kept = np.array(done["samples"])[:, :, mask == 1]
    assert (kept == half[:, None][:, :, mask == 1]).all()


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("pets", {"label": ["dog", "cat", "owl"] * 10}),
        ("pets", {"clamp": {"values": [[0.25, None]]}}),
        ("colours", {}),
    ],
)
def test_a_job_has_the_same_bits_alone_and_beside_others(server: Server, name: str, request_: dict[str, Any]) -> None:
    def digest(job_id: str) -> str:
        assert server.wait(job_id)["status"] == "succeeded"
        return hashlib.sha256(server.result(job_id)).hexdigest()

    request = {"kind": "sample", "model": name, "seed": 11, "chains": 30, "draws": 3, "burn_in": 60, **request_}
    free = {key: value for key, value in request.items() if key not in ("label", "clamp")}
    alone = digest(server.submit(request))
    others = [{**free, "seed": seed, "chains": 7 * seed, "temperature": 1.0 + seed % 2} for seed in range(1, 5)]
    ids = [server.submit(other) for other in others[:2]]
    ids.append(server.submit(request))
    ids += [server.submit(other) for other in others[2:]]
    digests = [digest(job_id) for job_id in ids]
    assert digests[2] == alone
    assert len(set(digests)) == 5


def test_draws_of_a_generator_follow_its_law_and_langevin_steps_lead_to_the_energys(server: Server) -> None:
    model, chains = MODELS["rivals"], 500
    assert model.draw is not None
    source = np.random.default_rng(1)
    own, job = draws(server, "rivals", chains=chains, draws=1, burn_in=0, seed=5, sampler={"name": "generator"})
    assert job["result"]["approximate"] is True
    drawn = model.draw(source, 100_000)
    # |z| beyond 5 at any of three units, in mean or spread, comes once in 10^5 seeds.
    np.testing.assert_allclose(own[:, 0].mean(0), drawn.mean(0), atol=5 * drawn.std(0).max() / chains**0.5)
    np.testing.assert_allclose(own[:, 0].std(0), drawn.std(0), rtol=0.2)
    refined = {"name": "generator", "steps": 100, "step_size": 0.5}
    found, _ = draws(server, "rivals", chains=chains, draws=1, burn_in=0, seed=6, sampler=refined)
    proposals = source.normal(size=(200_000, 3)) * 1.5  # the quadratic term's law: what is left weighs them
    expected = means(model.outputs(proposals)[:, 0], proposals)
    np.testing.assert_allclose(found[:, 0].mean(0), expected, atol=5 * found[:, 0].std(0).max() / chains**0.5 + 0.03)
    assert np.abs(drawn.mean(0) - expected).max() > 1.0  # the two laws are told apart


def test_completions_from_a_generator_keep_what_was_sent_and_say_that_they_are_approximate(server: Server) -> None:
    sampler = {"name": "generator", "steps": 3, "step_size": 0.1}
    request = {"inputs": [[0.25, None, None]], "samples": 5, "sweeps": 2, "seed": 1, "sampler": sampler}
    found = post(server, "rivals", "complete", **request)
    samples = np.reshape(found["samples"], (5, 3))
    assert found["approximate"] is True
    assert (samples[:, 0] == 0.25).all()
    assert len(np.unique(samples[:, 1:])) == 10
    refusal = refused(server, "models/rivals/complete", **(request | {"sampler": {"name": "generator", "steps": -1}}))
    assert "steps must be a whole number from 0 to 10000" in refusal["errors"][0]["msg"]
    refusal = refused(server, "jobs", kind="sample", model="plane", sampler="generator")
    assert "on plane these run: hmc" in refusal["errors"][0]["msg"]


def test_draws_come_back_in_the_units_of_the_inputs(server: Server) -> None:
    plain, _ = draws(server, "box", chains=20, burn_in=20, seed=7)
    raw, _ = draws(server, "box-grey", chains=20, burn_in=20, seed=7)
    np.testing.assert_allclose(raw, 255 * plain, rtol=1e-5)


def test_the_command_line_gives_the_bits_of_the_job(server: Server, tmp_path: Path) -> None:
    found, _ = draws(server, "pets", chains=7, draws=2, burn_in=30, seed=12, label="dog")
    models_dir = server.log.parents[1] / "checkpoints"
    command = ["sample", "pets", str(tmp_path / "x.npy"), "--models", str(models_dir), "--label", "dog"]
    done = CliRunner().invoke(app, [*command, "--chains=7", "--draws=2", "--burn-in=30", "--seed=12"])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy").reshape(found.shape), found)


def test_chains_that_run_away_are_told_of_and_send_no_infinities(server: Server) -> None:
    request = {"chains": 2, "draws": 4, "burn_in": 60, "seed": 1, "sampler": {"name": "langevin", "step_size": 1e6}}
    _, job = draws(server, "plane", **request)
    found = job["diagnostics"]
    assert (found["energy_mean"], found["r_hat"]) == (None, None)
    assert "chains ran away" in found["reasons"]["energy_mean"]
    assert "not finite" in server.client.get(f"/v1/jobs/{job['id']}/result").json()["reason"]


# The card, and what is refused


def test_the_card_says_what_a_network_can_do(server: Server) -> None:
    cards = {card["name"]: card for card in server.client.get("/v1/models").json()["models"]}
    everything = {"energy", "log-density", "score", "features", "anomaly", "sample", "complete"}
    for name, model in MODELS.items():
        card = cards[name]
        assert everything | ({"classify"} if model.classes else set()) <= set(card["capabilities"])
        assert card["classes"] == (model.classes or None)
        assert card["layers"] == ["features"]
        assert card["sigmas"] is None
        assert "langevin" in card["samplers"]
        assert "gibbs" not in card["samplers"]
        assert card["weights"] == {
            "arithmetic": "float64, 64 rows at a time, states float64",
            "max_rounding_error": 0.0,
        }
    assert (cards["pets"]["has_reference"], cards["pets"]["reference_scores"]) == (True, ["max_softmax"])


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("models/plane/score", {"inputs": [0] * 3, "sigma": 0.5}, "not conditioned on a noise level"),
        ("models/plane/anomaly", {"inputs": [0] * 3, "score": "max_softmax"}, "these: energy, score_norm"),
        ("models/plane/energy", {"inputs": [0] * 3, "labels": [0]}, "has no classes"),
        ("models/plane/complete", {"inputs": [None] * 3, "label": 0}, "has no classes"),
        ("jobs", {"kind": "sample", "model": "plane", "label": 0}, "has no classes"),
        ("jobs", {"kind": "sample", "model": "pets", "label": "cow"}, "the classes are cat, dog, owl"),
        ("jobs", {"kind": "sample", "model": "pets", "sampler": "gibbs"}, "langevin"),
        ("models/box/energy", {"inputs": [0, 0, 0, 1.5]}, "a number from 0 to 1"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(server: Server, path: str, body: dict[str, Any], text: str) -> None:
    found = refused(server, path, **body)
    assert found["type"] == "/problems/invalid-input"
    assert text in found["errors"][0]["msg"]


def test_a_network_without_classes_cannot_classify(server: Server) -> None:
    found = refused(server, "models/plane/classify", inputs=[0, 0, 0])
    assert found["type"] == "/problems/capability-missing"


# Tilted generators


@pytest.mark.parametrize("name", TILTS)
def test_energies_of_a_tilt_are_relative_to_its_generator_and_say_so(server: Server, name: str) -> None:
    model: Tilt = TILTS[name]
    x = inputs_of(model.own)
    found = post(server, name, "energy", inputs=x.tolist())
    assert found["kind"] == "exact"
    np.testing.assert_allclose(found["energy"], model.energy(x), rtol=0, atol=1e-9)
    found = post(server, name, "features", inputs=x.tolist())
    np.testing.assert_allclose(found["features"], model.own.features(x), rtol=0, atol=1e-9)
    card = server.client.get(f"/v1/models/{name}").json()
    assert card["capabilities"] == ["energy", "log-density", "anomaly", "features", "sample", "log_partition"]
    assert card["samplers"] == ["latent_hmc", "generator", "latent_langevin"]
    assert (card["estimators"], card["init_data"]) == (["ais_hmc"], False)
    assert "relative to the generator's law" in card["warnings"][0]


@pytest.mark.parametrize("name", TILTS)
def test_samples_and_log_z_of_a_tilt_are_those_of_its_latents(server: Server, name: str) -> None:
    model: Tilt = TILTS[name]
    mean, log_z = model.expected()
    sampler = {"name": "latent_hmc", "adaptation": 30, "leapfrog_steps": 5}
    found, job = draws(server, name, chains=448, burn_in=50, seed=3, sampler=sampler)
    assert job["result"]["approximate"] is False
    assert 0.6 < job["diagnostics"]["acceptance_rate"] < 1
    error = found[:, 0].std(0) / np.sqrt(448)
    assert (np.abs(found[:, 0].mean(0) - mean.reshape(-1)) < 5.5 * error).all()  # a false alarm once in 10^6
    made = model.generate(np.random.default_rng(0).normal(size=(20_000, 2))).reshape(20_000, -1).mean(0)
    assert (np.abs(made - mean.reshape(-1)) / error).max() > 10  # the generator alone is told from it
    estimate = server.run({"kind": "log_partition", "model": name, "temperatures": 30, "seed": 1})["result"]
    value, stderr = estimate["log_partition"]["value"], estimate["log_partition"]["stderr"]
    assert stderr < 0.2
    assert abs(value - log_z) < 4.9 * stderr


def test_steps_in_latent_space_that_nothing_corrects_are_approximate(server: Server) -> None:
    sampler = {"name": "latent_langevin", "adjust": False, "step_size": 0.3}
    _, job = draws(server, "tilt", chains=4, burn_in=5, seed=3, sampler=sampler)
    assert job["result"]["approximate"] is True
    assert job["diagnostics"]["acceptance_rate"] is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("models/tilt/score", {"inputs": [0] * 3}),
        ("models/tilt/complete", {"inputs": [0, None, 0]}),
        ("jobs", {"kind": "complete", "model": "tilt", "inputs": [0, None, 0]}),
        ("jobs", {"kind": "sample", "model": "tilt", "clamp": {"values": [0, None, 0]}}),
        ("jobs", {"kind": "sample", "model": "tilt", "init": [[0, 0, 0]]}),
    ],
)
def test_a_tilt_has_no_score_and_no_chains_on_visibles(server: Server, path: str, body: dict[str, Any]) -> None:
    assert refused(server, path, **body)["type"] == "/problems/capability-missing"


def test_a_tilt_does_not_start_from_data(server: Server) -> None:
    found = refused(server, "jobs", kind="sample", model="tilt", init="data")
    assert "no data to start from" in found["errors"][0]["msg"]
