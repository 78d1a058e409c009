"""What was asked for and what became of it. Every change of state is one guarded UPDATE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import delete, func, insert, literal, select, tuple_, update

from app.storage.database import Database, is_id
from app.storage.records import GenerationRecord, GenerationState
from app.storage.tables import GenerationRow, UTCDateTime

UNFINISHED: tuple[GenerationState, ...] = ("waiting", "running")
_CHUNK = 500  # ids in one IN (…); far below every limit on parameters
_FIELDS = tuple(field.name for field in fields(GenerationRecord))


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids that can exist, without repeats, in lists that fit one query."""
    known = [value for value in dict.fromkeys(ids) if is_id(value)]
    for start in range(0, len(known), _CHUNK):
        yield known[start : start + _CHUNK]


def _record(row: GenerationRow) -> GenerationRecord:
    values = {name: getattr(row, name) for name in _FIELDS}
    return GenerationRecord(**(values | {"notices": tuple(row.notices)}))


def _columns(record: GenerationRecord) -> dict[str, Any]:
    return asdict(record) | {"notices": list(record.notices)}


class GenerationRepository:
    """Generations in the database. Calls block; any thread may make them.

    A generation waits, runs, and ends as done, failed or cancelled; what has ended never changes. The methods
    that change a state return whether they did: False means that the id is unknown or the state forbids it.
    Every method raises `StorageUnavailable` if the database does not answer; nothing is kept then.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert_many(self, records: Sequence[GenerationRecord]) -> None:
        """Store new generations, all or none."""
        if not records:
            return
        with self._database.writing() as session:
            session.execute(insert(GenerationRow), [_columns(record) for record in records])

    def mark_running(self, generation_ids: Sequence[str]) -> None:
        """From waiting to running; what does not wait stays as it is."""
        with self._database.writing() as session:
            for some in chunks(generation_ids):
                rows = update(GenerationRow).where(
                    GenerationRow.id.in_(some), GenerationRow.state == "waiting"
                )
                session.execute(rows.values(state="running"))

    def finish(
        self,
        generation_id: str,
        *,
        revision: str,
        versions: dict[str, Any],
        seconds: float,
        image_bytes: int,
        notices: Sequence[str] = (),
        finished_at: datetime | None = None,
    ) -> bool:
        """From waiting or running to done. Store the image first: a row that is done promises it.

        Args:
            generation_id: Its id.
            revision: Revision of the weights.
            versions: Software that made it.
            seconds: From start to decoded picture.
            image_bytes: Size of the image file.
            notices: Sentences for people.
            finished_at: Aware; now by default.
        """
        return self._change(
            generation_id,
            UNFINISHED,
            state="done",
            revision=revision,
            versions=versions,
            seconds=seconds,
            image_bytes=image_bytes,
            notices=list(notices),
            finished_at=finished_at or datetime.now(UTC),
        )

    def fail(self, generation_id: str, code: str, message: str) -> bool:
        """From waiting or running to failed, with a stable code and a sentence for people."""
        return self._change(
            generation_id,
            UNFINISHED,
            state="failed",
            error_code=code,
            error_message=message,
            finished_at=datetime.now(UTC),
        )

    def cancel(self, generation_id: str) -> bool:
        """From waiting or running to cancelled."""
        return self._change(generation_id, UNFINISHED, state="cancelled", finished_at=datetime.now(UTC))

    def _change(self, generation_id: str, allowed: tuple[GenerationState, ...], **values: Any) -> bool:
        if not is_id(generation_id):
            return False
        statement = (
            update(GenerationRow)
            .where(GenerationRow.id == generation_id, GenerationRow.state.in_(allowed))
            .values(**values)
            .returning(GenerationRow.id)
        )
        with self._database.writing() as session:
            return session.execute(statement).first() is not None

    def get(self, generation_id: str) -> GenerationRecord | None:
        """The generation, or None."""
        if not is_id(generation_id):
            return None
        with self._database.reading() as session:
            row = session.get(GenerationRow, generation_id)
        return None if row is None else _record(row)

    def get_many(self, generation_ids: Iterable[str]) -> list[GenerationRecord]:
        """Those that exist, in the order asked for, each once; any number of ids."""
        found: dict[str, GenerationRecord] = {}
        asked = list(dict.fromkeys(generation_ids))
        with self._database.reading() as session:
            for some in chunks(asked):
                rows = session.scalars(select(GenerationRow).where(GenerationRow.id.in_(some)))
                found.update((row.id, _record(row)) for row in rows)
        return [found[generation_id] for generation_id in asked if generation_id in found]

    def of_batch(self, batch_id: str) -> list[GenerationRecord]:
        """The generations of a batch by position; empty if it is unknown."""
        if not is_id(batch_id):
            return []
        statement = select(GenerationRow).where(GenerationRow.batch_id == batch_id)
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(statement.order_by(GenerationRow.position))]

    def recent(
        self,
        client: str | None = None,
        states: Sequence[GenerationState] | None = None,
        limit: int = 50,
        before: tuple[datetime, str] | None = None,
    ) -> list[GenerationRecord]:
        """The newest generations, newest first.

        Args:
            client: Only those of this client.
            states: Only those in one of these states.
            limit: At most so many.
            before: Only those older than the one with this (created_at, id): the last one of the page before.
        """
        statement = select(GenerationRow)
        if client is not None:
            statement = statement.where(GenerationRow.client == client)
        if states is not None:
            statement = statement.where(GenerationRow.state.in_(states))
        if before is not None:
            created_at, last_id = before
            if not is_id(last_id):
                return []
            statement = statement.where(
                tuple_(GenerationRow.created_at, GenerationRow.id)
                < tuple_(literal(created_at, UTCDateTime()), last_id)
            )
        statement = statement.order_by(GenerationRow.created_at.desc(), GenerationRow.id.desc()).limit(limit)
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(statement)]

    def newest_unfinished(self, client: str) -> GenerationRecord | None:
        """The client's newest generation that waits or runs: what a page shows when it is opened again."""
        found = self.recent(client, UNFINISHED, limit=1)
        return found[0] if found else None

    def delete(self, generation_id: str) -> bool:
        """Remove the row, whatever its state; votes on it stay. Whether it existed."""
        if not is_id(generation_id):
            return False
        statement = delete(GenerationRow).where(GenerationRow.id == generation_id).returning(GenerationRow.id)
        with self._database.writing() as session:
            return session.execute(statement).first() is not None

    def counts(self) -> dict[GenerationState, int]:
        """How many generations are in each state; every state is named."""
        statement = select(GenerationRow.state, func.count()).group_by(GenerationRow.state)
        with self._database.reading() as session:
            found = dict(session.execute(statement).all())
        return {state: found.get(state, 0) for state in get_args(GenerationState)}
