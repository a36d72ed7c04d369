"""The resumable state of a run: one file, replaced in one step, so it is the old one or the new one and never half."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from training.config import Recipe
from training.errors import ResumeError
from training.fit import FitState

STATE = "state.safetensors"
_GROUPS = ("parameters", "velocity", "memory", "best", "average", "spectra")


def name_of(rank: int) -> str:
    """The file of one process's state."""
    return f"state-{rank}.safetensors" if rank else STATE


class Origin(BaseModel):
    """What a state belongs to. It travels as JSON in the file's own header."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    data: str
    """Fingerprint of the data set."""
    device: str
    threads: int
    """Compute threads: sums are split among them, so the bits depend on their number."""
    processes: int = 1
    """That share each minibatch, and have a state each."""


@dataclass(frozen=True, eq=False)
class Saved:
    """A state as read."""

    origin: Origin
    fit: FitState
    seconds: float
    """Time spent in training so far."""


def save(folder: Path, origin: Origin, fit: FitState, seconds: float, rank: int = 0) -> None:
    """Write the state aside, fsync it and rename it into place. Each process of a team has its own."""
    groups = {name: getattr(fit, name) for name in _GROUPS}
    groups |= {f"finished-{n}": parameters for n, parameters in enumerate(fit.finished)}
    tensors = {f"{group}.{name}": t.cpu().contiguous() for group, ts in groups.items() for name, t in ts.items()}
    progress = {"step": fit.step, "seconds": seconds, "watched": fit.watched, "finished": len(fit.finished)}
    progress["order"] = list(tensors)  # the file has one of its own, and sums go through tensors in this one
    header = {"origin": origin.model_dump_json(), "progress": json.dumps(progress)}
    aside = folder / f".{name_of(rank)}.writing"
    with aside.open("wb") as file:
        file.write(save_tensors(tensors, header))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / name_of(rank))


def read(folder: Path, device: torch.device | str = "cpu", rank: int = 0) -> Saved:
    """The state in a run's folder.

    Raises:
        ResumeError: there is none, or it is damaged.
    """
    path = folder / name_of(rank)
    if not path.exists():
        raise ResumeError(f"nothing to resume in {folder}: no {path.name}")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        origin, progress = Origin.model_validate_json(header["origin"]), json.loads(header["progress"])
        groups: dict[str, dict[str, torch.Tensor]] = {name: {} for name in _GROUPS}
        finished: list[dict[str, torch.Tensor]] = [{} for _ in range(progress["finished"])]
        for full in progress["order"]:
            group, _, name = full.partition(".")
            kind, _, number = group.partition("-")
            (finished[int(number)] if kind == "finished" else groups[group])[name] = tensors[full]
        fit = FitState(progress["step"], **groups, finished=finished, watched=progress["watched"])
        return Saved(origin, fit, progress["seconds"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise ResumeError(f"{path} is no state of a training run: {error}") from error


def check_same(saved: Origin, asked: Origin) -> None:
    """Refuse to go on with another recipe or other data than the run began with.

    Raises:
        ResumeError: every difference, old and new.
    """
    before, now = _flat(saved.recipe.model_dump()), _flat(asked.recipe.model_dump())
    keys = sorted({*before, *now} - {"data.dataset", "data.place"})  # the data may have moved; their fingerprint tells
    changed = [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in keys if before.get(k) != now.get(k)]
    if saved.data != asked.data:
        changed.append("the data differ")
    if saved.device != asked.device:
        changed.append(f"the device was {saved.device}, now {asked.device}")
    if saved.processes != asked.processes:
        changed.append(f"there were {saved.processes} processes, now {asked.processes}")
    if changed:
        raise ResumeError("the run to resume is another one: " + "; ".join(changed))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
