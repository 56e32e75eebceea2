"""What one would write first instead of a deliverer: a Celery task per event that posts with ``requests``."""

from __future__ import annotations

import os
import time
from typing import Any

import requests
from celery import Celery

from farm.webhooks import signature

app = Celery("webhooks", broker=os.environ.get("BENCH_BROKER"), set_as_current=False)


@app.task(name="webhooks.deliver", bind=True, max_retries=10, ignore_result=True)
def deliver(self: Any, url: str, secret: str, message_id: str, body: str) -> None:
    """POST one event, or try again later."""
    headers = signature.headers([secret], message_id, int(time.time()), body.encode())
    try:
        answer = requests.post(
            url, data=body.encode(), headers=headers | {"Content-Type": "application/json"}, timeout=20
        )
        answer.raise_for_status()
    except requests.RequestException as error:
        raise self.retry(exc=error, countdown=5) from error
