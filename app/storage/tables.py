"""The tables, and how their column types behave alike on SQLite and PostgreSQL.

No table refers to another by a foreign key: a vote outlives the pictures it was cast on, and a generation
outlives the process that made it. Alembic owns the schema (`alembic/`); a test holds it against this file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, on SQLite too (which keeps no zone). Naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; without its zone where the database would only drop it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Holds the metadata; `JSON` is the portable type, never JSONB (which refuses an escaped NUL)."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UTCDateTime(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
        list[dict[str, Any]]: JSON(),
    }


class ProcessRow(Base):
    """A living process; one that retires takes its row along."""

    __tablename__ = "processes"

    id: Mapped[str] = mapped_column(String, primary_key=True)
    host: Mapped[str] = mapped_column(String)
    pid: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]


class GenerationRow(Base):
    """One picture, asked for or made; the columns are those of `records.GenerationRecord`."""

    __tablename__ = "generations"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'running', 'done', 'failed', 'cancelled')", name="state"),
        Index(None, "client", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "batch_id", "position"),
        Index(None, "state", "owner"),
    )

    id: Mapped[str] = mapped_column(String, primary_key=True)
    batch_id: Mapped[str] = mapped_column(String)
    position: Mapped[int] = mapped_column(Integer)
    client: Mapped[str] = mapped_column(String)
    owner: Mapped[str] = mapped_column(String)
    state: Mapped[str] = mapped_column(String)
    model: Mapped[str] = mapped_column(String)
    revision: Mapped[str] = mapped_column(String)
    prompt: Mapped[str] = mapped_column(String)
    negative_prompt: Mapped[str] = mapped_column(String)
    seed: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[int] = mapped_column(Integer)
    guidance_scale: Mapped[float]
    eta: Mapped[float]
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    noise_scheduler: Mapped[str] = mapped_column(String)
    recipe: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]
    notices: Mapped[list[str]]
    error_code: Mapped[str | None] = mapped_column(String)
    error_message: Mapped[str | None] = mapped_column(String)
    seconds: Mapped[float | None]
    image_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class VoteRow(Base):
    """One voter's present vote on one subject.

    `subject` is a hash of the shown ids as a set, so that the order shown does not matter and the unique key
    stays short however many pictures were shown. `first_shown` is the smallest of the shown ids: a vote
    whose pictures all lie in some set has it in that set, which makes `of_voter` one indexed query.
    `pictures` holds all it takes to make the pictures again, so that the vote outlives them.
    """

    __tablename__ = "votes"
    __table_args__ = (
        UniqueConstraint("voter", "kind", "subject"),
        CheckConstraint("kind IN ('thumb', 'rating', 'choice')", name="kind"),
        Index(None, "voter", "first_shown"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String)
    voter: Mapped[str] = mapped_column(String)
    subject: Mapped[str] = mapped_column(String(64))
    first_shown: Mapped[str] = mapped_column(String)
    shown: Mapped[list[str]]
    value: Mapped[int | None] = mapped_column(Integer)
    chosen: Mapped[str | None] = mapped_column(String)
    pictures: Mapped[list[dict[str, Any]]]
    context: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class IdempotencyRow(Base):
    """What a voter's request under one idempotency key was, and what was answered.

    The key comes from outside and may hold anything, so its hash is kept. The answer is kept whole: a replay
    is answered alike even if the vote was changed or withdrawn meanwhile.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    voter: Mapped[str] = mapped_column(String, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String)
    vote_id: Mapped[int | None] = mapped_column(BigInteger)
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
