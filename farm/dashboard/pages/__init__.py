"""The pages, one module each. A new page is a module here: add it to `PAGES`, and its ``LINK`` appears."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from farm.dashboard import rendering
from farm.dashboard.pages import (
    alive,
    audit,
    batches,
    bulk_actions,
    gallery,
    jobs,
    keys,
    login,
    models,
    new_batch,
    new_job,
    overview,
    queues,
    studio,
    tenants,
    thumbnails,
    webhooks,
    workers,
)

PAGES: Final[tuple[ModuleType, ...]] = (
    login,
    alive,
    overview,
    queues,
    workers,
    models,
    studio,
    new_job,
    new_batch,
    gallery,
    batches,
    jobs,
    bulk_actions,
    thumbnails,
    webhooks,
    keys,
    tenants,
    audit,
)

rendering.LINKS[:] = [module.LINK for module in PAGES if hasattr(module, "LINK")]
