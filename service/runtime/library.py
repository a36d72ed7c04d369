"""The models directory as served: every readable checkpoint loaded on the device, kept in step with the folder."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import torch

from models import checkpoint
from models.anomaly import scores_of
from models.catalog import estimators_of, samplers_of
from models.checkpoint import Checkpoint
from models.domain import inside
from models.errors import CheckpointError
from models.family import EnergyModel, HasClasses, HasConditionals, HasFeatures, HasNoiseScales, HasStates, IsComposed
from models.manifest import Manifest, Preprocessing
from models.numerics import ROWS
from service.core.card import Card
from service.core.errors import NotReady, UnknownModel
from service.runtime.samplers import settings_schema

_log = structlog.get_logger(__name__)

Key = tuple[str, int]


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Convolutions are told to give the same bits each time.

    Raises:
        ValueError: no such device here.
    """
    torch.backends.cudnn.deterministic = True
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices were found")
    return device


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded checkpoint and its card."""

    checkpoint: Checkpoint
    card: Card


def serve_folder(folder: Path, device: torch.device) -> Served:
    """One checkpoint by itself, under the name and version of its place, `{name}/{version}/`, or else of its manifest.

    Raises:
        CheckpointError: see `models.checkpoint.read`.
    """
    loaded = checkpoint.read(folder, device)
    place = folder.absolute()
    key = (
        (place.parent.name, int(place.name))
        if place.name.isdecimal()
        else (loaded.manifest.name, loaded.manifest.version)
    )
    return Served(loaded, _card(loaded, key, device))


class ModelLibrary:
    """Loads what appears in the models directory, forgets what vanishes. Thread-safe."""

    def __init__(self, models_dir: Path, device: torch.device, rescan_s: float = 2.0) -> None:
        self._models_dir = models_dir
        self._device = device
        self._rescan_s = rescan_s
        self._served: dict[Key, Served] = {}
        self._failed: dict[Key, str] = {}
        self._sources: dict[Key, list[Path]] = {}
        self._stamps: dict[Key, list[float]] = {}
        self._refreshing = threading.Lock()
        self._closed = threading.Event()

    def refresh(self) -> None:
        """Bring the library in step with the directory. An unreadable checkpoint is reported once and left out."""
        with self._refreshing:
            found = {(name, v) for name, numbers in checkpoint.versions(self._models_dir).items() for v in numbers}
            for key in [key for key in (*self._served, *self._failed) if key not in found]:
                self._served.pop(key, None)
                self._failed.pop(key, None)
                _log.info("model removed", model=key[0], version=key[1])
            for key in sorted(found):
                self._load(key)

    def watch(self) -> None:
        """Keep refreshing from a thread of its own until `close`."""

        def run() -> None:
            while not self._closed.wait(self._rescan_s):
                try:
                    self.refresh()
                except Exception:
                    _log.exception("models directory could not be scanned")

        threading.Thread(target=run, name="model-library", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def all(self) -> list[Served]:
        """Everything that is ready, by name and version."""
        return [served for _, served in sorted(self._served.items())]

    def get(self, name: str, version: int | None = None) -> Served:
        """That version, or the newest that is ready.

        Raises:
            UnknownModel: no such model or version.
            NotReady: its checkpoint cannot be read.
        """
        ready = [v for n, v in tuple(self._served) if n == name]
        if version is None and ready:
            version = max(ready)
        found = self._served.get((name, version or 0))
        if found is not None:
            return found
        broken = [(v, reason) for (n, v), reason in tuple(self._failed.items()) if n == name and version in (None, v)]
        if broken:
            raise NotReady(f"model {name!r} version {broken[-1][0]} cannot be loaded: {broken[-1][1]}", 30.0)
        if version is not None and ready:
            raise UnknownModel(f"model {name!r} has no version {version}; it has {', '.join(map(str, sorted(ready)))}")
        names = sorted({n for n, _ in tuple(self._served)})
        raise UnknownModel(f"no model {name!r}; there {'are ' + ', '.join(names) if names else 'is none'}")

    def _load(self, key: Key) -> None:
        folder = self._models_dir / key[0] / str(key[1])
        known = key in self._served or key in self._failed
        if known and self._stamps[key] == _stamps(self._sources[key]):
            return
        self._sources[key] = checkpoint.sources(folder)
        self._stamps[key] = _stamps(self._sources[key])
        try:
            loaded = checkpoint.read(folder, self._device)
            served = Served(loaded, _card(loaded, key, self._device))
        except CheckpointError as error:
            self._served.pop(key, None)
            self._failed[key] = str(error)
            _log.error("checkpoint refused", model=key[0], version=key[1], reason=str(error))
            return
        self._failed.pop(key, None)
        self._served[key] = served
        _log.info("model loaded", model=key[0], version=key[1], family=loaded.manifest.family)


def _stamps(folders: list[Path]) -> list[float]:
    """When the files that checkpoints are read from were last written; 0 for those that are not there."""
    found = []
    for folder in folders:
        for file in (checkpoint.MANIFEST, checkpoint.WEIGHTS):
            try:
                found.append((folder / file).stat().st_mtime)
            except OSError:
                found.append(0.0)
    return found


def _card(loaded: Checkpoint, key: Key, device: torch.device) -> Card:
    manifest: Manifest = loaded.manifest
    model = loaded.model
    names, reference, ways = samplers_of(model), loaded.reference, estimators_of(model)
    schemas = {name: settings_schema(name) for name in names}
    return Card(
        name=key[0],
        version=key[1],
        family=manifest.family,
        visible=manifest.visible,
        classes=_classes(model, manifest),
        capabilities=list(dict.fromkeys((*model.capabilities(), *(["log_partition"] if ways else [])))),
        energy_kind=model.energy_kind,
        log_partition=manifest.log_partition,
        training=manifest.training,
        backend="torch",
        device=str(device),
        digest=loaded.digest,
        state="ready",
        loaded_at=datetime.now(UTC),
        weights=_arithmetic(model),
        samplers=names,
        sampler_settings={name: schema for name, schema in schemas.items() if schema},
        estimators=ways,
        layers=list(model.layers) if isinstance(model, HasFeatures) else [],
        sigmas=list(model.sigmas) if isinstance(model, HasNoiseScales) else None,
        anomaly_scores=scores_of(model),
        has_reference=reference is not None and reference.energies is not None,
        reference_scores=[] if reference is None else sorted(reference.scores),
        terms=[vars(term) for term in model.terms_of(manifest)] if isinstance(model, IsComposed) else None,
        warnings=list(model.warnings),
        preprocessing=_checked_preprocessing(manifest),
        init_data=_can_start_chains(loaded),
    )


def _arithmetic(model: EnergyModel) -> dict[str, Any] | None:
    """How chains compute: what a trajectory's bits rest on."""
    if isinstance(model, HasConditionals):
        return {"arithmetic": "float64, sums exact", "max_rounding_error": model.rounding_error}
    if isinstance(model, HasStates) and "sample" not in model.lacks:
        precision = str(model.dtype).removeprefix("torch.")
        return {"arithmetic": f"{precision}, {ROWS} rows at a time, states float64", "max_rounding_error": 0.0}
    return None


def _classes(model: EnergyModel, manifest: Manifest) -> list[int | str] | None:
    count = model.class_count if isinstance(model, HasClasses) else 0
    named = manifest.classes
    if count and named is not None and len(named) != count:
        raise CheckpointError(f"the manifest names {len(named)} classes, but the model has {count}")
    return (list(range(count)) if named is None else list(named)) if count else None


def _checked_preprocessing(manifest: Manifest) -> Preprocessing | None:
    how = manifest.preprocessing
    for name in ("mean", "std"):
        given = getattr(how, name, None)
        if isinstance(given, list) and len(given) != manifest.visible.units:
            raise CheckpointError(
                f"preprocessing.{name} has {len(given)} numbers; expected one, or {manifest.visible.units}"
            )
    return how


def _can_start_chains(loaded: Checkpoint) -> bool:
    if "complete" not in loaded.model.capabilities():  # chains that hold no visibles do not start from any either
        return False
    examples = loaded.reference.examples if loaded.reference is not None else None
    return examples is not None and bool(inside(examples, loaded.manifest.visible.domain).all())
