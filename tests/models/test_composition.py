"""Compositions: weighted sums of the energies of other checkpoints of a models directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import arrays, catalog, checkpoint
from models.catalog import estimators_of, samplers_of
from models.errors import CapabilityError, CheckpointError
from models.families.composition import Composition
from models.manifest import Manifest
from tests.models.cases import case, normal

LABELS = ["cat", "dog", "owl"]
X = normal((130, 4), 5).sigmoid()


def put(folder: Path, name: str, of: str, dtype: torch.dtype = torch.float64, seed: int = 0, **keys: Any) -> None:
    made = case(of, 4, 3, dtype=dtype, seed=seed)
    checkpoint.write(folder, made.manifest.model_copy(update={"name": name, **keys}), made.model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two energies and a classifier on [0, 1]^4, and three machines of four binary units."""
    put(tmp_path, "hill", "mlp_energy unit")
    put(tmp_path, "single", "mlp_energy unit", torch.float32, seed=3)
    put(tmp_path, "pets", "jem", classes=LABELS)
    for name, of in (("rbm", "rbm"), ("labelled", "rbm labelled"), ("dbm", "dbm deep")):
        put(tmp_path, name, of)
    return tmp_path


def term(model: str, weight: float = 1.0, label: str | int | None = None, version: int = 1) -> dict[str, Any]:
    return {"model": model, "version": version, "weight": weight, "label": label}


def compose(folder: Path, *terms: dict[str, Any], name: str = "sum", domain: str = "unit", **keys: Any) -> Path:
    """By hand, without a weights file."""
    made = folder / name / "1"
    made.mkdir(parents=True, exist_ok=True)
    manifest = {"format": "ebm-checkpoint", "format_version": 1, "name": name, "version": 1, "family": "composition"}
    manifest |= {"visible": {"shape": [4], "domain": domain}, "config": {"terms": list(terms)}, **keys}
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def read(folder: Path, *terms: dict[str, Any], **keys: Any) -> Composition:
    model = checkpoint.read(compose(folder, *terms, **keys)).model
    assert isinstance(model, Composition)
    return model


def part(folder: Path, name: str) -> Any:
    return checkpoint.read(folder / name / "1").model


def test_the_energy_is_the_weighted_sum_and_the_score_its_slope(folder: Path) -> None:
    model = read(folder, term("hill", 0.7), term("pets", 2.0, "owl"), term("pets", -0.5))
    hill, pets = part(folder, "hill"), part(folder, "pets")
    owl = torch.full((130,), 2)
    expected = 0.7 * hill.energy(X) + 2 * pets.class_energy(X, owl) - 0.5 * pets.energy(X)
    np.testing.assert_allclose(model.energy(X), expected, rtol=0, atol=1e-12)
    slope = 0.7 * hill.score(X) - 2 * pets.energy_and_gradient(X, owl)[1] - 0.5 * pets.score(X)
    np.testing.assert_allclose(model.score(X), slope, rtol=0, atol=1e-12)
    energy, gradient = model.energy_and_gradient(X)
    np.testing.assert_allclose(energy, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, -slope, rtol=0, atol=1e-12)
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    for unit in range(4):
        difference = (model.energy(X + step[unit]) - model.energy(X - step[unit])) / 2e-5
        np.testing.assert_allclose(model.score(X)[:, unit], -difference, rtol=0, atol=1e-6)
    assert model.energy_with_error(X)[1] is None


def test_precisions_mix_and_a_rows_bits_do_not_depend_on_its_batch(folder: Path) -> None:
    model = read(folder, term("hill"), term("single", 3.0), term("pets", 1.0, "cat"))
    assert model.dtype == model.energy(X).dtype == model.score(X).dtype == torch.float64
    assert read(folder, term("single")).dtype == torch.float32
    energy, gradient = model.energy_and_gradient(X)
    for rows in (slice(3, 4), slice(40, 120), slice(0, 65)):
        some = model.energy_and_gradient(X[rows])
        assert torch.equal(some[0], energy[rows])
        assert torch.equal(some[1], gradient[rows])


def test_smooth_terms_make_a_composition_that_is_sampled_inside_its_bounds(folder: Path) -> None:
    model = read(folder, term("hill"), term("pets", 1.0, 1))
    assert model.bounds == (0.0, 1.0)
    assert model.blocks == ("visible",)
    assert model.block_units("visible") == 4
    assert set(samplers_of(model)) >= {"langevin"}
    assert "gibbs" not in samplers_of(model)
    assert {"sample", "complete", "score"} <= set(model.capabilities())
    with pytest.raises(CapabilityError, match="no classes of its own"):
        model.energy_and_gradient(X, torch.zeros(130, dtype=torch.int64))


def test_machines_that_have_no_gradient_add_up_but_are_not_sampled(folder: Path) -> None:
    x = (X > 0.5).double()
    model = read(folder, term("rbm", 0.5), term("labelled", 1.5), domain="binary")
    expected = 0.5 * part(folder, "rbm").energy(x) + 1.5 * part(folder, "labelled").energy(x)
    np.testing.assert_allclose(model.energy(x), expected, rtol=0, atol=1e-12)
    expected = 0.5 * part(folder, "rbm").score(x) + 1.5 * part(folder, "labelled").score(x)
    np.testing.assert_allclose(model.score(x), expected, rtol=0, atol=1e-12)
    assert model.score_is_relaxed
    assert model.capabilities() == ("energy", "log-density", "anomaly", "score")
    assert (samplers_of(model), estimators_of(model)) == ([], [])
    labelled = read(folder, term("rbm"), term("labelled", 1.0, 2), domain="binary")
    joint = part(folder, "labelled").class_energy(x, torch.full((130,), 2))
    np.testing.assert_allclose(labelled.energy(x), part(folder, "rbm").energy(x) + joint, rtol=0, atol=1e-12)
    assert labelled.capabilities() == ("energy", "log-density", "anomaly")
    with pytest.raises(CapabilityError, match="has no score"):
        labelled.score(x)


def test_a_composition_may_be_a_term(folder: Path) -> None:
    compose(folder, term("hill", 2.0), term("pets", 1.0, "cat"), name="inner")
    model = read(folder, term("inner", 0.5), term("hill"))
    plain = read(folder, term("hill", 2.0), term("pets", 0.5, "cat"), name="plain")
    np.testing.assert_allclose(model.energy(X), plain.energy(X), rtol=0, atol=1e-12)
    assert "sample" in model.capabilities()
    compose(folder, term("rbm"), name="machines", domain="binary")
    assert "sample" not in read(folder, term("machines"), domain="binary").capabilities()


def test_negative_weights_are_warned_of(folder: Path) -> None:
    assert read(folder, term("hill")).warnings == ()
    (said,) = read(folder, term("hill"), term("pets", -1.0)).warnings
    assert "term 2 (pets version 1)" in said
    assert "run away" not in said
    put(folder, "line", "mlp_energy")
    (said,) = read(folder, term("line", -1.0), domain="real").warnings
    assert "run away" in said


def test_the_digest_covers_every_terms_digest_weight_and_class(folder: Path) -> None:
    def digest(*terms: dict[str, Any], **keys: Any) -> str:
        return checkpoint.read(compose(folder, *terms, **keys)).digest

    put(folder, "hill", "mlp_energy unit", seed=9)
    compose(folder, term("pets"), name="inner")
    kinds = [(term("hill"),), (term("hill", 2.0),), (term("hill", version=2),), (term("hill"), term("pets"))]
    kinds += [(term("pets", 1.0, "cat"),), (term("pets", 1.0, "owl"),), (term("inner"),), (term("pets"), term("hill"))]
    found = [digest(*terms) for terms in kinds]
    assert len(set(found)) == len(kinds)
    assert found == [digest(*terms, log_partition={"value": 1.0, "stderr": 0.1, "method": "x"}) for terms in kinds]
    compose(folder, term("pets", 2.0), name="inner")
    assert digest(term("inner")) != found[6]
    assert all(len(each) == 64 for each in found)


def test_weights_may_be_absent_or_hold_nothing(folder: Path) -> None:
    absent = compose(folder, term("hill"))
    expected = checkpoint.read(absent)
    (absent / "weights.safetensors").touch()
    assert checkpoint.read(absent).digest == expected.digest
    save_file({}, absent / "weights.safetensors")
    assert checkpoint.read(absent).digest == expected.digest
    save_file({"W": torch.zeros(1)}, absent / "weights.safetensors")
    with pytest.raises(CheckpointError, match="tensor W is not part of family 'composition', whose tensors are none"):
        checkpoint.read(absent)


def test_a_composition_is_written_like_any_model(folder: Path) -> None:
    config = {"terms": [term("hill"), term("pets", 0.5, "dog")]}
    made = arrays.write(folder, "sum", "composition", {}, shape=[4], domain="unit", config=config, reference=X)
    loaded = checkpoint.read(made)
    assert loaded.reference is not None
    np.testing.assert_allclose(loaded.reference.energies, np.sort(loaded.model.energy(X)), rtol=0, atol=1e-12)
    with pytest.raises(CheckpointError, match="which is not in the models directory"):
        arrays.write(folder, "sum", "composition", {}, shape=[4], domain="unit", config={"terms": [term("absent")]})


def test_what_a_composition_is_read_from(folder: Path) -> None:
    inner = compose(folder, term("pets"), term("absent"), name="inner")
    outer = compose(folder, term("inner"), term("pets"))
    names = [(path.parent.name, path.name) for path in checkpoint.sources(outer)]
    assert sorted(names) == [("absent", "1"), ("inner", "1"), ("pets", "1"), ("sum", "1")]
    assert checkpoint.sources(folder / "hill" / "1") == [folder / "hill" / "1"]
    assert inner in checkpoint.sources(inner)
    assert checkpoint.sources(folder / "nowhere" / "1") == [folder / "nowhere" / "1"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([term("absent")], "term 1 is 'absent' version 1, which is not in the models directory"),
        ([term("hill"), term("hill", version=7)], "term 2 is 'hill' version 7, which is not in"),
        ([term("sum")], "term 1 is 'sum' version 1, which this checkpoint is itself a part of"),
        ([term("mutual")], "'mutual' version 1, which cannot be read: .*'sum' version 1, which this checkpoint"),
        ([term("broken")], "'broken' version 1, which cannot be read"),
        ([term("rbm")], r"term 1 \(rbm version 1\) has binary visibles of shape \[4\]; the composition has unit ones"),
        ([term("wide")], r"has unit visibles of shape \[5\]"),
        ([term("scaled")], "has another preprocessing than the composition"),
        ([term("pets", 1.0, "cow")], "has no class 'cow'; its classes are cat, dog, owl"),
        ([term("hill", 1.0, 0)], "has no class 0; it has no classes"),
        ([term("pets", 1.0, 3)], "has no class 3"),
        ([term("hill", 0.0)], "weight must be a finite number other than 0"),
        ([{"model": "hill"}], "version must be a version of 'hill'"),
        ([{"model": "hill", "version": True}], "version must be"),
        ([{"model": "../hill", "version": 1}], "model must be the name of a model"),
        ([{**term("hill"), "wait": 1}], "unknown key 'wait'"),
        ([{**term("pets"), "label": 1.5}], "label must be a class, or null"),
        (["hill"], "term 1 must be an object"),
        ([], "config.terms must be a list of 1 to 64 terms"),
    ],
)
def test_what_cannot_be_composed_is_refused_with_the_reason(folder: Path, terms: list[Any], message: str) -> None:
    compose(folder, term("sum"), name="mutual")
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "manifest.json").write_text("{}")
    made = case("mlp_energy unit", 5)
    checkpoint.write(folder, made.manifest.model_copy(update={"name": "wide"}), made.model)
    scaled = {"scale": 0.5}
    made = case("mlp_energy unit", 4)
    manifest = Manifest.model_validate(made.manifest.model_dump() | {"name": "scaled", "preprocessing": scaled})
    checkpoint.write(folder, manifest, made.model)
    with pytest.raises(CheckpointError, match=message):
        read(folder, *terms)
    assert read(folder, term("scaled"), preprocessing=scaled).name == "composition"


def test_a_lower_bound_is_never_subtracted(folder: Path) -> None:
    made = case("bm_hidden coupled", 4, 22)
    assert made.model.energy_kind == "lower_bound"
    checkpoint.write(folder, made.manifest.model_copy(update={"name": "bound"}), made.model)
    assert read(folder, term("rbm", -1.0), term("bound"), domain="binary").energy_kind == "lower_bound"
    with pytest.raises(CheckpointError, match="the sum would be no bound"):
        read(folder, term("rbm"), term("bound", -1.0), domain="binary")


def test_the_example_of_the_documentation_is_one(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "families" / "composition.md").read_text()
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    made = case("jem", 64 * 64)
    visible = made.manifest.visible.model_copy(update={"shape": [64, 64]})
    changes = {"name": "faces", "visible": visible, "classes": ["old", "young", "smiling"]}
    for _ in range(3):
        checkpoint.write(folder, made.manifest.model_copy(update=changes), made.model)
    place = folder / example["name"] / str(example["version"])
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps(example))
    loaded = checkpoint.read(place).model
    assert isinstance(loaded, Composition)
    assert loaded.labels == (2, 0)
    assert len(loaded.warnings) == 1


def test_without_its_models_directory_there_is_no_composition(folder: Path) -> None:
    manifest = checkpoint.read_manifest(compose(folder, term("hill")))
    with pytest.raises(CheckpointError, match="made of other models"):
        catalog.build(manifest, {})
