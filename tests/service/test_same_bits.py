"""A job's bits do not depend on neighbours, queue server, number of workers, kills or restarts."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.service.example import write_rbm
from tests.service.servers import Server, end, serving, working

D, F = 64, 48
REQUEST: dict[str, Any] = {
    "kind": "sample",
    "model": "m",
    "chains": 40,
    "draws": 5,
    "burn_in": 300,
    "thin": 7,
    "temperature": 1.25,
    "seed": 2**53 - 1,
}
LONG: dict[str, Any] = {"kind": "sample", "model": "m", "chains": 128, "draws": 4, "burn_in": 20000, "seed": 77}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_rbm(folder, "m", d=D, f=F)
    return folder


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def alone(server: Server, request: dict[str, Any]) -> str:
    job = server.run(request)
    assert job["status"] == "succeeded", job
    return digest(server.result(job["id"]))


def beside_twenty(server: Server, request: dict[str, Any]) -> str:
    others = [
        server.submit({**request, "seed": seed, "chains": 1 + 3 * seed, "burn_in": 100 * seed, "temperature": 1.0})
        for seed in range(10)
    ]
    mine = server.submit(request)
    others += [server.submit({**request, "seed": seed, "thin": seed, "draws": 2}) for seed in range(10, 20)]
    jobs = [server.wait(job_id) for job_id in [mine, *others]]
    assert {job["status"] for job in jobs} == {"succeeded"}
    return digest(server.result(mine))


@pytest.fixture(scope="module")
def expected(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bits of both requests, each alone on a fresh embedded server."""
    with serving(models_dir, tmp_path_factory.mktemp("alone")) as server:
        return {"short": alone(server, REQUEST), "long": alone(server, LONG)}


def test_beside_twenty_other_jobs_on_the_embedded_server(models_dir: Path, tmp_path: Path, expected) -> None:
    with serving(models_dir, tmp_path) as server:
        assert beside_twenty(server, REQUEST) == expected["short"]


@pytest.mark.parametrize("workers", [1, 2])
def test_beside_twenty_other_jobs_on_redis(
    models_dir: Path, tmp_path: Path, redis_url: str, namespace: str, expected, workers: int
) -> None:
    queue = {"redis_url": redis_url, "redis_namespace": namespace}
    with serving(models_dir, tmp_path, embedded_worker=0, **queue) as server, ExitStack() as stack:
        for settings in ({}, {"slots": 64, "block_sweeps": 3})[:workers]:
            stack.enter_context(working(models_dir, tmp_path, **settings, **queue))
        assert beside_twenty(server, REQUEST) == expected["short"]


def test_a_worker_killed_mid_job_loses_no_job_and_no_bit(
    models_dir: Path, tmp_path: Path, redis_url: str, namespace: str, expected
) -> None:
    queue = {"redis_url": redis_url, "redis_namespace": namespace}
    with serving(models_dir, tmp_path, embedded_worker=0, **queue) as server:
        with working(models_dir, tmp_path, **queue) as doomed:
            long = server.submit(LONG)
            short = [server.submit({**REQUEST, "seed": seed}) for seed in range(5)]
            server.wait_until_running(long)
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
        with working(models_dir, tmp_path, **queue):
            jobs = [server.wait(job_id) for job_id in [long, *short]]
        assert {job["status"] for job in jobs} == {"succeeded"}
        assert jobs[0]["attempts"] == 2
        assert digest(server.result(long)) == expected["long"]


def test_a_job_survives_kill_and_restart_of_the_whole_service(models_dir: Path, tmp_path: Path, expected) -> None:
    with serving(models_dir, tmp_path) as server:
        job_id = server.submit(LONG)
        server.wait_until_running(job_id)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with serving(models_dir, tmp_path) as server:
        assert server.wait(job_id)["status"] == "succeeded"
        assert digest(server.result(job_id)) == expected["long"]


def test_sigterm_hands_the_job_back_without_counting_a_crash(models_dir: Path, tmp_path: Path, expected) -> None:
    with serving(models_dir, tmp_path) as server:
        job_id = server.submit(LONG)
        server.wait_until_running(job_id)
        assert end(server.process) == 0
    with serving(models_dir, tmp_path) as server:
        done = server.wait(job_id)
        assert done["status"] == "succeeded"
        assert digest(server.result(job_id)) == expected["long"]


def test_a_worker_dies_with_the_service_that_started_it(models_dir: Path, tmp_path: Path) -> None:
    with serving(models_dir, tmp_path) as server:
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(children) == 1
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        gone = subprocess.run(
            ["timeout", "30", "tail", f"--pid={children[0]}", "-f", "/dev/null"], check=False, capture_output=True
        )
    assert gone.returncode == 0


def test_a_running_job_is_cancelled_and_its_worker_goes_on(models_dir: Path, tmp_path: Path, expected) -> None:
    with serving(models_dir, tmp_path) as server:
        job_id = server.submit({**LONG, "burn_in": 10_000_000})
        server.wait_until_running(job_id, share=1e-5)
        assert server.client.delete(f"/v1/jobs/{job_id}").status_code in (200, 202)
        assert server.wait(job_id, within_s=20)["status"] == "cancelled"
        assert server.client.delete(f"/v1/jobs/{job_id}").status_code == 200
        assert alone(server, REQUEST) == expected["short"]
