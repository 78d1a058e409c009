"""Generations in the database: they come back as they went in, and what has ended stays ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.exc import StatementError

from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.records import GenerationRecord
from tests.storage_records import a_generation

FINISHED = {"revision": "abc123", "versions": {"torch": "2.13.0", "alone": True}, "seconds": 1.5}


@pytest.fixture
def generations(database: Database) -> Iterator[GenerationRepository]:
    return GenerationRepository(database)


def test_a_generation_comes_back_as_it_was_stored(generations: GenerationRepository) -> None:
    """A failure would mean that a picture cannot be made again from its row."""
    record = a_generation()
    generations.insert_many([record])
    assert generations.get(record.id) == record


def test_times_come_back_aware_and_in_utc(generations: GenerationRepository) -> None:
    """A failure would mean that pages show times that are hours off."""
    tokyo = timezone(timedelta(hours=9))
    record = a_generation(created_at=datetime(2026, 11, 22, 10, 0, tzinfo=tokyo))
    generations.insert_many([record])
    stored = generations.get(record.id)
    assert stored is not None
    assert stored.created_at == record.created_at
    assert stored.created_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(generations: GenerationRepository) -> None:
    with pytest.raises(StatementError, match="time zone"):
        generations.insert_many([a_generation(created_at=datetime(2026, 11, 22))])


def test_a_batch_is_stored_whole_or_not_at_all(generations: GenerationRepository) -> None:
    """The last of three repeats an id; a failure would mean half a batch without anyone to run it."""
    first = a_generation()
    batch = [a_generation(), a_generation(), first]
    generations.insert_many([first])
    with pytest.raises(Exception, match=r"(?i)unique"):
        generations.insert_many(batch)
    assert generations.get_many(record.id for record in batch) == [first]
    generations.insert_many([])


def test_finishing_keeps_what_became_of_it(generations: GenerationRepository) -> None:
    record = a_generation()
    generations.insert_many([record])
    generations.mark_running([record.id])
    running = generations.get(record.id)
    assert running is not None and running.state == "running"
    finished_at = datetime(2026, 11, 22, 1, 3, tzinfo=UTC)
    assert generations.finish(
        record.id, **FINISHED, image_bytes=2**40, notices=["A word was cut."], finished_at=finished_at
    )
    stored = generations.get(record.id)
    assert stored is not None
    assert (stored.state, stored.revision, stored.versions) == ("done", "abc123", FINISHED["versions"])
    assert (stored.seconds, stored.image_bytes, stored.finished_at) == (1.5, 2**40, finished_at)
    assert stored.notices == ("A word was cut.",)


def test_failing_keeps_code_and_message(generations: GenerationRepository) -> None:
    record = a_generation()
    generations.insert_many([record])
    assert generations.fail(record.id, "out_of_memory", "Not even one picture of this size fits.")
    stored = generations.get(record.id)
    assert stored is not None
    assert (stored.state, stored.error_code) == ("failed", "out_of_memory")
    assert stored.error_message == "Not even one picture of this size fits."
    assert stored.finished_at is not None


@pytest.mark.parametrize("ending", ["done", "failed", "cancelled"])
def test_what_has_ended_never_changes(generations: GenerationRepository, ending: str) -> None:
    """A failure would mean that a late message of a slow thread overwrites the truth."""
    record = a_generation()
    generations.insert_many([record])
    changes = {
        "done": lambda: generations.finish(record.id, **FINISHED, image_bytes=1),
        "failed": lambda: generations.fail(record.id, "x", "y"),
        "cancelled": lambda: generations.cancel(record.id),
    }
    assert changes[ending]()
    ended = generations.get(record.id)
    assert ended is not None
    assert ended.state == ending
    generations.mark_running([record.id])
    assert [change() for change in changes.values()] == [False, False, False]
    assert generations.get(record.id) == ended


def test_only_one_of_two_simultaneous_endings_wins(generations: GenerationRepository) -> None:
    """Cancel against finish, from two threads: a failure would mean a lost update."""
    records = [a_generation() for _ in range(20)]
    generations.insert_many(records)
    with ThreadPoolExecutor(2) as pool:
        for record in records:
            finished = pool.submit(generations.finish, record.id, **FINISHED, image_bytes=1)
            cancelled = pool.submit(generations.cancel, record.id)
            stored_as = {True: "done", False: "cancelled"}[finished.result()]
            assert cancelled.result() is not finished.result()
            stored = generations.get(record.id)
            assert stored is not None
            assert stored.state == stored_as


def test_unknown_and_impossible_ids_are_simply_not_there(generations: GenerationRepository) -> None:
    """NUL, a lone surrogate and SQL; a failure would be a 500 (PostgreSQL refuses NUL, both a surrogate)."""
    for bad in ("unknown", "", "a\x00b", "\ud800", "x' OR '1'='1", "../../etc/passwd", "a" * 100_000):
        assert generations.get(bad) is None
        assert generations.of_batch(bad) == []
        assert generations.recent(before=(datetime.now(UTC), bad)) == []
        generations.mark_running([bad])
        assert not generations.cancel(bad)
        assert not generations.delete(bad)
    assert generations.get_many(["unknown", "\x00", "\ud800"]) == []


def test_any_number_of_ids_can_be_asked_for(generations: GenerationRepository) -> None:
    """33,000 ids are more than one statement may hold; order and repeats are the asker's."""
    records = [a_generation(), a_generation()]
    generations.insert_many(records)
    asked = [records[1].id, *(f"unknown-{n}" for n in range(33_000)), records[0].id, records[1].id]
    assert generations.get_many(asked) == [records[1], records[0]]


def test_a_batch_comes_in_the_order_of_its_positions(generations: GenerationRepository) -> None:
    batch = [a_generation(batch_id="batch-1", position=position) for position in (2, 0, 1)]
    generations.insert_many([*batch, a_generation()])
    assert [record.position for record in generations.of_batch("batch-1")] == [0, 1, 2]


def test_recent_pages_show_each_generation_once(generations: GenerationRepository) -> None:
    """Whole batches share one time; a failure would mean pictures lost between two pages of the gallery."""
    records = _five_batches_of_four()
    generations.insert_many(records)
    seen: list[GenerationRecord] = []
    before = None
    while page := generations.recent("client-1", ["waiting", "done"], limit=3, before=before):
        seen += page
        before = (page[-1].created_at, page[-1].id)
    wanted = [r for r in records if r.client == "client-1" and r.state != "failed"]
    assert seen == sorted(wanted, key=lambda r: (r.created_at, r.id), reverse=True)
    assert len(generations.recent(limit=100)) == len(records)


def _five_batches_of_four() -> list[GenerationRecord]:
    start = datetime(2026, 11, 22, tzinfo=UTC)
    states = ("waiting", "done", "failed", "done")
    return [
        a_generation(client=client, state=state, created_at=start + timedelta(minutes=minute))
        for minute in range(5)
        for state in states
        for client in ("client-1", "client-2")
    ]


def test_the_newest_unfinished_generation_of_a_client_is_found(generations: GenerationRepository) -> None:
    """What a page that is opened again shows; a failure would mean the running picture is lost from sight."""
    start = datetime(2026, 11, 22, tzinfo=UTC)
    old, newer, done = (a_generation(created_at=start + timedelta(minutes=n)) for n in range(3))
    foreign = a_generation(client="client-2", created_at=start + timedelta(minutes=9))
    generations.insert_many([old, newer, done, foreign])
    generations.finish(done.id, **FINISHED, image_bytes=1)
    assert generations.newest_unfinished("client-1") == newer
    assert generations.newest_unfinished("nobody") is None


def test_deleting_tells_whether_there_was_anything(generations: GenerationRepository) -> None:
    record, other = a_generation(), a_generation()
    generations.insert_many([record, other])
    assert generations.delete(record.id)
    assert not generations.delete(record.id)
    assert generations.get(record.id) is None
    assert generations.get(other.id) == other


def test_counts_name_every_state(generations: GenerationRepository) -> None:
    assert set(generations.counts().values()) == {0}
    generations.insert_many([a_generation(), a_generation(), a_generation(state="done")])
    assert generations.counts() == {"waiting": 2, "running": 0, "done": 1, "failed": 0, "cancelled": 0}
