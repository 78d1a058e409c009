"""A small local stand-in for the hub: its answers, its error codes, and faults on demand.

Weight files are answered as the hub answers large ones: by a redirect to another origin ('the CDN'), where
the bytes come from, with ranges. Every request and every byte is counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_pipeline

LARGE = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")
TOKEN = "hf_aTokenThatMustNotBeSeenAnywhere0"
_CHUNK = 4096
_VAE_BLOCKS = 6


@dataclass
class Repository:
    """One model on the stand-in; `grants` are the tokens that may read it where it is private or gated."""

    files: dict[str, Path]
    licence: str
    private: bool = False
    gated: bool = False
    grants: frozenset[str] = frozenset()
    commit: str = ""

    def __post_init__(self) -> None:
        content = "".join(f"{name} {digest(path, name)}" for name, path in sorted(self.files.items()))
        self.commit = hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Faults:
    """What goes wrong; file names are those within a repository.

    Attributes:
        break_after: For a file, bytes after which each of its next answers breaks off.
        missing: Files that are listed and not there.
        corrupt: Files whose bytes arrive wrong.
        statuses: Answers of the next requests, whatever they ask for.
        chunk_seconds: Pause between chunks of 4 KiB: a slow link.
        ignore_ranges: Ranges are answered with the whole file.
        garbage: Everything is answered with a page of HTML, as by the login page of a hotel.
    """

    break_after: dict[str, list[int]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)
    chunk_seconds: float = 0.0
    ignore_ranges: bool = False
    garbage: bool = False


class Hub:
    """The stand-in's state; tests change it while it runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {TOKEN}
        self.faults = Faults()
        self.bytes_sent: Counter[str] = Counter()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.address = ""
        self.lock = threading.Lock()

    def add(self, name: str, folder: Path, *, licence: str = "creativeml-openrail-m", **options: Any) -> None:
        """Offer all files of `folder` as the repository `name`."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.repositories[name] = Repository(files, licence, **options)

    def downloads(self, pattern: str = "") -> list[str]:
        """'repository/file' of each GET for a file's content, in order, those that match only."""
        wanted = (path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path)
        names = [re.sub(r"/resolve/[^/]+", "", path).lstrip("/") for path in wanted]
        return [name for name in names if re.search(pattern, name)]


def digest(path: Path, name: str) -> str:
    """What the hub calls the content: SHA-256 of large files, git's SHA-1 of small ones."""
    content = path.read_bytes()
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_standin() -> Iterator[Hub]:
    """A stand-in on a free port of this machine; its address is for HF_ENDPOINT."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


DDPO = ("aesthetic", "alignment", "compressibility", "incompressibility")


def offer_catalogues(hub: Hub, folder: Path) -> None:
    """The sets `ddpo` and `turbo` at tiny size under their real names: four UNets share all other parts.

    Pictures have the real size; latents are small, one for 32×32 pixels, so that a step takes milliseconds.

    Every repository also holds what a real one does and nobody needs: a safety checker, other formats.
    """
    base = make_pipeline(folder / "base", vae_blocks=_VAE_BLOCKS)
    for seed, name in enumerate(DDPO):
        copy = folder / name
        shutil.copytree(base, copy)
        _other_unet(copy, seed)
        _add_superfluous(copy)
        hub.add(f"kvablack/ddpo-{name}", copy)
    turbo = make_pipeline(folder / "turbo", seed=7, vae_blocks=_VAE_BLOCKS)
    for weights in list(turbo.rglob("*.safetensors")):
        halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(halves, weights.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    _add_superfluous(turbo)
    hub.add("stabilityai/sd-turbo", turbo, licence="other")


def make_pickled(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose weights are `.bin` files only."""
    shutil.copytree(source, folder)
    for weights in list(folder.rglob("*.safetensors")):
        name = "pytorch_model" if weights.stem == "model" else weights.stem
        torch.save(load_file(weights), weights.with_name(f"{name}.bin"))
        weights.unlink()
    return folder


def _other_unet(folder: Path, seed: int) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    shifted = {name: tensor + seed / 1000 for name, tensor in load_file(weights).items()}
    save_file(shifted, weights, metadata={"format": "pt"})


def _add_superfluous(folder: Path) -> None:
    for name in (
        "safety_checker/model.safetensors", "safety_checker/config.json",
        "feature_extractor/preprocessor_config.json",
        "sd-v1-4.ckpt", "unet/diffusion_flax_model.msgpack", "vae_decoder/model.onnx", "README.md",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder/pytorch_model.bin",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"nobody needs this" + name.encode())
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest would show it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub = self.hub
        with hub.lock:
            hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
            status = hub.faults.statuses.pop(0) if hub.faults.statuses else None
        with suppress(ConnectionError):
            if status is not None:
                self._error(status)
            elif hub.faults.garbage:
                self._send(200, b"<html>Welcome to our hotel</html>", {"Content-Type": "text/html"})
            elif match := re.fullmatch(r"/cdn/(.+?)/-/(.+)", path):
                self._content(hub.repositories[match[1]], match[2])
            elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
                self._info(match[1], match[2] or "main", "blobs" in parse_qs(url.query))
            elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                self._resolve(match[1], match[2], match[3])
            else:
                self._error(404)

    def _allowed(self, name: str, revision: str, *, content: bool) -> Repository | None:
        """The repository, or None after an error in the hub's own words."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repository = self.hub.repositories.get(name)
        if given and given not in self.hub.tokens:
            self._error(401, message="Invalid credentials in Authorization header")
        elif repository is None or (repository.private and given not in repository.grants):
            self._error(404 if given else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and content and given not in repository.grants:
            self._error(403 if given else 401, "GatedRepo", f"Access to model {name} is restricted.")
        elif revision not in ("main", repository.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _info(self, name: str, revision: str, blobs: bool) -> None:
        repository = self._allowed(name, revision, content=False)
        if repository is None:
            return
        siblings = [_sibling(file, path, blobs) for file, path in sorted(repository.files.items())]
        answer = {
            "id": name, "modelId": name, "sha": repository.commit, "private": repository.private,
            "gated": "auto" if repository.gated else False, "tags": ["diffusers"],
            "cardData": {"license": repository.licence}, "siblings": siblings,
        }  # fmt: skip
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._allowed(name, revision, content=True)
        if repository is None:
            return
        if file not in repository.files or file in self.hub.faults.missing:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        elif file.endswith(LARGE):
            path = repository.files[file]
            cdn = self.hub.address.replace("127.0.0.1", "localhost")
            self._send(302, b"", {
                "Location": f"{cdn}/cdn/{name}/-/{file}?Signature=abc", "X-Repo-Commit": repository.commit,
                "X-Linked-Etag": f'"{digest(path, file)}"', "X-Linked-Size": str(path.stat().st_size),
            })  # fmt: skip
        else:
            self._content(repository, file)

    def _content(self, repository: Repository, file: str) -> None:
        path, faults = repository.files[file], self.hub.faults
        content = path.read_bytes()
        if file in faults.corrupt:
            content = content[:-4] + bytes(255 - byte for byte in content[-4:])
        headers = {"ETag": f'"{digest(path, file)}"', "X-Repo-Commit": repository.commit}
        status, total, start = 200, len(content), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not faults.ignore_ranges:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        breaks = faults.break_after.get(file, [])
        limit = breaks.pop(0) if breaks and self.command == "GET" else None
        self._send(status, content[start:], headers, limit, file)

    def _error(
        self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        given = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), {k: v for k, v in given.items() if v})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None, file: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body[:limit]), _CHUNK):
            chunk = body[:limit][start : start + _CHUNK]
            self.wfile.write(chunk)
            with self.hub.lock:
                self.hub.bytes_sent[file] += len(chunk)
            time.sleep(self.hub.faults.chunk_seconds)
        if limit is not None:
            self.close_connection = True


def _sibling(name: str, path: Path, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
    if name.endswith(LARGE):
        sibling["lfs"] = {"sha256": digest(path, name), "size": len(content), "pointerSize": 134}
    return sibling
