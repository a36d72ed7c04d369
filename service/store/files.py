"""The files of jobs: what goes in, what comes out, and the states that a job can be resumed from.

Whatever is written under a final name is whole: it was written aside, flushed to the disk and renamed. Nothing here
is pickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

Array = npt.NDArray[Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_STATE = re.compile(r"state-(\d{1,18})-[0-9a-f]{16}\.safetensors")
_INPUTS = "inputs.safetensors"


class StoreError(Exception):
    """A file of a job is missing, damaged, or not what was asked for."""


class JobFiles:
    """A folder for each job, `root/jobs/{id}/`, shared by the API and the workers."""

    def __init__(self, root: Path) -> None:
        self._jobs = root / "jobs"

    def folder(self, job_id: str) -> Path:
        """The job's folder, whether it exists or not.

        Raises:
            ValueError: The id is not made of letters, digits, - and _ alone.
        """
        return self._jobs / _checked(job_id, "job id")

    def write_inputs(self, job_id: str, arrays: Mapping[str, Array]) -> None:
        """Stores the arrays that a job starts from, in place of earlier ones."""
        _write_whole(self._make(job_id) / _INPUTS, _serialize(arrays))

    def read_inputs(self, job_id: str) -> dict[str, Array]:
        """The arrays that `write_inputs` stored.

        Raises:
            StoreError: They are missing or damaged.
        """
        path = self.folder(job_id) / _INPUTS
        return _deserialize(path, _read(path))

    def create_array(self, job_id: str, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap[Any, Any]:
        """An array of results, written in place; its space is reserved, so that a full disk shows here and not later.

        One that is already there with this shape and dtype is opened as it is: a resumed job rewrites the same bytes.
        What was assigned is on the disk once the array's `flush()` returned.

        Raises:
            StoreError: There is another array under this name.
            OSError: The disk is full.
        """
        wanted = np.dtype(dtype)
        if wanted.hasobject or wanted.itemsize == 0 or math.prod(shape) == 0:
            raise ValueError(f"an array of results needs elements of a plain type, got {shape} of {wanted}")
        path = self._array(self._make(job_id), name)
        if not path.exists():
            _create_npy(path, shape, wanted)
        array = _open_npy(path, "r+")
        if array.shape != shape or array.dtype != wanted:
            raise StoreError(
                f"{path.name} of job {job_id} holds {array.shape} of {array.dtype}, not {shape} of {wanted}"
            )
        return array

    def open_array(self, job_id: str, name: str) -> np.memmap[Any, Any]:
        """An array of results, mapped into memory and read-only.

        Raises:
            StoreError: It is missing or damaged.
        """
        return _open_npy(self._array(self.folder(job_id), name), "r")

    def write_state(self, job_id: str, step: int, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Stores a state that the job can be resumed from, beside earlier ones.

        Returns:
            The pointer to it: {"file", "sha256", "step"}.
        """
        content = _serialize(arrays)
        sha256 = hashlib.sha256(content).hexdigest()
        # The digest in the name: a worker that lost the job cannot put other bytes where a pointer already leads.
        name = f"state-{step}-{sha256[:16]}.safetensors"
        _write_whole(self._make(job_id) / name, content)
        return {"file": name, "sha256": sha256, "step": step}

    def read_state(self, job_id: str, pointer: Mapping[str, Any]) -> dict[str, Array]:
        """The state that a pointer of `write_state` leads to.

        Raises:
            StoreError: It is missing, or not the bytes that were stored.
        """
        name = str(pointer["file"])
        if not _STATE.fullmatch(name):
            raise StoreError(f"not the file of a state: {name!r}")
        path = self.folder(job_id) / name
        content = _read(path)
        found = hashlib.sha256(content).hexdigest()
        if found != pointer["sha256"]:
            raise StoreError(f"{path} was stored with SHA-256 {pointer['sha256']} and now has {found}")
        return _deserialize(path, content)

    def prune_states(self, job_id: str, keep: Mapping[str, Any]) -> None:
        """Removes the states of earlier steps than the pointer's; to be called once the queue has taken the pointer."""
        with suppress(FileNotFoundError):
            for path in self.folder(job_id).iterdir():
                match = _STATE.fullmatch(path.name)
                if match and int(match[1]) < int(keep["step"]):
                    path.unlink(missing_ok=True)

    def remove(self, job_id: str) -> None:
        """Removes everything of a job; once more is harmless."""
        folder = self.folder(job_id)
        while folder.exists():
            with suppress(FileNotFoundError):  # removed by another sweeper meanwhile, in part or whole
                shutil.rmtree(folder)

    def _make(self, job_id: str) -> Path:
        folder = self.folder(job_id)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _flush_folder(self._jobs)
        return folder

    @staticmethod
    def _array(folder: Path, name: str) -> Path:
        return folder / f"{_checked(name, 'array name')}.npy"


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a {what}: {name!r}; expected up to 128 letters, digits, - and _")
    return name


def _serialize(arrays: Mapping[str, Array]) -> bytes:
    try:
        content: bytes = safetensors.numpy.save(
            {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
        )
    except SafetensorError as error:
        raise ValueError(f"not arrays of plain numbers: {error}") from error
    return content


def _deserialize(path: Path, content: bytes) -> dict[str, Array]:
    try:
        arrays: dict[str, Array] = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    return arrays


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing") from error


def _open_npy(path: Path, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing") from error
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    assert isinstance(array, np.memmap)
    return array


def _create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    aside = _aside(path)
    try:
        with aside.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start, size = file.tell(), math.prod(shape) * dtype.itemsize
            if sys.platform == "linux":
                # A hole in the file would be filled later, by writes to memory: on a full disk those kill the process.
                os.posix_fallocate(file.fileno(), start, size)
            else:
                file.truncate(start + size)
            os.fsync(file.fileno())
        # Not over one that another worker made meanwhile: it may be writing into it.
        with suppress(FileExistsError):
            path.hardlink_to(aside)
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _write_whole(path: Path, content: bytes) -> None:
    aside = _aside(path)
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _flush_folder(folder: Path) -> None:
    """Makes a rename in the folder last through a power failure."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
