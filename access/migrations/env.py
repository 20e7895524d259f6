"""Run by Alembic: what the models say, on the connection that `access.database` opened, in its transaction."""

from alembic import context

import access.accounts  # noqa: F401
import serve.app.records  # noqa: F401
from access.database import Base  # which knows the tables of what is imported

connection = context.config.attributes["connection"]
context.configure(connection, target_metadata=Base.metadata, render_as_batch=connection.dialect.name == "sqlite")
context.run_migrations()
