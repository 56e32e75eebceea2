"""How workers on other machines join: tokens that an operator makes, and what a worker learns with one.

A token gives a worker the database by a role that does what workers do (`farm.store.worker_role`), the broker and the
bucket. With that it can read and change every tenant's jobs, read their inputs and outputs, and take messages of other
workers; it reads no API key and no webhook secret, and runs nothing on the servers. Without ``FARM_JOIN_DATABASE_URL``
nobody joins.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Self
from urllib.parse import urlsplit, urlunsplit

import structlog
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api.auth import Admin
from farm.api.dependencies import Context
from farm.api.idempotency import Once
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.domain import ids
from farm.errors import NotFound, Unauthorized
from farm.fields import NoNul, Storable
from farm.settings import Settings
from farm.store.join_tokens import DAY_SECONDS, JoinToken

log = structlog.get_logger(__name__)

joining: Final = APIRouter(tags=["workers"])
router: Final = APIRouter(prefix="/v1/join-tokens", tags=["workers"], route_class=AuthenticatedRoute)

TokenId = Annotated[
    str, Path(description="The token's id.", json_schema_extra={"pattern": ids.pattern(ids.JOIN_TOKEN)})
]


class WorkerEnvironment(BaseModel):
    """What a worker's environment needs, and the registry of models when it is not the built-in one."""

    environment: dict[str, str]
    models: str | None = None


class JoinTokenCreate(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), Storable, NoNul] = Field(
        description="A description."
    )
    seconds: int = Field(DAY_SECONDS, ge=60, le=365 * DAY_SECONDS, description="How long workers may join with it.")


class JoinTokenSchema(BaseModel):
    """A token of workers that join, without its secret."""

    id: str
    name: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="When a worker last joined with it.")

    @classmethod
    def of(cls, token: JoinToken) -> Self:
        """A token as the API shows it."""
        return cls(
            id=token.id,
            name=token.name,
            created_at=token.created_at,
            expires_at=token.expires_at,
            revoked_at=token.revoked_at,
            last_used_at=token.last_used_at,
        )


class NewJoinTokenSchema(JoinTokenSchema):
    """A token with its text, which is shown this once."""

    token: str


class JoinTokenList(BaseModel):
    """All tokens, newest first."""

    data: list[JoinTokenSchema]


@router.get("", summary="List join tokens", responses=responses(*ALWAYS))
def list_tokens(context: Context, _: Admin) -> JoinTokenList:
    """The tokens with which workers on other machines join, newest first, without their secrets."""
    with context.store.begin() as unit:
        return JoinTokenList(data=[JoinTokenSchema.of(one) for one in unit.join_tokens.all()])


@router.post("", status_code=201, summary="Make a join token", responses=responses(*ALWAYS, 413, 415))
def create_token(context: Context, admin: Admin, once: Once, request: JoinTokenCreate) -> NewJoinTokenSchema:
    """A token with which workers may join until it expires. Its text is only in this response."""
    with context.store.begin() as unit:

        def make() -> NewJoinTokenSchema:
            token, text = unit.join_tokens.create(request.name, request.seconds)
            return NewJoinTokenSchema(**JoinTokenSchema.of(token).model_dump(), token=text)

        made = once.once(unit, NewJoinTokenSchema, make)
    log.info("join token made", action="join_token_made", token=made.id, key=admin.id)
    return made


@router.delete("/{token_id}", summary="Revoke a join token", responses=responses(*ALWAYS, 404))
def revoke_token(context: Context, _: Admin, token_id: TokenId) -> JoinTokenSchema:
    """Let nobody else join with it. Workers that have joined go on: change the role's password to end them, too."""
    with context.store.begin() as unit:
        return JoinTokenSchema.of(unit.join_tokens.revoke(token_id))


@joining.get("/v1/join", include_in_schema=False)
def join(context: Context, request: Request, response: Response) -> WorkerEnvironment:
    """The servers' addresses and secrets, as a worker on another machine reaches them."""
    if context.settings.join_database_url is None:
        raise NotFound("route", "/v1/join")
    scheme, _, given = (request.headers.get("authorization") or "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("this is for workers that join: send a join token, `Authorization: Bearer join_…`")
    with context.store.begin() as unit:
        token = unit.join_tokens.use(given.strip())
    address = request.client.host if request.client else None
    log.info("a worker joins", action="join_asked", address=address, token=token.id)
    response.headers["Cache-Control"] = "no-store"
    file = context.settings.models_file
    return WorkerEnvironment(
        environment=environment(context.settings), models=None if file is None else file.read_text("utf-8")
    )


def environment(settings: Settings) -> dict[str, str]:
    """The ``FARM_*`` variables of a worker elsewhere, with loopback named as others reach it."""
    secret = {
        "FARM_DATABASE_URL": settings.join_database_url,
        "FARM_REDIS_URL": settings.join_redis_url or settings.redis_url,
        "FARM_S3_SECRET_KEY": settings.join_s3_secret_key or settings.s3_secret_key,
    }
    plain = {
        "FARM_S3_ENDPOINT_URL": settings.join_s3_endpoint_url or settings.s3_endpoint_url,
        "FARM_S3_ACCESS_KEY": settings.join_s3_access_key or settings.s3_access_key,
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
    if host is None or "," in parts.netloc or parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        return url
    login, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port is not None else ""
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}{port}"))
