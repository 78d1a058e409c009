"""Image files: whole or absent, found by name and never by path."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import NotFound, StorageUnavailable
from app.storage.images import ImageStore

PATHS = [
    "../x.png",
    "/etc/passwd",
    "a/b.png",
    "a\\b.png",
    "x.PNG",
    "x.png\n",
    ".png",
    "x.svg",
    "\x00.png",
    "é.png",
]


@pytest.fixture(params=["folder", "file URL", "memory"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    where = {
        "folder": tmp_path / "media" / "deep",
        "file URL": f"file://{tmp_path}/media",
        "memory": f"memory://{uuid.uuid4().hex}/media",
    }
    return ImageStore(where[request.param])


def test_an_image_comes_back_as_it_was_put(images: ImageStore) -> None:
    data = bytes(range(256)) * 100
    images.put("kT3x_-9.png", data)
    assert images.get("kT3x_-9.png") == data
    assert images.exists("kT3x_-9.png")
    assert images.size("kT3x_-9.png") == len(data)


def test_putting_again_replaces(images: ImageStore) -> None:
    images.put("a.png", b"first and longer")
    images.put("a.png", b"second")
    assert images.get("a.png") == b"second"
    assert images.size("a.png") == 6


def test_what_is_not_there_is_not_found(images: ImageStore) -> None:
    assert not images.exists("a.png")
    assert not images.delete("a.png")
    with pytest.raises(NotFound):
        images.get("a.png")
    with pytest.raises(NotFound):
        images.size("a.png")


def test_deleting_removes_that_image_only(images: ImageStore) -> None:
    images.put("a.png", b"a")
    images.put("b.png", b"b")
    assert images.delete("a.png")
    assert not images.exists("a.png")
    assert images.get("b.png") == b"b"


@pytest.mark.parametrize("path", PATHS)
def test_a_key_is_never_a_path(tmp_path: Path, path: str) -> None:
    """A failure would let a stranger read, write or delete files outside the media folder."""
    (tmp_path / "x.png").write_bytes(b"outside")
    images = ImageStore(tmp_path / "media")
    images.put("in.png", b"inside")
    with pytest.raises(ValueError, match="key"):
        images.put(path, b"evil")
    with pytest.raises(NotFound):
        images.get(path)
    with pytest.raises(NotFound):
        images.size(path)
    assert not images.exists(path)
    assert not images.delete(path)
    assert (tmp_path / "x.png").read_bytes() == b"outside"
    assert [file.name for file in (tmp_path / "media").iterdir()] == ["in.png"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes of one file: a real write that fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """A failure would serve half a picture, or fill the disk further with remains."""
    images = ImageStore(tmp_path)
    images.put("old.png", b"old")
    with files_of_at_most(50_000):
        for key in ("old.png", "new.png"):
            with pytest.raises(StorageUnavailable) as caught:
                images.put(key, b"x" * 200_000)
            assert caught.value.retry_after
            assert str(tmp_path) not in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]
    assert images.get("old.png") == b"old"
    images.put("new.png", b"x" * 200_000)
    assert images.size("new.png") == 200_000


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("a file is in the way")
    with pytest.raises(StorageUnavailable):
        ImageStore(tmp_path / "media").put("a.png", b"a")


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """Two versions are written in turn while another thread reads."""
    images = ImageStore(tmp_path)
    versions = [b"a" * 300_000, b"b" * 200_000]
    images.put("a.png", versions[0])

    def write() -> None:
        for turn in range(40):
            images.put("a.png", versions[turn % 2])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            assert images.get("a.png") in versions
        writing.result()


def test_an_unknown_store_is_refused_without_its_secrets() -> None:
    with pytest.raises(ValueError, match="media URL") as caught:
        ImageStore("nonsense://user:hunter2@host/bucket")
    assert "hunter2" not in str(caught.value)
