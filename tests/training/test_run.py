"""Whole runs through the command, some of them killed."""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from models import checkpoint
from models.family import HasClasses
from training.cli import _print_result, app
from training.config import DataSettings, validated
from training.config import shipped as recipes
from training.data import load
from training.likelihood import classification_error
from training.run import Result

_SMALL = ("model.hidden=12", "monitor.ais_temperatures=0", "monitor.every=5", "likelihood.temperatures=20")


def _arguments(folder: Path, settings: tuple[str, ...], *more: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [
        *("train", "rbm-digits", "--out", str(folder / "models"), "--run-dir", str(folder / "run")),
        *("--device", "cpu", *sets, *more),
    ]


def _invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    return found.exit_code, found.output


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from training.cli import app; app(prog_name='ebm')", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _fork(arguments: list[str]) -> ForkProcess:
    """As `_start`, without the seconds that a new interpreter takes to import and compile."""
    process = multiprocessing.get_context("fork").Process(target=_invoke, args=arguments)
    process.start()
    return process


def _kill(process: ForkProcess) -> None:
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _wait_for(process: subprocess.Popen[str] | ForkProcess, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        running = process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
        assert running, "the run ended before it could be interrupted"
        assert time.monotonic() < end
        time.sleep(0.005)


def _lines(folder: Path) -> list[str]:
    path = folder / "run" / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _records(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the times."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in _lines(folder)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits and their classes, in a file that is quickly read."""
    path, found = tmp_path_factory.mktemp("data") / "digits.npz", load_digits()
    np.savez(path, x=found.images, y=found.target)
    return path


@pytest.fixture(scope="module")
def long_run(digits: Path) -> tuple[str, ...]:
    """Settings of a run that takes a few seconds."""
    return (
        *(*_SMALL, "fit.epochs=250", "fit.batch_size=200", "fit.momentum=0.5"),
        *("data.binarization=stochastic", f"data.dataset={digits}"),
    )


@pytest.fixture(scope="module")
def uninterrupted(long_run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run when nobody disturbed it."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = _invoke(*_arguments(folder, long_run))
    assert code == 0, output
    return folder


def _assert_same(folder: Path, uninterrupted: Path) -> None:
    for file in ("weights.safetensors", "reference.safetensors", "preview.png"):
        ours, theirs = (f / "models" / "rbm-digits" / "1" / file for f in (folder, uninterrupted))
        assert ours.read_bytes() == theirs.read_bytes(), file
    assert _records(folder) == _records(uninterrupted)
    metrics = [json.loads((f / "run" / "result.json").read_text())["metrics"] for f in (folder, uninterrupted)]
    for found in metrics:
        del found["train_seconds"]
    assert metrics[0] == metrics[1]


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_bits(
    tmp_path: Path, long_run: tuple[str, ...], uninterrupted: Path
) -> None:
    for count, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = _start(_arguments(tmp_path, long_run, *(["--resume"] if count else [])))
        _wait_for(process, lambda lines=4 + 10 * count: len(_lines(tmp_path)) >= lines)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "To go on:\n  ebm train rbm-digits --out " in output
        assert output.rstrip().endswith("--resume")
        assert not (tmp_path / "models").exists()
    code, output = _invoke(*_arguments(tmp_path, long_run, "--resume"))
    assert code == 0, output
    assert "resumed after step" in output
    _assert_same(tmp_path, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_epoch_and_ends_with_the_same_bits(
    tmp_path: Path, long_run: tuple[str, ...], uninterrupted: Path
) -> None:
    process = _start(_arguments(tmp_path, long_run))
    _wait_for(process, lambda: len(_lines(tmp_path)) >= 4 and (tmp_path / "run" / "state.safetensors").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    # What a crash in the middle of a line, after the last state was saved, would have left.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 0, "step": 99999999, "epoch": 1}\n{"step": 1000')
    code, output = _invoke(*_arguments(tmp_path, long_run, "--resume"))
    assert code == 0, output
    _assert_same(tmp_path, uninterrupted)


_QUICK = ("data.validation=40", "data.test=40", "monitor.examples=40", "monitor.every=1", "likelihood.chains=10")
_FAMILIES = {
    "rbm with labels and terms": (
        *("model.hidden=10", "model.labels=true", "data.binarization=stochastic", "fit.epochs=25"),
        'objective.terms=[{name="pcd", centring="centred"}, {name="discriminative", weight=0.2}, {name="sparsity"}]',
    ),
    "grbm": ("model.family=grbm", "model.hidden=10", "data.domain=real", "fit.learning_rate=0.01", "fit.epochs=25"),
    "dbm with labels and patience": (
        *("model.family=dbm", "model.hidden=[8, 4]", "model.labels=true", "fit.epochs=25", "fit.patience=20"),
        *("monitor.watch=classification_error_validation", "fit.momentum=0.5"),
    ),
}


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_killed_run_of_any_family_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, digits: Path, family: str
) -> None:
    settings = (*_SMALL, *_QUICK, *_FAMILIES[family], f"data.dataset={digits}", "fit.batch_size=200")
    process = _fork(_arguments(tmp_path / "killed", settings))
    _wait_for(process, lambda: len(_lines(tmp_path / "killed")) >= 4)
    _kill(process)
    for folder, more in ((tmp_path / "killed", ["--resume"]), (tmp_path / "whole", [])):
        code, output = _invoke(*_arguments(folder, settings, *more))
        assert code == 0, output
    _assert_same(tmp_path / "killed", tmp_path / "whole")


def test_patience_ends_a_run_with_its_best_parameters(tmp_path: Path, digits: Path) -> None:
    settings = (
        *(*_SMALL, *_QUICK, f"data.dataset={digits}", "model.labels=true", "model.hidden=6", "fit.epochs=500"),
        *("fit.batch_size=200", "fit.patience=4", "monitor.watch=classification_error_validation"),
        *("fit.learning_rate=0.5", "fit.schedule=constant"),
    )
    code, output = _invoke(*_arguments(tmp_path, settings))
    assert code == 0, output
    errors = [r["classification_error_validation"] for r in _records(tmp_path)]
    best = errors.index(min(errors))
    assert len(errors) - 1 - best == 4
    found = checkpoint.read(tmp_path / "models" / "rbm-digits" / "1")
    assert found.manifest.training is not None
    assert found.manifest.training.epochs == len(errors) - 1 < 500
    data = load(DataSettings(dataset=str(digits), validation=40, test=40))
    model = found.model
    assert isinstance(model, HasClasses)
    assert data.validation_labels is not None
    assert classification_error(model, data.validation, data.validation_labels) == errors[best] != errors[-1]


def test_a_figure_that_is_not_there_cannot_be_waited_for(tmp_path: Path) -> None:
    settings = (*_SMALL, "fit.patience=2", "monitor.watch=classification_error_validation")
    code, output = _invoke(*_arguments(tmp_path, settings))
    assert code == 2
    assert "fit.patience: there is no classification_error_validation to wait for; set monitor.watch" in output


def test_a_run_leaves_a_checkpoint_that_loads_its_figures_and_its_pictures(tmp_path: Path) -> None:
    settings = (*_SMALL, "fit.epochs=7", "likelihood.raise_examples=5", "monitor.ais_temperatures=10")
    code, output = _invoke(*_arguments(tmp_path, settings, "--name", "mine"))
    assert code == 0, output
    found = checkpoint.read(tmp_path / "models" / "mine" / "1")
    manifest, training = found.manifest, found.manifest.training
    assert (manifest.family, manifest.visible.shape, manifest.visible.domain) == ("rbm", [8, 8], "binary")
    assert manifest.log_partition is not None
    assert manifest.log_partition.method == "exact"
    assert training is not None
    assert training.metrics is not None
    assert (training.dataset, training.epochs, training.metrics["binarization"]) == ("digits", 7, "threshold")
    assert training.steps == 7 * (1297 // 50)
    assert training.command is not None
    assert found.reference is not None
    assert found.reference.examples is not None
    assert (found.reference.energies.shape, found.reference.examples.shape) == ((250,), (256, 64))
    assert set(np.unique(found.reference.examples)) == {0, 1}
    assert [r["epoch"] for r in _records(tmp_path)] == [0, 5, 7]
    assert all(np.isfinite(list(r.values())).all() for r in _records(tmp_path))
    assert "log_likelihood_validation" in _records(tmp_path)[-1]
    for name in ("filters", "samples", "curves", "completions"):
        with Image.open(tmp_path / "run" / f"{name}.png") as image:
            assert min(image.size) > 200
            assert np.asarray(image.convert("L")).std() > 5
    assert f"checkpoint  {tmp_path / 'models' / 'mine' / '1'}" in output.replace("\n", "")
    assert "pessimistic" in output
    assert not (tmp_path / "run" / "state.safetensors").exists()
    code, output = _invoke(*_arguments(tmp_path, settings, "--name", "mine", "--resume"))
    assert code == 2
    assert "the run there is finished" in output
    code, _ = _invoke(*_arguments(tmp_path, settings, "--name", "mine"))
    assert code == 0
    assert checkpoint.versions(tmp_path / "models") == {"mine": [1, 2]}


def test_a_path_replaces_the_recipes_data(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "mine.npz", x_train=np.tile(images, (5, 1, 1)), x_test=images)
    settings = (*_SMALL, "fit.epochs=2", "data.validation=20", "likelihood.raise_examples=0", "model.hidden=40")
    code, output = _invoke(*_arguments(tmp_path, settings, "--data", str(tmp_path / "mine.npz")))
    assert code == 0, output
    manifest = checkpoint.read_manifest(tmp_path / "models" / "rbm-digits" / "1")
    assert manifest.visible.shape == [4, 3]
    assert manifest.training is not None
    assert manifest.training.dataset == "mine"
    assert "raise" not in " ".join(manifest.training.metrics or {})


def _printed(metrics: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    _print_result(console, Result(Path("models/a/1"), metrics), Path("runs/a"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


_AIS = {
    **{"ais_chains": 100, "ais_temperatures": 1000, "log_partition_ais": 12.5, "log_partition_ais_stderr": 0.04},
    **{"log_partition_reverse_ais": 12.6, "log_partition_reverse_ais_stderr": 0.05},
    **{"test_log_likelihood_optimistic": -84.5, "test_log_likelihood_pessimistic": -84.6, "test_examples": 250},
}


def test_the_figures_are_printed_with_their_sides() -> None:
    exact = {"energy_kind": "exact", "binarization": "threshold", "test_log_likelihood_exact": -84.55}
    assert _printed(_AIS | exact) == [
        "checkpoint  models/a/1",
        "run         runs/a (metrics.jsonl and pictures)",
        "test log-likelihood, nats per example (250 examples, threshold binarization):",
        "  exact          -84.550  log Z by enumeration",
        "  optimistic     -84.500  AIS, 100 chains x 1000 temperatures: log Z = 12.500 +- 0.040",
        "  pessimistic    -84.600  reverse AIS, 100 chains x 1000 temperatures: log Z = 12.600 +- 0.050",
    ]


def test_bounds_and_classification_are_printed_as_what_they_are() -> None:
    bound = {"energy_kind": "lower_bound", "binarization": None}
    classes = {"test_classification_error": 0.0124, "classification": "mean_field"}
    lines = _printed(_AIS | bound | classes)
    assert lines[2] == "test classification error: 1.24% of 250 examples (mean_field)"
    assert lines[3] == "test log-likelihood, lower bounds, nats per example (250 examples):"
    known = {"binarization": None, "test_examples": 3}
    estimate = _printed({"energy_kind": "estimate", "test_log_likelihood_exact": -1.0, **known})
    assert estimate[-2] == "test log-likelihood, importance-weighted estimates, nats per example (3 examples):"
    assert not any("likelihood" in line for line in _printed({"energy_kind": "exact", **known}))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nothing"], "no recipe 'nothing'"),
        (["train", "rbm-digits", "--data", "nothing"], "no data set 'nothing'"),
        (["train", "rbm-digits", "--set", "fit.epoch=1"], "unknown key fit.epoch"),
        (["train", "rbm-digits", "--set", "objective.step=1"], "settings of pcd: steps, chains, centring"),
        (["train", "rbm-digits", "--set", "fit.batch_size=100000"], "there are only 1297 training examples"),
        (["train", "rbm-digits", "--set", "model.family=grbm"], "grbm has visible units that are real"),
        (["train", "rbm-digits", "--set", "model.hidden=[8, 0]"], "from 1 to 1,000,000 units a layer"),
        (["train", "rbm-digits", "--name", "a/b"], "model name 'a/b'"),
        (["train", "rbm-digits", "--device", "tpu"], "device 'tpu': expected auto, cpu or cuda"),
        (["train", "rbm-digits", "--resume"], "nothing to resume in runs/rbm-digits: no run was saved there"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = _invoke(*arguments)
    assert code == 2
    assert expected in output
    assert not list(tmp_path.iterdir())


def test_divergence_stops_with_a_plain_message(tmp_path: Path) -> None:
    code, output = _invoke(*_arguments(tmp_path, (*_SMALL, "fit.learning_rate=1e38", "fit.epochs=3")))
    assert code == 1
    assert output.splitlines()[-1].startswith("error: training diverged: ")
    assert not (tmp_path / "models").exists()


def test_a_second_run_in_the_same_folder_is_refused_and_a_new_one_moves_the_unfinished_aside(
    tmp_path: Path, long_run: tuple[str, ...]
) -> None:
    process = _fork(_arguments(tmp_path, long_run))
    _wait_for(process, (tmp_path / "run" / "state.safetensors").exists)
    code, output = _invoke(*_arguments(tmp_path, long_run))
    assert code == 2
    assert "another run is at work in" in output
    _kill(process)
    saved = (tmp_path / "run" / "state.safetensors").read_bytes()
    code, output = _invoke(*_arguments(tmp_path, long_run, "--set", "fit.learning_rate=0.5", "--resume"))
    assert code == 2
    assert "fit.learning_rate was " in output
    assert "now 0.5" in output
    code, output = _invoke(*_arguments(tmp_path, (*_SMALL, "fit.epochs=1")))
    assert code == 0, output
    assert (tmp_path / "run.unfinished-1" / "state.safetensors").read_bytes() == saved


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "state.safetensors"
    if damage == "cut":
        path.write_bytes(b"\x10" * 100)
    else:
        from safetensors.numpy import save

        path.write_bytes(save({"W": np.zeros(3)}))
    code, output = _invoke(*_arguments(tmp_path, _SMALL, "--resume"))
    assert code == 2
    assert "is no state of a training run" in output


def test_recipes_are_listed_with_data_set_size_and_figure() -> None:
    found = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    for expected in ("rbm-digits", "rbm-mnist", "mnist", "hidden", "nats"):
        assert expected in found.output


def test_recipes_of_layers_labels_terms_and_real_data_are_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = recipes()["rbm-digits"].model_dump() | {
        "model": {"family": "dbm", "hidden": [500, 200], "labels": True},
        "objective": {"terms": [{"name": "pcd"}, {"name": "sparsity", "weight": 0.1}]},
    }
    tree["data"] |= {"domain": "real"}
    deep = {"deep": validated(tree | {"name": "deep"}, "test")}
    monkeypatch.setattr("training.config.shipped", lambda: deep)
    found = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "250"})
    for expected in ("digits (real)", "dbm, 500-200 hidden, labels, ", "pcd + sparsity"):
        assert expected in found.output


def test_the_command_starts_without_torch() -> None:
    program = "import sys, training.cli, training.config; training.config.shipped(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
