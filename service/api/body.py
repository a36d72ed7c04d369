"""Request bodies: read whole within the size limit, decompressed within the same limit, parsed without trust."""

from __future__ import annotations

import io
import math
import zlib
from typing import Any

import numpy as np
import orjson
import zstandard
from fastapi import Request
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from service.api.errors import Problem, invalid

IN_THREAD_BYTES = 2**20
"""Work on more bytes than this leaves the event loop to others."""

_ZSTD_WINDOW = 2**23
"""The most that RFC 9659 lets a sender ask of us."""

_ENCODINGS = ("gzip", "zstd", "deflate")


def _too_large(limit: int) -> Problem:
    return Problem(
        "too-large", f"The body is larger than {limit} bytes after decompression, the most that is taken at once."
    )


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, decompressed.

    Raises:
        Problem: `too-large`, `unsupported-media-type` (Content-Encoding), `malformed-body` (broken compression).
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower().removeprefix("x-")
    if encoding not in ("identity", "", *_ENCODINGS):
        raise Problem(
            "unsupported-media-type",
            f"Content-Encoding {encoding!r} is not understood; send one of {', '.join(_ENCODINGS)}, or none.",
            headers={"Accept-Encoding": ", ".join(_ENCODINGS)},
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    body = b"".join(parts)
    return body if encoding in ("identity", "") else await run_in_threadpool(decompress, body, encoding, limit)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The decompressed body, never holding more than `limit` bytes (and one zstd window) of it.

    Raises:
        Problem: `too-large` or `malformed-body`.
    """
    try:
        if encoding == "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
                io.BytesIO(body), read_across_frames=True
            )
            plain = reader.read(limit + 1)
        else:
            plain = _inflate(body, 31 if encoding == "gzip" else 15, limit + 1)
    except (zlib.error, zstandard.ZstdError) as error:
        raise Problem("malformed-body", f"The body is not valid {encoding}: {error}.") from error
    if len(plain) > limit:
        raise _too_large(limit)
    return plain


def _inflate(body: bytes, wbits: int, most: int) -> bytes:
    """At most `most` bytes of a zlib stream, or of a series of gzip members."""
    plain = bytearray()
    while body:
        inflater = zlib.decompressobj(wbits)
        plain += inflater.decompress(body, most - len(plain))
        if len(plain) >= most:
            break
        if not inflater.eof:
            raise zlib.error("it ends too early")
        body = inflater.unused_data
    return bytes(plain)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Problem: `malformed-body` where it is not JSON, `invalid-input` where it is no object.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = "empty" if not body else f"not valid JSON (UTF-8, finite numbers): {error}"
        raise Problem("malformed-body", f"The body is {what}.") from error
    if not isinstance(parsed, dict):
        message = f"The body is a JSON {_JSON_NAMES[type(parsed)]}; an object with named fields is expected."
        raise Problem("invalid-input", message, errors=[(("body",), message)])
    return parsed


_JSON_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def parse_npy(body: bytes) -> NDArray[Any]:
    """The body as one .npy array of real numbers: a read-only view, nothing is allocated by what its header claims.

    Raises:
        Problem: `malformed-body` (not .npy, or cut short), `invalid-input` for other element types.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=10_000)
    except Exception as error:  # the header is a Python literal: whatever fails in reading it is the sender's fault
        raise Problem("malformed-body", "The body is not a .npy file of format version 1.0 or 2.0.") from error
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise invalid(("body", "inputs"), f"The .npy array has dtype {dtype}; numbers or booleans are expected.")
    expected, found = math.prod(shape) * dtype.itemsize, len(body) - stream.tell()
    if any(length < 0 for length in shape) or expected != found:
        raise Problem(
            "malformed-body",
            f"The .npy header promises shape {shape} of {dtype}, {expected} bytes; {found} bytes follow.",
        )
    if expected == 0:
        return np.zeros(0, dtype)
    flat = np.frombuffer(body, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
