"""Heartbeats: only what a dead process left unfinished is marked failed."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.processes import STOPPED_MESSAGE, ProcessRepository
from app.storage.records import GenerationState
from app.storage.tables import ProcessRow
from app.storage.votes import VoteRepository
from tests.storage_records import a_generation

HOUR = 3600.0


@pytest.fixture
def processes(database: Database) -> ProcessRepository:
    return ProcessRepository(database)


@pytest.fixture
def generations(database: Database) -> GenerationRepository:
    return GenerationRepository(database)


def _states(generations: GenerationRepository, ids: list[str]) -> list[GenerationState]:
    return [record.state for record in generations.get_many(ids)]


def _let_an_hour_pass(database: Database, process_id: str) -> None:
    """Since that process's last heartbeat."""
    with database.writing() as session:
        then = database.now(session) - timedelta(hours=1)
        session.execute(update(ProcessRow).where(ProcessRow.id == process_id).values(heartbeat_at=then))


def test_only_the_unfinished_of_dead_owners_are_marked(
    processes: ProcessRepository, generations: GenerationRepository, database: Database
) -> None:
    """A failure would mean a lost picture of a living neighbour, or one that 'runs' for ever."""
    living, dead = processes.register(), processes.register()
    _let_an_hour_pass(database, dead)
    records = [
        a_generation(owner=owner, state=state)
        for owner in (living, dead, "never-registered")
        for state in ("waiting", "running", "done", "failed", "cancelled")
    ]
    generations.insert_many(records)
    assert processes.reap_dead(60) == 4
    ids = [record.id for record in records]
    kept, marked = (
        ["waiting", "running", "done", "failed", "cancelled"],
        ["failed"] * 2 + ["done", "failed", "cancelled"],
    )
    assert _states(generations, ids) == kept + marked + marked
    stored = generations.get(ids[5])
    assert stored is not None
    assert stored.error_code == "server_stopped"
    assert stored.error_message == STOPPED_MESSAGE
    assert stored.finished_at is not None
    assert processes.reap_dead(HOUR) == 0


def test_a_process_that_slept_comes_back_with_its_heartbeat(
    processes: ProcessRepository, generations: GenerationRepository, database: Database
) -> None:
    """A laptop's lid was closed; a failure would mark everything it makes from then on as failed."""
    slept = processes.register()
    _let_an_hour_pass(database, slept)
    processes.reap_dead(60)
    processes.heartbeat(slept)
    record = a_generation(owner=slept)
    generations.insert_many([record])
    assert processes.reap_dead(HOUR) == 0
    assert _states(generations, [record.id]) == ["waiting"]


def test_a_process_that_retires_leaves_nothing_unfinished(
    processes: ProcessRepository, generations: GenerationRepository
) -> None:
    retiring, other = processes.register(), processes.register()
    records = [
        a_generation(owner=retiring),
        a_generation(owner=retiring, state="done"),
        a_generation(owner=other),
    ]
    generations.insert_many(records)
    assert processes.retire(retiring) == 1
    assert _states(generations, [record.id for record in records]) == ["failed", "done", "waiting"]
    assert processes.retire(retiring) == 0
    assert processes.reap_dead(HOUR) == 0


def test_ids_of_processes_differ(processes: ProcessRepository) -> None:
    assert len({processes.register() for _ in range(20)}) == 20


_DOOMED = """
import sys, time
from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.processes import ProcessRepository
from app.storage.tables import ProcessRow
from app.storage.votes import VoteRepository
from tests.storage_records import a_generation, a_vote

database = Database(sys.argv[1])
owner = ProcessRepository(database).register()
GenerationRepository(database).insert_many([a_generation(id="doomed", owner=owner, state="running")])
VoteRepository(database).record(a_vote())
with database.writing() as session:
    session.execute(__import__("sqlalchemy").text("DELETE FROM votes"))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_sigkill_in_mid_transaction_loses_no_vote(database: Database, database_url: str) -> None:
    """The process dies with a transaction open that deletes the votes: the vote stays, its picture fails."""
    with subprocess.Popen([sys.executable, "-c", _DOOMED, database_url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    generations, votes = GenerationRepository(database), VoteRepository(database)
    assert ProcessRepository(database).reap_dead(HOUR) == 0
    assert _states(generations, ["doomed"]) == ["running"]
    assert ProcessRepository(database).reap_dead(0.0) == 1
    assert _states(generations, ["doomed"]) == ["failed"]
    assert votes.counts()["thumb"] == 1
