"""Whether the process is up, and whether it can work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import anyio
import anyio.to_thread
import structlog
from fastapi import APIRouter, Response
from pydantic import BaseModel

from farm import __version__
from farm.api.dependencies import AppContext, Context
from farm.errors import BrokerUnavailable, SetupError, Unavailable
from farm.store.migrate import require_schema

log = structlog.get_logger(__name__)

router: Final = APIRouter(tags=["health"])

Part = Literal["ok", "error"]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """The servers that the API needs."""

    status: Part
    database: Part
    redis: Part
    storage: Part


@router.get("/healthz", summary="Is the process up?")
async def healthz() -> Health:
    """Succeeds as long as the process runs, whatever else is down."""
    return Health()


@router.get(
    "/readyz",
    summary="Can it work?",
    responses={503: {"description": "A server that the API needs does not respond.", "model": Readiness}},
)
async def readyz(context: Context, response: Response) -> Readiness:
    """Checks the database, Redis and the object storage, all at once, with a short timeout."""
    parts: dict[str, Part] = {}

    async def ask(name: str, check: Callable[[], object]) -> None:
        try:
            await anyio.to_thread.run_sync(check)
        except (Unavailable, SetupError) as error:
            log.warning("not ready", action="not_ready", part=name, error=str(error))
            parts[name] = "error"
        else:
            parts[name] = "ok"

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "database", lambda: require_schema(context.store))
        group.start_soon(ask, "redis", lambda: _ping(context))
        group.start_soon(ask, "storage", context.storage.check)
    ready = set(parts.values()) == {"ok"}
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"
    return Readiness(
        status="ok" if ready else "error",
        database=parts["database"],
        redis=parts["redis"],
        storage=parts["storage"],
    )


def _ping(context: AppContext) -> None:
    if context.broker is None:
        raise BrokerUnavailable("FARM_REDIS_URL is not set")
    context.broker.require_usable()
