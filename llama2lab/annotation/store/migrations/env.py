"""What Alembic runs to get a connection: always the transaction that `migrations.upgrade` was called in."""

from alembic import context

from llama2lab.annotation.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
