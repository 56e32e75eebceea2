"""``farm deliverer``: run one deliverer of webhooks."""

from __future__ import annotations

import signal


def deliverer() -> None:
    """Send webhooks. Any number may run at once; SIGTERM ends one after its attempts in flight."""
    from farm import metrics, tracing
    from farm.log import configure
    from farm.memory_tuning import freeze_modules
    from farm.objects.storage import Storage
    from farm.settings import settings
    from farm.store.secret_box import require_key
    from farm.webhooks.deliverer import Deliverer

    configure(settings(), "deliverer")
    tracing.configure(settings(), "deliverer")
    require_key()
    storage = Storage(settings())
    one = Deliverer(settings(), lambda key: storage.presign_get(key, settings().presign_seconds))
    metrics.serve(settings(), settings().metrics_deliverer_port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop())
    freeze_modules()
    one.run()
    storage.close()
