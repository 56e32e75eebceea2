"""The one settings object, read from ``FARM_*`` environment variables."""

from __future__ import annotations

import ipaddress
import re
import ssl
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Settings(BaseSettings):
    """What a process of the farm needs to know from outside. Frozen; times are in seconds, sizes in bytes or pixels."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,  # a compose file cannot leave a variable out, only empty
    )

    # the servers
    database_url: SecretStr | None = None  #: ``postgresql://user:password@host:port/name``
    #: the same database without a pooler, for LISTEN and locks; None: `database_url` is direct, or a pooler by session
    database_direct_url: SecretStr | None = None
    redis_url: SecretStr | None = None  #: ``redis://:password@host:port/0``
    s3_endpoint_url: str | None = None  #: None: the SDK's own default (AWS)
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"
    s3_bucket: str = "farm"
    s3_addressing: Literal["path", "virtual"] = "path"  #: whether the bucket stands in the path or in the host's name
    s3_checksums: bool = True  #: whether the server takes ``x-amz-checksum-sha256``; else the farm keeps its own
    s3_public_url: str | None = None  #: the endpoint as clients reach it, when it differs from the workers' one
    ca_file: Path | None = None  #: PEM certificates to trust beside the system's, for all servers of the farm

    # where things lie
    data_dir: Path = Path(".farm")  #: logs, embedded servers, the worker's scratch space
    models_file: Path | None = None  #: a models.toml; None: the built-in registry
    model_cache_dir: Path | None = None  #: files of models that a host's workers fetched; None: in `data_dir`
    #: the most that those files take; what was not used for the longest time is removed first
    model_cache_bytes: int = Field(200 * 10**9, gt=0)

    # the API
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    #: after SIGTERM: how long the API still serves and says that it stops, so that load balancers use another one
    api_drain_seconds: float = Field(0, ge=0, le=300)
    #: origins whose pages may call the API, with commas between: ``https://studio.example.com``
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    trusted_proxies: str = "127.0.0.1"  #: addresses and networks whose X-Forwarded-* headers count; ``*``: all
    rate_limit: float = Field(0, ge=0, le=1e6)  #: requests a second of one tenant to one API process; 0: no limit
    rate_burst: int = Field(100, ge=1)  #: requests that may come at once before that limit is felt
    presign_seconds: int = Field(3600, ge=1, le=7 * 24 * 3600)  #: how long an output's URL works
    max_wait_seconds: float = 60  #: the most that ``Prefer: wait`` is honoured for
    max_input_bytes: int = 32 * 2**20  #: one input file, encoded
    max_bulk_bytes: int = 4 * 2**30  #: one bulk request, which is never held in memory
    max_body_memory_bytes: int = Field(256 * 2**20, ge=2**20)  #: of all bodies in one API process
    max_body_disk_bytes: int = Field(8 * 2**30, ge=2**20)  #: of all bodies in its temporary files
    max_input_pixels: int = 4096 * 4096  #: one input image, or one frame of a clip, by its header
    max_decode_pixels: int = Field(4096 * 4096, ge=1)  #: of all images and frames that a process decodes at once
    max_decode_processes: int = Field(2, ge=1)  #: clips and sounds that the API looks into at once
    max_input_seconds: float = Field(600, gt=0)  #: one input clip or sound
    max_input_frames: int = Field(4096, ge=1)  #: one input clip
    max_input_clip_pixels: int = Field(2**28, ge=1)  #: all frames of one input clip, which a worker holds at once
    max_input_samples: int = Field(2**26, ge=1)  #: one input sound, over all its channels
    decode_wait_seconds: float = Field(30, gt=0)  #: how long a decode waits for others before its request is refused
    #: how long a foreign client waits for images before it is told to ask again; less than their own 600 seconds
    compat_wait_seconds: float = Field(570, gt=0)
    compat_fal: bool = False  #: whether fal's clients are answered

    # secrets
    secret_key: SecretStr | None = None  #: encrypts webhooks' secrets; the newest of several, with commas, first

    # workers on other machines
    #: the database with the role that workers get who join over HTTP; None: nobody joins
    join_database_url: SecretStr | None = None
    join_redis_url: SecretStr | None = None  #: the same of Redis; None: `redis_url`
    join_s3_endpoint_url: str | None = None  #: S3 as other machines reach it; None: `s3_endpoint_url`
    join_s3_access_key: str | None = None  #: the same of S3; None: `s3_access_key`
    join_s3_secret_key: SecretStr | None = None
    join_host: str | None = None  #: how other machines reach the servers that this one reaches on loopback

    # dispatch and leases
    dispatch_lease_seconds: float = Field(30, gt=0)  #: a dispatched job that was not claimed in this time is requeued
    run_lease_seconds: float = Field(30, gt=0)  #: a claimed job whose worker is silent for this long is requeued
    heartbeat_seconds: float = Field(5, gt=0)  #: how often a worker renews its leases
    prefetch: int = Field(2, ge=0)  #: jobs that may wait at a worker beside those that its device renders
    #: to how many a worker raises that, by what it measures, so that its device does not wait for far servers
    max_prefetch: int = Field(32, ge=0, le=256)
    max_attempts: int = Field(3, ge=1)

    # the worker
    #: which device this worker owns: an index, a GPU's UUID, ``cpu`` or ``mps``; `farm worker` takes lists and ``all``
    device: str | None = None
    worker_tags: Annotated[tuple[str, ...], NoDecode] = ()  #: with commas between; models with `tags` need them all
    worker_host: str | None = None  #: the first half of the worker's name; None: this machine's host name
    worker_alive_file: Path | None = None  #: touched twice a second while the process runs, for liveness probes
    torch_threads: int = Field(0, ge=0)  #: of one worker; 0: one for each core that it may use
    batching: Literal["on", "off"] = "on"  #: several jobs on a device at once, which share forwards
    batch_rows: int = Field(16, ge=2)  #: tried for one shared forward, on a device whose memory is not measured
    #: main memory for models that leave a CUDA device, so that they come back quickly; 0: none
    cpu_model_cache_bytes: int = Field(0, ge=0)
    compile: bool = False  #: torch.compile of what a denoiser repeats: the first job of a model waits for it
    #: on the device between two checkpoints of a job, from which another worker goes on; 0: none are written
    checkpoint_seconds: float = Field(10, ge=0)
    drain_seconds: float = Field(25, ge=0)  #: at a clean end: how long jobs on the device may take to finish
    step_timeout_seconds: float = Field(300, gt=0)  #: a device without a denoising step for this long is given up
    load_timeout_seconds: float = Field(1800, gt=0)  #: the same while a model is loaded, which may be a download
    #: a worker that takes no message for this long, while some wait, is restarted
    consumer_stall_seconds: float = Field(45, gt=0)
    #: how long a finished image waits for a storage that does not answer
    storage_retry_seconds: float = Field(300, gt=0)

    # webhooks and inputs by URL
    webhook_allow: Annotated[tuple[Network, ...], NoDecode] = ()  #: private networks that may be reached nevertheless
    webhook_allow_http: bool = False
    #: ports of this machine's loopback that webhooks and input URLs never reach, whatever `webhook_allow` says
    own_ports: Annotated[frozenset[int], NoDecode] = frozenset()
    max_endpoints: int = Field(100, ge=1)  #: webhook endpoints of one tenant, beside those of jobs' own webhooks
    max_webhook_urls: int = Field(1_000, ge=1)  #: different ``webhook`` URLs in jobs of one tenant

    # metrics: each process serves its own; a port of 0 turns them off
    metrics_host: str = "127.0.0.1"  #: the metrics have no authentication
    metrics_api_port: int = Field(9461, ge=0, le=65535)
    metrics_dispatcher_port: int = Field(9462, ge=0, le=65535)
    metrics_deliverer_port: int = Field(9463, ge=0, le=65535)
    metrics_worker_port: int = Field(9464, ge=0, le=65535)  #: give each worker of a machine its own

    flower_url: str | None = None  #: where the dashboard's menu leads to for Celery's own view; None: nowhere
    otel_endpoint: str | None = None  #: an OpenTelemetry collector (``http://host:4318``) for traces; None: no traces
    log_json: bool = False

    @field_validator("ca_file")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        try:
            ssl.create_default_context().load_verify_locations(value)
        except OSError as error:  # ssl.SSLError, too
            raise ValueError(f"is no file of PEM certificates ({error.strerror})") from error
        return value.absolute()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.database_direct_url is not None and self.database_url is None:
            raise ValueError("FARM_DATABASE_DIRECT_URL is set and FARM_DATABASE_URL is not: set both")
        return self

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        found = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        for origin in found if isinstance(found, tuple) else ():
            if not re.fullmatch(r"https?://[^/\s*]+", str(origin)):
                raise ValueError(f"{origin!r} is no origin: write scheme and host, as in https://studio.example.com")
        return found

    @field_validator("own_ports", mode="before")
    @classmethod
    def _ports(cls, value: object) -> object:
        return frozenset(int(part) for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("worker_tags", mode="before")
    @classmethod
    def _tags(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("webhook_allow", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
        return value


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
