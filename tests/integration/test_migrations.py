"""The schema that migrations make is the one that the tables describe."""

from __future__ import annotations

from sqlalchemy import create_engine

from farm.store import migrate
from farm.store.unit import sqlalchemy_url


def test_migrations_and_tables_agree(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        assert migrate.differences(connection) == []
        assert migrate.current(connection) == migrate.head()
    engine.dispose()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    assert migrate.upgrade(database_url) == migrate.head()
