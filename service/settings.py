"""Every setting of the service: an `EBM_*` environment variable each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Read once at start-up. `ebm config` lists them with their values."""

    model_config = SettingsConfigDict(env_prefix="EBM_", extra="ignore")

    models_dir: Path = Field(Path("checkpoints"), description="Folder of checkpoints, {name}/{version}/ each.")
    data_dir: Path = Field(
        Path("ebm-data"),
        description="Folder for job files and the embedded server's data. API and workers share it.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

    redis_url: str | None = Field(
        None, description="Redis or Valkey for the jobs. Unset: a private embedded server in the data folder."
    )
    redis_namespace: str = Field("ebm", pattern=r"^[A-Za-z0-9_-]+$", description="Prefix of every key.")
    embedded_worker: bool = Field(True, description="Whether `ebm serve` runs a worker process of its own.")

    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="Comma-separated bearer keys. None: loopback only, no authorization."
    )
    allow_unauthenticated: bool = Field(
        False,
        description="Listen beyond loopback without keys (a container whose port is published on the host's loopback).",
    )

    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body, after decompression.")
    max_rows: int = Field(100_000, ge=1, description="Most rows in one synchronous request.")
    max_complete_sweeps: int = Field(
        2_000_000, ge=1, description="Most chain-sweeps (rows x samples x sweeps) a synchronous completion may cost."
    )
    max_job_chains: int = Field(100_000, ge=1, description="Most chains in one job.")
    max_job_result_bytes: int = Field(4 * 2**30, ge=1, description="Largest result of one job.")
    queue_limit: int = Field(1000, ge=1, description="Most jobs waiting for one model.")
    result_ttl_s: float = Field(7 * 86400.0, gt=0, description="Seconds that a finished job's result is kept.")
    idempotency_ttl_s: float = Field(86400.0, gt=0, description="Seconds that an Idempotency-Key is remembered.")

    slots: int = Field(256, ge=64, multiple_of=64, description="Chains that a worker advances together.")
    block_sweeps: int = Field(20, ge=1, description="Most sweeps between two scheduling decisions.")
    lease_s: float = Field(
        5.0, gt=0, description="Seconds without a heartbeat after which a job goes to another worker."
    )
    stall_s: float = Field(
        120.0, gt=0, description="Seconds without any progress after which a worker stops its heartbeats."
    )
    checkpoint_s: float = Field(2.0, gt=0, description="Seconds between two checkpoints of a running job.")
    max_crashes: int = Field(3, ge=1, description="Crashes without progress after which a job fails.")
    threads: int = Field(1, ge=1, description="Compute threads of one process.")
    log_level: str = Field("info", description="debug, info, warning or error.")
    log_json: bool = Field(False, description="Logs as JSON lines.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
