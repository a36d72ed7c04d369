"""Logs and metrics."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from structlog.typing import Processor

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def configure_logging(level: str = "info", *, json: bool = False) -> None:
    """One line an event on standard error, for structlog and for the standard library's loggers alike."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Values of local variables would put clients' inputs into the log, and take seconds to print.
    without_values = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderer: list[Processor] = (
        [structlog.processors.ExceptionRenderer(without_values), structlog.processors.JSONRenderer()]
        if json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class Metrics:
    """The API's metrics, in a registry of their own. Labels are routes, models and slugs: few."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.duration = Histogram(
            "ebm_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ("route", "method", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.phases = Histogram(
            "ebm_request_phase_seconds",
            "Time in each phase of an operation: parse, compute, encode.",
            ("route", "phase"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("ebm_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.rows = Counter(
            "ebm_rows", "Rows computed by synchronous operations.", ("model", "operation"), registry=self.registry
        )
        self.rejected = Counter(
            "ebm_rejected", "Requests answered by a problem, by its slug.", ("reason",), registry=self.registry
        )
        self.submitted = Counter(
            "ebm_jobs_submitted", "Jobs accepted by this process.", ("kind", "model"), registry=self.registry
        )

    @contextmanager
    def phase(self, route: str, name: str) -> Iterator[None]:
        """Times a phase that came to its end; one that raised is not counted."""
        start = time.perf_counter()
        yield
        self.phases.labels(route, name).observe(time.perf_counter() - start)
