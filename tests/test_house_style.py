"""Promises about the files themselves: what is vendored, what pages may contain, what containers are told."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import environment_names

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = set(environment_names())
REGISTRIES = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "download.py" + "torch.org",
)
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "mark." + "xfail")


def tracked() -> list[Path]:
    """The project's files: what git knows or, without git, what lies in the project's own folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        files = [ROOT / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        folders = ("app", "templates", "static", "tests", "alembic", "docs")
        files = [*ROOT.glob("*"), *(path for name in folders for path in (ROOT / name).rglob("*"))]
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of each text file."""
    for path in tracked():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_vendored_files_are_what_the_notice_says() -> None:
    """A failure means that a vendored file was edited, or came without its origin and licence."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    noted = dict(
        reversed(pair) for pair in re.findall(r"^ +sha256  ([0-9a-f]{64})  (\S+)$", notice, re.MULTILINE)
    )
    vendored = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "static/vendor").iterdir()
        if path.suffix != ".md"
    }
    assert vendored == noted
    for name in vendored:
        package, version = re.match(r"(.+)-([\d.]+)\.min\.js$", name).groups()  # type: ignore[union-attr]
        assert re.search(rf"^(htmx\.org|{package}) {re.escape(version)}, ", notice, re.MULTILINE), name


def test_no_script_and_no_style_is_written_into_a_page() -> None:
    """The content security policy would refuse it; and there is no JavaScript of our own."""
    forbidden = {
        "a script without src": r"<script(?![^>]*\ssrc=)",
        "an event handler": r"""[\s"']on[a-z]+\s*=\s*["'{]""",
        "hx-on": r"\bhx-on\b",
        "an expression for htmx": r"""["']\s*(js|javascript):""",
        "an inline style": r"""<style\b|<[a-z][^>]*\sstyle\s*=""",
    }
    pages = [*(ROOT / "templates").rglob("*.html"), *(ROOT / "app/web").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {what}: {match.group(0)!r}"
        for path in pages
        for what, pattern in forbidden.items()
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]
    assert found == []
    own = [path for path in (ROOT / "static").rglob("*.js") if path.parent.name != "vendor"]
    assert own == []


def test_no_file_names_a_registry() -> None:
    """Where packages come from is the business of whoever installs them (pip's settings, TORCH_INDEX)."""
    found = [f"{name}: {host}" for name, text in texts() for host in REGISTRIES if host in text]
    assert found == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{name}: {word}"
        for name, text in texts()
        if name.endswith((".py", ".html", ".css", ".toml", ".md", "Makefile"))
        for word in UNFINISHED
        if re.search(rf"\b{re.escape(word)}\b", text)
    ]
    assert found == []


def test_the_web_layer_is_ready_without_torch() -> None:
    """The port is bound before torch is imported; a failure makes every start slower by seconds."""
    code = (
        "import sys, app.cli, app.main, app.web, app.services\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for some in lists for text in some]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return dict(pins)


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_within_its_range(requirement: Requirement) -> None:
    """A failure means that a fresh machine would get what was never tested."""
    version = constraints()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_the_pins_bring_no_accelerator_along() -> None:
    pins = constraints()
    assert pins["torch"] == "2.13.0"
    assert [name for name in pins if re.search("nvidia|cuda|triton", name)] == []


def test_compose_names_settings_that_exist() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    service, database = compose["services"]["darkroom"], compose["services"]["database"]
    assert set(service["environment"]) <= SETTINGS
    assert service["environment"]["DARKROOM_DATABASE_URL"].startswith("postgresql+psycopg://")
    assert service["depends_on"]["database"]["condition"] == "service_healthy"
    assert database["image"] == "postgres:18"
    assert "healthcheck" in database
    named = {volume.split(":")[0] for each in compose["services"].values() for volume in each["volumes"]}
    assert named == set(compose["volumes"])


def test_the_dockerfile_copies_what_there_is_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    assert set(re.findall(r"DARKROOM_\w+(?==)", text)) <= SETTINGS
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*/livez", text, re.MULTILINE)
