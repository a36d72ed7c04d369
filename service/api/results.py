"""A finished job's result, streamed from the file it lies in: never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from starlette.responses import StreamingResponse

from models.manifest import Domain
from service.api.encode import dumps, npy_header
from service.api.media import JSON, NPY, PNG
from service.core.job import JobRecord
from service.picture import grid

CHUNK_BYTES = 2**20


def about(record: JobRecord) -> dict[str, Any]:
    """What every JSON result begins with."""
    return {
        "id": record.id,
        "kind": record.kind,
        "model": record.model,
        "version": record.version,
        "seed": record.seed,
    }


def array_response(
    record: JobRecord, array: NDArray[Any], mean: NDArray[Any] | None, media: str, domain: Domain
) -> Response:
    """The array (chains or inputs, draws, *shape), and in JSON a completion's mean (inputs, *shape) with it.

    Reads the files: call it in a thread.
    """
    if media == PNG:
        return Response(grid(array, domain), media_type=PNG)
    name = {"Content-Disposition": f'attachment; filename="{record.id}.npy"'}
    if media == NPY:
        header = npy_header(array.shape, array.dtype)
        length = {"Content-Length": str(len(header) + array.nbytes)}
        return _response(_npy(header, array), array.nbytes, NPY, {**name, **length})
    return _response(_json(record, array, mean), array.nbytes, JSON, {})


def _response(parts: Iterator[bytes], size: int, media: str, headers: dict[str, str]) -> Response:
    if size <= CHUNK_BYTES:
        return Response(b"".join(parts), media_type=media, headers=headers)
    return StreamingResponse(parts, media_type=media, headers=headers)


def _npy(header: bytes, array: NDArray[Any]) -> Iterator[bytes]:
    yield header
    for block in _blocks(array):
        yield block.tobytes()


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Whole leading entries, of about a chunk each."""
    step = max(1, CHUNK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _json(record: JobRecord, array: NDArray[Any], mean: NDArray[Any] | None) -> Iterator[bytes]:
    found = {name: value for name, value in (record.result or {}).items() if name != "media_types"}
    yield dumps({**about(record), **found})[:-1]
    reasons: list[str] = []
    yield from _nested("samples", array, reasons)
    if mean is not None:
        yield from _nested("mean", mean, reasons)
    if reasons:
        yield b',"reason":' + dumps("; ".join(reasons))
    yield b"}"


def _nested(name: str, array: NDArray[Any], reasons: list[str]) -> Iterator[bytes]:
    """One more member of a JSON object, a block at a time; `reasons` is told of what is not finite in it."""
    missing = 0
    yield f',"{name}":['.encode()
    for place, block in enumerate(_blocks(array)):
        if array.dtype.kind == "f":
            missing += int(np.count_nonzero(~np.isfinite(block)))
        yield (b"," if place else b"") + dumps(np.ascontiguousarray(block))[1:-1]
    yield b"]"
    if missing:
        reasons.append(f"{missing} of {array.size} numbers in {name} were not finite: they stand as null")
