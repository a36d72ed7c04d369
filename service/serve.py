"""One served process: the API, its models, and a supervised worker beside it."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import torch
import uvicorn

from service.api.app import create_app
from service.api.deps import Services
from service.queue.client import JobQueue
from service.queue.embedded import resolve
from service.runtime.evaluator import Evaluator
from service.runtime.library import ModelLibrary, resolve_device
from service.settings import Settings
from service.store.files import JobFiles

_log = structlog.get_logger(__name__)

_RESTART_S = (0.2, 1.0, 5.0)
_STOP_S = 30.0


class UnsafeAddress(ValueError):  # noqa: N818 - named for what is refused
    """The service would be open to others than this machine, with no key asked for."""


def check_address(settings: Settings) -> None:
    """Without keys the service listens on loopback only.

    Raises:
        UnsafeAddress: it would not.
    """
    if settings.api_keys or settings.allow_unauthenticated or _is_loopback(settings.host):
        return
    raise UnsafeAddress(
        f"refusing to listen on {settings.host} without keys: set EBM_API_KEYS, or listen on 127.0.0.1. Where the "
        "network keeps others out (a container published on loopback), set EBM_ALLOW_UNAUTHENTICATED=1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """On the first signal readiness turns 503 and event streams end, before the listening socket closes."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._services.draining.set()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The base class raises the signal again once it is done, which would end the process before the worker has
        # handed its jobs back. To this service the signal asks for no more than an orderly end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        with super().capture_signals():
            yield


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight finish, and the embedded worker hands its jobs back.

    Raises:
        UnsafeAddress: see `check_address`.
        EmbeddedServerError: no server for the jobs.
    """
    check_address(settings)
    torch.set_num_threads(settings.threads)
    url = resolve(settings.redis_url, settings.data_dir)
    library = ModelLibrary(settings.models_dir, resolve_device(settings.device))
    library.refresh()
    library.watch()
    evaluator = Evaluator(library)
    app = create_app(
        settings,
        evaluator,
        JobQueue(
            url,
            settings.redis_namespace,
            queue_limit=settings.queue_limit,
            result_ttl_s=settings.result_ttl_s,
            idempotency_ttl_s=settings.idempotency_ttl_s,
        ),
        JobFiles(settings.data_dir),
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(_STOP_S),
    )
    with _embedded_worker(settings, url):
        _log.info("serving", host=settings.host, port=settings.port, models=[s.card.name for s in library.all()])
        _Server(config, app.state.services).run()
    evaluator.close()
    library.close()


@contextmanager
def _embedded_worker(settings: Settings, redis_url: str) -> Iterator[None]:
    if not settings.embedded_worker:
        yield
        return
    stopping = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def supervise() -> None:
        failures = 0
        while not stopping.is_set():
            started = time.monotonic()
            worker = _start_worker(settings, redis_url)
            running[:] = [worker]
            code = worker.wait()
            if stopping.is_set():
                return
            failures = 0 if time.monotonic() - started > 60.0 else failures + 1
            _log.error("worker ended; starting another", code=code)
            stopping.wait(_RESTART_S[min(failures, len(_RESTART_S) - 1)])

    thread = threading.Thread(target=supervise, name="worker-supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        for worker in running:
            worker.terminate()
            try:
                worker.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()  # its leases lapse, its jobs resume from their checkpoints
        thread.join(_STOP_S)


def _start_worker(settings: Settings, redis_url: str) -> subprocess.Popen[bytes]:
    # Its standard input is a pipe that this process holds open: when this process dies, in whatever way, the worker
    # hands its jobs back and ends.
    environment = {
        **os.environ,
        "EBM_REDIS_URL": redis_url,
        "EBM_MODELS_DIR": str(settings.models_dir.absolute()),
        "EBM_DATA_DIR": str(settings.data_dir.absolute()),
        "EBM_DEVICE": settings.device,
        "OMP_NUM_THREADS": str(settings.threads),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "service.worker", "--until-stdin-closes"], stdin=subprocess.PIPE, env=environment
    )
