"""Hand-made checkpoints of every family, served by a real process: every answer against brute force."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, norm
from typer.testing import CliRunner

from service.cli import app
from tests.service.brute import Brute, belief_net, golden, layered, machine
from tests.service.example import weights, write_tensors
from tests.service.servers import Server, serving

FALSE_ALARM = 1e-6
MODELS = {
    "labelled": layered([6, 4], 1, "rbm", classes=3, names=["cat", "dog", "owl"]),
    "gauss": layered([3, 4], 2, "grbm", sigma=True),
    "deep": layered([6, 4, 3], 38, "dbm", classes=2),
    "deep-real": layered([3, 4, 3], 4, "dbm", sigma=True),
    "spins": golden(),
    "tangled": machine(4, 3, 5),
    "belief": belief_net([5, 4, 3], 6, 3),
}
LABELLED = [name for name, model in MODELS.items() if "U" in model.arrays]
MEAN, STD = np.array([10.0, -3.0, 0.1]), np.array([2.0, 0.3, 7.0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("families")
    models_dir = folder / "checkpoints"
    for name, model in MODELS.items():
        write_tensors(models_dir, name, model.family, model.arrays, model.shape, model.domain, **model.manifest)
    gauss = MODELS["gauss"]
    units = {"mean": MEAN.tolist(), "std": STD.tolist()}
    write_tensors(models_dir, "gauss-raw", gauss.family, gauss.arrays, gauss.shape, "real", preprocessing=units)
    grey = {**MODELS["labelled"].manifest, "preprocessing": {"scale": 1 / 255}}
    write_tensors(models_dir, "grey", "rbm", MODELS["labelled"].arrays, [2, 3], "binary", **grey)
    write_tensors(models_dir, "wide", "rbm", weights(0, 26, 26), [26], "binary")
    with serving(models_dir, folder / "data", slots=8192) as running:
        yield running


def post(server: Server, model: str, operation: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/models/{model}/{operation}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "/problems/invalid-input"
    error: dict[str, Any] = answer.json()["errors"][0]
    return error


def draws(server: Server, model: str, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
    job = server.run({"kind": "sample", "model": model, **request})
    assert job["status"] == "succeeded", job
    array = np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False)
    return array.reshape(*array.shape[:2], -1), job


def inputs_of(model: Brute) -> np.ndarray:
    if model.domain == "real":
        return np.random.default_rng(0).normal(size=(20, *model.shape), scale=3).reshape(20, -1)
    return model.every


def fits(observed: np.ndarray, model: Brute, p: np.ndarray) -> bool:
    """Chi-square of states against the law `p` of `model.every`, states rarer than 5 in all together."""
    code = ((observed > 0) @ (1 << np.arange(observed.shape[1])[::-1])).astype(int)
    counts, expected = np.bincount(code, minlength=len(p)), p * len(observed)
    assert counts[p == 0].sum() == 0
    rare = expected < 5
    o, e = counts[~rare], expected[~rare]
    if rare.any() and expected[rare].sum() > 0:
        o, e = np.append(o, counts[rare].sum()), np.append(e, expected[rare].sum())
    return bool(chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1) > FALSE_ALARM)


# What is computed at once


@pytest.mark.parametrize("name", MODELS)
def test_energies_and_log_densities(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    found = post(server, name, "energy", inputs=x.tolist())
    assert found["kind"] == "exact"
    assert "stderr" not in found
    np.testing.assert_allclose(found["energy"], -model.log_density(x), rtol=0, atol=1e-9)
    found = post(server, name, "log-density", inputs=x.tolist())
    assert found["kind"] == "exact"
    np.testing.assert_allclose(found["unnormalized_log_density"], model.log_density(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LABELLED)
def test_joint_energies_and_class_probabilities(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    joint = model.log_joint(x)
    labels = np.arange(len(x)) % joint.shape[1]
    found = post(server, name, "energy", inputs=x.tolist(), labels=labels.tolist())
    np.testing.assert_allclose(found["energy"], -joint[np.arange(len(x)), labels], rtol=0, atol=1e-9)
    found = post(server, name, "classify", inputs=x.tolist())
    assert found["kind"] == "exact"
    assert found["classes"] == model.manifest.get("classes", list(range(joint.shape[1])))
    probabilities = np.exp(joint - model.log_density(x)[:, None])
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-9)
    assert found["labels"] == [found["classes"][k] for k in probabilities.argmax(1)]


def test_a_label_by_name_is_the_label_by_position(server: Server) -> None:
    x = MODELS["labelled"].every[:3].tolist()
    by_name = post(server, "labelled", "energy", inputs=x, labels=["owl", "cat", "dog"])
    assert by_name == post(server, "labelled", "energy", inputs=x, labels=[2, 0, 1])


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.slope is not None])
def test_features_of_every_layer_and_scores(server: Server, name: str) -> None:
    model = MODELS[name]
    x = inputs_of(model)
    expected = model.features(x)
    for place, (layer, values) in enumerate(expected.items(), 1):
        by_name = post(server, name, "features", inputs=x.tolist(), layer=layer)
        assert by_name == post(server, name, "features", inputs=x.tolist(), layer=place)
        assert by_name["layer"] == layer
        np.testing.assert_allclose(by_name["features"], values, rtol=0, atol=1e-9)
    assert post(server, name, "features", inputs=x.tolist())["layer"] == list(expected)[-1]
    found = post(server, name, "score", inputs=x.tolist())
    assert (found["kind"], found["relaxed"]) == ("exact", model.domain != "real")
    np.testing.assert_allclose(np.reshape(found["score"], x.shape), model.score(x), rtol=0, atol=1e-9)


def test_preprocessing_goes_before_the_model_and_its_slope_into_the_score(server: Server) -> None:
    model = MODELS["gauss"]
    raw = np.random.default_rng(1).normal(size=(5, 3), scale=3)
    x = (raw - MEAN) / STD
    found = post(server, "gauss-raw", "energy", inputs=raw.tolist())["energy"]
    np.testing.assert_allclose(found, -model.log_density(x), rtol=0, atol=1e-9)
    found = post(server, "gauss-raw", "score", inputs=raw.tolist())["score"]
    np.testing.assert_allclose(found, model.score(x) / STD, rtol=0, atol=1e-9)


def test_the_worked_example_of_three_spins(server: Server) -> None:
    job = server.run({"kind": "log_partition", "model": "spins", "method": "exact"})
    assert job["status"] == "succeeded", job
    assert np.exp(job["result"]["log_partition"]["value"]) == pytest.approx(172.420, abs=5e-4)
    every = MODELS["spins"].every
    for _ in range(100):
        found = post(server, "spins", "log-density", inputs=every.tolist())["log_density"]
        if found is not None:
            break
        time.sleep(0.1)
    p = dict(zip(map(tuple, every.tolist()), np.exp(found), strict=True))
    assert p[-1, 1, 1] == pytest.approx(0.8608, abs=5e-5)
    assert p[1, -1, -1] == pytest.approx(0.1165, abs=5e-5)
    assert sum(value for state, value in p.items() if state[0] == 1) == pytest.approx(0.1347, abs=5e-5)
    held = post(server, "spins", "complete", inputs=[[None, -1, None]], samples=4000, sweeps=40, seed=1)
    assert set(np.ravel(held["samples"])) == {-1, 1}
    # The mean of x1 is 2 p - 1; 4000 chains, sd 0.28: five standard errors of the mean of single draws are 0.022.
    assert held["mean"][0][0] == pytest.approx(2 * 0.9797 - 1, abs=0.022)


# Chains


@pytest.mark.parametrize(("name", "label"), [(name, label) for name in LABELLED for label in (None, 1)])
def test_samples_follow_the_exact_law_of_the_label(server: Server, name: str, label: int | None) -> None:
    model = MODELS[name]
    found, job = draws(server, name, chains=4000, burn_in=150, seed=3, label=label)
    assert found.dtype == np.uint8
    assert job["result"]["approximate"] is False
    assert fits(found[:, 0], model, model.law(label))
    assert label is None or not fits(found[:, 0], model, model.law())  # so many draws tell the laws apart


def test_each_chain_has_its_own_label(server: Server) -> None:
    model = MODELS["labelled"]
    found, job = draws(server, "labelled", burn_in=100, seed=4, label=["cat", "owl"] * 2000)
    assert job["result"]["shape"] == [4000, 1, 2, 3]
    assert fits(found[::2, 0], model, model.law(0))
    assert fits(found[1::2, 0], model, model.law(2))
    assert not fits(found[1::2, 0], model, model.law(0))


@pytest.mark.parametrize(("name", "dtype"), [("spins", np.int8), ("tangled", np.int8)])
def test_spins_are_drawn_and_stored_as_such(server: Server, name: str, dtype: type) -> None:
    model = MODELS[name]
    found, _ = draws(server, name, chains=4000, burn_in=150, seed=5)
    assert found.dtype == dtype
    assert set(np.unique(found)) == {-1, 1}
    assert fits(found[:, 0], model, model.law())


@pytest.mark.parametrize(
    ("name", "label"), [("labelled", None), ("labelled", 1), ("deep", None), ("deep", 1), ("tangled", None)]
)
def test_completions_follow_the_posterior_of_mask_and_label(server: Server, name: str, label: int | None) -> None:
    model = MODELS[name]
    mask = np.arange(model.every.shape[1]) % 3 == 0
    value = model.every[len(model.every) // 3]
    inputs = [float(v) if m else None for v, m in zip(value, mask, strict=True)]
    fields = {} if label is None else {"label": label}
    found = post(server, name, "complete", inputs=[inputs], samples=4000, sweeps=100, seed=6, **fields)
    assert found["approximate"] is False
    law = model.law(label, mask, value)
    samples = np.reshape(found["samples"], (4000, -1))
    assert fits(samples, model, law)
    # A draw's standard deviation is at most 1: five standard errors of 4000 of them are 0.08.
    np.testing.assert_allclose(np.ravel(found["mean"]), law @ model.every, atol=0.08)


def test_labels_of_a_completion_may_differ_from_row_to_row(server: Server) -> None:
    model = MODELS["labelled"]
    request = {"inputs": [[None] * 6] * 2, "label": ["dog", "owl"], "samples": 3000, "sweeps": 100, "seed": 8}
    direct = post(server, "labelled", "complete", **request)
    for row, label in enumerate((1, 2)):
        assert fits(np.reshape(direct["samples"][row], (3000, 6)), model, model.law(label))
    job = server.run({"kind": "complete", "model": "labelled", **request})
    found = server.client.get(f"/v1/jobs/{job['id']}/result").json()
    assert found["samples"] == direct["samples"]
    assert found["mean"] == direct["mean"]
    assert found["approximate"] is direct["approximate"] is False


def mixture_cdf(model: Brute, unit: int, at: np.ndarray) -> np.ndarray:
    """The exact distribution function of one real unit: a Gaussian for each hidden state."""
    W, b, c, s = (model.arrays[key] for key in ("W", "b", "c", "log_sigma"))
    h, s = model.hidden["hidden"], np.exp(s)
    pull = h @ W.T
    log_p = h @ c + pull @ (b / s) + 0.5 * (pull**2).sum(1)
    p = np.exp(log_p - np.logaddexp.reduce(log_p))
    return norm.cdf((at[:, None] - (b + s * pull)[:, unit]) / s[unit]) @ p


def test_real_units_follow_the_exact_mixture(server: Server) -> None:
    model = MODELS["gauss"]
    found, _ = draws(server, "gauss", chains=4000, burn_in=300, seed=7)
    assert found.dtype == np.float32
    for unit in range(3):
        u = mixture_cdf(model, unit, found[:, 0, unit].astype(float))
        counts = np.histogram(u, 40, (0, 1))[0]
        assert chi2.sf(((counts - 100) ** 2 / 100).sum(), 39) > FALSE_ALARM


def test_draws_come_back_in_the_units_of_the_inputs(server: Server) -> None:
    plain, _ = draws(server, "gauss", chains=50, draws=2, burn_in=20, seed=7)
    raw, job = draws(server, "gauss-raw", chains=50, draws=2, burn_in=20, seed=7)
    np.testing.assert_allclose(raw, plain * STD + MEAN, rtol=1e-5, atol=1e-5)
    energies = -MODELS["gauss"].log_density(((raw - MEAN) / STD).reshape(100, 3))
    assert job["diagnostics"]["energy_mean"] == pytest.approx(energies.mean(), abs=1e-4)
    start = np.array([[1.5, 2.5, 3.5]])
    moved = {"chains": 4, "burn_in": 3, "seed": 1}
    plain, _ = draws(server, "gauss", **moved, init=((start - MEAN) / STD).tolist())
    raw, _ = draws(server, "gauss-raw", **moved, init=start.tolist())
    np.testing.assert_allclose(raw, plain * STD + MEAN, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gauss", "gauss-raw"])
def test_real_units_that_are_held_come_back_bit_for_bit(server: Server, name: str) -> None:
    value, mask = [0.1, None, 1.2345678901234567], np.array([True, False, True])
    sent = np.array([0.1, 1.2345678901234567])
    direct = post(server, name, "complete", inputs=[value], samples=5, sweeps=10, seed=2)
    job = server.run({"kind": "complete", "model": name, "inputs": [value], "samples": 5, "sweeps": 10, "seed": 2})
    by_job = server.client.get(f"/v1/jobs/{job['id']}/result").json()
    assert (by_job["samples"], by_job["mean"]) == (direct["samples"], direct["mean"])
    binary = np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False)
    for found in (np.array(direct["samples"]), np.array(by_job["samples"]), binary):
        assert (found[0][:, mask] == sent).all()
    assert (np.array(direct["mean"])[0, mask] == sent).all()
    request = {"chains": 4, "draws": 3, "burn_in": 5, "seed": 2, "clamp": {"values": value}, "stream_every": 2}
    clamped, done = draws(server, name, **request)
    assert (clamped[:, :, mask] == sent).all()
    assert len(np.unique(clamped[:, :, 1])) == 12
    events = server.client.get(f"/v1/jobs/{done['id']}/events").text
    peeks = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if '"values"' in line]
    assert [peek["sweep"] for peek in peeks[:4]] == [2, 4, 6, 8]
    assert all((np.array(peek["values"])[mask] == sent).all() for peek in peeks[:4])


def test_binary_units_of_scaled_inputs_are_drawn_in_the_units_of_the_inputs(server: Server) -> None:
    plain, _ = draws(server, "labelled", chains=20, burn_in=10, seed=2, label="dog")
    scaled, _ = draws(server, "grey", chains=20, burn_in=10, seed=2, label="dog")
    np.testing.assert_array_equal(scaled, plain.astype(float) * 255)
    held = {"samples": 3, "sweeps": 5, "seed": 2}
    plain = post(server, "labelled", "complete", inputs=[1, None, 0, None, None, 1], **held)
    scaled = post(server, "grey", "complete", inputs=[255, None, 0, None, None, 255], **held)
    np.testing.assert_array_equal(scaled["samples"], 255 * np.array(plain["samples"]))
    np.testing.assert_allclose(scaled["mean"], 255 * np.array(plain["mean"]), rtol=1e-12)
    assert "preprocessing makes 0.25" in refused(server, "models/grey/complete", inputs=[63.75] * 6)["msg"]


def test_a_directed_net_says_that_its_completions_are_approximate(server: Server) -> None:
    clamp = {"values": [1, None, 0, None, None]}
    _, job = draws(server, "belief", chains=4, burn_in=5)
    assert job["result"]["approximate"] is False
    _, job = draws(server, "belief", chains=4, burn_in=5, clamp=clamp)
    assert job["result"]["approximate"] is True
    assert post(server, "belief", "complete", inputs=[clamp["values"]])["approximate"] is True
    exact = post(server, "belief", "complete", inputs=[clamp["values"]], sampler="metropolis")
    assert exact["approximate"] is False


# Samplers


@pytest.mark.parametrize(
    ("name", "sampler", "label"),
    [
        ("labelled", {"name": "tempering", "replicas": 4}, 2),
        ("tangled", {"name": "tempering", "replicas": 3, "lowest": 0.3}, None),
        ("deep", {"name": "tempered_transitions", "rungs": 5}, None),
        ("belief", {"name": "metropolis", "units": 2}, 1),
    ],
)
def test_other_samplers_run_as_jobs_and_report_their_acceptance(
    server: Server, name: str, sampler: dict[str, Any], label: int | None
) -> None:
    model = MODELS[name]
    burn_in = 600 if sampler["name"] == "metropolis" else 60  # it takes a third of its proposals here
    found, job = draws(server, name, chains=2000, burn_in=burn_in, seed=9, sampler=sampler, label=label)
    assert fits(found[:, 0], model, model.law(label))
    assert 0 < job["diagnostics"]["acceptance_rate"] < 1
    assert "acceptance_rate" not in job["diagnostics"]["reasons"]


def test_gibbs_sampling_has_no_acceptance_rate_and_says_why(server: Server) -> None:
    _, job = draws(server, "deep", chains=4, burn_in=5)
    assert job["diagnostics"]["acceptance_rate"] is None
    assert "proposes nothing" in job["diagnostics"]["reasons"]["acceptance_rate"]


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("labelled", {"chains": 30, "draws": 3, "burn_in": 150, "thin": 5, "label": ["dog", "cat", "owl"] * 10}),
        ("gauss", {"chains": 30, "draws": 3, "burn_in": 150, "thin": 5, "clamp": {"values": [0.25, None, None]}}),
        ("deep", {"chains": 30, "draws": 3, "burn_in": 150, "sampler": {"name": "tempering", "replicas": 3}}),
    ],
)
def test_a_job_has_the_same_bits_alone_and_beside_others(server: Server, name: str, request_: dict[str, Any]) -> None:
    def digest(job_id: str) -> str:
        assert server.wait(job_id)["status"] == "succeeded"
        return hashlib.sha256(server.result(job_id)).hexdigest()

    request = {"kind": "sample", "model": name, "seed": 11, **request_}
    free = {key: value for key, value in request.items() if key not in ("label", "clamp")}
    alone = digest(server.submit(request))
    others = [{**free, "seed": seed, "chains": 5 * seed, "temperature": 1.0 + seed % 2} for seed in range(1, 6)]
    ids = [server.submit(other) for other in others[:3]]
    ids.append(server.submit(request))
    ids += [server.submit(other) for other in others[3:]]
    digests = [digest(job_id) for job_id in ids]
    assert digests[3] == alone
    assert len(set(digests)) == 6


@pytest.mark.parametrize(
    ("name", "request_", "options"),
    [
        (
            "labelled",
            {"label": "owl", "sampler": {"name": "tempering", "replicas": 3, "spacing": "geometric"}},
            ["--label", "owl", "--sampler", "tempering", "--set", "replicas=3", "--set", "spacing=geometric"],
        ),
        ("deep", {"label": 1}, ["--label", "1"]),
        ("gauss-raw", {}, []),
    ],
)
def test_the_command_line_gives_the_bits_of_the_job(
    server: Server, tmp_path: Path, name: str, request_: dict[str, Any], options: list[str]
) -> None:
    found, _ = draws(server, name, chains=7, draws=2, burn_in=30, seed=12, **request_)
    target = tmp_path / "draws.npy"
    models_dir = server.log.parents[1] / "checkpoints"
    command = ["sample", name, str(target), "--models", str(models_dir), *options]
    sizes = {"--chains": 7, "--draws": 2, "--burn-in": 30, "--seed": 12}
    done = CliRunner().invoke(app, [*command, *(str(part) for pair in sizes.items() for part in pair)])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(target).reshape(found.shape), found)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--label", "cow"], "labelled has these classes: cat, dog, owl"),
        (
            ["--sampler", "metropolis"],
            "does not run on 'labelled': gibbs, gibbs_with_gradients, tempered_transitions, tempering do",
        ),
        (["--sampler", "tempering", "--set", "replicas=many"], "replicas: Input should be a valid integer"),
        (["--set", "k"], "expected KEY=VALUE"),
    ],
)
def test_the_command_line_says_what_it_expected(server: Server, tmp_path: Path, options: list[str], text: str) -> None:
    models_dir = server.log.parents[1] / "checkpoints"
    done = CliRunner().invoke(
        app, ["sample", "labelled", str(tmp_path / "x.npy"), "--models", str(models_dir), *options]
    )
    assert done.exit_code == 2
    assert text in done.output


# The card


def test_the_card_says_what_the_model_can_do(server: Server) -> None:
    cards = {card["name"]: card for card in server.client.get("/v1/models").json()["models"]}
    assert cards["labelled"]["classes"] == ["cat", "dog", "owl"]
    assert cards["deep"]["classes"] == [0, 1]
    assert cards["gauss"]["classes"] is None
    assert "classify" in cards["deep"]["capabilities"]
    assert "classify" not in cards["gauss"]["capabilities"]
    assert cards["deep"]["layers"] == ["hidden1", "hidden2"]
    for card in cards.values():
        assert card["energy_kind"] == "exact"
        assert card["samplers"][0] == "gibbs"
        assert card["samplers"][1:] == sorted(card["samplers"][1:])
        assert 0 <= card["weights"]["max_rounding_error"] < 1e-6
    assert cards["labelled"]["sampler_settings"]["tempering"]["replicas"]["type"] == "integer"
    assert "gibbs_langevin" in cards["gauss"]["samplers"]
    assert "gibbs_langevin" not in cards["deep"]["samplers"]
    assert "exact" in cards["deep"]["estimators"]


# What is refused


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("models/labelled/energy", {"inputs": [0] * 6, "labels": [3]}, "is 3; the classes are cat, dog, owl"),
        ("models/deep/energy", {"inputs": [0] * 6, "labels": [2]}, "is 2; the classes are 0, 1"),
        ("models/gauss/complete", {"inputs": [None] * 3, "label": 0}, "gauss has no classes"),
        ("jobs", {"kind": "sample", "model": "gauss", "label": 0}, "gauss has no classes"),
        ("jobs", {"kind": "sample", "model": "deep", "label": -1}, "is -1; the classes are 0, 1"),
        ("models/deep/features", {"inputs": [0] * 6, "layer": "top"}, "1 or 'hidden1', 2 or 'hidden2'"),
        ("models/deep/features", {"inputs": [0] * 6, "layer": 0}, "1 or 'hidden1', 2 or 'hidden2'"),
        ("models/deep/score", {"inputs": [0] * 6, "sigma": 1.0}, "not conditioned on a noise level"),
        ("models/spins/energy", {"inputs": [1, 0, 1]}, "is 0; a spin model takes -1 or 1"),
        ("models/gauss/complete", {"inputs": [None] * 3, "sampler": "metropolis"}, "gibbs"),
        *(
            (path, {**body, "sampler": sampler}, text)
            for path, body in (
                ("jobs", {"kind": "sample", "model": "gauss"}),
                ("models/gauss/complete", {"inputs": [None] * 3}),
            )
            for sampler, text in (
                ({"name": "gibbs", "k": 1}, "has no 'k'; its settings: none"),
                ({"name": "tempering", "replicas": "8"}, "replicas: Input should be a valid integer"),
                ({"name": "tempering", "replicas": 1}, "replicas must be a whole number from 2 to 64"),
                ({"name": "tempering", "lowest": 0}, "lowest must be above 0 for a model with real units"),
                ({"name": "tempering", "rungs": 3}, "has no 'rungs'; its settings: replicas, lowest, spacing"),
            )
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_what_does(
    server: Server, path: str, body: dict[str, Any], text: str
) -> None:
    assert text in refused(server, path, **body)["msg"]


def test_a_model_without_classes_cannot_classify(server: Server) -> None:
    answer = server.client.post("/v1/models/gauss/classify", json={"inputs": [0, 0, 0]})
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/capability-missing"


def test_an_exact_log_z_of_too_many_units_fails_with_a_reason(server: Server) -> None:
    job = server.run({"kind": "log_partition", "model": "wide", "method": "exact"})
    assert job["status"] == "failed"
    assert job["problem"]["type"] == "/problems/capability-missing"
    assert "at most 25 units" in job["problem"]["detail"]
