"""A small model of every family for the contract suites, and exact enumeration of its states.

A new family needs one line in `FACTORIES`; the contract suites fail until it has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.families.rbm import RBM
from models.family import EnergyModel, HasConditionals
from models.manifest import Manifest, Visible


@dataclass(frozen=True)
class Case:
    """A model, the manifest it could be written with, and the values that a unit of each block can take."""

    model: EnergyModel
    manifest: Manifest
    values: Mapping[str, tuple[float, ...]]


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """float64, decided by the seed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rbm(
    visible: int,
    hidden: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
) -> RBM:
    """An RBM with normal parameters, strong enough that its units depend on each other."""
    parameters = normal((visible, hidden), seed, scale), normal((visible,), seed + 1), normal((hidden,), seed + 2)
    w, b, c = (p.to(dtype) for p in parameters)
    return RBM(w, b, c, domain)


def _rbm_case(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
    shape = Visible(shape=[visible], domain="binary")
    manifest = Manifest(name="small", version=1, family="rbm", visible=shape)
    return Case(rbm(visible, hidden, seed, dtype, scale=scale), manifest, {"visible": (0.0, 1.0), "hidden": (0.0, 1.0)})


FACTORIES: Mapping[str, Callable[[int, int, int, torch.dtype, float], Case]] = {"rbm": _rbm_case}


def case(
    family: str,
    visible: int = 4,
    hidden: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> Case:
    """A case of the family with so many units; `scale` is the standard deviation of its weights."""
    if family not in FACTORIES:
        raise AssertionError(f"family {family} has no factory in tests/models/cases.py: the contract suites need one")
    return FACTORIES[family](visible, hidden, seed, dtype, scale)


def states(values: tuple[float, ...], units: int) -> Tensor:
    """Every state of `units` units, float64, the first unit slowest."""
    return torch.tensor(list(itertools.product(values, repeat=units)), dtype=torch.float64).reshape(-1, units)


def joint_states(model: HasConditionals, values: Mapping[str, tuple[float, ...]]) -> dict[str, Tensor]:
    """Every joint state, a row each, the model's first block slowest."""
    per_block = [states(values[block], model.block_units(block)) for block in model.blocks]
    index = torch.cartesian_prod(*(torch.arange(len(s)) for s in per_block)).reshape(-1, len(per_block))
    return {block: s[index[:, i]] for i, (block, s) in enumerate(zip(model.blocks, per_block, strict=True))}


def law(energies: Tensor) -> Tensor:
    """exp(-energies), normalised."""
    return torch.softmax(-energies.double(), 0)
