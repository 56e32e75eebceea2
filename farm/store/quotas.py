"""How many jobs of a tenant wait, for its limit.

Counting takes time: 300,000 waiting jobs 150 ms, where accepting a job takes 8. So for single jobs a large queue is
counted once in a while, and what this process accepts meanwhile is added. What other processes accept meanwhile is not,
and jobs that left are still there: the limit of a large queue holds to what comes in `COUNT_TTL_SECONDS`. Many at once
are preceded by a count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.domain.states import JobState
from farm.store.tables import JobRow

EXACT_LIMIT: Final = 1_000  #: a limit up to which each job is preceded by a count
COUNT_TTL_SECONDS: Final = 2.0  #: how long a count of a large queue is good for


@dataclass
class _Count:
    at: float  #: monotonic seconds
    jobs: int


class CountCache:
    """What this process counted lately, by tenant."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, _Count] = {}

    def find(self, tenant_id: str) -> _Count | None:
        """The tenant's count, if it is good still."""
        found = self._by_tenant.get(tenant_id)
        return found if found is not None and time.monotonic() < found.at + COUNT_TTL_SECONDS else None

    def keep(self, tenant_id: str, jobs: int) -> _Count:
        """Note a count."""
        self._by_tenant[tenant_id] = count = _Count(time.monotonic(), jobs)
        return count


class Quotas:
    """The limits of what may wait."""

    def __init__(self, session: Session, counts: CountCache) -> None:
        self._session = session
        self._counts = counts

    def waiting(self, tenant_id: str, at_most: int) -> int:
        """How many of the tenant's jobs wait, counted up to ``at_most``."""
        jobs = 0
        for state in (JobState.QUEUED, JobState.PENDING):  # each by its own index
            waiting = select(JobRow.id).where(JobRow.tenant_id == tenant_id, JobRow.state == state.value)
            counted = select(func.count()).select_from(waiting.limit(max(0, at_most - jobs)).subquery())
            jobs += self._session.scalar(counted) or 0
        return jobs

    def admit(self, tenant_id: str, jobs: int, limit: int) -> bool:
        """Whether so many more may wait: if so, they count from now on."""
        count = self._counts.find(tenant_id) if jobs == 1 and limit > EXACT_LIMIT else None
        if count is None:
            count = self._counts.keep(tenant_id, self.waiting(tenant_id, limit))
        if count.jobs + jobs > limit:
            return False
        count.jobs += jobs
        return True
