"""Runs the migrations: on the connection that `app.storage.migrations` gives, or from the command line.

From a checkout: `alembic upgrade head`, `alembic revision --autogenerate -m "…"`. The database is that of
DARKROOM_DATABASE_URL, or the SQLite file in DARKROOM_DATA_DIR.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection

from app.storage.database import Database
from app.storage.tables import Base


def run(connection: Connection) -> None:
    """Run what was asked for in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Use the connection we were given, else open one."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    if context.is_offline_mode():
        raise SystemExit("migrations run on a database; --sql is not supported")
    database = Database(os.environ.get("DARKROOM_DATABASE_URL"), os.environ.get("DARKROOM_DATA_DIR", "data"))
    with database.writing() as session:
        run(session.connection())
    database.close()


main()
