"""The farm's deliverer with a retry policy of seconds instead of hours: ``python -m tests.chaos.deliverer``."""

from __future__ import annotations

import signal

from farm.log import configure
from farm.objects.storage import Storage
from farm.settings import settings
from farm.webhooks.deliverer import Deliverer, DelivererLimits
from farm.webhooks.retry_policy import RetryPolicy

if __name__ == "__main__":
    configure(settings(), "deliverer")
    storage = Storage(settings())
    one = Deliverer(
        settings(),
        lambda key: storage.presign_get(key, settings().presign_seconds),
        retry_policy=RetryPolicy(delays=(0,) + (1.0,) * 1_000, first_pause=0.5, longest_pause=2.0),
        limits=DelivererLimits(deadline=3.0, body_deadline=1.0, lease=8.0),
    )
    signal.signal(signal.SIGTERM, lambda *_: one.stop())
    one.run()
    storage.close()
