"""Postgres, the only truth: tables, queries (only here), the unit of work (only it commits) and migrations."""
