"""The schema: what Alembic makes is what the models say, made once however many processes start."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import ProgrammingError

import app.storage.migrations as migrations
from app.errors import StorageUnavailable
from app.storage.database import Database
from app.storage.migrations import current_revision, head_revision, migrate
from app.storage.tables import Base
from app.storage.votes import VoteRepository
from tests.storage_records import a_vote

ROOT = Path(__file__).parent.parent


def test_the_models_are_what_the_migrations_make(database: Database) -> None:
    """A failure would mean that a column exists in the code and not in people's databases, or the reverse."""
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_constraint_has_the_name_that_the_models_give_it(database: Database) -> None:
    """Later migrations drop constraints by name; a failure would mean one that cannot be found."""
    with database.reading() as session:
        inspector = inspect(session.connection())
        for table in Base.metadata.sorted_tables:
            made = {constraint["name"] for constraint in inspector.get_check_constraints(table.name)}
            made |= {constraint["name"] for constraint in inspector.get_unique_constraints(table.name)}
            made |= {inspector.get_pk_constraint(table.name)["name"]}
            assert made == {str(constraint.name) for constraint in table.constraints}


def test_migrating_again_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    assert current_revision(empty_database_url, tmp_path) is None
    assert migrate(empty_database_url, tmp_path)
    assert current_revision(empty_database_url, tmp_path) == head_revision()
    database = Database(empty_database_url)
    VoteRepository(database).record(a_vote())
    assert not migrate(empty_database_url, tmp_path)
    assert VoteRepository(database).counts()["thumb"] == 1
    database.close()


_MIGRATE = """
import sys
from app.storage.migrations import migrate
print("ready", flush=True)
sys.stdin.readline()
print(migrate(sys.argv[1]), flush=True)
"""


def test_four_processes_migrate_one_empty_database(empty_database_url: str) -> None:
    """One migrates, all succeed. A failure would be a start that fails when workers start together."""
    arguments = [sys.executable, "-W", "error", "-c", _MIGRATE, empty_database_url]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(answers) == ["False\n"] * 3 + ["True\n"]
    assert current_revision(empty_database_url) == head_revision()


def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_database_url: str) -> None:
    """Its last table is in the way. Half a schema could neither be used nor be migrated again."""
    database = Database(empty_database_url)
    with database.writing() as session:
        session.execute(text("CREATE TABLE idempotency_keys (in_the_way INTEGER)"))
    with pytest.raises((StorageUnavailable, ProgrammingError)):
        migrate(empty_database_url)
    with database.reading() as session:
        assert inspect(session.connection()).get_table_names() == ["idempotency_keys"]
    with database.writing() as session:
        session.execute(text("DROP TABLE idempotency_keys"))
    assert migrate(empty_database_url)
    database.close()


def test_a_database_of_a_newer_darkroom_is_left_alone(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageUnavailable, match="another version"):
        migrate(database_url)
    assert current_revision(database_url) == "9999"


def test_down_and_up_again(database: Database, database_url: str) -> None:
    """A failure would mean that a downgrade leaves remains that the next upgrade trips over."""
    configuration = migrations.config()
    with database.writing() as session:
        configuration.attributes["connection"] = session.connection()
        command.downgrade(configuration, "base")
    with database.reading() as session:
        assert inspect(session.connection()).get_table_names() == ["alembic_version"]
    assert migrate(database_url)


def test_a_migration_that_hangs_is_waited_for_and_then_given_up(
    empty_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.2)
    path = empty_sqlite_url.removeprefix("sqlite:///")
    with (
        migrations.FileLock(f"{path}.migrating"),
        pytest.raises(StorageUnavailable, match="locked") as caught,
    ):
        migrate(empty_sqlite_url)
    assert path not in caught.value.message
    assert migrate(empty_sqlite_url)


def test_an_advisory_lock_that_is_never_released_is_given_up(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.2)
    database = Database(empty_postgres_url)
    with database.writing() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": migrations._ADVISORY_LOCK})
        with pytest.raises(StorageUnavailable):
            migrate(empty_postgres_url)
    assert migrate(empty_postgres_url)
    database.close()


@pytest.mark.parametrize("start", ["-c", "-m"])
def test_the_checkouts_alembic_folder_does_not_hide_the_library(start: str, tmp_path: Path) -> None:
    """`python -m app` puts the checkout first on the path, where a folder is called alembic, too."""
    code = "import alembic, alembic.command; print(alembic.__file__)"
    (tmp_path / "started.py").write_text(code)
    arguments = ["-c", code] if start == "-c" else ["-m", "started"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).parent != ROOT / "alembic"
    assert "site-packages" in done.stdout


def test_the_command_line_at_a_checkout_works(tmp_path: Path) -> None:
    """What the comment in alembic.ini promises to people."""
    for arguments in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=ROOT,
            env={"DARKROOM_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert current_revision(None, tmp_path) == head_revision()


def test_an_installed_package_brings_its_own_migrations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_sqlite_url: str
) -> None:
    """They may lie anywhere; a per cent sign in the path must not matter."""
    elsewhere = tmp_path / "50% site" / "app" / "_alembic"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.symlink_to(ROOT / "alembic")
    monkeypatch.setattr(migrations, "alembic_dir", lambda: elsewhere)
    assert migrate(empty_sqlite_url)


def test_the_lock_file_of_a_dead_process_does_not_matter(empty_sqlite_url: str) -> None:
    Path(empty_sqlite_url.removeprefix("sqlite:///") + ".migrating").touch()
    assert migrate(empty_sqlite_url)
    with closing(Database(empty_sqlite_url)) as database:
        database.ping()
