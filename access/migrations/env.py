"""Run by Alembic: what the models say, on the connection that `access.database` opened, in its transaction."""

from importlib import import_module
from importlib.util import find_spec

from alembic import context

from access.database import Base

# Every module with tables: Base knows those that were imported.
for module in ("access.accounts", "serve.app.records"):
    if find_spec(module):
        import_module(module)

connection = context.config.attributes["connection"]
context.configure(connection, target_metadata=Base.metadata, render_as_batch=connection.dialect.name == "sqlite")
context.run_migrations()
