"""One action on many jobs: those that a request names, or all that match its filter."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from farm.api.auth import Submitter
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.domain.job import JobFilter, Selection
from farm.fields import NoNul, Storable
from farm.services import bulk_actions as services

router: Final = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute)

MOST_NAMED: Final = 10_000  #: jobs that one request names

JobId = Annotated[str, StringConstraints(pattern=ids.pattern(ids.JOB))]
Text = Annotated[str, StringConstraints(max_length=200), Storable, NoNul]


class SelectionRequest(BaseModel):
    """`ids` or `filter`: the selected jobs."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"oneOf": [{"required": ["ids"]}, {"required": ["filter"]}]},
    )

    ids: Annotated[list[JobId], Field(min_length=1, max_length=MOST_NAMED)] | SkipJsonSchema[None] = None
    filter: JobFilter | SkipJsonSchema[None] = Field(None, description="`{}` is every job of the tenant.")
    dry_run: bool = Field(False, strict=True, description="Only count; change nothing.")

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, given: Any) -> Any:
        for name in ("ids", "filter"):
            if isinstance(given, dict) and given.get(name, name) is None:
                raise ValueError(f"{name} must not be null; leave it out")
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        return self

    def selection(self) -> Selection:
        """What is meant."""
        if self.ids is not None:
            return Selection(job_ids=tuple(self.ids))
        return Selection(wanted=self.filter or JobFilter())


class CancelReport(Schema):
    """The result of canceling many jobs."""

    matched: int = Field(description="Selected jobs that had not finished.")
    canceled: int = Field(description="Those that waited; they are canceled.")
    stopping: int = Field(description="Those that ran; they stop at their next denoising step.")
    complete: bool = Field(description="false: the time was not enough for all of them; send the request again.")


class RetryReport(Schema):
    """The result of retrying many jobs."""

    matched: int = Field(description="Selected jobs that failed or were canceled and were not retried since.")
    submitted: int = Field(description="New jobs; each names its old one in `retry_of`.")


@router.post("/cancel", summary="Cancel many jobs", responses=responses(*ALWAYS, 413, 415))
def cancel_jobs(context: Context, key: Submitter, request: SelectionRequest) -> CancelReport:
    """Cancel the selected jobs: waiting ones at once, running ones at the next denoising step.

    Finished jobs stay as they are, and ids that are not the tenant's are ignored.
    """
    selection = request.selection()
    matched = services.count_cancelable(context, key.tenant_id, selection)
    if request.dry_run or not matched:
        return CancelReport(matched=matched, canceled=0, stopping=0, complete=True)
    done = services.cancel(context, key.tenant_id, selection)
    return CancelReport(matched=matched, canceled=done.canceled, stopping=done.stopping, complete=done.complete)


@router.post("/retry", summary="Retry many jobs", responses=responses(*ALWAYS, 413, 415, 429))
def retry_jobs(context: Context, key: Submitter, request: SelectionRequest) -> RetryReport:
    """Submit the selected failed and canceled jobs again, as new jobs. All of them are queued, or none.

    A job that was already retried is ignored, so a repeated request creates no duplicates.
    """
    selection = request.selection()
    if request.dry_run:
        return RetryReport(matched=services.count_retryable(context, key.tenant_id, selection), submitted=0)
    submitted = services.retry(context, key.tenant_id, selection)
    return RetryReport(matched=submitted, submitted=submitted)
