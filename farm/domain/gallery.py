"""Finding outputs again: what a search asks for, and what people note on an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from farm.domain import ids
from farm.domain.job import FilterText, Output
from farm.fields import CustomId, FrozenValue, MetadataKey, MetadataValue, Moment, NoNul, Storable
from farm.tasks import TaskName


class LabelKind(StrEnum):
    """What an output may be marked with."""

    STAR = "star"  #: has no name
    TAG = "tag"
    COLLECTION = "collection"


LabelName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True), Storable, NoNul
]  # fmt: skip


@dataclass(frozen=True)
class OutputPlace:
    """An output: its job, and its position among the job's outputs from 0."""

    job_id: str
    index: int


class OutputFilter(FrozenValue):
    """Which outputs. A field that is absent does not filter."""

    q: Annotated[str, StringConstraints(max_length=500), Storable, NoNul] | None = Field(
        None, description='Words of the prompt, all of them; `"a phrase"`, `or` and `-without` as search engines have.'
    )
    model: FilterText | None = None
    task: TaskName | None = None
    media: Annotated[str, StringConstraints(pattern="^(image|video|audio)$")] | None = None
    batch_id: Annotated[str, StringConstraints(pattern=ids.pattern(ids.BATCH))] | None = None
    custom_id: CustomId | None = None
    metadata_key: MetadataKey | None = Field(None, description="Of jobs whose `metadata` has this key.")
    metadata_value: MetadataValue | None = Field(None, description="And this value there.")
    star: bool | None = Field(None, description="true: only those with a star.")
    tag: LabelName | None = None
    collection: LabelName | None = None
    min_width: int | None = Field(None, ge=1, description="Pixels.")
    min_height: int | None = Field(None, ge=1, description="Pixels.")
    created_after: Moment | None = Field(None, description="Of jobs that were submitted after this time.")
    created_before: Moment | None = None

    @property
    def labels(self) -> tuple[tuple[LabelKind, str], ...]:
        """The marks that an output must have."""
        given = ((LabelKind.TAG, self.tag), (LabelKind.COLLECTION, self.collection))
        star = ((LabelKind.STAR, ""),) if self.star else ()
        return (*star, *((kind, name) for kind, name in given if name is not None))


@dataclass(frozen=True)
class GalleryOutput:
    """An output with what it is found by."""

    job_id: str
    tenant_id: str
    output: Output
    prompt: str
    model: str
    task: str
    batch_id: str | None
    custom_id: str | None
    job_metadata: Mapping[str, str]
    created_at: datetime  #: when its job was submitted
    finished_at: datetime | None
    starred: bool
    tags: tuple[str, ...]
    collections: tuple[str, ...]

    @property
    def place(self) -> OutputPlace:
        """Which output it is."""
        return OutputPlace(self.job_id, self.output.index)


@dataclass(frozen=True)
class LabelCount:
    """A tag or a collection, and how many outputs have it."""

    kind: LabelKind
    name: str
    outputs: int
