"""One database, SQLite or PostgreSQL, behind two context managers: `reading()` and `writing()`.

All calls block and may come from any thread. A transaction is short and belongs to one call of a
repository; nothing holds a connection while a picture is made or streamed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy import exc as sql
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from app.errors import StorageUnavailable

RETRY_AFTER = 2.0
"""Seconds that a client is asked to wait after the database did not answer."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WRITES = "darkroom_writes"
_OUR_FAULT = (sql.IntegrityError, sql.DataError, sql.ProgrammingError, sql.NotSupportedError)


def is_id(value: str) -> bool:
    """Whether `value` can be the id of anything; what cannot (NUL, surrogates, SQL) is never asked for."""
    return _ID.fullmatch(value) is not None


def database_url(url: str | None, data_dir: Path) -> URL:
    """The URL with its driver: `darkroom.db` in the data folder by default, psycopg 3 for PostgreSQL.

    Args:
        url: `sqlite:///…`, `postgresql://…`, `postgresql+psycopg://…`, or None or '' for the default.
        data_dir: The data folder.

    Raises:
        ValueError: Not a URL, or neither SQLite in a file nor PostgreSQL; the message holds no password.
    """
    if not url:
        return URL.create("sqlite+pysqlite", database=str(data_dir / "darkroom.db"))
    try:
        parsed = make_url(url)
    except (sql.ArgumentError, ValueError):
        # The cause would quote parts of the URL, perhaps the password.
        raise ValueError("the database URL cannot be read; one is like postgresql://user@host/name") from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if parsed.database in (None, "", ":memory:") or "uri" in parsed.query:
            raise ValueError("an SQLite database must be the path of a file: threads share none in memory")
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ValueError(f"the database must be SQLite or PostgreSQL, not {parsed.drivername!r}")


def unavailable(error: Exception) -> StorageUnavailable:
    """What people are told when the database fails; says nothing of where it is."""
    if isinstance(error, sql.TimeoutError):
        message = "The database is busy: every connection is in use. Please try again."
    else:
        message = "The database does not answer. Please try again."
    return StorageUnavailable(message, retry_after=RETRY_AFTER)


@contextmanager
def translated() -> Iterator[None]:
    """Turns the failures of a database or its disk into `StorageUnavailable`.

    Errors that only a mistake of ours can cause (a broken constraint, wrong SQL) pass as they are.
    """
    try:
        yield
    except _OUR_FAULT:
        raise
    except (sql.DatabaseError, sql.InterfaceError, sql.TimeoutError, OSError) as exc:
        raise unavailable(exc) from exc


class Database:
    """The database: connections, transactions, and the translation of its failures.

    Args:
        url: See `database_url`.
        data_dir: The data folder; the SQLite file's folder is made if it is missing.
        lock_timeout: Seconds that a statement may wait for another's lock, and that a connection may take.
        pool_size: Connections kept open.
        max_overflow: Further ones under load.
        pool_timeout: Seconds to wait for a free connection: short, so that exhaustion is a fast 503.

    Raises:
        ValueError: The URL cannot be used.
        StorageUnavailable: The folder cannot be made.
    """

    def __init__(
        self,
        url: str | None = None,
        data_dir: Path | str = "data",
        *,
        lock_timeout: float = 5.0,
        pool_size: int = 8,
        max_overflow: int = 8,
        pool_timeout: float = 2.0,
    ) -> None:
        self.url = database_url(url, Path(data_dir))
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._lock_timeout = lock_timeout
        # SQLite's own wait is a sleep and a retry, which is neither fair nor fast. Writers of this process
        # queue here instead, before they take a connection; other processes meet SQLite's busy_timeout.
        self._sqlite_writer = threading.Lock()
        self._group = threading.local()
        if self.is_sqlite:
            with translated():
                Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
        self.db_engine: Engine = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            pool_pre_ping=not self.is_sqlite,
            connect_args=self._connect_args(),
            hide_parameters=True,
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        if self.is_sqlite:
            event.listen(self.db_engine, "connect", _configure_sqlite)
            event.listen(self.db_engine, "begin", _begin_sqlite)
        else:
            event.listen(self.db_engine, "connect", self._configure_postgresql)
        self._write_engine = self.db_engine.execution_options(**{_WRITES: True})

    def _connect_args(self) -> dict[str, Any]:
        if self.is_sqlite:
            return {"timeout": self._lock_timeout}
        # libpq counts whole seconds and takes 1 for 2.
        seconds = max(2, round(self._lock_timeout))
        return {"connect_timeout": seconds, "tcp_user_timeout": 2000 * seconds}

    def _configure_postgresql(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        milliseconds = max(1, round(1000 * self._lock_timeout))
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = {milliseconds}")
        cursor.execute(f"SET statement_timeout = {milliseconds}")
        cursor.execute("SET timezone = 'UTC'")
        cursor.close()
        connection.commit()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; it sees one state of the database.

        Raises:
            StorageUnavailable: The database does not answer, or no connection is free.
        """
        with translated(), Session(self.db_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that writes; it is committed when the block ends and rolled back if that raises.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE): a transaction that read first and then
        wanted to write would fail at once, whatever the timeout, when another wrote in between.

        Raises:
            StorageUnavailable: The database does not answer, is locked, or its disk is full; nothing of the
                transaction is kept.
        """
        group: Session | None = getattr(self._group, "session", None)
        if group is not None:
            with translated():
                yield group
            return
        db_engine = self._write_engine
        with (
            translated(),
            self._one_writer(),
            Session(db_engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def together(self) -> Iterator[None]:
        """Makes every `writing` of this thread inside it part of one transaction: one commit for all.

        A commit waits for the disk, so sixteen pictures that end together would wait sixteen times. Whatever
        one of them raises must leave this block as well: nothing of all of them is kept then.

        Raises:
            StorageUnavailable: As `writing`.
        """
        with self.writing() as session:
            self._group.session = session
            try:
                yield
            finally:
                self._group.session = None

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._sqlite_writer.acquire(timeout=self._lock_timeout):
            raise StorageUnavailable("The database is busy. Please try again.", retry_after=RETRY_AFTER)
        try:
            yield
        finally:
            self._sqlite_writer.release()

    def now(self, session: Session) -> datetime:
        """UTC by the clock that all processes of this database share."""
        if self.is_sqlite:
            return datetime.now(UTC)
        now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)

    def ping(self) -> None:
        """Ask the database for a sign of life, reading its file if it is one.

        Raises:
            StorageUnavailable: There is none.
        """
        with self.reading() as session:
            session.execute(text("SELECT count(*) FROM sqlite_master" if self.is_sqlite else "SELECT 1"))

    def close(self) -> None:
        """Close the pooled connections; those in use close when they come back."""
        self.db_engine.dispose()


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver would begin transactions on its own, and too late for a consistent read: we do (see 'begin').
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a vote survives a power cut once it is acknowledged
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
