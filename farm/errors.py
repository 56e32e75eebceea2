"""Every error that the farm raises on purpose.

    FarmError
    ├── BadInput            the caller's mistake: names the field, the value and what is allowed
    │   ├── BatchRefused    lines of a bulk request; has the first problems and a file with all of them
    │   ├── InputRefused    an image or a URL that may not be used
    │   ├── TargetRefused   an address that the farm does not connect to (farm/egress/guard.py)
    │   └── SignatureRefused  a webhook that its secret did not sign (farm/webhooks/signature.py)
    ├── NotFound            not found, or not this tenant's
    ├── Conflict            the thing is in a state that does not allow it
    ├── Unauthorized        no key, or not a live one
    ├── Forbidden           the API key may not do this
    │   └── ScopeMissing    it lacks a scope
    ├── QuotaExceeded       the tenant's own limit
    │   └── DecodersBusy    the process decodes as many pixels as it may
    ├── LeaseLost           a fenced write found another epoch: stop, write nothing
    ├── Unavailable         a server that the farm leans on does not answer
    │   ├── DatabaseUnavailable
    │   ├── BrokerUnavailable
    │   └── StorageUnavailable
    ├── DiskFull            no room for temporary files on this machine
    ├── RenderError         a job's own failure, with a stable code
    │   ├── ModelUnavailable
    │   ├── OutOfMemory
    │   ├── DeviceFailed
    │   ├── InputUnavailable
    │   ├── UnsuitableInput
    │   ├── UnsupportedParameter
    │   ├── InvalidParameters
    │   ├── MissingPackage
    │   ├── NanOutput
    │   ├── SuspiciousOutput
    │   └── JobCanceled
    └── SetupError          this machine cannot run what was asked; the message says what to do
        ├── SchemaOutdated  the database was not migrated to this release
        └── MissingExtra    a package of an extra is not installed

HTTP status codes are the API's business (``farm/api/problems.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class FarmError(Exception):
    """Base of all errors raised on purpose; its text is one sentence for a person."""


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with one field of a request."""

    field: str  #: dotted path, as the client wrote it: ``inputs.mask``
    value: object  #: what was given, shortened
    message: str  #: what is allowed, as one sentence
    line: int | None = None  #: of a bulk body, 1-based


class BadInput(FarmError):
    """The request cannot be accepted; nothing was stored."""

    def __init__(self, *problems: FieldProblem) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in problems))

    @classmethod
    def of(cls, field: str, value: object, message: str) -> BadInput:
        """A refusal of one field."""
        return cls(FieldProblem(field, value, message))


class BatchRefused(BadInput):
    """Lines of a bulk request that cannot be accepted; nothing was stored."""

    def __init__(self, problems: Sequence[FieldProblem], count: int, error_file: str | None) -> None:
        super().__init__(*problems)
        self.count = count  #: problems in all; ``problems`` are the first of them
        self.error_file = error_file  #: URL of a file with all of them, when they are more


class InputRefused(BadInput):
    """An image or URL that may not be used as a job's input."""


class NotFound(FarmError):
    """The object does not exist or belongs to another tenant; the response does not say which."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"there is no {kind} {name!r}")


class Conflict(FarmError):
    """The thing is in a state that does not allow what was asked."""


class Unauthorized(FarmError):
    """No API key was given, or it is not a live one."""


class Forbidden(FarmError):
    """The API key is live, but may not do this."""


class ScopeMissing(Forbidden):
    """The API key has none of the scopes that the operation needs."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes
        super().__init__(f"API key lacks the scope {' or '.join(f'`{scope}`' for scope in scopes)}")


class QuotaExceeded(FarmError):
    """The tenant has reached a limit of its own."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after  #: seconds after which trying again may help; None: when jobs have ended
        super().__init__(message)


class DecodersBusy(QuotaExceeded):
    """This process decodes as many pixels as it may hold; trying again later helps."""


class LeaseLost(FarmError):
    """A fenced write changed no row: another epoch owns the job now. Stop, and write nothing."""


class Unavailable(FarmError):
    """A server that the farm leans on does not answer; trying again later helps."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer."""


class BrokerUnavailable(Unavailable):
    """Redis or Valkey does not answer."""


class StorageUnavailable(Unavailable):
    """The S3 endpoint does not answer, or answers with an error of its own."""


class DiskFull(FarmError):
    """This machine's disk has no room for a temporary file."""


class RenderError(FarmError):
    """A job failed for a reason of its own."""

    code = "render_failed"  #: stable, machine-readable; what the API shows as ``error.code``
    retryable = True  #: whether another attempt may help


class ModelUnavailable(RenderError):
    """The model cannot be loaded on this worker."""

    code = "model_unavailable"
    retryable = False


class OutOfMemory(RenderError):
    """The device's memory does not hold this job."""

    code = "out_of_memory"


class DeviceFailed(RenderError):
    """The device of the worker failed, or the process that uses it ended, which may be no fault of the job."""

    code = "device_failed"

    def __init__(self, message: str, *, started: bool) -> None:
        self.started = started  #: whether the device had started the job
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(DeviceFailed, started=self.started), self.args


class InputUnavailable(RenderError):
    """An input image that was accepted is no longer in storage or no longer decodes."""

    code = "input_unavailable"
    retryable = False


class UnsuitableInput(RenderError):
    """An input image decodes, but the pipeline can make nothing of it."""

    code = "unsuitable_input"
    retryable = False


class UnsupportedParameter(RenderError):
    """The job gives a parameter or an input that the model's pipeline does not take."""

    code = "unsupported_parameter"
    retryable = False


class InvalidParameters(RenderError):
    """The pipeline refuses the job's parameters or inputs before its first step, and would in every attempt."""

    code = "invalid_parameters"
    retryable = False


class MissingPackage(RenderError):
    """The pipeline needs a Python package that the worker lacks."""

    code = "missing_package"
    retryable = False


class NanOutput(RenderError):
    """The model's arithmetic overflowed, so there is no image; another attempt would end the same way."""

    code = "nan_output"
    retryable = False


class SuspiciousOutput(RenderError):
    """An output looks wrong, and the job asked to fail then; another attempt would give the same."""

    code = "suspicious_output"
    retryable = False


class JobCanceled(RenderError):
    """The job was canceled while it ran."""

    code = "canceled"
    retryable = False


class SetupError(FarmError):
    """This machine cannot run what was asked; the message says what to do about it."""


class SchemaOutdated(SetupError):
    """The database's schema is older than what this release reads and writes."""


class MissingExtra(SetupError):
    """A package that an optional part of the farm needs is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}: pip install 'diffusion-render-farm[{extra}]'")
