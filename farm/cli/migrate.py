"""``farm migrate``."""

from __future__ import annotations


def migrate() -> None:
    """Migrate the database to this release's schema. Safe to run again, and while the farm runs."""
    from farm.errors import SetupError
    from farm.settings import settings
    from farm.store.migrate import upgrade

    url = settings().database_url
    if url is None:
        raise SetupError("FARM_DATABASE_URL is not set: point it at a PostgreSQL database")
    print(f"the database is at revision {upgrade(url.get_secret_value())}")
