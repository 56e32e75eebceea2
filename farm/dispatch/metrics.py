"""How the whole farm stands, for the metrics of the dispatcher that leads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from farm.errors import FarmError
from farm.store.queue_stats import Standing, standing
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()

FRESH_SECONDS: Final = 10.0  #: however often somebody scrapes, the database is asked no more often


class FarmGauges(Collector):
    """Jobs and workers by state, asked for when they are scraped; nothing while another dispatcher leads."""

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store = store
        self._leads = leads
        self._known: Standing | None = None
        self._asked_at = 0.0

    def describe(self) -> Iterable[Metric]:
        """The names, without asking the database."""
        return _families(None)

    def collect(self) -> Iterable[Metric]:
        """The numbers; none while the database is away, which shows as a gap."""
        if not self._leads():
            return ()
        now = time.monotonic()
        if self._known is None or now - self._asked_at > FRESH_SECONDS:
            try:
                with self._store.begin() as unit:
                    self._known = standing(unit.session)
            except FarmError as error:
                log.warning("no gauges", action="gauges_failed", error=str(error))
                self._known = None
                return ()
            self._asked_at = now
        return _families(self._known)


def _families(known: Standing | None) -> list[Metric]:
    jobs = GaugeMetricFamily("farm_jobs", "Jobs that are not over, by state and model.", labels=["state", "model"])
    oldest = GaugeMetricFamily(
        "farm_queue_oldest_age_seconds", "Age of the job that has waited longest.", labels=["model"]
    )
    workers = GaugeMetricFamily("farm_workers", "Workers, by state.", labels=["state"])
    if known is not None:
        for one in known.lines:
            jobs.add_metric([one.state, one.model], one.jobs)
            if one.state == "queued":
                oldest.add_metric([one.model], one.oldest_seconds)
        for state, count in known.workers.items():
            workers.add_metric([state], count)
    return [jobs, oldest, workers]
