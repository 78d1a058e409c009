"""Settings: read from DARKROOM_* and .env, checked, and each documented in .env.example."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.errors import InvalidConfiguration
from app.settings import PREFIX, Settings, environment_names, load_settings, unknown_names

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the developer's environment nor their .env may decide a test."""
    for name in list(os.environ):
        if name.upper().startswith((PREFIX, "HF_TOKEN", "HUGGINGFACE_HUB_TOKEN")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_env_example_documents_every_setting_with_its_default() -> None:
    """A failure means that someone reads .env.example and is told wrong."""
    example = ROOT / ".env.example"
    documented = dotenv_values(example)
    assert list(documented) == environment_names()
    assert Settings(_env_file=example) == Settings()
    commented = example.read_text(encoding="utf-8").split("\n\n")
    assert all(block.startswith("#") for block in commented), "a setting stands without a comment"


def test_every_setting_has_a_description_for_people() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "DARKROOM_PORT=1001\nDARKROOM_HOST=10.0.0.1\nDARKROOM_THREADS=3\nOTHER=1\n"
    )
    monkeypatch.setenv("DARKROOM_PORT", "1002")
    monkeypatch.setenv("DARKROOM_HOST", "10.0.0.2")
    settings = load_settings(port=1003, host=None)
    assert (settings.port, settings.host, settings.threads) == (1003, "10.0.0.2", 3)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_CATALOG", "builtin, ./mine.toml ,")
    monkeypatch.setenv("DARKROOM_ALLOWED_HOSTS", "pictures.example, [::1]")
    settings = load_settings()
    assert settings.catalog == ("builtin", "./mine.toml")
    assert settings.allowed_hosts == ("pictures.example", "[::1]")


@pytest.mark.parametrize("value", ["auto", "CUDA:3", "cuda:0, cuda:1", "cpu,cuda"])
def test_several_devices_can_be_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DARKROOM_DEVICE", value)
    assert load_settings().device == value.lower()


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("PORT", "eight", "DARKROOM_PORT"),
        ("PORT", "65536", "65535"),
        ("PORT", "-1", "DARKROOM_PORT"),
        ("THREADS", "1e9", "DARKROOM_THREADS"),
        ("MAX_QUEUE", "0", "DARKROOM_MAX_QUEUE"),
        ("DTYPE", "int8", "'bfloat16'"),
        ("DEVICE", "/dev/null", "DARKROOM_DEVICE"),
        ("DEVICE", "cuda:0,", "DARKROOM_DEVICE"),
        ("SSE_PING_SECONDS", "nan", "DARKROOM_SSE_PING_SECONDS"),
        ("READER_GRACE_SECONDS", "-1", "DARKROOM_READER_GRACE_SECONDS"),
        ("LOG_LEVEL", "chatty", "'debug'"),
        ("CATALOG", " , ", "DARKROOM_CATALOG"),
        ("ALLOWED_HOSTS", "a.example,http://b.example/", "without scheme"),
        ("SECRET_KEY", "short", "16 characters"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(InvalidConfiguration) as caught:
        load_settings()
    message = caught.value.message
    assert part in message
    assert PREFIX + name in message
    assert "\n" not in message


def test_a_secret_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that a token or a password ends up in a log."""
    monkeypatch.setenv("DARKROOM_ADMIN_TOKEN", "hunter2")
    with pytest.raises(InvalidConfiguration) as caught:
        load_settings()
    assert "hunter2" not in caught.value.message
    monkeypatch.setenv("DARKROOM_ADMIN_TOKEN", "hunter2-hunter2-hunter2")
    monkeypatch.setenv("DARKROOM_DATABASE_URL", "postgresql+psycopg://me:hunter2@server/name")
    assert "hunter2" not in repr(load_settings())


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_the_hubs_token_is_read_under_the_names_that_its_own_tools_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """A failure means that a token in .env is not found, or is told to everyone."""
    (tmp_path / ".env").write_text(f"{name}=hf_hunter2\n")
    settings = load_settings()
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "hf_hunter2"
    assert "hunter2" not in repr(settings)
    monkeypatch.setenv(name, "hf_other")
    assert load_settings().hf_token.get_secret_value() == "hf_other"  # type: ignore[union-attr]
    monkeypatch.setenv(name, "")
    assert load_settings().hf_token.get_secret_value() == "hf_hunter2"  # type: ignore[union-attr]


def test_misspelt_names_are_found() -> None:
    assert unknown_names(["DARKROOM_PROT", "DARKROOM_PORT", "darkroom_host", "PATH"]) == ["DARKROOM_PROT"]


def test_the_signing_key_is_made_once_and_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """Processes that start together must agree, or cookies signed by one are refused by the other."""
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Settings(data_dir=tmp_path / "new").signing_key(), range(16)))
    assert len(keys) == 1
    assert len(keys.pop()) == 64
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["secret_key"]
    assert stat.S_IMODE((tmp_path / "new" / "secret_key").stat().st_mode) == 0o600


def test_a_given_key_is_used_and_none_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", secret_key="0123456789abcdef")
    assert settings.signing_key() == "0123456789abcdef"
    assert not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfiguration, match="DARKROOM_DATA_DIR"):
        Settings(data_dir=tmp_path / "file").signing_key()
    (tmp_path / "secret_key").write_text("")
    with pytest.raises(InvalidConfiguration, match="shorter"):
        Settings(data_dir=tmp_path).signing_key()
