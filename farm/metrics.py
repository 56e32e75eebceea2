"""What the farm's processes count, in Prometheus' conventions: base units, and no ids of jobs or tenants in labels.

Each process serves its own numbers on a port of its own, on loopback unless ``FARM_METRICS_HOST`` says otherwise: the
API's port never shows them, so no stranger reads who renders what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from farm.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = structlog.stdlib.get_logger()

_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)

# -- the API ---------------------------------------------------------------------------------------------------------
REQUEST_SECONDS: Final = Histogram(
    "farm_http_request_duration_seconds",
    "HTTP requests, by route.",
    ["method", "route", "status"],
    buckets=_QUICK,
)

SERVER_UP: Final = Gauge(
    "farm_server_up", "1 while a server that the farm leans on takes writes, 0 while it does not.", ["server"]
)

# -- the dispatcher --------------------------------------------------------------------------------------------------
DISPATCHER_LEADER: Final = Gauge("farm_dispatcher_leader", "1 while this dispatcher leads, 0 while it stands by.")
ROUND_SECONDS: Final = Histogram(
    "farm_dispatcher_round_duration_seconds", "One round: read the state, decide, dispatch.", buckets=_QUICK
)
LAST_ROUND_TIMESTAMP: Final = Gauge(
    "farm_dispatcher_last_round_timestamp_seconds", "When this dispatcher last ended a round: its age is the lag."
)
JOBS_DISPATCHED: Final = Counter("farm_jobs_dispatched_total", "Jobs dispatched to workers.")
LEASES_EXPIRED: Final = Counter(
    "farm_leases_expired_total", "Jobs requeued because their lease ran out or their worker was gone."
)

# -- the worker ------------------------------------------------------------------------------------------------------
STAGE_SECONDS: Final = Histogram(
    "farm_job_stage_duration_seconds",
    "Stages of jobs: wait (accepted to claimed), inputs, denoise (with the wait for a device), encode, upload, commit.",
    ["stage"],
    buckets=_LONG,
)
GROUP_COMMIT_JOBS: Final = Histogram(
    "farm_group_commit_jobs", "Claims and successes that shared a transaction.", buckets=(1, 2, 4, 8, 16, 32)
)
JOB_ATTEMPTS: Final = Counter("farm_job_attempts_total", "Attempts, by how they ended.", ["outcome", "model"])
OUTPUTS: Final = Counter("farm_outputs_total", "Images of jobs that succeeded.", ["model"])
SUSPICIOUS_OUTPUTS: Final = Counter(
    "farm_suspicious_outputs_total", "Outputs that look wrong: uniform, saturated or silent.", ["model", "reason"]
)
OUTPUTS_SPOOLED: Final = Counter(
    "farm_outputs_spooled_total",
    "Jobs whose outputs waited on the worker's disk for the storage.",
)
FORWARD_ROWS: Final = Histogram(
    "farm_forward_rows", "Rows of one shared forward, without padding.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
FORWARD_SECONDS: Final = Histogram(
    "farm_forward_duration_seconds", "Forwards of a device, alone or shared, as the host sees them.", buckets=_QUICK
)
FORWARD_GAP_SECONDS: Final = Histogram(
    "farm_forward_gap_seconds",
    "From the end of a forward to the next one, while jobs are on the device.",
    buckets=_QUICK,
)
FORWARD_SPLITS: Final = Counter("farm_forward_splits_total", "Shared forwards that ran out of memory and were split.")
LOW_MEMORY_RENDERS: Final = Counter(
    "farm_low_memory_renders_total", "Jobs that did not fit the device's memory and were rendered again with less."
)
ENCODER_CALLS: Final = Counter(
    "farm_encoder_calls_total", "Calls of text and image encoders: computed, or reused from an equal call.", ["outcome"]
)
CHECKPOINTS: Final = Counter("farm_checkpoints_total", "Checkpoints of running jobs that were stored.")
CHECKPOINT_BYTES: Final = Counter("farm_checkpoint_bytes_total", "Bytes of the checkpoints that were stored.")
CHECKPOINTS_VOID: Final = Counter(
    "farm_checkpoints_void_total",
    "Checkpoints that did not fit the attempt that was to go on from them, which began anew.",
)
STEPS_RESUMED: Final = Counter(
    "farm_steps_resumed_total",
    "Denoising steps that attempts took from a checkpoint instead of computing them.",
    ["model"],
)
PREEMPTIONS: Final = Counter("farm_preemptions_total", "Bulk jobs that stepped back for an interactive one.", ["model"])
ENGINE_QUEUE: Final = Gauge("farm_engine_queue_jobs", "Jobs that wait in the worker for its device.")
MODEL_LOAD_SECONDS: Final = Histogram("farm_model_load_duration_seconds", "Loading a model.", ["model"], buckets=_LONG)
MODEL_COMPILED: Final = Gauge(
    "farm_model_compiled", "1 if the model runs compiled, 0 if FARM_COMPILE asks for that in vain.", ["model"]
)
DEVICE_MEMORY: Final = Gauge("farm_device_memory_bytes", "Memory of the device.")
DEVICE_MEMORY_USED: Final = Gauge("farm_device_memory_used_bytes", "Memory of the device in use, by all processes.")
DEVICE_UTILIZATION: Final = Gauge("farm_device_utilization_ratio", "How much of the time the device computes, 0 to 1.")

DEVICE_POWER: Final = Gauge("farm_device_power_watts", "Power that the device draws.")
DEVICE_TEMPERATURE: Final = Gauge("farm_device_temperature_celsius", "Temperature of the device.")
DEVICE_CLOCK: Final = Gauge("farm_device_clock_hertz", "Clock of the device's multiprocessors.")
DEVICE_THROTTLE_REASONS: Final = Gauge(
    "farm_device_throttle_reasons", "Why the clock is reduced: NVML's bits; 1 is an idle device, 0 is full speed."
)
DEVICE_ECC_ERRORS: Final = Gauge(
    "farm_device_ecc_uncorrected_errors", "Uncorrected errors of the device's memory since its driver was loaded."
)
ALLOCATOR_ALLOCATED: Final = Gauge("farm_allocator_allocated_bytes", "CUDA memory that tensors use.")
ALLOCATOR_RESERVED: Final = Gauge("farm_allocator_reserved_bytes", "CUDA memory that torch keeps for tensors.")
ALLOCATOR_RETRIES: Final = Gauge(
    "farm_allocator_retries", "Allocations that had to free cached memory first, since the worker started."
)
ALLOCATOR_OUT_OF_MEMORY: Final = Gauge(
    "farm_allocator_out_of_memory_errors", "Allocations that failed, since the worker started."
)

#: What the engine's process counts. The worker serves it beside its own.
ENGINE_METRICS: Final[tuple[MetricWrapperBase, ...]] = (
    FORWARD_ROWS,
    FORWARD_SECONDS,
    FORWARD_GAP_SECONDS,
    FORWARD_SPLITS,
    LOW_MEMORY_RENDERS,
    ENCODER_CALLS,
    MODEL_LOAD_SECONDS,
    DEVICE_MEMORY,
    DEVICE_MEMORY_USED,
    DEVICE_UTILIZATION,
    DEVICE_POWER,
    DEVICE_TEMPERATURE,
    DEVICE_CLOCK,
    DEVICE_THROTTLE_REASONS,
    DEVICE_ECC_ERRORS,
    ALLOCATOR_ALLOCATED,
    ALLOCATOR_RESERVED,
    ALLOCATOR_RETRIES,
    ALLOCATOR_OUT_OF_MEMORY,
)

# -- the deliverer ---------------------------------------------------------------------------------------------------
WEBHOOK_ATTEMPT_SECONDS: Final = Histogram(
    "farm_webhook_attempt_duration_seconds", "POSTs of webhooks, by how they ended.", ["outcome"], buckets=_QUICK
)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe how long the block takes, also when it raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        histogram.observe(time.perf_counter() - started)


def serve(settings: Settings, port: int, *collectors: Collector) -> None:
    """Serve ``/metrics`` from a thread of this process; 0: do not.

    A port that is taken is no reason to stop a service: it goes on without, and says so.
    """
    if not port:
        return
    for one in collectors:
        REGISTRY.register(one)
    try:
        start_http_server(port, addr=settings.metrics_host)
    except OSError as error:
        log.warning(
            "no metrics", action="metrics_unserved", host=settings.metrics_host, port=port, error=error.strerror
        )
    else:
        log.info("metrics", action="metrics_served", host=settings.metrics_host, port=port)


def names_of(metric: MetricWrapperBase) -> set[str]:
    """The names of a metric's families."""
    return {family.name for family in metric.describe()}


def serve_engine(collector: Collector) -> None:
    """Let ``/metrics`` show the engine's metrics as a collector gives them, in place of this process's own."""
    for one in ENGINE_METRICS:
        REGISTRY.unregister(one)
    REGISTRY.register(collector)
