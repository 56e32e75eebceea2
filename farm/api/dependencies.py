"""What every request may use, opened when the process starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import anyio
import redis
from fastapi import Depends, Request

from farm.api.cleanup import Sweeper
from farm.api.notifications import Changes
from farm.api.rate_limit import Rates
from farm.domain.model import Registry
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store


@dataclass(frozen=True)
class Services:
    """The API's connections. One of each per process."""

    settings: Settings
    store: Store
    storage: Storage
    registry: Registry
    intake: Intake
    changes: Changes
    broker: redis.Redis | None  #: asked whether it answers, and nothing else
    fetching: anyio.CapacityLimiter  #: threads of their own, so that slow image URLs do not hold up everybody else
    sweeper: Sweeper
    drawing: anyio.CapacityLimiter  #: threads that draw contact sheets, few because each holds a large image
    rates: Rates | None  #: None: tenants may send as many requests as they like
    bulk: anyio.CapacityLimiter  #: threads for streamed bodies, each with a connection to the database while it comes


async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


#: What an endpoint asks for to get them.
Farm = Annotated[Services, Depends(_services)]
