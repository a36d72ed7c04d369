"""Media types: which one a client wants, and which one it sent."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from service.api.errors import Problem

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"


def _ranges(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if media:
            found.append((media, quality))
    return found


def choose(request: Request, offered: Sequence[str]) -> str:
    """The offered media type that `Accept` likes best (RFC 9110 section 12.5.1); the first one where it has no say.

    Raises:
        Problem: `not-acceptable`, naming what is offered.
    """
    ranges = _ranges(request.headers.get("accept", "")) or [("*/*", 1.0)]
    best: tuple[float, int, int] | None = None
    for place, media in enumerate(offered):
        patterns = (media, f"{media.partition('/')[0]}/*", "*/*")
        matches = [(2 - patterns.index(kind), quality) for kind, quality in ranges if kind in patterns]
        if matches:
            specificity, quality = max(matches)
            if quality > 0:
                best = max(best or (0.0, 0, 0), (quality, specificity, -place))
    if best is None:
        raise Problem("not-acceptable", f"This answer comes as {' or '.join(offered)}; Accept allows none of these.")
    return offered[-best[2]]


def content_type(request: Request, understood: Sequence[str]) -> str:
    """The body's media type; JSON where none is named (several public clients send none).

    Raises:
        Problem: `unsupported-media-type`, naming what is understood.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not sent or sent.endswith("+json"):
        sent = JSON
    if sent not in understood:
        raise Problem(
            "unsupported-media-type",
            f"The body is {sent}; this path takes {' or '.join(understood)}. Set the Content-Type header to say which.",
            headers={"Accept": ", ".join(understood)},
        )
    return sent
