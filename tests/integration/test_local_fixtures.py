"""The tests' own ground: each test has a migrated database and an empty Redis of its own."""

from __future__ import annotations

import psycopg
import redis


def test_a_database_is_migrated_and_not_shared(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        assert {"job", "tenant"} <= tables
        connection.execute("CREATE TABLE left_behind ()")


def test_a_database_does_not_hold_what_another_test_left(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'left_behind'").fetchone()
    assert found == (0,)


def test_redis_is_empty_and_writable(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("key", "value")
        assert client.get("key") == b"value"
