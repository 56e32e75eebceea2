"""The pages, one module each. A new page is a module here: add it to `PAGES`, and its ``LINK`` appears."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from farm.dashboard import page
from farm.dashboard.pages import (
    act,
    batches,
    jobs,
    keys,
    login,
    models,
    new_batch,
    new_job,
    overview,
    pictures,
    queues,
    tenants,
    webhooks,
    workers,
)

PAGES: Final[tuple[ModuleType, ...]] = (
    login,
    overview,
    queues,
    workers,
    models,
    new_job,
    new_batch,
    batches,
    jobs,
    act,
    pictures,
    webhooks,
    keys,
    tenants,
)

page.LINKS[:] = [module.LINK for module in PAGES if hasattr(module, "LINK")]
