"""The figures at the end and on the way against enumeration; the pictures of every kind of data."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.family import EnergyModel, HasClasses, HasConditionals, HasEnumeration, HasStates
from models.layered_family import LayeredModel
from models.manifest import Domain
from tests.models import cases
from tests.models.cases import Case
from tests.training.toys import bars, dataset
from training import pictures
from training.config import LikelihoodSettings, MonitorSettings
from training.data import Dataset
from training.likelihood import classification_error, energies, evaluate, monitor

_EFFORT = LikelihoodSettings(
    chains=200, temperatures=200, raise_examples=12, raise_runs=100, annealed_examples=30, annealed_runs=20
)


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _data(of: Case, n: int = 40) -> Dataset:
    """Examples in the case's domain: some states, and the classes that the model does not expect."""
    domain, seen = of.manifest.visible.domain, cases.some_visibles(of, n, seed=9)
    examples = seen.float() if domain in ("real", "unit") else seen.char() if domain == "spin" else seen.byte()
    model = of.model
    labels = None
    if isinstance(model, HasClasses) and model.class_count:
        labels = torch.arange(n) % model.class_count
    return dataset(examples, domain, labels)


def _log_partition(of: Case) -> float:
    assert isinstance(of.model, HasEnumeration)
    return of.model.log_partition()


_EVALUATED = ["bm spin", "rbm", "rbm labelled", "grbm", "dbm", "dbm deep labelled", "dbm real labelled"]


@pytest.mark.parametrize("name", _EVALUATED)
def test_every_estimate_of_log_z_agrees_with_enumeration(name: str) -> None:
    of = cases.case(name, visible=5, hidden=6, seed=3, scale=0.4)
    data, exact = _data(of), _log_partition(of)
    found = evaluate(of.manifest, of.model, data, _EFFORT, 3, _silent)
    m = found.metrics
    assert found.log_partition is not None
    assert found.log_partition.method == "exact"
    assert found.log_partition.value == m["log_partition_exact"]
    assert m["log_partition_exact"] == pytest.approx(exact, abs=1e-9)
    # Errors that are close to normal, each with its own standard error: |z| < 5 is a false alarm once in a million.
    for method in ("ais", "reverse_ais"):
        assert 0 < m[f"log_partition_{method}_stderr"] < 0.15
        assert abs(m[f"log_partition_{method}"] - exact) < 5 * m[f"log_partition_{method}_stderr"]
    mean = float(of.model.energy(data.test.double()).mean())
    assert m["energy_kind"] == "exact"
    assert m["test_log_likelihood_exact"] == pytest.approx(-mean - exact, abs=1e-9)
    assert m["test_log_likelihood_optimistic"] == pytest.approx(-mean - m["log_partition_ais"], abs=1e-9)
    assert m["test_log_likelihood_pessimistic"] == pytest.approx(-mean - m["log_partition_reverse_ais"], abs=1e-9)
    one_layer = not isinstance(of.model, LayeredModel) or of.model.machine.depth == 1
    assert ("log_partition_raise" in m) is one_layer
    if one_layer:
        # Its own bias, half the variance of its mean weight, is far below this at 100 runs.
        assert abs(m["log_partition_raise"] - exact) < 5 * m["log_partition_raise_stderr"] + 0.02
        assert m["test_log_likelihood_raise"] == pytest.approx(-mean - m["log_partition_raise"], abs=1e-9)
        assert (m["raise_examples"], m["raise_runs"]) == (12, 100)
    assert (m["test_examples"], m["binarization"]) == (40, data.binarization)
    assert found.samples is not None
    assert found.samples.shape == (200, 5)


@pytest.mark.parametrize("name", ["dbm", "dbm deep", "dbm real labelled"])
def test_where_the_energy_is_a_bound_the_likelihoods_are_too_and_are_called_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = cases.case(name, visible=5, hidden=6, seed=3, scale=0.4)
    exact = -float(of.model.energy(_data(of).test.double()).mean()) - _log_partition(of)
    monkeypatch.setattr("models.layered.MAX_POSTERIOR_UNITS", 0)  # as if there were too many hidden units
    of = cases.case(name, visible=5, hidden=6, seed=3, scale=0.4)
    m = evaluate(of.manifest, of.model, _data(of), _EFFORT, 3, _silent).metrics
    assert m["energy_kind"] == "lower_bound"
    assert exact - 1.0 < m["test_log_likelihood_exact"] < exact
    # Annealed given v it is the likelihood itself, but for its error, found on 30 of the examples.
    assert (m["annealed_examples"], m["annealed_runs"]) == (30, 20)
    assert m["test_log_likelihood_exact"] < m["test_log_likelihood_annealed_exact"]
    assert abs(m["test_log_likelihood_annealed_exact"] - exact) < 4.9 * m["annealed_above_bound_stderr"]
    for side in ("optimistic", "pessimistic"):
        found = m[f"test_log_likelihood_annealed_{side}"] - m[f"test_log_likelihood_{side}"]
        assert found == pytest.approx(m["annealed_above_bound"], abs=1e-9)
    few = evaluate(of.manifest, of.model, _data(of), _EFFORT.model_copy(update={"annealed_examples": 0}), 3, _silent)
    assert not any("annealed" in key for key in few.metrics)
    assert "log_partition_raise" not in m
    found = monitor(of.manifest, of.model, _data(of), MonitorSettings(), 0, 0)
    assert found["log_likelihood_validation"] == pytest.approx(m["test_log_likelihood_exact"], abs=1e-9)
    assert "pseudo_log_likelihood" not in found


@pytest.mark.parametrize("K", [0, 3])
def test_where_the_energy_is_an_estimate_some_examples_drawn_at_random_have_it_and_the_bound(K: int) -> None:
    # 17 directed units are beyond enumeration; 5 units above them make log Z exact.
    layers, n, count = [6, 17, 5], 400, 300
    model = cases.dbn(layers, seed=3, scale=0.5, classes=K, recognition=True)
    of = cases.manifest_of("dbn", 6, classes=K, config={"layers": layers})
    examples = cases.states(cases.BINARY, 6).repeat(7, 1)[:n].sort(0, descending=True).values.byte()
    data = dataset(examples, labels=torch.arange(n) * 3 // n if K else None)
    settings = LikelihoodSettings(chains=200, temperatures=200, estimated_examples=count)
    m = evaluate(of, model, data, settings, 3, _silent).metrics
    assert (m["energy_kind"], m["test_examples"], m["importance_draws"]) == ("estimate", count, 100)
    assert "log_partition_raise" not in m
    log_z = model.log_partition()
    assert m["log_partition_exact"] == pytest.approx(log_z, abs=1e-9)
    # Drawn at random, without repeats: a mean over a share f of the examples has (1 - f) of the usual variance.
    weighed = model.weighed(data.test.double())
    of_all = {
        "test_log_likelihood": weighed.log_density()[0] - log_z,
        "test_variational_bound": weighed.bound()[0] - log_z,
    }
    if K:
        assert data.test_labels is not None
        wrong = weighed.label_terms().argmax(1) != data.test_labels
        stderr = float(wrong.double().std()) * math.sqrt((1 - count / n) / count)
        assert 0.0 < abs(m["test_classification_error"] - float(wrong.double().mean())) < 4.9 * stderr
        assert m["classification"] == "estimate"
    for figure, values in of_all.items():
        stderr = float(values.std()) / math.sqrt(count)
        assert m[f"{figure}_examples_stderr"] == pytest.approx(stderr, rel=0.2)
        found = m[f"{figure}_exact"]
        assert 0.0 < abs(found - float(values.mean())) < 4.9 * stderr * math.sqrt(1 - count / n)
        assert abs(float(values[:count].mean()) - float(values.mean())) > 4.9 * stderr  # a prefix would not do
        for side, method in (("optimistic", "ais"), ("pessimistic", "reverse_ais")):
            assert m[f"{figure}_{side}"] == pytest.approx(found + log_z - m[f"log_partition_{method}"], abs=1e-9)
    assert m["test_variational_bound_exact"] < m["test_log_likelihood_exact"]


def test_monitors_estimate_energies_of_few_draws_and_classify_by_the_same() -> None:
    model = cases.dbn([6, 17, 5], seed=3, scale=0.5, classes=3, recognition=True)
    of = cases.manifest_of("dbn", 6, classes=3, config={"layers": [6, 17, 5]})
    data = dataset(cases.states(cases.BINARY, 6).byte(), labels=torch.arange(64) % 3)
    found = monitor(of, model, data, MonitorSettings(examples=50), 0, 0)
    seen = model.weighed(data.validation[:50].double(), draws=10)
    assert data.validation_labels is not None
    assert found["free_energy_validation"] == pytest.approx(-float(seen.log_density()[0].mean()), abs=1e-12)
    wrong = seen.label_terms().argmax(1) != data.validation_labels[:50]
    assert found["classification_error_validation"] == float(wrong.double().mean())
    assert found["log_likelihood_validation"] == pytest.approx(
        float(seen.log_density()[0].mean()) - model.log_partition(), abs=1e-9
    )


@pytest.mark.parametrize("name", ["rbm labelled", "dbm labelled", "dbm real labelled"])
def test_the_classification_error_is_the_share_of_wrong_classes(name: str) -> None:
    of = cases.case(name)
    data, model = _data(of, 200), of.model
    assert isinstance(model, HasClasses)
    assert data.test_labels is not None
    wrong = 0
    for v, label in zip(data.test.double(), data.test_labels, strict=True):
        joint = torch.cat([model.class_energy(v[None], torch.tensor([k])) for k in range(3)])
        wrong += int(joint.argmin() != label)
    assert 0 < wrong < 200
    assert classification_error(model, data.test, data.test_labels) == pytest.approx(wrong / 200, abs=1e-12)
    small = replace(data, test=data.test[:50], test_labels=data.test_labels[:50])
    m = evaluate(of.manifest, model, small, LikelihoodSettings(temperatures=10, raise_examples=0), 0, _silent).metrics
    assert m["test_classification_error"] == classification_error(model, small.test, data.test_labels[:50])
    assert m["classification"] == "exact"
    assert (
        monitor(of.manifest, model, data, MonitorSettings(examples=50), 0, 0)["classification_error_validation"]
        == (m["test_classification_error"])
    )


# --- monitors ---


def _pseudo_log_likelihood(model: EnergyModel, v: Tensor, spin: bool) -> float:
    """The mean of sum_i log p(v_i | the others), from the energies of every flip."""
    total = 0.0
    for unit in range(v.shape[1]):
        flipped = v.clone()
        flipped[:, unit] = -v[:, unit] if spin else 1 - v[:, unit]
        total -= float(torch.log1p(torch.exp(model.energy(v) - model.energy(flipped))).mean())
    return total


@pytest.mark.parametrize("name", ["rbm", "rbm labelled", "dbm", "bm", "bm spin"])
def test_monitors_report_what_enumeration_says(name: str) -> None:
    of = cases.case(name, visible=6, hidden=4)
    data = _data(of)
    v = data.validation.double()
    found = [monitor(of.manifest, of.model, data, MonitorSettings(), 0, step) for step in range(60)]
    mean = float(energies(of.model, v).mean())
    assert found[0]["log_likelihood_validation"] == pytest.approx(-mean - _log_partition(of), abs=1e-9)
    assert found[0]["free_energy_validation"] == pytest.approx(mean, abs=1e-9)
    estimates = torch.tensor([f["pseudo_log_likelihood"] for f in found], dtype=torch.float64)
    stderr = float(estimates.std()) / math.sqrt(len(estimates))
    truth = _pseudo_log_likelihood(of.model, v, data.domain == "spin")
    assert abs(float(estimates.mean()) - truth) < 5.2 * stderr
    assert stderr < 0.03 * abs(truth)


def test_real_visibles_have_no_pseudo_likelihood_of_flips() -> None:
    of = cases.case("grbm")
    found = monitor(of.manifest, of.model, _data(of), MonitorSettings(), 0, 0)
    assert "pseudo_log_likelihood" not in found
    assert "log_likelihood_validation" in found


def test_a_model_that_is_too_large_to_enumerate_at_a_glance_is_estimated_where_asked_for() -> None:
    of = cases.case("rbm labelled", visible=20, hidden=18, scale=0.3)  # its labels are few, its smaller side is not
    data = _data(of, 20)
    assert "log_likelihood_validation" not in monitor(of.manifest, of.model, data, MonitorSettings(), 0, 0)
    settings = MonitorSettings(ais_temperatures=200)
    found = monitor(of.manifest, of.model, data, settings, 0, 0)["log_likelihood_validation"]
    assert abs(found + float(of.model.energy(data.validation.double()).mean()) + _log_partition(of)) < 0.5


# --- pictures ---


def _decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert min(image.size) > 40
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rbm", (3, 3)),
        ("bm spin", (3, 3)),
        ("grbm", (3, 3)),
        ("dbm real labelled", (3, 3)),
        ("rbm", (9,)),
        ("grbm", (9,)),
        ("rbm", (1, 3, 3)),
        ("grbm", (3, 1, 3)),
    ],
)
def test_pictures_are_made_of_every_kind_of_data(name: str, shape: tuple[int, ...]) -> None:
    of = cases.case(name, visible=9, hidden=6)
    data = replace(_data(of), shape=shape)
    assert isinstance(of.model, HasConditionals)
    drawn = {
        "filters": pictures.filters(of.model, shape),
        "samples": pictures.samples(of.model, data.test[:20].double(), data, 0, sweeps=5),
        "from noise": pictures.samples(of.model, None, data, 0, sweeps=1),
        "completions": pictures.completions(of.model, data, 0, count=6, chains=2, sweeps=5),
    }
    for title, content in drawn.items():
        assert _decoded(content).std() > 5, title


@pytest.mark.parametrize("name", ["mlp_energy", "jem", "conv_energy"])
def test_networks_are_drawn_by_their_own_samplers(name: str) -> None:
    of = cases.case(name, visible=9)
    data = replace(_data(of), shape=(3, 3))
    assert isinstance(of.model, HasStates)
    for content in (
        pictures.samples(of.model, None, data, 0, sweeps=1),
        pictures.completions(of.model, data, 0, count=6, chains=2, sweeps=5),
    ):
        assert _decoded(content).std() > 5


def test_the_levels_of_a_picture_are_those_of_the_domain() -> None:
    domains: list[Domain] = ["binary", "spin", "real"]
    levels = {}
    for domain in domains:
        examples = bars().float() if domain == "binary" else 2 * bars().float() - 1
        levels[domain] = pictures._levels(dataset(3 * examples if domain == "real" else examples, domain))
    assert levels == {"binary": (0.0, 1.0), "spin": (-1.0, 1.0), "real": (-3.0, 3.0)}


def test_curves_show_whatever_was_recorded() -> None:
    records = [
        {"epoch": float(k), "free_energy_train": -k, "free_energy_validation": 0.5 - k, "free_energy_gap": 0.5}
        for k in range(3)
    ]
    plain = _decoded(pictures.curves(records))
    more = [r | {"classification_error_validation": 0.5, "log_likelihood_validation": -3.0} for r in records]
    assert not np.array_equal(plain, _decoded(pictures.curves(more)))
