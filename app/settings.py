"""Typed settings: DARKROOM_* in the environment or in `.env`. Imported by `app.main` and `app.cli` only."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.errors import InvalidConfiguration

PREFIX = "DARKROOM_"
_SECRETS = ("secret_key", "admin_token", "database_url", "HF_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_SECRET_BYTES = 32
_SECRET_LENGTH = 16
_SAFETY_CHECKER = "CompVis/stable-diffusion-safety-checker"
_DEVICE = r"(auto|cpu|mps|cuda(:\d{1,3})?)"


class Settings(BaseSettings):
    """All settings. `.env.example` documents each with its default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    host: str = Field("127.0.0.1", min_length=1, max_length=255, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path("data"), description="Folder for the database, the pictures and the secret.")
    database_url: str | None = Field(
        None,
        repr=False,  # holds a password
        description="Database, as postgresql+psycopg://user:password@server/name or sqlite:///file; "
        "a SQLite file in the data folder if left out.",
    )
    media_url: str | None = Field(
        None,
        repr=False,
        description="Where pictures are kept: a folder or an fsspec URL; "
        "the folder media in the data folder if left out.",
    )
    catalog: Annotated[tuple[str, ...], NoDecode] = Field(
        ("builtin",),
        min_length=1,
        description="What to generate with, separated by commas: names of sets that come with Darkroom, "
        "or paths of TOML files. The first one's default model is the default.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Signs cookies, 16 characters or more; made once in the data folder if left out.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names that requests may come by, besides loopback and the address listened on, "
        "separated by commas.",
    )
    admin_token: SecretStr | None = Field(
        None,
        description="Bearer token for what only an admin may do from elsewhere, 16 characters or more; "
        "without one only loopback may.",
    )
    hf_token: SecretStr | None = Field(
        None,
        # The names that the hub's own tools know, so that one setting serves all.
        validation_alias=AliasChoices("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
        description="Token for models on the hub that are private or gated.",
    )
    device: str = Field(
        "auto",
        pattern=rf"^{_DEVICE}( *, *{_DEVICE})*$",
        description="Device that pictures are made on: auto, cpu, mps, cuda or cuda:N; of several, separated "
        "by commas, each takes a part of the models.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision: auto (the fastest that is measured to be good enough), float32, bfloat16 "
        "or float16.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of torch; 0 takes the physical cores.")
    max_loaded: int = Field(
        0,
        ge=0,
        le=1000,
        description="Most models in memory on a device; the one used longest ago makes room for one that is "
        "asked for. 0 loads all of them at the start.",
    )
    safety_checker: str = Field(
        "off",
        max_length=2000,
        description="What looks at every finished picture before it is shown: off, on "
        "(CompVis/stable-diffusion-safety-checker), another hub id, or a folder with one.",
    )
    max_queue: int = Field(64, ge=1, le=100_000, description="Generations that may wait or run at once.")
    max_per_client: int = Field(16, ge=1, le=100_000, description="How many of them one client may hold.")
    sse_ping_seconds: float = Field(
        15.0, ge=0.1, le=3600, description="Time between comments that keep an idle stream open."
    )
    sse_send_timeout_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="After this time a stream whose reader takes nothing is ended."
    )
    reader_grace_seconds: float = Field(
        3.0,
        ge=0,
        le=3600,
        description="Time a reader of /generate has to come back before its picture is dropped.",
    )
    graceful_shutdown_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Time open streams have to end when the process is told to stop.",
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="What to log: critical, error, warning, info or debug."
    )

    @field_validator("catalog", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", "dtype", "device", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("secret_key", "admin_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SECRET_LENGTH:
            raise ValueError(f"{_SECRET_LENGTH} characters or more are needed")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _bare_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not host.isprintable() or any(character in host for character in "/@ "):
                raise ValueError(f"a host name without scheme and path is needed, not {host!r}")
        return value

    @property
    def safety_checker_source(self) -> str:
        """Hub id or folder of the safety checker, '' if it is off."""
        return {"off": "", "on": _SAFETY_CHECKER}.get(self.safety_checker.lower(), self.safety_checker)

    @property
    def media_location(self) -> str:
        """Where pictures are kept: `media_url`, else a folder in the data folder."""
        return self.media_url or str(self.data_dir / "media")

    def signing_key(self) -> str:
        """The key that signs cookies; made once in the data folder unless `secret_key` is set.

        Raises:
            InvalidConfiguration: The file in the data folder cannot be written or read, or is too short.
        """
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        path = self.data_dir / "secret_key"
        try:
            if not path.exists():
                _write_once(path, secrets.token_hex(_SECRET_BYTES))
            key = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidConfiguration(
                f"The file secret_key in the data folder {str(self.data_dir)!r} cannot be used: {exc}. "
                f"Correct {PREFIX}DATA_DIR or set {PREFIX}SECRET_KEY."
            ) from exc
        if len(key) < _SECRET_LENGTH:
            raise InvalidConfiguration(
                f"The key in {str(path)!r} is shorter than {_SECRET_LENGTH} characters; delete the file."
            )
        return key


def load_settings(**given: Any) -> Settings:
    """Read the environment and `.env`; values in `given` that are not None win over both.

    Raises:
        InvalidConfiguration: A value is wrong; the message says which and why, in one sentence each.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        raise InvalidConfiguration(" ".join(_sentence(error) for error in exc.errors())) from exc
    except (SettingsError, OSError, UnicodeDecodeError) as exc:
        raise InvalidConfiguration(f"The settings cannot be read: {exc}.") from exc


def environment_names() -> list[str]:
    """What each setting is called in the environment and in `.env`, in order."""
    return [
        str(field.validation_alias.choices[0])
        if isinstance(field.validation_alias, AliasChoices)
        else PREFIX + name.upper()
        for name, field in Settings.model_fields.items()
    ]


def unknown_names(environment: Iterable[str] | None = None) -> list[str]:
    """Names in the environment that look like a setting and are none: most likely misspelt."""
    known = set(environment_names())
    names = os.environ if environment is None else environment
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def _sentence(error: ErrorDetails) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    reason = error["msg"].removeprefix("Value error, ")
    given = "" if name in _SECRETS else f", not {str(error['input'])[:80]!r}"
    shown = PREFIX + name.upper() if name in Settings.model_fields else name
    return f"{shown}: {reason[:1].lower()}{reason[1:]}{given}."


def _write_once(path: Path, text: str) -> None:
    """Write `path` with mode 0600, whole or not at all; of several processes the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".secret_key")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first: its key counts
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
            return
    finally:
        Path(temporary).unlink(missing_ok=True)
