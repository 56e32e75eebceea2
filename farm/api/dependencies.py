"""What every request may use, opened when the process starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import anyio
from fastapi import Depends, Request

from farm.api.notifications import ChangeNotifier
from farm.api.rate_limit import RateLimiter
from farm.domain.requests import AnyJobRequest
from farm.redis_server import RedisServer
from farm.services import inputs
from farm.services.context import ServiceContext
from farm.services.server_health import ServerHealth


@dataclass(frozen=True, kw_only=True)
class AppContext(ServiceContext):
    """What the API's process has besides."""

    notifier: ChangeNotifier
    broker: RedisServer | None  #: for `health` only
    health: ServerHealth
    rate_limiter: RateLimiter | None  #: None: requests are not limited
    fetching: anyio.CapacityLimiter  #: threads that fetch and store images; slow URLs do not delay other requests
    drawing: anyio.CapacityLimiter  #: threads that draw contact sheets; few, because each holds a large image
    bulk: anyio.CapacityLimiter  #: threads that read streamed bodies, each with a database connection

    def submit_limiter(self, request: AnyJobRequest) -> anyio.CapacityLimiter | None:
        """The threads that submit this request; None: the default ones."""
        return self.fetching if inputs.must_be_stored(request) else None


async def _context(request: Request) -> AppContext:
    return cast("AppContext", request.app.state.context)


#: What an endpoint asks for to get them.
Context = Annotated[AppContext, Depends(_context)]
