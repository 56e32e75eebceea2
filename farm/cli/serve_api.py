"""``farm api``: run the HTTP API with the dashboard."""

from __future__ import annotations

from typing import Annotated

import typer


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; FARM_API_HOST by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; FARM_API_PORT by default.")] = None,
) -> None:
    """Serve the HTTP API and the dashboard until SIGTERM or Ctrl-C."""
    from farm import metrics, tracing
    from farm.api.serve import serve
    from farm.dashboard.app import create_app
    from farm.log import configure
    from farm.memory_tuning import freeze_modules, return_large_blocks
    from farm.settings import settings
    from farm.store.migrate import require_schema_if_available
    from farm.store.secret_box import require_key

    configure(settings(), "api")
    tracing.configure(settings(), "api")
    metrics.serve(settings(), settings().metrics_api_port)
    require_key()
    require_schema_if_available(settings())
    app = create_app(settings())
    freeze_modules()
    return_large_blocks()
    serve(app, settings(), host, port)
