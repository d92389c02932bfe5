"""Alembic's entry: runs the steps on the connection it is given, in the transaction it is in."""

from alembic import context

from registry.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
