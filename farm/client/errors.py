"""What can go wrong between a client and a farm.

FarmClientError (a FarmError)
├── Unreachable         nobody answers at the URL, after all retries
├── ApiError            the farm answered with a problem (RFC 9457); has its status, title, detail and fields
│   └── ServerProblem   … of its own (5xx, 429): trying again later helps
├── JobFailed           the job that was waited for failed or was canceled
├── WaitedTooLong       the job did not finish in time; it goes on
└── Corrupted           a downloaded file is not the one that the farm recorded
"""

from __future__ import annotations

import json
from typing import Any

from farm.client.models import Batch, FieldError, Job, Model
from farm.errors import FarmError, Unavailable

_SHOWN = 20  #: refused fields that an error's text names


class FarmClientError(FarmError):
    """Base of all errors that the client raises on purpose."""


class Unreachable(FarmClientError, Unavailable):
    """Nobody answers at the farm's URL, or at that of an output."""


class ApiError(FarmClientError):
    """The farm answered, and said no."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        error_count: int | None = None,
        error_file: str | None = None,
    ) -> None:
        self.status = status  #: the HTTP status
        self.title = title
        self.detail = detail
        self.errors = errors  #: the fields that were refused
        self.error_count = len(errors) if error_count is None else error_count  #: in all
        self.error_file = error_file  #: URL of a file with all of them, when they are more
        shown = "; ".join(map(str, errors[:_SHOWN]))
        if shown and self.error_count > _SHOWN:
            shown += f"; and {self.error_count - _SHOWN:,} more"
        super().__init__(shown or detail or title or f"the farm answered {status}")

    @classmethod
    def of(cls, status: int, body: bytes) -> ApiError:
        """The error that an answer describes, also when a proxy answered instead of the farm."""
        kind = ServerProblem if status >= 500 or status == 429 else ApiError
        try:
            problem: Any = json.loads(body)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            return kind(status, "", f"the farm's address answered {status} without saying why")
        return kind(
            status,
            str(problem.get("title") or ""),
            str(problem.get("detail") or ""),
            tuple(
                FieldError(str(one.get("field", "")), one.get("value"), str(one.get("message", "")), one.get("line"))
                for one in problem.get("errors") or ()
                if isinstance(one, dict)
            ),
            problem.get("error_count"),
            problem.get("error_file"),
        )


class ServerProblem(ApiError, Unavailable):
    """The farm answered that it cannot do it now."""


class JobFailed(FarmClientError):
    """The job has finished and has no images."""

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = f": {job.error.message} ({job.error.code})" if job.error else ""
        super().__init__(f"{job.id} {job.state}{reason}")


class WaitedTooLong(FarmClientError):
    """The job, batch or check of a model has not finished within the timeout; it goes on."""

    def __init__(self, job: Job | Batch | Model, seconds: float) -> None:
        self.job = job
        super().__init__(f"{job.id} has not ended after {seconds:g} s (it is {job.state}); it is still running")


class Corrupted(FarmClientError):
    """The bytes that arrived are not those that the farm recorded."""
