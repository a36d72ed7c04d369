"""A run's folder: `metrics.jsonl`, the resumable state, the pictures, and `result.json` once it is finished."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from training.errors import ResumeError
from training.state import STATE

METRICS, RESULT = "metrics.jsonl", "result.json"


@contextmanager
def owned(folder: Path, resume: bool, console: Console) -> Iterator[None]:
    """Have the folder to oneself. A new run clears it of a finished one and moves an unfinished one aside.

    Raises:
        ResumeError: nothing to resume, or another process is at work in the folder.
    """
    if resume and not (folder / STATE).exists():
        raise ResumeError(f"nothing to resume in {folder}{_finished(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if resume:
            yield
            return
        if (folder / STATE).exists():
            aside = _free_name(folder)
            shutil.copytree(folder, aside)
            console.print(f"an unfinished run was in {folder}; it is now in {aside}", highlight=False)
        _drop_states(folder)
        for name in (METRICS, RESULT):
            (folder / name).unlink(missing_ok=True)
        yield


def add_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a crash is dropped."""
    path = folder / METRICS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def keep_records(folder: Path, stage: int, last_step: int) -> None:
    """Drop the lines written after the state that the run goes on from."""
    kept = [json.dumps(r) + "\n" for r in records(folder) if (r["stage"], r["step"]) <= (stage, last_step)]
    aside = folder / f".{METRICS}.writing"
    aside.write_text("".join(kept), encoding="utf-8")
    aside.replace(folder / METRICS)


def finish(folder: Path, checkpoint: Path, metrics: Mapping[str, Any]) -> None:
    """Leave the result, and no state to resume."""
    (folder / RESULT).write_text(json.dumps({"checkpoint": str(checkpoint), "metrics": metrics}, indent=2) + "\n")
    _drop_states(folder)


def _drop_states(folder: Path) -> None:
    for path in folder.glob("state*.safetensors"):
        path.unlink()


def _finished(folder: Path) -> str:
    if not (folder / RESULT).exists():
        return ": no run was saved there"
    return f": the run there is finished, its checkpoint is {json.loads((folder / RESULT).read_text())['checkpoint']}"


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.unfinished-{number}")).exists():
        number += 1
    return aside


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - exists on POSIX systems only

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ResumeError(f"another run is at work in {folder}; give this one its own --name or --run-dir") from None
    finally:
        os.close(descriptor)
