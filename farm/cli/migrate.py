"""``farm migrate``."""

from __future__ import annotations


def migrate() -> None:
    """Migrate the database to this release's schema. Safe to run again, and while the farm runs."""
    from farm.settings import settings
    from farm.store.connection import Database
    from farm.store.migrate import upgrade

    print(f"the database is at revision {upgrade(Database.direct(settings()))}")
