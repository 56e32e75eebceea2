"""What every request may use, opened when the process starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import anyio
import redis
from fastapi import Depends, Request

from farm.api.cleanup import CleanupThread
from farm.api.notifications import ChangeNotifier
from farm.api.rate_limit import RateLimiter
from farm.domain.model import Registry
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store


@dataclass(frozen=True)
class AppContext:
    """The API's connections. One of each per process."""

    settings: Settings
    store: Store
    storage: Storage
    registry: Registry
    intake: Intake
    notifier: ChangeNotifier
    broker: redis.Redis | None  #: asked whether it answers, and nothing else
    fetching: anyio.CapacityLimiter  #: threads of their own, so that slow image URLs do not hold up everybody else
    cleanup: CleanupThread
    drawing: anyio.CapacityLimiter  #: threads that draw contact sheets, few because each holds a large image
    rate_limiter: RateLimiter | None  #: None: tenants may send as many requests as they like
    bulk: anyio.CapacityLimiter  #: threads for streamed bodies, each with a connection to the database while it comes


async def _context(request: Request) -> AppContext:
    return cast("AppContext", request.app.state.context)


#: What an endpoint asks for to get them.
Context = Annotated[AppContext, Depends(_context)]
