"""An API key for one command, of whoever has the database: ``docker compose exec api farm workers`` needs no other.

``FARM_DATABASE_URL`` with the owner's role lets a process do everything that a key does, so nobody gets more by this.
"""

from __future__ import annotations

import atexit
import os
import secrets
from typing import Final

#: A command that was killed leaves its key behind; the next one deletes it after this time.
KEPT_SECONDS: Final = 3600.0


def make() -> str:
    """A key with all scopes of the tenant ``default``, which is deleted when this process ends. Raises `FarmError`."""
    from farm.local.bootstrap import COMMAND_KEY, TENANT
    from farm.settings import settings
    from farm.store.tenants import Scope
    from farm.store.unit_of_work import Store

    store = Store.connect(settings(), pool=1)
    name = f"{COMMAND_KEY} {os.getpid()} {secrets.token_hex(4)}"
    with store.begin() as unit:
        tenant = unit.tenants.by_name(TENANT) or unit.tenants.create(TENANT)
        for old in unit.tenants.keys(tenant.id):
            if old.name.startswith(COMMAND_KEY):
                unit.tenants.delete_keys(tenant.id, old.name, KEPT_SECONDS)
        _, text = unit.tenants.create_key(tenant.id, name, frozenset(Scope))

    def end() -> None:
        with store.begin() as unit:
            unit.tenants.delete_keys(tenant.id, name, 0)
        store.close()

    atexit.register(end)
    return text
