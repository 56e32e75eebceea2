"""Gauges of the whole farm, which the leading dispatcher exports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from farm.errors import FarmError
from farm.store.queue_stats import QueueStats, queue_stats
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()

CACHE_SECONDS: Final = 10.0  #: the database is queried at most this often, however often metrics are scraped


class FarmGauges(Collector):
    """Jobs and workers by state, read when they are scraped; nothing while another dispatcher leads."""

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store = store
        self._leads = leads
        self._stats: QueueStats | None = None
        self._read_at = 0.0

    def describe(self) -> Iterable[Metric]:
        """The names, without asking the database."""
        return _families(None)

    def collect(self) -> Iterable[Metric]:
        """The numbers; none while the database is unavailable, which shows as a gap."""
        if not self._leads():
            return ()
        now = time.monotonic()
        if self._stats is None or now - self._read_at > CACHE_SECONDS:
            try:
                with self._store.begin() as unit:
                    self._stats = queue_stats(unit.session)
            except FarmError as error:
                log.warning("gauges not collected", action="gauges_failed", error=str(error))
                self._stats = None
                return ()
            self._read_at = now
        return _families(self._stats)


def _families(stats: QueueStats | None) -> list[Metric]:
    jobs = GaugeMetricFamily("farm_jobs", "Jobs that are not finished, by state and model.", labels=["state", "model"])
    oldest = GaugeMetricFamily(
        "farm_queue_oldest_age_seconds", "Age of the oldest queued job, by model.", labels=["model"]
    )
    workers = GaugeMetricFamily("farm_workers", "Workers, by state.", labels=["state"])
    if stats is not None:
        for one in stats.jobs:
            jobs.add_metric([one.state, one.model], one.jobs)
            if one.state == "queued":
                oldest.add_metric([one.model], one.oldest_seconds)
        for state, count in stats.workers.items():
            workers.add_metric([state], count)
    return [jobs, oldest, workers]
