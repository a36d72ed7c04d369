"""Greedy layers, the joint stage and fine-tuning: what each begins with, what it leaves alone, and its bits."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor

from models.families.dbm import DBM
from models.families.grbm import GRBM
from models.families.rbm import RBM
from models.manifest import Domain
from tests.models import cases
from tests.training.toys import bars, clouds, dataset, labelled_bars
from training import state as states
from training.config import Recipe, load, validated
from training.data import Dataset
from training.errors import DataError, Interrupted, RecipeError
from training.fit import FitState, manifest, model_of, train
from training.objective import Objective, Sum
from training.run import Job, Result, run
from training.stages import Stage, check, names, raised, stage
from training.state import Origin

MakeRecipe = Callable[..., Recipe]
Found = dict[str, Tensor]
_CENTRED = {"name": "pcd", "centring": "centred", "chains": 20}


def _recipe(family: str, hidden: list[int], labels: bool = False, **sections: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "toy",
        "data": {"dataset": "toy"},
        "model": {"family": family, "hidden": hidden, "labels": labels, "weight_std": 0.3},
        "objective": {"name": "up_down", "steps": 2} if family == "dbn" else _CENTRED,
        "fit": {"epochs": 3, "batch_size": 8, "learning_rate": 0.1},
        "pretraining": {"objective": _CENTRED, "fit": {"epochs": 5, "batch_size": 8, "learning_rate": 0.3}},
    }
    for name, section in sections.items():
        whole = name in ("objective", "pretraining", "finetuning")
        tree[name] = section if whole else {**tree[name], **section}
    return validated(tree, "test")


def _through(recipe: Recipe, data: Dataset, stages: int | None = None) -> tuple[list[Stage], list[Found], list[Found]]:
    """The stages, what each began with and what it ended with."""
    run_through, begun, finished = [], list[Found](), list[Found]()
    for _ in names(recipe)[:stages]:
        at = stage(recipe, data, finished)
        state = at.begin()
        run_through.append(at)
        begun.append({name: t.clone() for name, t in state.parameters.items()})
        train(at.recipe, at.data, at.objective, state, lambda _state: None)
        finished.append(state.parameters)
    return run_through, begun, finished


# --- what a stage begins with ---


@pytest.mark.parametrize("labels", [False, True])
def test_a_dbn_begins_with_its_greedy_layers(labels: bool) -> None:
    recipe = _recipe("dbn", [6, 5, 4], labels)
    stages, begun, (one, two, three, _) = _through(recipe, labelled_bars())
    assert names(recipe) == [at.name for at in stages] == ["layer 1", "layer 2", "layer 3", "training"]
    expected = {
        **{"W1": one["W"], "W2": two["W"], "W3": three["W"]},
        **{"b0": one["b"], "b1": two["b"], "b2": three["b"], "b3": three["c"]},
        **{"V1": one["W"], "V2": two["W"], "a1": one["c"], "a2": two["c"]},
    }
    if labels:
        expected |= {"U": three["U"], "d": three["d"]}
    assert set(begun[-1]) == set(expected)
    assert all(torch.equal(begun[-1][name], t) for name, t in expected.items())
    assert [("U" in layer) for layer in (one, two, three)] == [False, False, labels]  # on top alone
    assert not any(torch.equal(begun[n]["W"], layer["W"]) for n, layer in enumerate((one, two, three)))


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("hidden", [[6], [6, 5], [6, 5, 4], [6, 5, 4, 3]])
def test_a_dbm_begins_with_its_greedy_layers_the_middle_ones_halved(hidden: list[int], labels: bool) -> None:
    recipe = _recipe("dbm", hidden, labels)
    _, begun, (*layers, _) = _through(recipe, labelled_bars())
    top, found = len(hidden), begun[-1]
    expected = {"b0": layers[0]["b"], f"b{top}": layers[-1]["c"]}
    for n, layer in enumerate(layers, start=1):
        expected[f"W{n}"] = layer["W"] if n in (1, top) else layer["W"] / 2
    for n in range(1, top):
        expected[f"b{n}"] = (layers[n - 1]["c"] + layers[n]["b"]) / 2
    if labels:
        expected |= {"U": layers[-1]["U"], "d": layers[-1]["d"]}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.parametrize("domain", ["binary", "real"])
@pytest.mark.parametrize("hidden", [[6], [6, 5], [6, 5, 4]])
def test_a_recognition_net_begins_as_the_pass_up_that_starts_mean_field(hidden: list[int], domain: str) -> None:
    data = clouds(40) if domain == "real" else dataset(bars())
    recipe = _recipe("dbm", hidden, model={"recognition": True, "log_sigma": -0.4}, data={"domain": domain})
    _, begun, _ = _through(recipe, data)
    model = model_of(manifest(recipe, data), begun[-1])
    assert isinstance(model, DBM)
    v = data.train[:9].float()
    start = model.machine.mean_field(v, sweeps=0)
    if len(hidden) > 1:  # with one layer mean-field is exact
        for layer, means in model.recognise(v).items():
            torch.testing.assert_close(means, start[layer])
    torch.testing.assert_close(model.recognise(v)["hidden" if len(hidden) == 1 else "hidden1"], start[model.layers[0]])


def test_a_real_dbm_begins_with_the_scales_of_its_first_layer() -> None:
    data = clouds(40)
    _, begun, finished = _through(_recipe("dbm", [4, 3], data={"domain": "real"}), data)
    assert torch.equal(begun[-1]["log_sigma"], finished[0]["log_sigma"])
    assert float(finished[0]["log_sigma"].abs().max()) > 0.01
    assert set(finished[1]) == {"W", "b", "c"}


def test_a_joint_stage_of_no_epochs_gives_the_greedy_model() -> None:
    for family in ("dbn", "dbm"):
        _, begun, finished = _through(_recipe(family, [6, 5], fit={"epochs": 0}), dataset(bars()))
        assert all(torch.equal(begun[-1][name], t) for name, t in finished[-1].items())


# --- what the layers see ---


@pytest.mark.parametrize("domain", ["binary", "unit", "real"])
def test_raised_data_are_the_features(domain: Domain) -> None:
    v = bars().float() if domain == "binary" else clouds(40).train
    if domain == "unit":
        v = torch.sigmoid(v)
    data = dataset(bars() if domain == "binary" else v, domain, labels=torch.arange(len(v)) % 2)
    W, b, c = (cases.normal(shape, n).float() for n, shape in enumerate([(v.shape[1], 5), (v.shape[1],), (5,)]))
    sigma = {"log_sigma": cases.normal((v.shape[1],), 3, 0.3).float()} if domain == "real" else {}
    parameters = {"W": W, "b": b, "c": c, **sigma}
    model = GRBM(W, b, c, sigma["log_sigma"]) if sigma else RBM(W, b, c, domain)
    above = raised(data, parameters)
    assert above.grey is not None
    assert torch.equal(above.grey, model.features(v))
    assert torch.equal(above.validation, (model.features(v) > 0.5).byte())
    torch.testing.assert_close(above.train_means, model.features(v).double().mean(0))
    assert (above.domain, above.shape, above.binarization) == ("binary", (5,), "stochastic")
    assert above.train_labels is data.train_labels
    assert above.classes == data.classes
    drawn = torch.stack([above.batch(torch.arange(len(v)), epoch, 1) for epoch in range(400)])
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    p = above.grey
    # |z| > 6 at 80 or 200 means of 400 draws: less often than once in a million.
    assert float(((drawn.mean(0) - p).abs() / torch.sqrt(p * (1 - p) / 400 + 1e-4)).max()) < 6


def test_grey_levels_are_raised_and_not_their_thresholds() -> None:
    levels = torch.randint(0, 256, (20, 9), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = dataset((levels > 127).byte())
    data = type(data)(**{**vars(data), "grey": levels, "white": 255.0})
    model = cases.rbm(9, 4, dtype=torch.float32)
    above = raised(data, model.tensors())
    assert above.grey is not None
    torch.testing.assert_close(above.grey, model.features(levels.float() / 255))


def test_labels_do_not_pull_on_what_is_raised() -> None:
    model = cases.rbm(9, 4, dtype=torch.float32, classes=2)
    above = raised(labelled_bars(), model.tensors())
    assert torch.equal(above.grey, RBM(model.W, model.b, model.c).features(bars().float()))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["dbn", "dbm"])
def test_each_layer_learns_from_the_means_of_the_one_below(family: str) -> None:
    """Of a DBM's lowest layer with its inputs doubled, as it was trained."""
    stages, _, (one, two, *_) = _through(_recipe(family, [6, 5, 4]), dataset(bars()))
    times = 2 if family == "dbm" else 1
    first = torch.sigmoid(times * bars().float() @ one["W"] + one["c"])
    torch.testing.assert_close(stages[1].data.grey, first)
    torch.testing.assert_close(stages[2].data.grey, torch.sigmoid(first @ two["W"] + two["c"]))
    assert torch.equal(stages[3].data.train, bars())


def _sides(objective: Objective) -> list[Any]:
    terms = objective.terms if isinstance(objective, Sum) else (objective,)
    return [term.model_dump().get("doubled") for term in terms]


@pytest.mark.parametrize(
    ("family", "hidden", "expected"),
    [
        ("dbm", [6], ["none"]),
        ("dbm", [6, 5], ["below", "above"]),
        ("dbm", [6, 5, 4, 3], ["below", "none", "none", "above"]),
        ("dbn", [6, 5, 4], ["none", "none", "none"]),
    ],
)
@pytest.mark.parametrize("name", ["cd", "pcd"])
def test_the_end_layers_of_a_dbm_alone_have_doubled_inputs(
    family: str, hidden: list[int], expected: list[str], name: str
) -> None:
    fit = {"epochs": 0, "batch_size": 8, "learning_rate": 0.1}
    together = {"terms": [{"name": "sparsity"}, {"name": name, "weight": 0.5}]}
    for objective, others in (({"name": name}, []), (together, [None])):
        recipe = _recipe(family, hidden, pretraining={"objective": objective, "fit": fit})
        stages, *_ = _through(recipe, dataset(bars()))
        assert [_sides(at.objective) for at in stages[:-1]] == [[*others, side] for side in expected]
        assert [at.structure.family for at in stages] == [*["rbm"] * len(hidden), family]


# --- fine-tuning ---


def test_fine_tuning_goes_on_from_the_joint_stage_and_keeps_what_its_rates_hold() -> None:
    held = {"W1": 0.0, "b1": 0.0, "V1": 0.0}
    fit = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "rates": held, "momentum": 0.5, "weight_decay": 0.01}
    recipe = _recipe("dbn", [6, 5], finetuning={"objective": {"name": "up_down"}, "fit": fit})
    stages, begun, finished = _through(recipe, dataset(bars()))
    assert [at.name for at in stages][-2:] == ["training", "fine-tuning"]
    assert all(torch.equal(begun[-1][name], t) for name, t in finished[-2].items())
    assert {name for name, t in finished[-1].items() if torch.equal(t, begun[-1][name])} == set(held)


def test_discriminative_fine_tuning_of_a_dbm_too_large_to_enumerate_moves_the_recognition_net_and_the_labels() -> None:
    fit = {"epochs": 100, "batch_size": 8, "learning_rate": 0.3}
    recipe = _recipe(
        "dbm", [21, 22], labels=True, model={"recognition": True}, fit={"epochs": 0},
        finetuning={"objective": {"name": "discriminative"}, "fit": fit},
    )  # fmt: skip
    data = labelled_bars()
    _, begun, finished = _through(recipe, data)
    moved = {name for name, t in finished[-1].items() if not torch.equal(t, begun[-1][name])}
    assert moved == {"V1", "V2", "a1", "a2", "U", "d"}
    found = []
    for parameters in (begun[-1], finished[-1]):
        model = model_of(manifest(recipe, data), parameters)
        assert isinstance(model, DBM)
        assert data.train_labels is not None
        found.append(float(model.class_log_probs(bars().float()).gather(1, data.train_labels[:, None]).mean()))
    assert found[1] > found[0]
    assert found[1] > -0.3


def test_fine_tuning_needs_no_pre_training() -> None:
    fit = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1}
    recipe = _recipe("rbm", [6], labels=True, finetuning={"objective": {"name": "discriminative"}, "fit": fit})
    recipe = recipe.model_copy(update={"pretraining": None})
    assert names(recipe) == ["training", "fine-tuning"]
    _, begun, finished = _through(recipe, labelled_bars())
    assert all(torch.equal(begun[1][name], t) for name, t in finished[0].items())
    torch.testing.assert_close(finished[1]["b"], begun[1]["b"], rtol=0, atol=1e-6)  # p(y | v) does not depend on it
    assert not torch.equal(finished[1]["W"], begun[1]["W"])


# --- refusals: before anything is trained ---

_FIT = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("family", "hidden", "sections", "expected"),
    [
        ("rbm", [6], {}, r"pretraining: rbm has no layers to be trained one after the other"),
        ("dbn", [6, 5], {"model": {"labels": True}}, r"model\.labels: toy has no labels"),
        ("dbm", [6, 5], {"pretraining": {"objective": {"name": "sparsity"}, "fit": _FIT}}, r"need one of cd, pcd"),
        ("dbm", [6, 5], {"pretraining": {"objective": {"name": "cdd"}, "fit": _FIT}}, r"'cdd' is unknown"),
        ("dbn", [6, 5], {"pretraining": {"objective": {"name": "up_down"}, "fit": _FIT}}, r"up_down does not train"),
        ("dbn", [6, 5], {"objective": {"name": "pcd"}}, r"pcd does not train models of family dbn"),
        ("dbm", [6, 5], {"finetuning": {"objective": {"name": "recognition"}, "fit": _FIT}}, r"recognition does not"),
        ("dbm", [6, 5], {"finetuning": {"objective": {"name": "discriminative"}, "fit": _FIT}}, r"without labels"),
        (
            "dbn", [6, 5],
            {"finetuning": {"objective": {"name": "up_down"}, "fit": {**_FIT, "rates": {"V2": 0.0}}}},
            r"fit\.rates: dbn has no V2; it has .*V1",
        ),
    ],
)  # fmt: skip
def test_what_a_later_stage_cannot_do_is_said_before_the_first(
    family: str, hidden: list[int], sections: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        check(_recipe(family, hidden, **sections), dataset(bars()))


def test_a_batch_of_a_later_stage_that_is_larger_than_the_data_is_said_before_the_first() -> None:
    tuned = {"objective": {"name": "up_down"}, "fit": {**_FIT, "batch_size": 17}}
    with pytest.raises(DataError, match=r"fit\.batch_size = 17, but there are only 16 training examples"):
        check(_recipe("dbn", [6, 5], finetuning=tuned), dataset(bars()))


@pytest.mark.parametrize("family", ["dbn", "dbm"])
def test_the_check_passes_what_can_be_trained(family: str) -> None:
    tuned = {"objective": {"name": "discriminative" if family == "dbm" else "up_down"}, "fit": _FIT}
    check(_recipe(family, [6, 5, 4], labels=True, finetuning=tuned), labelled_bars())


# --- whole runs, some of them killed ---

_RUN = """
name = "deep"
[data]
dataset = "DATA"
binarization = "stochastic"
validation = 50
test = 50
[model]
family = "FAMILY"
hidden = [8, 6]
labels = true
[pretraining]
objective = {name = "pcd", centring = "centred", chains = 30}
fit = {epochs = 30, batch_size = 20, learning_rate = 0.1, momentum = 0.5}
[objective]
OBJECTIVE
[fit]
epochs = 20
batch_size = 20
learning_rate = 0.01
[finetuning]
objective = {OBJECTIVE}
fit = {epochs = 2, batch_size = 20, learning_rate = 0.01, rates = {b0 = 0.0}}
[monitor]
every = 2
examples = 40
[likelihood]
chains = 10
temperatures = 10
raise_examples = 0
"""
_OBJECTIVES = {
    "dbn": 'name = "up_down", steps = 1, chains = 20',
    "dbm": 'name = "pcd", chains = 20, mean_field_sweeps = 3',
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    found = load_digits()
    np.savez(path, x=found.images[:500], y=found.target[:500])
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Callable[[str], tuple[Path, Path]]:
    """The recipe of a family and the folder of its run when nobody disturbed it."""

    @cache
    def of(family: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("whole")
        recipe = _write(folder, family, digits)
        assert "test_classification_error" in _run(_job(recipe, folder)).metrics
        assert {r["stage"] for r in _records(folder)} == {0, 1, 2, 3}
        return recipe, folder

    return of


def _write(folder: Path, family: str, digits: Path) -> Path:
    settings = _OBJECTIVES[family]
    text = _RUN.replace("DATA", str(digits)).replace("FAMILY", family)
    text = text.replace("[objective]\nOBJECTIVE", "[objective]\n" + settings.replace(", ", "\n"))
    path = folder / "deep.toml"
    path.write_text(text.replace("OBJECTIVE", settings))
    return path


def _job(recipe: Path, folder: Path, resume: bool = False) -> Job:
    return Job(load(str(recipe)), folder / "models", folder / "run", device="cpu", resume=resume)


def _run(job: Job) -> Result:
    return run(job, Console(file=io.StringIO()))


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines if line.endswith("}")]


def _within(folder: Path, number: int) -> Callable[[], bool]:
    """Whether stage `number` is well under way."""
    return lambda: sum(r["stage"] == number for r in _records(folder)) > 3


def _interrupted(job: Job, when: Callable[[], bool]) -> None:
    """Run until `when`, then as if Ctrl-C were pressed."""
    over = threading.Event()

    def press() -> None:
        while not when():
            if over.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=press)
    watcher.start()
    try:
        with pytest.raises(Interrupted):
            _run(job)
    finally:
        over.set()
        watcher.join()


def _same(folder: Path, whole: Path) -> None:
    for file in ("weights.safetensors", "reference.safetensors", "preview.png"):
        ours, theirs = (f / "models" / "deep" / "1" / file for f in (folder, whole))
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_bytes() == theirs.read_bytes(), file
    for mine, other in zip(_records(folder), _records(whole), strict=True):
        assert mine.items() ^ other.items() == set()


@pytest.mark.parametrize("family", ["dbn", "dbm"])
def test_a_run_interrupted_in_its_second_layer_and_in_the_joint_stage_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, Path]], family: str
) -> None:
    recipe, whole = undisturbed(family)
    for count, number in enumerate((1, 2)):
        _interrupted(_job(recipe, tmp_path, resume=count > 0), _within(tmp_path, number))
        saved = states.read(tmp_path / "run").fit
        assert [set(layer) for layer in saved.finished] == [{"W", "b", "c"}, {"W", "b", "c", "U", "d"}][:number]
        assert not (tmp_path / "models").exists()
    _run(_job(recipe, tmp_path, resume=True))
    _same(tmp_path, whole)


def test_a_run_killed_in_its_second_layer_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, Path]]
) -> None:
    (recipe, whole), part = undisturbed("dbn"), tmp_path
    program = "from training.cli import app; app(prog_name='ebm')"
    arguments = ["train", str(recipe), "--out", str(part / "models"), "--run-dir", str(part / "run"), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=Path(__file__).parents[2])
    end, reached = time.monotonic() + 120, _within(part, 1)
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert len(states.read(part / "run").fit.finished) == 1
    with (part / "run" / "metrics.jsonl").open("a") as file:  # what a later stage would have left
        file.write('{"stage": 2, "step": 0, "epoch": 0}\n{"stage": 2, "st')
    _run(_job(recipe, part, resume=True))
    _same(part, whole)


class _CutError(Exception):
    pass


def test_a_state_keeps_the_order_in_which_sums_go_through_the_parameters(tmp_path: Path) -> None:
    """The norm of the gradient that is cut is such a sum: in another order it has other last bits."""
    fit = {"epochs": 20, "batch_size": 8, "learning_rate": 0.5, "clip": 0.01}
    recipe = _recipe("dbm", [6, 5], labels=True, objective={"name": "discriminative"}, fit=fit)
    recipe = recipe.model_copy(update={"pretraining": None})
    data, at = labelled_bars(), stage(recipe, labelled_bars(), [])
    whole, part = at.begin(), at.begin()
    train(recipe, data, at.objective, whole, lambda _state: None)

    def cut(state: FitState) -> None:
        if state.step == 3:
            raise _CutError

    with pytest.raises(_CutError):
        train(recipe, data, at.objective, part, cut)
    states.save(tmp_path, Origin(recipe=recipe, data="", device="cpu", threads=1), part, 1.0)
    again = states.read(tmp_path).fit
    train(recipe, data, at.objective, again, lambda _state: None)
    assert list(again.parameters) == list(whole.parameters) != sorted(whole.parameters)
    assert all(torch.equal(t, whole.parameters[name]) for name, t in again.parameters.items())
