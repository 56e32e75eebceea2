"""Threads for one kind of blocking work, of which no tenant gets all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from farm.errors import QuotaExceeded

T = TypeVar("T")

RETRY_SECONDS: Final = 5.0


class TenantThreads:
    """At most so many threads, for one event loop.

    Args:
        what: the message for a tenant with too many waiting requests.
        total: threads.
        per_tenant: threads of one tenant.
        max_waiting: requests of one tenant that may wait for one of its threads.
    """

    def __init__(self, what: str, *, total: int, per_tenant: int, max_waiting: int) -> None:
        self._what = what
        self._all = anyio.CapacityLimiter(total)
        self._per_tenant = per_tenant
        self._max_waiting = max_waiting
        self._tenants: dict[str, anyio.CapacityLimiter] = {}

    async def run(self, tenant_id: str, function: Callable[[], T]) -> T:
        """Call the function in a thread. Raises what it raises, and `QuotaExceeded` if too many of the tenant wait."""
        own = self._tenants.setdefault(tenant_id, anyio.CapacityLimiter(self._per_tenant))
        if own.statistics().tasks_waiting >= self._max_waiting:
            raise QuotaExceeded(f"{self._max_waiting} requests of this tenant wait to {self._what}", RETRY_SECONDS)
        try:
            async with own:
                return await anyio.to_thread.run_sync(function, limiter=self._all)
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._tenants.pop(tenant_id, None)
