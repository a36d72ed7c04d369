"""Small recipes and models that train in a second."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.families.rbm import RBM
from training.config import Recipe, validated


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EBM_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "no-cache"))


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A small recipe on digits; sections given are laid over it."""

    def make(**sections: dict[str, Any]) -> Recipe:
        tree: dict[str, Any] = {
            "name": "tiny",
            "data": {"dataset": "digits", "validation": 100, "test": 100},
            "model": {"hidden": 8},
            "objective": {"name": "pcd", "chains": 20},
            "fit": {"epochs": 2, "batch_size": 50, "learning_rate": 0.05},
            "likelihood": {"chains": 10, "temperatures": 20, "raise_examples": 5, "raise_runs": 2},
        }
        for name, section in sections.items():
            tree[name] = {**tree[name], **section} if isinstance(section, dict) and name in tree else section
        return validated(tree, "test")

    return make


@pytest.fixture
def tiny_rbm() -> RBM:
    """5 visible and 4 hidden units, weights of order 1, float64."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return RBM(draw(5, 4), draw(5) / 2, draw(4) / 2)


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """An idx-ubyte file of the given images (n, height, width) or labels (n,)."""

    def write(path: Path, content: np.ndarray) -> Path:
        header = struct.pack(f">I{content.ndim}I", 0x800 + content.ndim, *content.shape)
        whole = header + content.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(whole) if path.suffix == ".gz" else whole)
        return path

    return write


@pytest.fixture
def images() -> np.ndarray:
    """40 images of 4 x 3 grey levels."""
    return np.random.default_rng(0).integers(0, 256, (40, 4, 3), dtype=np.uint8)
