"""Celery by itself with a task that does nothing: the peer in `tests.bench.overhead`, over ``BARE_BROKER``."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("bare", broker=os.environ["BARE_BROKER"], set_as_current=False)


@app.task(name="bare.nothing", ignore_result=True)
def nothing(**_: object) -> None:
    """Do nothing."""
