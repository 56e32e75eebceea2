"""Workers: who is there, what each holds, and since when it has been silent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Float, case, cast, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from farm.domain.numerics import Numerics
from farm.domain.states import JobState, Priority
from farm.domain.worker import Device, ResidentModel, Worker, WorkerCapacity, WorkerInfo, WorkerState
from farm.store.numerics import NumericsClasses
from farm.store.tables import JobRow, WorkerRow

HELD: Final = (JobState.DISPATCHED.value, JobState.RUNNING.value)


_WITH_FREE_SLOTS: Final = """
    SELECT name, slots + prefetch - coalesce(held.jobs, 0), models || held.models_of_jobs, prefetch,
        (device ->> 'memory_bytes')::bigint, tags, state = 'draining', slots + prefetch, numerics,
        greatest(0, least(slots, coalesce(held.bulk, 0)) - greatest(0, coalesce(held.jobs, 0) - slots - prefetch))
    FROM worker LEFT JOIN (
        SELECT worker, count(*) AS jobs, array_agg(DISTINCT model) AS models_of_jobs,
            count(*) FILTER (WHERE state = 'running' AND priority = %(bulk)s AND preemptions < %(most)s
                AND started_at IS NOT NULL) AS bulk
        FROM job WHERE state IN ('dispatched', 'running') GROUP BY worker
    ) AS held ON held.worker = worker.name
    WHERE state <> 'offline' AND (slots + prefetch > coalesce(held.jobs, 0) OR held.bulk > 0) ORDER BY name
"""


def _worker(row: WorkerRow, held_jobs: int, numerics: Numerics | None) -> Worker:
    about = dict(row.device)
    loaded = tuple(ResidentModel(**one) for one in about.pop("loaded", ()))
    info = WorkerInfo(
        name=row.name,
        boot_id=row.boot_id,
        host=row.host,
        device=Device(**about),
        slots=row.slots,
        prefetch=row.prefetch,
        pid=row.pid,
        versions={name: str(version) for name, version in row.versions.items()},
        tags=tuple(row.tags),
        numerics=numerics,
    )
    return Worker(
        info,
        WorkerState(row.state),
        tuple(row.models),
        held_jobs,
        row.started_at,
        row.heartbeat_at,
        loaded,
        row.drained_reason,
        row.stop_boot_id == row.boot_id and row.state != WorkerState.OFFLINE.value,
    )


def _present() -> Any:
    """The state of a worker that is there: online, unless it was drained."""
    return case((WorkerRow.drained_reason.is_not(None), WorkerState.DRAINING.value), else_=WorkerState.ONLINE.value)


def seconds(value: float) -> Any:
    """An SQL interval of that many seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, cast(value, Float))


class Workers:
    """All workers that ever joined."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def join(self, info: WorkerInfo) -> str | None:
        """Record that a worker process began; returns the boot id of the namesake it replaces."""
        if info.numerics is not None:
            NumericsClasses(self._session).record(info.numerics)
        before = self._session.scalar(select(WorkerRow.boot_id).where(WorkerRow.name == info.name).with_for_update())
        values = asdict(info) | {
            "tags": list(info.tags),
            "numerics": None if info.numerics is None else info.numerics.name,
            "state": WorkerState.ONLINE.value,
            "models": [],
            "started_at": func.now(),
            "heartbeat_at": func.now(),
        }
        # a new process does not undo what an operator, or the evidence, decided about its worker
        again = values | {"state": _present()}
        self._session.execute(
            insert(WorkerRow).values(values).on_conflict_do_update(index_elements=["name"], set_=again)
        )
        return before

    def record_heartbeat(
        self,
        name: str,
        boot_id: str,
        models: tuple[str, ...],
        loaded: tuple[ResidentModel, ...] = (),
        prefetch: int | None = None,
    ) -> tuple[WorkerState, bool] | None:
        """Record a heartbeat; returns the worker's state, and whether this process is to end.

        None if another process has taken its name. ``prefetch``: how many jobs may wait there from now on; None: as
        many as before.
        """
        residency = cast({"loaded": [asdict(one) for one in loaded]}, JSONB)
        row = self._session.execute(
            update(WorkerRow)
            .where(WorkerRow.name == name, WorkerRow.boot_id == boot_id)
            .values(
                heartbeat_at=func.now(),
                models=list(models),
                prefetch=WorkerRow.prefetch if prefetch is None else prefetch,
                device=WorkerRow.device.concat(residency),
                # one that was given up for its silence is back
                state=case((WorkerRow.state == WorkerState.OFFLINE.value, _present()), else_=WorkerRow.state),
            )
            .returning(WorkerRow.state, func.coalesce(WorkerRow.stop_boot_id == WorkerRow.boot_id, False))
            .execution_options(synchronize_session=False)
        ).first()
        return None if row is None else (WorkerState(row[0]), row[1])

    def set_state(self, name: str, state: WorkerState, boot_id: str | None = None) -> bool:
        """Change a worker's state; False if there is no such worker (or it is another process by now)."""
        statement = update(WorkerRow).where(WorkerRow.name == name).values(state=state.value).returning(WorkerRow.name)
        if boot_id is not None:
            statement = statement.where(WorkerRow.boot_id == boot_id)
        return self._session.scalar(statement) is not None

    def drain(self, name: str, reason: str) -> bool:
        """Give a worker nothing more, also after a restart; False if there is no such worker. The first reason stays.

        One that is offline stays so until it is back.
        """
        drained = case(
            (WorkerRow.state == WorkerState.OFFLINE.value, WorkerRow.state), else_=WorkerState.DRAINING.value
        )
        return self._update(name, {"state": drained, "drained_reason": func.coalesce(WorkerRow.drained_reason, reason)})

    def request_stop(self, name: str) -> None:
        """Let the worker's current process end at its next heartbeat."""
        self._update(name, {"stop_boot_id": WorkerRow.boot_id})

    def resume(self, name: str) -> bool:
        """Dispatch jobs to a drained worker again; False if no worker has the name. A stopping one still stops."""
        drained = WorkerRow.drained_reason.is_not(None) & (WorkerRow.state == WorkerState.DRAINING.value)
        online = case((drained, WorkerState.ONLINE.value), else_=WorkerRow.state)
        return self._update(name, {"state": online, "drained_reason": null(), "stop_boot_id": null()})

    def _update(self, name: str, values: dict[str, Any]) -> bool:
        changed = (
            update(WorkerRow)
            .where(WorkerRow.name == name)
            .values(values)
            .returning(WorkerRow.name)
            .execution_options(synchronize_session=False)
        )
        return self._session.scalar(changed) is not None

    def get(self, name: str) -> Worker | None:
        """The worker of that name."""
        wanted = select(WorkerRow).where(WorkerRow.name == name).execution_options(populate_existing=True)
        return next(iter(self._with_load(wanted)), None)

    def mark_silent_offline(self, after_seconds: float) -> list[str]:
        """Mark workers offline that sent no heartbeat for that long; returns their names."""
        rows = self._session.scalars(
            update(WorkerRow)
            .where(
                WorkerRow.state != WorkerState.OFFLINE.value,
                WorkerRow.heartbeat_at < func.now() - seconds(after_seconds),
            )
            .values(state=WorkerState.OFFLINE.value)
            .returning(WorkerRow.name)
        )
        return list(rows)

    def forget_gone(self, after_seconds: float) -> list[str]:
        """Delete workers that have been offline for that long and were not drained; returns their names."""
        rows = self._session.scalars(
            delete(WorkerRow)
            .where(
                WorkerRow.state == WorkerState.OFFLINE.value,
                WorkerRow.drained_reason.is_(None),  # a decision about a worker outlives its absence
                WorkerRow.heartbeat_at < func.now() - seconds(after_seconds),
            )
            .returning(WorkerRow.name)
            .execution_options(synchronize_session=False)
        )
        return list(rows)

    def all(self) -> list[Worker]:
        """Every worker, with what it holds, by name."""
        return self._with_load(select(WorkerRow).order_by(WorkerRow.name))

    def with_free_slots(self, max_preemptions: int = 0) -> list[WorkerCapacity]:
        """The workers that are online or draining and may get jobs, by name.

        They hold fewer jobs than they may, or render bulk jobs that have stepped back fewer than ``max_preemptions``
        times.
        """
        values = {"bulk": Priority.BULK.rank, "most": max_preemptions}
        rows = self._session.connection().exec_driver_sql(_WITH_FREE_SLOTS, values).all()
        return [
            WorkerCapacity(
                worker,
                free,
                frozenset(models),
                prefetch,
                memory,
                frozenset(tags),
                draining,
                capacity,
                numerics,
                bulk,
            )
            for worker, free, models, prefetch, memory, tags, draining, capacity, numerics, bulk in rows
        ]

    def _with_load(self, statement: Any) -> list[Worker]:
        rows = list(self._session.scalars(statement))
        counted = self._session.execute(
            select(JobRow.worker, func.count()).where(JobRow.state.in_(HELD)).group_by(JobRow.worker)
        )
        held = {row[0]: row[1] for row in counted}
        names = {row.numerics for row in rows if row.numerics is not None}
        numerics = NumericsClasses(self._session).named(names)
        return [_worker(row, held.get(row.name, 0), numerics.get(row.numerics or "")) for row in rows]
