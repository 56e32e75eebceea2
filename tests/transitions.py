"""The states of a job in a test's database: every change that `EDGES` does not have is refused."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql

from farm.domain.states import EDGES

_FUNCTION: LiteralString = """
    CREATE FUNCTION refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'job % went from % to %, which EDGES does not have', OLD.id, OLD.state, NEW.state;
    END $$
"""
_TRIGGER: LiteralString = """
    CREATE TRIGGER refuse_transition BEFORE UPDATE OF state ON job FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND OLD.state || ' ' || NEW.state <> ALL ({edges}))
    EXECUTE FUNCTION refuse_transition()
"""


def refuse_other_transitions(database_url: str) -> None:
    """Add a trigger to a migrated database that raises when a job changes its state along no edge."""
    edges = [f"{before} {after}" for before, targets in EDGES.items() for after in targets]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_FUNCTION)
        connection.execute(sql.SQL(_TRIGGER).format(edges=sql.Literal(edges)))
