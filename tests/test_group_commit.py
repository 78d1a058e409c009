"""Writes that come together are committed together, and each is answered for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from app.errors import StorageUnavailable
from app.services.storage import StorageThreads
from app.storage.database import Database
from app.storage.generations import GenerationRepository
from tests.storage_records import a_generation


@pytest.fixture
def generations(database: Database) -> GenerationRepository:
    return GenerationRepository(database)


@pytest.fixture
def commits(database: Database) -> Iterator[list[object]]:
    """One entry for each commit of the database, from here on."""
    seen: list[object] = []

    def note(connection: object) -> None:
        seen.append(connection)

    event.listen(database.db_engine, "commit", note)
    yield seen
    event.remove(database.db_engine, "commit", note)


async def test_sixteen_writes_at_once_share_a_few_commits(
    database: Database, generations: GenerationRepository, commits: list[object]
) -> None:
    """A failure would mean that pictures that end together wait for the disk one after the other."""
    storage = StorageThreads(database.together)
    storage.open()
    records = [a_generation() for _ in range(16)]
    await asyncio.gather(*(storage.write(generations.insert_many, [record]) for record in records))
    assert len(commits) <= 4
    assert len(generations.get_many(record.id for record in records)) == 16


async def test_a_write_that_fails_takes_no_other_with_it(
    database: Database, generations: GenerationRepository
) -> None:
    """The middle one repeats an id; a failure would lose the pictures of the others."""
    storage = StorageThreads(database.together)
    storage.open()
    old = a_generation()
    await storage.write(generations.insert_many, [old])
    good = [a_generation() for _ in range(4)]
    batches = [[good[0]], [good[1]], [old], [good[2]], [good[3]]]
    outcomes = await asyncio.gather(
        *(storage.write(generations.insert_many, batch) for batch in batches), return_exceptions=True
    )
    assert [isinstance(outcome, IntegrityError) for outcome in outcomes] == [False, False, True, False, False]
    assert len(generations.get_many(record.id for record in good)) == 4


async def test_writes_keep_their_order_and_their_results(
    database: Database, generations: GenerationRepository
) -> None:
    """A row is inserted, runs, ends and does not end twice, all asked for at once."""
    storage = StorageThreads(database.together)
    storage.open()
    record = a_generation()
    outcomes = await asyncio.gather(
        storage.write(generations.insert_many, [record]),
        storage.write(generations.mark_running, [record.id]),
        storage.write(generations.cancel, record.id),
        storage.write(generations.fail, record.id, "late", "Too late."),
    )
    assert outcomes == [None, None, True, False]
    stored = generations.get(record.id)
    assert stored is not None and stored.state == "cancelled"


async def test_a_commit_that_fails_is_told_to_everyone(
    database: Database, generations: GenerationRepository
) -> None:
    """A failure would acknowledge a picture that no row remembers."""

    def break_it(_: object) -> None:
        raise OSError("no space left on device")

    storage = StorageThreads(database.together)
    storage.open()
    records = [a_generation() for _ in range(5)]
    event.listen(database.db_engine, "commit", break_it)
    try:
        outcomes = await asyncio.gather(
            *(storage.write(generations.insert_many, [record]) for record in records),
            return_exceptions=True,
        )
    finally:
        event.remove(database.db_engine, "commit", break_it)
    assert all(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
    assert generations.get_many(record.id for record in records) == []


async def test_a_writer_who_leaves_does_not_stop_the_others(
    database: Database, generations: GenerationRepository
) -> None:
    storage = StorageThreads(database.together)
    storage.open()
    records = [a_generation() for _ in range(3)]
    tasks = [asyncio.create_task(storage.write(generations.insert_many, [record])) for record in records]
    await asyncio.sleep(0)
    tasks[1].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), asyncio.CancelledError, type(None)]


async def test_nothing_is_written_before_the_database_is_open(generations: GenerationRepository) -> None:
    with pytest.raises(StorageUnavailable):
        await StorageThreads().write(generations.insert_many, [a_generation()])
