"""Where templates, static files and migrations lie: inside an installed package, or atop a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    packaged = _PACKAGE / f"_{name}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def templates_dir() -> Path:
    """The folder of the Jinja templates."""
    return _folder("templates")


def static_dir() -> Path:
    """The folder served under /static."""
    return _folder("static")


def alembic_dir() -> Path:
    """The folder of the migrations (Alembic's script location)."""
    return _folder("alembic")
