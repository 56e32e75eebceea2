"""What the farm has done lately, from the event table, at a cost that does not grow with it.

Events are numbered in the order of their time, so a time's place among them is found by halving. Where more ended in a
stretch than is read at once, it is counted from every n-th number; a million canceled jobs hide nothing of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import DateTime, Float, Integer, Text, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from sqlalchemy.types import Uuid

from farm.domain import ids
from farm.domain.estimate import Estimator, FinishedWork
from farm.domain.media import MediaMetadata, pixels
from farm.store.tables import JOB_ID

SAMPLE: Final = 20_000  #: events that are read at most to count a stretch of time

_SPAN: Final = text("""
    WITH RECURSIVE search AS (
        SELECT min(id) AS low, max(id) + 1 AS high FROM event
        UNION ALL
        SELECT CASE WHEN probe.created_at >= moment.since THEN search.low ELSE probe.id + 1 END,
               CASE WHEN probe.created_at >= moment.since THEN moment.middle ELSE search.high END
        FROM search,
        LATERAL (SELECT low + (high - low) / 2 AS middle, now() - make_interval(secs => :seconds) AS since) AS moment,
        LATERAL (SELECT id, created_at FROM event WHERE id >= moment.middle ORDER BY id LIMIT 1) AS probe
        WHERE low < high
    )
    SELECT max(low), (SELECT max(id) FROM event) FROM search
""")


def _counts(events: str) -> Any:
    return (
        text(f"""
        SELECT floor(extract(epoch FROM now() - event.created_at) / :bucket) AS age, event.type,
               event.data ->> 'code' AS code, count(*) AS events,
               coalesce(sum(CAST(event.data ->> 'outputs' AS integer)), 0) AS outputs
        FROM {events}
        WHERE event.type IN ('job.succeeded', 'job.failed')
          AND event.created_at >= now() - make_interval(secs => :seconds)
          AND (CAST(:everybody AS boolean) OR event.tenant_id = :tenant)
        GROUP BY 1, 2, 3
    """)  # noqa: S608 - of constants
        .bindparams(bindparam("tenant", type_=Uuid))
        .columns(age=Float, type=Text, code=Text, events=Integer, outputs=Integer)
    )


_SAMPLED: Final = _counts("""
    generate_series(CAST(:low AS bigint), CAST(:high AS bigint), CAST(:stride AS bigint)) AS number
    JOIN event ON event.id = number
""")
_WHOLE: Final = _counts("""
    tenant CROSS JOIN unnest(ARRAY['job.succeeded', 'job.failed']) AS kind CROSS JOIN LATERAL (
        SELECT * FROM event
        WHERE event.tenant_id = tenant.id AND event.type = kind AND event.id BETWEEN :low AND :high
          AND event.type IN ('job.succeeded', 'job.failed')  -- what the index is of
        OFFSET 0
    ) AS event
""")
_LATEST: Final = (
    text("""
    SELECT job.id, output.index AS number, job.spec -> 'common' ->> 'prompt' AS prompt, output.media_type,
           output.metadata, output.seed, job.finished_at
    FROM (
        SELECT newest.* FROM tenant CROSS JOIN LATERAL (
            SELECT id AS place, job_id FROM event WHERE event.tenant_id = tenant.id AND type = 'job.succeeded'
            ORDER BY id DESC LIMIT :limit
        ) AS newest
        WHERE CAST(:everybody AS boolean) OR tenant.id = :tenant ORDER BY place DESC LIMIT :limit
    ) AS latest
    JOIN job ON job.id = latest.job_id JOIN output ON output.job_id = job.id
    ORDER BY latest.place DESC, output.index LIMIT :limit
""")
    .bindparams(bindparam("tenant", type_=Uuid))
    .columns(
        id=JOB_ID,
        number=Integer,
        prompt=Text,
        media_type=Text,
        metadata=JSONB,
        finished_at=DateTime(timezone=True),
    )
)


@dataclass(frozen=True)
class ActivityBucket:
    """What ended in one stretch of time."""

    age: int  #: buckets ago: 0 is the one that ends now
    outputs: float
    failed: dict[str, float]  #: jobs, by error code


@dataclass(frozen=True)
class ActivityCounts:
    """What ended in several buckets of time of equal length."""

    seconds: float  #: of all of them
    buckets: tuple[ActivityBucket, ...]  #: newest first; none is left out
    exact: bool  #: whether every event was read, rather than every n-th

    @property
    def outputs(self) -> float:
        """In all of them."""
        return sum(one.outputs for one in self.buckets)

    @property
    def failed(self) -> dict[str, float]:
        """Jobs by error code in all of them, most frequent first."""
        found: dict[str, float] = {}
        for one in self.buckets:
            for code, count in one.failed.items():
                found[code] = found.get(code, 0) + count
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class RecentOutput:
    """An output to look at."""

    job_id: str
    index: int
    prompt: str
    media_type: str
    metadata: MediaMetadata
    seed: int
    finished_at: datetime

    @property
    def width(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "width")

    @property
    def height(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "height")


#: The last jobs that succeeded, of all tenants. A job's time on its device begins when the device took it up.
_RENDERED: Final = text("""
    WITH lately AS (
        SELECT newest.job_id FROM tenant CROSS JOIN LATERAL (
            SELECT id, job_id FROM event WHERE event.tenant_id = tenant.id AND type = 'job.succeeded'
            ORDER BY id DESC LIMIT :limit
        ) AS newest ORDER BY newest.id DESC LIMIT :limit
    )
    SELECT model, worker, cost, extract(epoch FROM coalesce(started_at, claimed_at)) AS started_at,
           extract(epoch FROM finished_at) AS finished_at
    FROM job JOIN lately ON job.id = lately.job_id
    WHERE coalesce(started_at, claimed_at) IS NOT NULL AND worker IS NOT NULL AND finished_at IS NOT NULL
    ORDER BY job.finished_at
""")
_DEVICES: Final = text("SELECT count(*) FROM worker WHERE state <> 'offline'")
RENDERED: Final = 400  #: jobs that an estimate is made from


class ActivityStats:
    """Ends of jobs, as time goes by."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def counts(self, seconds: float, buckets: int, tenant_id: str | None = None) -> ActivityCounts:
        """What ended in the last ``seconds``, in so many buckets; of one tenant, or of all."""
        low, high = self._session.execute(_SPAN, {"seconds": seconds}).one()
        found: list[tuple[float, dict[str, float]]] = [(0.0, {}) for _ in range(buckets)]
        stride = 1
        if low is not None and high is not None and low <= high:
            stride = max(1, -(-(high - low + 1) // SAMPLE))
            values = {"seconds": seconds, "bucket": seconds / buckets, "low": low, "high": high} | _whose(tenant_id)
            rows = self._session.execute(_SAMPLED, values | {"stride": stride}).all()
            if stride > 1 and stride * sum(row.events for row in rows) <= SAMPLE:
                stride = 1  # most of what happened is of other kinds
                rows = self._session.execute(_WHOLE, values).all()
            for row in rows:
                place = min(max(int(row.age), 0), buckets - 1)
                outputs, failed = found[place]
                if row.type == "job.succeeded":
                    outputs += row.outputs * stride
                else:
                    failed[row.code or "unknown"] = failed.get(row.code or "unknown", 0) + row.events * stride
                found[place] = outputs, failed
        return ActivityCounts(seconds, tuple(ActivityBucket(age, *one) for age, one in enumerate(found)), stride == 1)

    def latest_outputs(self, limit: int, tenant_id: str | None = None) -> list[RecentOutput]:
        """The outputs that were finished last, newest first; of one tenant, or of all."""
        rows = self._session.execute(_LATEST, {"limit": limit} | _whose(tenant_id))
        return [
            RecentOutput(row.id, row.number, row.prompt, row.media_type, row.metadata, row.seed, row.finished_at)
            for row in rows
        ]

    def estimator(self) -> Estimator:
        """Estimates how long jobs take, from the last ones that were rendered."""
        rows = self._session.execute(_RENDERED, {"limit": RENDERED})
        finished = [
            FinishedWork(row.model, row.worker, float(row.cost), float(row.started_at), float(row.finished_at))
            for row in rows
        ]
        return Estimator(finished, int(self._session.scalar(_DEVICES) or 0))


def _whose(tenant_id: str | None) -> dict[str, Any]:
    return {
        "everybody": tenant_id is None,
        "tenant": None if tenant_id is None else ids.to_uuid(ids.TENANT, tenant_id),
    }
