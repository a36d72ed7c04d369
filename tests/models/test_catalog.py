"""Shelves by name, and models from manifests and tensors."""

from __future__ import annotations

import pytest
import torch

from models import catalog
from models.errors import CheckpointError
from models.estimator import Estimator
from models.family import EnergyModel, HasConditionals
from models.sampler import Sampler
from tests.models import cases


def test_the_shelves_hold_what_they_should_under_names_of_their_own() -> None:
    for shelf, contract in (
        (catalog.families(), EnergyModel),
        (catalog.samplers(), Sampler),
        (catalog.estimators(), Estimator),
    ):
        assert shelf
        for name, cls in shelf.items():
            assert cls.name == name
            assert issubclass(cls, contract)
            assert cls.__doc__
    assert {"rbm", "grbm", "dbm"} <= set(catalog.families())
    assert "gibbs" in catalog.samplers()
    assert {"ais", "reverse_ais", "exact"} <= set(catalog.estimators())


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
def test_gibbs_goes_with_every_model_that_has_conditionals(name: str) -> None:
    model = cases.case(name).model
    assert catalog.samplers()["gibbs"].applies_to(model) == isinstance(model, HasConditionals)


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_is_rebuilt_from_its_manifest_and_its_tensors(name: str, dtype: torch.dtype) -> None:
    of = cases.case(name, 5, 3, dtype=dtype)
    rebuilt = catalog.build(of.manifest, of.model.tensors())
    assert type(rebuilt) is type(of.model)
    assert rebuilt.dtype == dtype
    assert rebuilt.device == torch.device("cpu")
    x = cases.some_visibles(of, 20).to(dtype)
    assert torch.equal(rebuilt.energy(x), of.model.energy(x))


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
def test_every_tensor_is_needed_and_none_may_be_added(name: str) -> None:
    of = cases.case(name, 5, 3)
    tensors = of.model.tensors()
    for tensor in tensors:
        with pytest.raises(CheckpointError, match="tensor"):
            catalog.build(of.manifest, {n: t for n, t in tensors.items() if n != tensor})
        with pytest.raises(CheckpointError, match=r"tensor [\w.]+ has shape"):
            catalog.build(of.manifest, tensors | {tensor: torch.zeros(2, 2, 2, 2)})
    with pytest.raises(CheckpointError, match="tensor extra is not part of family"):
        catalog.build(of.manifest, tensors | {"extra": torch.zeros(1)})


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
def test_a_domain_that_the_family_has_not_is_refused(name: str) -> None:
    of = cases.case(name, 5, 3)
    for domain in {"binary", "spin", "real", "unit"} - type(of.model).domains:
        visible = of.manifest.visible.model_copy(update={"domain": domain})
        with pytest.raises(CheckpointError, match=f"has no visible domain '{domain}'"):
            catalog.build(of.manifest.model_copy(update={"visible": visible}), of.model.tensors())


def test_transposed_tensors_are_laid_out_row_by_row() -> None:
    of = cases.case("rbm", 5, 3)
    tensors = of.model.tensors()
    rebuilt = catalog.build(of.manifest, tensors | {"W": tensors["W"].T.contiguous().T})
    assert rebuilt.tensors()["W"].is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_is_built_on_the_device_asked_for() -> None:
    of = cases.case("rbm", 5, 3)
    assert catalog.build(of.manifest, of.model.tensors(), "cuda").device.type == "cuda"
