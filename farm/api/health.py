"""Whether the process is up, and whether it can work."""

from __future__ import annotations

from typing import Final, Literal

import anyio
import anyio.to_thread
import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from farm import __version__
from farm.api.dependencies import Context
from farm.errors import SetupError, Unavailable
from farm.services.server_health import DATABASE, REDIS, SERVERS, STORAGE
from farm.store.migrate import require_schema

log = structlog.get_logger(__name__)

router: Final = APIRouter(tags=["health"])

Part = Literal["ok", "error"]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok", "stopping"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """Whether the API can serve, and the servers that the farm needs."""

    status: Literal["ok", "degraded", "error", "stopping"] = Field(
        description="`error`: requests fail. `degraded`: jobs are accepted and wait: Redis or S3 takes no writes. "
        "`stopping`: requests are answered for a few more seconds; send new ones to another process."
    )
    database: Part
    redis: Part
    storage: Part


@router.get(
    "/healthz",
    summary="Is the process up?",
    responses={503: {"description": "The process has the signal to stop.", "model": Health}},
)
async def healthz(request: Request, response: Response) -> Health:
    """Succeeds as long as the process runs, whatever else is down, until it has the signal to stop."""
    stopping = request.app.state.stopping
    response.status_code = 503 if stopping else 200
    return Health(status="stopping" if stopping else "ok")


@router.get(
    "/readyz",
    summary="Can it work?",
    responses={
        503: {
            "description": "The database does not answer or takes no writes, or the process stops.",
            "model": Readiness,
        }
    },
)
async def readyz(context: Context, request: Request, response: Response) -> Readiness:
    """Checks the database, which alone the API needs, and says what the last writes to the other servers found."""
    parts: dict[str, Part] = dict.fromkeys(SERVERS, "ok")
    for name in context.health.problems:
        parts[name] = "error"
    try:
        await anyio.to_thread.run_sync(require_schema, context.store)
    except (Unavailable, SetupError) as error:
        log.warning("not ready", action="not_ready", part=DATABASE, error=str(error))
        parts[DATABASE] = "error"
    stopping = request.app.state.stopping
    works = parts[DATABASE] == "ok"
    response.status_code = 200 if works and not stopping else 503
    response.headers["Cache-Control"] = "no-store"
    status: Literal["ok", "degraded", "error", "stopping"] = "degraded" if "error" in parts.values() else "ok"
    if not works:
        status = "error"
    return Readiness(
        status="stopping" if stopping else status,
        database=parts[DATABASE],
        redis=parts[REDIS],
        storage=parts[STORAGE],
    )
