"""The store and its unit of work: the only place that commits."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection as SqlConnection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from farm.server_errors import database_unavailable
from farm.settings import Settings
from farm.store.activity_stats import ActivityStats
from farm.store.audit import Audit
from farm.store.batches import Batches
from farm.store.bulk_actions import BulkActions
from farm.store.checkpoints import StoredCheckpoints
from farm.store.connection import LOCAL_LIMITS, Connection, Database
from farm.store.dashboard_queries import DashboardQueries
from farm.store.deliveries import Deliveries
from farm.store.delivery_leases import DeliveryLeases
from farm.store.delivery_results import DeliveryResults
from farm.store.dependencies import Dependencies
from farm.store.events import Events
from farm.store.files import Files
from farm.store.gallery import Gallery
from farm.store.job_failures import JobFailures
from farm.store.jobs import Jobs
from farm.store.join_tokens import JoinTokens
from farm.store.models import Models
from farm.store.numerics import NumericsClasses
from farm.store.outbox import Outbox
from farm.store.outputs import Outputs
from farm.store.pauses import Pauses
from farm.store.pending_deletions import PendingDeletions
from farm.store.queue import Queues
from farm.store.quotas import CountCache, Quotas
from farm.store.request_files import RequestFiles
from farm.store.retried_chains import RetriedChains
from farm.store.running_jobs import RunningJobs
from farm.store.sessions import Sessions
from farm.store.staged_chains import StagedChains
from farm.store.tenants import Tenants
from farm.store.unanswered import Unanswered
from farm.store.usage import Usage
from farm.store.waiting import WaitingJobs
from farm.store.webhooks import Webhooks
from farm.store.workers import Workers

#: What a clock may be off: S3 refuses signatures from 15 minutes on, and presigned URLs begin or end early before that.
MAX_SKEW_SECONDS: Final = 300.0


class UnitOfWork:
    """One transaction and the repositories that share it."""

    def __init__(self, session: Session, counts: CountCache) -> None:
        self.session = session
        self._counts = counts

    def now(self) -> datetime:
        """The database's clock, as this transaction sees it throughout."""
        now: datetime = self.session.connection().exec_driver_sql("SELECT now()").scalar_one()
        return now

    def clock_skew(self) -> float:
        """Seconds that this machine's clock is ahead of the database's; the round trip's middle counts."""
        before = time.time()
        theirs: Any = self.session.connection().exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar()
        return (before + time.time()) / 2 - float(theirs)

    def database_uptime(self) -> float:
        """Seconds since the database server started."""
        since = text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
        return float(self.session.execute(since).scalar_one())

    @cached_property
    def jobs(self) -> Jobs:
        """Jobs and their outputs."""
        return Jobs(self.session)

    @cached_property
    def running_jobs(self) -> RunningJobs:
        """Jobs in workers' hands."""
        return RunningJobs(self.session)

    @cached_property
    def checkpoints(self) -> StoredCheckpoints:
        """The stored work of jobs that have not finished."""
        return StoredCheckpoints(self.session)

    @cached_property
    def queues(self) -> Queues:
        """Jobs that wait, as the dispatcher sees them."""
        return Queues(self.session)

    @cached_property
    def batches(self) -> Batches:
        """Batches and their counters."""
        return Batches(self.session)

    @cached_property
    def dependencies(self) -> Dependencies:
        """Jobs whose inputs are outputs of other jobs."""
        return Dependencies(self.session)

    @cached_property
    def staged_chains(self) -> StagedChains:
        """The same among jobs that are being submitted."""
        return StagedChains(self.session)

    @cached_property
    def retried_chains(self) -> RetriedChains:
        """The same among jobs that are being retried."""
        return RetriedChains(self.session)

    @cached_property
    def pending_deletions(self) -> PendingDeletions:
        """Objects to be removed."""
        return PendingDeletions(self.session)

    @cached_property
    def events(self) -> Events:
        """The event table and notifications."""
        return Events(self.session)

    @cached_property
    def workers(self) -> Workers:
        """Workers."""
        return Workers(self.session)

    @cached_property
    def numerics(self) -> NumericsClasses:
        """The numerics classes of workers."""
        return NumericsClasses(self.session)

    @cached_property
    def tenants(self) -> Tenants:
        """Tenants and API keys."""
        return Tenants(self.session)

    @cached_property
    def sessions(self) -> Sessions:
        """Who is signed in to the dashboard."""
        return Sessions(self.session)

    @cached_property
    def join_tokens(self) -> JoinTokens:
        """Tokens of workers that join."""
        return JoinTokens(self.session)

    @cached_property
    def usage(self) -> Usage:
        """What tenants have used."""
        return Usage(self.session)

    @cached_property
    def quotas(self) -> Quotas:
        """The limits of what may wait."""
        return Quotas(self.session, self._counts)

    @cached_property
    def job_failures(self) -> JobFailures:
        """Which workers failed which jobs."""
        return JobFailures(self.session)

    @cached_property
    def pauses(self) -> Pauses:
        """What operators have stopped."""
        return Pauses(self.session)

    @cached_property
    def audit(self) -> Audit:
        """Who changed what."""
        return Audit(self.session)

    @cached_property
    def waiting(self) -> WaitingJobs:
        """Queued jobs, and what they wait for."""
        return WaitingJobs(self.session)

    @cached_property
    def models(self) -> Models:
        """Models that were added while the farm runs."""
        return Models(self.session, self.events)

    @cached_property
    def activity(self) -> ActivityStats:
        """What ended lately."""
        return ActivityStats(self.session)

    @cached_property
    def bulk_actions(self) -> BulkActions:
        """Many jobs at once."""
        return BulkActions(self.session)

    @cached_property
    def dashboard_queries(self) -> DashboardQueries:
        """Jobs and batches for a person who looks."""
        return DashboardQueries(self.session)

    @cached_property
    def files(self) -> Files:
        """Input images."""
        return Files(self.session)

    @cached_property
    def outputs(self) -> Outputs:
        """What is recorded about the objects of jobs that succeeded."""
        return Outputs(self.session)

    @cached_property
    def gallery(self) -> Gallery:
        """Outputs as people look for them."""
        return Gallery(self.session)

    @cached_property
    def request_files(self) -> RequestFiles:
        """Files of requests for batches."""
        return RequestFiles(self.session)

    @cached_property
    def unanswered(self) -> Unanswered:
        """Requests whose clients wait for a job."""
        return Unanswered(self.session)

    @cached_property
    def webhooks(self) -> Webhooks:
        """Endpoints of webhooks."""
        return Webhooks(self.session)

    @cached_property
    def outbox(self) -> Outbox:
        """Events that have not been delivered yet."""
        return Outbox(self.session)

    @cached_property
    def delivery_leases(self) -> DeliveryLeases:
        """Deliveries in a deliverer's hands."""
        return DeliveryLeases(self.session)

    @cached_property
    def delivery_results(self) -> DeliveryResults:
        """The results of delivery attempts."""
        return DeliveryResults(self.session)

    @cached_property
    def deliveries(self) -> Deliveries:
        """What was sent to endpoints, and sending it again."""
        return Deliveries(self.session)


class Store:
    """A pool of connections to the database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._place = str(engine.get_execution_options().get("place", ""))  # for messages
        self._counts = CountCache()
        self._looking = engine.execution_options(isolation_level="AUTOCOMMIT")  # over the same connections

    @classmethod
    def connect(cls, settings: Settings, *, pool: int = 10) -> Store:
        """A store over ``FARM_DATABASE_URL`` with at most ``pool`` connections; none is opened yet."""
        return cls(make_engine(Database.of(settings), pool=pool))

    @contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        """One unit of work: commits at the end of the block, rolls back on any error.

        Raises `DatabaseUnavailable` when the server does not answer.
        """
        with _translated(self._place), Session(self.engine, expire_on_commit=False) as session, session.begin():
            unit = UnitOfWork(session, self._counts)
            yield unit
            unit.batches.flush_counters()
            unit.events.flush()

    @contextmanager
    def look(self) -> Iterator[UnitOfWork]:
        """For single statements that change nothing: each sees the database by itself, for half of the round trips.

        Raises `DatabaseUnavailable` when the server does not answer.
        """
        with _translated(self._place), Session(self._looking, expire_on_commit=False) as session:
            yield UnitOfWork(session, self._counts)

    def check_writes(self) -> None:
        """Raise `DatabaseUnavailable` unless the database takes a write."""
        with self.begin() as unit:
            unit.session.execute(text("INSERT INTO probe (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET at = now()"))

    def check(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""
        with self.begin() as unit:
            unit.session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """Raise the driver's errors of an unavailable server as `DatabaseUnavailable`."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise database_unavailable(error, place) from error
    except DBAPIError as error:
        # read-only: a standby, which a failover is about to promote
        if error.connection_invalidated or isinstance(error.orig, (pg.OperationalError, pg.ReadOnlySqlTransaction)):
            raise database_unavailable(error, place) from error
        raise


def make_engine(database: Database | str, *, pool: int) -> Engine:
    """An engine over a database, or a URL of one, whose connections fail fast and never linger in a transaction."""
    where = Database.parse(database) if isinstance(database, str) else database
    engine = create_engine(
        "postgresql+psycopg://",
        creator=where.connect,
        execution_options={"place": where.place},
        pool_size=pool,
        max_overflow=0,
        pool_timeout=5,
        pool_use_lifo=True,  # few warm connections, whose statements are prepared, rather than many cold ones
    )

    @event.listens_for(engine, "begin")
    def limit(connection: SqlConnection) -> None:
        """Behind a pooler the limits of statements hold for a transaction; for single statements they are its own."""
        driver = connection.connection.driver_connection
        if isinstance(driver, Connection) and driver.pooled and not driver.autocommit:
            connection.exec_driver_sql(LOCAL_LIMITS)

    @event.listens_for(engine, "checkout")
    def replace_dropped(connection: Any, _: object, __: object) -> None:
        """A connection that a restarted server dropped is replaced before use instead of failing a request.

        An idle connection has nothing to be read, unless the server said good-bye: that costs no round trip to see, and
        asking at each use would be a tenth of all statements. What is there to be read may be something else.
        """
        try:
            if connection.closed or (_readable(connection.fileno()) and not engine.dialect.do_ping(connection)):
                raise DisconnectionError
        except psycopg.Error as error:
            raise DisconnectionError from error

    return engine


def _readable(socket: int) -> bool:
    waiting = select.poll()
    waiting.register(socket, select.POLLIN)
    return bool(waiting.poll(0))
