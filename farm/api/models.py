"""Models: what there is to render with, and adding and removing it while the farm runs."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import Field

from farm.api.auth import Admin, Reader
from farm.api.dependencies import AppContext, Context
from farm.api.patch import Patch
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import ModelDetailsSchema, ModelList, ModelSchema, Schema
from farm.domain.model import LoraFile, Model, ModelChoices, ModelDefaults, ModelEntry, ModelLimits, Text
from farm.domain.model_files import Manifest
from farm.domain.worker import Worker, WorkerState
from farm.services import model_uploads
from farm.services import models as services
from farm.store.models import StoredModel

uploads: Final = APIRouter(prefix="/v1/model-uploads", tags=["models"], route_class=AuthenticatedRoute)
router: Final = APIRouter(prefix="/v1/models", tags=["models"], route_class=AuthenticatedRoute)

MANIFEST_BYTES: Final = 8 * 2**20  #: of a list of files

ModelId = Annotated[str, Path(description="The model's id.", max_length=200)]


class PartUploadSchema(Schema):
    """A part that is missing, and how to write it."""

    sha256: str
    size: int = Field(description="Bytes.")
    url: str = Field(description="Where to PUT it; the URL expires.")
    headers: dict[str, str] = Field(description="The headers that have to come with it.")


class ModelUploadSchema(Schema):
    """What the farm's bucket lacks of a model's files."""

    source: str = Field(description="What an entry names as its `source` when nothing is missing.")
    missing: int = Field(description="Parts that are missing.")
    missing_bytes: int
    uploads: list[PartUploadSchema] = Field(description="The first of them.")


def _said(name: str) -> str:
    """What the entry's own field says of itself."""
    return str(ModelChoices.model_fields[name].description)


class ModelUpdate(Patch):
    """Changes; an absent field stays as it is, and null removes `memory_bytes`."""

    clearable = frozenset({"memory_bytes"})

    description: Text | None = Field(None, max_length=2000, description=_said("description"))
    defaults: ModelDefaults | None = Field(None, description=_said("defaults"))
    limits: ModelLimits | None = Field(None, description=_said("limits"))
    memory_bytes: int | None = Field(None, gt=0, le=2**62, strict=True, description=_said("memory_bytes"))
    tags: tuple[Text, ...] | None = Field(None, description=_said("tags"))
    vocabulary: dict[Text, tuple[Text, ...]] | None = Field(None, description=_said("vocabulary"))
    example_prompts: tuple[Text, ...] | None = Field(None, description=_said("example_prompts"))
    loras: tuple[LoraFile, ...] | None = Field(None, description=_said("loras"))


@router.get("", summary="List models", responses=responses(*ALWAYS))
def list_models(
    context: Context,
    _: Reader,
    unready: Annotated[
        bool, Query(description="List instead the added ones that no job may name: checked now, or failed.")
    ] = False,
) -> ModelList:
    """Every model that jobs may name, with its limits and defaults, and the workers that have it loaded."""
    workers = _present(context)
    if unready:
        found = services.unready(context)
        return ModelList(
            data=[
                ModelSchema.of(model, *_seen(model, workers), state=row.state, report=row.report)
                for row, model in found
            ]
        )
    return ModelList(data=[ModelSchema.of(model, *_seen(model, workers)) for model in context.registry.models])


@router.post("", status_code=201, summary="Add a model", responses=responses(*ALWAYS, 409, 413, 415))
def add_model(context: Context, admin: Admin, request: ModelEntry) -> ModelDetailsSchema:  # noqa: ARG001 - it guards
    """Have jobs rendered with a model from now on, without any restart. The same entry again adds nothing.

    Entries of the models file are changed there.
    """
    return _details(context, services.add(context, request))


@uploads.post("", summary="Upload a model's files", responses=responses(*ALWAYS, 413, 415))
def upload_model(context: Context, admin: Admin, request: Manifest) -> ModelUploadSchema:  # noqa: ARG001 - it guards
    """What the farm's bucket lacks of a model's files, and URLs to write it. Repeat the request until nothing lacks.

    Files are cut into parts of at most 1 GiB that are named by their SHA-256; what is there already is not sent again.
    Then add a model with the `source` of the answer. Files that no model names are removed after a day.
    """
    state = model_uploads.upload(context.storage, request, context.settings.presign_seconds)
    return ModelUploadSchema(
        source=state.source,
        missing=state.missing,
        missing_bytes=state.missing_bytes,
        uploads=[
            PartUploadSchema(sha256=one.part.sha256, size=one.part.size, url=one.url, headers=one.headers)
            for one in state.uploads
        ],
    )


@router.get("/{model_id:path}", summary="Look at a model", responses=responses(*ALWAYS, 404))
def get_model(context: Context, _: Reader, model_id: ModelId) -> ModelDetailsSchema:
    """A model with the JSON Schema of what it takes for each of its tasks."""
    row, model = services.get(context, model_id)
    if row is not None:
        return _details(context, row)
    return ModelDetailsSchema.of_details(model, *_seen(model, _present(context)))


@router.patch("/{model_id:path}", summary="Change a model", responses=responses(*ALWAYS, 404, 409, 413, 415))
def change_model(
    context: Context,
    admin: Admin,  # noqa: ARG001 - it guards
    model_id: ModelId,
    request: ModelUpdate,
) -> ModelDetailsSchema:
    """Change what an operator decides. Jobs keep what they were accepted with. For other weights, add another model."""
    changes = request.model_dump(mode="json", exclude_unset=True)
    return _details(context, services.change(context, model_id, changes))


@router.delete("/{model_id:path}", summary="Remove a model", responses=responses(*ALWAYS, 404, 409))
def remove_model(context: Context, admin: Admin, model_id: ModelId) -> ModelDetailsSchema:  # noqa: ARG001 - it guards
    """Let no new job name a model. Accepted ones still end with it. Returns it."""
    return _details(context, services.remove(context, model_id))


def _details(context: AppContext, row: StoredModel) -> ModelDetailsSchema:
    model = services.model_of(row)
    seen = _seen(model, _present(context))
    return ModelDetailsSchema.of_details(model, *seen, state=row.state, report=row.report)


def _present(context: AppContext) -> list[Worker]:
    with context.store.begin() as unit:
        return [worker for worker in unit.workers.all() if worker.state is not WorkerState.OFFLINE]


def _seen(model: Model, workers: list[Worker]) -> tuple[list[str], str | None]:
    """Who has the model in memory, and why its jobs do not share forwards, where a worker found that."""
    alone = (one.runs_alone for worker in workers for one in worker.loaded if one.model == model.id and one.runs_alone)
    return [worker.info.name for worker in workers if model.id in worker.models], next(alone, None)
