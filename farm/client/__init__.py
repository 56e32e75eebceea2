"""The Python client: the public HTTP API, and nothing that only the farm's own machine has."""

from __future__ import annotations

from farm.client.aio import AsyncFarm, AsyncSubmitted
from farm.client.errors import (
    ApiError,
    Corrupted,
    FarmClientError,
    FieldError,
    JobFailed,
    ServerProblem,
    Unreachable,
    WaitedTooLong,
)
from farm.client.farm import Farm, Submitted
from farm.client.values import (
    Attempt,
    Batch,
    Deletion,
    Delivery,
    DryRun,
    Endpoint,
    EndpointSecret,
    Event,
    File,
    Job,
    JobError,
    Key,
    Model,
    Output,
    Progress,
    Rendered,
    Result,
    Worker,
)

__all__ = [
    "ApiError",
    "AsyncFarm",
    "AsyncSubmitted",
    "Attempt",
    "Batch",
    "Corrupted",
    "Deletion",
    "Delivery",
    "DryRun",
    "Endpoint",
    "EndpointSecret",
    "Event",
    "Farm",
    "FarmClientError",
    "FieldError",
    "File",
    "Job",
    "JobError",
    "JobFailed",
    "Key",
    "Model",
    "Output",
    "Progress",
    "Rendered",
    "Result",
    "ServerProblem",
    "Submitted",
    "Unreachable",
    "WaitedTooLong",
    "Worker",
]
