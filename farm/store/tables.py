"""The tables, as SQLAlchemy maps them. Ids are UUIDs in the database and prefixed text (``job_…``) everywhere else.

The file is long because the tables of a schema are read beside each other.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from farm.domain import ids
from farm.domain.job import RETRY_FIELDS


class PublicId(TypeDecorator[str]):
    """A UUID column that reads and writes ids of one kind."""

    impl = Uuid
    cache_ok = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: str | None, dialect: Dialect) -> UUID | None:  # noqa: ARG002
        """An id on its way into the database."""
        return None if value is None else ids.to_uuid(self.kind, value)

    def process_result_value(self, value: UUID | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """A UUID on its way out."""
        return None if value is None else ids.from_uuid(self.kind, value)


class Base(DeclarativeBase):
    """The one metadata that migrations are checked against."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: Integer,
        float: Double,
        datetime: DateTime(timezone=True),
        bytes: LargeBinary,
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[datetime]: ARRAY(DateTime(timezone=True)),
    }


JOB_ID = PublicId(ids.JOB)
BATCH_ID = PublicId(ids.BATCH)
TENANT_ID = PublicId(ids.TENANT)
NOW = func.now()


class TenantRow(Base):
    """Who owns jobs."""

    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(TENANT_ID, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float] = mapped_column(server_default=text("1"))  #: share of the farm, relative to the other tenants
    max_queued: Mapped[int | None]  #: jobs that may wait; None: no limit
    max_running: Mapped[int | None]  #: jobs that may be on devices at once; None: no limit
    device_seconds_per_day: Mapped[float | None]  #: beyond it nothing new is accepted until the next day (UTC)
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)  #: of outputs and inputs; None: no limit
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  #: as last measured
    orphans_collected_until: Mapped[datetime | None]  #: orphans of jobs that ended before are gone
    model_aliases: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))  #: other names of models, to ids
    retention_days: Mapped[int | None]  #: how long ended jobs and their outputs are kept; None: for ever
    vtime: Mapped[float] = mapped_column(server_default=text("0"))  #: the policy's `ShareState`
    backlogged: Mapped[bool] = mapped_column(server_default=text("false"))  #: the policy's `ShareState`
    paused_at: Mapped[datetime | None]  #: its jobs wait while this is set
    paused_by: Mapped[str | None]  #: the name of the API key that paused it
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class QueueStateRow(Base):
    """What the policy remembers of one queue; queues that were never served have no row."""

    __tablename__ = "queue_state"

    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"), primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger, primary_key=True)  #: `Priority.rank`
    model: Mapped[str] = mapped_column(primary_key=True)
    pin: Mapped[str] = mapped_column(primary_key=True)  #: what its jobs are pinned to; empty: nothing
    skips: Mapped[int] = mapped_column(server_default=text("0"))  #: dispatches that passed it over
    served_at: Mapped[datetime | None]


class PauseRow(Base):
    """What operators have paused: while a row is there, none of its jobs is dispatched."""

    __tablename__ = "pause"

    kind: Mapped[str] = mapped_column(primary_key=True)  #: ``farm`` or ``model``
    name: Mapped[str] = mapped_column(primary_key=True)  #: the model's id; empty for the farm
    paused_at: Mapped[datetime] = mapped_column(server_default=NOW)
    paused_by: Mapped[str | None]  #: the name of the API key that paused it


class ModelRow(Base):
    """A model that was added while the farm runs; those of the models file have no row."""

    __tablename__ = "model"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]  #: `ModelState`
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))  #: one more with each change
    entry: Mapped[dict[str, Any]]  #: what is stated of it
    facts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))  #: what its files say
    report: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))  #: of its check on a worker
    checker: Mapped[str | None]  #: the worker that checks it now
    checked_until: Mapped[datetime | None]  #: another worker may check it after that
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class KeyRow(Base):
    """An API key: its secret is stored as a hash only."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(PublicId(ids.KEY), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"), index=True)
    name: Mapped[str]
    secret_hash: Mapped[bytes]  #: SHA-256 of the secret, which has 256 bits of its own
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    revoked_at: Mapped[datetime | None]


class SessionRow(Base):
    """Somebody who is signed in to the dashboard."""

    __tablename__ = "dashboard_session"

    id: Mapped[bytes] = mapped_column(primary_key=True)  #: SHA-256 of the cookie's text
    key_id: Mapped[str] = mapped_column(PublicId(ids.KEY), ForeignKey("api_key.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]


class JoinTokenRow(Base):
    """A token with which workers on other machines join: its secret is stored as a hash only."""

    __tablename__ = "join_token"

    id: Mapped[str] = mapped_column(PublicId(ids.JOIN_TOKEN), primary_key=True)
    name: Mapped[str]
    secret_hash: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class UsageRow(Base):
    """What a tenant has used, by day (UTC) and model: counted in the transactions that end its jobs."""

    __tablename__ = "usage"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True)  #: several, so that no job waits for another's
    jobs: Mapped[int] = mapped_column(BigInteger)
    outputs: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    device_seconds: Mapped[float]


class FileRow(Base):
    """A stored input of a tenant, one row per content."""

    __tablename__ = "file"
    __table_args__ = (UniqueConstraint("tenant_id", "sha256"),)

    id: Mapped[str] = mapped_column(PublicId(ids.FILE), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"))
    sha256: Mapped[str]
    key: Mapped[str]
    filename: Mapped[str | None]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)  #: bytes
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'"))  #: `MediaMetadata`
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class BatchRow(Base):
    """Many jobs submitted together. Its counters are written in the transactions that end its jobs."""

    __tablename__ = "batch"
    __table_args__ = (
        Index("batch_listing", "tenant_id", text("id DESC")),
        Index("batch_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
        Index("batch_request_hash", "tenant_id", "request_hash", postgresql_where=text("request_hash IS NOT NULL")),
        # what requests began and did not finish: nearly always empty
        Index("batch_unfinished", "id", postgresql_where=text("propagating OR deleted_at IS NOT NULL")),
        # its counters change with every job that ends: room in the page keeps the index out of it
        {"postgresql_with": {"fillfactor": "50"}},
    )

    id: Mapped[str] = mapped_column(BATCH_ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"))
    name: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'"))
    retry_of: Mapped[str | None] = mapped_column(BATCH_ID)  #: whose failed and canceled jobs it repeats
    total: Mapped[int]
    cost: Mapped[float]  #: megapixel-steps
    skipped: Mapped[int] = mapped_column(server_default=text("0"))  #: lines that were refused
    error_key: Mapped[str | None]  #: the object that reports them
    request_hash: Mapped[bytes | None]  #: of the request that submitted it
    error_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  #: of that object
    succeeded: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    canceled: Mapped[int] = mapped_column(server_default=text("0"))
    suspicious: Mapped[int] = mapped_column(server_default=text("0"))  #: succeeded jobs with an output that looks wrong
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    first_finished_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    webhook: Mapped[str | None]  #: receives the batch's own events
    last_milestone: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: percent, of the last ``batch.progress``
    priority: Mapped[int | None] = mapped_column(SmallInteger)  #: of all its jobs; None: each has its own
    paused_at: Mapped[datetime | None]
    paused_by: Mapped[str | None]  #: the name of the API key that paused it
    paused_seconds: Mapped[float] = mapped_column(
        server_default=text("0")
    )  #: that it was paused since its first job ended, but for the pause that lasts
    one_numerics: Mapped[bool] = mapped_column(
        server_default=text("false")
    )  #: whether all its jobs are rendered in the numerics class of the first
    numerics: Mapped[str | None]  #: that class, once it is known
    pending: Mapped[int] = mapped_column(server_default=text("0"))  #: jobs that wait for the outputs of others
    propagating: Mapped[bool] = mapped_column(
        server_default=text("false")
    )  #: whether jobs' rows may not follow ``priority`` and ``paused_at`` yet
    deleted_at: Mapped[datetime | None]  #: it is hidden; its jobs' rows are deleted in steps


class JobRow(Base):
    """One job. Only ``farm/lifecycle.py`` changes its state."""

    __tablename__ = "job"
    __table_args__ = (
        # what the dispatcher reads: the queues, and the oldest jobs of each that are not paused
        Index(
            "job_queue",
            "tenant_id",
            "priority",
            "model",
            "pin",
            "paused",
            "queued_at",
            "id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index("job_deadline", "deadline", postgresql_where=text("state = 'queued' AND deadline IS NOT NULL")),
        # what counts against the limit of jobs that may wait, and what expires, among jobs that wait for others
        Index("job_pending", "tenant_id", postgresql_where=text("state = 'pending'")),
        Index("job_pending_deadline", "deadline", postgresql_where=text("state = 'pending' AND deadline IS NOT NULL")),
        # the jobs whose outputs are inputs of others: what the retention of a batch looks for
        Index("job_with_dependents", "batch_id", postgresql_where=text("dependents > 0")),
        # jobs at workers, which are few. None by their leases: each heartbeat would write every index of its jobs anew
        Index("job_held", "worker", postgresql_where=text("state IN ('dispatched', 'running')")),
        Index("job_listing", "tenant_id", text("id DESC")),
        # what the retention of a tenant looks for
        Index("job_finished", "tenant_id", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        # whether a job was retried
        Index("job_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
        Index("job_custom_id", "tenant_id", "custom_id", postgresql_where=text("custom_id IS NOT NULL")),
        Index("job_batch", "batch_id", "batch_seq", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "job_batch_custom_id",
            "batch_id",
            "custom_id",
            unique=True,
            postgresql_where=text("batch_id IS NOT NULL AND custom_id IS NOT NULL"),
        ),
        # searches for outputs by the words of prompts; the tenant is a word, too
        Index(
            "job_prompt_words",
            text(
                "(to_tsvector('simple'::regconfig, COALESCE((spec -> 'common'::text) ->> 'prompt'::text, ''::text))"
                " || array_to_tsvector(ARRAY[tenant_id::text]))"
            ),
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": "512"},
            postgresql_where=text("state = 'succeeded'"),
        ),
        # rows are updated a handful of times on their way: leave room for it in the page
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"))
    state: Mapped[str]
    task: Mapped[str]
    model: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger)  #: `Priority.rank`
    spec: Mapped[dict[str, Any]]
    cost: Mapped[float]  #: megapixel-steps
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(SmallInteger)
    lost_count: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))  #: run leases that ran out
    crash_count: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: those of them while it was on the device
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    step: Mapped[int | None] = mapped_column(SmallInteger)
    steps: Mapped[int | None] = mapped_column(SmallInteger)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    recipe: Mapped[dict[str, Any] | None]
    warnings: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))  #: sentences
    custom_id: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'"))
    webhook: Mapped[str | None]
    webhook_events: Mapped[list[str] | None]  #: event types that are sent to ``webhook``; None: how the job ended
    retry_of: Mapped[str | None] = mapped_column(JOB_ID)
    # no foreign key: a million rows would be checked one by one against the row that the same transaction has written
    batch_id: Mapped[str | None] = mapped_column(BATCH_ID)
    batch_seq: Mapped[int | None]  #: its place in the batch, from 1
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    available_at: Mapped[datetime] = mapped_column(server_default=NOW)
    queued_at: Mapped[datetime] = mapped_column(server_default=NOW)  #: its place in its queue; another attempt keeps it
    paused: Mapped[bool] = mapped_column(server_default=text("false"))  #: its batch is paused: it stays in its queue
    #: what it is pinned to: a numerics class; the id of the batch whose jobs all get the class of the first; or nothing
    pin: Mapped[str] = mapped_column(server_default=text("''"))
    first_numerics: Mapped[str | None]  #: the numerics class of the worker that claimed it first, of an exact job
    waits_until: Mapped[datetime | None]  #: its worker was lost: so long it waits for one of ``first_numerics``
    deadline: Mapped[datetime | None]  #: not dispatched from then on
    pending_inputs: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: of a pending job: the jobs that it waits for
    dependents: Mapped[int] = mapped_column(server_default=text("0"))  #: jobs that have an output of it as an input
    dispatched_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: denoising steps that its last attempt took from a checkpoint
    steps_resumed: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    #: how often it stepped back for an interactive job
    preemptions: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))


#: The columns of `RETRY_FIELDS`, for statements that retry many jobs at once.
RETRY_COLUMNS: Final = tuple(
    column for name in RETRY_FIELDS for column in (("task", "model", "spec", "cost") if name == "spec" else (name,))
)


class JobDependencyRow(Base):
    """A job that has an output of another one as an input. Rows are written with the job and stay as they are."""

    __tablename__ = "job_dependency"
    __table_args__ = (Index("job_dependency_job", "job_id"),)

    # no foreign keys: a million rows would be checked one by one against rows that the same transaction has written
    parent_id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)  #: whose output it is
    job_id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)
    waits: Mapped[bool]  #: whether the parent had not ended when the job was submitted


class PropagationRow(Base):
    """A job that ended, while not all jobs that wait for it follow yet. Nearly always empty."""

    __tablename__ = "propagation"

    job_id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)
    reason: Mapped[str | None]  #: how jobs that wait for it fail, as a sentence; None: it succeeded
    root: Mapped[str | None]  #: what began the failure, as words in such a sentence
    after: Mapped[str | None] = mapped_column(JOB_ID)  #: the last job in the order of ids that follows already
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class OutputRow(Base):
    """One output of a job."""

    __tablename__ = "output"

    job_id: Mapped[str] = mapped_column(JOB_ID, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    epoch: Mapped[int]  #: the epoch that wrote it
    key: Mapped[str]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)  #: bytes
    sha256: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'"))  #: `MediaMetadata`


class CheckpointRow(Base):
    """The stored work of a job that has not finished. Few jobs have one, and none for long after its end."""

    __tablename__ = "checkpoint"

    # no foreign key: where the job's row is deleted, the objects that this one names must be deleted first
    job_id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID)
    parts: Mapped[list[Any]] = mapped_column(JSONB)  #: `Checkpoint.parts`
    steps: Mapped[int]  #: denoising steps that are kept
    size: Mapped[int] = mapped_column(BigInteger)  #: bytes
    written_at: Mapped[datetime] = mapped_column(server_default=NOW)


#: The words of a job's prompt, and its tenant as one more word: what searches for outputs look in.
PROMPT_WORDS: Final[ColumnElement[Any]] = literal_column(
    "(to_tsvector('simple'::regconfig, COALESCE(job.spec -> 'common' ->> 'prompt', ''))"
    " || array_to_tsvector(ARRAY[job.tenant_id::text]))"
)


class OutputLabelRow(Base):
    """A star, a tag or a collection of an output."""

    __tablename__ = "output_label"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "index"], ["output.job_id", "output.index"], ondelete="CASCADE"),
        Index("output_label_output", "job_id", "index"),
    )

    tenant_id: Mapped[str] = mapped_column(TENANT_ID, primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)  #: `LabelKind`
    name: Mapped[str] = mapped_column(primary_key=True)  #: empty for a star
    job_id: Mapped[str] = mapped_column(JOB_ID, primary_key=True)
    index: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class EventRow(Base):
    """What happened, written with the state it reports: the outbox of webhooks and the history of a job's attempts."""

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("job_id", "epoch", "type", "step"),
        Index(
            "event_one_end",
            "job_id",
            unique=True,
            postgresql_where=text("type IN ('job.succeeded', 'job.failed', 'job.canceled')"),
        ),
        # what ended lately, and the latest images, whatever else happened in between
        Index(
            "event_ended", "tenant_id", "type", "id", postgresql_where=text("type IN ('job.succeeded', 'job.failed')")
        ),
        Index("event_to_fan_out", "id", postgresql_where=text("NOT fanned_out")),
        Index("event_batch", "batch_id", "type", "step", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID)
    job_id: Mapped[str | None] = mapped_column(JOB_ID, ForeignKey("job.id", ondelete="CASCADE"))  #: None: of no job
    batch_id: Mapped[str | None] = mapped_column(
        BATCH_ID, ForeignKey("batch.id", ondelete="CASCADE")
    )  #: of an event of a batch itself
    type: Mapped[str]
    epoch: Mapped[int]
    step: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: of ``job.progress``; percent of ``batch.progress``; else 0
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    fanned_out: Mapped[bool] = mapped_column(server_default=text("false"))  #: whether its deliveries exist
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class AuditRow(Base):
    """A change that somebody made by the API or the dashboard."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_key", "key_id", text("id DESC")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    key_id: Mapped[str] = mapped_column(PublicId(ids.KEY))  #: who; the row outlives the key
    key_name: Mapped[str]  #: as it was then
    tenant_id: Mapped[str] = mapped_column(TENANT_ID)  #: whose key it is
    action: Mapped[str]  #: method and path template: ``PUT /v1/pauses/farm``
    target: Mapped[str]  #: what was named in the path and the form
    request_id: Mapped[str]


class PendingDeletionRow(Base):
    """An object that no row names any more: to be removed from the object storage."""

    __tablename__ = "pending_deletion"

    key: Mapped[str] = mapped_column(primary_key=True)  #: ends in ``/``: all objects whose keys begin with it
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    due_at: Mapped[datetime] = mapped_column(server_default=NOW)  #: not removed before
    tenant_id: Mapped[str | None] = mapped_column(TENANT_ID)  #: whose storage it counts against until then
    size: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  #: bytes that count


class RequestFileRow(Base):
    """An uploaded file of requests for a batch, one per line."""

    __tablename__ = "request_file"

    id: Mapped[str] = mapped_column(PublicId(ids.FILE), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"), index=True)
    filename: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)  #: bytes
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class NumericsRow(Base):
    """A numerics class that a worker has joined with."""

    __tablename__ = "numerics"

    name: Mapped[str] = mapped_column(primary_key=True)
    facts: Mapped[dict[str, Any]]
    first_joined_at: Mapped[datetime] = mapped_column(server_default=NOW)


class WorkerRow(Base):
    """A worker, from its own words."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    boot_id: Mapped[str]
    state: Mapped[str]
    host: Mapped[str]
    device: Mapped[dict[str, Any]]
    slots: Mapped[int] = mapped_column(SmallInteger)
    prefetch: Mapped[int] = mapped_column(SmallInteger)
    pid: Mapped[int]
    versions: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    models: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=NOW)
    drained_reason: Mapped[str | None]  #: why it gets no jobs, also after a restart; None: not drained
    stop_boot_id: Mapped[str | None]  #: the process of it that an operator wants ended
    numerics: Mapped[str | None] = mapped_column(ForeignKey("numerics.name"))  #: its numerics class


class JobFailureRow(Base):
    """A worker at which an attempt of a job failed, while another attempt might have helped."""

    __tablename__ = "job_failure"
    __table_args__ = (Index("job_failure_refuted", "worker", postgresql_where=text("refuted")),)

    job_id: Mapped[str] = mapped_column(JOB_ID, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    worker: Mapped[str] = mapped_column(primary_key=True)
    refuted: Mapped[bool] = mapped_column(server_default=text("false"))  #: another worker completed the job
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class IdempotencyRow(Base):
    """What a request with an ``Idempotency-Key`` made, so that sending it again makes nothing."""

    __tablename__ = "idempotency"

    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    job_id: Mapped[str | None] = mapped_column(JOB_ID)
    batch_id: Mapped[str | None] = mapped_column(BATCH_ID)
    answer: Mapped[str | None]  #: to a request that made something else: JSON, sealed because it may have a secret
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class EndpointRow(Base):
    """Where a tenant wants events sent."""

    __tablename__ = "endpoint"
    __table_args__ = (
        # a job's one-off URL becomes an endpoint of its own, one per tenant and URL
        Index("endpoint_one_off", "tenant_id", "url", unique=True, postgresql_where=text("one_off")),
        # the deliverers' walk: endpoints, not deliveries, so that one endpoint's backlog is one row here
        Index("endpoint_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        # asked at every event: a tenant may have many of the others
        Index("endpoint_subscribed", "tenant_id", postgresql_where=text("NOT one_off AND disabled_at IS NULL")),
        # asked at every report of progress, and nearly always empty
        Index("endpoint_progress", "tenant_id", postgresql_where=text("'job.progress' = ANY (events)")),
    )

    id: Mapped[str] = mapped_column(PublicId(ids.ENDPOINT), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(TENANT_ID, ForeignKey("tenant.id"), index=True)
    url: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    events: Mapped[list[str]]  #: event types it wants
    secrets: Mapped[list[str]]  #: ``whsec_…``, the newest first; more than one while they are rotated
    secrets_until: Mapped[list[datetime]] = mapped_column(
        server_default=text("'{}'")
    )  #: when each but the newest stops to sign, in the same order
    keys: Mapped[list[str]] = mapped_column(
        server_default=text("'{}'")
    )  #: ``whsk_…``, the newest first; none: it did not ask for ``v1a``
    keys_until: Mapped[list[datetime]] = mapped_column(server_default=text("'{}'"))  #: as ``secrets_until``
    one_off: Mapped[bool] = mapped_column(server_default=text("false"))
    sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  #: of the last delivery made for it
    due_at: Mapped[datetime | None]  #: never later than its first pending delivery, but for a pause; None: none waits
    paused_until: Mapped[datetime | None]  #: nothing is sent before: it asked for that, or fails too often
    consecutive_failures: Mapped[int] = mapped_column(server_default=text("0"))
    failing_since: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]  #: ``gone``, ``failing`` or ``requested``
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class DeliveryRow(Base):
    """One event on its way to one endpoint."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("endpoint_id", "event_id"),
        Index("delivery_due", "endpoint_id", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index("delivery_dead", "endpoint_id", "event_id", postgresql_where=text("state = 'dead'")),
    )

    id: Mapped[str] = mapped_column(
        PublicId(ids.DELIVERY), primary_key=True
    )  #: the ``webhook-id``, the same on every try
    endpoint_id: Mapped[str] = mapped_column(PublicId(ids.ENDPOINT), ForeignKey("endpoint.id", ondelete="CASCADE"))
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("event.id", ondelete="CASCADE"), index=True)
    state: Mapped[str]  #: ``pending``, ``delivered``, ``dead``
    sequence: Mapped[int] = mapped_column(BigInteger)
    attempt_count: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: begun, counted when it is claimed
    attempts_before: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0")
    )  #: those before it was last sent again; the schedule restarted after them
    next_attempt_at: Mapped[datetime] = mapped_column(
        server_default=NOW
    )  #: of the next try; while one is made, its lease's end
    lease_until: Mapped[datetime | None]  #: set while a deliverer has it in hand
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class DeliveryAttemptRow(Base):
    """One POST of a delivery and what came back."""

    __tablename__ = "delivery_attempt"

    delivery_id: Mapped[str] = mapped_column(
        PublicId(ids.DELIVERY), ForeignKey("delivery.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    status: Mapped[int | None] = mapped_column(SmallInteger)  #: HTTP status; None: no response
    seconds: Mapped[float]
    error: Mapped[str | None]
    response: Mapped[str] = mapped_column(server_default=text("''"))  #: the first 2 kB of the body


class ProbeRow(Base):
    """One row that is written every few seconds, to see whether the database takes writes."""

    __tablename__ = "probe"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
