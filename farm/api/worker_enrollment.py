"""How a worker on another machine learns where the farm's servers are: with the farm's join token, nothing else.

What it answers opens the database, so no API key of any tenant reaches it: the token is the operators' own, and
without one (``FARM_JOIN_TOKEN``) the route does not exist.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from farm.api.dependencies import Context
from farm.errors import NotFound, Unauthorized
from farm.settings import Settings

log = structlog.get_logger(__name__)

router: Final = APIRouter(tags=["workers"])


class WorkerEnvironment(BaseModel):
    """What a worker's environment needs, and the registry of models when it is not the built-in one."""

    environment: dict[str, str]
    models: str | None = None


@router.get("/v1/join", include_in_schema=False)
def join(context: Context, request: Request, response: Response) -> WorkerEnvironment:
    """The servers' addresses and secrets, as a worker on another machine reaches them."""
    token = context.settings.join_token
    if token is None:
        raise NotFound("route", "/v1/join")
    scheme, _, given = (request.headers.get("authorization") or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode()):
        raise Unauthorized("this is for workers that join: send the farm's join token, `Authorization: Bearer join_…`")
    log.info("a worker asks to join", action="join_asked", address=request.client.host if request.client else None)
    response.headers["Cache-Control"] = "no-store"
    file = context.settings.models_file
    return WorkerEnvironment(
        environment=environment(context.settings), models=None if file is None else file.read_text("utf-8")
    )


def environment(settings: Settings) -> dict[str, str]:
    """The ``FARM_*`` variables of a worker elsewhere: this process's own, with loopback named as others reach it."""
    secret = {
        "FARM_DATABASE_URL": settings.database_url,
        "FARM_REDIS_URL": settings.redis_url,
        "FARM_S3_SECRET_KEY": settings.s3_secret_key,
    }
    plain = {
        "FARM_S3_ENDPOINT_URL": settings.s3_endpoint_url,
        "FARM_S3_ACCESS_KEY": settings.s3_access_key,
        "FARM_S3_REGION": settings.s3_region,
        "FARM_S3_BUCKET": settings.s3_bucket,
        "FARM_RUN_LEASE_SECONDS": str(settings.run_lease_seconds),
        "FARM_HEARTBEAT_SECONDS": str(settings.heartbeat_seconds),
        "FARM_PREFETCH": str(settings.prefetch),
    }
    found = {name: value.get_secret_value() for name, value in secret.items() if value is not None}
    found |= {name: value for name, value in plain.items() if value is not None}
    return {
        name: external_url(value, settings.join_host) if name.endswith("_URL") else value
        for name, value in found.items()
    }


def external_url(url: str, host: str | None) -> str:
    """A URL with its loopback host replaced by the name of this machine on the network."""
    parts = urlsplit(url)
    if host is None or parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        return url
    login, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port is not None else ""
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}{port}"))
