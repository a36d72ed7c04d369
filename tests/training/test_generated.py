"""Data that are made: their parts, their laws, and tables whose anomalies are kept apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import DataSettings
from training.data import load
from training.errors import DataError
from training.generated import LAWS
from training.sources import located


@pytest.mark.parametrize("name", sorted(LAWS))
def test_they_are_the_same_for_everyone_in_three_parts_apart(name: str, tmp_path: Path) -> None:
    settings = DataSettings(dataset=name, domain="real", preprocessing="none")
    data = load(settings)
    assert data.fingerprint() == load(settings).fingerprint()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20_000, 5_000, 5_000]
    assert data.shape == (2,)
    assert data.train_labels is None
    rows = torch.cat((data.train, data.validation, data.test))
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert located(str(tmp_path), name) == (name, str(tmp_path))  # a place for other data sets does not disturb


def _points(name: str) -> torch.Tensor:
    return load(DataSettings(dataset=name, domain="real", preprocessing="none")).train.double()


def test_rings_are_three_circles() -> None:
    radius = _points("rings").norm(dim=1)
    nearest = radius.round().clamp(1, 3)
    # Shares of three classes and the spread of 20,000 points: 5 standard errors.
    assert all(abs(float((nearest == k).double().mean()) - 1 / 3) < 5 * math.sqrt(2 / 9 / 20_000) for k in (1, 2, 3))
    assert float((radius - nearest).std()) == pytest.approx(0.1, rel=5 / math.sqrt(40_000))


def test_the_checkerboard_is_uniform_on_every_other_square() -> None:
    x = _points("checkerboard")
    cells = ((x + 4) / 2).floor().long()
    assert int(cells.min()) == 0
    assert int(cells.max()) == 3
    counts = torch.bincount(4 * cells[:, 1] + cells[:, 0], minlength=16).view(4, 4)
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert not bool(counts[~dark].any())
    assert float((counts[dark] / 20_000 - 1 / 8).abs().max()) < 5 * math.sqrt(7 / 64 / 20_000)
    inside = (x + 4) / 2 - cells
    assert float((inside.mean(0) - 0.5).abs().max()) < 5 * math.sqrt(1 / 12 / 20_000)


def test_moons_and_gaussians_lie_where_they_should() -> None:
    x = _points("gaussians")
    middles = (
        3 * torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4]).double()
    )
    apart, nearest = torch.cdist(x, middles).min(1)
    assert float((apart.square().mean() / 2).sqrt()) == pytest.approx(0.3, rel=0.02)
    assert float((torch.bincount(nearest) / 20_000 - 1 / 8).abs().max()) < 5 * math.sqrt(7 / 64 / 20_000)
    x = _points("moons") + torch.tensor([1.0, 0.5])
    upper, lower = x.norm(dim=1) - 2, (x - torch.tensor([2.0, 1.0])).norm(dim=1) - 2
    nearest = torch.where(upper.abs() < lower.abs(), upper, lower)
    assert float(nearest.std()) == pytest.approx(0.2, rel=0.05)


def _table(path: Path) -> str:
    generator = np.random.default_rng(0)
    y = (np.arange(300) % 10 == 0).astype(np.int64)
    np.savez(path / "table.npz", X=generator.normal(5 * y[:, None], 1, (300, 4)), y=y)
    return str(path / "table.npz")


def test_anomalies_are_kept_from_what_is_learned_and_marked_in_the_test_part(tmp_path: Path) -> None:
    settings = DataSettings(dataset=_table(tmp_path), domain="real", validation=50, test=100, anomaly=1)
    data = load(settings)
    assert data.test_anomalies is not None
    assert data.train_labels is data.test_labels is data.classes is None
    assert len(data.train) + len(data.validation) + int((~data.test_anomalies).sum()) == 270
    assert 1 <= int(data.test_anomalies.sum()) < 30
    assert float(data.train.mean(0).abs().max()) < 1e-5  # standardised by what is learned from
    assert float(data.test[data.test_anomalies].mean()) > 3 > 1 > float(data.test[~data.test_anomalies].mean())
    plain = load(settings.model_copy(update={"anomaly": None}))
    assert plain.test_anomalies is None
    assert plain.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(("anomaly", "found"), [(7, "the classes 0, 1"), ("odd", "the classes 0, 1")])
def test_a_class_of_anomalies_that_there_is_not_is_refused(tmp_path: Path, anomaly: int | str, found: str) -> None:
    settings = DataSettings(dataset=_table(tmp_path), domain="real", validation=50, test=100, anomaly=anomaly)
    with pytest.raises(DataError, match=rf"data\.anomaly = {anomaly}, but the data have {found}"):
        load(settings)
    with pytest.raises(DataError, match="the data have no classes"):
        load(DataSettings(dataset="rings", domain="real", anomaly=1))
