"""Outputs as people look for them: by prompt, by what their jobs are, and by what is noted on them.

A page reads a bounded number of rows however many outputs there are: without a filter that has an index of its own, at
most `WINDOW` jobs are looked at, and the cursor goes on behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Select, and_, delete, func, literal_column, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.gallery import GalleryOutput, LabelCount, LabelKind, OutputFilter, OutputPlace
from farm.domain.job import Output
from farm.domain.states import JobState
from farm.store import cursor as cursors
from farm.store.tables import PROMPT_WORDS, BatchRow, JobRow, OutputLabelRow, OutputRow

WINDOW: Final = 3_000  #: jobs that one page looks at
CHUNK: Final = 2_000  #: jobs whose outputs one page looks at, where only the outputs say whether they match
NEWEST: Final = 600  #: jobs whose prompts are compared with words one by one
MATCHES: Final = 3_000  #: jobs that the index of words returns at most
MAX_INDEX: Final = 2**15 - 1  #: no output comes behind it
MAX_LABELS: Final = 500  #: tags and collections that are listed
_PLACE: Final = struct.Struct(">16sH")


class Gallery:
    """The outputs of all tenants' jobs that succeeded."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(
        self, tenant_id: str, wanted: OutputFilter, cursor: str | None, limit: int
    ) -> tuple[list[GalleryOutput], str | None]:
        """A page of the outputs of a tenant, newest job first, and the cursor of the next one.

        A page may be short, or empty, and still have a next one. Raises `BadInput` for a cursor.
        """
        after = None if cursor is None else _PLACE.unpack(cursors.decode(cursor, _PLACE.size))
        jobs = self._jobs(tenant_id, wanted, after)
        last: str | None = None  # where the window of jobs ends
        if not _indexed(wanted) and _of_jobs(wanted):
            last = self._session.scalar(jobs.offset(WINDOW - 1).limit(1))
            recent = jobs.limit(WINDOW).subquery("recent")
            narrowed = select(recent.c.id).join(JobRow, JobRow.id == recent.c.id).where(*_matching(wanted))
            jobs = narrowed.order_by(recent.c.id.desc())
        # the jobs by themselves, because only a limit of their own lets the database read them in their order
        most = CHUNK if _of_outputs(wanted) else limit + 1
        if wanted.q:
            job_ids, last = self._with_words(tenant_id, wanted.q, jobs, most)
        else:
            job_ids = list(self._session.scalars(jobs.limit(most)))
        rows = self._session.execute(self._outputs(job_ids, wanted, after, limit + 1)).all()
        found = [OutputPlace(row[0], row[1]) for row in rows[:limit]]
        following = None
        if len(rows) > limit:
            following = _encode(found[-1])
        elif len(job_ids) == most:
            following = _encode(OutputPlace(job_ids[-1], MAX_INDEX))
        elif last is not None:
            following = _encode(OutputPlace(last, MAX_INDEX))
        return self.many(found), following

    def _jobs(self, tenant_id: str, wanted: OutputFilter, after: Any) -> Select[Any]:
        """The jobs whose outputs may match, newest first."""
        jobs: Select[Any] = (
            select(JobRow.id)
            .where(JobRow.tenant_id == tenant_id, JobRow.state == JobState.SUCCEEDED.value)
            .order_by(JobRow.id.desc())
        )
        for kind, name in wanted.labels[:1]:  # the others are looked at on its outputs alone
            marked = select(OutputLabelRow.job_id).where(
                OutputLabelRow.tenant_id == tenant_id, OutputLabelRow.kind == kind.value, OutputLabelRow.name == name
            )
            jobs = jobs.where(JobRow.id.in_(marked))
        if after is not None:
            jobs = jobs.where(JobRow.id <= ids.from_uuid(ids.JOB, UUID(bytes=after[0])))
        if _indexed(wanted):
            jobs = jobs.where(*_matching(wanted))
        deleted = select(BatchRow.id).where(BatchRow.deleted_at.is_not(None))
        alive: Select[Any] = jobs.where(or_(JobRow.batch_id.is_(None), JobRow.batch_id.not_in(deleted)))
        return alive

    def _with_words(self, tenant_id: str, words: str, jobs: Select[Any], most: int) -> tuple[list[str], str | None]:
        """Those of the jobs whose prompts match, newest first; and the last job that was looked at, if there are more.

        Words that many prompts have are found among the newest jobs, without the index: it would return all of them.
        Words that few have are found by the index. For those between, a page ends with the newest jobs.
        """
        match = words_match(tenant_id, words)
        newest = jobs.limit(NEWEST).subquery("newest")
        statement = select(newest.c.id).join(JobRow, JobRow.id == newest.c.id).where(match)
        found = list(self._session.scalars(statement.order_by(newest.c.id.desc()).limit(most)))
        if len(found) == most:
            return found, None
        last = self._session.scalar(jobs.offset(NEWEST - 1).limit(1))
        if last is None:
            return found, None
        some = jobs.where(match).order_by(None).limit(MATCHES + 1).subquery("some")
        matches = list(self._session.scalars(select(some.c.id)))
        if len(matches) <= MATCHES:
            return sorted(matches, reverse=True)[:most], None
        return found, last

    def _outputs(self, job_ids: Sequence[str], wanted: OutputFilter, after: Any, limit: int) -> Select[str, int]:
        """Which of these jobs' outputs match, newest job first."""
        found = (
            select(OutputRow.job_id, OutputRow.index)
            .where(OutputRow.job_id.in_(job_ids))
            .order_by(OutputRow.job_id.desc(), OutputRow.index)
            .limit(limit)
        )
        if after is not None:
            job_id = ids.from_uuid(ids.JOB, UUID(bytes=after[0]))
            found = found.where(
                or_(OutputRow.job_id < job_id, and_(OutputRow.job_id == job_id, OutputRow.index > after[1]))
            )
        if wanted.media is not None:
            found = found.where(OutputRow.media_type.startswith(f"{wanted.media}/"))
        for name, least in (("width", wanted.min_width), ("height", wanted.min_height)):
            if least is not None:
                found = found.where(OutputRow.meta[name].as_integer() >= least)
        for kind, name in wanted.labels:
            marked: Select[Any] = select(literal_column("1")).where(
                OutputLabelRow.kind == kind.value,
                OutputLabelRow.name == name,
                OutputLabelRow.job_id == OutputRow.job_id,
                OutputLabelRow.index == OutputRow.index,
            )
            found = found.where(marked.exists())
        return found

    def many(self, places: Sequence[OutputPlace], tenant_id: str | None = None) -> list[GalleryOutput]:
        """Those of the outputs that are there, in the order given; with a tenant, only that tenant's."""
        if not places:
            return []
        statement = (
            select(OutputRow, JobRow)
            .join(JobRow, JobRow.id == OutputRow.job_id)
            .where(tuple_(OutputRow.job_id, OutputRow.index).in_(_pairs(places)))
        )
        if tenant_id is not None:
            statement = statement.where(JobRow.tenant_id == tenant_id)
        labels: dict[OutputPlace, list[tuple[str, str]]] = {}
        noted = select(OutputLabelRow.job_id, OutputLabelRow.index, OutputLabelRow.kind, OutputLabelRow.name).where(
            OutputLabelRow.job_id.in_({one.job_id for one in places})
        )
        for job_id, index, kind, name in self._session.execute(noted.order_by(OutputLabelRow.name)):
            labels.setdefault(OutputPlace(job_id, index), []).append((kind, name))
        found = {}
        for row, job in self._session.execute(statement):
            place = OutputPlace(row.job_id, row.index)
            found[place] = _gallery_output(row, job, labels.get(place, []))
        return [found[place] for place in places if place in found]

    # -- stars, tags, collections -------------------------------------------------------------------------------------

    def add_label(self, tenant_id: str, kind: LabelKind, name: str, places: Collection[OutputPlace]) -> None:
        """Mark outputs of the tenant; those that are marked already stay so."""
        if places:
            rows = [
                {"tenant_id": tenant_id, "kind": kind.value, "name": name, "job_id": one.job_id, "index": one.index}
                for one in places
            ]
            self._session.execute(insert(OutputLabelRow).on_conflict_do_nothing(), rows)

    def remove_label(self, tenant_id: str, kind: LabelKind, name: str, places: Collection[OutputPlace]) -> None:
        """Take a mark away; outputs without it stay as they are."""
        if places:
            self._session.execute(
                delete(OutputLabelRow)
                .where(
                    OutputLabelRow.tenant_id == tenant_id,
                    OutputLabelRow.kind == kind.value,
                    OutputLabelRow.name == name,
                    tuple_(OutputLabelRow.job_id, OutputLabelRow.index).in_(_pairs(places)),
                )
                .execution_options(synchronize_session=False)
            )

    def labels(self, tenant_id: str) -> list[LabelCount]:
        """The tenant's tags and collections with the number of their outputs, by name; `MAX_LABELS` at most."""
        rows = self._session.execute(
            select(OutputLabelRow.kind, OutputLabelRow.name, func.count())
            .where(OutputLabelRow.tenant_id == tenant_id, OutputLabelRow.kind != LabelKind.STAR.value)
            .group_by(OutputLabelRow.kind, OutputLabelRow.name)
            .order_by(OutputLabelRow.kind, OutputLabelRow.name)
            .limit(MAX_LABELS)
        )
        return [LabelCount(LabelKind(kind), name, count) for kind, name, count in rows]

    # -- deleting -----------------------------------------------------------------------------------------------------

    def delete(self, places: Collection[OutputPlace]) -> None:
        """Delete the outputs' rows, with what is noted on them."""
        if places:
            self._session.execute(
                delete(OutputRow)
                .where(tuple_(OutputRow.job_id, OutputRow.index).in_(_pairs(places)))
                .execution_options(synchronize_session=False)
            )


def words_match(tenant_id: str, words: str) -> Any:
    """The condition that a job's prompt has the words, as the index serves it."""
    return PROMPT_WORDS.op("@@")(_query(tenant_id, words))


def _query(tenant_id: str, words: str) -> Any:
    """A search as PostgreSQL's ``tsquery``. The tenant is a word, too, so no other tenant's rows are read."""
    query = func.websearch_to_tsquery(literal_column("'simple'::regconfig"), words)
    return query.op("&&")(literal_column(f"$$'{ids.to_uuid(ids.TENANT, tenant_id)}'$$::tsquery"))


def _indexed(wanted: OutputFilter) -> bool:
    """Whether an index leads to the few jobs that match."""
    return bool(wanted.q or wanted.batch_id or wanted.custom_id or wanted.labels)


def _of_jobs(wanted: OutputFilter) -> bool:
    """Whether something is asked that only the rows of jobs say, and no index."""
    return bool(_matching(wanted))


def _of_outputs(wanted: OutputFilter) -> bool:
    """Whether something is asked that only the outputs say."""
    return bool(wanted.media or wanted.min_width or wanted.min_height or wanted.labels)


def _matching(wanted: OutputFilter) -> list[Any]:
    found: list[Any] = []
    for name in ("model", "task", "batch_id", "custom_id"):
        value = getattr(wanted, name)
        if value is not None:
            found.append(getattr(JobRow, name) == value)
    if wanted.metadata_key is not None:
        has = JobRow.meta.has_key(wanted.metadata_key)
        value = wanted.metadata_value
        found.append(has if value is None else JobRow.meta[wanted.metadata_key].astext == value)
    if wanted.created_after is not None:
        found.append(JobRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        found.append(JobRow.created_at < wanted.created_before)
    return found


def _pairs(places: Collection[OutputPlace]) -> list[tuple[str, int]]:
    return [(one.job_id, one.index) for one in places]


def _encode(place: OutputPlace) -> str:
    return cursors.encode(_PLACE.pack(ids.to_uuid(ids.JOB, place.job_id).bytes, place.index))


def _gallery_output(row: OutputRow, job: JobRow, labels: Sequence[tuple[str, str]]) -> GalleryOutput:
    return GalleryOutput(
        job_id=row.job_id,
        tenant_id=job.tenant_id,
        output=Output(row.index, row.key, row.media_type, row.size, row.sha256, row.seed, row.meta),
        prompt=str(job.spec.get("common", {}).get("prompt") or ""),
        model=job.model,
        task=job.task,
        batch_id=job.batch_id,
        custom_id=job.custom_id,
        job_metadata={name: str(value) for name, value in job.meta.items()},
        created_at=job.created_at,
        finished_at=job.finished_at,
        starred=(LabelKind.STAR.value, "") in labels,
        tags=tuple(name for kind, name in labels if kind == LabelKind.TAG.value),
        collections=tuple(name for kind, name in labels if kind == LabelKind.COLLECTION.value),
    )
