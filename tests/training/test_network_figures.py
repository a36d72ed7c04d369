"""What is said of networks: calibration, score matching, log Z in the plane, anomalies; and whole runs of them."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models import checkpoint
from models.anomaly import SCORES, scores_of
from models.families.grbm import GRBM
from models.families.jem import JEM
from models.family import HasNoiseScales, HasStates
from models.samplers.annealed_langevin import AnnealedLangevin
from service.cli import app as serving
from tests.models import cases
from tests.models.cases import normal
from tests.training.toys import dataset
from training import pictures, plane
from training.cli import app
from training.config import DataSettings, MonitorSettings
from training.data import load
from training.likelihood import auroc, classification, monitor
from training.smooth import score_matching


def test_the_expected_calibration_error_is_that_of_fifteen_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JEM, "class_log_probs", lambda _, x: x.log())  # as if the visibles were the probabilities
    told = cases.case("jem").model
    assert isinstance(told, JEM)
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 2500)
    labels = generator.integers(0, 3, 2500)
    confidence, right = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for k in range(15):
        rows = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if rows.any():
            expected += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    error, calibration = classification(told, torch.from_numpy(p), torch.from_numpy(labels))
    assert error == pytest.approx(1 - right.mean())
    assert calibration == pytest.approx(expected, abs=1e-12)
    sure = torch.eye(3).double().clamp(min=1e-300)
    assert classification(told, sure, torch.arange(3)) == (0.0, pytest.approx(0.0))


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    energy, odd = torch.randint(0, 9, (60,), generator=generator).double(), torch.arange(60) % 4 == 0
    pairs = energy[odd][:, None] - energy[~odd][None]
    assert auroc(energy, odd) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).double().mean()))


def _plane_grbm() -> GRBM:
    W = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()
    b, c = torch.tensor([-1.0, -0.5]).double(), torch.tensor([0.0, -1.0]).double()
    return GRBM(W, b, c, torch.tensor([-0.7, -0.4]).double())


def test_log_z_in_the_plane_is_that_of_enumeration() -> None:
    model, data = _plane_grbm(), dataset(normal((500, 2), 1).float() * 2, "real")
    found = plane.log_partition(model, data)
    assert found.value == pytest.approx(model.log_partition(), abs=1e-6)
    assert found.stderr < 1e-6
    assert found.method == "quadrature"
    few = plane.square(model, data, margin=0.5, cells=40)
    side = (few.high - few.low) / 40
    at = torch.tensor([[few.low + 2.5 * side, few.low + 7.5 * side]]).double()  # column 2, row 7
    assert float(few.energies[7, 2]) == pytest.approx(float(model.energy(at)), rel=1e-6)
    assert not plane.lies_in(model, dataset(normal((50, 3), 1).float(), "real"))


def test_scores_match_best_at_the_law_of_the_data() -> None:
    model, n = _plane_grbm(), 4000
    h = cases.states(cases.BINARY, 2)
    p = torch.softmax(h @ model.c + model.machine.log_sum("visible", {"hidden": h}), 0)
    drawn = h[torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(1))]
    x = model.machine.inputs("visible", {"hidden": drawn}) + model.log_sigma.exp() * normal((n, 2), 3)
    v = torch.ones_like(x)
    v[::2, 0] = -1
    figures = [
        float(score_matching(GRBM(model.W * s, model.b, model.c, model.log_sigma), x, v).mean())
        for s in (0.8, 1.0, 1.2)
    ]
    assert figures[1] < min(figures[0], figures[2])


def test_densities_are_drawn_beside_the_data_and_samples() -> None:
    model, data = _plane_grbm(), dataset(normal((500, 2), 1).float() * 2, "real")
    for seen in (None, normal((50, 2), 1)):
        with Image.open(io.BytesIO(pictures.density(model, data, seen))) as image:
            assert np.asarray(image.convert("L")).std() > 5


def _train(folder: Path, recipe: str, *settings: str) -> tuple[str, list[dict[str, Any]], checkpoint.Checkpoint]:
    sets = [part for setting in settings for part in ("--set", setting)]
    arguments = ["train", recipe, "--out", str(folder / "models"), "--run-dir", str(folder / "run"), "--device", "cpu"]
    found = CliRunner().invoke(app, [*arguments, *sets])
    assert found.exit_code == 0, found.output
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return found.output, records, checkpoint.read(next((folder / "models").glob("*/1")))


def test_a_run_in_the_plane_ends_with_log_z_its_density_and_a_checkpoint_of_the_mean(tmp_path: Path) -> None:
    output, records, found = _train(tmp_path, "rings", "fit.epochs=1", "fit.ema=0.9", "model.architecture.hidden=[16]")
    training = found.manifest.training
    assert training is not None
    assert training.metrics is not None
    assert found.manifest.config["architecture"]["name"] == "mlp"
    assert found.manifest.log_partition is not None
    assert found.manifest.log_partition.method == "quadrature"
    assert math.isfinite(training.metrics["test_log_likelihood_quadrature"])
    assert math.isfinite(training.metrics["test_score_matching"])
    assert "quadrature" in output
    assert found.reference is not None
    assert (found.folder / "preview.png").exists()
    for name in ("density", "curves"):
        assert (tmp_path / "run" / f"{name}.png").exists()
    assert not (tmp_path / "run" / "filters.png").exists()
    assert {"free_energy_gap", "score_matching_validation", "weight_rms"} <= set(records[-1])


def test_a_run_of_a_joint_model_ends_with_its_error_and_calibration_and_no_likelihood(tmp_path: Path) -> None:
    langevin = 'name="langevin", steps=2, buffer=50, energy_penalty=0.1, weight=0.1'
    output, records, found = _train(
        tmp_path,
        "jem-mnist",
        *("data.dataset=digits", "data.validation=250", "data.test=250", "model.architecture.channels=[4, 8]"),
        *(f'objective.terms=[{{name="cross_entropy"}}, {{{langevin}}}]', "fit.epochs=4", "fit.learning_rate=0.003"),
        "monitor.every=2",
    )
    metrics = found.manifest.training.metrics if found.manifest.training else None
    assert metrics is not None
    assert metrics["test_classification_error"] < 0.8
    assert 0 <= metrics["test_calibration_error"] <= 1
    assert "expected calibration error" in output
    assert "log-likelihood" not in output
    assert found.manifest.log_partition is None
    assert {"classification_error_validation", "calibration_error_validation"} <= set(records[-1])
    assert (tmp_path / "run" / "filters.png").exists()
    # Held-out values of every score that the service answers by, and p-values from them.
    assert found.reference is not None
    held_out = load(DataSettings(dataset="digits", domain="unit", validation=250, test=250)).validation
    assert set(found.reference.scores) == {"max_softmax", "score_norm"} == set(scores_of(found.model)[1:])
    for name, kept in found.reference.scores.items():
        expected = SCORES[name].of(found.model, held_out).sort().values
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-7)
        np.save(tmp_path / "in.npy", held_out[:50].numpy().reshape(50, 8, 8) * 16)  # as they came
        paths = [str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
        done = CliRunner().invoke(
            serving, ["score", "jem-mnist", *paths, "--models", str(tmp_path / "models"), "--score", name]
        )
        assert done.exit_code == 0, done.output
        p = np.load(tmp_path / "out.npy")["p_value"]
        at_least = (expected[None] >= SCORES[name].of(found.model, held_out[:50])[:, None]).sum(1)
        np.testing.assert_allclose(p, (1 + at_least) / 251, atol=1.5 / 251)  # a tie may go either way


def test_a_score_network_of_images_is_trained_drawn_and_kept_with_its_references(tmp_path: Path) -> None:
    _, records, found = _train(
        tmp_path,
        "ncsn-mnist",
        *("data.dataset=digits", "data.validation=100", "data.test=100", "model.architecture.channels=[4, 8]"),
        *(
            "model.sigmas.smallest=0.3",
            "model.sigmas.largest=1.0",
            "model.sigmas.number=2",
            "fit.epochs=1",
            "fit.batch_size=20",
        ),
    )
    metrics = found.manifest.training.metrics if found.manifest.training else None
    assert metrics is not None
    assert 0 < records[-1]["denoising_validation"] < records[0]["denoising_validation"]
    assert metrics["test_denoising"] == pytest.approx(records[-1]["denoising_validation"], rel=0.3)
    assert found.reference is not None
    assert found.reference.energies is None
    assert {name: len(kept) for name, kept in found.reference.scores.items()} == {"score_norm": 100, "score_norms": 100}
    assert (tmp_path / "run" / "samples.png").exists()


_SMALL_JEM = '{name="cross_entropy"}, {name="langevin", steps=2, buffer=20}'


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("jem-cifar10", ("model.architecture.channels=[4, 4]", f"objective.terms=[{_SMALL_JEM}]")),
        ("ncsn-cifar10", ("model.architecture.channels=[4, 4]", "model.sigmas.number=2")),
    ],
)
def test_the_recipes_of_cifar10_run_on_small_colour_images(
    tmp_path: Path, recipe: str, settings: tuple[str, ...]
) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8), np.arange(80) % 4
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    sizes = ("model.architecture.blocks=1", "fit.epochs=1", "fit.batch_size=20", "data.validation=20")
    _, _, found = _train(tmp_path, recipe, f"data.dataset={tmp_path / 'images.npz'}", *sizes, *settings)
    assert found.manifest.visible.shape == [8, 8, 3]
    with Image.open(found.folder / "preview.png") as image:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
    assert np.abs(red - green).max() > 20 < np.abs(green - blue).max()


def test_the_denoising_figure_is_half_the_units_where_nothing_is_learned() -> None:
    of = cases.case("score_network")
    still = type(of.model).from_tensors(of.manifest, {k: 0 * t for k, t in of.model.tensors().items()})
    data = dataset(normal((3000, 4), 1).float(), "real")
    found = monitor(of.manifest, still, data, MonitorSettings(examples=3000), 0, 0)["denoising_validation"]
    n = 4 * len(data.validation)  # each of z's squares has variance 2: a false alarm less often than once in 10^8
    assert abs(found - 2) < 6 * 2 * math.sqrt(2 / n)


def test_pictures_of_samples_go_through_every_scale_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = cases.case("score_network").model, []
    step = AnnealedLangevin.step

    def counted(self: AnnealedLangevin, model: Any, state: Any, keys: Any, *rest: Any) -> Any:
        seen.append(model.sigmas[min(int(state.sweep[0]) // self.steps, len(model.sigmas) - 1)])
        return step(self, model, state, keys, *rest)

    monkeypatch.setattr(AnnealedLangevin, "step", counted)
    assert isinstance(model, HasNoiseScales)
    assert isinstance(model, HasStates)
    pictures.samples(model, None, dataset(normal((50, 4), 1).float(), "real"), 0)
    assert seen == [sigma for sigma in model.sigmas for _ in range(100)]


def test_images_of_three_colours_are_drawn_in_them() -> None:
    data = replace(dataset(torch.tensor([[1.0, 0.0, 0.0]]).repeat(30, 4), "unit"), shape=(2, 2, 3))
    with Image.open(io.BytesIO(pictures.states(data.train, data))) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).mean() > 0.2


def test_noise_contrast_tells_the_likelihood_and_anomalies_of_a_table(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = (np.arange(600) % 10 == 0).astype(np.int64)
    np.savez(tmp_path / "table.npz", X=generator.normal(4 * y[:, None], 1, (600, 3)), y=y)
    output, records, found = _train(
        tmp_path,
        "nce-tabular",
        *(f"data.dataset={tmp_path / 'table.npz'}", "data.validation=100", "data.test=200", "fit.epochs=20"),
    )
    metrics = found.manifest.training.metrics if found.manifest.training else None
    assert metrics is not None
    assert found.manifest.log_partition is not None
    assert found.manifest.log_partition.method == "nce"
    assert metrics["test_anomaly_auroc"] > 0.95
    assert "AUROC" in output
    assert "log_likelihood_validation" in records[-1]
    assert math.isfinite(metrics["test_log_likelihood_nce"])
