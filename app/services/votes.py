"""Votes: checked, with all it takes to make their pictures again, committed before they are acknowledged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.services.params import check_storable
from app.services.pictures import picture_parameters
from app.services.storage import StorageThreads
from app.storage.generations import GenerationRepository
from app.storage.records import GenerationRecord, NewVote, VoteKind, VoteRecord
from app.storage.votes import VoteRepository

MAX_SHOWN = 16
MAX_KEY = 200
VERDICTS = ("tie", "all_bad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """A vote as a client casts it.

    Attributes:
        kind: thumb, rating or choice.
        shown: Ids of the finished generations that the voter saw, in the order shown: one for a thumb or a
            rating, two to 16 for a choice.
        value: thumb: −1 or 1; rating: 1 … 5.
        chosen: choice: one of `shown`, 'tie' or 'all_bad'.
        page: Where it was asked ('studio', 'api').
    """

    kind: VoteKind
    shown: Sequence[str]
    value: int | None = None
    chosen: str | None = None
    page: str = "api"


class VoteService:
    """Casts, withdraws and looks up votes.

    Args:
        votes: Rows.
        generations: To check what was shown and to copy its recipe.
        storage: Where calls to both run.
    """

    def __init__(
        self, votes: VoteRepository, generations: GenerationRepository, storage: StorageThreads
    ) -> None:
        self._votes = votes
        self._storage = storage
        self._generations = generations
        self.cast_total: dict[VoteKind, int] = {"thumb": 0, "rating": 0, "choice": 0}

    async def cast(self, ballot: Ballot, voter: str, *, idempotency_key: str | None = None) -> VoteRecord:
        """Store the vote, or change the voter's earlier one on the same pictures; committed when it returns.

        Raises:
            InvalidRequest: A field is wrong.
            Conflict: The same idempotency key came with another body.
            StorageUnavailable: Nothing was stored.
        """
        _check(ballot)
        _check_key(idempotency_key)
        record = await self._storage.run(self._cast, ballot, voter, idempotency_key)
        self.cast_total[ballot.kind] += 1
        return record

    async def withdraw(self, kind: VoteKind, shown: Iterable[str], voter: str) -> bool:
        """Take the voter's vote on these pictures back; whether there was one.

        Raises:
            StorageUnavailable: Nothing was changed.
        """
        shown = tuple(shown)
        _check_shown(shown)
        return await self._storage.run(self._votes.withdraw, voter, kind, shown)

    async def of_voter(self, voter: str, generation_ids: Iterable[str]) -> list[VoteRecord]:
        """The voter's votes on these generations.

        Raises:
            StorageUnavailable: They cannot be looked up.
        """
        return await self._storage.run(self._votes.of_voter, voter, tuple(generation_ids))

    def _cast(self, ballot: Ballot, voter: str, idempotency_key: str | None) -> VoteRecord:
        vote = NewVote(
            kind=ballot.kind,
            voter=voter,
            shown=tuple(ballot.shown),
            value=ballot.value,
            chosen=ballot.chosen,
            pictures=[picture_parameters(record) for record in self._finished(ballot.shown)],
            context={"page": ballot.page},
            idempotency_key=idempotency_key,
            body_hash=_body_hash(ballot),
        )
        return self._votes.record(vote)

    def _finished(self, shown: Sequence[str]) -> list[GenerationRecord]:
        records = {record.id: record for record in self._generations.get_many(shown)}
        for generation_id in shown:
            record = records.get(generation_id)
            if record is None:
                raise InvalidRequest("shown: names a generation that does not exist", field="shown")
            if record.state != "done":
                raise InvalidRequest("shown: names a generation that has no picture (yet)", field="shown")
        return [records[generation_id] for generation_id in shown]


def _check(ballot: Ballot) -> None:
    _check_shown(ballot.shown)
    if ballot.kind == "choice":
        _check_choice(ballot)
        return
    if len(ballot.shown) != 1:
        raise InvalidRequest(f"shown: a {ballot.kind} is about exactly one generation", field="shown")
    if ballot.chosen is not None:
        raise InvalidRequest(f"chosen: only a choice has it, not a {ballot.kind}", field="chosen")
    allowed, words = ((-1, 1), "-1 or 1") if ballot.kind == "thumb" else (range(1, 6), "a number from 1 to 5")
    if ballot.value not in allowed:
        raise InvalidRequest(f"value: the value of a {ballot.kind} must be {words}", field="value")


def _check_choice(ballot: Ballot) -> None:
    if len(ballot.shown) < 2:
        raise InvalidRequest("shown: a choice needs at least 2 generations", field="shown")
    if ballot.value is not None:
        raise InvalidRequest("value: a choice has none", field="value")
    if ballot.chosen not in (*ballot.shown, *VERDICTS):
        raise InvalidRequest("chosen: must be one of the shown ids, 'tie' or 'all_bad'", field="chosen")


def _check_shown(shown: Sequence[str]) -> None:
    if not 1 <= len(shown) <= MAX_SHOWN:
        raise InvalidRequest(f"shown: must name 1 to {MAX_SHOWN} generations", field="shown")
    if len(set(shown)) != len(shown):
        raise InvalidRequest("shown: must not name a generation twice", field="shown")
    for generation_id in shown:
        check_storable("shown", generation_id)


def _check_key(key: str | None) -> None:
    if key is not None and not (1 <= len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key: must have 1 to {MAX_KEY} printable characters", field="Idempotency-Key"
        )


def _body_hash(ballot: Ballot) -> str:
    body: list[Any] = [ballot.kind, list(ballot.shown), ballot.value, ballot.chosen]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
