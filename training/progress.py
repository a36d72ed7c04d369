"""How far a run is: a bar where someone looks at a terminal, a line now and then where nobody does."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_QUIET_SECONDS = 5.0
"""Least time between two lines of a run without a terminal."""


class Stages:
    """Progress of the stages of a run, one after the other, with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage = ""
        self._task = TaskID(0)
        self._began = (0.0, 0)
        self._printed = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of work of `stage`; `note` is shown beside it."""
        if stage != self._stage:
            self._stage, self._began, self._printed = stage, (time.monotonic(), done), time.monotonic()
            self._task = self._bar.add_task(stage, total=total, completed=done, rate="", note=note)
        now = time.monotonic()
        rate = (done - self._began[1]) / max(now - self._began[0], 1e-9)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, rate=f"{rate:,.0f}/s", note=note)
        elif done == total or now - self._printed > _QUIET_SECONDS:
            self._printed = now
            left = f"{(total - done) / rate:,.0f} s left" if rate > 0 else ""
            self.say(f"{stage}: {done:,}/{total:,}  {rate:,.0f}/s  {left}  {note}".rstrip())
