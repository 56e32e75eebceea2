"""Finding outputs again: search, stars, tags and collections, one download of many, and deleting."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from starlette.responses import Response, StreamingResponse

from farm.api.auth import Reader, Submitter
from farm.api.dependencies import Context
from farm.api.jobs import JobId
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import OutputSchema, Schema, output_schema
from farm.domain import ids
from farm.domain.gallery import GalleryOutput, LabelKind, LabelName, OutputFilter, OutputPlace
from farm.objects.storage import Storage
from farm.services import gallery as services
from farm.services.gallery import MAX_PLACES
from farm.settings import Settings
from farm.tasks import TaskName

router: Final = APIRouter(tags=["outputs"], route_class=AuthenticatedRoute)

MAX_NAMES: Final = 20  #: tags or collections of one request
Names = Annotated[list[LabelName], Field(max_length=MAX_NAMES)]


class FoundOutput(OutputSchema):
    """An output with what it is found by."""

    job_id: str
    prompt: str
    model: str
    task: TaskName
    batch_id: str | None
    custom_id: str | None
    job_metadata: dict[str, str] = Field(description="The `metadata` of its job.")
    star: bool
    tags: list[str]
    collections: list[str]
    created_at: datetime = Field(description="When its job was submitted.")
    finished_at: datetime | None

    @classmethod
    def found(cls, one: GalleryOutput, storage: Storage, settings: Settings) -> Self:
        """The output, with a fresh URL."""
        return cls(
            **output_schema(one.job_id, one.output, storage, settings).model_dump(),
            job_id=one.job_id,
            prompt=one.prompt,
            model=one.model,
            task=one.task,
            batch_id=one.batch_id,
            custom_id=one.custom_id,
            job_metadata=dict(one.job_metadata),
            star=one.starred,
            tags=list(one.tags),
            collections=list(one.collections),
            created_at=one.created_at,
            finished_at=one.finished_at,
        )


class FoundOutputPage(Schema):
    """Some of the tenant's outputs, newest job first."""

    data: list[FoundOutput]
    next: str | None = Field(
        description="The `cursor` of the next page; null on the last one. A page may be empty and have a next one."
    )


class OutputQuery(OutputFilter):
    """Which outputs, and which page of them."""

    limit: int = Field(50, ge=1, le=200)
    cursor: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None, description="The `next` of the page before.", json_schema_extra={"pattern": "^[A-Za-z0-9_-]{24}$"}
    )


class PlaceSchema(Schema):
    """Which output."""

    job_id: Annotated[str, StringConstraints(pattern=ids.pattern(ids.JOB))]
    index: int = Field(0, ge=0, le=2**15 - 1, description="Its position among the job's outputs, from 0.")


Places = Annotated[list[PlaceSchema], Field(min_length=1, max_length=MAX_PLACES)]


class OutputChoice(Schema):
    """Several outputs."""

    outputs: Places


class LabelChange(OutputChoice):
    """What to change on several outputs."""

    star: bool | None = Field(None, description="true: give them a star; false: take it away.")
    add_tags: Names = Field([])
    remove_tags: Names = Field([])
    add_to: Names = Field([], description="Collections; one that is new begins with these outputs.")
    remove_from: Names = Field([], description="Collections; one without outputs is gone.")


class LabelSchema(Schema):
    """A tag or a collection."""

    kind: LabelKind
    name: str
    outputs: int = Field(description="How many outputs have it.")


class LabelList(Schema):
    """Tags and collections, by name."""

    data: list[LabelSchema]


class OutputDeletion(Schema):
    """What was deleted."""

    deleted: int = Field(description="Outputs.")


def _places(given: list[PlaceSchema]) -> list[OutputPlace]:
    return [OutputPlace(one.job_id, one.index) for one in given]


@router.get("/v1/outputs", summary="Find outputs", responses=responses(*ALWAYS))
def list_outputs(context: Context, key: Reader, query: Annotated[OutputQuery, Query()]) -> FoundOutputPage:
    """The tenant's outputs that match, newest job first, with fresh URLs."""
    found, following = services.page(context, key.tenant_id, query, query.cursor, query.limit)
    return FoundOutputPage(
        data=[FoundOutput.found(one, context.storage, context.settings) for one in found], next=following
    )


@router.get("/v1/outputs/labels", summary="List tags and collections", responses=responses(*ALWAYS))
def list_labels(context: Context, key: Reader) -> LabelList:
    """The tenant's tags and collections, with how many outputs each has."""
    found = services.labels(context, key.tenant_id)
    return LabelList(data=[LabelSchema(kind=one.kind, name=one.name, outputs=one.outputs) for one in found])


@router.post("/v1/outputs/labels", summary="Star, tag and collect outputs", responses=responses(*ALWAYS, 404, 413, 415))
def change_labels(context: Context, key: Submitter, request: LabelChange) -> FoundOutputPage:
    """Change stars, tags and collections of several outputs: all of them, or none. What is so already stays so."""
    add = [(LabelKind.TAG, name) for name in request.add_tags]
    add += [(LabelKind.COLLECTION, name) for name in request.add_to]
    remove = [(LabelKind.TAG, name) for name in request.remove_tags]
    remove += [(LabelKind.COLLECTION, name) for name in request.remove_from]
    if request.star is not None:
        (add if request.star else remove).append((LabelKind.STAR, ""))
    found = services.change_labels(context, key.tenant_id, _places(request.outputs), add=add, remove=remove)
    return FoundOutputPage(data=[FoundOutput.found(one, context.storage, context.settings) for one in found], next=None)


_ZIP: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A zip file.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/v1/outputs/archive",
    summary="Download outputs as a zip",
    response_class=StreamingResponse,
    responses={**_ZIP, **responses(*ALWAYS, 404, 413, 415)},
)
def download_outputs(context: Context, key: Reader, request: OutputChoice) -> Response:
    """Several outputs as one zip file, in the order given."""
    return zipped(context, services.many(context, key.tenant_id, _places(request.outputs)))


def zipped(context: Context, found: list[GalleryOutput]) -> StreamingResponse:
    """Outputs as a zip that is written while it is sent."""
    headers = {"Content-Disposition": 'attachment; filename="outputs.zip"', "X-Accel-Buffering": "no"}
    return StreamingResponse(services.stream_zip(context, found), media_type="application/zip", headers=headers)


@router.post("/v1/outputs/delete", summary="Delete outputs", responses=responses(*ALWAYS, 404, 413, 415))
def delete_outputs(context: Context, key: Submitter, request: OutputChoice) -> OutputDeletion:
    """Delete several outputs for good: all of them, or none. Their jobs stay, with parameters and recipe."""
    return OutputDeletion(deleted=services.delete(context, key.tenant_id, _places(request.outputs)))


@router.delete("/v1/jobs/{job_id:job}", summary="Delete a job", responses=responses(*ALWAYS, 404, 409))
def delete_job(context: Context, key: Submitter, job_id: JobId) -> OutputDeletion:
    """Delete a job that has ended for good, with its outputs and its history. A job of a batch goes with its batch."""
    return OutputDeletion(deleted=services.delete_job(context, key.tenant_id, job_id))
