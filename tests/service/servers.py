"""Real processes for the tests: `ebm serve` and `ebm worker`, on a free port, ended by their ids."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.queue import embedded

START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(models_dir: Path, data_dir: Path, **settings: Any) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EBM_")}
    own = {"EBM_MODELS_DIR": models_dir, "EBM_DATA_DIR": data_dir, "EBM_LEASE_S": 2, "EBM_CHECKPOINT_S": 0.3}
    own |= {f"EBM_{name.upper()}": value for name, value in settings.items()}
    return inherited | {name: str(value) for name, value in own.items()}


@dataclass
class Server:
    """A running `ebm serve`."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def run(self, request: dict[str, Any], within_s: float = 90.0) -> dict[str, Any]:
        """Submit a job and wait for its end."""
        return self.wait(self.submit(request), within_s)

    def submit(self, request: dict[str, Any]) -> str:
        answer = self.client.post("/v1/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, job_id: str, within_s: float = 90.0) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if job["status"] in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} did not end within {within_s} s: {job}\n{self.log.read_text()[-4000:]}")

    def wait_until_running(self, job_id: str, share: float = 0.05, within_s: float = 60.0) -> dict[str, Any]:
        """Wait until a share of the job's work is done (and so checkpointed)."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            job = self.job(job_id)
            assert job["status"] in ("queued", "running"), job
            if job["progress"]["done"] >= share * job["progress"]["total"]:
                return job
            time.sleep(0.02)
        raise AssertionError(f"job {job_id} does not get ahead\n{self.log.read_text()[-4000:]}")

    def result(self, job_id: str) -> bytes:
        answer = self.client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/x-npy"})
        assert answer.status_code == 200, answer.text
        return answer.content


@contextmanager
def serving(models_dir: Path, data_dir: Path, **settings: Any) -> Iterator[Server]:
    """`ebm serve` until the block ends, then SIGTERM."""
    port = free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    if "redis_url" not in settings:
        # The embedded server outlives the service on purpose; it must not outlive the tests.
        atexit.register(embedded.stop, data_dir)
    log = data_dir / f"serve-{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "ebm", "serve", "--port", str(port)],
            env=environment(models_dir, data_dir, **settings),
            stdout=sink,
            stderr=sink,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            _wait_until_ready(process, client, log)
            yield Server(process, client, log)
    finally:
        end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready within {START_S} s\n{log.read_text()}")


@contextmanager
def working(models_dir: Path, data_dir: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`ebm worker` until the block ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / f"worker-{free_port()}.log").open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "ebm", "worker"],
            env=environment(models_dir, data_dir, **settings),
            stdout=sink,
            stderr=sink,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], within_s: float = 40.0) -> int:
    """SIGTERM, and SIGKILL where that is not enough; returns the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
