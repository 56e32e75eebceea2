"""``farm flower``: Flower, Celery's own dashboard, over the farm's broker."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from typing import Annotated, Any

import typer

from farm.errors import SetupError

LOOPBACK = "127.0.0.1"


def flower(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; FLOWER_PORT, else 5555.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address to listen on; FLOWER_ADDRESS, else loopback only.")
    ] = None,
    url_prefix: Annotated[str | None, typer.Option(help="The path at which a reverse proxy serves it.")] = None,
) -> None:
    """Show Celery's workers and messages. FARM_FLOWER_AUTH=user:password sets the login; default: a random one."""
    from farm.dispatch.broker import make_app
    from farm.log import configure
    from farm.settings import settings

    configure(settings(), "flower")
    users = _users()
    options = {
        "address": address or os.environ.get("FLOWER_ADDRESS") or LOOPBACK,
        "port": port or _number("FLOWER_PORT", 5555),
        "db": os.environ.get("FLOWER_DB") or str(settings().data_dir / "flower.db"),
        "persistent": True,
        "state_save_interval": 60_000,  # milliseconds; without it only a clean end saves
        "basic_auth": users,
        "url_prefix": url_prefix or os.environ.get("FLOWER_URL_PREFIX"),
    }
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    _run(make_app(settings()), options)


def _users() -> list[str]:
    """The login as ``user:password``. Always required: Flower's pages can stop workers."""
    text = os.environ.get("FARM_FLOWER_AUTH") or os.environ.get("FLOWER_BASIC_AUTH")
    if text is None:
        text = f"farm:{secrets.token_urlsafe(16)}"
        print(f"FARM_FLOWER_AUTH is not set: sign in as {text}", file=sys.stderr, flush=True)
    users = [user.strip() for user in text.split(",")]
    if not all(name and password for name, _, password in (user.partition(":") for user in users)):
        raise SetupError("FARM_FLOWER_AUTH must be user:password, or several of them with commas between")
    return users


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise SetupError(f"{variable} is {text!r}, which is not a port: use a number from 1 to 65535")
    return int(text)


def _run(app: Any, options: dict[str, Any]) -> None:
    """Start Flower in this process and stay in it until SIGTERM or Ctrl-C."""
    # Flower's own command parses the process's arguments and a flowerconfig.py of the current directory, which would be
    # code from wherever the user happens to stand; so its application is made here instead.
    import flower.urls
    from flower.app import Flower
    from flower.command import extract_settings
    from flower.options import default_options
    from flower.views.monitor import Metrics
    from tornado.web import authenticated

    class GuardedMetrics(Metrics):  # type: ignore[misc]
        """Require the password for Flower's metrics, too."""

        @authenticated  # type: ignore[untyped-decorator]
        async def get(self) -> None:
            await super().get()

    for name, value in options.items():
        setattr(default_options, name, value)
    extract_settings()
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # as Flower's own command is silent about each request
    # Flower takes its routes from this list and from nowhere else.
    routes = flower.urls.handlers
    routes[routes.index(("/metrics", Metrics))] = ("/metrics", GuardedMetrics)
    _serve(Flower(capp=app, options=default_options, **flower.urls.settings), options)


def _serve(made: Any, options: dict[str, Any]) -> None:
    import atexit
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    atexit.register(made.stop)
    try:
        port = made.start_http_server()
    except OSError as error:
        raise SetupError(f"Flower cannot listen on {options['address']}:{options['port']}: {error.strerror}") from error
    print(f"Flower is at http://{options['address']}:{port}/{(options['url_prefix'] or '').strip('/')}", flush=True)
    try:
        made.start()
    except (KeyboardInterrupt, SystemExit):
        return
