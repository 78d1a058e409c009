"""Which processes live, so that only what a dead one left unfinished is marked failed."""

from __future__ import annotations

import os
import secrets
import socket
from datetime import timedelta

from sqlalchemy import ColumnElement, Update, delete, exists, update
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.database import Database
from app.storage.generations import UNFINISHED
from app.storage.tables import GenerationRow, ProcessRow

STOPPED_CODE = "server_stopped"
STOPPED_MESSAGE = "The server stopped while this picture was being made."


class ProcessRepository:
    """The heartbeats of the processes on this database. Calls block; any thread may make them.

    Times are taken from the clock that all of them share. Every method raises `StorageUnavailable` if the
    database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self) -> str:
        """A new id for this process, with a first heartbeat. Register before the first generation."""
        process_id = secrets.token_urlsafe(12)
        self.heartbeat(process_id)
        return process_id

    def heartbeat(self, process_id: str) -> None:
        """Say that this process lives. It comes back even if it was taken for dead (a laptop that slept)."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        with self._database.writing() as session:
            now = self._database.now(session)
            row = {
                "id": process_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": now,
                "heartbeat_at": now,
            }
            session.execute(
                dialect.insert(ProcessRow)
                .values(row)
                .on_conflict_do_update(index_elements=[ProcessRow.id], set_={"heartbeat_at": now})
            )

    def retire(self, process_id: str) -> int:
        """The process ends; what it left unfinished is marked failed.

        Returns:
            How many generations were marked.
        """
        with self._database.writing() as session:
            session.execute(delete(ProcessRow).where(ProcessRow.id == process_id))
            now = self._database.now(session)
            statement = _fail_where(GenerationRow.owner == process_id).values(finished_at=now)
            return len(session.execute(statement).all())

    def reap_dead(self, older_than_seconds: float) -> int:
        """Mark failed what waits or runs for a process without a recent heartbeat.

        Give this process's own heartbeat first: after a long sleep it would find itself dead.

        Args:
            older_than_seconds: A heartbeat older than this means death; several times the heartbeat's period.

        Returns:
            How many generations were marked.
        """
        with self._database.writing() as session:
            now = self._database.now(session)
            oldest = now - timedelta(seconds=older_than_seconds)
            session.execute(delete(ProcessRow).where(ProcessRow.heartbeat_at < oldest))
            owner_lives = exists().where(ProcessRow.id == GenerationRow.owner)
            statement = _fail_where(~owner_lives).values(finished_at=now)
            return len(session.execute(statement).all())


def _fail_where(condition: ColumnElement[bool]) -> Update:
    return (
        update(GenerationRow)
        .where(GenerationRow.state.in_(UNFINISHED), condition)
        .values(state="failed", error_code=STOPPED_CODE, error_message=STOPPED_MESSAGE)
        .returning(GenerationRow.id)
        .execution_options(synchronize_session=False)
    )
