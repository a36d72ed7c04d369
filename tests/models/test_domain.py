"""Which values a visible unit can take."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from models import catalog
from models.domain import DESCRIPTION, inside
from models.manifest import Domain

VALUES = np.array([-np.inf, -1.0, -0.5, -0.0, 0.0, 1e-300, 0.5, 1.0, 1.0000001, 2.0, 1e308, np.inf, np.nan])


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("binary", {0.0, 1.0}),
        ("spin", {-1.0, 1.0}),
        ("unit", {0.0, 1e-300, 0.5, 1.0}),
        ("real", {-1.0, -0.5, 0.0, 1e-300, 0.5, 1.0, 1.0000001, 2.0, 1e308}),
    ],
)
def test_values_inside(domain: Domain, good: set[float]) -> None:
    marks = inside(VALUES, domain)
    assert marks.shape == VALUES.shape
    assert {float(v) for v in VALUES[marks]} == good
    assert not marks[-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float32])
def test_values_of_other_types(dtype: type) -> None:
    assert inside(np.array([[0, 1]], dtype), "binary").tolist() == [[True, True]]


def test_every_domain_of_a_manifest_is_described_and_every_familys_domains_are_those() -> None:
    assert set(DESCRIPTION) == set(get_args(Domain))
    for family in catalog.families().values():
        assert family.domains
        assert family.domains <= set(DESCRIPTION)
