"""Votes: one row a voter, kind and set of pictures, however many arrive at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import TypeVar

import pytest
from sqlalchemy import select

from app.errors import Conflict
from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.records import VoteRecord
from app.storage.tables import VoteRow
from app.storage.votes import VoteRepository, subject_of
from tests.storage_records import a_generation, a_vote

T = TypeVar("T")


@pytest.fixture
def votes(database: Database) -> VoteRepository:
    return VoteRepository(database)


def at_once(threads: int, work: Callable[[int], T]) -> list[T]:
    """What `work(0)`, `work(1)`, … return when all threads begin together."""
    barrier = Barrier(threads)

    def begin(number: int) -> T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def test_a_vote_is_there_for_another_connection_as_soon_as_it_is_acknowledged(
    votes: VoteRepository, database_url: str
) -> None:
    """A failure would mean an acknowledged vote that a crash can lose."""
    stored = votes.record(a_vote())
    elsewhere = Database(database_url)
    assert VoteRepository(elsewhere).of_voter("voter-1", ["picture-a"]) == [stored]
    elsewhere.close()
    assert (stored.kind, stored.value, stored.chosen, stored.shown) == ("thumb", 1, None, ("picture-a",))
    assert stored.created_at.tzinfo is UTC
    assert stored.updated_at == stored.created_at


def test_voting_again_changes_the_vote(votes: VoteRepository) -> None:
    first = votes.record(a_vote(value=1))
    second = votes.record(a_vote(value=-1))
    assert second.id == first.id
    assert second.value == -1
    assert second.created_at == first.created_at
    assert second.updated_at >= first.updated_at
    assert votes.counts() == {"thumb": 1, "rating": 0, "choice": 0}


def test_the_order_shown_does_not_make_another_vote(votes: VoteRepository) -> None:
    """A failure would count one voter's opinion of one pair twice."""
    votes.record(a_vote(kind="choice", shown=("a", "b"), value=None, chosen="a"))
    changed = votes.record(a_vote(kind="choice", shown=("b", "a"), value=None, chosen="tie"))
    assert votes.counts()["choice"] == 1
    assert changed.shown == ("b", "a")
    assert changed.chosen == "tie"


def test_other_kinds_voters_and_pictures_are_other_votes(votes: VoteRepository) -> None:
    votes.record(a_vote())
    votes.record(a_vote(kind="rating", value=4))
    votes.record(a_vote(voter="voter-2"))
    votes.record(a_vote(shown=("picture-b",)))
    assert votes.counts() == {"thumb": 3, "rating": 1, "choice": 0}


def test_the_subject_is_the_set_of_the_shown_ids() -> None:
    """A failure would let two different sets collide, or one set have two keys."""
    assert subject_of(["a", "b"]) == subject_of(("b", "a"))
    assert len({subject_of(ids) for ids in (["a"], ["b"], ["a", "b"], ["ab"], ["a", "b", "c"])}) == 5
    assert len(subject_of(str(n) for n in range(1000))) == 64


def test_a_vote_outlives_the_picture_it_was_cast_on(votes: VoteRepository, database: Database) -> None:
    """A failure would mean data that vanishes: a deleted picture must not take its votes along."""
    generations = GenerationRepository(database)
    record = a_generation()
    generations.insert_many([record])
    vote = a_vote(
        shown=(record.id,), pictures=[{"id": record.id, "seed": record.seed, "prompt": record.prompt}]
    )
    stored = votes.record(vote)
    generations.delete(record.id)
    assert votes.of_voter("voter-1", [record.id]) == [stored]
    with database.reading() as session:
        assert session.scalars(select(VoteRow.pictures)).one() == vote.pictures


def test_fifty_simultaneous_duplicates_are_one_row(votes: VoteRepository) -> None:
    answers = at_once(50, lambda _: votes.record(a_vote()))
    assert len({answer.id for answer in answers}) == 1
    assert votes.counts()["thumb"] == 1


def test_fifty_simultaneous_duplicates_under_one_key_get_one_answer(votes: VoteRepository) -> None:
    vote = a_vote(idempotency_key="key-1", body_hash="h1")
    answers = at_once(50, lambda _: votes.record(vote))
    assert len(set(answers)) == 1
    assert votes.counts()["thumb"] == 1


def test_sixteen_writers_of_sixty_votes_leave_960_rows(votes: VoteRepository) -> None:
    """And a replay of them all changes nothing. A failure would mean lost votes, or errors under load."""

    def cast_sixty(writer: int) -> list[VoteRecord]:
        cast = (a_vote(voter=f"voter-{writer}", shown=(f"picture-{n}",), **_key(n)) for n in range(60))
        return [votes.record(vote) for vote in cast]

    first = at_once(16, cast_sixty)
    assert votes.counts()["thumb"] == 960
    assert len({vote.id for some in first for vote in some}) == 960
    assert at_once(16, cast_sixty) == first
    assert votes.counts()["thumb"] == 960


def _key(number: int) -> dict[str, str]:
    return {"idempotency_key": f"key-{number}", "body_hash": "h"}


def test_a_replay_gets_the_first_answer_and_changes_nothing(votes: VoteRepository) -> None:
    """Even when the vote was changed or withdrawn meanwhile: a late retry must not undo that."""
    vote = a_vote(value=1, idempotency_key="key-1", body_hash="h1")
    first = votes.record(vote)
    changed = votes.record(a_vote(value=-1))
    assert votes.record(vote) == first
    assert votes.of_voter("voter-1", ["picture-a"]) == [changed]
    assert votes.withdraw("voter-1", "thumb", ["picture-a"])
    assert votes.record(vote) == first
    assert votes.counts()["thumb"] == 0


def test_the_same_key_with_another_body_is_a_conflict(votes: VoteRepository) -> None:
    first = votes.record(a_vote(value=1, idempotency_key="key-1", body_hash="h1"))
    with pytest.raises(Conflict, match="Idempotency-Key"):
        votes.record(a_vote(value=-1, idempotency_key="key-1", body_hash="h2"))
    assert votes.of_voter("voter-1", ["picture-a"]) == [first]


def test_a_key_belongs_to_one_voter(votes: VoteRepository) -> None:
    """A failure would let one voter's key block, or read, another's vote."""
    votes.record(a_vote(idempotency_key="key-1", body_hash="h1"))
    other = votes.record(a_vote(voter="voter-2", idempotency_key="key-1", body_hash="h2"))
    assert other.voter == "voter-2"


@pytest.mark.parametrize("key", ["", "\x00", "\ud800", "k" * 100_000, "' OR 1=1 --", "ключ"])
def test_a_key_may_be_anything(votes: VoteRepository, key: str) -> None:
    vote = a_vote(idempotency_key=key, body_hash="h1")
    assert votes.record(vote) == votes.record(vote)


def test_old_keys_are_forgotten_and_votes_stay(votes: VoteRepository) -> None:
    vote = a_vote(idempotency_key="key-1", body_hash="h1")
    votes.record(vote)
    assert votes.forget_keys(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert votes.forget_keys(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert votes.counts()["thumb"] == 1
    assert votes.record(a_vote(value=-1, idempotency_key="key-1", body_hash="h2")).value == -1


def test_the_votes_of_a_voter_on_some_pictures_are_found(votes: VoteRepository) -> None:
    """A vote belongs to a page if the page shows all its pictures; others' votes never do."""
    thumb = votes.record(a_vote(shown=("b",)))
    pair = votes.record(a_vote(kind="choice", shown=("c", "a"), value=None, chosen="c"))
    votes.record(a_vote(kind="choice", shown=("c", "z"), value=None, chosen="z"))
    votes.record(a_vote(shown=("z",)))
    votes.record(a_vote(voter="voter-2", shown=("a",)))
    assert votes.of_voter("voter-1", ["a", "b", "c"]) == [thumb, pair]
    assert votes.of_voter("voter-1", ["c"]) == []
    many = [*(f"unknown-{n}" for n in range(33_000)), "b", "\x00", "\ud800"]
    assert votes.of_voter("voter-1", many) == [thumb]


def test_withdrawing_removes_that_vote_only(votes: VoteRepository) -> None:
    votes.record(a_vote(kind="choice", shown=("a", "b"), value=None, chosen="a"))
    votes.record(a_vote(voter="voter-2", kind="choice", shown=("a", "b"), value=None, chosen="a"))
    assert votes.withdraw("voter-1", "choice", ("b", "a"))
    assert not votes.withdraw("voter-1", "choice", ("b", "a"))
    assert not votes.withdraw("voter-1", "choice", ("\x00", "\ud800"))
    assert votes.counts()["choice"] == 1
