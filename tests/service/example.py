"""Small checkpoints for the service's tests, and brute force over them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from models import checkpoint
from models.checkpoint import Reference
from models.families.rbm import RBM
from models.manifest import Manifest, Visible

SHAPE = (2, 5)
D, F = 10, 6


def weights(seed: int = 0, d: int = D, f: int = F) -> dict[str, np.ndarray]:
    """W, b, c, float64, of the size of nats."""
    rng = np.random.default_rng(seed)
    return {"W": rng.normal(size=(d, f)), "b": rng.normal(size=d), "c": rng.normal(size=f)}


def write_by_hand(models_dir: Path, name: str = "hand", version: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint as another tool would write it: only what the layout demands. Returns its weights."""
    arrays = weights(seed)
    folder = models_dir / name / str(version)
    folder.mkdir(parents=True)
    save_file(arrays, folder / "weights.safetensors")
    manifest = {
        "format": "ebm-checkpoint",
        "format_version": 1,
        "name": name,
        "version": version,
        "family": "rbm",
        "visible": {"shape": list(SHAPE), "domain": "binary"},
        "classes": None,
        "config": {},
        "log_partition": None,
        "training": None,
        "preprocessing": None,
        "from_elsewhere": "kept",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return arrays


def write_rbm(
    models_dir: Path, name: str = "tiny", *, d: int = D, f: int = F, seed: int = 0, references: int = 0
) -> Path:
    """A checkpoint by the project's own writer; with `references`, that many reference energies of random inputs."""
    arrays = {key: torch.from_numpy(a).float() for key, a in weights(seed, d, f).items()}
    model = RBM(**arrays)
    reference = None
    if references:
        rng = np.random.default_rng(seed)
        examples = rng.integers(0, 2, (references, d)).astype(np.uint8)
        reference = Reference(model.energy(torch.from_numpy(examples).float()).double().numpy(), examples[:16])
    shape = list(SHAPE) if d == D else [d]
    manifest = Manifest(name=name, version=1, family="rbm", visible=Visible(shape=shape, domain="binary"))
    return checkpoint.write(models_dir, manifest, model, reference)


def states(units: int) -> np.ndarray:
    """All 2^units binary states, float64."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=units)))


def brute_force_log_unnormalized(arrays: dict[str, np.ndarray], visible: np.ndarray) -> np.ndarray:
    """log sum_h exp(-E(v, h)), term by term over all hidden states."""
    h = states(len(arrays["c"]))
    minus_energy = visible @ arrays["W"] @ h.T + (visible @ arrays["b"])[:, None] + h @ arrays["c"]
    top = minus_energy.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(minus_energy - top).sum(axis=1, keepdims=True)))[:, 0]


def write_tensors(
    models_dir: Path, name: str, family: str, arrays: dict[str, np.ndarray], shape: list[int], domain: str, **rest: Any
) -> None:
    """A checkpoint of any family as another tool would write it, `rest` in its manifest."""
    folder = models_dir / name / "1"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "weights.safetensors")
    manifest = {"format": "ebm-checkpoint", "format_version": 1, "name": name, "version": 1, "family": family}
    manifest |= {"visible": {"shape": shape, "domain": domain}, **rest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
