"""Answering when a job is finished, instead of at once."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext
from farm.api.notifications import REREAD_SECONDS
from farm.domain.job import Job
from farm.services import jobs

_WAIT: Final = re.compile(r'\s*wait\s*(?:=\s*"?([0-9]{1,9})"?)?\s*', re.ASCII | re.IGNORECASE)


def parse_prefer_wait(prefer: str | None, longest: float) -> float | None:
    """The seconds that a ``Prefer`` header asks to wait for (RFC 7240), or None; other preferences are ignored."""
    for part in (prefer or "").split(","):
        found = _WAIT.fullmatch(part.split(";", 1)[0])
        if found:
            return longest if found[1] is None else min(float(found[1]), longest)
    return None


async def wait(context: AppContext, job: Job, seconds: float) -> Job:
    """The job when it is finished, or as it is after that many seconds, or when the process ends."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with context.notifier.subscribe(job.id) as changes:
        while True:
            now = await run_in_threadpool(jobs.get, context, job.tenant_id, job.id)
            left = deadline - loop.time()
            if now.state.terminal or left <= 0 or changes.closing:
                return now
            await changes.wait(min(left, REREAD_SECONDS))
