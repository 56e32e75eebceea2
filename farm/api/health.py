"""Whether the process is up, and whether it can work."""

from __future__ import annotations

from typing import Final, Literal

import anyio
import anyio.to_thread
import structlog
from fastapi import APIRouter, Response
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

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """Whether the API can serve, and the servers that the farm needs."""

    status: Literal["ok", "degraded", "error"] = Field(
        description="`error`: requests fail. `degraded`: jobs are accepted and wait: Redis or S3 takes no writes."
    )
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
    responses={503: {"description": "The database does not answer or takes no writes.", "model": Readiness}},
)
async def readyz(context: Context, response: Response) -> Readiness:
    """Checks the database, which alone the API needs, and says what the last writes to the other servers found."""
    parts: dict[str, Part] = dict.fromkeys(SERVERS, "ok")
    for name in context.health.problems:
        parts[name] = "error"
    try:
        await anyio.to_thread.run_sync(require_schema, context.store)
    except (Unavailable, SetupError) as error:
        log.warning("not ready", action="not_ready", part=DATABASE, error=str(error))
        parts[DATABASE] = "error"
    ready = parts[DATABASE] == "ok"
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"
    return Readiness(
        status="error" if not ready else "degraded" if "error" in parts.values() else "ok",
        database=parts[DATABASE],
        redis=parts[REDIS],
        storage=parts[STORAGE],
    )
