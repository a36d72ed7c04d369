"""Following something that may never speak again, for a client that may leave, in a process that may have to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

_AGAIN_S = 0.05


async def until(stop: asyncio.Event, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The source's items until it ends, or until `stop` is set. Leaves nothing running, however it is left."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            following = asyncio.create_task(_next(source))
            try:
                await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    with anyio.CancelScope(shield=True):
                        await _cancel(following)
            if following.cancelled() or (found := following.result()) is None:
                return
            yield found[0]
    finally:
        stopped.cancel()


async def _next(source: AsyncIterator[T]) -> tuple[T] | None:
    # Not anext(source, None): a task around that one is deaf to its cancellation.
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return None


async def _cancel(task: asyncio.Task[Any]) -> None:
    # More than once: redis-py drops a cancellation that reaches it while it connects.
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)
