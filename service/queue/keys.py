"""The names of the queue's keys, and its scripts."""

from __future__ import annotations

import hashlib
from importlib.resources import files


class Keys:
    """Keys of one namespace. All share the hash tag `{namespace}`, hence one slot of a cluster."""

    def __init__(self, namespace: str) -> None:
        self.prefix = "{" + namespace + "}:"
        self.lease = self.prefix + "lease"
        self.seq = self.prefix + "seq"
        self.jobs = self.prefix + "jobs"
        self.models = self.prefix + "models"
        self.expiry = self.prefix + "exp"
        self.workers = self.prefix + "workers"
        self.control = self.prefix + "ctl"

    def job(self, job_id: str) -> str:
        """HASH: the job itself."""
        return f"{self.prefix}job:{job_id}"

    def pending(self, model: str) -> str:
        """ZSET: jobs that wait for the model."""
        return f"{self.prefix}pend:{model}"

    def mark(self, model: str) -> str:
        """ZSET of at most one member: some job waits for the model."""
        return f"{self.prefix}mark:{model}"

    def events(self, job_id: str) -> str:
        """STREAM: what happened to the job."""
        return f"{self.prefix}ev:{job_id}"

    def jobs_of(self, owner: str) -> str:
        """ZSET: the owner's jobs by sequence number."""
        return f"{self.prefix}jobs:{owner}"

    def idempotency(self, owner: str, key: str) -> str:
        """STRING: the job that the owner's idempotency key stands for. Hashed, as clients choose its length."""
        return f"{self.prefix}idem:{hashlib.sha256(f'{owner} {key}'.encode()).hexdigest()}"

    def worker(self, worker_id: str) -> str:
        """STRING: what a live worker says of itself."""
        return f"{self.prefix}w:{worker_id}"


def script(name: str) -> str:
    """The Lua source of a script, with what all of them share before it."""
    folder = files(__package__)
    return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("prelude", name))
