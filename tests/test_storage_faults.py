"""When the database is locked, full, gone or busy: a clean 503, and the retry stores exactly one vote."""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from app.errors import StorageUnavailable
from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.processes import ProcessRepository
from app.storage.votes import VoteRepository
from tests.postgres import PostgresServer
from tests.storage_records import a_generation, a_vote


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """Waits 0.3 s for a lock and has one connection."""
    database = Database(database_url, lock_timeout=0.3, pool_size=1, max_overflow=0, pool_timeout=0.2)
    yield database
    database.close()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    yield database
    database.close()


def test_a_locked_sqlite_file_is_unavailable_and_the_retry_stores_one_vote(sqlite_url: str) -> None:
    """Another process holds the write lock for longer than the timeout. Readers go on meanwhile."""
    database = Database(sqlite_url, lock_timeout=0.3)
    votes = VoteRepository(database)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StorageUnavailable) as caught:
            votes.record(a_vote())
        assert 0.25 < time.monotonic() - began < 5
        assert caught.value.retry_after
        assert votes.counts()["thumb"] == 0
        database.ping()
        other.execute("ROLLBACK")
    votes.record(a_vote())
    assert votes.counts()["thumb"] == 1
    database.close()


def test_a_lock_that_is_released_in_time_is_waited_for(impatient: Database, database_url: str) -> None:
    """Both databases: a vote that meets another's lock on its own row is stored once the lock goes."""
    votes = VoteRepository(impatient)
    votes.record(a_vote(value=1))
    other = Database(database_url)
    with pytest.raises(StorageUnavailable), other.writing() as session:
        session.execute(text("UPDATE votes SET value = 1"))
        votes.record(a_vote(value=-1))
    assert votes.record(a_vote(value=-1)).value == -1
    assert votes.counts()["thumb"] == 1
    other.close()


def test_a_full_disk_keeps_every_acknowledged_vote_and_nothing_else(sqlite_url: str) -> None:
    """SQLite may not grow: the vote that does not fit is refused whole; after making room it fits."""
    database = Database(sqlite_url, pool_size=1, max_overflow=0)
    votes = VoteRepository(database)
    with database.reading() as session:
        pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count = {pages + 4}"))
    acknowledged = 0
    with pytest.raises(StorageUnavailable):
        for number in range(100):
            votes.record(a_vote(shown=(f"picture-{number}",), pictures=[{"prompt": "p" * 2000}]))
            acknowledged += 1
    assert 0 < acknowledged < 100
    assert votes.counts()["thumb"] == acknowledged
    with database.reading() as session:
        session.execute(text("PRAGMA max_page_count = 100000"))
    votes.record(a_vote(pictures=[{"prompt": "p" * 2000}]))
    assert votes.counts()["thumb"] == acknowledged + 1
    database.close()


def test_an_exhausted_pool_is_a_fast_503(impatient: Database) -> None:
    with impatient.reading() as session:
        session.execute(text("SELECT 1"))
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match="busy") as caught:
            impatient.ping()
        assert time.monotonic() - began < 2
        assert caught.value.retry_after
    impatient.ping()


def test_postgresql_stopped_in_mid_vote(postgres: Database, postgres_server: PostgresServer) -> None:
    """It stops just before the commit: the voter is told, and the retry stores exactly one vote."""
    votes = VoteRepository(postgres)
    vote = a_vote(idempotency_key="key-1", body_hash="h1")
    votes.record(a_vote(voter="voter-2"))
    event.listen(postgres.db_engine, "commit", lambda _: postgres_server.stop(), once=True)
    try:
        with pytest.raises(StorageUnavailable):
            votes.record(vote)
        with pytest.raises(StorageUnavailable) as caught:
            votes.record(vote)
        assert caught.value.retry_after
        with pytest.raises(StorageUnavailable):
            postgres.ping()
    finally:
        postgres_server.start()
    assert votes.counts()["thumb"] == 1
    stored = votes.record(vote)
    assert votes.record(vote) == stored
    assert votes.counts()["thumb"] == 2


def test_broken_connections_are_replaced_unseen(postgres: Database, postgres_server: PostgresServer) -> None:
    """PostgreSQL was restarted between two calls; a failure would be a 503 for every pooled connection."""
    postgres.ping()
    postgres_server.stop()
    postgres_server.start()
    postgres.ping()


def test_every_repository_says_unavailable(postgres_url: str) -> None:
    """Nothing listens there; a failure would be a 500, or a stack trace with SQL in it."""
    database = Database("postgresql://darkroom:hunter2@127.0.0.1:1/darkroom")
    generations, votes, processes = (
        GenerationRepository(database),
        VoteRepository(database),
        ProcessRepository(database),
    )
    calls = [
        database.ping,
        lambda: generations.insert_many([a_generation()]),
        lambda: generations.get("x"),
        lambda: generations.recent(),
        lambda: generations.cancel("x"),
        lambda: votes.record(a_vote()),
        lambda: votes.of_voter("v", ["x"]),
        processes.register,
        lambda: processes.reap_dead(30),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable) as caught:
            call()
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert "127.0.0.1" not in caught.value.message
    assert "hunter2" not in repr(database.url) + str(database.db_engine)
    database.close()


def test_mistakes_of_ours_are_not_called_unavailable(database: Database) -> None:
    """A broken constraint is a bug: hidden behind a 503 it would be retried for ever."""
    record = a_generation()
    GenerationRepository(database).insert_many([record])
    with pytest.raises(IntegrityError) as caught:
        GenerationRepository(database).insert_many([record])
    assert record.prompt not in str(caught.value)


def test_a_failed_transaction_keeps_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        session.execute(text("DELETE FROM votes"))
        raise ZeroDivisionError
    VoteRepository(database).record(a_vote())
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        session.execute(text("DELETE FROM votes"))
        raise ZeroDivisionError
    assert VoteRepository(database).counts()["thumb"] == 1


def test_no_connection_stays_taken(database: Database) -> None:
    """After successes and failures alike; a failure would exhaust the pool within a day."""
    votes = VoteRepository(database)
    for _ in range(20):
        votes.record(a_vote())
        with pytest.raises(ZeroDivisionError), database.reading() as session:
            session.execute(text("SELECT 1"))
            raise ZeroDivisionError
    assert "Current Checked out connections: 0" in database.db_engine.pool.status()


def test_sqlite_is_set_up_for_concurrency_and_power_cuts(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.writing() as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "busy_timeout": 5000, "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_postgresql_never_waits_for_long(postgres: Database) -> None:
    with postgres.reading() as session:
        assert session.scalar(text("SHOW lock_timeout")) == "5s"
        assert session.scalar(text("SHOW statement_timeout")) == "5s"
        assert session.scalar(text("SHOW timezone")) == "UTC"


def test_the_default_is_a_file_in_the_data_folder(tmp_path: Path) -> None:
    for nothing in (None, ""):
        database = Database(nothing, tmp_path / "deep" / "data")
        database.ping()
        database.close()
    assert (tmp_path / "deep" / "data" / "darkroom.db").exists()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
        ("sqlite:////tmp/x.db", "sqlite+pysqlite"),
    ],
)
def test_usual_spellings_of_a_url_are_understood(url: str, driver: str, tmp_path: Path) -> None:
    database = Database(url, tmp_path)
    assert database.url.drivername == driver
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@host/name",
        "postgresql+asyncpg://user:hunter2@host/name",
        "postgresql://user:hunter2@host:port/name",
        "postgresql://user@host:hunter2/name",
        "hunter2",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_url_that_cannot_serve_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="database") as caught:
        Database(url, tmp_path)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
