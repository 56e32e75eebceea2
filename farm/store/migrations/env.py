"""Alembic's entry: runs the migrations over the connection that ``farm/store/migrate.py`` hands in."""

from alembic import context

from farm.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
