"""Running the API with uvicorn."""

from __future__ import annotations

import asyncio
import sys
import time
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from farm.api.connections import HttpProtocol, raise_file_limit
from farm.settings import Settings

GRACE_SECONDS: Final = 10  #: for requests that are being answered when the process gets the signal to stop

LOOK_SECONDS: Final = 0.05  #: between two looks for a second signal


class Server(uvicorn.Server):
    """uvicorn with a drain before its end.

    SIGTERM ─► answers say ``Connection: close``, and those of ``/healthz`` and ``/readyz`` 503 ─► streams end
            ─► the port is closed ─► requests in flight are answered

    Args:
        config: uvicorn's.
        drain_seconds: how long requests are still accepted after the first signal; a second signal ends that.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count signals, too: the second one does not wait for load balancers."""
        self._signals += 1
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Let load balancers send requests elsewhere, end what waits, then the rest."""
        app = self.config.app
        context = getattr(app.state, "context", None) if isinstance(app, FastAPI) else None
        if isinstance(app, FastAPI) and context is not None:
            app.state.stopping = True
            deadline = time.monotonic() + self._drain_seconds
            # a signal handler may set no event of asyncio
            while time.monotonic() < deadline and self._signals < 2:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
            # uvicorn waits for open connections before it notifies the app, so streams are closed first
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
    return Server(config, settings.api_drain_seconds)


def serve(app: FastAPI, settings: Settings, host: str | None = None, port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; exits with 3 if the server could not start."""
    raise_file_limit()
    server = make_server(app, settings, host, port)
    server.run()
    if not server.started:
        sys.exit(3)
