"""Bringing the schema up to date, once however many processes start on one database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock, Timeout
from sqlalchemy import Connection, text

from app.errors import StorageUnavailable
from app.resources import alembic_dir
from app.storage.database import RETRY_AFTER, Database

LOCK_SECONDS = 60.0
"""How long a process waits for another one's migration."""

_ADVISORY_LOCK = 0x6461726B726F6F6D  # 'darkroom'
_IN_THIS_PROCESS = threading.Lock()  # alembic keeps its context in module globals


def config() -> Config:
    """Alembic's configuration, made here so that no working folder and no ini file matters."""
    result = Config()
    result.set_main_option("script_location", str(alembic_dir()).replace("%", "%%"))
    return result


def head_revision() -> str:
    """The newest revision that this code knows."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None, "the migrations are missing from this installation"
    return head


def current_revision(database_url: str | None, data_dir: Path | str = "data") -> str | None:
    """The revision that the database is at; None before the first migration.

    Raises:
        ValueError: The URL cannot be used.
        StorageUnavailable: The database does not answer.
    """
    with _opened(database_url, data_dir) as database, database.reading() as session:
        return _revision(session.connection())


def migrate(database_url: str | None, data_dir: Path | str = "data") -> bool:
    """Upgrade the schema to the newest revision; does nothing if it is there.

    Processes that start together wait for the one that migrates. The whole upgrade is one transaction.

    Args:
        database_url: As `Database` takes it.
        data_dir: The data folder.

    Returns:
        Whether this call changed the schema.

    Raises:
        ValueError: The URL cannot be used.
        StorageUnavailable: The database does not answer, another process migrates for too long, or the
            database is newer than this code.
    """
    with (
        _IN_THIS_PROCESS,
        _opened(database_url, data_dir) as database,
        _file_lock(database),
        database.writing() as session,
    ):
        connection = session.connection()
        if not database.is_sqlite:
            _advisory_lock(connection)
        return _upgrade(connection)


def _advisory_lock(connection: Connection) -> None:
    """Held until the transaction ends, however the process ends."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text(f"SET LOCAL lock_timeout = {round(1000 * LOCK_SECONDS)}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def _upgrade(connection: Connection) -> bool:
    if _revision(connection) == head_revision():
        return False
    configuration = config()
    configuration.attributes["connection"] = connection
    try:
        command.upgrade(configuration, "head")
    except CommandError as exc:
        raise StorageUnavailable(
            "The database was made by another version of Darkroom that this one cannot upgrade."
        ) from exc
    return True


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _opened(url: str | None, data_dir: Path | str) -> Iterator[Database]:
    database = Database(url, data_dir)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _file_lock(database: Database) -> Iterator[None]:
    """For SQLite: its own lock would be waited for as long as any other, which may be too short for this."""
    if not database.is_sqlite:
        yield
        return
    try:
        with FileLock(f"{database.url.database}.migrating", timeout=LOCK_SECONDS):
            yield
    except (Timeout, OSError) as exc:
        raise StorageUnavailable(
            "The database cannot be locked for its migration.", retry_after=RETRY_AFTER
        ) from exc
