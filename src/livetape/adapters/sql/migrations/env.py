"""Alembic's entry: run on the connection that `migrate` gives, inside its transaction."""

from alembic import context

from livetape.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    # The caller owns the transaction: on SQLite it is a unit of the writer thread.
    transactional_ddl=False,
)
context.run_migrations()
