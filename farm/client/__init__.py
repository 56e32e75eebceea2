"""The Python client: the public HTTP API, and nothing that only the farm's own machine has."""

from __future__ import annotations

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
from farm.client.farm import Farm
from farm.client.values import (
    Attempt,
    Batch,
    Delivery,
    DryRun,
    Endpoint,
    EndpointSecret,
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
    "Attempt",
    "Batch",
    "Corrupted",
    "Delivery",
    "DryRun",
    "Endpoint",
    "EndpointSecret",
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
    "Unreachable",
    "WaitedTooLong",
    "Worker",
]
