"""A built wheel is whole: installed away from the checkout it serves its page and loads its weights."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import Served, environment, served

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 120.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("darkroom-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with served([str(site / "bin/darkroom"), "serve"], folder, PYTHONPATH=str(site)) as server:
        yield server


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_carries_everything_inside_its_own_package(wheel: Path) -> None:
    """Anything outside of `app/` would lie loose among other projects' files."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for inside, outside in (
        ("app/_templates", "templates"),
        ("app/_static", "static"),
        ("app/_alembic", "alembic"),
        ("app/catalog", "app/catalog"),
        ("app/builtin", "app/builtin"),
    ):
        missing = {f"{inside}/{name}" for name in files_below(ROOT / outside)} - names
        assert not missing, f"{outside}: {sorted(missing)}"
    assert "app/builtin/base/model_index.json" in names
    assert "app/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"app", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


def test_the_wheel_says_what_others_made(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("LICENSE", "NOTICE"):
        assert any(each.endswith(f".dist-info/licenses/{name}") for each in names), name


def test_the_installed_package_uses_none_of_the_checkouts_folders(site: Path, tmp_path: Path) -> None:
    code = (
        "from app import resources as r; print(r.templates_dir(), r.static_dir(), r.alembic_dir(), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    )
    folders = [Path(line) for line in done.stdout.splitlines()]
    assert folders == [site / "app/_templates", site / "app/_static", site / "app/_alembic"]


def test_the_installed_server_serves_its_page_and_all_that_the_page_needs(installed: Served) -> None:
    with httpx.Client(base_url=installed.url, timeout=30) as client:
        assert client.get("/livez").status_code == 200
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assets = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
        assert any("htmx" in asset for asset in assets)
        for asset in [*assets, "/docs", "/openapi.json"]:
            assert client.get(asset).status_code == 200, asset


def test_the_installed_server_loads_the_weights_that_it_brought(installed: Served) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        health = httpx.get(f"{installed.url}/health", timeout=30).json()
        if health["status"] != "starting":
            break
        time.sleep(0.5)
    assert health["status"] == "healthy", "".join(installed.lines)
    assert "compressibility" in health["models_loaded"]


def test_the_command_line_lists_the_models(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(site / "bin/darkroom"), "models"],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(
        r"^builtin/compressibility \(default\) +Compressibility +128x128 +[\d.]+ MB +MIT$",
        done.stdout,
        re.MULTILINE,
    )


def test_the_builtin_weights_are_small_enough_to_ship() -> None:
    """At most 36 MB in fp16 and 3 MB an adapter, as the README promises to those who clone."""
    weights = (ROOT / "app/builtin/base").rglob("*.safetensors")
    assert 0 < sum(path.stat().st_size for path in weights) <= 36_000_000
    for name in ("aesthetic", "alignment", "compressibility", "incompressibility"):
        adapter = ROOT / "app/builtin" / name / "pytorch_lora_weights.safetensors"
        assert 0 < adapter.stat().st_size <= 3_000_000


def test_the_installed_server_ends_when_told_to(installed: Served) -> None:
    """Last in this file: it ends the server that the tests above share."""
    began = time.monotonic()
    assert installed.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 12
    assert "Traceback" not in "".join(installed.lines)
