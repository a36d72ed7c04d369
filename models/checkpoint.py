"""Reading and writing checkpoint folders: `MODELS_DIR/{name}/{version}/`.

A folder holds `manifest.json`, `weights.safetensors`, and optionally `reference.safetensors` and `preview.png`. It
appears whole or not at all: written aside, fsynced, renamed. Nothing in it is ever unpickled or imported.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from models.anomaly import SCORES
from models.catalog import build, families
from models.errors import CheckpointError
from models.family import EnergyModel, IsComposed, Term
from models.manifest import NAME_PATTERN, LogPartitionRecord, Manifest, check_name

MANIFEST, WEIGHTS, REFERENCE, PREVIEW = (
    "manifest.json",
    "weights.safetensors",
    "reference.safetensors",
    "preview.png",
)
_VERSION_PATTERN = r"[1-9][0-9]{0,17}"


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model knows of typical data: scores of held-out examples, and a few examples to start chains from."""

    energies: np.ndarray | None
    """Sorted ascending, float64 (n,); None where there are only other scores."""
    examples: np.ndarray | None = None
    """(m, D), the visibles' domain, float64 as read; None where the checkpoint keeps none."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Other anomaly scores of held-out examples, by their names in `models.anomaly`; each as the energies."""

    def of(self, score: str) -> np.ndarray | None:
        """Sorted values of an anomaly score, or None where none are kept."""
        return self.energies if score == "energy" else self.scores.get(score)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as read."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of weights.safetensors; of a composed model, of its terms' digests, weights and classes."""
    model: EnergyModel
    reference: Reference | None


def versions(models_dir: Path) -> dict[str, list[int]]:
    """The versions of every model in a models directory, ascending. Folders that are no checkpoints are passed over."""
    found: dict[str, list[int]] = {}
    if not models_dir.is_dir():
        return found
    for manifest in models_dir.glob(f"*/*/{MANIFEST}"):
        version, name = manifest.parent.name, manifest.parent.parent.name
        if re.fullmatch(NAME_PATTERN, name) and re.fullmatch(_VERSION_PATTERN, version):
            found.setdefault(name, []).append(int(version))
    return {name: sorted(numbers) for name, numbers in sorted(found.items())}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Where a folder was copied, its name and version are those of the place it lies in, and the manifest's are those it
    was written under.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    return Manifest.from_json(text, str(folder / MANIFEST))


def read(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint in `folder`, its model on `device`.

    Raises:
        CheckpointError: anything missing or malformed, or weights that do not match the manifest's digest.
    """
    return _read(folder, torch.device(device), frozenset())


def _read(folder: Path, device: torch.device, within: frozenset[Path]) -> Checkpoint:
    """As `read`; `within`: the composed checkpoints that this one is to become a part of."""
    manifest = read_manifest(folder)
    terms = _read_terms(folder, manifest, device, within)
    weights = b"" if terms and not (folder / WEIGHTS).exists() else _read_bytes(folder / WEIGHTS)
    digest = hashlib.sha256(weights).hexdigest()
    if manifest.digest is not None and weights and manifest.digest.lower().removeprefix("sha256:") != digest:
        raise CheckpointError(
            f"{folder / WEIGHTS} has SHA-256 {digest}, but the manifest says {manifest.digest}: "
            "the file was changed or damaged"
        )
    tensors = _tensors(weights, folder / WEIGHTS) if weights or not terms else {}
    try:
        model = build(manifest, tensors, device, [(term.manifest, term.model) for term in terms])
    except CheckpointError as error:
        raise CheckpointError(f"{folder / (MANIFEST if terms else WEIGHTS)}: {error}") from error
    if terms:
        digest = _digest_of(manifest, terms)
    return Checkpoint(folder, manifest, digest, model, _read_reference(folder / REFERENCE, manifest))


def sources(folder: Path) -> list[Path]:
    """The folders that a checkpoint is read from: its own, and, where it is composed, those of its terms and of theirs,
    whether they are there or not."""
    found, left = [folder], [folder]
    while left:
        at = left.pop()
        try:
            terms = _terms_of(read_manifest(at))
        except CheckpointError:
            continue
        new = [each for term in terms if (each := _term_folder(at, term)) not in found]
        found += new
        left += new
    return found


def _terms_of(manifest: Manifest) -> tuple[Term, ...]:
    family = families().get(manifest.family)
    return family.terms_of(manifest) if family is not None and issubclass(family, IsComposed) else ()


def _term_folder(folder: Path, term: Term) -> Path:
    return folder.absolute().parent.parent / term.model / str(term.version)


def _read_terms(folder: Path, manifest: Manifest, device: torch.device, within: frozenset[Path]) -> list[Checkpoint]:
    found, inside = [], within | {folder.absolute()}
    for n, term in enumerate(_terms_of(manifest), 1):
        own, what = _term_folder(folder, term), f"{manifest.family}: term {n} is {term.model!r} version {term.version}"
        if own in inside:
            raise CheckpointError(f"{what}, which this checkpoint is itself a part of")
        if not (own / MANIFEST).exists():
            raise CheckpointError(f"{what}, which is not in the models directory {own.parent.parent}")
        try:
            found.append(_read(own, device, inside))
        except CheckpointError as error:
            raise CheckpointError(f"{what}, which cannot be read: {error}") from error
    return found


def _digest_of(manifest: Manifest, terms: Sequence[Checkpoint]) -> str:
    """SHA-256 of all that a composed model's energy is made of: each term's digest, weight and class."""
    parts = [
        [own.digest, term.weight, term.label, own.manifest.classes]
        for own, term in zip(terms, _terms_of(manifest), strict=True)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def assemble(models_dir: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> EnergyModel:
    """The model of a checkpoint that is yet to be written; terms of a composed one are read from the models directory.

    Raises:
        CheckpointError: see `read`.
    """
    terms = _read_terms(models_dir / manifest.name / "new", manifest, torch.device("cpu"), frozenset())
    return build(manifest, tensors, "cpu", [(term.manifest, term.model) for term in terms])


def write(
    models_dir: Path,
    manifest: Manifest,
    model: EnergyModel,
    reference: Reference | None = None,
    preview: bytes | None = None,
) -> Path:
    """Write a new version of `manifest.name` and return its folder. The manifest's version and digest are set here.

    Raises:
        CheckpointError: the name is no model name, or the model is none that `read` would take: a tensor does not
            match the manifest or is not finite.
        OSError: the folder cannot be written.
    """
    parent = models_dir / check_name(manifest.name)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.tensors().items()}
    assemble(models_dir, manifest, tensors)
    parent.mkdir(parents=True, exist_ok=True)
    weights = save_tensors(tensors)
    files = {WEIGHTS: weights}
    if reference is not None:
        kept = {"energies": reference.energies, **reference.scores}
        arrays = {n: torch.from_numpy(np.sort(a.astype(np.float64))) for n, a in kept.items() if a is not None}
        if reference.examples is not None:
            arrays["examples"] = torch.from_numpy(np.ascontiguousarray(reference.examples))
        files[REFERENCE] = save_tensors(arrays)
    if preview is not None:
        files[PREVIEW] = preview
    digest = hashlib.sha256(weights).hexdigest()
    while True:
        # Folders without a manifest count too: their place is taken all the same.
        taken = (int(entry.name) for entry in parent.iterdir() if re.fullmatch(_VERSION_PATTERN, entry.name))
        version = max(taken, default=0) + 1
        files[MANIFEST] = _json(manifest.model_copy(update={"version": version, "digest": digest}))
        folder = parent / str(version)
        if _publish(files, folder):
            return folder


def set_log_partition(folder: Path, value: float, stderr: float, method: str) -> None:
    """Put an estimate of log Z into a checkpoint's manifest; the file is replaced in one step.

    Raises:
        CheckpointError: the manifest is malformed, or the estimate is not finite.
        OSError: the folder cannot be written.
    """
    manifest = read_manifest(folder)
    if not (math.isfinite(value) and math.isfinite(stderr)):
        raise CheckpointError(f"log Z of {value} with standard error {stderr} is no estimate: both must be finite")
    record = LogPartitionRecord(value=value, stderr=stderr, method=method)
    aside = folder / f".{MANIFEST}.{os.getpid()}"
    _write_synced(aside, _json(manifest.model_copy(update={"log_partition": record})))
    aside.replace(folder / MANIFEST)
    _sync_folder(folder)


def _json(manifest: Manifest) -> bytes:
    # A metric that came out as NaN is written as null: JSON has no NaN.
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()


def _publish(files: Mapping[str, bytes], folder: Path) -> bool:
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, content in files.items():
            _write_synced(aside / name, content)
        aside.chmod(0o755)  # mkdtemp's 0700 would hide the checkpoint from a service run by another user
        _sync_folder(aside)
        try:
            aside.rename(folder)
        except OSError:
            if folder.exists():  # another writer took this version
                return False
            raise
        _sync_folder(folder.parent)
        _sync_folder(folder.parent.parent)  # the model's own folder may be new too
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_tensors(content))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error


def _read_reference(path: Path, manifest: Manifest) -> Reference | None:
    if not path.exists():
        return None
    tensors = _tensors(_read_bytes(path), path)
    vectors = {name: t for name, t in tensors.items() if t.ndim == 1 and t.is_floating_point()}
    for name in (score for score in SCORES if score in tensors and score not in vectors):
        raise CheckpointError(f"{path}: tensor {name} must be a floating-point vector")
    scores = {name: _sorted(vectors.pop(name), name, path) for name in SCORES if name in vectors and name != "energy"}
    name = "energies" if "energies" in tensors or len(vectors) != 1 else next(iter(vectors))
    if name not in vectors and ("energies" in tensors or not scores):
        raise CheckpointError(f"{path}: expected a floating-point vector `energies`, found {sorted(tensors)}")
    energies = _sorted(vectors[name], name, path) if name in vectors else None
    examples = tensors.get("examples")
    if examples is not None and (examples.ndim != 2 or examples.shape[1] != manifest.visible.units):
        raise CheckpointError(
            f"{path}: tensor examples has shape {list(examples.shape)}; expected [m, {manifest.visible.units}]"
        )
    if examples is not None and not bool(torch.isfinite(examples.double()).all()):
        raise CheckpointError(f"{path}: tensor examples holds NaN or infinite values")
    return Reference(energies, None if examples is None else examples.double().numpy(), scores)


def _sorted(vector: Tensor, name: str, path: Path) -> np.ndarray:
    values = np.sort(vector.double().numpy())
    if len(values) == 0 or not np.isfinite(values).all():
        what = "score" if name in SCORES else "energy"
        raise CheckpointError(f"{path}: tensor {name} must hold at least one {what}, all finite")
    return values
