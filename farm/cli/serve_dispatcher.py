"""``farm dispatcher``: run one dispatcher."""

from __future__ import annotations

import signal


def dispatcher() -> None:
    """Dispatch waiting jobs to workers. Several may run: one leads, the others stand by."""
    from farm import metrics, tracing
    from farm.dispatch.dispatcher import Dispatcher
    from farm.log import configure
    from farm.memory_tuning import freeze_modules
    from farm.settings import settings

    configure(settings(), "dispatcher")
    tracing.configure(settings(), "dispatcher")
    one = Dispatcher(settings())
    metrics.serve(settings(), settings().metrics_dispatcher_port, one.gauges)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop())
    freeze_modules()
    one.run()
