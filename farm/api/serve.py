"""Running the API with uvicorn."""

from __future__ import annotations

import sys
from typing import Final

import uvicorn
from fastapi import FastAPI

from farm.api.connections import HttpProtocol, raise_file_limit
from farm.settings import Settings

GRACE_SECONDS: Final = 10  #: for requests that are being answered when the process gets the signal to stop


class Server(uvicorn.Server):
    """uvicorn waits for open connections before it notifies the app, so streams are closed first."""

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """End what waits, then the rest."""
        app = self.config.app
        context = getattr(app.state, "context", None) if isinstance(app, FastAPI) else None
        if context is not None:
            context.notifier.close_subscriptions()
        await super().shutdown(sockets)  # type: ignore[arg-type]


def make_server(app: FastAPI, settings: Settings, host: str | None = None, port: int | None = None) -> Server:
    """A server of the app at that address, or at the settings'."""
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        host=settings.api_host if host is None else host,
        port=settings.api_port if port is None else port,
        lifespan="on",
        log_config=None,  # the process has its own
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        access_log=False,  # `farm.api.middleware` writes it, with the request's id and key
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config)


def serve(app: FastAPI, settings: Settings, host: str | None = None, port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; exits with 3 if the server could not start."""
    raise_file_limit()
    server = make_server(app, settings, host, port)
    server.run()
    if not server.started:
        sys.exit(3)
