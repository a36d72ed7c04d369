"""Answers: JSON with arrays in it, or one .npy array."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from service.api.body import IN_THREAD_BYTES
from service.api.errors import Problem
from service.api.media import JSON, NPY

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


def dumps(body: Any) -> bytes:
    """JSON; numpy arrays as nested lists, times as RFC 3339 UTC, non-finite numbers as null."""
    return orjson.dumps(body, option=_OPTIONS)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A small JSON answer."""
    return Response(dumps(body), status, headers, media_type=JSON)


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the elements in a .npy file."""
    out = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def _non_finite(array: NDArray[Any]) -> int:
    return array.size - int(np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0


def _json(body: dict[str, Any]) -> bytes:
    reasons = [body["reason"]] if body.get("reason") else []
    for name, value in body.items():
        if isinstance(value, np.ndarray):
            body[name] = np.ascontiguousarray(value)
            if missing := _non_finite(value):
                reasons.append(f"{missing} of {value.size} numbers in {name} were not finite: they stand as null")
        elif isinstance(value, float | np.floating) and not np.isfinite(value):
            reasons.append(f"{name} was not finite: it stands as null")
    if reasons:
        body["reason"] = "; ".join(reasons)
    return dumps(body)


def _npy(name: str, value: Any) -> bytes:
    array = np.ascontiguousarray(value)
    if missing := _non_finite(array):
        message = f"{missing} of {array.size} numbers in {name} are not finite; as {JSON} they would stand as null."
        raise Problem("invalid-input", message, errors=[(("body", "inputs"), message)])
    return npy_header(array.shape, array.dtype) + array.tobytes()


async def answer(body: dict[str, Any], media: str, main: str) -> Response:
    """The body as JSON, or its main array as .npy; big ones are encoded in a thread.

    Raises:
        Problem: `invalid-input` where the inputs led to non-finite numbers and a binary array was asked for.
    """
    size = sum(value.nbytes for value in body.values() if isinstance(value, np.ndarray))
    work = (_npy, main, body[main]) if media == NPY else (_json, body)
    content = work[0](*work[1:]) if size < IN_THREAD_BYTES else await run_in_threadpool(*work)
    return Response(content, media_type=media)
