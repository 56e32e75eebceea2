"""The FastAPI app: what is opened at the start, and the routers by noun."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import anyio
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from farm import __version__
from farm.api import (
    audit,
    batches,
    bulk_actions,
    compat,
    docs,
    files,
    gallery,
    health,
    jobs,
    keys,
    models,
    numerics,
    outputs,
    pauses,
    problems,
    tenants,
    usage,
    webhooks,
    worker_enrollment,
    workers,
)
from farm.api.batches import MAX_JSON, MAX_JSON_STRUCTURE
from farm.api.body_limits import BodyLimit, BodyLimitMiddleware
from farm.api.dependencies import AppContext
from farm.api.head import HeadMiddleware
from farm.api.middleware import RequestMiddleware
from farm.api.notifications import ChangeNotifier
from farm.api.query import known_query_parameters
from farm.api.rate_limit import RateLimiter
from farm.api.tenant_threads import TenantThreads
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.redis_server import RedisServer
from farm.services.cleanup import CleanupThread
from farm.services.live_registry import LiveRegistry
from farm.services.server_health import ServerHealth
from farm.settings import Settings
from farm.store.connection import Database
from farm.store.unit_of_work import Store

DESCRIPTION: Final = """\
Submit diffusion jobs, follow them, and get the images from object storage.

Every request under `/v1` carries an API key: `Authorization: Bearer farm_…`. Every error is an
`application/problem+json` document (RFC 9457). A field that is not known is refused, never ignored.
"""
DRAWING_THREADS: Final = 2
FORM_BYTES: Final = 64 * 2**10  #: what a form may add around a file


def create_app(settings: Settings, limits: Mapping[str, BodyLimit] = MappingProxyType({})) -> FastAPI:
    """The API over the servers that the settings name. Nothing is opened before the app starts.

    ``limits``: of the bodies at paths that are added to the app.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = _open(settings)
        app.state.context = context
        app.state.stopping = False  #: whether the process has the signal to stop
        context.notifier.start()
        await anyio.to_thread.run_sync(context.models.start)
        context.cleanup.start()
        context.health.start()
        try:
            yield
        finally:
            context.notifier.close_subscriptions()
            await anyio.to_thread.run_sync(_close, context)

    app = FastAPI(
        title="Diffusion render farm",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(known_query_parameters)],
    )
    for module in (
        jobs,
        bulk_actions,
        batches,
        files,
        models,
        numerics,
        outputs,
        gallery,
        workers,
        pauses,
        audit,
        worker_enrollment,
        webhooks,
        keys,
        tenants,
        usage,
        health,
        docs,
    ):
        app.include_router(module.router)
    app.include_router(models.uploads)
    app.include_router(worker_enrollment.joining)
    compat.mount(app, settings)
    problems.install(app)
    app.add_middleware(
        BodyLimitMiddleware,
        # three images as data URLs, which are a third longer than their bytes
        limit=BodyLimit(settings.max_input_bytes * 4 // 3 * 3 + 2**20),
        limits={
            "/v1/files": BodyLimit(settings.max_input_bytes + FORM_BYTES),
            "/v1/batches": BodyLimit(
                settings.max_bulk_bytes, structure=MAX_JSON_STRUCTURE, json_bytes=MAX_JSON, on_disk=True
            ),
            "/v1/model-uploads": BodyLimit(models.MANIFEST_BYTES, structure=MAX_JSON_STRUCTURE),
            **compat.LIMITS,
            **limits,
        },
        memory=settings.max_body_memory_bytes,
        disk=settings.max_body_disk_bytes,
    )
    app.add_middleware(RequestMiddleware)  # around the other one: it was added later
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE", "HEAD"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID"],
        )  # without credentials: a page of another origin brings its own API key, never the dashboard's session
    app.add_middleware(HeadMiddleware)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _open(settings: Settings) -> AppContext:
    store = Store.connect(settings)
    storage = Storage(settings)
    cleanup = CleanupThread(store, storage)
    broker = None
    if settings.redis_url is not None:
        broker = RedisServer.of(settings)
    return AppContext(
        settings=settings,
        store=store,
        storage=storage,
        models=LiveRegistry(settings, store),
        intake=Intake(storage, settings),
        notifier=ChangeNotifier(Database.direct(settings), cleanup.wake),
        broker=broker,
        health=ServerHealth(store, broker, storage),
        fetching=TenantThreads("have images fetched", total=16, per_tenant=4, max_waiting=64),
        storing=TenantThreads("have images stored", total=8, per_tenant=4, max_waiting=64),
        # less than half of the pool's connections, so that enough are left for the rest
        bulk=TenantThreads("submit many jobs at once", total=4, per_tenant=2, max_waiting=64),
        cleanup=cleanup,
        rate_limiter=RateLimiter(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None,
        drawing=anyio.CapacityLimiter(DRAWING_THREADS),
    )


def _close(context: AppContext) -> None:
    context.notifier.stop()
    context.models.stop()
    context.cleanup.stop()
    context.health.stop()
    context.storage.close()
    context.store.close()


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the one shape of all problems."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        for body in batches.BODIES:  # validated by hand, because the same operation takes streams
            described = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas[body.__name__] = described
        app.openapi_schema = document
    return app.openapi_schema
