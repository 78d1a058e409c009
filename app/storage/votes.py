"""Votes: one row for each voter, kind and set of pictures, changed by upsert and never read first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.storage.database import Database
from app.storage.generations import chunks
from app.storage.records import NewVote, VoteKind, VoteRecord
from app.storage.tables import IdempotencyRow, VoteRow


def subject_of(shown: Iterable[str]) -> str:
    """The canonical key of the shown ids as a set: a hash, so that it is short however many there are."""
    return hashlib.sha256("\n".join(sorted(set(shown))).encode(errors="surrogatepass")).hexdigest()


def _record(row: VoteRow) -> VoteRecord:
    return VoteRecord(
        id=row.id,
        kind=_kind(row.kind),
        voter=row.voter,
        shown=tuple(row.shown),
        value=row.value,
        chosen=row.chosen,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _kind(value: str) -> VoteKind:
    kinds: tuple[VoteKind, ...] = get_args(VoteKind)
    return kinds[kinds.index(value)]


def _to_answer(vote: VoteRecord) -> dict[str, Any]:
    times = {"created_at": vote.created_at.isoformat(), "updated_at": vote.updated_at.isoformat()}
    return asdict(vote) | {"shown": list(vote.shown)} | times


def _from_answer(answer: dict[str, Any]) -> VoteRecord:
    times = {name: datetime.fromisoformat(answer[name]) for name in ("created_at", "updated_at")}
    return VoteRecord(**(answer | {"shown": tuple(answer["shown"])} | times))


class VoteRepository:
    """Votes in the database. Calls block; any thread may make them.

    Every method raises `StorageUnavailable` if the database does not answer; nothing is kept then.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._dialect = sqlite if database.is_sqlite else postgresql

    def record(self, vote: NewVote) -> VoteRecord:
        """Store the vote, or change the same voter's vote of that kind on the same pictures.

        It is committed when this returns. Under an idempotency key that was used before with the same body,
        nothing changes and the first answer is given again.

        Raises:
            Conflict: The idempotency key was used before with another body.
            StorageUnavailable: The database does not answer; the vote is not stored.
        """
        with self._database.writing() as session:
            now = self._database.now(session)
            if vote.idempotency_key is None:
                return self._upsert(session, vote, now)
            key_hash = hashlib.sha256(vote.idempotency_key.encode(errors="surrogatepass")).hexdigest()
            if not self._claim_key(session, vote, key_hash, now):
                return self._first_answer(session, vote, key_hash)
            stored = self._upsert(session, vote, now)
            session.execute(
                update(IdempotencyRow)
                .where(IdempotencyRow.voter == vote.voter, IdempotencyRow.key_hash == key_hash)
                .values(vote_id=stored.id, answer=_to_answer(stored))
            )
            return stored

    def _upsert(self, session: Session, vote: NewVote, now: datetime) -> VoteRecord:
        changed = {
            "shown": list(vote.shown),
            "value": vote.value,
            "chosen": vote.chosen,
            "pictures": vote.pictures,
            "context": vote.context,
            "updated_at": now,
        }
        unchanging = {
            "kind": vote.kind,
            "voter": vote.voter,
            "subject": subject_of(vote.shown),
            "first_shown": min(vote.shown),
            "created_at": now,
        }
        statement = (
            self._dialect.insert(VoteRow)
            .values(unchanging | changed)
            .on_conflict_do_update(
                index_elements=[VoteRow.voter, VoteRow.kind, VoteRow.subject], set_=changed
            )
            .returning(VoteRow)
        )
        return _record(session.scalars(statement).one())

    def _claim_key(self, session: Session, vote: NewVote, key_hash: str, now: datetime) -> bool:
        """Whether the key is new; one that another transaction is using makes this wait for its end."""
        statement = (
            self._dialect.insert(IdempotencyRow)
            .values(voter=vote.voter, key_hash=key_hash, body_hash=vote.body_hash, answer={}, created_at=now)
            .on_conflict_do_nothing(index_elements=[IdempotencyRow.voter, IdempotencyRow.key_hash])
            .returning(IdempotencyRow.key_hash)
        )
        return session.execute(statement).first() is not None

    def _first_answer(self, session: Session, vote: NewVote, key_hash: str) -> VoteRecord:
        first = session.get_one(IdempotencyRow, (vote.voter, key_hash))
        if first.body_hash != vote.body_hash:
            raise Conflict(
                "Idempotency-Key: this key was used before with another body", field="Idempotency-Key"
            )
        return _from_answer(first.answer)

    def of_voter(self, voter: str, generation_ids: Iterable[str]) -> list[VoteRecord]:
        """The voter's votes that showed nothing but these generations, oldest first; any number of ids."""
        asked = set(generation_ids)
        found: list[VoteRecord] = []
        with self._database.reading() as session:
            for some in chunks(asked):
                statement = select(VoteRow).where(VoteRow.voter == voter, VoteRow.first_shown.in_(some))
                found += [_record(row) for row in session.scalars(statement) if asked.issuperset(row.shown)]
        return sorted(found, key=lambda vote: vote.id)

    def withdraw(self, voter: str, kind: VoteKind, shown: Iterable[str]) -> bool:
        """Remove the voter's vote of that kind on these pictures, in any order. Whether there was one."""
        statement = (
            delete(VoteRow)
            .where(VoteRow.voter == voter, VoteRow.kind == kind, VoteRow.subject == subject_of(shown))
            .returning(VoteRow.id)
        )
        with self._database.writing() as session:
            return session.execute(statement).first() is not None

    def counts(self) -> dict[VoteKind, int]:
        """How many votes there are of each kind; every kind is named."""
        statement = select(VoteRow.kind, func.count()).group_by(VoteRow.kind)
        with self._database.reading() as session:
            found = dict(session.execute(statement).all())
        return {kind: found.get(kind, 0) for kind in get_args(VoteKind)}

    def forget_keys(self, before: datetime) -> int:
        """Remove idempotency keys first used before then; how many. Votes stay."""
        statement = delete(IdempotencyRow).where(IdempotencyRow.created_at < before)
        with self._database.writing() as session:
            return len(session.execute(statement.returning(IdempotencyRow.key_hash)).all())
