"""From a catalogue entry to a local folder in the diffusers layout: plan, fetch, say what went wrong.

Files lie in the standard cache of the hub's own library, so that programs find each other's::

    models--owner--name/
      blobs/<sha256, or git's sha1 of small files>      blobs/<…>.incomplete while it is fetched
      snapshots/<commit>/unet/config.json -> ../../../blobs/<…>
      refs/main                                          the commit, written when all files are there

Every function blocks; the loader thread calls them. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are exported lazily
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from app.catalog.entry import WEIGHTS_SUFFIX, CatalogEntry
from app.engine.weight_files import MissingFile, check_pipeline, index_of, is_whole, select_files, told
from app.errors import ModelLoadError

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]
"""Told how far a download is (0 … 1) and that in words. What it raises ends the download; bytes stay."""

_CHUNK = 1 << 20
_SPARE_BYTES = 100_000_000
_REPORT_SECONDS = 0.25
_PATIENCE_SECONDS = 5.0
"""What an answer of the hub is waited for where the cache would do."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN = re.compile(r"[!-~]+")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How the hub is reached.

    Attributes:
        cache: Folder of the hub's cache.
        token: Of the user, or None: then the one that the hub's own tools have stored, if any.
        endpoint: Address of the hub, or None for the usual one.
        offline: Never to use the network.
        timeout: Seconds without an answer or data after which a connection counts as broken.
        retry_seconds: Pauses before another try; a try that brought data starts the count anew.
    """

    cache: Path
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    offline: bool = False
    timeout: float = 30.0
    retry_seconds: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to have: its name in the repository, its bytes and the name of its blob (its digest)."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What loading an entry needs.

    Attributes:
        source: Hub id.
        commit: The revision that the files are of, 40 hex digits.
        licence: As the model's card says, or ''.
        files: Small ones first.
    """

    source: str
    commit: str
    licence: str
    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, whether they are here already or not."""
        return sum(file.size for file in self.files)


class _Unreachable(Exception):
    """The hub gives no usable answer; the text says why, in people's words."""


def hub_access(token: str | None = None) -> HubAccess:
    """Access as the environment says now; the hub's own library reads it once, when it is imported.

    Args:
        token: From the settings; wins over HF_TOKEN and HUGGINGFACE_HUB_TOKEN.
    """
    environment = os.environ
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    offline = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE") or ""
    given = token or environment.get("HF_TOKEN") or environment.get("HUGGINGFACE_HUB_TOKEN") or ""
    return HubAccess(
        token=given.strip() or None,
        endpoint=(environment.get("HF_ENDPOINT") or "").rstrip("/") or None,
        cache=Path(os.path.expandvars(cache)).expanduser(),
        offline=offline.upper() in ("1", "ON", "YES", "TRUE"),
    )


def plan(entry: CatalogEntry, access: HubAccess) -> DownloadPlan:
    """Ask the hub which files the entry needs, how large they are and what they may be used for.

    Raises:
        ModelLoadError: No repository, no access, a missing file, or the hub cannot be reached.
    """
    with _in_words(entry, access):
        return _retrying(access, lambda: _plan(entry, access))


def fetch(entry: CatalogEntry, report: Report, access: HubAccess) -> Path:
    """The folder (or single file) that the entry is loaded from; what is not on this disk is downloaded.

    Args:
        entry: From the hub or from this disk.
        report: See `Report`; not called if nothing has to be fetched.
        access: See `hub_access`.

    Raises:
        ModelLoadError: It cannot be had; the message says why and holds neither path nor token.
    """
    if not entry.from_hub:
        return _local(entry)
    with _in_words(entry, access):
        snapshot = _cached(entry, access)
    if snapshot is not None and (access.offline or _COMMIT.fullmatch(entry.revision)):
        return snapshot
    if access.offline:
        raise ModelLoadError(f"{entry.id}: {_words(entry.source, entry.revision, OfflineModeIsEnabled())}")
    if snapshot is None:
        planned = plan(entry, access)
    else:
        try:
            impatient = min(access.timeout, _PATIENCE_SECONDS)
            planned = plan(entry, dataclasses.replace(access, retry_seconds=(), timeout=impatient))
        except ModelLoadError as error:
            logger.warning("%s It is loaded from the cache.", error.message)
            return snapshot
    with _in_words(entry, access):
        return _Download(entry, planned, report, access).run()


def commit_of(entry: CatalogEntry, access: HubAccess) -> str:
    """The commit whose files are loaded for the entry, or '' if none is in the cache."""
    return _commit(_repository(entry.source, access), entry) or ""


def discard_corrupt(entry: CatalogEntry, access: HubAccess) -> int:
    """Delete the entry's cached files whose content is not what their digest says, to be fetched again.

    Returns:
        How many were deleted.
    """
    repository = _repository(entry.source, access)
    deleted = 0
    for pointer in (repository / "snapshots" / (_commit(repository, entry) or "none")).rglob("*"):
        blob = pointer.resolve()
        if blob.is_file() and _DIGEST.fullmatch(blob.name) and _digest(blob, len(blob.name)) != blob.name:
            _delete(pointer)
            deleted += 1
    return deleted


# From this disk.


def _local(entry: CatalogEntry) -> Path:
    if entry.file is not None:
        if not entry.file.is_file():
            raise ModelLoadError(f"{entry.id}: there is no such file.")
        if not is_whole(entry.file):
            raise ModelLoadError(f"{entry.id}: the file is corrupt, or no safetensors file.")
        return entry.file
    folder = entry.folder
    if folder is None:
        raise ModelLoadError(f"{entry.id}: there is no such folder.")
    index = index_of(entry)
    if not (folder / index).is_file():
        raise ModelLoadError(
            f"{entry.id}: the folder holds no model in the diffusers layout ({index} is missing)."
        )
    try:
        names = select_files(_names(folder), entry)
    except MissingFile as error:
        raise ModelLoadError(f"{entry.id}: a file is missing: {error}.") from error
    check_pipeline(folder / index_of(entry), entry)
    for name in names:
        if not is_whole(folder / name):
            raise ModelLoadError(f"{entry.id}: {told(name)} is corrupt.")
    return folder


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


# From the cache.


def _repository(source: str, access: HubAccess) -> Path:
    return access.cache / f"models--{source.replace('/', '--')}"


def _commit(repository: Path, entry: CatalogEntry) -> str | None:
    if _COMMIT.fullmatch(entry.revision):
        return entry.revision
    try:
        commit = (repository / "refs" / (entry.revision or "main")).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _cached(entry: CatalogEntry, access: HubAccess) -> Path | None:
    """The snapshot in the cache if it has every file that is needed, whole; damaged ones are deleted."""
    repository = _repository(entry.source, access)
    commit = _commit(repository, entry)
    snapshot = repository / "snapshots" / (commit or "none")
    if not snapshot.is_dir():
        return None
    try:
        names = select_files(_names(snapshot), entry)
    except MissingFile:
        return None
    damaged = [name for name in names if not is_whole(snapshot / name)]
    for name in damaged:
        logger.warning("%s: %s is corrupt in the cache and was deleted", entry.id, name)
        _delete(snapshot / name)
    if damaged:
        return None
    check_pipeline(snapshot / index_of(entry), entry)
    return snapshot


def _delete(pointer: Path) -> None:
    pointer.resolve().unlink(missing_ok=True)
    pointer.unlink(missing_ok=True)


def _digest(file: Path, length: int) -> str:
    """SHA-256 as 64 hex digits, or git's SHA-1 of a blob as 40."""
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# From the hub.


def _plan(entry: CatalogEntry, access: HubAccess) -> DownloadPlan:
    api = HfApi(endpoint=access.endpoint, token=access.token)
    try:
        info = api.model_info(
            entry.source, revision=entry.revision or None, files_metadata=True, timeout=access.timeout
        )
    except HFValidationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Unreachable("what answers in the hub's place is not the hub") from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = tuple(_planned(siblings[name]) for name in select_files(siblings, entry))
    if not _COMMIT.fullmatch(info.sha or "") or not all(_DIGEST.fullmatch(file.digest) for file in files):
        raise _Unreachable("the hub's answer makes no sense")
    return DownloadPlan(entry.source, info.sha or "", _licence(info), files)


def _planned(sibling: RepoSibling) -> PlannedFile:
    if sibling.lfs is not None:
        return PlannedFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256)
    return PlannedFile(sibling.rfilename, sibling.size or 0, sibling.blob_id or "")


def _licence(info: ModelInfo) -> str:
    card = info.card_data
    given = card.get("license_name") or card.get("license") if card is not None else None
    if not given:
        given = next(
            (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), ""
        )
    return str(given)[:100]


class _Download:
    """One run of bringing a plan's files into the cache."""

    def __init__(self, entry: CatalogEntry, planned: DownloadPlan, report: Report, access: HubAccess) -> None:
        self._entry = entry
        self._plan = planned
        self._report = report
        self._access = access
        self._repository = _repository(planned.source, access)
        self._snapshot = self._repository / "snapshots" / planned.commit
        self._arrived = 0
        self._total = 0
        self._reported = 0.0

    def run(self) -> Path:
        missing = [file for file in self._plan.files if not self._present(file)]
        if missing:
            self._fetch_all(missing)
        check_pipeline(self._snapshot / index_of(self._entry), self._entry)
        self._write_ref()
        return self._snapshot

    def _fetch_all(self, missing: list[PlannedFile]) -> None:
        linked = [file for file in missing if self._link_equal(file)]
        if linked:
            size = _amount(sum(file.size for file in linked))
            logger.info("%s: %s are here already, from other repositories", self._entry.id, size)
        missing = [file for file in missing if file not in linked]
        if not missing:
            return
        self._total = sum(file.size for file in missing)
        self._arrived = sum(min(_size(self._partial(file)), file.size) for file in missing)
        logger.info(
            "%s: fetching %s of %s from %s; licence: %s",
            self._entry.id, _amount(self._total - self._arrived), _amount(self._plan.total_bytes),
            self._plan.source, self._plan.licence or "not stated",
        )  # fmt: skip
        self._check_space()
        for file in missing:
            self._fetch(file)
            self._point(file)
            if file.name == index_of(self._entry):
                check_pipeline(self._snapshot / index_of(self._entry), self._entry)
        logger.info("%s: fetched", self._entry.id)

    def _check_space(self) -> None:
        self._access.cache.mkdir(parents=True, exist_ok=True)
        needed = self._total - self._arrived + _SPARE_BYTES
        free = shutil.disk_usage(self._access.cache).free
        if needed > free:
            raise ModelLoadError(
                f"{self._entry.id}: there is too little space on the disk of the hub's cache: "
                f"{_amount(needed)} are needed, {_amount(free)} are free."
            )

    def _blob(self, file: PlannedFile) -> Path:
        return self._repository / "blobs" / file.digest

    def _partial(self, file: PlannedFile) -> Path:
        return self._repository / "blobs" / f"{file.digest}.incomplete"

    def _present(self, file: PlannedFile) -> bool:
        """Whether the snapshot has the file; damaged ones are deleted, and blobs that lie ready are used."""
        pointer, blob = self._snapshot / file.name, self._blob(file)
        for path in (pointer, blob):
            if path.is_file() and (path.stat().st_size != file.size or not _arrived_whole(path, file.name)):
                logger.warning(
                    "%s: %s is corrupt in the cache and is fetched again", self._entry.id, file.name
                )
                _delete(path)
        if pointer.is_file():
            return True
        if blob.is_file():
            self._point(file)
            return True
        return False

    def _link_equal(self, file: PlannedFile) -> bool:
        """Use an equal file of another repository; its content is checked, not only its name."""
        for other in self._access.cache.glob(f"models--*/blobs/{file.digest}"):
            if other == self._blob(file):
                continue  # it would have been used
            if _size(other) == file.size and _digest(other, len(file.digest)) == file.digest:
                self._blob(file).parent.mkdir(parents=True, exist_ok=True)
                _link(other.resolve(), self._blob(file))
                self._point(file)
                return True
        return False

    def _fetch(self, file: PlannedFile) -> None:
        blob, partial = self._blob(file), self._partial(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock = self._access.cache / ".locks" / self._repository.name / f"{file.digest}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(lock):
            if blob.is_file():
                self._arrived += file.size
                return
            _retrying(
                self._access, lambda: self._continue(file, partial), lambda: _size(partial), self._pause
            )
            if not partial.exists():
                partial.touch()  # an empty file needs no request
            if _digest(partial, len(file.digest)) != file.digest or not _arrived_whole(partial, file.name):
                partial.unlink()
                raise ModelLoadError(
                    f"{self._entry.id}: {told(file.name)} arrived corrupt and was deleted; try again."
                )
            partial.replace(blob)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """One process fetches a file; the hub's own library takes the same lock."""
        lock = FileLock(path)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1.0)
            except Timeout:
                fraction = self._arrived / max(1, self._total)
                self._report(fraction, "waiting for another process that fetches the same file")
        try:
            yield
        finally:
            lock.release()

    def _continue(self, file: PlannedFile, partial: Path) -> None:
        """Bring the rest of a file; an interruption leaves what has arrived."""
        start = _size(partial)
        if start > file.size:
            partial.unlink()
            start = 0
        if start == file.size and file.size:
            return
        headers = {**build_hf_headers(token=self._access.token), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = hf_hub_url(
            self._plan.source, file.name, revision=self._plan.commit, endpoint=self._access.endpoint
        )
        with get_session().stream("GET", url, headers=headers, timeout=self._access.timeout) as response:
            hf_raise_for_status(response)
            resumed = response.status_code == httpx2.codes.PARTIAL_CONTENT
            if not resumed:
                self._arrived -= start
            self._write(response.iter_bytes(), partial, file.size - (start if resumed else 0), resumed)
        if _size(partial) < file.size:
            raise httpx2.RemoteProtocolError("the connection ended early")

    def _write(self, chunks: Iterator[bytes], partial: Path, expected: int, resumed: bool) -> None:
        with partial.open("ab" if resumed else "wb", buffering=0) as stream:
            for chunk in chunks:
                stream.write(chunk)
                self._arrived += len(chunk)
                expected -= len(chunk)
                self._tell()
                if expected < 0:
                    return  # more than the hub announced: the digest will be wrong

    def _pause(self, seconds: float) -> None:
        self._report(self._arrived / max(1, self._total), "the connection to the hub broke; trying again")
        time.sleep(seconds)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS and self._arrived < self._total:
            return
        self._reported = now
        self._report(
            min(1.0, self._arrived / max(1, self._total)), progress_words(self._arrived, self._total)
        )

    def _point(self, file: PlannedFile) -> None:
        pointer, blob = self._snapshot / file.name, self._blob(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)  # it may dangle
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # a system without symbolic links
            _link(blob, pointer)

    def _write_ref(self) -> None:
        if _COMMIT.fullmatch(self._entry.revision):
            return
        ref = self._repository / "refs" / (self._entry.revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = ref.with_name(f".{ref.name}.{os.getpid()}")
        temporary.write_text(self._plan.commit, encoding="ascii")
        temporary.replace(ref)


def _arrived_whole(partial: Path, name: str) -> bool:
    """Whether a file that does not have its own name yet is whole."""
    return not name.endswith(WEIGHTS_SUFFIX) or is_whole(partial, WEIGHTS_SUFFIX)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there are none; appears whole or not at all."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _amount(size: int) -> str:
    unit, name = _unit(size)
    return f"{size / unit:.1f} {name}"


def _unit(size: int) -> tuple[float, str]:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return unit, name
    return 1e3, "kB"


def progress_words(arrived: int, total: int) -> str:
    """Such as 'downloading 1.2 of 3.4 GB'."""
    unit, name = _unit(total)
    return f"downloading {arrived / unit:.1f} of {total / unit:.1f} {name}"


# Faults.


def _retrying(
    access: HubAccess,
    attempt: Callable[[], Result],
    progress: Callable[[], int] = lambda: 0,
    pause: Callable[[float], None] = time.sleep,
) -> Result:
    """Try until it works, the pauses are used up, or the failure is one that another try would not mend."""
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except (httpx2.TransportError, HfHubHTTPError) as error:
            now = progress()
            failures = 0 if now > before else failures
            before = now
            if not _is_transient(error) or failures == len(access.retry_seconds):
                raise
            logger.info("the hub does not answer (%s); trying again", type(error).__name__)
            pause(access.retry_seconds[failures])
            failures += 1


def _is_transient(error: httpx2.TransportError | HfHubHTTPError) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError)


@contextmanager
def _in_words(entry: CatalogEntry, access: HubAccess) -> Iterator[None]:
    if access.token is not None and not _TOKEN.fullmatch(access.token):
        # Sent, it would come back in the message of an exception.
        raise ModelLoadError(f"{entry.id}: HF_TOKEN holds characters that no token has.")
    try:
        yield
    except (
        httpx2.HTTPError,
        httpx2.InvalidURL,
        OSError,
        HFValidationError,
        MissingFile,
        _Unreachable,
    ) as error:
        raise ModelLoadError(f"{entry.id}: {_words(entry.source, entry.revision, error)}") from error


def _words(source: str, revision: str, error: Exception) -> str:
    match error:
        case OfflineModeIsEnabled():
            return f"{source} is not completely in the cache, and HF_HUB_OFFLINE forbids to fetch it."
        case HfHubHTTPError():
            return _http_words(source, revision, error)
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return f"the hub cannot be reached, and {source} is not completely in the cache."
        case _Unreachable():
            return f"{error}, and {source} is not completely in the cache."
        case MissingFile():
            return f"{source} lacks a file that is needed: {error}."
        case HFValidationError():
            return f"{source} cannot be the id of a repository on the hub."
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "the disk of the hub's cache is full; what has arrived is kept for the next try."
    logger.error("the hub's cache cannot be used", exc_info=error)
    return "the hub's cache cannot be read or written; the server's log says why."


def _http_words(source: str, revision: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    with_token = "authorization" in error.response.request.headers
    if isinstance(error, GatedRepoError):
        if with_token:
            return (
                f"{source} is gated, and the token's owner has no access: ask for it on its page on the hub."
            )
        return f"{source} is gated: accept its conditions on its page on the hub, then set HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        hint = "" if with_token else " If it is private, set HF_TOKEN."
        return f"the hub knows no repository {source}, or you have no access to it.{hint}"
    if isinstance(error, RevisionNotFoundError):
        return f"{source} has no revision {revision!r}."
    if isinstance(error, EntryNotFoundError) or status == httpx2.codes.NOT_FOUND:
        return f"{source} lacks a file that is needed; it may have changed a moment ago."
    if status == httpx2.codes.UNAUTHORIZED:
        return "the hub does not accept the token; check HF_TOKEN."
    if status == httpx2.codes.FORBIDDEN:
        return f"the hub refuses access to {source}; the token may lack the permission."
    return f"the hub answers with an error ({status}), and {source} is not completely in the cache."
