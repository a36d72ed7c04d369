"""A container's health check, `healthcheck.py api` or `healthcheck.py worker`: exit code 0 where it can do its work."""

from __future__ import annotations

import socket
import sys
import urllib.request

from redis import Redis

from service.queue.keys import Keys
from service.settings import Settings

_TIMEOUT_S = 5.0


def check_api(settings: Settings) -> str:
    """What the API of this container says.

    Raises:
        OSError: it is not ready, or does not answer.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/health/ready", timeout=_TIMEOUT_S) as answer:
        return str(answer.status)


def check_worker(settings: Settings) -> str:
    """The workers of this container that the queue knows as alive; one that hangs lets its registration lapse.

    Raises:
        OSError: there is none.
        redis.RedisError: the queue does not answer.
    """
    keys = Keys(settings.redis_namespace)
    host = socket.gethostname()
    with Redis.from_url(settings.redis_url or "", decode_responses=True, socket_timeout=_TIMEOUT_S) as queue:
        mine = [worker for worker in queue.smembers(keys.workers) if worker.rpartition("-")[0] == host]
        alive = [worker for worker in mine if queue.exists(keys.worker(worker))]
    if not alive:
        raise OSError(f"no worker of {host} is registered with the queue")
    return ", ".join(alive)


if __name__ == "__main__":
    checks = {"api": check_api, "worker": check_worker}
    try:
        print(checks[sys.argv[1]](Settings()))
    except Exception as error:
        sys.exit(f"unhealthy: {error}")
