"""The containers' health check, against a real service."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.service.servers import environment, free_port, serving

SCRIPT = Path(__file__).parents[2] / "deploy/healthcheck.py"


def check(what: str, folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), what],
        env=environment(folder, folder, **settings),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_api_and_worker_are_healthy_while_they_run(redis_url: str, namespace: str, tmp_path: Path) -> None:
    settings = {"redis_url": redis_url, "redis_namespace": namespace}
    with serving(tmp_path, tmp_path / "data", **settings) as server:
        api = check("api", tmp_path, port=server.client.base_url.port, **settings)
        assert api.returncode == 0, api.stderr
        # The embedded worker starts beside the API, which does not wait for it.
        deadline = time.monotonic() + 60
        while (worker := check("worker", tmp_path, **settings)).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        assert worker.returncode == 0, worker.stderr


def test_an_api_that_does_not_listen_is_unhealthy(tmp_path: Path) -> None:
    done = check("api", tmp_path, port=free_port())
    assert done.returncode == 1
    assert "unhealthy" in done.stderr


def test_a_host_without_a_registered_worker_is_unhealthy(redis_url: str, namespace: str, tmp_path: Path) -> None:
    done = check("worker", tmp_path, redis_url=redis_url, redis_namespace=namespace)
    assert done.returncode == 1
    assert "no worker" in done.stderr
