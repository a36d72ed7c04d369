"""A worker process: `python -m service.worker`. Settings come from the environment."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import torch

from service.queue.embedded import resolve
from service.queue.lease import JobSource
from service.runtime.library import ModelLibrary, resolve_device
from service.settings import Settings
from service.store.files import JobFiles
from service.telemetry import configure_logging
from service.worker.worker import Worker


def main(settings: Settings, *, until_stdin_closes: bool = False) -> None:
    """Run a worker until SIGTERM or SIGINT, or until standard input ends: then whoever started it is gone."""
    configure_logging(settings.log_level, json=settings.log_json)
    torch.set_num_threads(settings.threads)
    library = ModelLibrary(settings.models_dir, resolve_device(settings.device))
    library.refresh()
    library.watch()
    source = JobSource(
        resolve(settings.redis_url, settings.data_dir),
        settings.redis_namespace,
        lease_s=settings.lease_s,
        max_crashes=settings.max_crashes,
        result_ttl_s=settings.result_ttl_s,
    )
    worker = Worker(
        source,
        JobFiles(settings.data_dir),
        library,
        worker_id=f"{socket.gethostname()}-{os.getpid()}",
        slots=settings.slots,
        block_sweeps=settings.block_sweeps,
        checkpoint_s=settings.checkpoint_s,
        stall_s=settings.stall_s,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, args=(worker,), daemon=True).start()
    worker.run()
    library.close()


def _stop_at_end_of_input(worker: Worker) -> None:
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main(Settings(), until_stdin_closes="--until-stdin-closes" in sys.argv[1:])
