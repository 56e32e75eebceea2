"""The Python client: the public HTTP API, and nothing that only the farm's own machine has."""

from __future__ import annotations

from farm.api_types import BatchDefaults, JobFilters, JobParameters
from farm.client.async_client import AsyncFarm, AsyncSubmitted
from farm.client.client import Farm, Submitted
from farm.client.errors import (
    ApiError,
    Corrupted,
    FarmClientError,
    JobFailed,
    ServerProblem,
    Unreachable,
    WaitedTooLong,
)
from farm.client.models import (
    Artifact,
    Batch,
    CancelReport,
    Deletion,
    Delivery,
    DeliveryAttempt,
    DryRun,
    Endpoint,
    EndpointSecret,
    Event,
    FieldError,
    File,
    Job,
    JobError,
    JoinToken,
    Key,
    Model,
    Output,
    Progress,
    Rendered,
    Result,
    RetryReport,
    Worker,
)
from farm.client.notebook import ContactSheet
from farm.webhooks.signature import SignatureRefused
from farm.webhooks.signature import verify as verify_webhook

__all__ = [
    "ApiError",
    "Artifact",
    "AsyncFarm",
    "AsyncSubmitted",
    "Batch",
    "BatchDefaults",
    "CancelReport",
    "ContactSheet",
    "Corrupted",
    "Deletion",
    "Delivery",
    "DeliveryAttempt",
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
    "JobFilters",
    "JobParameters",
    "JoinToken",
    "Key",
    "Model",
    "Output",
    "Progress",
    "Rendered",
    "Result",
    "RetryReport",
    "ServerProblem",
    "SignatureRefused",
    "Submitted",
    "Unreachable",
    "WaitedTooLong",
    "Worker",
    "verify_webhook",
]
