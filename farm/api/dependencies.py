"""What every request may use, opened when the process starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, cast

import anyio
import anyio.to_thread
from fastapi import Depends, Request

from farm.api.notifications import ChangeNotifier
from farm.api.rate_limit import RateLimiter
from farm.api.tenant_threads import TenantThreads
from farm.domain.requests import AnyJobRequest
from farm.redis_server import RedisServer
from farm.services import inputs
from farm.services.context import ServiceContext
from farm.services.server_health import ServerHealth

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AppContext(ServiceContext):
    """What the API's process has besides."""

    notifier: ChangeNotifier
    broker: RedisServer | None  #: for `health` only
    health: ServerHealth
    rate_limiter: RateLimiter | None  #: None: requests are not limited
    fetching: TenantThreads  #: fetch images by URL; slow servers do not delay anything else
    storing: TenantThreads  #: decode and store images that came with a request
    bulk: TenantThreads  #: check and submit bulk requests, each with a database connection
    drawing: anyio.CapacityLimiter  #: threads that draw contact sheets; few, because each holds a large image

    async def run_submit(self, tenant_id: str, request: AnyJobRequest, submit: Callable[[], T]) -> T:
        """Call what submits a request, in a thread that may take as long as the request's images need."""
        given = [reference for references in request.references().values() for reference in references]
        if any(map(inputs.is_url, given)):
            return await self.fetching.run(tenant_id, submit)
        if not all(map(inputs.is_stored, given)):
            return await self.storing.run(tenant_id, submit)
        return await anyio.to_thread.run_sync(submit)


async def _context(request: Request) -> AppContext:
    return cast("AppContext", request.app.state.context)


#: What an endpoint asks for to get them.
Context = Annotated[AppContext, Depends(_context)]
