"""The image files, in a folder or any store that fsspec reaches."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from app.errors import DarkroomError, NotFound, StorageUnavailable

RETRY_AFTER = 5.0
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}\.png")


class ImageStore:
    """Images by key, such as 'kT3x….png'. Calls block; any thread may make them.

    A key is a name, never a path: what does not look like one is simply not found.

    Args:
        url_or_path: A folder, or an fsspec URL ('memory://media', 's3://bucket/media'). A local folder
            is made when the first image is put.

    Raises:
        ValueError: No file system answers to the URL's scheme.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(str(url_or_path))
        except (ValueError, ImportError) as exc:
            raise ValueError("the media URL names a store that is not installed here") from exc
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def put(self, key: str, data: bytes) -> None:
        """Store an image; a reader sees the old one or the new one, never a part.

        Raises:
            ValueError: Not a key.
            StorageUnavailable: The disk is full or the store does not answer; no partial file is left.
        """
        if _KEY.fullmatch(key) is None:
            raise ValueError("not the key of an image")
        with _translated():
            if self._is_local:
                _write_atomically(Path(self._path(key)), data)
            else:
                self._fs.makedirs(self._root, exist_ok=True)
                self._fs.pipe_file(self._path(key), data)

    def get(self, key: str) -> bytes:
        """The bytes of an image.

        Raises:
            NotFound: There is none.
            StorageUnavailable: The store does not answer.
        """
        with _translated():
            data: bytes = self._fs.cat_file(self._path(_checked(key)))
            return data

    def delete(self, key: str) -> bool:
        """Remove an image; whether it existed.

        Raises:
            StorageUnavailable: The store does not answer.
        """
        try:
            with _translated():
                self._fs.rm_file(self._path(_checked(key)))
        except NotFound:
            return False
        return True

    def exists(self, key: str) -> bool:
        """Whether there is such an image.

        Raises:
            StorageUnavailable: The store does not answer.
        """
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        """Bytes of an image.

        Raises:
            NotFound: There is none.
            StorageUnavailable: The store does not answer.
        """
        with _translated():
            # Remote file systems keep listings; another process may have changed them.
            self._fs.invalidate_cache(self._root)
            return int(self._fs.info(self._path(_checked(key)))["size"])

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


def _checked(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise NotFound("There is no such image.")
    return key


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DarkroomError:
        raise
    except FileNotFoundError as exc:
        raise NotFound("There is no such image.") from exc
    except Exception as exc:  # every store of fsspec raises errors of its own
        raise StorageUnavailable(
            "The image store does not answer or is full. Please try again.", retry_after=RETRY_AFTER
        ) from exc


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the row that promises this image may be committed next
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
