"""Renders what clients ask for, by what their prompts say, without a device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from farm import lifecycle
from farm.domain.job import Job
from farm.errors import LeaseLost
from tests import job_edges
from tests.api_server import Api, Hand


class Painter:
    """Fails jobs whose prompt says "fail", leaves those that say "wait" in the queue, and stops half way at "slow"."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._hand = Hand(api)
        self._slow: list[Job] = []

    def work(self) -> None:
        for job_id in self._hand.queued():
            with self._api.store.begin() as unit:
                job = unit.jobs.get(job_id)
            if job is None or "wait" in job.spec.prompt:
                continue
            try:
                begun = self._hand.begin(job_id)
                self._hand.step(begun, 10)
                if "slow" in job.spec.prompt:
                    self._slow.append(begun)
                elif "fail" in job.spec.prompt:
                    self._hand.fail(begun)
                else:
                    self._hand.succeed(begun)
            except (LeaseLost, ValueError):
                continue  # canceled in between
        for job in tuple(self._slow):
            with self._api.store.begin() as unit:
                if job_edges.progress(unit, job.id, job.epoch, 10):
                    lifecycle.confirm_cancel(unit, job.id, job.epoch)
                    self._slow.remove(job)


@contextmanager
def painting(api: Api) -> Iterator[None]:
    """A painter at work."""
    painter, stopping = Painter(api), threading.Event()

    def run() -> None:
        while not stopping.wait(0.02):
            painter.work()

    thread = threading.Thread(target=run, name="painter")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
